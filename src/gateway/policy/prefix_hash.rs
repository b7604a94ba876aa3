//! By the beginning of the prompt: prompts that begin alike go to the same worker, on every gateway.
//!
//! Bounded-load rendezvous hashing as in [`super::consistent_hashing`], the key being the prompt's
//! [`home`](crate::gateway::prefix::Prompt::home): its conversation, or its first blocks. Nothing is remembered and
//! nothing is shared.

use std::sync::Arc;

use super::{Candidates, consistent_hashing, power_of_two};
use crate::gateway::{prefix::Prompt, worker::Worker};

/// The worker for the prompt; the less loaded of two when it has no text.
#[must_use]
pub fn choose<'a>(candidates: Candidates<'a>, prompt: Option<&Prompt>, random: u64) -> Option<&'a Arc<Worker>> {
    match prompt.and_then(Prompt::home) {
        Some(home) => consistent_hashing::choose_hashed(candidates, home),
        None => power_of_two::choose(candidates, random),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gateway::{policy::mix, worker::tests::workers};

    #[test]
    fn conversations_stay_and_spread() {
        let w = workers(4);
        let mut counts = [0; 4];
        for session in 0..4000 {
            let turn = |blocks: Vec<u64>| Prompt { blocks, session: Some(mix(session + 5)), ..Prompt::default() };
            let candidates = Candidates { ready: &w, tried: &[] };
            let first = choose(candidates, Some(&turn(vec![5])), 1).unwrap();
            let later = choose(candidates, Some(&turn(vec![5, 6, 7])), 2).unwrap();
            assert_eq!(first.id, later.id);
            counts[w.iter().position(|x| x.id == first.id).unwrap()] += 1;
        }
        // σ = 27.
        assert!(counts.iter().all(|count| (890..=1110).contains(count)), "{counts:?}");
    }
}
