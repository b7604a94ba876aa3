//! A slice of the suite; `cargo bench --bench membership -- adversary 2000` is the whole.
//!
//! `SMG_SIM_SEEDS=1000 cargo test --lib a_missing_rule_is_noticed -- --nocapture` switches off one rule after the other and
//! prints the first of the seeds that noticed; without the variable two rules are tried.

#![allow(clippy::print_stdout)]

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::run;
use crate::mesh::swim::{SwimConfig, rule::Rule};

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
    for seed in seeds(40) {
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

/// A change of the settings of every node.
type Setup = fn(&mut SwimConfig);

/// Each rule, and the setting that switches it off; those first that a seed notices soon.
const MUTATIONS: [(Rule, Setup); 10] = [
    (Rule::StatusOrder, |config| config.without = Some(Rule::StatusOrder)),
    (Rule::EpochOrder, |config| config.without = Some(Rule::EpochOrder)),
    (Rule::Verification, |config| config.without = Some(Rule::Verification)),
    (Rule::Refutation, |config| config.without = Some(Rule::Refutation)),
    (Rule::IncarnationOrder, |config| config.without = Some(Rule::IncarnationOrder)),
    (Rule::Floor, |config| config.without = Some(Rule::Floor)),
    (Rule::TellForgotten, |config| config.without = Some(Rule::TellForgotten)),
    (Rule::Contest, |config| config.without = Some(Rule::Contest)),
    (Rule::RaiseEpoch, |config| config.without = Some(Rule::RaiseEpoch)),
    (Rule::DownContact, |config| config.without = Some(Rule::DownContact)),
];

/// The first seed that notices the mutation, and what it noticed first.
fn noticed(seeds: RangeInclusive<u64>, mutate: Setup) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| Some((seed, run(seed, mutate).violations.into_iter().next()?)))
}

#[test]
fn a_missing_rule_is_noticed() {
    let all = variable("SMG_SIM_SEEDS").is_some();
    let mut unnoticed = Vec::new();
    for (rule, mutate) in MUTATIONS.into_iter().take(if all { MUTATIONS.len() } else { 2 }) {
        match noticed(seeds(100), mutate) {
            Some((seed, what)) => {
                println!("without {rule:?}: seed {seed}: {}", what.lines().next().unwrap_or_default());
            }
            None => unnoticed.push(rule),
        }
    }
    assert_eq!(unnoticed, [], "of all seeds none noticed that these rules were off");
}
