//! Workers that a search found, as the pods of a Kubernetes service.
//!
//! Every gateway searches for itself and finds the same, at other times, and none knows what the others saw last. So:
//!
//! - What is found is written like what a flag says: stamped [`Timestamp::ZERO`], it loses against everything that was ever
//!   said through the API, and an entry that is there already stays as it is, but for a
//!   zone that it lacks, and that one of the API goes with the pod from then on. Finding is idempotent.
//! - An operator's removal leaves a marker, as that of a flag's worker does, so the worker stays away as long as its pod is
//!   found. The marker names the pod: another pod at the same address is another worker, and replaces it.
//! - When the pod is gone, the entry goes without a trace, and the marker a day later ([`searches`](super::searches)). Only
//!   the pod that it names can take it away, so news of an old pod that come late do not hurt the one that has its address
//!   now. An entry that a flag names too stays.
//! - A complete list takes away what it lacks, of the same search alone: a gateway that was told to look elsewhere takes
//!   nothing from the others.

use std::collections::BTreeSet;

use super::{Namespace, StoreEvent, Stores, WorkerId, WorkerKey, WorkerOrigin, WorkerSpec, lww_register};
use crate::mesh::{
    crdt::dot::Key,
    hlc::Timestamp,
    wire::state::{self, StoredWorker},
};

/// Which pod an entry stands for, and which search found it. Hashes: equal pods and searches have equal ones everywhere.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PodMark {
    /// Of the pod's UID, which no other pod ever has.
    pub pod: u64,
    /// Of the namespace and the selector that it was found by.
    pub search: u64,
}

impl PodMark {
    /// The mark of the pod with this UID, found by this search.
    #[must_use]
    pub fn new(uid: &str, search: u64) -> Self {
        Self { pod: xxhash_rust::xxh3::xxh3_64(uid.as_bytes()), search }
    }
}

/// News of a search.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Finding {
    /// A worker is there; its origin says which pod it is.
    Found(WorkerSpec),
    /// The pod is gone, or about to: no new requests.
    Gone(WorkerId, PodMark),
    /// The search finds these pods and no others.
    Only {
        /// Which search.
        search: u64,
        /// What [`PodMark::pod`] is of the pods that live.
        pods: BTreeSet<u64>,
    },
}

impl Stores {
    /// Takes in news of a search. What it says of workers that a flag names has no effect.
    pub fn note_finding(&mut self, wall_ms: u64, finding: Finding) {
        match finding {
            Finding::Found(spec) => self.find_worker(wall_ms, spec),
            Finding::Gone(id, mark) => {
                if self.mark_of(&id).is_some_and(|known| known.pod == mark.pod) {
                    self.lose_pod(wall_ms, &id);
                }
            }
            Finding::Only { search, pods } => {
                for id in self.spec_ids() {
                    match self.mark_of(&id).filter(|mark| mark.search == search) {
                        Some(mark) if pods.contains(&mark.pod) => self.missing.found(&id),
                        Some(_) => self.lose_pod(wall_ms, &id),
                        None => {}
                    }
                }
            }
        }
    }

    fn find_worker(&mut self, wall_ms: u64, spec: WorkerSpec) {
        let id = WorkerId::of_url(&spec.url);
        let WorkerOrigin::Discovered(mark) = spec.origin else { return };
        let Some(known) = self.stored_worker(&id) else {
            if let Ok(payload) = state::encode_worker(&StoredWorker { spec, removed: false }) {
                let map = &mut self.maps[Namespace::Workers.index()];
                map.write_own(&WorkerKey::spec(&id), Timestamp::ZERO, &payload);
                self.push_event(StoreEvent::WorkerChanged(id));
            }
            return;
        };
        let mut is_news = false;
        let (spec, removed) = match self.lasting_origin(&id) {
            Some(WorkerOrigin::Seed) => return,
            Some(WorkerOrigin::Discovered(of)) if of.pod == mark.pod => {
                self.missing.found(&id);
                if !known.spec.zone.is_empty() || spec.zone.is_empty() {
                    return;
                }
                (WorkerSpec { zone: spec.zone, ..known.spec }, known.removed)
            }
            Some(WorkerOrigin::Discovered(_)) => {
                is_news = true;
                (spec, false)
            }
            // Said through the API before: what it said stays, and goes with the pod from now on.
            Some(WorkerOrigin::Api) | None => (WorkerSpec { origin: spec.origin, ..known.spec }, known.removed),
        };
        if let Ok(payload) = state::encode_worker(&StoredWorker { spec, removed }) {
            // A new pod is news of now. What is filled in says again what was read: right above that, and below anything
            // that an operator said elsewhere meanwhile.
            let (map, key) = (&mut self.maps[Namespace::Workers.index()], WorkerKey::spec(&id));
            let read = map.newest(&key);
            let stamp = if is_news { self.clock.tick(wall_ms, read) } else { read.successor() };
            map.write(&key, stamp, &payload);
            self.push_event(StoreEvent::WorkerChanged(id));
        }
    }

    /// Removes an entry or marker and what was seen of the worker, without a trace.
    pub(super) fn erase_worker(&mut self, id: &WorkerId) {
        self.maps[Namespace::Workers.index()].remove(&WorkerKey::spec(id));
        self.remove_seen(id);
    }

    /// Removes what was seen of a worker that goes.
    pub(super) fn remove_seen(&mut self, id: &WorkerId) {
        let map = &mut self.maps[Namespace::Workers.index()];
        let seen: Vec<Key> = map.with_prefix(&WorkerKey::all_seen(id)).map(|(key, _)| key.into()).collect();
        for key in seen {
            map.remove(&key);
        }
        self.push_event(StoreEvent::WorkerChanged(id.clone()));
        self.forget_life(id);
    }

    /// Where an entry came from when that outlives what the API says of it: the winner says so, or a dot that lost against
    /// it lives beside it. None when the API alone named the worker, or nobody.
    pub(super) fn lasting_origin(&self, id: &WorkerId) -> Option<WorkerOrigin> {
        let winner = self.stored_worker(id).map(|known| known.spec.origin);
        if let Some(WorkerOrigin::Seed | WorkerOrigin::Discovered(_)) = winner {
            return winner;
        }
        let map = self.map(Namespace::Workers);
        let witnesses = map.get(&WorkerKey::spec(id)).filter(|live| live.stamp == Timestamp::ZERO);
        let witness = lww_register::newest(map, witnesses)?;
        match state::decode_worker(witness.payload) {
            Ok(known) if known.spec.origin != WorkerOrigin::Api => Some(known.spec.origin),
            // Written by another version.
            Ok(_) | Err(_) => Some(WorkerOrigin::Seed),
        }
    }

    /// The pod that the entry or marker goes with, and the search that found it.
    pub(super) fn mark_of(&self, id: &WorkerId) -> Option<PodMark> {
        match self.lasting_origin(id) {
            Some(WorkerOrigin::Discovered(mark)) => Some(mark),
            Some(WorkerOrigin::Seed | WorkerOrigin::Api) | None => None,
        }
    }

    /// The workers of all entries, markers included.
    fn spec_ids(&self) -> Vec<WorkerId> {
        let keys = self.map(Namespace::Workers).range_from(b"").map(|(key, _)| WorkerKey::parse(key));
        let ids = keys.filter_map(|key| match key {
            Some(WorkerKey::Spec(id)) => Some(id),
            Some(WorkerKey::Seen(..)) | None => None,
        });
        ids.collect()
    }
}

#[cfg(test)]
pub(super) mod tests;
