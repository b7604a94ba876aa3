//! What the CRDTs stand for: workers, policies, sessions and what routing must agree on.
//!
//! | key | written by | type |
//! |---|---|---|
//! | workers `<id>/spec` | any node, for its operator | LWW-Register, removed as in an OR-Set |
//! | workers `<id>/seen/<node>` | that node alone | single-writer register |
//! | policies `<model>` | any node, for its operator | LWW-Register |
//! | sessions, a hash | any node, for its clients | LWW-Register, removed by age and number |
//! | routing `usage/…`, a limit | each node, for itself | G-Counter, removed a minute after the limit |
//! | routing `search/…`, a search | each node, for itself | OR-Set of nodes |
//! | routing `key`, `life/<id>` | any node | register of which the oldest, the highest value counts |
//! | policies [`RATE_LIMIT`] | any node, for its operator | LWW-Register, removed as in an OR-Set where it is for some requests |
//!
//! # Rules that the types alone do not give
//!
//! - *Seeds.* What a flag says is stamped [`Timestamp::ZERO`], so it loses against everything ever said through the API.
//!   Removing a worker that some flag names leaves a marker (an entry with `removed`) instead of nothing, so that it
//!   stays removed when that node starts again. Markers are bounded by the workers that flags ever named.
//! - *Discovered workers* are stamped like seeds, see `stores/discovered.rs`.
//! - *Losing dots.* Several nodes naming one worker make concurrent dots. Each node retracts those of its own dots, of
//!   any epoch, that lose against another live one; the winner is never retracted, so one dot stays. A flag's dot that
//!   loses against an entry of the API or of a search stays beside it, one per node: it says that a removal must leave a
//!   marker, and that the entry does not go with its pod.
//! - *Observations* whose worker is gone are invisible; their writer removes them when it learns of the removal, and
//!   whoever forgets the writer ([`Stores::forget_node`]) removes them for it.
//! - *Bad values* are kept and passed on as opaque bytes (a newer version may know them), hidden from views, counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::mesh::{
    crdt::{
        dot::{Actor, ActorTable, Key},
        lww_register,
        map::{Dots, LiveRef, Map},
    },
    hlc::{Clock, Timestamp},
    node::NodeName,
    wire::state::{self, StoredWorker, ValueError},
};

mod discovered;
mod exchange;
mod policies;
mod routing;
mod searches;
mod seeds;
mod sessions;
mod tokens;
mod usage;
mod workers;

pub use self::{
    discovered::{Finding, PodMark},
    policies::{PolicySpec, RATE_LIMIT, is_limit},
    routing::HASH_KEY_BYTES,
    sessions::{RESPONSES_MAX, SESSION_RENEW_MS, SESSION_TTL_MS, SESSIONS_MAX, Session, SessionKey},
    workers::{WorkerId, WorkerObservation, WorkerOrigin, WorkerPatch, WorkerSpec, WorkerState, WorkerView},
};
use self::{
    seeds::{is_seed, retract_losers},
    workers::WorkerKey,
};

/// Changes waiting to be polled at most; beyond that they become one [`StoreEvent::ManyChanged`].
pub const EVENTS_MAX: usize = 4096;

/// Longest model name that a policy can be set for, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;

/// What the name of a rate limit has beside that of a model, in bytes.
const LIMIT_BYTES_MAX: usize = 64;

/// A part of the state that is replicated on its own.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Namespace {
    /// Policies by model.
    Policies,
    /// Workers and what gateways see of them.
    Workers,
    /// Which worker holds what clients come back for.
    Sessions,
    /// What gateways must agree on to compare prompts.
    Routing,
}

impl Namespace {
    /// Every namespace, in the order in which they are brought up to date.
    pub const ALL: [Self; 4] = [Self::Policies, Self::Workers, Self::Sessions, Self::Routing];

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Policies => "policies",
            Self::Workers => "workers",
            Self::Sessions => "sessions",
            Self::Routing => "routing",
        }
    }

    /// The position in [`ALL`](Self::ALL).
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Something changed, here or at a peer; read the view for the new value.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum StoreEvent {
    /// The worker, or what a gateway sees of it; also when it went.
    WorkerChanged(WorkerId),
    /// The policy of this model.
    PolicyChanged(String),
    /// Who holds the session; also when it went.
    SessionChanged(SessionKey),
    /// The key of prefix names, or a worker's generation.
    RoutingChanged,
    /// More than [`EVENTS_MAX`] entries changed since the last poll: read everything again.
    ManyChanged,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EntryCounts {
    /// Workers in the view.
    pub workers: usize,
    /// Policies in the view.
    pub policies: usize,
    /// Sessions.
    pub sessions: usize,
    /// Entries whose key or payload this version cannot read.
    pub undecodable: usize,
    /// Live keys of all namespaces, markers and observations included.
    pub keys: usize,
    /// Live payload of all namespaces in bytes.
    pub payload_bytes: usize,
}

/// The replicated state of one node.
#[derive(Clone, Debug)]
pub struct Stores {
    node: NodeName,
    clock: Clock,
    maps: [Map; Namespace::COUNT],
    masked: BTreeSet<NodeName>,
    events: VecDeque<StoreEvent>,
    waiting: BTreeSet<StoreEvent>,
    ages: sessions::Ages,
    /// What was taken over of counts of usage, by key and earlier epoch of this node.
    taken: BTreeMap<(Vec<u8>, u64), u64>,
    missing: searches::Missing,
}

impl Stores {
    /// Empty stores of `node`. `boot_epoch_ms` must differ from every earlier start of a node of that name.
    #[must_use]
    pub fn new(node: NodeName, boot_epoch_ms: u64) -> Self {
        let own = Actor { node: node.clone(), boot_epoch_ms };
        Self {
            node,
            clock: Clock::default(),
            maps: Namespace::ALL.map(|_| Map::new(&own)),
            masked: BTreeSet::new(),
            events: VecDeque::new(),
            waiting: BTreeSet::new(),
            ages: sessions::Ages::default(),
            taken: BTreeMap::new(),
            missing: searches::Missing::default(),
        }
    }

    /// The same state under another name, for a node that had to give its first one up: what this node wrote is written
    /// anew by the new name, but for flags' workers, which the caller seeds again, and for what it saw of workers. What
    /// others wrote comes from them again.
    #[must_use]
    pub fn renamed(&self, wall_ms: u64, node: NodeName, boot_epoch_ms: u64) -> Self {
        let mut renamed = Self::new(node, boot_epoch_ms);
        for namespace in Namespace::ALL {
            let map = self.map(namespace);
            let own = |live: &LiveRef<'_>| live.dot.actor == map.own() && live.stamp != Timestamp::ZERO;
            for (key, live) in map.range_from(&[]) {
                let is_seen =
                    namespace == Namespace::Workers && !matches!(WorkerKey::parse(key), Some(WorkerKey::Spec(_)));
                if let Some(live) = lww_register::newest(map, live).filter(|live| own(live) && !is_seen) {
                    renamed.write(namespace, wall_ms, key, live.payload);
                    if namespace == Namespace::Sessions {
                        renamed.on_session_key(key);
                    }
                }
            }
        }
        renamed
    }

    /// One namespace.
    #[must_use]
    pub fn map(&self, namespace: Namespace) -> &Map {
        &self.maps[namespace.index()]
    }

    /// The next change; equal ones that were not polled yet come once. Bounded by [`EVENTS_MAX`].
    pub fn poll_event(&mut self) -> Option<StoreEvent> {
        let event = self.events.pop_front()?;
        self.waiting.remove(&event);
        Some(event)
    }

    /// Counts what there is; reads every entry.
    #[must_use]
    pub fn entry_counts(&self) -> EntryCounts {
        let (workers, bad_workers) = self.read_workers();
        let (policies, bad_policies) = self.read_policies();
        EntryCounts {
            workers: workers.len(),
            policies: policies.len(),
            sessions: self.map(Namespace::Sessions).len(),
            undecodable: bad_workers + bad_policies,
            keys: self.maps.iter().map(Map::len).sum(),
            payload_bytes: self.maps.iter().map(Map::payload_bytes).sum(),
        }
    }

    // --- workers ---

    /// Registers or replaces a worker. A spec beyond the bounds of `state.proto` is not stored.
    ///
    /// The origin of a worker that a flag or a search names stays.
    pub fn put_worker(&mut self, wall_ms: u64, spec: WorkerSpec) -> WorkerId {
        let id = WorkerId::of_url(&spec.url);
        self.write_worker(wall_ms, &id, spec, false);
        id
    }

    /// Removes a worker and what was seen of it; `false` when there is none.
    ///
    /// One that some flag or search names leaves a marker; any other leaves nothing.
    pub fn remove_worker(&mut self, wall_ms: u64, id: &WorkerId) -> bool {
        let Some(known) = self.stored_worker(id).filter(|known| !known.removed) else { return false };
        if self.is_lasting(id) {
            let spec = WorkerSpec { api_key: None, models: Vec::new(), draining: false, ..known.spec };
            self.write_worker(wall_ms, id, spec, true);
        } else {
            self.maps[Namespace::Workers.index()].remove(&WorkerKey::spec(id));
        }
        self.remove_seen(id);
        true
    }

    /// Changes a worker's entry as it is now; `false` when there is none. Nothing is written when nothing changes, or
    /// when the outcome is beyond the bounds of `state.proto`.
    ///
    /// Of two nodes that change one entry at the same time the later one wins whole, as with every write.
    pub fn patch_worker(&mut self, wall_ms: u64, id: &WorkerId, patch: &WorkerPatch) -> bool {
        let Some(known) = self.stored_worker(id).filter(|known| !known.removed) else { return false };
        let mut spec = known.spec.clone();
        patch.apply(&mut spec);
        if spec != known.spec {
            self.write_worker(wall_ms, id, spec, false);
        }
        true
    }

    /// Says what this node sees of a worker. Nothing is written when that is known, or when there is no such worker.
    pub fn observe_worker(&mut self, wall_ms: u64, id: &WorkerId, seen: &WorkerObservation) {
        let Ok(payload) = state::encode_observation(seen) else { return };
        let key = WorkerKey::seen(id, &self.node);
        let map = self.map(Namespace::Workers);
        let is_known = single_writer_winner(map, &self.node, map.get(&key))
            .is_some_and(|live| live.dot.actor == map.own() && *live.payload == *payload);
        if is_known || self.stored_worker(id).is_none_or(|known| known.removed) {
            return;
        }
        self.write(Namespace::Workers, wall_ms, &key, &payload);
        self.push_event(StoreEvent::WorkerChanged(id.clone()));
    }

    /// Hides what a dead node saw, and removes what it left of workers that are gone. For a node that was DOWN for 60 s:
    /// nobody else may write its entries, and it writes them again when it comes back.
    ///
    /// Bounded by the names that the caller forgets, and neither remembers nor reaps.
    pub fn forget_node(&mut self, name: &NodeName) {
        if !self.masked.insert(name.clone()) {
            return;
        }
        let left: Vec<(Key, WorkerId)> = self.seen_by(name);
        for (key, id) in left {
            if self.stored_worker(&id).is_none_or(|known| known.removed) {
                self.maps[Namespace::Workers.index()].remove(&key);
            }
            self.push_event(StoreEvent::WorkerChanged(id));
        }
    }

    /// Removes what a node saw, for one that is no member any more: else every name that ever was would leave an entry for
    /// each worker. Should it come back, it says again what it sees once it misses that.
    pub fn reap_node(&mut self, name: &NodeName) {
        self.masked.remove(name);
        self.reap_usage(name);
        self.reap_searches(name);
        for (key, id) in self.seen_by(name) {
            self.maps[Namespace::Workers.index()].remove(&key);
            self.push_event(StoreEvent::WorkerChanged(id));
        }
    }

    /// Shows again what a node sees.
    pub fn remember_node(&mut self, name: &NodeName) {
        if self.masked.remove(name) {
            for (_, id) in self.seen_by(name) {
                self.push_event(StoreEvent::WorkerChanged(id));
            }
        }
    }

    /// Every worker, by id.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerView> {
        self.read_workers().0
    }

    /// One worker.
    #[must_use]
    pub fn worker(&self, id: &WorkerId) -> Option<WorkerView> {
        let stored = self.stored_worker(id).filter(|known| !known.removed)?;
        let mut observed = BTreeMap::new();
        let prefix = WorkerKey::all_seen(id);
        for (key, live) in self.map(Namespace::Workers).with_prefix(&prefix) {
            if let Some(WorkerKey::Seen(_, node)) = WorkerKey::parse(key)
                && let Some(Ok(seen)) = self.observation(&node, live)
            {
                observed.insert(node, seen);
            }
        }
        Some(WorkerView { id: id.clone(), spec: stored.spec, observed })
    }

    // --- policies ---

    /// Every policy that was set, by model.
    #[must_use]
    pub fn policies(&self) -> Vec<(String, PolicySpec)> {
        self.read_policies().0
    }

    /// The policy of one model, when it was set.
    #[must_use]
    pub fn policy(&self, model: &str) -> Option<PolicySpec> {
        if is_limit(model) {
            return None;
        }
        let newest = lww_register::read(self.map(Namespace::Policies), model.as_bytes())?;
        state::decode_policy(newest.payload).ok()
    }

    /// The rate limit that was set, as an operator said it.
    #[must_use]
    pub fn rate_limit(&self) -> Option<PolicySpec> {
        let map = self.map(Namespace::Policies);
        let newest = lww_register::read(map, RATE_LIMIT.as_bytes())?;
        state::decode_policy(newest.payload).ok()
    }

    /// The rate limits that were set for some requests, by name.
    #[must_use]
    pub fn rate_limits(&self) -> Vec<(String, PolicySpec)> {
        let map = self.map(Namespace::Policies);
        let prefix = format!("{RATE_LIMIT}\0");
        let limits = map.with_prefix(prefix.as_bytes()).filter_map(|(name, live)| {
            let newest = lww_register::newest(map, live)?;
            Some((std::str::from_utf8(name).ok()?.to_owned(), state::decode_policy(newest.payload).ok()?))
        });
        limits.collect()
    }

    /// Removes a rate limit that was set for some requests; whether there was one.
    pub fn remove_rate_limit(&mut self, name: &str) -> bool {
        let is_there = name != RATE_LIMIT && is_limit(name);
        let is_removed = is_there && self.maps[Namespace::Policies.index()].remove(name.as_bytes());
        if is_removed {
            self.push_event(StoreEvent::PolicyChanged(name.into()));
        }
        is_removed
    }

    /// Sets the policy of a model, or under the name of a rate limit ([`is_limit`]) that limit.
    ///
    /// # Errors
    /// When the model name has control characters, or it or the policy is longer than it may be; then nothing is written.
    pub fn put_policy(&mut self, wall_ms: u64, model: &str, policy: &PolicySpec) -> Result<(), ValueError> {
        let (is_name, bytes_max) = match is_limit(model) {
            true => (true, MODEL_BYTES_MAX + LIMIT_BYTES_MAX),
            false => (!model.contains(char::is_control), MODEL_BYTES_MAX),
        };
        if model.is_empty() || model.len() > bytes_max || !is_name {
            return Err(ValueError::OutOfBounds("model"));
        }
        let payload = state::encode_policy(policy)?;
        self.write(Namespace::Policies, wall_ms, model.as_bytes(), &payload);
        self.push_event(StoreEvent::PolicyChanged(model.into()));
        Ok(())
    }

    /// Removes the policy of a model, as no route does yet, so that tests have a removal without rules of its own.
    #[cfg(test)]
    pub(super) fn remove_policy_for_test(&mut self, model: &str) -> bool {
        self.maps[Namespace::Policies.index()].remove(model.as_bytes())
    }

    /// A remote change of a key: retract own losing dots, reap own observations of what is gone, tell the others.
    fn on_worker_key(&mut self, key: &Key) {
        let Some(parsed) = WorkerKey::parse(key) else { return };
        let id = parsed.id().clone();
        let is_gone = self.stored_worker(&id).is_none_or(|known| known.removed);
        let map = &mut self.maps[Namespace::Workers.index()];
        let node = &self.node;
        match parsed {
            WorkerKey::Spec(_) => {
                retract_losers(map, node, key);
                if is_gone {
                    map.remove(&WorkerKey::seen(&id, node));
                }
            }
            WorkerKey::Seen(_, writer) if writer == *node => {
                // Left by an earlier epoch of this node; what this epoch wrote was written for a worker that was there.
                let winner = single_writer_winner(map, node, map.get(key)).map(|live| live.dot);
                map.retract(key, |_, live| is_gone || Some(live.dot) != winner);
            }
            WorkerKey::Seen(..) => {}
        }
        self.push_event(StoreEvent::WorkerChanged(id));
    }

    // --- inner steps ---

    fn write(&mut self, namespace: Namespace, wall_ms: u64, key: &[u8], payload: &[u8]) {
        let map = &mut self.maps[namespace.index()];
        let stamp = self.clock.tick(wall_ms, map.newest(key));
        map.write(key, stamp, payload);
    }

    fn write_worker(&mut self, wall_ms: u64, id: &WorkerId, mut spec: WorkerSpec, removed: bool) {
        if let Some(origin) = self.lasting_origin(id) {
            spec.origin = origin;
        }
        if let Ok(payload) = state::encode_worker(&StoredWorker { spec, removed }) {
            self.write(Namespace::Workers, wall_ms, &WorkerKey::spec(id), &payload);
            self.push_event(StoreEvent::WorkerChanged(id.clone()));
        }
    }

    fn stored_worker(&self, id: &WorkerId) -> Option<StoredWorker> {
        let map = self.map(Namespace::Workers);
        decode_spec(map, map.get(&WorkerKey::spec(id)))
    }

    fn observation(&self, node: &NodeName, live: Dots<'_>) -> Option<Result<WorkerObservation, ValueError>> {
        if self.masked.contains(node) {
            return None;
        }
        let winner = single_writer_winner(self.map(Namespace::Workers), node, live)?;
        Some(state::decode_observation(winner.payload))
    }

    fn seen_by(&self, name: &NodeName) -> Vec<(Key, WorkerId)> {
        let parsed = self.map(Namespace::Workers).range_from(b"").filter_map(|(key, _)| match WorkerKey::parse(key) {
            Some(WorkerKey::Seen(id, node)) if node == *name => Some((key.into(), id)),
            _ => None,
        });
        parsed.collect()
    }

    fn read_workers(&self) -> (Vec<WorkerView>, usize) {
        let (mut views, mut bad) = (BTreeMap::<WorkerId, WorkerView>::new(), 0);
        let map = self.map(Namespace::Workers);
        let mut seen = Vec::new();
        for (key, live) in map.range_from(b"") {
            match WorkerKey::parse(key) {
                Some(WorkerKey::Spec(id)) => match decode_spec(map, live) {
                    Some(StoredWorker { removed: true, .. }) => {}
                    Some(StoredWorker { spec, .. }) => {
                        views.insert(id.clone(), WorkerView { id, spec, observed: BTreeMap::new() });
                    }
                    None => bad += 1,
                },
                Some(WorkerKey::Seen(id, node)) => match self.observation(&node, live) {
                    Some(Ok(observation)) => seen.push((id, node, observation)),
                    Some(Err(_)) => bad += 1,
                    None => {}
                },
                None => bad += 1,
            }
        }
        for (id, node, observation) in seen {
            if let Some(view) = views.get_mut(&id) {
                view.observed.insert(node, observation);
            }
        }
        (views.into_values().collect(), bad)
    }

    fn read_policies(&self) -> (Vec<(String, PolicySpec)>, usize) {
        let (mut policies, mut bad) = (Vec::new(), 0);
        let map = self.map(Namespace::Policies);
        for (key, live) in map.range_from(b"") {
            if std::str::from_utf8(key).is_ok_and(is_limit) {
                continue;
            }
            let policy = lww_register::newest(map, live).map(|live| state::decode_policy(live.payload));
            match (std::str::from_utf8(key), policy) {
                (Ok(model), Some(Ok(policy))) => policies.push((model.to_owned(), policy)),
                _ => bad += 1,
            }
        }
        (policies, bad)
    }

    fn push_event(&mut self, event: StoreEvent) {
        if self.waiting.contains(&StoreEvent::ManyChanged) || self.waiting.contains(&event) {
            return;
        }
        let event = if self.events.len() < EVENTS_MAX {
            event
        } else {
            self.events.clear();
            self.waiting.clear();
            StoreEvent::ManyChanged
        };
        self.waiting.insert(event.clone());
        self.events.push_back(event);
    }
}

/// The newest value of a worker entry that this version can read. What a search found and a flag names too is the flag's.
fn decode_spec(map: &Map, live: Dots<'_>) -> Option<StoredWorker> {
    let mut known = lww_register::newest(map, live).and_then(|live| state::decode_worker(live.payload).ok())?;
    if matches!(known.spec.origin, WorkerOrigin::Discovered(_)) && live.into_iter().any(|live| is_seed(&live)) {
        known.spec.origin = WorkerOrigin::Seed;
    }
    Some(known)
}

/// The newest dot of the one node that may write the key: by epoch first, so that a restarted node outbids its past even
/// with a clock that was set back. Dots of others are ignored.
fn single_writer_winner<'a>(map: &Map, node: &NodeName, live: Dots<'a>) -> Option<LiveRef<'a>> {
    let actors: &ActorTable = map.actors();
    let by_writer = live.filter(|live| actors.actor(live.dot.actor).node == *node);
    by_writer.max_by_key(|live| (actors.actor(live.dot.actor).boot_epoch_ms, live.dot.counter))
}

#[cfg(test)]
mod tests;
