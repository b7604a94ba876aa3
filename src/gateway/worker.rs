//! A worker as the request path sees it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering},
    },
    time::Instant,
};

use http::{HeaderValue, uri::Authority};
use smg_certs::ClientMaterial;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    config::{self, address},
    gateway::{
        activity::Activity,
        breaker::{Breaker, Outcome, Permit, State},
        hint::Hint,
        prefix::index::Holder,
    },
    mesh::stores::{WorkerId, WorkerSpec},
};

/// A worker that requests can be sent to. The same value lives on across rebuilds of the routing view while its
/// address and key stay the same, so that its counters go on.
#[derive(Debug)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Whether it is reached over TLS.
    pub tls: bool,
    /// Host and port, the port always given.
    pub authority: Authority,
    /// What is shown to it and whom it is believed to be, where it is reached over TLS.
    pub material: Option<Arc<ClientMaterial>>,
    /// `Host` header for it.
    pub host: HeaderValue,
    /// Path before `/v1/…`, empty or starting with `/` and without a trailing one.
    pub path_prefix: String,
    /// `Authorization` for it, marked sensitive.
    pub authorization: Option<HeaderValue>,
    /// Whether requests may go there.
    pub breaker: Breaker,
    /// What other gateways say of it.
    pub hint: Hint,
    ring_hash: u64,
    number: u64,
    in_flight: AtomicUsize,
    activity: Arc<Activity>,
    told: Told,
}

/// What routing is told of a worker beside its address; the latest word counts.
#[derive(Debug, Default)]
struct Told {
    /// Requests that the other gateways have in flight there.
    elsewhere: AtomicU32,
    /// Low byte of the number of its lives.
    generation: AtomicU8,
    /// It is in another zone than this gateway, both being known.
    is_far: AtomicBool,
}

/// Why an entry is no worker that requests can be sent to. Nothing was changed; trying again does not help.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The URL is not usable.
    #[error(transparent)]
    Address(#[from] address::AddressError),
    /// The key does not fit into a header.
    #[error("the worker's api key has characters that a header cannot carry")]
    ApiKey,
}

impl Worker {
    /// A worker with nothing in flight, whose breaker is off.
    #[must_use]
    pub fn new(
        id: WorkerId,
        tls: bool,
        authority: Authority,
        host: HeaderValue,
        path_prefix: String,
        authorization: Option<HeaderValue>,
    ) -> Self {
        let (ring_hash, number) = (xxh3_64(id.as_str().as_bytes()), id.number());
        let now = Instant::now();
        let (breaker, hint, in_flight) = (Breaker::off(now), Hint::new(now), AtomicUsize::new(0));
        let (material, told) = (None, Told::default());
        Self {
            id,
            tls,
            authority,
            material,
            host,
            path_prefix,
            authorization,
            breaker,
            hint,
            ring_hash,
            number,
            in_flight,
            activity: Arc::default(),
            told,
        }
    }

    /// The same with what its TLS needs, if it has any.
    #[must_use]
    pub fn with_material(self, material: &Arc<ClientMaterial>) -> Self {
        Self { material: self.tls.then(|| material.clone()), ..self }
    }

    /// The same with a breaker.
    #[must_use]
    pub fn with_breaker(self, rules: &config::Breaker) -> Self {
        Self { breaker: Breaker::new(rules, Instant::now()), ..self }
    }

    /// The same, whose requests are seen in `activity`.
    #[must_use]
    pub fn with_activity(self, activity: &Arc<Activity>) -> Self {
        Self { activity: activity.clone(), ..self }
    }

    /// The worker that `spec` describes; `default_key` is its key when the spec has none.
    ///
    /// # Errors
    /// When its URL or key cannot be used.
    pub fn of_spec(spec: &WorkerSpec, default_key: Option<&str>) -> Result<Self, WorkerError> {
        let address = address::Address::parse(&spec.url)?;
        let authorization = spec.api_key.as_deref().or(default_key).map(bearer).transpose()?;
        let id = WorkerId::of_url(&spec.url);
        Ok(Self::new(id, address.tls, address.authority, address.host, address.path_prefix, authorization))
    }

    /// Requests that this gateway has in flight there, response body included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The worker's place in hashing by key: a hash of its id, so the same on every gateway.
    #[must_use]
    pub fn ring_hash(&self) -> u64 {
        self.ring_hash
    }

    /// [`WorkerId::number`] of its id.
    #[must_use]
    pub fn id_number(&self) -> u64 {
        self.number
    }

    /// Requests in flight there from this gateway and, as they last said, from the others.
    #[must_use]
    pub fn load(&self) -> usize {
        self.in_flight() + self.told.elsewhere.load(Ordering::Relaxed) as usize
    }

    /// Tells how many requests the other gateways have in flight there.
    pub fn set_elsewhere(&self, requests: u32) {
        self.told.elsewhere.store(requests, Ordering::Relaxed);
    }

    /// The worker in the prefix index: upper half of its ring hash, never 0.
    #[must_use]
    pub fn tag(&self) -> u32 {
        ((self.ring_hash >> 32) as u32).max(1)
    }

    /// The worker in its present life in the prefix index.
    #[must_use]
    pub fn holder(&self) -> Holder {
        Holder { tag: self.tag(), generation: self.told.generation.load(Ordering::Relaxed) }
    }

    /// Tells that it lost its cache: what was seen in an earlier generation does not count any more.
    pub fn set_generation(&self, generation: u8) {
        self.told.generation.store(generation, Ordering::Relaxed);
    }

    /// Whether it is in another zone than this gateway.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.told.is_far.load(Ordering::Relaxed)
    }

    /// Tells whether it is.
    pub fn set_far(&self, is_far: bool) {
        self.told.is_far.store(is_far, Ordering::Relaxed);
    }

    /// Counts a request in that its breaker is told nothing of; the guard counts it out.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.count_in();
        InFlight { worker: self.clone(), judged: None }
    }

    /// The same for a request that its breaker let pass, and that is given up at `deadline`.
    #[must_use]
    pub fn begin_permitted(self: &Arc<Self>, permit: Permit, deadline: Instant) -> InFlight {
        self.count_in();
        InFlight { worker: self.clone(), judged: Some((permit, deadline)) }
    }

    fn count_in(&self) {
        self.activity.begin(&self.in_flight);
    }
}

/// One request in flight at a worker, counted out when dropped.
///
/// Its first outcome goes to the worker's breaker. Dropped without one it was given up: because its deadline had
/// passed, which is a failure, or because its client left, which says nothing.
#[derive(Debug)]
pub struct InFlight {
    worker: Arc<Worker>,
    /// Until its outcome is known: the breaker's leave, and the deadline.
    judged: Option<(Permit, Instant)>,
}

impl InFlight {
    /// The worker.
    #[must_use]
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// Moves the time at which it is given up, as long as its outcome is not known.
    pub fn give_until(&mut self, deadline: Instant) {
        if let Some((_, until)) = &mut self.judged {
            *until = deadline;
        }
    }

    /// What came of the request; later words do not count.
    pub fn settle(&mut self, outcome: Outcome, now: Instant) {
        let Some((permit, _)) = self.judged.take() else { return };
        let worker = &self.worker;
        if outcome == Outcome::Success {
            worker.hint.on_success();
        }
        match worker.breaker.settle(permit, outcome, now) {
            Some((_, to @ State::Open)) => tracing::warn!(worker = %worker.id, status = to.as_str(), "worker breaker"),
            Some((_, to)) => tracing::info!(worker = %worker.id, status = to.as_str(), "worker breaker"),
            None => {}
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some((_, deadline)) = self.judged {
            let now = Instant::now();
            self.settle(if now >= deadline { Outcome::Failure } else { Outcome::Neutral }, now);
        }
        self.worker.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The `Authorization` header for a key, marked sensitive so that it is never logged.
///
/// # Errors
/// When the key has characters that a header cannot carry.
pub fn bearer(key: &str) -> Result<HeaderValue, WorkerError> {
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| WorkerError::ApiKey)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::mesh::stores::WorkerOrigin;

    pub(crate) fn spec(url: &str) -> WorkerSpec {
        WorkerSpec {
            url: url.into(),
            models: Vec::new(),
            api_key: None,
            zone: String::new(),
            origin: WorkerOrigin::Api,
            draining: false,
        }
    }

    pub(crate) fn workers(n: usize) -> Vec<Arc<Worker>> {
        (0..n).map(|i| Arc::new(Worker::of_spec(&spec(&format!("http://w{i}:8000")), None).unwrap())).collect()
    }

    #[test]
    fn the_own_key_precedes_the_default_one() {
        for (case, own, default, expected) in [
            ("neither", None, None, None),
            ("default", None, Some("d"), Some("Bearer d")),
            ("own", Some("o"), None, Some("Bearer o")),
            ("both", Some("o"), Some("d"), Some("Bearer o")),
        ] {
            let spec = WorkerSpec { api_key: own.map(Into::into), ..spec("http://w:1") };
            let worker = Worker::of_spec(&spec, default).unwrap();
            assert_eq!(worker.authorization.as_ref().map(|v| v.to_str().unwrap()), expected, "{case}");
            assert!(worker.authorization.is_none_or(|v| v.is_sensitive()), "{case}");
        }
        let broken = WorkerSpec { api_key: Some("a\nb".into()), ..spec("http://w:1") };
        assert_eq!(Worker::of_spec(&broken, None).unwrap_err(), WorkerError::ApiKey);
    }

    #[test]
    fn a_guard_counts_in_and_out() {
        let worker = workers(1).remove(0);
        let (first, second) = (worker.begin(), worker.begin());
        assert_eq!(worker.in_flight(), 2);
        drop(first);
        assert_eq!(second.worker().in_flight(), 1);
        drop(second);
        assert_eq!(worker.in_flight(), 0);
    }

    #[test]
    fn what_becomes_of_a_request_reaches_the_breaker() {
        use Outcome::{Failure, Neutral, Success};
        let rules = config::Breaker { failure_threshold: 1, ..crate::gateway::breaker::tests::rules() };
        let hour = std::time::Duration::from_secs(3600);
        for (case, said, is_late, expected) in [
            ("failure", vec![Failure], false, State::Open),
            ("success", vec![Success], false, State::Closed),
            ("neutral", vec![Neutral], false, State::Closed),
            ("the first word counts", vec![Neutral, Failure], false, State::Closed),
            ("given up by the client", vec![], false, State::Closed),
            ("given up at the deadline", vec![], true, State::Open),
            ("said before the deadline", vec![Neutral], true, State::Closed),
        ] {
            let worker = Arc::new(Worker::of_spec(&spec("http://w:1"), None).unwrap().with_breaker(&rules));
            let now = Instant::now();
            let deadline = if is_late { now } else { now + hour };
            let mut in_flight = worker.begin_permitted(worker.breaker.admit(now).unwrap(), deadline);
            said.into_iter().for_each(|outcome| in_flight.settle(outcome, now));
            drop(in_flight);
            assert_eq!(worker.breaker.state(now), expected, "{case}");
        }
    }
}
