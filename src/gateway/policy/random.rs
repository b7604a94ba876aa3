//! Any worker, uniformly.

use std::sync::Arc;

use super::{Candidates, below};
use crate::gateway::worker::Worker;

/// A candidate drawn uniformly.
#[must_use]
pub fn choose(candidates: Candidates<'_>, random: u64) -> Option<&Arc<Worker>> {
    candidates.nth(below(random as u32, candidates.count()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{policy::tests::tally, worker::tests::workers};

    #[test]
    fn every_worker_gets_its_share() {
        // 10 000 draws over 5: σ = 40, so ± 200 is five σ.
        for count in tally(&workers(5), 10_000, choose) {
            assert!((1_800..=2_200).contains(&count), "{count}");
        }
    }
}
