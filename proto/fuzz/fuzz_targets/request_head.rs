//! libFuzzer on the target `request_head`.
#![no_main]

use smg_fuzz::REQUEST_HEAD;

libfuzzer_sys::fuzz_target!(init: REQUEST_HEAD.write_seeds(), |input: &[u8]| (REQUEST_HEAD.run)(input));
