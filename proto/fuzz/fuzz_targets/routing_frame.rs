//! libFuzzer on the target `routing_frame`.
#![no_main]

use smg_fuzz::ROUTING_FRAME;

libfuzzer_sys::fuzz_target!(init: ROUTING_FRAME.write_seeds(), |input: &[u8]| (ROUTING_FRAME.run)(input));
