//! Tokens of limits, in the `routing` namespace: what each node's hands hold of the cluster's token bucket, as PN-Counters.
//!
//! - `usage/t<limit>`: one dot for each node; what came in counts up (at the rate that it holds, and with shares that were lent
//!   to it), what was spent, given up or lost with a lease counts down. The sum is what the bucket of the cluster holds.
//!
//! A process that ended holds nothing: the next epoch of its node counts all of it as gone when it takes the column over.
//! Bounded as [`usage`](super::usage) is.

use std::collections::BTreeMap;

use super::{
    Namespace, Stores,
    usage::{TOKENS, usage_key},
};
use crate::mesh::{
    crdt::pn_counter,
    node::NodeName,
    quota::{Tokens, share::LimitId},
};

impl Stores {
    /// Adds what came into this node's hands and what went out of them since the last time; for a node that has the
    /// cluster's state. No write where that is nothing.
    pub fn add_tokens(&mut self, wall_ms: u64, limit: LimitId, more: Tokens) {
        let key = usage_key(TOKENS, limit);
        let earlier = self.take_over(&key, |payload| pn_counter::counts(payload).0);
        if earlier.is_none() && more == Tokens::default() {
            return;
        }
        let gone = earlier.unwrap_or(0);
        let map = &mut self.maps[Namespace::Routing.index()];
        let stamp = self.clock.tick(wall_ms, map.newest(&key));
        pn_counter::move_by(map, &key, stamp, more.came.saturating_add(gone), more.gone.saturating_add(gone));
        self.drop_earlier(&key);
    }

    /// What came into each node's hands of a limit, and went out of them.
    #[must_use]
    pub fn tokens(&self, limit: LimitId) -> BTreeMap<NodeName, Tokens> {
        let map = self.map(Namespace::Routing);
        let mut nodes = BTreeMap::<NodeName, Tokens>::new();
        for live in map.get(&usage_key(TOKENS, limit)) {
            let (came, gone) = pn_counter::counts(live.payload);
            let tokens = nodes.entry(map.actors().actor(live.dot.actor).node.clone()).or_default();
            *tokens = tokens.plus(Tokens { came, gone });
        }
        nodes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{super::usage::tests::send, *};

    const NOW: u64 = 1_700_000_000_000;

    fn stores(node: &str, epoch: u64) -> Stores {
        Stores::new(node.parse().unwrap(), epoch)
    }

    const fn moved(came: u64, gone: u64) -> Tokens {
        Tokens { came, gone }
    }

    fn columns(stores: &Stores, limit: LimitId) -> Vec<(String, u64, u64)> {
        stores.tokens(limit).into_iter().map(|(node, tokens)| (node.to_string(), tokens.came, tokens.gone)).collect()
    }

    #[test]
    fn the_bucket_is_the_sum_of_what_all_hold() {
        let (mut a, mut b) = (stores("a", 1), stores("b", 1));
        a.add_tokens(NOW, 7, moved(20, 0));
        a.add_tokens(NOW, 7, moved(3, 12));
        b.add_tokens(NOW, 7, moved(9, 1));
        send(&a, 1, &mut b);
        send(&a, 1, &mut b);
        assert_eq!(columns(&b, 7), [("a".into(), 23, 12), ("b".into(), 9, 1)]);
        assert_eq!(pn_counter::value(b.map(Namespace::Routing), &usage_key(TOKENS, 7)), 19);
        assert_eq!(b.tokens(7).values().map(|tokens| tokens.left()).sum::<u64>(), 19);
        assert_eq!((columns(&b, 8), b.poll_event()), (Vec::new(), None));
        let dots = |stores: &Stores| {
            let map = stores.map(Namespace::Routing);
            map.seen().get(map.own())
        };
        let before = dots(&b);
        b.add_tokens(NOW, 7, moved(0, 0));
        assert_eq!(dots(&b), before, "nothing is not written");
    }

    #[test]
    fn what_a_process_held_is_gone_with_it() {
        let mut first = stores("a", 1);
        first.add_tokens(NOW, 7, moved(20, 5));
        let mut second = stores("a", 2);
        send(&first, 1, &mut second);
        // Its first word, also when it holds nothing yet.
        second.add_tokens(NOW, 7, moved(0, 0));
        assert_eq!(columns(&second, 7), [("a".into(), 20, 20)]);
        second.add_tokens(NOW, 7, moved(4, 1));
        // What the old process said last comes late, and changes nothing of what is there.
        first.add_tokens(NOW, 7, moved(6, 0));
        send(&first, 1, &mut second);
        second.add_tokens(NOW, 7, moved(0, 0));
        assert_eq!(columns(&second, 7), [("a".into(), 30, 27)]);
        assert_eq!(second.map(Namespace::Routing).get(&usage_key(TOKENS, 7)).count(), 1, "one dot");
    }

    #[test]
    fn tokens_go_with_their_limit_and_their_node() {
        let (mut a, mut b) = (stores("a", 1), stores("b", 1));
        a.add_tokens(NOW, 7, moved(3, 1));
        a.add_tokens(NOW, 8, moved(3, 1));
        send(&a, 1, &mut b);
        a.keep_usage(&[8].into());
        assert_eq!((columns(&a, 7).len(), columns(&a, 8).len()), (0, 1));
        b.reap_node(&"a".parse().unwrap());
        assert_eq!((columns(&b, 7).len(), columns(&b, 8).len()), (0, 0));
    }
}
