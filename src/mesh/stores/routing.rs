//! The `routing` namespace: what gateways must agree on to compare prompts.
//!
//! - `key`: the secret under which prefixes of prompts are named. The first node of a cluster draws it. Nodes that start
//!   together may each draw one: the *oldest* counts, so that a newcomer never takes a running cluster's key from it,
//!   and whoever wrote another retracts it.
//! - `life/<worker>`: how often the worker has lost its cache. The highest counts: two gateways that see one restart at
//!   the same time write the same number. It goes with the worker.
//! - `search/…`: who searches for workers, see [`searches`].
//! - `usage/…`: what limits were used for, see [`usage`].

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Namespace, StoreEvent, Stores, WorkerId, searches, usage};
use crate::mesh::{
    crdt::map::{Dots, LiveRef, Map},
    wire::state,
};

/// Length of the key.
pub const HASH_KEY_BYTES: usize = 192;

const KEY: &[u8] = b"key";

const LIFE: &[u8] = b"life/";

impl Stores {
    /// The secret of the cluster; none before somebody has drawn it.
    #[must_use]
    pub fn hash_key(&self) -> Option<Bytes> {
        let map = self.map(Namespace::Routing);
        oldest(map).and_then(|live| state::decode_hash_key(live.payload).ok())
    }

    /// Writes a secret where there is none yet; for a node that has heard what the cluster knows.
    pub fn offer_hash_key(&mut self, wall_ms: u64, key: &[u8; HASH_KEY_BYTES]) {
        if self.map(Namespace::Routing).get(KEY).next().is_none() {
            self.write(Namespace::Routing, wall_ms, KEY, &state::encode_hash_key(key));
            self.push_event(StoreEvent::RoutingChanged);
        }
    }

    /// How often each worker has lost its cache, by [`WorkerId::number`]; workers that are not there never did.
    #[must_use]
    pub fn generations(&self) -> BTreeMap<u64, u32> {
        let lives = self.map(Namespace::Routing).with_prefix(LIFE);
        let lives = lives.filter_map(|(key, live)| {
            let worker = key[LIFE.len()..].try_into().ok().map(u64::from_be_bytes)?;
            Some((worker, generation(live)))
        });
        lives.collect()
    }

    /// Says that a worker has lost its cache. Nothing is written when there is no such worker.
    pub fn lose_cache(&mut self, wall_ms: u64, id: &WorkerId) {
        if self.stored_worker(id).is_none_or(|known| known.removed) {
            return;
        }
        let key = life_key(id);
        let next = generation(self.map(Namespace::Routing).get(&key)).wrapping_add(1);
        self.write(Namespace::Routing, wall_ms, &key, &state::encode_generation(next));
        self.push_event(StoreEvent::RoutingChanged);
    }

    /// Removes what is said of a worker that goes.
    pub(super) fn forget_life(&mut self, id: &WorkerId) {
        if self.maps[Namespace::Routing.index()].remove(&life_key(id)) {
            self.push_event(StoreEvent::RoutingChanged);
        }
    }

    /// A remote change: a younger key of this node loses.
    pub(super) fn on_routing_key(&mut self, key: &[u8]) {
        if usage::is_usage(key) || searches::is_search(key) {
            return;
        }
        if key == KEY {
            let node = self.node.clone();
            let map = &mut self.maps[Namespace::Routing.index()];
            let winner = oldest(map).map(|live| live.dot);
            map.retract(KEY, |actors, live| Some(live.dot) != winner && actors.actor(live.dot.actor).node == node);
        }
        self.push_event(StoreEvent::RoutingChanged);
    }
}

fn life_key(id: &WorkerId) -> Vec<u8> {
    [LIFE, &id.number().to_be_bytes()].concat()
}

fn oldest(map: &Map) -> Option<LiveRef<'_>> {
    map.get(KEY).min_by_key(|live| (live.stamp, map.actors().actor(live.dot.actor), live.dot.counter))
}

fn generation(live: Dots<'_>) -> u32 {
    live.filter_map(|live| state::decode_generation(live.payload).ok()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::mesh::{
        crdt::{
            context::VersionVector,
            delta::{Body, Cover},
            dot::Actor,
        },
        stores::{WorkerOrigin, WorkerSpec},
    };

    const NOW: u64 = 1_700_000_000_000;

    fn stores(name: &str) -> Stores {
        Stores::new(name.parse().unwrap(), NOW)
    }

    /// Sends all that `from` wrote itself.
    fn send(from: &Stores, to: &mut Stores, known: &mut VersionVector) {
        let map = from.map(Namespace::Routing);
        let body = Body {
            actors: vec![Actor { node: from.node.clone(), boot_epoch_ms: NOW }],
            context: vec![(map.own(), map.seen().get(map.own()))],
            keys: map.range_from(b"").map(|(key, _)| map.key_state(key)).collect(),
            covers: vec![Cover { actor: map.own(), from: 0, to: map.seen().get(map.own()) }],
            ..Body::default()
        };
        to.apply(NOW, Namespace::Routing, known, body).unwrap();
    }

    #[test]
    fn the_oldest_key_counts_and_the_others_go() {
        let (mut first, mut second) = (stores("b"), stores("a"));
        assert_eq!(first.hash_key(), None);
        first.offer_hash_key(NOW, &[1; HASH_KEY_BYTES]);
        first.offer_hash_key(NOW + 5, &[3; HASH_KEY_BYTES]);
        second.offer_hash_key(NOW + 1, &[2; HASH_KEY_BYTES]);
        send(&first, &mut second, &mut VersionVector::default());
        assert_eq!(second.hash_key().unwrap()[0], 1);
        assert_eq!(second.map(Namespace::Routing).get(KEY).count(), 1, "its own younger key is retracted");
        assert_eq!(second.poll_event(), Some(StoreEvent::RoutingChanged));
        assert_eq!(first.hash_key().unwrap()[0], 1);
    }

    #[test]
    fn generations_grow_and_go_with_their_worker() {
        let mut stores = stores("a");
        let id = WorkerId::of_url("http://w:1");
        stores.lose_cache(NOW, &id);
        assert!(stores.generations().is_empty(), "no such worker");
        stores.put_worker(
            NOW,
            WorkerSpec {
                url: "http://w:1".into(),
                models: Vec::new(),
                api_key: None,
                zone: String::new(),
                origin: WorkerOrigin::Api,
                draining: false,
            },
        );
        for expected in 1..=3 {
            stores.lose_cache(NOW, &id);
            assert_eq!(stores.generations().get(&id.number()), Some(&expected));
        }
        stores.remove_worker(NOW, &id);
        assert!(stores.generations().is_empty());
    }
}
