//! Which key a dead dot touched, for the recent past.

use std::collections::{BTreeMap, VecDeque};

use super::{
    context::VersionVector,
    dot::{ActorId, Dot, Key},
};

/// Records that one namespace keeps at most: 65 536.
pub const RECORDS_MAX: usize = 65_536;

/// A bounded cache from dots that are not live (removes, and own writes that others have overwritten) to their keys.
///
/// A delta to a peer lists keys by the dots that the peer lacks; these are the dots that the index of live dots does not
/// have. The oldest goes first and raises its actor's *floor*: a peer behind a floor is served by a snapshot instead,
/// so forgetting costs bytes, never correctness.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    by_actor: BTreeMap<ActorId, BTreeMap<u64, Key>>,
    order: VecDeque<Dot>,
    floor: VersionVector,
}

impl Records {
    /// Notes that the operation `dot` touched `key`.
    pub(super) fn insert(&mut self, dot: Dot, key: &Key) {
        if self.floor.contains(dot) {
            return;
        }
        if self.by_actor.entry(dot.actor).or_default().insert(dot.counter, key.clone()).is_some() {
            return;
        }
        self.order.push_back(dot);
        if self.order.len() > RECORDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.forget(oldest);
        }
    }

    /// The first record of `actor` above `after`.
    pub(super) fn next(&self, actor: ActorId, after: u64) -> Option<(u64, &Key)> {
        let (counter, key) = self.by_actor.get(&actor)?.range(after + 1..).next()?;
        Some((*counter, key))
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
        if self.by_actor.remove(&actor).is_some() {
            self.order.retain(|dot| dot.actor != actor);
        }
        self.floor.retain(|other| other != actor);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    fn forget(&mut self, dot: Dot) {
        self.floor.raise(dot.actor, dot.counter);
        if let Some(keys) = self.by_actor.get_mut(&dot.actor) {
            keys.remove(&dot.counter);
            if keys.is_empty() {
                self.by_actor.remove(&dot.actor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_bounded_and_the_floor_rises_over_what_went() {
        let (actor, key) = (ActorId(0), Key::from(&b"k"[..]));
        let mut records = Records::default();
        for counter in 1..=RECORDS_MAX as u64 + 10 {
            records.insert(Dot { actor, counter }, &key);
        }
        assert_eq!((records.len(), records.floor(actor)), (RECORDS_MAX, 10));
        assert_eq!(records.next(actor, 0).map(|(counter, _)| counter), Some(11));
    }
}
