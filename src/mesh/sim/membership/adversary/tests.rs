//! A slice of the suite; `cargo bench --bench membership -- adversary 2000` is the whole.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::run;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// The seed of `SMG_SIM_SEED`, or 1 to `SMG_SIM_SEEDS`, or 1 to `usual`.
fn seeds(usual: u64) -> RangeInclusive<u64> {
    let many = 1..=variable("SMG_SIM_SEEDS").unwrap_or(usual);
    variable("SMG_SIM_SEED").map_or(many, |seed| seed..=seed)
}

#[test]
fn design_9_no_adversary_breaks_a_rule_and_every_fault_fires() {
    let mut fired: BTreeMap<&str, u64> = BTreeMap::new();
    let mut broken = Vec::new();
    for seed in seeds(20) {
        let outcome = run(seed, |_| {});
        if !outcome.violations.is_empty() {
            broken.push(format!("SMG_SIM_SEED={seed}: {:#?}", outcome.violations));
        }
        for (what, times) in outcome.fired {
            *fired.entry(what).or_default() += times;
        }
    }
    assert!(broken.is_empty(), "{} broke a rule:\n{}", broken.len(), broken.join("\n"));
    if variable("SMG_SIM_SEED").is_none() {
        let vain: Vec<_> = fired.iter().filter(|(_, times)| **times == 0).collect();
        assert!(vain.is_empty() && fired.len() >= 28, "never fired: {vain:?} of {fired:?}");
    }
}

#[test]
fn equal_seeds_give_equal_schedules() {
    assert_eq!(run(3, |_| {}).trace, run(3, |_| {}).trace);
    assert_ne!(run(3, |_| {}).trace, run(4, |_| {}).trace);
}
