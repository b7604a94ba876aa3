//! libFuzzer on the target `coordination`.
#![no_main]

use smg_fuzz::COORDINATION;

libfuzzer_sys::fuzz_target!(init: COORDINATION.write_seeds(), |input: &[u8]| (COORDINATION.run)(input));
