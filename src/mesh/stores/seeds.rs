//! Workers that flags name: the rules of *seeds* and *losing dots* in the head of [`stores`](super).

use super::{Namespace, StoreEvent, Stores, WorkerId, WorkerKey, WorkerOrigin, WorkerSpec};
use crate::mesh::{
    crdt::{
        dot::{ActorTable, Key},
        lww_register,
        map::{LiveRef, Map},
    },
    hlc::Timestamp,
    node::NodeName,
    wire::state::{self, StoredWorker},
};

impl Stores {
    /// Registers a worker that a flag names. It has no effect on an entry that exists, the marker of a removed worker
    /// included, and loses against every such entry that is yet unknown here.
    pub fn seed_worker(&mut self, spec: WorkerSpec) -> WorkerId {
        let id = WorkerId::of_url(&spec.url);
        match self.stored_worker(&id) {
            Some(_) if self.lasting_origin(&id) == Some(WorkerOrigin::Seed) => {}
            // Found by a search: what is there stays, removed or not, and does not go with the pod any more.
            Some(known) if matches!(known.spec.origin, WorkerOrigin::Discovered(_)) => self.own_seed(&id, known),
            // Said through the API before: what it said stays, and its removal must leave a marker from now on.
            Some(known) => {
                let spec = WorkerSpec { origin: WorkerOrigin::Seed, ..known.spec };
                self.write_worker(0, &id, spec, known.removed);
            }
            None => self.write_seed(&id, spec),
        }
        id
    }

    fn own_seed(&mut self, id: &WorkerId, known: StoredWorker) {
        let spec = WorkerSpec { origin: WorkerOrigin::Seed, ..known.spec };
        if let Ok(payload) = state::encode_worker(&StoredWorker { spec, removed: known.removed }) {
            let (map, key) = (&mut self.maps[Namespace::Workers.index()], WorkerKey::spec(id));
            // Right above what was read, and below anything that an operator said elsewhere meanwhile.
            let stamp = Some(map.newest(&key)).filter(|read| *read > Timestamp::ZERO).map(Timestamp::successor);
            map.write(&key, stamp.unwrap_or(Timestamp::ZERO), &payload);
            self.push_event(StoreEvent::WorkerChanged(id.clone()));
        }
    }

    fn write_seed(&mut self, id: &WorkerId, spec: WorkerSpec) {
        let spec = WorkerSpec { origin: WorkerOrigin::Seed, ..spec };
        if let Ok(payload) = state::encode_worker(&StoredWorker { spec, removed: false }) {
            self.maps[Namespace::Workers.index()].write_own(&WorkerKey::spec(id), Timestamp::ZERO, &payload);
            self.push_event(StoreEvent::WorkerChanged(id.clone()));
        }
    }

    /// Whether some flag or search names the worker, so that a removal must leave a marker.
    pub(super) fn is_lasting(&self, id: &WorkerId) -> bool {
        self.lasting_origin(id).is_some()
    }
}

/// Whether this is the word of a flag.
pub(super) fn is_seed(live: &LiveRef<'_>) -> bool {
    live.stamp == Timestamp::ZERO
        && state::decode_worker(live.payload).is_ok_and(|known| known.spec.origin == WorkerOrigin::Seed)
}

/// Kills this node's dots of a worker entry that lose. See the rules in the module's head.
pub(super) fn retract_losers(map: &mut Map, node: &NodeName, key: &Key) {
    let Some(winner) = lww_register::read(map, key) else { return };
    let is_own = |actors: &ActorTable, live: LiveRef<'_>| actors.actor(live.dot.actor).node == *node;
    let origin = state::decode_worker(winner.payload).map(|known| known.spec.origin);
    let is_witness = |live: &LiveRef<'_>| match origin {
        Ok(WorkerOrigin::Seed) => false,
        Ok(WorkerOrigin::Discovered(_)) => is_seed(live),
        Ok(WorkerOrigin::Api) | Err(_) => live.stamp == Timestamp::ZERO,
    };
    let witnesses = map.get(key).filter(|live| is_own(map.actors(), *live) && is_witness(live));
    let witness = lww_register::newest(map, witnesses).map(|live| live.dot);
    let winner = winner.dot;
    map.retract(key, |actors, live| live.dot != winner && Some(live.dot) != witness && is_own(actors, live));
}
