//! By routing key: the same key goes to the same worker, on every gateway.
//!
//! Rendezvous hashing (Thaler & Ravishankar 1998, "Using Name-Based Mappings to Increase Hit Rates", §3): each worker
//! has a score for the key, and the highest wins. It has the property that Karger et al. 1997 ("Consistent Hashing and
//! Random Trees", §4) named consistent: when a worker goes, only its own keys move, and evenly to all others; when one
//! comes, it takes its share from each. Against a ring it needs no virtual nodes and no table.
//!
//! With bounded load (Mirrokni, Thorup & Zadimoghaddam 2018, "Consistent Hashing with Bounded Loads", §1): a worker
//! with more than (1 + ε) times the mean load is passed over, and the key goes to the next in *its own* order. Departure: a
//! worker below [`LOAD_FLOOR`] requests is never passed over. The paper's bound is 1 when nothing is in flight, which
//! would tear two concurrent requests of one session apart on an idle cluster.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::{Candidates, mix};
use crate::gateway::worker::Worker;

/// Requests in flight from this gateway up to which a worker is never too busy for its keys. An engine batches about
/// as many, so moving a session away from its cache earlier gains nothing.
pub const LOAD_FLOOR: usize = 64;

/// 1 + ε in percent: how far above the mean load a worker may be before its keys spill over.
pub const LOAD_PERCENT: usize = 125;

/// The candidate with the highest score for `key` that is not too busy.
#[must_use]
pub fn choose<'a>(candidates: Candidates<'a>, key: &[u8]) -> Option<&'a Arc<Worker>> {
    choose_hashed(candidates, xxh3_64(key))
}

/// The same for a key that is hashed already.
#[must_use]
pub fn choose_hashed(candidates: Candidates<'_>, key: u64) -> Option<&Arc<Worker>> {
    let bound = load_bound(candidates.ready);
    let mut free: Option<(u64, &Arc<Worker>)> = None;
    let mut busy: Option<(u64, &Arc<Worker>)> = None;
    for worker in candidates.iter() {
        let best = if worker.in_flight() < bound { &mut free } else { &mut busy };
        let score = mix(key ^ worker.ring_hash());
        if best.is_none_or(|(highest, _)| score > highest) {
            *best = Some((score, worker));
        }
    }
    // All are busy only when the free ones were tried.
    free.or(busy).map(|(_, worker)| worker)
}

/// Requests in flight at which a worker takes no further key: ⌈(1 + ε)·(total + 1)/n⌉, the request at hand included.
fn load_bound(ready: &[Arc<Worker>]) -> usize {
    let total: usize = ready.iter().map(|worker| worker.in_flight()).sum();
    let bound = ((total + 1) * LOAD_PERCENT).div_ceil(100 * ready.len().max(1));
    bound.max(LOAD_FLOOR)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::gateway::{policy::tests::load, worker::tests::workers};

    fn home<'a>(ready: &'a [Arc<Worker>], key: &str) -> &'a Arc<Worker> {
        choose(Candidates { ready, tried: &[] }, key.as_bytes()).unwrap()
    }

    /// Karger et al. 1997 §4, monotonicity: keys move from the worker that goes, and none else.
    #[test]
    fn only_the_keys_of_a_lost_worker_move() {
        let before = workers(8);
        let after: Vec<_> = before[..7].to_vec();
        let mut moved = vec![0; 7];
        for i in 0..8_000 {
            let key = format!("session-{i}");
            let (old, new) = (home(&before, &key), home(&after, &key));
            if old.id == before[7].id {
                moved[after.iter().position(|w| w.id == new.id).unwrap()] += 1;
            } else {
                assert_eq!(old.id, new.id, "{key}");
            }
        }
        // About 1 000 keys, about 143 to each (σ = 12).
        for count in moved {
            assert!((83..=203).contains(&count), "{count}");
        }
    }

    /// Thaler & Ravishankar 1998 §3: the load is balanced.
    #[test]
    fn keys_spread_evenly() {
        let w = workers(5);
        let mut counts = [0; 5];
        for i in 0..10_000 {
            counts[w.iter().position(|x| x.id == home(&w, &format!("user-{i}")).id).unwrap()] += 1;
        }
        for count in counts {
            assert!((1_800..=2_200).contains(&count), "{counts:?}");
        }
    }

    /// Mirrokni et al. 2018 §1: no worker is above the bound, whatever the keys.
    #[test]
    fn one_hot_key_fills_no_worker_above_the_bound() {
        let w = workers(4);
        let mut in_flight = Vec::new();
        for n in 1..=1_000 {
            in_flight.push(home(&w, "hot").begin());
            let bound = (n * LOAD_PERCENT).div_ceil(400).max(LOAD_FLOOR);
            assert!(w.iter().all(|worker| worker.in_flight() <= bound), "after {n}");
        }
    }

    #[test]
    fn below_the_floor_a_key_stays() {
        let w = workers(4);
        let at_home = home(&w, "k").clone();
        let _in_flight: Vec<_> = (1..LOAD_FLOOR).map(|_| at_home.begin()).collect();
        assert_eq!(home(&w, "k").id, at_home.id);
        let _one_more = at_home.begin();
        assert_ne!(home(&w, "k").id, at_home.id);
    }

    proptest! {
        #[test]
        fn order_of_the_workers_does_not_matter(n in 1usize..10, key in ".{0,16}", turn in 0usize..10) {
            let w = workers(n);
            let mut turned = w.clone();
            turned.rotate_left(turn % n);
            prop_assert_eq!(&home(&w, &key).id, &home(&turned, &key).id);
        }

        #[test]
        fn a_retry_goes_to_the_next_of_the_same_order(n in 2usize..10, key in ".{0,16}") {
            let w = workers(n);
            let first = home(&w, &key).clone();
            let rest: Vec<_> = w.iter().filter(|x| x.id != first.id).cloned().collect();
            let retry = choose(Candidates { ready: &w, tried: std::slice::from_ref(&first) }, key.as_bytes()).unwrap();
            prop_assert_eq!(&retry.id, &home(&rest, &key).id);
        }

        #[test]
        fn loads_up_to_the_floor_change_nothing(
            loads in proptest::collection::vec(0usize..LOAD_FLOOR, 5), key in ".{0,16}",
        ) {
            let w = workers(5);
            let idle = home(&w, &key).id.clone();
            let _in_flight = load(&w, &loads);
            prop_assert_eq!(&home(&w, &key).id, &idle);
        }
    }
}
