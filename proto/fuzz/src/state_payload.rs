//! Values of the replicated stores: what decodes encodes again, to something that means the same.

use smg::mesh::{
    stores::{PolicySpec, WorkerObservation, WorkerOrigin, WorkerSpec, WorkerState},
    wire::state,
};

pub(super) fn run(payload: &[u8]) {
    if let Ok(worker) = state::decode_worker(payload) {
        let again = state::encode_worker(&worker).expect("what was read can be written");
        assert_eq!(state::decode_worker(&again).ok().as_ref(), Some(&worker));
    }
    if let Ok(seen) = state::decode_observation(payload) {
        let again = state::encode_observation(&seen).expect("what was read can be written");
        assert_eq!(state::decode_observation(&again).ok().as_ref(), Some(&seen));
    }
    if let Ok(policy) = state::decode_policy(payload) {
        let again = state::encode_policy(&policy).expect("what was read can be written");
        assert_eq!(state::decode_policy(&again).ok().as_ref(), Some(&policy));
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let spec = WorkerSpec {
        url: "https://worker.example:8443/base".into(),
        models: vec!["llama-3".into(), "org/model".into()],
        api_key: Some("key".into()),
        zone: "eu-1a".into(),
        origin: WorkerOrigin::Seed,
        draining: true,
    };
    let seen = WorkerObservation { state: WorkerState::NotReady, models: vec!["llama-3".into()], failing_until_ms: 0 };
    let policy = PolicySpec { policy: "consistent_hashing".into(), config_json: r#"{"replicas":3}"#.into() };
    let values = [
        state::encode_worker(&state::StoredWorker { spec: spec.clone(), removed: false }),
        state::encode_worker(&state::StoredWorker { spec, removed: true }),
        state::encode_observation(&seen),
        state::encode_policy(&policy),
    ];
    values.map(|value| value.expect("short values")).into()
}
