//! The words of the `workers` namespace.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::discovered::PodMark;
use crate::mesh::node::NodeName;

/// Id of a worker, the same on every gateway because it is derived from the URL alone: `w-` and 16 hex digits.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// The id of the worker at `url`, which is in its canonical form (no trailing slash).
    #[must_use]
    pub fn of_url(url: &str) -> Self {
        Self(format!("w-{:016x}", xxhash_rust::xxh3::xxh3_64(url.as_bytes())).into())
    }

    /// The digits of the id as a number.
    #[must_use]
    pub fn number(&self) -> u64 {
        u64::from_str_radix(&self.0[2..], 16).expect("an id is w- and 16 hex digits")
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a worker entry came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WorkerOrigin {
    /// `--worker-urls` of some gateway: the flag would add it again at the next start.
    Seed,
    /// `POST /workers`.
    Api,
    /// A search found its pod; see [`Finding`](super::Finding).
    Discovered(PodMark),
}

impl WorkerOrigin {
    /// The spelling of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::Api => "api",
            Self::Discovered(_) => "discovered",
        }
    }
}

/// What an operator said about a worker.
#[derive(Clone, Eq, PartialEq)]
pub struct WorkerSpec {
    /// Base URL in canonical form: scheme, host, port, no trailing slash.
    pub url: String,
    /// Models it serves; empty: asked from the worker's `/v1/models`.
    pub models: Vec<String>,
    /// Bearer token for the worker. Never logged.
    pub api_key: Option<String>,
    /// Availability zone; empty when unknown.
    pub zone: String,
    /// Where the entry came from.
    pub origin: WorkerOrigin,
    /// No new requests; those in flight run on. The entry stays until it is removed or this is taken back.
    pub draining: bool,
}

impl fmt::Debug for WorkerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerSpec")
            .field("url", &self.url)
            .field("models", &self.models)
            .field("api_key", &self.api_key.as_ref().map(|_| "…"))
            .field("zone", &self.zone)
            .field("origin", &self.origin)
            .field("draining", &self.draining)
            .finish()
    }
}

/// A change of what an operator said about a worker; what is none stays as it is.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct WorkerPatch {
    /// Models that it serves from now on; empty: asked from the worker.
    pub models: Option<Vec<String>>,
    /// Bearer token from now on, or that there is none. Never logged.
    pub api_key: Option<Option<String>>,
    /// Availability zone from now on; empty when unknown.
    pub zone: Option<String>,
    /// Whether it gets no new requests.
    pub draining: Option<bool>,
}

impl WorkerPatch {
    /// Changes `spec`.
    pub fn apply(&self, spec: &mut WorkerSpec) {
        let Self { models, api_key, zone, draining } = self.clone();
        spec.models = models.unwrap_or(std::mem::take(&mut spec.models));
        spec.api_key = api_key.unwrap_or(spec.api_key.take());
        spec.zone = zone.unwrap_or(std::mem::take(&mut spec.zone));
        spec.draining = draining.unwrap_or(spec.draining);
    }
}

impl fmt::Debug for WorkerPatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPatch")
            .field("models", &self.models)
            .field("api_key", &self.api_key.as_ref().map(|key| key.as_ref().map(|_| "…")))
            .field("zone", &self.zone)
            .field("draining", &self.draining)
            .finish()
    }
}

/// State of a worker as one gateway sees it, as the API spells it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum WorkerState {
    /// Registered, never yet healthy.
    Pending,
    /// Healthy: receives requests.
    Ready,
    /// Failed its health checks: receives none, is probed for ever.
    NotReady,
    /// Being removed, or held back by its operator: finishes its work, receives no new requests.
    Draining,
}

impl WorkerState {
    /// The spelling of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
        }
    }
}

/// What one gateway sees of one worker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerObservation {
    /// State as that gateway sees it.
    pub state: WorkerState,
    /// Models that the worker listed when it was last asked.
    pub models: Vec<String>,
    /// Until when that gateway's circuit breaker keeps requests away, in unix milliseconds by its clock; 0: it does not.
    pub failing_until_ms: u64,
}

/// A worker with everything the cluster knows of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerView {
    /// Its id.
    pub id: WorkerId,
    /// What the operator said.
    pub spec: WorkerSpec,
    /// What each gateway sees, by node name. Each node writes its own entry alone.
    pub observed: BTreeMap<NodeName, WorkerObservation>,
}

/// A key of the `workers` namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum WorkerKey {
    /// `<id>/spec`: what the operator said. Any node writes it.
    Spec(WorkerId),
    /// `<id>/seen/<node>`: what one gateway sees. That node alone writes it.
    Seen(WorkerId, NodeName),
}

impl WorkerKey {
    pub(super) fn spec(id: &WorkerId) -> Vec<u8> {
        format!("{id}/spec").into_bytes()
    }

    pub(super) fn seen(id: &WorkerId, node: &NodeName) -> Vec<u8> {
        format!("{id}/seen/{node}").into_bytes()
    }

    pub(super) fn all_seen(id: &WorkerId) -> Vec<u8> {
        format!("{id}/seen/").into_bytes()
    }

    /// The key that the bytes are; none when a newer version or a broken peer wrote something else.
    pub(super) fn parse(key: &[u8]) -> Option<Self> {
        let (id, rest) = std::str::from_utf8(key).ok()?.split_once('/')?;
        let digits = id.strip_prefix("w-")?;
        if digits.len() != 16 || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let id = WorkerId(id.into());
        match rest.split_once('/') {
            None if rest == "spec" => Some(Self::Spec(id)),
            Some(("seen", node)) => Some(Self::Seen(id, node.parse().ok()?)),
            _ => None,
        }
    }

    pub(super) fn id(&self) -> &WorkerId {
        match self {
            Self::Spec(id) | Self::Seen(id, _) => id,
        }
    }
}
