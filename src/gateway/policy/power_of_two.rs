//! The less loaded of two workers drawn at random.
//!
//! Mitzenmacher 2001, "The Power of Two Choices in Randomized Load Balancing", §1: two choices bring the longest
//! queue from Θ(log n / log log n) to Θ(log log n), and do not herd as the least loaded of all does when several
//! gateways look at old numbers.

use std::sync::Arc;

use super::{Candidates, below};
use crate::gateway::worker::Worker;

/// The less loaded of two different candidates drawn uniformly; the first drawn when they are equal, which is either
/// with the same probability.
#[must_use]
pub fn choose(candidates: Candidates<'_>, random: u64) -> Option<&Arc<Worker>> {
    let n = candidates.count();
    let first = below(random as u32, n);
    if n < 2 {
        return candidates.nth(first);
    }
    let offset = 1 + below((random >> 32) as u32, n - 1);
    let first_worker = candidates.nth(first)?;
    let second_worker = candidates.nth((first + offset) % n)?;
    Some(if second_worker.in_flight() < first_worker.in_flight() { second_worker } else { first_worker })
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
    fn the_less_loaded_of_the_two_drawn_wins() {
        let w = workers(2);
        for (case, loads, expected) in [("first", [0, 1], 0), ("second", [3, 2], 1)] {
            let _in_flight = load(&w, &loads);
            for random in [0, 1, u64::MAX, 1 << 31, 1 << 63] {
                let chosen = choose(Candidates { ready: &w, tried: &[] }, random).unwrap();
                assert_eq!(chosen.id, w[expected].id, "{case} {random}");
            }
        }
    }

    #[test]
    fn equal_workers_get_equal_shares_and_the_worst_gets_nothing() {
        let w = workers(5);
        for count in tally(&w, 10_000, choose) {
            assert!((1_800..=2_200).contains(&count), "{count}");
        }
        let _in_flight = load(&w, &[1, 0, 0, 0, 0]);
        assert_eq!(tally(&w, 10_000, choose)[0], 0);
    }

    /// Mitzenmacher 2001 §1: with two choices the longest queue stays near the mean.
    #[test]
    fn requests_that_stay_spread_evenly() {
        let w = workers(10);
        let mut in_flight = Vec::new();
        for seed in 0..1_000 {
            let chosen = choose(Candidates { ready: &w, tried: &[] }, super::super::mix(seed + 1)).unwrap();
            in_flight.push(chosen.begin());
        }
        for worker in &w {
            assert!((95..=105).contains(&worker.in_flight()), "{}", worker.in_flight());
        }
    }
}
