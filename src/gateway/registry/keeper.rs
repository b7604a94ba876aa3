//! The task behind the registry: owns everything that changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::{
    gateway::{
        activity::{Activity, Lookout},
        health::{Prober, Report, probe::Probe},
        limits::{RateLimits, SCOPED_MAX},
        prefix::HashKey,
        registry::{
            Settings,
            changes::Changes,
            limited::Limited,
            pace::Pace,
            roster::{Entry, Roster, models_of},
            table::{Policies, build},
        },
        view::RoutingView,
        worker::Worker,
    },
    mesh::{
        driver::{
            handle::{MeshHandle, PolicyEntry, View},
            rights::{RightsView, SharedLimits},
        },
        node::{NodeName, NodeStatus},
        stores::{WorkerId, WorkerObservation, WorkerState, WorkerView},
    },
    telemetry::metrics::Metrics,
};

/// How often removed workers are looked at for requests in flight, while there are such workers.
pub const LEAVING_CHECK: Duration = Duration::from_millis(250);

/// How often breakers are looked at for news that concern the other gateways. A hint that is this late costs them some
/// failures and no more.
pub const BREAKER_CHECK: Duration = Duration::from_millis(250);

/// A breaker that is open until a little later than was said is the same opening still: the two clocks that are added
/// up do not tick together.
const SAME_OPENING: Duration = Duration::from_millis(500);

/// How long a gateway that starts waits, once it has the cluster's state, for its first share of the limits. An election takes
/// 3.5 s at most times, and who leads for the first time lends no slot before all has run out that an earlier leader may have
/// lent. Ready sooner it would refuse what no other gateway refuses; a gateway without a quorum waits as long in vain.
pub const RIGHTS_WAIT_MAX: Duration = Duration::from_secs(10);

/// For so long after a worker was registered, while nobody knows its models, it may serve any: a model that no worker
/// names is then "not yet" (503) instead of "no such model" (404). Long enough for a process that answers at all, short
/// enough that a worker that never does hides no misspelled name. Registering the worker again does not prolong it.
pub const UNASKED_MAX: Duration = Duration::from_secs(10);

/// The state of the task; see [`registry`](super).
pub(super) struct Keeper<P> {
    mesh: MeshHandle,
    view: watch::Receiver<Arc<View>>,
    settings: Settings,
    metrics: Arc<Metrics>,
    prober: Prober<P>,
    policies: Policies,
    policies_set: Arc<Vec<PolicyEntry>>,
    /// None before the cluster has one: until then prompts are not looked at.
    hash_key: Option<Arc<HashKey>>,
    /// Workers that came back and have their generation to be raised; bounded by the workers.
    lost_caches: BTreeSet<WorkerId>,
    /// The limits that were last put in force, and what is still to be given to the mesh.
    limited: Option<Limited>,
    limits_due: Option<SharedLimits>,
    rights: watch::Receiver<RightsView>,
    /// When this gateway begins to serve although it was lent nothing; none while it does not wait for that.
    rights_due: Option<Instant>,
    /// The cluster's state is not here yet.
    is_joining: bool,
    /// The workers of the last view, which `slots` and `refused` follow.
    workers_seen: Arc<Vec<Arc<WorkerView>>>,
    /// The generations of the last view, which the slots have.
    generations: BTreeMap<u64, u32>,
    slots: BTreeMap<WorkerId, Slot>,
    leaving: Vec<Leaving>,
    sweep_due: Option<Instant>,
    /// Registered workers that cannot be used here; each is logged once.
    refused: BTreeSet<WorkerId>,
    /// Observations for the mesh; the newest per worker, so bounded by the workers.
    outbox: BTreeMap<WorkerId, WorkerObservation>,
    lookout: Lookout,
    /// A breaker was open at the last look.
    has_open: bool,
    pace: Pace,
    startup_deadline: Option<Instant>,
    outputs: Outputs,
    /// Told at the next rebuild: as many as admin requests are under way.
    waiters: Vec<oneshot::Sender<()>>,
}

/// Where the task shows what it knows, and who waits for it.
pub(super) struct Outputs {
    pub(super) routing: Arc<ArcSwap<RoutingView>>,
    pub(super) limits: Arc<RateLimits>,
    pub(super) roster: watch::Sender<Arc<Roster>>,
    pub(super) waiting: mpsc::Receiver<oneshot::Sender<()>>,
    pub(super) activity: Arc<Activity>,
}

/// A registered worker.
struct Slot {
    view: Arc<WorkerView>,
    worker: Arc<Worker>,
    /// As the prober sees it; draining is the operator's word and lies over it.
    state: WorkerState,
    own_models: Vec<String>,
    /// Until when its breaker is open here, as was told to the others; 0 when it is not.
    failing_until_ms: u64,
    models: Arc<[String]>,
    /// When this gateway first saw it registered.
    since: Instant,
    /// How often it has lost its cache, as the cluster knows.
    generation: u32,
    /// The same when it was last seen failing.
    generation_lost: Option<u32>,
}

/// A removed worker that still has requests in flight.
struct Leaving {
    entry: Entry,
    until: Instant,
}

impl<P: Probe> Keeper<P> {
    pub(super) fn new(
        prober: Prober<P>,
        mesh: MeshHandle,
        settings: Settings,
        metrics: Arc<Metrics>,
        outputs: Outputs,
    ) -> Self {
        let now = Instant::now();
        Self {
            view: mesh.watch(),
            policies: Policies::new(settings.policy, &[]),
            hash_key: None,
            lost_caches: BTreeSet::new(),
            policies_set: Arc::default(),
            limited: None,
            limits_due: None,
            rights: mesh.watch_rights(),
            rights_due: None,
            is_joining: true,
            startup_deadline: now.checked_add(settings.startup_timeout),
            mesh,
            settings,
            metrics,
            prober,
            workers_seen: Arc::default(),
            generations: BTreeMap::new(),
            slots: BTreeMap::new(),
            leaving: Vec::new(),
            sweep_due: None,
            refused: BTreeSet::new(),
            outbox: BTreeMap::new(),
            lookout: Lookout::new(outputs.activity.watch(), BREAKER_CHECK),
            has_open: false,
            pace: Pace::new(now),
            outputs,
            waiters: Vec::new(),
        }
    }

    /// Runs until the mesh driver has stopped.
    pub(super) async fn run(mut self) {
        self.on_view();
        self.rebuild(Instant::now());
        loop {
            let next_lost = self.lost_caches.first().cloned();
            let next_out = self.outbox.first_key_value().map(|(id, seen)| (id.clone(), seen.clone()));
            tokio::select! {
                changed = self.view.changed() => match changed {
                    Ok(()) => self.on_view(),
                    Err(_) => return,
                },
                report = self.prober.next() => self.on_report(report),
                Some(waiter) = self.outputs.waiting.recv() => self.on_waiter(waiter),
                sent = announce(&self.mesh, next_out) => drop(self.outbox.remove(&sent)),
                () = share(&self.mesh, self.limits_due.clone()) => self.limits_due = None,
                () = self.lookout.next(self.has_open) => self.check_breakers(),
                () = changed(&mut self.settings.held) => self.mark_stale(),
                told = tell_lost(&self.mesh, next_lost) => drop(self.lost_caches.remove(&told)),
                () = changed(&mut self.rights), if self.rights_due.is_some() => self.on_view(),
                _ = at(self.rights_due) => self.on_view(),
                now = at(self.pace.due()) => self.rebuild(now),
                now = at(self.sweep_due) => self.sweep(now),
                _ = at(self.startup_deadline) => self.on_startup_deadline(),
            }
        }
    }

    fn on_view(&mut self) {
        let view = self.view.borrow_and_update().clone();
        if view.policies != self.policies_set {
            self.policies_set = view.policies.clone();
            self.set_policies();
        }
        self.on_routing_facts(&view);
        self.limit_rates(&view);
        let gateways = view.nodes.iter().filter(|node| node.status == NodeStatus::Alive).count();
        let is_joining = !view.synced || (self.is_joining && self.awaits_rights(gateways));
        if self.is_joining != is_joining {
            self.is_joining = is_joining;
            self.mark_stale();
        }
        let seen = std::mem::replace(&mut self.workers_seen, view.workers.clone());
        let changes = Changes::between(&seen, &view.workers);
        for id in changes.gone {
            self.remove(id);
            self.refused.remove(id);
        }
        for worker in changes.new {
            self.upsert(worker, &view);
        }
    }

    /// Takes over the key of prefix names and the workers' generations.
    fn on_routing_facts(&mut self, view: &View) {
        let facts = &view.routing;
        let known = self.hash_key.as_ref().map(|key| key.as_bytes());
        if facts.hash_key.as_deref() != known {
            self.hash_key = facts.hash_key.as_deref().and_then(HashKey::of_slice).map(Arc::new);
            self.set_policies();
        }
        if facts.generations == self.generations {
            return;
        }
        self.generations.clone_from(&facts.generations);
        for (id, slot) in &mut self.slots {
            slot.generation = facts.generations.get(&id.number()).copied().unwrap_or(0);
            slot.worker.set_generation(slot.generation as u8);
        }
    }

    fn set_policies(&mut self) {
        let policies = Policies::new(self.settings.policy, &self.policies_set);
        self.policies = match &self.hash_key {
            Some(key) => policies.with_affinity(key.clone(), self.settings.cache),
            None => policies,
        };
        self.mark_stale();
    }

    /// Whether a gateway that starts still has to be lent its first share of a limit: ready before that, it would refuse.
    fn awaits_rights(&mut self, gateways: usize) -> bool {
        let has = self.limited.as_ref().map_or([false; 2], |limited| limited.kinds(gateways));
        let holds = self.rights.borrow_and_update().is_lent(has);
        let now = Instant::now();
        let awaits = !holds && now < *self.rights_due.get_or_insert(now + RIGHTS_WAIT_MAX);
        if !awaits {
            self.rights_due = None;
        }
        awaits
    }

    /// Puts the limits of the cluster in force, and that of the flag where the cluster has none of all requests; with
    /// the mesh the leader lends shares of them.
    fn limit_rates(&mut self, view: &View) {
        let wanted = Limited::of(view, self.settings.limits);
        if self.limited.as_ref() == Some(&wanted) {
            return;
        }
        if wanted.scoped.len() > SCOPED_MAX {
            tracing::warn!(
                limits = wanted.scoped.len(),
                limits_max = SCOPED_MAX,
                "more limits for keys and models than there may be: the last by name have no effect, remove some"
            );
        }
        let now = std::time::Instant::now();
        let limits = &self.outputs.limits;
        limits.set(wanted.all, &wanted.scoped, wanted.is_shared, now);
        if wanted.is_shared {
            self.limits_due = Some(SharedLimits { limits: limits.to_share(), is_whole: wanted.is_whole });
        }
        self.limited = Some(wanted);
    }

    /// Takes in the view as it is now, and tells the waiter when the table shows it.
    ///
    /// Looking through a view takes time linear in the workers, so it is done once for all writes that it shows.
    fn on_waiter(&mut self, waiter: oneshot::Sender<()>) {
        if self.view.has_changed().unwrap_or(true) {
            self.on_view();
        }
        self.waiters.push(waiter);
        match self.pace.due() {
            Some(_) => self.mark_stale(),
            None => self.tell_waiters(),
        }
    }

    fn tell_waiters(&mut self) {
        for waiter in self.waiters.drain(..) {
            // One that has given up, as when its client left, need not be told.
            let _ = waiter.send(());
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
            slot.take_hints(&cluster.node);
            slot.worker.set_far(is_far(&self.settings.zone, &view.spec.zone));
            return;
        }
        let worker = match Worker::of_spec(&view.spec, self.settings.api_key.as_deref()) {
            Ok(worker) => self.known(
                worker
                    .with_breaker(&self.settings.breaker)
                    .with_material(&self.settings.tls)
                    .with_activity(&self.outputs.activity),
            ),
            Err(error) => {
                if self.refused.insert(view.id.clone()) {
                    tracing::warn!(worker = %view.id, %error, "worker cannot be used");
                }
                self.remove(&view.id);
                return;
            }
        };
        worker.set_far(is_far(&self.settings.zone, &view.spec.zone));
        let previous = self.slots.remove(&view.id);
        let since = previous.as_ref().map_or_else(Instant::now, |slot| slot.since);
        let own_models = previous.map(|slot| slot.own_models).unwrap_or_default();
        let state = self.prober.track(worker.clone(), view.spec.models.is_empty());
        let models = models_of(view, &own_models);
        // What this node said in an earlier life is not what it sees now.
        let own = WorkerObservation { state, models: own_models.clone(), failing_until_ms: 0 };
        if view.observed.get(&cluster.node).map_or(state == WorkerState::Ready, |said| *said != own) {
            self.outbox.insert(view.id.clone(), own);
        }
        let generation = cluster.routing.generations.get(&view.id.number()).copied().unwrap_or(0);
        worker.set_generation(generation as u8);
        let slot = Slot {
            view: view.clone(),
            worker,
            state,
            own_models,
            failing_until_ms: 0,
            models,
            since,
            generation,
            generation_lost: None,
        };
        slot.take_hints(&cluster.node);
        self.slots.insert(view.id.clone(), slot);
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
            let entry = Entry { state: WorkerState::Draining, ..slot.entry(false) };
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
        if slot.is_back(report.state) {
            self.lost_caches.insert(report.id.clone());
        }
        slot.state = report.state;
        if let Some(models) = report.models {
            slot.own_models = models;
        }
        if is_news {
            slot.models = models_of(&slot.view, &slot.own_models);
        }
        let own = slot.observation();
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

    /// Tells the others which breakers have opened or closed.
    fn check_breakers(&mut self) {
        let (now, wall_ms) = (std::time::Instant::now(), unix_ms());
        self.has_open = false;
        for (id, slot) in &mut self.slots {
            let open_ms = slot.worker.breaker.open_for(now).as_millis() as u64;
            let until_ms = if open_ms == 0 { 0 } else { wall_ms + open_ms };
            let is_same = (until_ms == 0) == (slot.failing_until_ms == 0)
                && until_ms.abs_diff(slot.failing_until_ms) <= SAME_OPENING.as_millis() as u64;
            if !is_same {
                slot.failing_until_ms = until_ms;
                self.outbox.insert(id.clone(), slot.observation());
            }
            self.has_open |= until_ms != 0;
        }
        if self.outputs.limits.bounds.forget_idle() && self.limited.as_ref().is_some_and(|limited| limited.is_shared) {
            let is_whole = self.limited.as_ref().is_some_and(|limited| limited.is_whole);
            self.limits_due = Some(SharedLimits { limits: self.outputs.limits.to_share(), is_whole });
        }
        let is_used = || self.slots.values().any(|slot| slot.worker.in_flight() > 0);
        if self.lookout.note(is_used()) {
            self.outputs.activity.rest(is_used);
        }
    }

    fn mark_stale(&mut self) {
        self.pace.mark_stale(Instant::now(), !self.waiters.is_empty());
    }

    fn rebuild(&mut self, now: Instant) {
        let held = self.settings.held.borrow_and_update().clone();
        let entries: Vec<_> = self.slots.iter().map(|(id, slot)| slot.entry(held.contains(id))).collect();
        let unasked_until = self.slots.values().filter_map(Slot::unasked_until).max();
        let table = if self.is_joining {
            RoutingView { is_joining: true, workers_total: entries.len(), ..RoutingView::default() }
        } else {
            build(&entries, &self.policies, unasked_until, &self.outputs.routing.load())
        };
        if table.workers_ready > 0 {
            self.startup_deadline = None;
        }
        self.outputs.routing.store(Arc::new(table));
        let leaving = self.leaving.iter().map(|leaving| leaving.entry.clone()).collect();
        self.outputs.roster.send_replace(Arc::new(Roster { entries, leaving }));
        self.pace.rebuilt(now, now.elapsed());
        self.tell_waiters();
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
    /// Whether the worker, now in this state, comes back from a failure, and nobody has said yet that its cache is lost.
    fn is_back(&mut self, state: WorkerState) -> bool {
        if state == WorkerState::NotReady {
            self.generation_lost.get_or_insert(self.generation);
            return false;
        }
        self.generation_lost.take().is_some_and(|before| before == self.generation)
    }

    /// Until when the worker may serve models that nobody knows of.
    fn unasked_until(&self) -> Option<std::time::Instant> {
        let is_unasked = self.state == WorkerState::Pending && self.models.is_empty() && !self.view.spec.draining;
        is_unasked.then(|| (self.since + UNASKED_MAX).into_std())
    }

    /// What this gateway sees of it.
    fn observation(&self) -> WorkerObservation {
        let Self { state, own_models, failing_until_ms, .. } = self;
        WorkerObservation { state: *state, models: own_models.clone(), failing_until_ms: *failing_until_ms }
    }

    /// Takes in what the other gateways say of it.
    fn take_hints(&self, own: &NodeName) {
        let others = self.view.observed.iter().filter(|(node, _)| *node != own);
        let until_ms = others.map(|(_, seen)| seen.failing_until_ms).max().unwrap_or(0);
        self.worker.hint.set(until_ms, std::time::Instant::now(), unix_ms());
    }

    fn entry(&self, is_held: bool) -> Entry {
        let state = match self.state {
            _ if self.view.spec.draining => WorkerState::Draining,
            WorkerState::Ready if is_held => WorkerState::NotReady,
            state => state,
        };
        Entry { view: self.view.clone(), worker: self.worker.clone(), state, models: self.models.clone() }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Sends an observation to the mesh; waits when there is none, or when the mesh has stopped. Cancel safe.
async fn announce(mesh: &MeshHandle, next: Option<(WorkerId, WorkerObservation)>) -> WorkerId {
    let Some((id, seen)) = next else { return pending().await };
    match mesh.observe(id.clone(), seen).await {
        Ok(()) => id,
        Err(_) => pending().await,
    }
}

/// Has the cluster told that a worker lost its cache; waits when there is none, or when the mesh has stopped. Cancel safe.
async fn tell_lost(mesh: &MeshHandle, next: Option<WorkerId>) -> WorkerId {
    let Some(id) = next else { return pending().await };
    match mesh.lose_cache(id.clone()).await {
        Ok(()) => id,
        Err(_) => pending().await,
    }
}

/// Tells the mesh which limits are shared; waits when that is known, or when the mesh has stopped. Cancel safe.
async fn share(mesh: &MeshHandle, limits: Option<SharedLimits>) {
    let Some(limits) = limits else { return pending().await };
    if mesh.share_limits(limits).await.is_err() {
        pending::<()>().await;
    }
}

/// Waits for news, for ever when there will be none. Cancel safe.
async fn changed<T>(news: &mut watch::Receiver<T>) {
    if news.changed().await.is_err() {
        pending::<()>().await;
    }
}

/// Whether two known zones differ.
fn is_far(own: &str, worker: &str) -> bool {
    !own.is_empty() && !worker.is_empty() && own != worker
}

/// Waits for the instant, for ever without one; answers the time.
async fn at(due: Option<Instant>) -> Instant {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
    Instant::now()
}
