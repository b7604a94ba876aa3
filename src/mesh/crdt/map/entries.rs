//! The live dots of a namespace, found by key and by dot.
//!
//! Metadata is about 52 bytes for each live dot: a slot of 40, and two orders of slot numbers with 4 to 8 bytes each.
//! `tests/memory.rs` holds the sum to 64.

use std::{cell::Cell, collections::BTreeMap};

use super::slots::{LiveRef, NONE, Slot, Slots};
use crate::mesh::crdt::{
    dot::{ActorId, Dot},
    order::{Order, Place},
};

/// The live dots of one key, in no order that means anything.
#[derive(Clone, Copy, Debug)]
pub struct Dots<'a> {
    slots: &'a Slots,
    at: u32,
}

impl Dots<'_> {
    /// Whether there are none: the key does not live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == NONE
    }
}

impl<'a> Iterator for Dots<'a> {
    type Item = LiveRef<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let slot = (self.at != NONE).then(|| self.slots.get(self.at))?;
        self.at = slot.next;
        Some(slot.live())
    }
}

/// Where a key is, or would be. Any change of the entries invalidates it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    place: Place,
    /// The first slot of the key, or [`NONE`].
    head: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    slots: Slots,
    /// The first slot of each key.
    by_key: Order,
    /// Every slot of an actor, by counter.
    by_dot: BTreeMap<ActorId, Order>,
    keys: usize,
    /// Where the last search for a key ended: the next is often for a key beside it, as in a chunk of a snapshot, or of
    /// what is said of one worker.
    last: Cell<Place>,
}

impl Entries {
    /// How many keys live.
    pub(super) fn len(&self) -> usize {
        self.keys
    }

    /// The live dots of a key.
    pub(super) fn get(&self, key: &[u8]) -> Dots<'_> {
        self.at(self.find(key))
    }

    /// Where a key is: a search, so whoever reads and then changes a key does it once.
    pub(super) fn find(&self, key: &[u8]) -> Spot {
        let place = self.seek(key);
        let head = self.by_key.get(place).filter(|number| self.slots.get(*number).key() == key);
        Spot { place, head: head.unwrap_or(NONE) }
    }

    /// The place of the first key that is not before this one.
    fn seek(&self, key: &[u8]) -> Place {
        let place = self.by_key.seek_near(self.last.get(), |number| self.slots.get(number).key() < key);
        self.last.set(place);
        place
    }

    /// The live dots of the key at a spot.
    pub(super) fn at(&self, spot: Spot) -> Dots<'_> {
        Dots { slots: &self.slots, at: spot.head }
    }

    /// Keys from `from` on, in order.
    pub(super) fn range_from<'a>(&'a self, from: &[u8]) -> impl Iterator<Item = (&'a [u8], Dots<'a>)> + use<'a> {
        let start = self.seek(from);
        let slots = &self.slots;
        self.by_key.iter_from(start).map(move |at| (slots.get(at).key(), Dots { slots, at }))
    }

    /// The first live dot of `actor` above `after`, and its key.
    pub(super) fn next_dot(&self, actor: ActorId, after: u64) -> Option<(u64, &[u8])> {
        let order = self.by_dot.get(&actor)?;
        let slot = self.slots.get(order.get(order.seek(|number| self.slots.get(number).counter() <= after))?);
        Some((slot.counter(), slot.key()))
    }

    /// Whether a dot of the actor lives.
    pub(super) fn has_actor(&self, actor: ActorId) -> bool {
        self.by_dot.contains_key(&actor)
    }

    /// Takes the dots `gone`, which are in order, from a key that [`find`](Self::find) found at `spot`, and gives it `new`
    /// ones, which it does not have.
    pub(super) fn change(&mut self, key: &[u8], spot: Spot, gone: &[Dot], new: &[LiveRef<'_>]) {
        let Spot { place, head } = spot;
        let (head_after, mut free) = self.unlink(head, gone);
        let mut first = head_after;
        for live in new {
            let mut slot = Slot::new(key, *live);
            slot.next = first;
            let number = match free.pop() {
                Some(number) => {
                    *self.slots.get_mut(number) = slot;
                    number
                }
                None => self.slots.push(slot),
            };
            first = number;
            self.index(number);
        }
        match (head, first) {
            (NONE, NONE) => {}
            (NONE, first) => {
                self.by_key.insert(place, first);
                self.keys += 1;
            }
            (_, NONE) => {
                self.by_key.remove(place);
                self.keys -= 1;
            }
            (_, first) => self.by_key.set(place, first),
        }
        // From the largest number down, so that no slot that is still to be freed is moved.
        free.sort_unstable();
        while let Some(number) = free.pop() {
            self.free(number);
        }
    }

    /// Takes the slots of the dots `gone` out of a chain and out of the order by dots; gives what is now the first of the
    /// chain, and the slots that are free.
    fn unlink(&mut self, head: u32, gone: &[Dot]) -> (u32, Vec<u32>) {
        let (mut first, mut before, mut free) = (NONE, NONE, Vec::new());
        let mut at = head;
        if gone.is_empty() {
            return (head, free);
        }
        while at != NONE {
            let (dot, next) = (self.slots.get(at).dot(), self.slots.get(at).next);
            if gone.binary_search(&dot).is_ok() {
                if before != NONE {
                    self.slots.get_mut(before).next = next;
                }
                self.unindex(dot);
                free.push(at);
            } else {
                first = if first == NONE { at } else { first };
                before = at;
            }
            at = next;
        }
        (first, free)
    }

    /// Frees a slot that nothing points to; the last slot gets its number, so what points to that is told.
    fn free(&mut self, number: u32) {
        let Some(was) = self.slots.swap_remove(number) else { return };
        let slot = self.slots.get(number);
        let counter = slot.counter();
        if let Some(order) = self.by_dot.get_mut(&slot.dot().actor) {
            // The order still holds the old number, which is `was`: it stands for the same counter.
            let slots = &self.slots;
            let counter_of = |other: u32| slots.get(if other == was { number } else { other }).counter();
            let place = order.seek(|other| counter_of(other) < counter);
            order.set(place, number);
        }
        let (slots, key) = (&self.slots, slot.key());
        let key_of = |other: u32| slots.get(if other == was { number } else { other }).key();
        let place = self.by_key.seek(|other| key_of(other) < key);
        let mut at = self.by_key.get(place).unwrap_or(NONE);
        if at == was {
            self.by_key.set(place, number);
            return;
        }
        while at != NONE {
            let slot = self.slots.get_mut(at);
            if slot.next == was {
                slot.next = number;
                return;
            }
            at = slot.next;
        }
    }

    fn index(&mut self, number: u32) {
        let dot = self.slots.get(number).dot();
        let order = self.by_dot.entry(dot.actor).or_default();
        let place = order.seek(|other| self.slots.get(other).counter() < dot.counter);
        order.insert(place, number);
    }

    fn unindex(&mut self, dot: Dot) {
        let Some(order) = self.by_dot.get_mut(&dot.actor) else { return };
        let place = order.seek(|other| self.slots.get(other).counter() < dot.counter);
        order.remove(place);
        if order.is_empty() {
            self.by_dot.remove(&dot.actor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::mesh::hlc::Timestamp;

    /// Dots by key, and keys by dot, as a naive store would hold them.
    type Model = BTreeMap<Vec<u8>, BTreeMap<Dot, Vec<u8>>>;

    fn check(entries: &Entries, model: &Model) {
        assert_eq!(entries.len(), model.len());
        assert_eq!(entries.slots.len(), model.values().map(BTreeMap::len).sum::<usize>());
        let read = |dots: Dots<'_>| dots.map(|live| (live.dot, live.payload.to_vec())).collect::<BTreeMap<_, _>>();
        let all: Model = entries.range_from(b"").map(|(key, dots)| (key.to_vec(), read(dots))).collect();
        assert_eq!(all, *model);
        for (key, dots) in model {
            assert_eq!(read(entries.get(key)), *dots);
        }
        let by_dot: BTreeSet<(Dot, Vec<u8>)> =
            model.iter().flat_map(|(key, dots)| dots.keys().map(|dot| (*dot, key.clone()))).collect();
        let mut walked = BTreeSet::new();
        for actor in (0..4).map(ActorId) {
            assert_eq!(entries.has_actor(actor), by_dot.iter().any(|(dot, _)| dot.actor == actor));
            let mut after = 0;
            while let Some((counter, key)) = entries.next_dot(actor, after) {
                assert!(counter > after);
                walked.insert((Dot { actor, counter }, key.to_vec()));
                after = counter;
            }
        }
        assert_eq!(walked, by_dot);
    }

    #[test]
    fn it_equals_a_naive_store_under_any_history() {
        for seed in 0..8 {
            let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
            let (mut entries, mut model) = (Entries::default(), Model::new());
            let mut counters = [0_u64; 4];
            for step in 0..3000_u32 {
                let key = format!("k{}", rng.random_range(0..[3_u32, 2000][(seed % 2) as usize])).into_bytes();
                let dots = model.entry(key.clone()).or_default();
                let gone: Vec<Dot> = dots.keys().copied().filter(|_| rng.random_ratio(1, 2)).collect();
                let new: Vec<(Dot, Vec<u8>)> = (0..rng.random_range(0..3_u32))
                    .map(|_| {
                        let actor = rng.random_range(0..4_u32);
                        counters[actor as usize] += rng.random_range(1..3_u64);
                        (Dot { actor: ActorId(actor), counter: counters[actor as usize] }, vec![7; step as usize % 5])
                    })
                    .collect();
                gone.iter().for_each(|dot| drop(dots.remove(dot)));
                dots.extend(new.iter().cloned());
                let live = |(dot, payload): &'_ (Dot, Vec<u8>)| (*dot, payload.clone());
                let new: Vec<_> = new.iter().map(live).collect();
                let new: Vec<LiveRef<'_>> =
                    new.iter().map(|(dot, payload)| LiveRef { dot: *dot, stamp: Timestamp::ZERO, payload }).collect();
                entries.change(&key, entries.find(&key), &gone, &new);
                model.retain(|_, dots| !dots.is_empty());
                if step % 500 == 499 {
                    check(&entries, &model);
                }
            }
            for (key, dots) in std::mem::take(&mut model) {
                entries.change(&key, entries.find(&key), &dots.into_keys().collect::<Vec<_>>(), &[]);
            }
            check(&entries, &model);
        }
    }
}
