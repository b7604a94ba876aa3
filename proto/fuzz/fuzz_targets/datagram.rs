//! libFuzzer on the target `datagram`.
#![no_main]

use smg_fuzz::DATAGRAM;

libfuzzer_sys::fuzz_target!(init: DATAGRAM.write_seeds(), |input: &[u8]| (DATAGRAM.run)(input));
