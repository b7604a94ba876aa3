//! What a view shows of the stores, kept up to date entry by entry.
//!
//! A view is made up to a hundred times a second while anything changes, on the task that answers probes. So it reads
//! what changed since the last one, and shares the rest with it: an entry that did not change is the same allocation,
//! and a list in which none did is the same list.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::handle::PolicyEntry;
use crate::mesh::stores::{PolicySpec, StoreEvent, Stores, WorkerId, WorkerView};

/// Workers that changed are read when there are so many of them, or when a view is made: 1024, for which it takes some
/// milliseconds.
const STALE_MAX: usize = 1024;

/// Workers and policies as the stores had them when the last event was noted. As large as what it shows, but for the
/// contents, which it shares with the views.
#[derive(Debug, Default)]
pub(super) struct Picture {
    workers: Listed<WorkerId, Arc<WorkerView>, Arc<WorkerView>>,
    policies: Listed<Arc<str>, Arc<PolicySpec>, PolicyEntry>,
    /// Workers that changed and were not read since. After a partition every gateway says what it sees of thousands of
    /// workers: each is read once for what several said, and in order, so that the stores find one beside the other.
    stale: BTreeSet<WorkerId>,
}

/// Entries, and the list that was last made of them; none when one has changed.
#[derive(Debug)]
struct Listed<K, V, T> {
    entries: BTreeMap<K, V>,
    list: Option<Arc<Vec<T>>>,
}

impl<K, V, T> Default for Listed<K, V, T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), list: None }
    }
}

impl<K: Ord, V: PartialEq, T> Listed<K, V, T> {
    fn set(&mut self, key: K, value: Option<V>) {
        let is_same = self.entries.get(&key) == value.as_ref();
        if is_same {
            return;
        }
        self.list = None;
        match value {
            Some(value) => drop(self.entries.insert(key, value)),
            None => drop(self.entries.remove(&key)),
        }
    }

    fn list(&mut self, shown: impl Fn((&K, &V)) -> T) -> Arc<Vec<T>> {
        self.list.get_or_insert_with(|| Arc::new(self.entries.iter().map(shown).collect())).clone()
    }
}

impl Picture {
    /// A picture of all that is there.
    pub(super) fn of(stores: &Stores) -> Self {
        let mut picture = Self::default();
        picture.reread(stores);
        picture
    }

    /// Takes note of a change; whether a view may show it.
    pub(super) fn note(&mut self, event: &StoreEvent, stores: &Stores) -> bool {
        match event {
            StoreEvent::WorkerChanged(id) => {
                self.stale.insert(id.clone());
                if self.stale.len() >= STALE_MAX {
                    self.read_stale(stores);
                }
            }
            StoreEvent::PolicyChanged(model) => {
                self.policies.set(model.as_str().into(), stores.policy(model).map(Arc::new));
            }
            StoreEvent::ManyChanged => self.reread(stores),
            StoreEvent::RoutingChanged => {}
            StoreEvent::SessionChanged(_) => return false,
        }
        true
    }

    /// Every worker, sorted by id.
    pub(super) fn workers(&mut self, stores: &Stores) -> Arc<Vec<Arc<WorkerView>>> {
        self.read_stale(stores);
        self.workers.list(|(_, worker)| worker.clone())
    }

    /// Every policy of a model, sorted by model.
    pub(super) fn policies(&mut self) -> Arc<Vec<PolicyEntry>> {
        self.policies.list(|(model, policy)| (model.clone(), policy.clone()))
    }

    fn read_stale(&mut self, stores: &Stores) {
        for id in std::mem::take(&mut self.stale) {
            let worker = stores.worker(&id).map(Arc::new);
            self.workers.set(id, worker);
        }
    }

    fn reread(&mut self, stores: &Stores) {
        self.stale.clear();
        let workers = stores.workers().into_iter().map(|worker| (worker.id.clone(), Arc::new(worker)));
        self.workers = Listed { entries: workers.collect(), list: None };
        let policies = stores.policies().into_iter().map(|(model, policy)| (model.into(), Arc::new(policy)));
        self.policies = Listed { entries: policies.collect(), list: None };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::mesh::stores::{EVENTS_MAX, RATE_LIMIT, WorkerObservation, WorkerOrigin, WorkerSpec, WorkerState};

    fn worker(number: u32, zone: &str) -> WorkerSpec {
        WorkerSpec {
            url: format!("http://w{number}"),
            models: Vec::new(),
            api_key: None,
            zone: zone.into(),
            origin: WorkerOrigin::Api,
            draining: false,
        }
    }

    fn drain(picture: &mut Picture, stores: &mut Stores) {
        while let Some(event) = stores.poll_event() {
            picture.note(&event, stores);
        }
    }

    fn assert_shows(picture: &mut Picture, stores: &Stores) {
        let workers: Vec<WorkerView> = picture.workers(stores).iter().map(|worker| (**worker).clone()).collect();
        assert_eq!(workers, stores.workers());
        let policies = picture.policies();
        let policies = policies.iter().map(|(model, policy)| (model.to_string(), (**policy).clone()));
        assert_eq!(policies.collect::<Vec<_>>(), stores.policies());
    }

    #[test]
    fn it_shows_what_the_stores_have_after_any_history() {
        for (seed, burst) in [(1, 3), (2, 50), (3, 3 * STALE_MAX as u32 / 2), (4, EVENTS_MAX as u32 + 10)] {
            let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
            let mut stores = Stores::new("n1".parse().unwrap(), 1);
            let mut picture = Picture::of(&stores);
            for wall_ms in 0..20 {
                for step in 0..burst {
                    let number = rng.random_range(0..burst * 2);
                    let id = WorkerId::of_url(&worker(number, "").url);
                    let policy = PolicySpec { policy: "random".into(), config_json: format!("{{\"n\":{step}}}") };
                    match rng.random_range(0..6_u32) {
                        0 => drop(stores.remove_worker(wall_ms, &id)),
                        1 => {
                            let state = WorkerState::Ready;
                            let seen = WorkerObservation { state, models: vec!["m".into()], failing_until_ms: wall_ms };
                            stores.observe_worker(wall_ms, &id, &seen);
                        }
                        2 => stores.put_policy(wall_ms, &format!("m{number}"), &policy).unwrap(),
                        3 => stores.put_policy(wall_ms, RATE_LIMIT, &policy).unwrap(),
                        4 if number % 7 == 0 => stores.forget_node(&"n1".parse().unwrap()),
                        4 if number % 7 == 1 => stores.remember_node(&"n1".parse().unwrap()),
                        _ => drop(stores.put_worker(wall_ms, worker(number, &format!("z{}", step % 3)))),
                    }
                }
                drain(&mut picture, &mut stores);
                assert_shows(&mut picture, &stores);
            }
        }
    }

    #[test]
    fn what_did_not_change_is_shared() {
        let mut stores = Stores::new("n1".parse().unwrap(), 1);
        let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
        for number in 0..3 {
            stores.put_worker(1, worker(number, ""));
            stores.put_policy(1, &format!("m{number}"), &policy).unwrap();
        }
        let mut picture = Picture::of(&stores);
        drain(&mut picture, &mut stores);
        let before = (picture.workers(&stores), picture.policies());
        stores.put_worker(2, worker(1, "elsewhere"));
        drain(&mut picture, &mut stores);
        let after = (picture.workers(&stores), picture.policies());
        assert!(Arc::ptr_eq(&before.1, &after.1), "no policy changed");
        let same = before.0.iter().zip(after.0.iter()).filter(|(before, after)| Arc::ptr_eq(before, after)).count();
        assert_eq!((same, after.0.len()), (2, 3));
    }
}
