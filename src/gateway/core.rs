//! What the requests of one core share: never locked, never seen by another core.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method};
use rand_pcg::Pcg64Mcg;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use crate::{
    config::Config,
    gateway::{
        admission::Admission, budget::RetryBudget, connection::Connection, error::GatewayError, handshake::Handshakes,
        headers, health::Suspicions, limits::RateLimits, pool::Pool, refusal, sharing::placer::Placer,
        view::RoutingView,
    },
    mesh::driver::sessions::Sessions,
    telemetry::{metrics::Metrics, traces::Traces},
};

/// How far the data plane is on its way out, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Phase {
    /// In normal operation.
    Serving,
    /// Serves everything; probes say no, and answers ask clients to reconnect elsewhere.
    Settling,
    /// New requests get 503; those in flight run on.
    Refusing,
    /// Listeners are closed, connections close as they fall idle.
    Closing,
    /// The runtime ends now, with everything on it.
    Stopped,
}

/// Where the request path reports what it comes by, and asks who holds a session and how much is admitted. Cheap to clone;
/// by default nobody hears, and there is no limit.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// Workers that cannot be connected to.
    pub suspicions: Suspicions,
    /// Who holds which session.
    pub sessions: Sessions,
    /// Placements that other gateways would not expect.
    pub placer: Placer,
    /// How many requests per second are admitted.
    pub limits: Arc<RateLimits>,
    /// Makes spans of requests; none without `--enable-trace`.
    pub traces: Option<Traces>,
}

/// What all cores share: read only, but for the templates of control routes, which leave the hot path alone.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) view: Arc<ArcSwap<RoutingView>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) suspicions: Suspicions,
    pub(crate) sessions: Sessions,
    pub(crate) placer: Placer,
    pub(crate) limits: Arc<RateLimits>,
    pub(crate) traces: Option<Traces>,
    pub(crate) control: axum::Router,
    /// None: clients connect without TLS.
    pub(crate) acceptor: Option<TlsAcceptor>,
    /// Client connections over all cores, and how many there may be.
    connections: AtomicUsize,
    connections_max: usize,
    /// None: any number of requests may be in flight.
    pub(crate) admission: Option<Admission>,
    /// Route templates of the control router that were hit: at most as many as it has routes.
    templates: Mutex<HashMap<Box<str>, &'static str>>,
}

impl Shared {
    pub(crate) fn new(
        config: Arc<Config>,
        view: Arc<ArcSwap<RoutingView>>,
        metrics: Arc<Metrics>,
        reports: Reports,
        control: axum::Router,
        acceptor: Option<TlsAcceptor>,
    ) -> Self {
        let admission = Admission::new(&config.limits, metrics.clone());
        let Reports { suspicions, sessions, placer, limits, traces } = reports;
        let (connections, connections_max) = (AtomicUsize::new(0), connections_max(descriptors()));
        let templates = Mutex::default();
        Self {
            config,
            view,
            metrics,
            suspicions,
            sessions,
            placer,
            limits,
            traces,
            control,
            acceptor,
            connections,
            connections_max,
            admission,
            templates,
        }
    }

    /// The template as a metric label.
    pub(crate) fn intern(&self, template: &str) -> &'static str {
        let mut templates = self.templates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = templates.get(template) {
            return known;
        }
        let label: &'static str = Box::leak(template.into());
        templates.insert(template.into(), label);
        label
    }
}

/// Descriptors that are kept for everything but clients and workers: listeners, runtimes, the mesh, logs.
const DESCRIPTORS_RESERVED: usize = 128;

/// Client connections at least, however few descriptors there are.
const CONNECTIONS_MIN: usize = 16;

/// Client connections that so many descriptors are enough for, each with one to a worker.
fn connections_max(descriptors: usize) -> usize {
    (descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 2).max(CONNECTIONS_MIN)
}

/// Descriptors that this process may have; any number where the kernel does not tell.
fn descriptors() -> usize {
    let limit = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// What the plane sees of a core. Each core writes its own alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Gauge {
    /// Open client connections.
    pub(crate) connections: AtomicUsize,
    /// Requests in flight, response bodies included.
    pub(crate) in_flight: AtomicUsize,
    /// Milliseconds from the start of the plane to the last accepted connection, plus one; 0 before the first.
    pub(crate) accepted_ms: AtomicU64,
}

/// One core.
pub(crate) struct Core {
    shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pool: Pool,
    pub(crate) handshakes: Handshakes,
    pub(crate) rng: RefCell<Pcg64Mcg>,
    budget: RefCell<RetryBudget>,
    phase: Cell<Phase>,
    epoch: Instant,
    gauge: Arc<Gauge>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    next_connection: Cell<u64>,
    /// The first connection came.
    pub(crate) used: Notify,
}

impl Core {
    pub(crate) fn new(shared: Arc<Shared>, gauge: Arc<Gauge>, epoch: Instant, rng: Pcg64Mcg) -> Self {
        let config = shared.config.clone();
        Self {
            metrics: shared.metrics.clone(),
            shared,
            pool: Pool::new(config.requests.upstream_idle_timeout),
            handshakes: Handshakes::default(),
            rng: RefCell::new(rng),
            budget: RefCell::new(RetryBudget::new(config.retry.budget_percent)),
            phase: Cell::new(Phase::Serving),
            epoch,
            gauge,
            connections: RefCell::default(),
            next_connection: Cell::new(0),
            used: Notify::new(),
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.connections.borrow().values().for_each(|connection| connection.wake());
    }

    pub(crate) fn request_began(&self) {
        let in_flight = &self.gauge.in_flight;
        in_flight.store(in_flight.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(crate) fn request_ended(&self) {
        let in_flight = &self.gauge.in_flight;
        in_flight.store(in_flight.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// Counts a request towards the retry budget.
    pub(crate) fn earn_retries(&self, now: Instant) {
        self.budget.borrow_mut().on_request(self.second(now));
    }

    /// The answer to a request whose head was not understood, counted; `replaced` is what the parser would say.
    pub(crate) fn refuse(&self, error: &GatewayError, replaced: &[u8]) -> Bytes {
        let (name, value) = headers::request_id(
            &HeaderMap::new(),
            &self.config().requests.request_id_headers,
            &mut *self.rng.borrow_mut(),
        );
        let path = "unmatched";
        self.metrics.http_request(&Method::from_bytes(b"OTHER").unwrap_or_default(), path);
        self.metrics.http_response(path, error.status(), error.code(), Duration::ZERO);
        refusal::answer(error, replaced, (name.as_str(), &value))
    }

    /// Takes a retry from the budget.
    pub(crate) fn try_retry(&self, now: Instant) -> bool {
        self.budget.borrow_mut().try_retry(self.second(now))
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_secs()
    }

    /// Registers an accepted connection; dropping the guard takes it off. None when there are as many as there may be.
    pub(crate) fn open(self: &Rc<Self>, connection: Rc<Connection>, now: Instant) -> Option<Open> {
        if self.shared.connections.fetch_add(1, Ordering::Relaxed) >= self.shared.connections_max {
            self.shared.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        let mut connections = self.connections.borrow_mut();
        if connections.is_empty() {
            self.used.notify_one();
        }
        connections.insert(id, connection);
        self.gauge.connections.store(connections.len(), Ordering::Relaxed);
        let ms = now.saturating_duration_since(self.epoch).as_millis() as u64;
        self.gauge.accepted_ms.store(ms + 1, Ordering::Relaxed);
        self.metrics.http_connection_opened();
        Some(Open { core: self.clone(), id })
    }

    /// Whether there is something to sweep; [`used`](Self::used) says when that begins.
    pub(crate) fn is_in_use(&self) -> bool {
        !self.connections.borrow().is_empty() || !self.pool.is_empty()
    }

    /// The work of every second in use: clients that are too slow or gone, connections to workers that idle.
    pub(crate) fn sweep(&self, now: Instant) {
        self.connections.borrow().values().for_each(|connection| connection.check(now));
        self.pool.sweep(now);
    }
}

/// A registered connection.
pub(crate) struct Open {
    core: Rc<Core>,
    id: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut connections = self.core.connections.borrow_mut();
        connections.remove(&self.id);
        self.core.gauge.connections.store(connections.len(), Ordering::Relaxed);
        self.core.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.core.metrics.http_connection_closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        for (descriptors, expected) in [
            (0, 16),
            (128, 16),
            (160, 16),
            (162, 17),
            (1024, 448),
            (1 << 20, 524_224),
            (usize::MAX, (usize::MAX - 128) / 2),
        ] {
            assert_eq!(connections_max(descriptors), expected, "{descriptors}");
        }
    }
}
