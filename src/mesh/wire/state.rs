//! Payloads of the stores to and from bytes.

use bytes::Bytes;
use prost::Message as _;
use smg_proto::state as pb;

use crate::mesh::stores::{
    HASH_KEY_BYTES, PodMark, PolicySpec, WorkerObservation, WorkerOrigin, WorkerSpec, WorkerState,
};

const URL_BYTES_MAX: usize = 2048;
const MODELS_MAX: usize = 256;
const MODEL_BYTES_MAX: usize = 256;
const API_KEY_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 64;
const CONFIG_BYTES_MAX: usize = 64 << 10;

/// Why a payload is no value, or a value cannot travel. The entry stays as it was; on the receiving side it is kept as
/// opaque bytes and hidden from views.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// Not a message of this protocol.
    #[error("malformed value")]
    Malformed(#[from] prost::DecodeError),
    /// Longer than `state.proto` allows.
    #[error("{0} out of bounds")]
    OutOfBounds(&'static str),
}

/// A worker entry as it is stored: a spec, or the marker of a removed one that a flag would add again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredWorker {
    /// What the operator said last.
    pub spec: WorkerSpec,
    /// The worker was removed.
    pub removed: bool,
}

/// The bytes of the key of prefix names.
#[must_use]
pub fn encode_hash_key(key: &[u8]) -> Vec<u8> {
    pb::HashKey { key: key.to_vec().into() }.encode_to_vec()
}

/// The key that the bytes are.
///
/// # Errors
/// When they are none, or the key is not of its length.
pub fn decode_hash_key(bytes: &[u8]) -> Result<Bytes, ValueError> {
    let key = pb::HashKey::decode(bytes)?.key;
    if key.len() == HASH_KEY_BYTES { Ok(key) } else { Err(ValueError::OutOfBounds("key")) }
}

/// The bytes of a worker's generation.
#[must_use]
pub fn encode_generation(generation: u32) -> Vec<u8> {
    pb::Generation { generation }.encode_to_vec()
}

/// The generation that the bytes are.
///
/// # Errors
/// When they are none.
pub fn decode_generation(bytes: &[u8]) -> Result<u32, ValueError> {
    Ok(pb::Generation::decode(bytes)?.generation)
}

/// The bytes of a worker entry.
///
/// # Errors
/// When a part is longer than it may be.
pub fn encode_worker(worker: &StoredWorker) -> Result<Vec<u8>, ValueError> {
    let spec = &worker.spec;
    let (origin, mark) = match spec.origin {
        WorkerOrigin::Seed => (pb::WorkerOrigin::Seed, None),
        WorkerOrigin::Api => (pb::WorkerOrigin::Api, None),
        WorkerOrigin::Discovered(mark) => (pb::WorkerOrigin::Discovered, Some(mark)),
    };
    let message = pb::WorkerSpec {
        url: spec.url.clone(),
        models: spec.models.clone(),
        api_key: spec.api_key.clone().unwrap_or_default(),
        zone: spec.zone.clone(),
        origin: origin.into(),
        draining: spec.draining,
        removed: worker.removed,
        pod: mark.map_or(0, |mark| mark.pod),
        search: mark.map_or(0, |mark| mark.search),
    };
    check_worker(&message)?;
    Ok(message.encode_to_vec())
}

/// The worker entry that the bytes are.
///
/// # Errors
/// When they are none.
pub fn decode_worker(payload: &[u8]) -> Result<StoredWorker, ValueError> {
    let message = pb::WorkerSpec::decode(payload)?;
    check_worker(&message)?;
    let origin = match message.origin() {
        pb::WorkerOrigin::Seed => WorkerOrigin::Seed,
        pb::WorkerOrigin::Discovered => WorkerOrigin::Discovered(PodMark { pod: message.pod, search: message.search }),
        pb::WorkerOrigin::Api | pb::WorkerOrigin::Unspecified => WorkerOrigin::Api,
    };
    let spec = WorkerSpec {
        url: message.url,
        models: message.models,
        api_key: (!message.api_key.is_empty()).then_some(message.api_key),
        zone: message.zone,
        origin,
        draining: message.draining,
    };
    Ok(StoredWorker { spec, removed: message.removed })
}

/// The bytes of an observation.
///
/// # Errors
/// When a part is longer than it may be.
pub fn encode_observation(seen: &WorkerObservation) -> Result<Vec<u8>, ValueError> {
    let state = match seen.state {
        WorkerState::Pending => pb::WorkerState::Pending,
        WorkerState::Ready => pb::WorkerState::Ready,
        WorkerState::NotReady => pb::WorkerState::NotReady,
        WorkerState::Draining => pb::WorkerState::Draining,
    };
    check_models(&seen.models)?;
    let failing_until_ms = seen.failing_until_ms;
    Ok(pb::WorkerObservation { state: state.into(), models: seen.models.clone(), failing_until_ms }.encode_to_vec())
}

/// The observation that the bytes are.
///
/// # Errors
/// When they are none.
pub fn decode_observation(payload: &[u8]) -> Result<WorkerObservation, ValueError> {
    let message = pb::WorkerObservation::decode(payload)?;
    check_models(&message.models)?;
    let state = match message.state() {
        pb::WorkerState::Pending | pb::WorkerState::Unspecified => WorkerState::Pending,
        pb::WorkerState::Ready => WorkerState::Ready,
        pb::WorkerState::NotReady => WorkerState::NotReady,
        pb::WorkerState::Draining => WorkerState::Draining,
    };
    Ok(WorkerObservation { state, models: message.models, failing_until_ms: message.failing_until_ms })
}

/// The bytes of a policy.
///
/// # Errors
/// When a part is longer than it may be.
pub fn encode_policy(policy: &PolicySpec) -> Result<Vec<u8>, ValueError> {
    let message = pb::PolicySpec { policy: policy.policy.clone(), config_json: policy.config_json.clone() };
    check_policy(&message)?;
    Ok(message.encode_to_vec())
}

/// The policy that the bytes are.
///
/// # Errors
/// When they are none.
pub fn decode_policy(payload: &[u8]) -> Result<PolicySpec, ValueError> {
    let message = pb::PolicySpec::decode(payload)?;
    check_policy(&message)?;
    Ok(PolicySpec { policy: message.policy, config_json: message.config_json })
}

/// The bytes of a session.
#[must_use]
pub fn encode_session(worker: u64) -> Vec<u8> {
    pb::Session { worker }.encode_to_vec()
}

/// The number of the worker that holds the session that the bytes are.
///
/// # Errors
/// When they are none.
pub fn decode_session(payload: &[u8]) -> Result<u64, ValueError> {
    Ok(pb::Session::decode(payload)?.worker)
}

fn check_worker(message: &pb::WorkerSpec) -> Result<(), ValueError> {
    bounded("url", message.url.len(), URL_BYTES_MAX)?;
    bounded("api_key", message.api_key.len(), API_KEY_BYTES_MAX)?;
    bounded("zone", message.zone.len(), NAME_BYTES_MAX)?;
    check_models(&message.models)
}

fn check_models(models: &[String]) -> Result<(), ValueError> {
    bounded("models", models.len(), MODELS_MAX)?;
    bounded("model", models.iter().map(String::len).max().unwrap_or(0), MODEL_BYTES_MAX)
}

fn check_policy(message: &pb::PolicySpec) -> Result<(), ValueError> {
    bounded("policy", message.policy.len(), NAME_BYTES_MAX)?;
    bounded("config_json", message.config_json.len(), CONFIG_BYTES_MAX)
}

fn bounded(what: &'static str, value: usize, max: usize) -> Result<(), ValueError> {
    if value <= max { Ok(()) } else { Err(ValueError::OutOfBounds(what)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn worker() -> StoredWorker {
        let spec = WorkerSpec {
            url: "http://w:1".into(),
            models: vec!["m".into()],
            api_key: Some("k".into()),
            zone: "z".into(),
            origin: WorkerOrigin::Seed,
            draining: true,
        };
        StoredWorker { spec, removed: true }
    }

    #[test]
    fn values_survive_the_way_through_bytes() {
        let origins = [WorkerOrigin::Seed, WorkerOrigin::Api, WorkerOrigin::Discovered(PodMark { pod: 1, search: 2 })];
        for origin in origins {
            let worker = StoredWorker { spec: WorkerSpec { origin, ..worker().spec }, removed: true };
            assert_eq!(decode_worker(&encode_worker(&worker).unwrap()).unwrap(), worker);
        }
        for state in [WorkerState::Pending, WorkerState::Ready, WorkerState::NotReady, WorkerState::Draining] {
            let seen = WorkerObservation { state, models: vec!["a".into()], failing_until_ms: 7 };
            assert_eq!(decode_observation(&encode_observation(&seen).unwrap()).unwrap(), seen);
        }
        let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
        assert_eq!(decode_policy(&encode_policy(&policy).unwrap()).unwrap(), policy);
        assert_eq!(decode_session(&encode_session(u64::MAX)).unwrap(), u64::MAX);
    }

    #[test]
    fn values_beyond_their_bounds_are_refused_on_both_sides() {
        let long_url = StoredWorker { spec: WorkerSpec { url: "u".repeat(2049), ..worker().spec }, removed: false };
        let many =
            WorkerObservation { state: WorkerState::Ready, models: vec![String::new(); 257], failing_until_ms: 0 };
        let large = PolicySpec { policy: "p".into(), config_json: " ".repeat((64 << 10) + 1) };
        let raw = pb::PolicySpec { policy: "p".repeat(65), config_json: String::new() }.encode_to_vec();
        for (case, refused) in [
            ("long url", encode_worker(&long_url).is_err()),
            ("many models", encode_observation(&many).is_err()),
            ("large config", encode_policy(&large).is_err()),
            ("long policy name from a peer", decode_policy(&raw).is_err()),
        ] {
            assert!(refused, "{case}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode_worker(&bytes).is_ok(), decode_observation(&bytes).is_ok(), decode_policy(&bytes).is_ok());
            let _ = decode_session(&bytes).is_ok();
        }
    }
}
