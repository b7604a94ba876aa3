//! Nodes that are DOWN, and when what they alone wrote stops to count.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::mesh::{
    node::{NodeName, NodeStatus},
    stores::Stores,
};

/// What a node that is DOWN saw of workers is hidden after this long. A worker that it registered stays.
const MASK_AFTER: Duration = Duration::from_secs(60);

/// Nodes that are DOWN, each with the time from which it is masked; none once it is. Bounded by the members.
#[derive(Debug, Default)]
pub(super) struct Absent(BTreeMap<NodeName, Option<Instant>>);

impl Absent {
    /// A member has a new status.
    pub(super) fn on_status(&mut self, now: Instant, name: &NodeName, status: NodeStatus, stores: &mut Stores) {
        if status == NodeStatus::Down {
            self.0.insert(name.clone(), Some(now + MASK_AFTER));
        } else if let Some(None) = self.0.remove(name) {
            stores.remember_node(name);
        }
    }

    /// A node is no member any more: what it saw is removed, and it says it anew should it come back.
    pub(super) fn on_forgotten(&mut self, name: &NodeName, stores: &mut Stores) {
        self.0.remove(name);
        stores.reap_node(name);
    }

    /// Masks those whose time has come; whether there were any.
    pub(super) fn mask(&mut self, now: Instant, stores: &mut Stores) -> bool {
        let mut any = false;
        for (name, due) in self.0.iter_mut().filter(|(_, due)| due.is_some_and(|at| at <= now)) {
            *due = None;
            stores.forget_node(name);
            any = true;
        }
        any
    }

    /// When [`mask`](Self::mask) is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().flatten().copied().min()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::mesh::{
        crdt::{
            context::VersionVector,
            delta::{Body, Cover},
            dot::{Actor, ActorId},
        },
        stores::{Namespace, WorkerId, WorkerObservation, WorkerOrigin, WorkerSpec, WorkerState},
    };

    fn spec() -> WorkerSpec {
        WorkerSpec {
            url: "http://w:1".into(),
            models: Vec::new(),
            api_key: None,
            zone: String::new(),
            origin: WorkerOrigin::Api,
            draining: false,
        }
    }

    /// Gives `to` the keys that `from` wrote of one worker.
    fn send(from: &Stores, node: &str, to: &mut Stores) {
        let map = from.map(Namespace::Workers);
        let counter = map.seen().get(map.own());
        let body = Body {
            actors: vec![Actor { node: node.parse().unwrap(), boot_epoch_ms: from.epoch_ms() }],
            context: vec![(ActorId(0), counter)],
            keys: map.range_from(b"").map(|(key, _)| map.key_state(key)).collect(),
            covers: vec![Cover { actor: ActorId(0), from: 0, to: counter }],
            ..Body::default()
        };
        to.apply(5, Namespace::Workers, &mut VersionVector::default(), body).unwrap();
    }

    #[test]
    fn what_a_dead_node_saw_is_hidden_after_a_minute_and_its_worker_stays() {
        let (here, peer): (NodeName, NodeName) = ("here".parse().unwrap(), "peer".parse().unwrap());
        let mut theirs = Stores::new(peer.clone(), 1);
        let id = theirs.put_worker(1, spec());
        let seen = WorkerObservation { state: WorkerState::Ready, models: Vec::new(), failing_until_ms: 0 };
        theirs.observe_worker(2, &id, &seen);
        let mut stores = Stores::new(here.clone(), 2);
        send(&theirs, "peer", &mut stores);
        stores.observe_worker(3, &id, &WorkerObservation { state: WorkerState::NotReady, ..seen.clone() });
        let observers = |stores: &Stores, id: &WorkerId| -> Vec<NodeName> {
            stores.worker(id).unwrap().observed.into_keys().collect()
        };
        let both = vec![here.clone(), peer.clone()];
        assert_eq!(observers(&stores, &id), both, "each gateway has a word of its own");

        let (mut absent, start) = (Absent::default(), Instant::now());
        let minute = Duration::from_secs(60);
        absent.on_status(start, &peer, NodeStatus::Suspected, &mut stores);
        assert_eq!(absent.poll_timeout(), None);
        absent.on_status(start, &peer, NodeStatus::Down, &mut stores);
        assert_eq!(absent.poll_timeout(), Some(start + minute));
        assert!(!absent.mask(start + minute - Duration::from_millis(1), &mut stores));
        assert_eq!(observers(&stores, &id), both, "59 s and more");
        assert!(absent.mask(start + minute, &mut stores) && !absent.mask(start + 2 * minute, &mut stores));
        assert_eq!(observers(&stores, &id), std::slice::from_ref(&here), "masked; the worker that it registered stays");

        absent.on_status(start + 3 * minute, &peer, NodeStatus::Alive, &mut stores);
        assert_eq!(observers(&stores, &id), both, "it is back");
        // Down again, but back before the minute is over.
        absent.on_status(start, &peer, NodeStatus::Down, &mut stores);
        absent.on_status(start, &peer, NodeStatus::Alive, &mut stores);
        assert!(!absent.mask(start + 9 * minute, &mut stores) && absent.poll_timeout().is_none());

        // Down for good: what it saw is removed, and shows again when it comes back and says it.
        absent.on_status(start, &peer, NodeStatus::Down, &mut stores);
        absent.mask(start + minute, &mut stores);
        absent.on_forgotten(&peer, &mut stores);
        assert_eq!(stores.map(Namespace::Workers).len(), 2, "the worker, and what this node sees of it");
        let mut again = Stores::new(peer.clone(), 9);
        again.put_worker(6, spec());
        again.observe_worker(7, &id, &seen);
        absent.on_status(start + 9 * minute, &peer, NodeStatus::Alive, &mut stores);
        send(&again, "peer", &mut stores);
        assert_eq!(observers(&stores, &id), both, "a node that was forgotten is not masked for ever");
    }
}
