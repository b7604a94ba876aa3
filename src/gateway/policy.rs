//! How a worker is chosen: pure choices from a snapshot and a seed.
//!
//! A choice is made per request, so it allocates nothing, takes no lock, and costs at most one pass over the route's
//! workers (times the few that were tried). What varies from call to call is given: the counters of the workers, the
//! route's round robin cursor, and 64 random bits.

use std::sync::Arc;

use crate::{
    config::PolicyKind,
    gateway::{
        prefix::{Prompt, index::Tick},
        view::Route,
        worker::Worker,
    },
};

pub mod random;

pub mod round_robin;

pub mod power_of_two;

pub mod least_load;

pub mod consistent_hashing;

pub mod prefix_hash;

pub mod cache_aware;

pub mod manual;

use self::cache_aware::{Known, Verdict};

/// What a policy may look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// Value of `X-SMG-Routing-Key`, else the request's `user`, else nothing.
    pub routing_key: Option<&'a [u8]>,
    /// [`WorkerId::number`](crate::mesh::stores::WorkerId::number) of the worker that holds the session of the routing
    /// key; only looked up for policies that read it.
    pub held_by: Option<u64>,
    /// Names of the prompt, for the policies that look at it.
    pub prompt: Option<&'a Prompt>,
    /// Now, for the prefix index.
    pub tick: Tick,
}

/// A worker and how it came to be chosen.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The worker.
    pub worker: Arc<Worker>,
    /// What `cache_aware` found; none of the other policies, which say nothing of the prompt.
    pub verdict: Option<Verdict>,
}

/// Chooses a worker of the route that is not in `tried`; none when every one was tried or there is none.
///
/// When every ready worker was tried the caller may clear `tried` and ask again. `random` is 64 uniform bits, fresh
/// for each call.
#[must_use]
pub fn choose(route: &Route, facts: Facts<'_>, tried: &[Arc<Worker>], random: u64) -> Option<Chosen> {
    let candidates = Candidates { ready: &route.ready, tried };
    let chosen = match route.policy {
        PolicyKind::Random => random::choose(candidates, random),
        PolicyKind::RoundRobin => round_robin::choose(candidates, &route.cursor),
        PolicyKind::PowerOfTwo => power_of_two::choose(candidates, random),
        PolicyKind::LeastLoad => least_load::choose(candidates, random),
        PolicyKind::ConsistentHashing => match facts.routing_key {
            Some(key) => consistent_hashing::choose(candidates, key),
            None => power_of_two::choose(candidates, random),
        },
        PolicyKind::Manual => match facts.routing_key {
            Some(key) => manual::choose(candidates, key, facts.held_by),
            None => power_of_two::choose(candidates, random),
        },
        PolicyKind::PrefixHash => prefix_hash::choose(candidates, facts.prompt, random),
        PolicyKind::CacheAware => match known(route, facts) {
            Some(known) => {
                let (worker, verdict) = cache_aware::choose(candidates, known, random)?;
                return Some(Chosen { worker: worker.clone(), verdict: Some(verdict) });
            }
            None => power_of_two::choose(candidates, random),
        },
    };
    chosen.map(|worker| Chosen { worker: worker.clone(), verdict: None })
}

fn known<'a>(route: &'a Route, facts: Facts<'a>) -> Option<Known<'a>> {
    let affinity = route.affinity.as_ref()?;
    let (prompt, index) = (facts.prompt?, affinity.index.as_deref()?);
    Some(Known { prompt, index, rules: &affinity.rules, tick: facts.tick })
}

/// The workers to choose from: those of the route, without those that this request has already tried.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Ready workers of the route.
    pub ready: &'a [Arc<Worker>],
    /// Workers that are out of the question; a handful at most.
    pub tried: &'a [Arc<Worker>],
}

impl<'a> Candidates<'a> {
    /// The candidates in the route's order.
    pub fn iter(self) -> impl Iterator<Item = &'a Arc<Worker>> {
        self.ready.iter().filter(move |worker| self.admits(worker))
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> usize {
        if self.tried.is_empty() { self.ready.len() } else { self.iter().count() }
    }

    /// The candidate at `index` in the route's order.
    #[must_use]
    pub fn nth(self, index: usize) -> Option<&'a Arc<Worker>> {
        if self.tried.is_empty() { self.ready.get(index) } else { self.iter().nth(index) }
    }

    /// Whether `worker` was not tried. Compared by id, because a worker whose key changed is a new value.
    #[must_use]
    pub fn admits(self, worker: &Worker) -> bool {
        !self.tried.iter().any(|tried| tried.id == worker.id)
    }
}

/// Maps 32 uniform bits onto `0..n` by multiplication (Lemire 2019, §3, without the rejection: the bias is below
/// n/2³²). `n` is a number of workers, far below 2³².
pub(crate) fn below(bits: u32, n: usize) -> usize {
    ((u64::from(bits) * n as u64) >> 32) as usize
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014, §4): each input bit changes each output bit with probability
/// near one half.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::gateway::worker::{InFlight, tests::workers};

    /// How often each of the workers was chosen for `seeds` random arguments.
    pub(crate) fn tally(
        workers: &[Arc<Worker>],
        seeds: u64,
        choose: impl Fn(Candidates<'_>, u64) -> Option<&Arc<Worker>>,
    ) -> Vec<usize> {
        let mut counts = vec![0; workers.len()];
        for seed in 0..seeds {
            let chosen = choose(Candidates { ready: workers, tried: &[] }, mix(seed + 1)).unwrap();
            counts[workers.iter().position(|w| w.id == chosen.id).unwrap()] += 1;
        }
        counts
    }

    /// Puts the given number of requests in flight at each worker.
    pub(crate) fn load(workers: &[Arc<Worker>], loads: &[usize]) -> Vec<InFlight> {
        workers.iter().zip(loads).flat_map(|(worker, n)| (0..*n).map(|_| worker.begin())).collect()
    }

    #[test]
    fn no_candidate_no_choice() {
        let three = workers(3);
        for policy in PolicyKind::ALL {
            for (case, ready, tried) in [
                ("no worker", &[][..], &[][..]),
                ("all tried", &three[..], &three[..]),
                ("one", &three[..1], &three[..1]),
            ] {
                let route = Route::new("m".into(), policy, ready.to_vec());
                for key in [None, Some(&b"k"[..])] {
                    assert!(
                        choose(&route, Facts { routing_key: key, ..Facts::default() }, tried, 7).is_none(),
                        "{case} {policy:?}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_choice_is_ready_and_untried(
            n in 1usize..12,
            tried in proptest::collection::vec(any::<bool>(), 12),
            loads in proptest::collection::vec(0usize..5, 12),
            random: u64,
            key in proptest::option::of("[a-z]{0,8}"),
        ) {
            let all = workers(n);
            let _in_flight = load(&all, &loads);
            let tried: Vec<_> = all.iter().zip(&tried).filter(|(_, t)| **t).map(|(w, _)| w.clone()).collect();
            for policy in PolicyKind::ALL {
                let route = Route::new("m".into(), policy, all.clone());
                let key = key.as_deref().map(str::as_bytes);
                let facts = Facts { routing_key: key, held_by: Some(all[0].id_number()), ..Facts::default() };
                match choose(&route, facts, &tried, random) {
                    Some(chosen) => prop_assert!(tried.iter().all(|t| t.id != chosen.worker.id), "{policy:?}"),
                    None => prop_assert_eq!(tried.len(), n, "{:?}", policy),
                }
            }
        }
    }
}
