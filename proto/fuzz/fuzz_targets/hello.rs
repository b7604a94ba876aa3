//! libFuzzer on the target `hello`.
#![no_main]

use smg_fuzz::HELLO;

libfuzzer_sys::fuzz_target!(init: HELLO.write_seeds(), |input: &[u8]| (HELLO.run)(input));
