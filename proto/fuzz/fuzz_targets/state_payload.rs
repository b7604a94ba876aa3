//! Payloads of the replicated stores: what decodes encodes again, to something that means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smg::mesh::wire::state;

fuzz_target!(|payload: &[u8]| {
    if let Ok(worker) = state::decode_worker(payload) {
        let again = state::encode_worker(&worker).expect("what was read can be written");
        assert_eq!(state::decode_worker(&again).ok().as_ref(), Some(&worker));
    }
    let _ = state::decode_observation(payload);
    let _ = state::decode_policy(payload);
});
