//! From what the policy wants to what the breakers allow.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::gateway::{
    breaker::Permit,
    policy::{self, Chosen, Facts},
    view::Route,
    worker::Worker,
};

/// Chooses a worker by the route's policy among those that are not in `tried` and whose breakers let the request pass;
/// one that other gateways warn of (see [`hint`](crate::gateway::hint)) only now and then, or when there is no other. The
/// permit is to be settled.
///
/// While every breaker is closed and nobody warns this costs two reads more than the policy alone; each worker that is
/// passed over costs another choice.
#[must_use]
pub fn choose(
    route: &Route,
    facts: Facts<'_>,
    tried: &[Arc<Worker>],
    random: u64,
    now: Instant,
) -> Option<(Chosen, Permit)> {
    let chosen = policy::choose(route, facts, tried, random)?;
    if chosen.worker.hint.turns_away(random, now) {
        return choose_again(route, facts, tried, chosen, random, now);
    }
    match chosen.worker.breaker.admit(now) {
        Some(permit) => Some((chosen, permit)),
        None => choose_again(route, facts, tried, chosen, random, now),
    }
}

#[cold]
fn choose_again(
    route: &Route,
    facts: Facts<'_>,
    tried: &[Arc<Worker>],
    passed: Chosen,
    random: u64,
    now: Instant,
) -> Option<(Chosen, Permit)> {
    let mut out = tried.to_vec();
    out.push(passed.worker.clone());
    let mut passed = vec![passed];
    while let Some(chosen) = policy::choose(route, facts, &out, random) {
        if !chosen.worker.hint.is_on(now)
            && let Some(permit) = chosen.worker.breaker.admit(now)
        {
            return Some((chosen, permit));
        }
        out.push(chosen.worker.clone());
        passed.push(chosen);
    }
    // Nobody is left but those that others warn of: what they say is no reason to refuse.
    let mut warned = passed.into_iter().filter(|chosen| chosen.worker.hint.is_on(now));
    warned.find_map(|chosen| chosen.worker.breaker.admit(now).map(|permit| (chosen, permit)))
}

/// Whether there is a worker that is not in `tried` and whose breaker would let a request pass.
#[must_use]
pub fn has_another(route: &Route, tried: &[Arc<Worker>], now: Instant) -> bool {
    let is_tried = |worker: &Worker| tried.iter().any(|tried| tried.id == worker.id);
    route.ready.iter().any(|worker| !is_tried(worker) && worker.breaker.admits(now))
}

/// After how long the first breaker of the route lets a request pass, at least a second; none when the route has no
/// worker.
#[must_use]
pub fn retry_after(route: &Route, now: Instant) -> Option<Duration> {
    let soonest = route.ready.iter().map(|worker| worker.breaker.open_for(now)).min()?;
    Some(soonest.max(Duration::from_secs(1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        config::{self, PolicyKind},
        gateway::{
            breaker::{Outcome, tests::rules},
            worker::tests::spec,
        },
    };

    /// Workers of which the named ones have opened their breakers.
    fn workers(n: usize, open: &[usize], now: Instant) -> Vec<Arc<Worker>> {
        let rules = config::Breaker { failure_threshold: 1, ..rules() };
        let worker = |i: usize| {
            let worker = Worker::of_spec(&spec(&format!("http://w{i}:1")), None).unwrap().with_breaker(&rules);
            if open.contains(&i) {
                worker.breaker.settle(worker.breaker.admit(now).unwrap(), Outcome::Failure, now);
            }
            Arc::new(worker)
        };
        (0..n).map(worker).collect()
    }

    #[test]
    fn open_breakers_are_passed_over_by_every_policy() {
        let now = Instant::now();
        for policy in PolicyKind::ALL {
            for (case, n, open, tried, expected) in [
                ("all closed", 3, vec![], vec![], vec![0, 1, 2]),
                ("one open", 3, vec![1], vec![], vec![0, 2]),
                ("one open, one tried", 3, vec![1], vec![0], vec![2]),
                ("one left", 4, vec![0, 1, 3], vec![], vec![2]),
                ("the only one that is not tried is open", 2, vec![1], vec![0], vec![]),
                ("all open", 3, vec![0, 1, 2], vec![], vec![]),
                ("no worker", 0, vec![], vec![], vec![]),
            ] {
                let all = workers(n, &open, now);
                let tried: Vec<_> = tried.into_iter().map(|i: usize| all[i].clone()).collect();
                let route = Route::new("m".into(), policy, all.clone());
                let mut chosen: Vec<usize> = Vec::new();
                for seed in 0..200 {
                    let key = format!("key {seed}");
                    let facts = Facts { routing_key: Some(key.as_bytes()), ..Facts::default() };
                    let found = choose(&route, facts, &tried, policy::mix(seed + 1), now);
                    chosen.extend(found.and_then(|(chosen, _)| all.iter().position(|w| w.id == chosen.worker.id)));
                }
                chosen.sort_unstable();
                chosen.dedup();
                assert_eq!(chosen, expected, "{case} {policy}");
                assert_eq!(has_another(&route, &tried, now), !expected.is_empty(), "{case} {policy}");
            }
        }
    }

    #[test]
    fn workers_that_others_warn_of_are_the_last_choice() {
        let (now, wall_ms) = (Instant::now(), 1_000_000);
        for policy in PolicyKind::ALL {
            for (case, warned, open, often, seldom) in [
                ("one of three", vec![1], vec![], vec![0, 2], vec![1]),
                ("the others are open", vec![1], vec![0, 2], vec![1], vec![]),
                ("all", vec![0, 1, 2], vec![], vec![0, 1, 2], vec![]),
                ("warned of and open", vec![1], vec![1], vec![0, 2], vec![]),
            ] {
                let all = workers(3, &open, now);
                warned.iter().for_each(|&i: &usize| all[i].hint.set(wall_ms + 60_000, now, wall_ms));
                let route = Route::new("m".into(), policy, all.clone());
                let mut counts = [0; 3];
                for seed in 0..600 {
                    let key = format!("key {seed}");
                    let facts = Facts { routing_key: Some(key.as_bytes()), ..Facts::default() };
                    let (chosen, _) = choose(&route, facts, &[], policy::mix(seed + 1), now).unwrap();
                    counts[all.iter().position(|w| w.id == chosen.worker.id).unwrap()] += 1;
                }
                for (index, count) in counts.into_iter().enumerate() {
                    let expected = if often.contains(&index) {
                        60..=600
                    } else if seldom.contains(&index) {
                        1..=40
                    } else {
                        0..=0
                    };
                    assert!(expected.contains(&count), "{case} {policy}: {counts:?}");
                }
            }
        }
    }

    #[test]
    fn the_first_breaker_to_let_pass_tells_when_to_come_again() {
        let now = Instant::now();
        let later = now + Duration::from_secs(20);
        let route = |workers| Route::new("m".into(), PolicyKind::Random, workers);
        let two = route([workers(1, &[0], now), workers(1, &[0], later)].concat());
        assert_eq!(retry_after(&two, later).unwrap().as_secs(), 40);
        assert_eq!(retry_after(&two, now + Duration::from_secs(60)).unwrap().as_secs(), 1, "its trials are under way");
        assert_eq!(retry_after(&route(vec![]), now), None);
    }
}
