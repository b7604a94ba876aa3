//! Usage of limits, in the `routing` namespace: how many requests each node admitted and refused, as G-Counters, and the
//! tokens that it holds, as a PN-Counter ([`tokens`](super::tokens)).
//!
//! - `usage/a<limit>` and `usage/r<limit>`: one dot for each node that counts. The node's count goes on over restarts: each
//!   write takes over what earlier epochs of the node left, retracts their dots, and remembers how much of each it took, so
//!   that what comes late, or grew meanwhile, adds what is new of it. Until that write both are shown.
//!
//! Bounded by limits and members: what is counted of a limit goes a minute after it, and that of a node when it is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use super::{Namespace, Stores};
use crate::mesh::{
    crdt::{
        dot::{ActorId, ActorTable},
        g_counter,
        map::LiveRef,
    },
    node::NodeName,
    quota::{Usage, share::LimitId},
};

const USAGE: &[u8] = b"usage/";

const ADMITTED: u8 = b'a';

const REFUSED: u8 = b'r';

pub(super) const TOKENS: u8 = b't';

/// Whether a key counts usage: nobody waits for news of it.
pub(super) fn is_usage(key: &[u8]) -> bool {
    key.starts_with(USAGE)
}

fn is_earlier(actors: &ActorTable, live: &LiveRef<'_>, own: ActorId, node: &NodeName) -> bool {
    live.dot.actor != own && actors.actor(live.dot.actor).node == *node
}

pub(super) fn usage_key(kind: u8, limit: LimitId) -> Vec<u8> {
    [USAGE, &[kind], &limit.to_be_bytes()].concat()
}

fn parse(key: &[u8]) -> Option<(u8, LimitId)> {
    let (kind, limit) = key.strip_prefix(USAGE)?.split_first()?;
    Some((*kind, limit.try_into().ok().map(u64::from_be_bytes)?))
}

impl Stores {
    /// Adds what this node admitted and refused; for a node that has the cluster's state. Takes no more than two writes.
    pub fn add_usage(&mut self, wall_ms: u64, limit: LimitId, more: Usage) {
        for (kind, count) in [(ADMITTED, more.admitted), (REFUSED, more.refused)] {
            if count > 0 {
                self.add_count(wall_ms, &usage_key(kind, limit), count);
            }
        }
    }

    fn add_count(&mut self, wall_ms: u64, key: &[u8], count: u64) {
        let taken_over = self.take_over(key, g_counter::count).unwrap_or(0);
        let map = &mut self.maps[Namespace::Routing.index()];
        let stamp = self.clock.tick(wall_ms, map.newest(key));
        g_counter::add(map, key, stamp, count.saturating_add(taken_over));
        self.drop_earlier(key);
    }

    /// What earlier epochs of this node left that was not taken over yet; none where there is nothing of them.
    pub(super) fn take_over(&mut self, key: &[u8], count: impl Fn(&[u8]) -> u64) -> Option<u64> {
        let map = &self.maps[Namespace::Routing.index()];
        let mut taken_over = None;
        for live in map.get(key).filter(|live| is_earlier(map.actors(), live, map.own(), &self.node)) {
            let epoch_ms = map.actors().actor(live.dot.actor).boot_epoch_ms;
            let taken = self.taken.entry((key.into(), epoch_ms)).or_default();
            let left = count(live.payload);
            let more = left.saturating_sub(*taken);
            taken_over = Some(taken_over.map_or(more, |sum: u64| sum.saturating_add(more)));
            *taken = left.max(*taken);
        }
        taken_over
    }

    /// Retracts what earlier epochs of this node left, once it was taken over.
    pub(super) fn drop_earlier(&mut self, key: &[u8]) {
        let node = self.node.clone();
        let map = &mut self.maps[Namespace::Routing.index()];
        let own = map.own();
        map.retract(key, |actors, live| is_earlier(actors, &live, own, &node));
    }

    /// What each node counted for a limit.
    #[must_use]
    pub fn usage(&self, limit: LimitId) -> BTreeMap<NodeName, Usage> {
        let map = self.map(Namespace::Routing);
        let mut nodes = BTreeMap::<NodeName, Usage>::new();
        for kind in [ADMITTED, REFUSED] {
            for live in map.get(&usage_key(kind, limit)) {
                let usage = nodes.entry(map.actors().actor(live.dot.actor).node.clone()).or_default();
                let count = if kind == ADMITTED { &mut usage.admitted } else { &mut usage.refused };
                *count = count.saturating_add(g_counter::count(live.payload));
            }
        }
        nodes
    }

    /// Removes what this node counted for limits that are no more; for a node that has the cluster's state.
    pub fn keep_usage(&mut self, limits: &BTreeSet<LimitId>) {
        let node = self.node.clone();
        self.taken.retain(|(key, _), _| parse(key).is_some_and(|(_, limit)| limits.contains(&limit)));
        self.retract_usage(&node, |limit| !limits.contains(&limit));
    }

    /// Removes what a node counted that is no member any more.
    pub(super) fn reap_usage(&mut self, node: &NodeName) {
        self.retract_usage(node, |_| true);
    }

    fn retract_usage(&mut self, node: &NodeName, of: impl Fn(LimitId) -> bool) {
        let map = &mut self.maps[Namespace::Routing.index()];
        let keys = map.with_prefix(USAGE).filter(|(key, _)| parse(key).is_some_and(|(_, limit)| of(limit)));
        for key in keys.map(|(key, _)| key.to_vec()).collect::<Vec<_>>() {
            map.retract(&key, |actors, live| actors.actor(live.dot.actor).node == *node);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mesh::crdt::{
        context::VersionVector,
        delta::{Body, Cover},
        dot::Actor,
    };

    const NOW: u64 = 1_700_000_000_000;

    fn stores(node: &str, epoch: u64) -> Stores {
        Stores::new(node.parse().unwrap(), epoch)
    }

    const fn used(admitted: u64, refused: u64) -> Usage {
        Usage { admitted, refused }
    }

    fn columns(stores: &Stores, limit: LimitId) -> Vec<(String, u64, u64)> {
        let column = |(node, usage): (NodeName, Usage)| (node.to_string(), usage.admitted, usage.refused);
        stores.usage(limit).into_iter().map(column).collect()
    }

    /// Sends all that `from`, of that epoch, wrote itself.
    pub(in super::super) fn send(from: &Stores, epoch: u64, to: &mut Stores) {
        let map = from.map(Namespace::Routing);
        let mut keys: Vec<_> = map.range_from(b"").map(|(key, _)| map.key_state(key)).collect();
        keys.retain(|key| !key.live.is_empty());
        let body = Body {
            actors: vec![Actor { node: from.node.clone(), boot_epoch_ms: epoch }],
            context: vec![(map.own(), map.seen().get(map.own()))],
            keys,
            covers: vec![Cover { actor: map.own(), from: 0, to: map.seen().get(map.own()) }],
            ..Body::default()
        };
        to.apply(NOW, Namespace::Routing, &mut VersionVector::default(), body).unwrap();
    }

    #[test]
    fn each_node_has_a_column_and_nobody_waits_for_news_of_it() {
        let (mut a, mut b) = (stores("a", 1), stores("b", 1));
        a.add_usage(NOW, 7, used(3, 1));
        a.add_usage(NOW + 1000, 7, used(2, 0));
        b.add_usage(NOW, 7, used(0, 4));
        b.add_usage(NOW, 8, used(1, 0));
        send(&a, 1, &mut b);
        send(&a, 1, &mut b);
        assert_eq!(columns(&b, 7), [("a".into(), 5, 1), ("b".into(), 0, 4)]);
        assert_eq!(columns(&b, 8), [("b".into(), 1, 0)]);
        assert_eq!(b.poll_event(), None);
        assert_eq!(columns(&b, 9), []);
    }

    #[test]
    fn a_count_goes_on_over_restarts_in_one_dot() {
        let mut first = stores("a", 1);
        first.add_usage(NOW, 7, used(5, 0));
        let mut second = stores("a", 2);
        send(&first, 1, &mut second);
        assert_eq!(columns(&second, 7), [("a".into(), 5, 0)], "before its first write");
        second.add_usage(NOW, 7, used(2, 0));
        assert_eq!(columns(&second, 7), [("a".into(), 7, 0)]);
        assert_eq!(second.map(Namespace::Routing).get(&usage_key(ADMITTED, 7)).count(), 1, "restarts leave nothing");
        // What the old process told last comes late, and what it told before is not counted twice.
        first.add_usage(NOW, 7, used(1, 0));
        send(&first, 1, &mut second);
        second.add_usage(NOW, 7, used(1, 0));
        assert_eq!(columns(&second, 7), [("a".into(), 9, 0)]);
    }

    #[test]
    fn a_count_that_comes_after_the_first_write_is_not_lost() {
        let mut first = stores("a", 1);
        first.add_usage(NOW, 7, used(5, 3));
        let mut second = stores("a", 2);
        second.add_usage(NOW, 7, used(2, 0));
        send(&first, 1, &mut second);
        second.add_usage(NOW, 7, used(1, 1));
        second.add_usage(NOW, 7, used(1, 1));
        assert_eq!(columns(&second, 7), [("a".into(), 9, 5)]);
    }

    #[test]
    fn counts_go_with_their_limit_and_their_node() {
        let (mut a, mut b) = (stores("a", 1), stores("b", 1));
        a.add_usage(NOW, 7, used(3, 1));
        a.add_usage(NOW, 8, used(3, 1));
        send(&a, 1, &mut b);
        a.keep_usage(&[8].into());
        assert_eq!((columns(&a, 7).len(), columns(&a, 8).len()), (0, 1));
        b.reap_node(&"a".parse().unwrap());
        assert_eq!((columns(&b, 7).len(), columns(&b, 8).len()), (0, 0));
    }
}
