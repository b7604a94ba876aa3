//! Random schedules of every fault that the simulator knows, each by one seed: the adversarial suite of DESIGN §9.
//!
//! A run forms a cluster of 3 to 7 nodes, throws 8 to 24 faults at it with random pauses (`faults`), then mends the
//! network, ends stalls and drifts, and starts about half of the dead again. From the last fault on it must agree within
//! [`settling_time_max`], hold its peace for a while, forget who stayed dead, and break none of the rules of
//! [`super::checker`] at any time. `cargo bench --bench membership -- adversary 2000` runs many seeds;
//! `SMG_SIM_SEED=… cargo test adversary` repeats one.

mod faults;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use super::Cluster;
use crate::mesh::{
    node::NodeName,
    swim::{Swim, SwimConfig, health::SCORE_MAX, rtt::RTO_MAX},
};

/// How a DOWN node is forgotten in these runs, so that whole lives fit into them; the defaults are an hour and a day.
const FORGET_DOWN_AFTER: Duration = Duration::from_secs(40);
const REMEMBER_FORGOTTEN_FOR: Duration = Duration::from_secs(600);

/// After it has agreed a cluster must stay so for this long.
const PEACE_TIME: Duration = Duration::from_secs(15);

/// What a run showed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// From the last fault to agreement; none when that took longer than allowed.
    pub settled: Option<Duration>,
    /// The rules that were broken; none in a good run.
    pub violations: Vec<String>,
    /// How often each fault fired, by name.
    pub fired: BTreeMap<&'static str, u64>,
    /// Hash over all that happened.
    pub trace: u64,
}

/// How the nodes of a run find each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Seeding {
    /// Everybody lists everybody, at their present addresses, and forgets the dead soon.
    All,
    /// Nobody has seeds once it has joined: only contact with DOWN peers brings sides together. Addresses stay.
    Forgotten,
}

/// Longest time from the last fault to agreement among `names` nodes: somebody who died at the end is found dead by the
/// slowest verdict, and those that hold each other DOWN meet, of whom each asks one per probe interval at random (all of
/// them within 14 intervals per name but for one in 10⁶).
#[must_use]
pub fn settling_time_max(config: &SwimConfig, names: usize) -> Duration {
    config.verdict_time_max(names) + config.probe_interval * 14 * u32::try_from(names).unwrap_or(u32::MAX)
}

/// Runs the schedule of `seed`; `configure` changes the settings of every node.
#[must_use]
pub fn run(seed: u64, configure: fn(&mut SwimConfig)) -> Outcome {
    let mut adversary = Adversary::new(seed, configure);
    let rounds = 8 + adversary.cluster.random(17);
    for _ in 0..rounds {
        adversary.strike();
        let pause = Duration::from_millis(adversary.cluster.random(6000));
        adversary.live(pause);
    }
    adversary.mend();
    let settled = adversary.settle();
    adversary.outcome(settled)
}

/// A cluster, and who does what to it.
struct Adversary {
    cluster: Cluster,
    seeding: Seeding,
    /// Faults that the cluster does not count itself.
    fired: BTreeMap<&'static str, u64>,
}

impl Adversary {
    fn new(seed: u64, configure: fn(&mut SwimConfig)) -> Self {
        let mut cluster = Cluster::new(seed);
        let seeding = if cluster.random(3) == 0 { Seeding::Forgotten } else { Seeding::All };
        cluster.setup = configure;
        cluster.configure(match seeding {
            Seeding::All => |config| {
                config.forget_down_after = FORGET_DOWN_AFTER;
                config.forget_left_after = FORGET_DOWN_AFTER;
                config.remember_forgotten_for = REMEMBER_FORGOTTEN_FOR;
            },
            Seeding::Forgotten => |_| {},
        });
        cluster.checker.is_strict = true;
        let count = 3 + cluster.random(5);
        for _ in 0..count {
            let seeds = cluster.nodes.first().map(|node| node.addr).into_iter().collect();
            cluster.add(seeds);
        }
        let mut adversary = Self { cluster, seeding, fired: BTreeMap::new() };
        adversary.live(Duration::from_secs(5));
        adversary.resolve();
        adversary
    }

    /// Runs for `time`, in which processes that have left or lost their name exit.
    fn live(&mut self, time: Duration) {
        let end = self.cluster.now() + time;
        while self.cluster.now() < end {
            let step = Duration::from_millis(250).min(end - self.cluster.now());
            self.cluster.run_for(step);
            self.exits();
        }
    }

    fn exits(&mut self) {
        for index in self.cluster.running().collect::<Vec<_>>() {
            let node = &mut self.cluster.nodes[index];
            let over = node.swim.as_ref().is_some_and(Swim::is_over);
            node.events.clear();
            if over {
                self.cluster.crash(index);
            } else if self.cluster.nodes[index].seeds.len() > 1 {
                self.unseed(index);
            }
        }
    }

    /// What the seeds' names stand for now.
    fn resolve(&mut self) {
        let all: Vec<_> = self.cluster.nodes.iter().map(|node| node.addr).collect();
        for index in 0..self.cluster.nodes.len() {
            match self.seeding {
                Seeding::All => self.cluster.reseed(index, &all),
                Seeding::Forgotten => self.unseed(index),
            }
        }
    }

    /// The last fault ends.
    fn mend(&mut self) {
        let cluster = &mut self.cluster;
        cluster.network.heal();
        faults::fair_weather(&mut cluster.network);
        for index in 0..cluster.nodes.len() {
            cluster.set_speed(index, 1.0);
        }
        for index in 0..self.cluster.nodes.len() {
            if self.cluster.nodes[index].swim.is_none() && self.cluster.random(2) == 0 {
                self.start_again(index, None);
            }
        }
        self.resolve();
        let stalls = self.cluster.nodes.iter().filter_map(|node| node.stalled_until).max();
        if let Some(rest) = stalls.map(|until| until.saturating_duration_since(self.cluster.now())) {
            self.live(rest);
        }
    }

    /// From the last fault to agreement, then peace; none without agreement in time.
    fn settle(&mut self) -> Option<Duration> {
        let names: std::collections::BTreeSet<_> = self.cluster.nodes.iter().map(|node| &node.name).collect();
        let config = SwimConfig::new(self.cluster.nodes[0].name.clone(), self.cluster.nodes[0].addr, 0);
        let limit = settling_time_max(&config, names.len());
        let begin = self.cluster.now();
        let first = self.agree(limit)?;
        // Late copies that are still under way are faults too: what they disturb is mended within the same time.
        let late = self.cluster.network.last_arrival.filter(|_| self.cluster.faults().late > 0);
        if let Some(rest) = late.map(|at| at.saturating_duration_since(self.cluster.now())) {
            self.live(rest.min(self.cluster.network.late_max));
            self.agree(limit)?;
        }
        // So do the probes that were under way.
        self.live(RTO_MAX * 3 * (1 + SCORE_MAX));
        self.agree(limit)?;
        let suspicions = self.cluster.checker.suspicions;
        self.live(PEACE_TIME);
        let new = self.cluster.checker.suspicions - suspicions;
        if !self.cluster.is_converged() || new > 0 {
            let text = format!("no peace kept: {new} suspicions,\n{}", self.cluster.describe());
            self.cluster.checker.violate(text);
        }
        self.forgotten();
        Some(first.saturating_duration_since(begin))
    }

    /// Runs until all agree, at most `limit`; when that was.
    fn agree(&mut self, limit: Duration) -> Option<std::time::Instant> {
        let end = self.cluster.now() + limit;
        while !self.cluster.is_converged() {
            if self.cluster.now() >= end {
                return None;
            }
            self.live(Duration::from_millis(100));
        }
        Some(self.cluster.now())
    }

    /// Whoever stayed dead is forgotten by everybody after the documented time.
    fn forgotten(&mut self) {
        if self.seeding != Seeding::All {
            return;
        }
        self.live(FORGET_DOWN_AFTER + Duration::from_secs(2));
        let alive: std::collections::BTreeSet<NodeName> =
            self.cluster.running().map(|index| self.cluster.nodes[index].name.clone()).collect();
        for index in self.cluster.running().collect::<Vec<_>>() {
            let Some(swim) = &self.cluster.nodes[index].swim else { continue };
            let kept = swim.members().filter(|member| !alive.contains(&member.name));
            let kept: Vec<_> = kept.map(|member| format!("{} {}", member.name, member.status)).collect();
            if !kept.is_empty() {
                let text = format!("{} still lists {}", self.cluster.nodes[index].name, kept.join(", "));
                self.cluster.checker.violate(text);
            }
        }
    }

    fn outcome(mut self, settled: Option<Duration>) -> Outcome {
        if settled.is_none() {
            let text = format!("no agreement in time:\n{}", self.cluster.describe());
            self.cluster.checker.violate(text);
        }
        let (faults, checker) = (&self.cluster.network.faults, &self.cluster.checker);
        let counted = [
            ("lost", faults.lost),
            ("duplicated", faults.duplicated),
            ("reordered", faults.reordered),
            ("late copies", faults.late),
            ("cut", faults.cut),
            ("MTU holes", faults.too_large),
            ("full queues", faults.overflowed),
            ("refusals", faults.refusals),
            ("crashes", faults.crashes),
            ("restarts", faults.restarts),
            ("moves", faults.moves),
            ("amnesia", faults.amnesias),
            ("stalls", faults.stalls),
            ("clock steps", faults.clock_steps),
            ("drifts", faults.drifts),
            ("leaves", faults.leaves),
            ("suspicions", checker.suspicions),
            ("refutations", checker.refutations),
            ("verdicts", checker.true_downs),
            ("epochs raised", checker.epochs_raised),
            ("names yielded", checker.names_taken),
            ("left", checker.left),
            ("forgotten", checker.forgotten),
        ];
        self.fired.extend(counted);
        Outcome {
            seed: self.cluster.seed,
            settled,
            violations: std::mem::take(&mut self.cluster.checker.violations),
            fired: self.fired,
            trace: self.cluster.trace.hash(),
        }
    }
}
