//! The worker with fewest requests in flight from this gateway.

use std::sync::Arc;

use super::{Candidates, below, mix};
use crate::gateway::worker::Worker;

/// The candidate with fewest requests in flight; among equals one drawn uniformly, in the same pass (reservoir
/// sampling, Vitter 1985 §2, with a reservoir of one).
#[must_use]
pub fn choose(candidates: Candidates<'_>, random: u64) -> Option<&Arc<Worker>> {
    let mut best: Option<(&Arc<Worker>, usize)> = None;
    let mut equals = 0;
    for worker in candidates.iter() {
        let load = worker.in_flight();
        match best {
            Some((_, least)) if load > least => {}
            Some((_, least)) if load == least => {
                equals += 1;
                // The k-th of the equals takes the place with probability 1/k.
                if below(mix(random.wrapping_add(equals as u64)) as u32, equals) == 0 {
                    best = Some((worker, load));
                }
            }
            _ => {
                best = Some((worker, load));
                equals = 1;
            }
        }
    }
    best.map(|(worker, _)| worker)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gateway::{
        policy::tests::{load, tally},
        worker::tests::workers,
    };

    #[test]
    fn the_least_loaded_wins() {
        for (case, loads, tried, expected) in [
            ("first", [0, 1, 1], vec![], 0),
            ("middle", [2, 1, 3], vec![], 1),
            ("last", [2, 2, 1], vec![], 2),
            ("next best when tried", [0, 1, 2], vec![0], 1),
        ] {
            let w = workers(3);
            let _in_flight = load(&w, &loads);
            let tried: Vec<_> = tried.into_iter().map(|i: usize| w[i].clone()).collect();
            for random in 0..100 {
                let chosen = choose(Candidates { ready: &w, tried: &tried }, mix(random)).unwrap();
                assert_eq!(chosen.id, w[expected].id, "{case}");
            }
        }
    }

    #[test]
    fn equals_share_evenly() {
        let w = workers(5);
        let _in_flight = load(&w, &[1, 0, 1, 0, 0]);
        let counts = tally(&w, 9_000, choose);
        assert_eq!((counts[0], counts[2]), (0, 0));
        for index in [1, 3, 4] {
            // σ = 45.
            assert!((2_775..=3_225).contains(&counts[index]), "{counts:?}");
        }
    }
}
