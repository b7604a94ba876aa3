//! Which key a dead dot touched, for the recent past.

use std::collections::{BTreeMap, VecDeque};

use super::{
    context::VersionVector,
    dot::{ActorId, Dot},
    order::Order,
};

/// Records that one namespace keeps at most: 65 536, of about 40 bytes each beside the key.
pub const RECORDS_MAX: usize = 65_536;

/// A bounded cache from dots that are not live (removes, and own writes that others have overwritten) to their keys.
///
/// A delta to a peer lists keys by the dots that the peer lacks; these are the dots that the index of live dots does not
/// have. The oldest goes first and raises its actor's *floor*: a peer behind a floor is served by a snapshot instead,
/// so forgetting costs bytes, never correctness.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    ring: VecDeque<(Dot, Box<[u8]>)>,
    /// Number of the oldest record; each later one has the next number, wrapping around.
    oldest: u32,
    /// Numbers of the records of each actor, by counter.
    by_actor: BTreeMap<ActorId, Order>,
    floor: VersionVector,
}

impl Records {
    /// Notes that the operation `dot` touched `key`.
    pub(super) fn insert(&mut self, dot: Dot, key: &[u8]) {
        if self.floor.contains(dot) || self.first_from(dot).is_some_and(|(counter, _)| counter == dot.counter) {
            return;
        }
        if self.ring.len() == RECORDS_MAX {
            self.forget_oldest();
        }
        let number = self.oldest.wrapping_add(u32::try_from(self.ring.len()).unwrap_or(u32::MAX));
        self.ring.push_back((dot, key.into()));
        let (ring, oldest) = (&self.ring, self.oldest);
        let order = self.by_actor.entry(dot.actor).or_default();
        order.insert(order.seek(|other| at(ring, oldest, other).0.counter < dot.counter), number);
    }

    /// The first record of `actor` above `after`.
    pub(super) fn next(&self, actor: ActorId, after: u64) -> Option<(u64, &[u8])> {
        self.first_from(Dot { actor, counter: after + 1 })
    }

    /// Up to where dots of `actor` may lack a record.
    pub(super) fn floor(&self, actor: ActorId) -> u64 {
        self.floor.get(actor)
    }

    /// Says that no record is known of `actor` up to `counter`.
    pub(super) fn raise_floor(&mut self, actor: ActorId, counter: u64) {
        self.floor.raise(actor, counter);
    }

    /// Drops everything about an actor that is folded: nobody asks for its dots any more.
    pub(super) fn drop_actor(&mut self, actor: ActorId) {
        self.floor.retain(|other| other != actor);
        if self.by_actor.remove(&actor).is_some() {
            self.by_actor.clear();
            for (dot, key) in std::mem::take(&mut self.ring) {
                if dot.actor != actor {
                    self.insert(dot, &key);
                }
            }
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ring.len()
    }

    fn first_from(&self, dot: Dot) -> Option<(u64, &[u8])> {
        let read = |number| at(&self.ring, self.oldest, number);
        let order = self.by_actor.get(&dot.actor)?;
        let (found, key) = read(order.get(order.seek(|other| read(other).0.counter < dot.counter))?);
        Some((found.counter, key))
    }

    fn forget_oldest(&mut self) {
        let Some((dot, _)) = self.ring.front() else { return };
        let dot = *dot;
        if let Some(order) = self.by_actor.get_mut(&dot.actor) {
            let (ring, oldest) = (&self.ring, self.oldest);
            order.remove(order.seek(|other| at(ring, oldest, other).0.counter < dot.counter));
            if order.is_empty() {
                self.by_actor.remove(&dot.actor);
            }
        }
        self.ring.pop_front();
        self.oldest = self.oldest.wrapping_add(1);
        self.floor.raise(dot.actor, dot.counter);
    }
}

/// The record of a number.
fn at(ring: &VecDeque<(Dot, Box<[u8]>)>, oldest: u32, number: u32) -> &(Dot, Box<[u8]>) {
    &ring[number.wrapping_sub(oldest) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_bounded_and_the_floor_rises_over_what_went() {
        let (actor, other) = (ActorId(0), ActorId(1));
        let mut records = Records::default();
        for counter in 1..=RECORDS_MAX as u64 + 10 {
            records.insert(Dot { actor, counter }, b"k");
        }
        assert_eq!((records.len(), records.floor(actor)), (RECORDS_MAX, 10));
        assert_eq!(records.next(actor, 0).map(|(counter, _)| counter), Some(11));
        records.insert(Dot { actor: other, counter: 3 }, b"o");
        records.insert(Dot { actor: other, counter: 3 }, b"o");
        records.insert(Dot { actor, counter: 11 }, b"below the floor by now");
        assert_eq!((records.len(), records.floor(actor), records.floor(other)), (RECORDS_MAX, 11, 0));
        records.drop_actor(actor);
        assert_eq!((records.len(), records.next(other, 0)), (1, Some((3, &b"o"[..]))));
        assert_eq!((records.floor(actor), records.next(actor, 0)), (0, None));
    }

    #[test]
    fn records_of_actors_are_found_in_the_order_of_counters_whatever_order_they_came_in() {
        let mut records = Records::default();
        for number in (0..2000_u64).map(|number| number * 1237 % 2000) {
            let dot = Dot { actor: ActorId((number % 3) as u32), counter: number + 1 };
            records.insert(dot, &number.to_le_bytes());
        }
        for actor in 0..3 {
            let next = |after: &u64| records.next(ActorId(actor), *after).map(|(counter, _)| counter);
            let counters: Vec<u64> = std::iter::successors(next(&0), next).collect();
            let expected: Vec<u64> = (1..=2000).filter(|counter| (counter - 1) % 3 == u64::from(actor)).collect();
            assert_eq!(counters, expected);
        }
    }
}
