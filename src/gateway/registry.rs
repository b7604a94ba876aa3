//! The worker registry: joins what the mesh knows with what this gateway's probes see, and publishes the routing table.
//!
//! One task ([`Keeper::run`]) takes in three kinds of news: the mesh's view changed, a probe has ended, a removed
//! worker's last request has ended. It keeps one [`Worker`] per id for as long as its address and key stay the same, so
//! counters go on across changes. News mark the table stale; it is rebuilt whole, in time linear in the workers, at
//! most every [`REBUILD_SPACING`], so a burst costs one rebuild.
//!
//! Invariant: readiness is this gateway's own observation. What others see is shown, and supplies model names
//! until this gateway has asked the worker itself, but never makes a worker ready here.
//!
//! Invariant: a removal is complete at once. The entry leaves the mesh and the table first; requests that were in
//! flight hold the [`Worker`] and end by themselves. So nothing is left half removed when a gateway dies in between.
//! While such requests run, for at most `drain_settle`, the worker is still listed here, as draining.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    config::{Config, Health, PolicyKind},
    gateway::{
        health::{
            Prober, Report, Suspicions,
            probe::{HttpProbe, Probe},
        },
        registry::{
            roster::{Entry, Roster, models_of},
            table::{Policies, build},
        },
        view::RoutingView,
        worker::Worker,
    },
    mesh::{
        driver::handle::{MeshHandle, View},
        stores::{PolicySpec, WorkerId, WorkerObservation, WorkerState, WorkerView},
    },
    telemetry::metrics::{Metrics, WorkerSample},
};

pub mod roster;

pub mod table;

/// Between two rebuilds of the routing table at least.
pub const REBUILD_SPACING: Duration = Duration::from_millis(10);

/// How often removed workers are looked at for requests in flight, while there are such workers.
pub const LEAVING_CHECK: Duration = Duration::from_millis(250);

/// What the registry needs of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Policy of models that have none of their own.
    pub policy: PolicyKind,
    /// Key for workers that have none of their own. Never logged.
    pub api_key: Option<String>,
    /// Health checks.
    pub health: Health,
    /// How long a removed worker with requests in flight stays listed.
    pub drain_settle: Duration,
    /// After this long without a ready worker an error is logged, once.
    pub startup_timeout: Duration,
}

impl Settings {
    /// From the whole configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            policy: config.policy,
            api_key: config.workers.api_key.clone(),
            health: config.health.clone(),
            drain_settle: config.workers.drain_settle,
            startup_timeout: config.workers.startup_timeout,
        }
    }
}

/// What the rest of the program holds of the registry. Cheap to clone; reading never waits.
#[derive(Clone, Debug)]
pub struct Registry {
    routing: Arc<ArcSwap<RoutingView>>,
    roster: watch::Receiver<Arc<Roster>>,
    suspicions: Suspicions,
}

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
        let (roster_sender, roster) = watch::channel(Arc::default());
        let registry = Self { routing: Arc::default(), roster, suspicions: prober.suspicions() };
        let source = registry.clone();
        metrics.watch_workers(move || source.samples());
        let now = Instant::now();
        let keeper = Keeper {
            view: mesh.watch(),
            policies: Policies::new(settings.policy, &[]),
            policies_set: Vec::new(),
            startup_deadline: now.checked_add(settings.startup_timeout),
            settings,
            metrics,
            prober,
            slots: BTreeMap::new(),
            leaving: Vec::new(),
            sweep_due: None,
            refused: BTreeSet::new(),
            outbox: BTreeMap::new(),
            rebuild_due: None,
            rebuilt: now,
            routing: registry.routing.clone(),
            roster: roster_sender,
            mesh,
        };
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

    /// Where the request path reports workers that it could not connect to.
    #[must_use]
    pub fn suspicions(&self) -> Suspicions {
        self.suspicions.clone()
    }

    /// Waits until the worker is ready here, at most `wait`; says whether it is.
    pub async fn wait_ready(&self, id: &WorkerId, wait: Duration) -> bool {
        let mut roster = self.roster.clone();
        let ready = roster.wait_for(|roster| roster.is_ready(id));
        matches!(tokio::time::timeout(wait, ready).await, Ok(Ok(_)))
    }

    fn samples(&self) -> Vec<WorkerSample> {
        let sample = |entry: &Entry| WorkerSample {
            id: entry.view.id.clone(),
            requests_active: entry.worker.in_flight() as u64,
            ready: entry.state == WorkerState::Ready,
        };
        self.roster().entries.iter().map(sample).collect()
    }
}

/// The task behind the registry: owns everything that changes.
struct Keeper<P> {
    mesh: MeshHandle,
    view: watch::Receiver<Arc<View>>,
    settings: Settings,
    metrics: Arc<Metrics>,
    prober: Prober<P>,
    policies: Policies,
    policies_set: Vec<(String, PolicySpec)>,
    slots: BTreeMap<WorkerId, Slot>,
    leaving: Vec<Leaving>,
    sweep_due: Option<Instant>,
    /// Registered workers that cannot be used here; each is logged once.
    refused: BTreeSet<WorkerId>,
    /// Observations for the mesh; the newest per worker, so bounded by the workers.
    outbox: BTreeMap<WorkerId, WorkerObservation>,
    rebuild_due: Option<Instant>,
    rebuilt: Instant,
    startup_deadline: Option<Instant>,
    routing: Arc<ArcSwap<RoutingView>>,
    roster: watch::Sender<Arc<Roster>>,
}

/// A registered worker.
struct Slot {
    view: Arc<WorkerView>,
    worker: Arc<Worker>,
    /// As the prober sees it; draining is the operator's word and lies over it.
    state: WorkerState,
    own_models: Vec<String>,
    models: Arc<[String]>,
}

/// A removed worker that still has requests in flight.
struct Leaving {
    entry: Entry,
    until: Instant,
}

impl<P: Probe> Keeper<P> {
    async fn run(mut self) {
        self.on_view();
        self.rebuild(Instant::now());
        loop {
            let next_out = self.outbox.first_key_value().map(|(id, seen)| (id.clone(), seen.clone()));
            tokio::select! {
                changed = self.view.changed() => match changed {
                    Ok(()) => self.on_view(),
                    Err(_) => return,
                },
                report = self.prober.next() => self.on_report(report),
                sent = announce(&self.mesh, next_out) => drop(self.outbox.remove(&sent)),
                now = at(self.rebuild_due) => self.rebuild(now),
                now = at(self.sweep_due) => self.sweep(now),
                _ = at(self.startup_deadline) => self.on_startup_deadline(),
            }
        }
    }

    fn on_view(&mut self) {
        let view = self.view.borrow_and_update().clone();
        if view.policies != self.policies_set {
            self.policies = Policies::new(self.settings.policy, &view.policies);
            self.policies_set = view.policies.clone();
            self.mark_stale();
        }
        let gone: Vec<_> = {
            let is_there = |id: &WorkerId| view.workers.binary_search_by(|worker| worker.id.cmp(id)).is_ok();
            self.slots.keys().filter(|id| !is_there(id)).cloned().collect()
        };
        for id in gone {
            self.remove(&id);
        }
        self.refused.retain(|id| view.workers.binary_search_by(|worker| worker.id.cmp(id)).is_ok());
        for worker in &view.workers {
            if self.slots.get(&worker.id).is_none_or(|slot| slot.view != *worker) {
                self.upsert(worker, &view);
            }
        }
    }

    fn upsert(&mut self, view: &Arc<WorkerView>, cluster: &View) {
        self.mark_stale();
        if let Some(slot) = self.slots.get_mut(&view.id)
            && slot.view.spec.api_key == view.spec.api_key
            && slot.view.spec.models.is_empty() == view.spec.models.is_empty()
        {
            slot.models = models_of(view, &slot.own_models);
            slot.view = view.clone();
            return;
        }
        let worker = match Worker::of_spec(&view.spec, self.settings.api_key.as_deref()) {
            Ok(worker) => self.known(worker),
            Err(error) => {
                if self.refused.insert(view.id.clone()) {
                    tracing::warn!(worker = %view.id, %error, "worker cannot be used");
                }
                self.remove(&view.id);
                return;
            }
        };
        let own_models = self.slots.remove(&view.id).map(|slot| slot.own_models).unwrap_or_default();
        let state = self.prober.track(worker.clone(), view.spec.models.is_empty());
        let models = models_of(view, &own_models);
        // What this node said in an earlier life is not what it sees now.
        let own = WorkerObservation { state, models: own_models.clone() };
        if view.observed.get(&cluster.node).map_or(state == WorkerState::Ready, |said| *said != own) {
            self.outbox.insert(view.id.clone(), own);
        }
        self.slots.insert(view.id.clone(), Slot { view: view.clone(), worker, state, own_models, models });
    }

    /// The value that is already in use for this address and key, also by the last requests of a removed entry.
    fn known(&mut self, worker: Worker) -> Arc<Worker> {
        let is_same = |known: &Worker| known.id == worker.id && known.authorization == worker.authorization;
        if let Some(slot) = self.slots.get(&worker.id).filter(|slot| is_same(&slot.worker)) {
            return slot.worker.clone();
        }
        match self.leaving.iter().position(|leaving| is_same(&leaving.entry.worker)) {
            Some(index) => self.leaving.swap_remove(index).entry.worker,
            None => Arc::new(worker),
        }
    }

    fn remove(&mut self, id: &WorkerId) {
        let Some(slot) = self.slots.remove(id) else { return };
        self.prober.untrack(id);
        self.outbox.remove(id);
        self.mark_stale();
        tracing::info!(worker = %id, "worker removed");
        if slot.worker.in_flight() > 0 {
            let until = Instant::now() + self.settings.drain_settle;
            let entry = Entry { state: WorkerState::Draining, ..slot.entry() };
            self.leaving.push(Leaving { entry, until });
            self.sweep_due.get_or_insert_with(|| Instant::now() + LEAVING_CHECK);
        }
    }

    fn on_report(&mut self, report: Report) {
        if self.settings.health.enabled {
            self.metrics.worker_health_check(report.success);
        }
        let Some(slot) = self.slots.get_mut(&report.id) else { return };
        let is_news = report.state != slot.state || report.models.as_ref().is_some_and(|m| *m != slot.own_models);
        if report.state != slot.state {
            let (status, from_status) = (report.state.as_str(), slot.state.as_str());
            tracing::info!(worker = %report.id, status, from_status, "worker status changed");
        }
        slot.state = report.state;
        if let Some(models) = report.models {
            slot.own_models = models;
        }
        if is_news {
            slot.models = models_of(&slot.view, &slot.own_models);
        }
        let own = WorkerObservation { state: slot.state, models: slot.own_models.clone() };
        // Compared with what the mesh holds at every probe, so that whatever makes them differ is put right; an
        // absent entry says as much as "pending".
        let cluster = self.view.borrow().clone();
        let said = cluster.workers.binary_search_by(|worker| worker.id.cmp(&report.id)).ok();
        let said = said.and_then(|index| cluster.workers[index].observed.get(&cluster.node));
        if said.map_or(own.state != WorkerState::Pending, |said| *said != own) {
            self.outbox.insert(report.id, own);
        }
        if is_news {
            self.mark_stale();
        }
    }

    fn mark_stale(&mut self) {
        self.rebuild_due.get_or_insert_with(|| Instant::now().max(self.rebuilt + REBUILD_SPACING));
    }

    fn rebuild(&mut self, now: Instant) {
        let entries: Vec<_> = self.slots.values().map(Slot::entry).collect();
        let table = build(&entries, &self.policies, &self.routing.load());
        if table.workers_ready > 0 {
            self.startup_deadline = None;
        }
        self.routing.store(Arc::new(table));
        let leaving = self.leaving.iter().map(|leaving| leaving.entry.clone()).collect();
        self.roster.send_replace(Arc::new(Roster { entries, leaving }));
        (self.rebuilt, self.rebuild_due) = (now, None);
    }

    fn sweep(&mut self, now: Instant) {
        let before = self.leaving.len();
        self.leaving.retain(|leaving| leaving.until > now && leaving.entry.worker.in_flight() > 0);
        if self.leaving.len() != before {
            self.mark_stale();
        }
        self.sweep_due = (!self.leaving.is_empty()).then(|| now + LEAVING_CHECK);
    }

    fn on_startup_deadline(&mut self) {
        self.startup_deadline = None;
        let workers = self.slots.len();
        tracing::error!(workers, "no worker became ready within --worker-startup-timeout-secs");
    }
}

impl Slot {
    fn entry(&self) -> Entry {
        let state = if self.view.spec.draining { WorkerState::Draining } else { self.state };
        Entry { view: self.view.clone(), worker: self.worker.clone(), state, models: self.models.clone() }
    }
}

/// Sends an observation to the mesh; waits when there is none, or when the mesh has stopped. Cancel safe.
async fn announce(mesh: &MeshHandle, next: Option<(WorkerId, WorkerObservation)>) -> WorkerId {
    let Some((id, seen)) = next else { return pending().await };
    match mesh.observe(id.clone(), seen).await {
        Ok(()) => id,
        Err(_) => pending().await,
    }
}

/// Waits for the instant, for ever without one; answers the time.
async fn at(due: Option<Instant>) -> Instant {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
    Instant::now()
}

#[cfg(test)]
pub(crate) mod tests;
