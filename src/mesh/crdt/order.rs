//! A sorted list of numbers in 4 bytes each, ordered by what they stand for.
//!
//! A B+-tree of two levels (Bayer and McCreight 1972): leaves of up to [`LEAF_MAX`] numbers, and the list of leaves. The
//! numbers mean nothing here; who asks says by a predicate which of them come before the place that it looks for.

/// Numbers in one leaf at most.
const LEAF_MAX: usize = 512;

/// Leaves at most this long are joined with a neighbour when both fit in half a leaf.
const LEAF_MIN: usize = LEAF_MAX / 4;

/// How far from a place that is given [`Order::seek_near`] looks before it searches the whole list.
const NEAR: usize = 8;

/// A place in one [`Order`]; any change of the order invalidates it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Place {
    leaf: usize,
    at: usize,
}

/// The list. Leaves are never empty, and have room for at most twice their length and 16.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    leaves: Vec<Vec<u32>>,
}

impl Order {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// The place of the first number that `is_before` does not hold for; it holds for a prefix of the list.
    pub(super) fn seek(&self, is_before: impl Fn(u32) -> bool) -> Place {
        let end = Place { leaf: self.leaves.len(), at: 0 };
        // What is appended is looked for at the end.
        if self.leaves.last().and_then(|leaf| leaf.last()).is_none_or(|last| is_before(*last)) {
            return end;
        }
        let leaf = self.leaves.partition_point(|leaf| leaf.last().is_some_and(|last| is_before(*last)));
        Place { leaf, at: self.leaves[leaf].partition_point(|number| is_before(*number)) }
    }

    /// As [`seek`](Self::seek), for what may be within [`NEAR`] numbers of a place, in its leaf: there it takes a look at
    /// a few neighbours, which lie in the processor's cache, and else two looks more. The place may be one of before a change.
    pub(super) fn seek_near(&self, near: Place, is_before: impl Fn(u32) -> bool) -> Place {
        let leaf = self.leaves.get(near.leaf).map_or(&[][..], Vec::as_slice);
        let (from, to) = (near.at.saturating_sub(NEAR), leaf.len().min(near.at + NEAR));
        let around = leaf.get(from..to).unwrap_or_default();
        match around {
            [first, .., last] if is_before(*first) && !is_before(*last) => {
                Place { leaf: near.leaf, at: from + around.partition_point(|number| is_before(*number)) }
            }
            _ => self.seek(is_before),
        }
    }

    /// The number at a place; none at the end.
    pub(super) fn get(&self, place: Place) -> Option<u32> {
        self.leaves.get(place.leaf).and_then(|leaf| leaf.get(place.at)).copied()
    }

    /// The numbers from a place on.
    pub(super) fn iter_from(&self, place: Place) -> impl Iterator<Item = u32> + use<'_> {
        let first = self.leaves.get(place.leaf).map_or(&[][..], |leaf| &leaf[place.at..]);
        let rest = self.leaves.iter().skip(place.leaf + 1).flatten();
        first.iter().chain(rest).copied()
    }

    /// Puts another number at a place.
    pub(super) fn set(&mut self, place: Place, number: u32) {
        self.leaves[place.leaf][place.at] = number;
    }

    /// Inserts a number before a place.
    pub(super) fn insert(&mut self, place: Place, number: u32) {
        let Place { mut leaf, mut at } = place;
        if leaf == self.leaves.len() {
            // At the end a full leaf stays full, so that what is appended in order takes no room in vain.
            match self.leaves.last_mut().filter(|last| last.len() < LEAF_MAX) {
                Some(last) => last.push(number),
                None => self.leaves.push(vec![number]),
            }
            return;
        }
        if self.leaves[leaf].len() == LEAF_MAX {
            let upper = self.leaves[leaf].split_off(LEAF_MAX / 2);
            self.leaves[leaf].shrink_to_fit();
            self.leaves.insert(leaf + 1, upper);
            if at > LEAF_MAX / 2 {
                (leaf, at) = (leaf + 1, at - LEAF_MAX / 2);
            }
        }
        self.leaves[leaf].insert(at, number);
    }

    /// Removes the number at a place.
    pub(super) fn remove(&mut self, place: Place) {
        self.leaves[place.leaf].remove(place.at);
        let len = self.leaves[place.leaf].len();
        if len == 0 {
            self.leaves.remove(place.leaf);
        } else if len <= LEAF_MIN {
            let fits = |other: &Vec<u32>| other.len() + len <= LEAF_MAX / 2;
            if self.leaves.get(place.leaf + 1).is_some_and(fits) {
                self.join_with_next(place.leaf);
            } else if place.leaf > 0 && fits(&self.leaves[place.leaf - 1]) {
                self.join_with_next(place.leaf - 1);
            }
        }
        if let Some(leaf) = self.leaves.get_mut(place.leaf)
            && leaf.capacity() > 2 * leaf.len() + 16
        {
            leaf.shrink_to(leaf.len() + leaf.len() / 4);
        }
    }

    fn join_with_next(&mut self, leaf: usize) {
        let next = self.leaves.remove(leaf + 1);
        self.leaves[leaf].extend(next);
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn it_stays_sorted_and_compact_under_any_history() {
        for (case, insert_in_order, keep) in [("random", false, 20_000), ("appended", true, 20_000), ("few", false, 3)]
        {
            let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(7);
            let (mut order, mut model) = (Order::default(), Vec::<u32>::new());
            for step in 0..60_000_u32 {
                let number = if insert_in_order { step } else { rng.random() };
                if model.len() < keep && !rng.random_ratio(2, 5) {
                    let at = model.partition_point(|other| *other < number);
                    model.insert(at, number);
                    order.insert(order.seek(|other| other < number), number);
                } else if !model.is_empty() {
                    let gone = model.remove(rng.random_range(0..model.len()));
                    let place = order.seek(|other| other < gone);
                    assert_eq!(order.get(place), Some(gone), "{case}");
                    order.remove(place);
                }
            }
            let start = order.seek(|_| false);
            assert_eq!(order.iter_from(start).collect::<Vec<_>>(), model, "{case}");
            let room: usize = order.leaves.iter().map(Vec::capacity).sum();
            assert!(room <= 2 * model.len() + 16 * order.leaves.len(), "{case}: room for {room}");
            assert!(order.leaves.len() <= 1 + model.len() / (LEAF_MAX / 8), "{case}: {} leaves", order.leaves.len());
        }
    }

    #[test]
    fn a_search_ends_at_the_same_place_wherever_it_begins() {
        let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(8);
        for count in [0, 1, 2, 600, 3000_u32] {
            let mut order = Order::default();
            for number in (0..count).map(|number| 2 * number) {
                order.insert(order.seek(|other| other < number), number);
            }
            let places: Vec<Place> = (0..=2 * count).map(|wanted| order.seek(|number| number < wanted)).collect();
            for (wanted, expected) in (0..=2 * count).zip(&places) {
                // Around it, anywhere, and at places that were before a change and are none now.
                let anywhere = places[rng.random_range(0..places.len())];
                let near = (0..20).map(|back| Place { at: (expected.at + 10).saturating_sub(back), ..*expected });
                let outside = [Place { leaf: 99, at: 3 }, Place { leaf: 0, at: 5000 }, Place { leaf: 0, at: 0 }];
                for start in near.chain([anywhere]).chain(outside) {
                    let found = order.seek_near(start, |number| number < wanted);
                    assert_eq!(found, *expected, "{wanted} of {count} from {start:?}");
                }
            }
        }
    }
}
