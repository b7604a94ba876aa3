//! libFuzzer on the target `sync_frame`.
#![no_main]

use smg_fuzz::SYNC_FRAME;

libfuzzer_sys::fuzz_target!(init: SYNC_FRAME.write_seeds(), |input: &[u8]| (SYNC_FRAME.run)(input));
