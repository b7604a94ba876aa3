//! The adversarial suite over many seeds: how often each fault fired, how long agreement took, and what was broken.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use smg::mesh::sim::membership::adversary::{Outcome, run};

/// Runs seeds 1 to `seeds` on two threads; whether all were good.
pub fn suite(seeds: u64) -> bool {
    let (began, next) = (Instant::now(), AtomicU64::new(1));
    let work = || {
        let mut found = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > seeds {
                return found;
            }
            let outcome = run(seed, |_| {});
            if !outcome.violations.is_empty() {
                println!("seed {seed}: {:#?}", outcome.violations);
            }
            found.push(outcome);
        }
    };
    let mut outcomes = std::thread::scope(|scope| {
        let halves = [scope.spawn(work), scope.spawn(work)];
        halves.into_iter().flat_map(|half| half.join().expect("a run does not panic")).collect::<Vec<_>>()
    });
    outcomes.sort_by_key(|outcome| outcome.seed);
    report(&outcomes, began.elapsed())
}

fn report(outcomes: &[Outcome], took: Duration) -> bool {
    let mut fired: BTreeMap<&str, u64> = BTreeMap::new();
    for (what, times) in outcomes.iter().flat_map(|outcome| &outcome.fired) {
        *fired.entry(what).or_default() += times;
    }
    for (what, times) in &fired {
        println!("  {what:20} {times}");
    }
    let mut settled: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.settled).collect();
    let bad: Vec<_> = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).map(|bad| bad.seed).collect();
    let hash = outcomes.iter().fold(0u64, |hash, outcome| hash.rotate_left(1) ^ outcome.trace);
    println!(
        "adversary: {} seeds in {took:.0?}, {} broke a rule {bad:?}; agreement after the last fault {}   [trace {hash:016x}]",
        outcomes.len(),
        bad.len(),
        super::percentiles(&mut settled),
    );
    bad.is_empty() && fired.values().all(|times| *times > 0)
}
