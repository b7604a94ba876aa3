//! By the table of sessions: a routing key stays with the worker that served it last, whatever workers come.
//!
//! The table is replicated, so a session stays where it is through any gateway, and when the one that began it dies. A
//! key that is not in the table yet goes where [`consistent_hashing`] says: two gateways, or two cores, that see a new key
//! at the same moment agree without a word. When the worker of a session is not ready, or has failed this request, the
//! next in the key's own order takes over for good.

use std::sync::Arc;

use super::{Candidates, consistent_hashing};
use crate::gateway::worker::Worker;

/// The candidate that holds the session, else the key's home.
#[must_use]
pub fn choose<'a>(candidates: Candidates<'a>, key: &[u8], held_by: Option<u64>) -> Option<&'a Arc<Worker>> {
    let holder = held_by.and_then(|number| candidates.iter().find(|worker| worker.id_number() == number));
    holder.or_else(|| consistent_hashing::choose(candidates, key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gateway::worker::tests::workers;

    #[test]
    fn the_holder_serves_while_it_can() {
        let all = workers(4);
        for n in 0..32 {
            let key = format!("session-{n}");
            let home = consistent_hashing::choose(Candidates { ready: &all, tried: &[] }, key.as_bytes()).unwrap();
            let other = all.iter().find(|worker| worker.id != home.id).unwrap();
            let rest: Vec<_> = all.iter().filter(|worker| worker.id != other.id).cloned().collect();
            for (case, ready, tried, held_by, expected) in [
                ("a new key goes home", &all, None, None, home),
                ("a held one stays", &all, None, Some(other), other),
                ("its worker failed this request", &all, Some(other), Some(other), home),
                ("its worker is not ready", &rest, None, Some(other), home),
            ] {
                let tried: Vec<_> = tried.into_iter().cloned().collect();
                let held_by = held_by.map(|worker: &Arc<Worker>| worker.id_number());
                let chosen = choose(Candidates { ready, tried: &tried }, key.as_bytes(), held_by).unwrap();
                assert_eq!(chosen.id, expected.id, "{key} {case}");
            }
        }
    }
}
