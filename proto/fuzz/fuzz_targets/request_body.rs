//! libFuzzer on the target `request_body`.
#![no_main]

use smg_fuzz::REQUEST_BODY;

libfuzzer_sys::fuzz_target!(init: REQUEST_BODY.write_seeds(), |input: &[u8]| (REQUEST_BODY.run)(input));
