//! The worker registry: joins what the mesh knows with what this gateway's probes see, and publishes the routing table.
//!
//! One task (the [`keeper`]) takes in three kinds of news: the mesh's view changed, a probe has ended, a removed
//! worker's last request has ended. It keeps one [`Worker`](crate::gateway::worker::Worker) per id for as long as its
//! address and key stay the same, so counters go on across changes. News mark the table stale; it is rebuilt whole, in
//! time linear in the workers, at most every [`pace::REBUILD_SPACING`], and with many workers less often, so a burst costs
//! one rebuild.
//!
//! Invariant: readiness is this gateway's own observation. What others see is shown, and supplies model names
//! until this gateway has asked the worker itself, but never makes a worker ready here.
//!
//! Invariant: a removal is complete at once. The entry leaves the mesh and the table first; requests that were in
//! flight hold the worker and end by themselves. So nothing is left half removed when a gateway dies in between.
//! While such requests run, for at most `drain_settle`, the worker is still listed here, as draining.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use smg_certs::ClientMaterial;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::{self, Cache, Config, Health, PolicyKind},
    gateway::{
        activity::Activity,
        health::{
            Prober, Suspicions,
            probe::{HttpProbe, Probe},
        },
        limits::RateLimits,
        rate::Terms,
        registry::{
            keeper::{Keeper, Outputs},
            roster::{Entry, Roster},
        },
        tls::Tls,
        view::{Route, RoutingView},
    },
    mesh::{
        driver::handle::MeshHandle,
        stores::{WorkerId, WorkerState},
    },
    telemetry::metrics::{CacheSample, Metrics, WorkerSample},
};

mod changes;

mod limited;

pub mod keeper;

pub mod pace;

pub mod roster;

pub mod table;

/// What the registry needs of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Policy of models that have none of their own.
    pub policy: PolicyKind,
    /// Cache-aware routing.
    pub cache: Cache,
    /// Zone of this gateway; empty when unknown.
    pub zone: String,
    /// Key for workers that have none of their own. Never logged.
    pub api_key: Option<String>,
    /// Circuit breakers.
    pub breaker: config::Breaker,
    /// Health checks.
    pub health: Health,
    /// TLS towards workers that want it.
    pub tls: Arc<ClientMaterial>,
    /// How long a removed worker with requests in flight stays listed.
    pub drain_settle: Duration,
    /// Limits as long as the cluster says nothing else.
    pub limits: Terms,
    /// After this long without a ready worker an error is logged, once.
    pub startup_timeout: Duration,
    /// Workers that get no requests from here, as whoever watches over them says.
    pub held: watch::Receiver<Arc<BTreeSet<WorkerId>>>,
}

impl Settings {
    /// From the whole configuration, the certificates in use and the workers that are held.
    #[must_use]
    pub fn of(config: &Config, tls: &Tls, held: watch::Receiver<Arc<BTreeSet<WorkerId>>>) -> Self {
        Self {
            tls: tls.workers.clone(),
            policy: config.policy,
            cache: config.cache,
            zone: config.mesh.zone.clone(),
            api_key: config.workers.api_key.clone(),
            breaker: config.breaker.clone(),
            health: config.health.clone(),
            drain_settle: config.workers.drain_settle,
            limits: Terms { rate: config.limits.rate, concurrent: config.limits.cluster_concurrent_max },
            startup_timeout: config.workers.startup_timeout,
            held,
        }
    }
}

/// What the rest of the program holds of the registry. Cheap to clone; reading never waits.
#[derive(Clone, Debug)]
pub struct Registry {
    routing: Arc<ArcSwap<RoutingView>>,
    roster: watch::Receiver<Arc<Roster>>,
    suspicions: Suspicions,
    limits: Arc<RateLimits>,
    waiters: mpsc::Sender<oneshot::Sender<()>>,
    activity: Arc<Activity>,
}

/// Calls of [`Registry::settled`] that wait for the task to take note of them; more wait for room.
const WAITERS_MAX: usize = 64;

impl Registry {
    /// The registry, and the task behind it for the caller to spawn on the control runtime. The task ends when the mesh
    /// driver has stopped. Also gives `metrics` its source of worker samples.
    pub fn start(
        mesh: MeshHandle,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let probe = HttpProbe { endpoint: settings.health.endpoint.as_str().into(), timeout: settings.health.timeout };
        Self::start_with(probe, mesh, settings, metrics)
    }

    /// Like [`start`](Self::start) with another way to look at workers.
    pub fn start_with<P: Probe>(
        probe: P,
        mesh: MeshHandle,
        settings: Settings,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let prober = Prober::new(probe, settings.health.clone());
        let limits = Arc::<RateLimits>::default();
        // With the mesh nothing is admitted before the leader has lent something.
        limits.set(settings.limits, &[], mesh.view().mesh_enabled, Instant::now());
        let (roster_sender, roster) = watch::channel(Arc::default());
        let (waiters, waiting) = mpsc::channel(WAITERS_MAX);
        let (suspicions, activity) = (prober.suspicions(), Arc::<Activity>::default());
        let registry =
            Self { routing: Arc::default(), roster, suspicions, limits, waiters, activity: activity.clone() };
        let source = registry.clone();
        metrics.watch_workers(move || source.samples());
        let routing = registry.routing.clone();
        metrics.watch_caches(move || cache_samples(&routing.load()));
        let (routing, limits) = (registry.routing.clone(), registry.limits.clone());
        let outputs = Outputs { routing, limits, roster: roster_sender, waiting, activity };
        let keeper = Keeper::new(prober, mesh, settings, metrics, outputs);
        (registry, keeper.run())
    }

    /// The routing table for the request path.
    #[must_use]
    pub fn routing(&self) -> Arc<ArcSwap<RoutingView>> {
        self.routing.clone()
    }

    /// Every worker with its state.
    #[must_use]
    pub fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone()
    }

    /// All limits.
    #[must_use]
    pub fn limits(&self) -> Arc<RateLimits> {
        self.limits.clone()
    }

    /// Follows whether requests are in flight.
    #[must_use]
    pub fn activity(&self) -> watch::Receiver<bool> {
        self.activity.watch()
    }

    /// Where the request path reports workers that it could not connect to.
    #[must_use]
    pub fn suspicions(&self) -> Suspicions {
        self.suspicions.clone()
    }

    /// Waits until the routing table shows what the mesh's view says now, or more: a write that the mesh has confirmed
    /// decides where the requests go that begin after this. Takes at most [`pace::REBUILD_SPACING`] and one rebuild.
    pub async fn settled(&self) {
        let (waiter, shown) = oneshot::channel();
        // The task ends with the mesh, and the process with it: then nobody will be told.
        if self.waiters.send(waiter).await.is_ok() {
            let _ = shown.await;
        }
    }

    /// Waits until the worker is ready here, at most `wait`; says whether it is.
    pub async fn wait_ready(&self, id: &WorkerId, wait: Duration) -> bool {
        let mut roster = self.roster.clone();
        let ready = roster.wait_for(|roster| roster.is_ready(id));
        matches!(tokio::time::timeout(wait, ready).await, Ok(Ok(_)))
    }

    fn samples(&self) -> Vec<WorkerSample> {
        let now = Instant::now();
        let sample = |entry: &Entry| WorkerSample {
            id: entry.view.id.clone(),
            requests_active: entry.worker.in_flight() as u64,
            ready: entry.state == WorkerState::Ready,
            breaker: entry.worker.breaker.state(now) as u8,
            breaker_transitions: entry.worker.breaker.transitions(),
        };
        self.roster().entries.iter().map(sample).collect()
    }
}

fn cache_samples(view: &RoutingView) -> Vec<CacheSample> {
    let routes = view.models.values().chain([&view.any, &view.wildcard]);
    let sample = |route: &Arc<Route>| {
        let stats = route.index_stats()?;
        Some(CacheSample { model: route.label.clone(), bytes: stats.bytes as u64, evictions: stats.evictions })
    };
    routes.filter_map(sample).collect()
}

#[cfg(test)]
pub(crate) mod tests;
