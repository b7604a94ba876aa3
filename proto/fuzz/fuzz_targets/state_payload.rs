//! libFuzzer on the target `state_payload`.
#![no_main]

use smg_fuzz::STATE_PAYLOAD;

libfuzzer_sys::fuzz_target!(init: STATE_PAYLOAD.write_seeds(), |input: &[u8]| (STATE_PAYLOAD.run)(input));
