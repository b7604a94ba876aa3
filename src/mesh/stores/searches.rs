//! Which searches gateways make, and when what a search has left behind goes.
//!
//! A gateway that searches says so: `search/<number>` in the `routing` namespace has one dot for each node that makes the
//! search of that number ([`PodMark::search`](super::PodMark)). It goes when the node searches for something else, or for
//! nothing, and when the node is forgotten; while a node is DOWN it stays, so an outage takes nothing away.
//!
//! - *Entries* of a search that nobody has made for [`UNCLAIMED_WAIT_MS`] are removed: no list will ever say that their
//!   pods are gone.
//! - *Markers*, which say that an operator removed a worker, stay as long as the pod is found, and [`MARKER_KEEP_MS`]
//!   longer: a pod that loses its label and has it again, or that empty lists have hidden, stays removed. Of those whose pod
//!   is not found [`MARKERS_MAX`] stay, the ones that were found last.
//!
//! Each gateway counts both times for itself, from when it has the cluster's state; one that starts begins anew.

use std::collections::{BTreeMap, BTreeSet};

use super::{Namespace, Stores, WorkerId, WorkerKey, WorkerOrigin, discovered::PodMark};
use crate::mesh::{hlc::Timestamp, node::NodeName};

/// How long nobody must have made a search before its entries go: 10 min, so that a rollout which changes the
/// selector of one gateway after the other, or a gateway that is started anew, takes nothing away in between.
const UNCLAIMED_WAIT_MS: u64 = 600_000;

/// How long a marker outlives its pod: 24 h.
const MARKER_KEEP_MS: u64 = 86_400_000;

/// Markers without a pod at most; beyond that those go whose pods have been missing longest.
const MARKERS_MAX: usize = 1_024;

const SEARCH: &[u8] = b"search/";

/// Whether a key says who searches: nobody waits for news of it.
pub(super) fn is_search(key: &[u8]) -> bool {
    key.starts_with(SEARCH)
}

fn search_key(search: u64) -> Vec<u8> {
    [SEARCH, &search.to_be_bytes()].concat()
}

/// Entries of the `workers` namespace that one step looks at, so that none takes long.
const STEP_KEYS: usize = 2_000;

/// Since when something is missing, in milliseconds of this node's clock. Not replicated.
#[derive(Clone, Debug, Default)]
pub(super) struct Missing {
    /// The pods of markers; bounded by [`MARKERS_MAX`].
    markers: BTreeMap<WorkerId, u64>,
    /// Makers of searches; bounded by the searches that entries name.
    searches: BTreeMap<u64, u64>,
    /// Where the next step goes on.
    from: Vec<u8>,
    /// Searches that nobody makes and that entries before that name.
    passed: BTreeSet<u64>,
}

impl Missing {
    /// The pod of a marker is not found.
    pub(super) fn note(&mut self, wall_ms: u64, id: WorkerId) {
        self.markers.entry(id).or_insert(wall_ms);
    }

    /// The pod of a marker is found.
    pub(super) fn found(&mut self, id: &WorkerId) {
        self.markers.remove(id);
    }

    /// Takes out the markers whose time is over, and those that are too many.
    fn expired(&mut self, wall_ms: u64) -> Vec<WorkerId> {
        let mut by_age: Vec<_> = self.markers.iter().map(|(id, since)| (*since, id.clone())).collect();
        by_age.sort();
        let too_many = by_age.len().saturating_sub(MARKERS_MAX);
        let is_over = |at: usize, since: u64| at < too_many || wall_ms.saturating_sub(since) >= MARKER_KEEP_MS;
        let over = by_age.into_iter().enumerate().filter(|(at, (since, _))| is_over(*at, *since));
        let over: Vec<WorkerId> = over.map(|(_, (_, id))| id).collect();
        over.iter().for_each(|id| self.found(id));
        over
    }
}

impl Stores {
    /// Says which search this node makes, and removes what is over; for a node that has the cluster's state, every few
    /// seconds. Looks at 2 000 keys at a time.
    pub fn settle_searches(&mut self, wall_ms: u64, own: Option<u64>) {
        self.claim_search(own);
        let mut missing = std::mem::take(&mut self.missing);
        let claimed = self.claimed();
        missing.searches.retain(|search, _| !claimed.contains(search));
        let mut gone = Vec::new();
        for (id, mark) in self.step(&mut missing).into_iter().filter(|(_, mark)| !claimed.contains(&mark.search)) {
            missing.passed.insert(mark.search);
            let since = *missing.searches.entry(mark.search).or_insert(wall_ms);
            if wall_ms.saturating_sub(since) >= UNCLAIMED_WAIT_MS {
                gone.push(id);
            }
        }
        if missing.from.is_empty() {
            let passed = std::mem::take(&mut missing.passed);
            missing.searches.retain(|search, _| passed.contains(search));
        }
        missing.markers.retain(|id, _| self.is_marker(id));
        for id in missing.expired(wall_ms) {
            self.erase_worker(&id);
        }
        self.missing = missing;
        gone.iter().for_each(|id| self.lose_pod(wall_ms, id));
    }

    /// The workers of searches among the next keys.
    fn step(&self, missing: &mut Missing) -> Vec<(WorkerId, PodMark)> {
        let from = std::mem::take(&mut missing.from);
        let mut found = Vec::new();
        for (at, (key, _)) in self.map(Namespace::Workers).range_from(&from).enumerate() {
            if at == STEP_KEYS {
                missing.from = key.into();
                break;
            }
            if let Some(WorkerKey::Spec(id)) = WorkerKey::parse(key)
                && let Some(mark) = self.mark_of(&id)
            {
                found.push((id, mark));
            }
        }
        found
    }

    /// The pod of a worker is gone: its entry goes, and a marker waits.
    pub(super) fn lose_pod(&mut self, wall_ms: u64, id: &WorkerId) {
        if self.is_marker(id) {
            self.missing.note(wall_ms, id.clone());
        } else {
            self.erase_worker(id);
        }
    }

    /// What a node says of its searches goes with it.
    pub(super) fn reap_searches(&mut self, node: &NodeName) {
        self.retract_searches(node, None);
    }

    fn claim_search(&mut self, own: Option<u64>) {
        let node = self.node.clone();
        let key = own.map(search_key);
        self.retract_searches(&node, key.as_deref());
        let map = &mut self.maps[Namespace::Routing.index()];
        let own = map.own();
        let Some(key) = key else { return };
        if !map.get(&key).any(|live| live.dot.actor == own) {
            map.write_own(&key, Timestamp::ZERO, b"1");
        }
        // What an earlier process of this name said.
        map.retract(&key, |actors, live| live.dot.actor != own && actors.actor(live.dot.actor).node == node);
    }

    fn retract_searches(&mut self, node: &NodeName, but: Option<&[u8]>) {
        let map = &mut self.maps[Namespace::Routing.index()];
        let keys: Vec<_> = map.with_prefix(SEARCH).map(|(key, _)| key.to_vec()).collect();
        for key in keys.iter().filter(|key| Some(key.as_slice()) != but) {
            map.retract(key, |actors, live| actors.actor(live.dot.actor).node == *node);
        }
    }

    /// The searches that somebody makes.
    fn claimed(&self) -> BTreeSet<u64> {
        let keys = self.map(Namespace::Routing).with_prefix(SEARCH);
        keys.filter_map(|(key, _)| key[SEARCH.len()..].try_into().ok().map(u64::from_be_bytes)).collect()
    }

    fn is_marker(&self, id: &WorkerId) -> bool {
        let known = self.stored_worker(id);
        known.is_some_and(|known| known.removed && matches!(known.spec.origin, WorkerOrigin::Discovered(_)))
    }
}

#[cfg(test)]
mod tests;
