//! Each worker in turn.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::Candidates;
use crate::gateway::worker::Worker;

/// The next worker of the turn, or the first one after it that was not tried. Every call takes one turn; concurrent
/// calls take different ones.
#[must_use]
pub fn choose<'a>(candidates: Candidates<'a>, cursor: &AtomicUsize) -> Option<&'a Arc<Worker>> {
    let ready = candidates.ready;
    let start = cursor.fetch_add(1, Ordering::Relaxed).checked_rem(ready.len())?;
    ready[start..].iter().chain(&ready[..start]).find(|worker| candidates.admits(worker))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::gateway::worker::tests::workers;

    #[test]
    fn turns_go_round_and_skip_the_tried() {
        let w = workers(3);
        for (case, start, tried, expected) in [
            ("first", 0, vec![], 0),
            ("last", 2, vec![], 2),
            ("around", 3, vec![], 0),
            ("skip one", 1, vec![1], 2),
            ("skip around the end", 2, vec![2], 0),
            ("skip two", 0, vec![0, 1], 2),
            ("counter at its end", usize::MAX, vec![], usize::MAX % 3),
        ] {
            let tried: Vec<_> = tried.into_iter().map(|i: usize| w[i].clone()).collect();
            let chosen = choose(Candidates { ready: &w, tried: &tried }, &AtomicUsize::new(start)).unwrap();
            assert_eq!(chosen.id, w[expected].id, "{case}");
        }
    }

    proptest! {
        #[test]
        fn n_turns_visit_each_once(n in 1usize..20, start in 0usize..1_000_000) {
            let w = workers(n);
            let cursor = AtomicUsize::new(start);
            let mut seen: Vec<_> =
                (0..n).map(|_| choose(Candidates { ready: &w, tried: &[] }, &cursor).unwrap().id.clone()).collect();
            seen.sort();
            seen.dedup();
            prop_assert_eq!(seen.len(), n);
        }
    }
}
