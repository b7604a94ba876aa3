//! The yardstick: HashiCorp memberlist with its default LAN timing, as a model in virtual time.
//!
//! Modelled from published rules, not from code: SWIM (Das et al. 2002) §3.1 and §4, Lifeguard (Dadgar et al. 2018) §IV,
//! and the documented defaults of `DefaultLANConfig` ([`timing`]). A node probes one other per second over a shuffled
//! list, asks three relays and the stream path after 500 ms, and suspects at the end of the second. A suspicion is a
//! timer at every node that hears of it, shortened by confirmations; its end is the verdict. News rides on every packet
//! and on a gossip round each 200 ms to three nodes. Every 30 s whole lists are exchanged with one node.
//!
//! The network is that of [`membership`](super::membership), so that both detectors meet the same latency, loss and
//! cuts. Packets are not encoded and never too large: the model says nothing about bytes.

mod node;
pub mod timing;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use self::{
    node::{Message, Node, Output, Timer},
    timing::{GOSSIP_INTERVAL, PROBE_INTERVAL},
};
use super::membership::network::Network;
use crate::mesh::swim::Via;

pub use self::node::Status;

/// A cluster of modelled nodes in virtual time, formed from the start.
#[derive(Debug)]
pub struct Cluster {
    /// What the network does.
    pub network: Network,
    /// Verdicts of a node over another that ran and was not stalled.
    pub false_downs: u64,
    /// Suspicions by a node's own probes.
    pub suspicions: u64,
    nodes: Vec<Node>,
    /// When each is awake again, if it is stalled; what arrives meanwhile waits.
    stalled: Vec<Option<Duration>>,
    running: Vec<bool>,
    now: Duration,
    rng: Pcg64Mcg,
    queue: BTreeMap<(Duration, u64), Step>,
    steps: u64,
}

#[derive(Debug)]
enum Step {
    Deliver { to: usize, from: usize, via: Via, message: Message },
    Fire { node: usize, timer: Timer },
}

impl Cluster {
    /// `count` nodes that all know each other.
    #[must_use]
    pub fn new(seed: u64, count: usize) -> Self {
        let mut cluster = Self {
            network: Network::default(),
            false_downs: 0,
            suspicions: 0,
            nodes: Vec::new(),
            stalled: vec![None; count],
            running: vec![true; count],
            now: Duration::ZERO,
            rng: Pcg64Mcg::seed_from_u64(seed),
            queue: BTreeMap::new(),
            steps: 0,
        };
        for index in 0..count {
            cluster.nodes.push(Node::new(index, count, &mut cluster.rng));
            // Nodes do not tick together.
            for (timer, interval) in [(Timer::Probe, PROBE_INTERVAL), (Timer::Gossip, GOSSIP_INTERVAL)] {
                let first = interval.mul_f64(cluster.rng.random::<f64>());
                cluster.push(first, Step::Fire { node: index, timer });
            }
            let first = timing::push_pull_interval(count).mul_f64(cluster.rng.random::<f64>());
            cluster.push(first, Step::Fire { node: index, timer: Timer::PushPull });
        }
        cluster
    }

    /// The host dies: silence.
    pub fn crash(&mut self, index: usize) {
        self.running[index] = false;
    }

    /// The process does not run for `time`; what arrives waits.
    pub fn stall(&mut self, index: usize, time: Duration) {
        self.stalled[index] = Some(self.now + time);
    }

    /// How node `by` sees node `of`.
    #[must_use]
    pub fn status(&self, by: usize, of: usize) -> Status {
        self.nodes[by].status(of)
    }

    /// Whether every running node holds `index` dead.
    #[must_use]
    pub fn all_dead(&self, index: usize) -> bool {
        let others = (0..self.nodes.len()).filter(|by| *by != index && self.running[*by]);
        others.into_iter().all(|by| self.status(by, index) == Status::Dead)
    }

    /// Runs for `time`.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), step) = entry.remove_entry();
            self.now = at;
            self.step(step);
        }
        self.now = end;
    }

    /// Runs in steps of 10 ms until `done`, at most `limit`; the time it took.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let begin = self.now;
        while self.now - begin <= limit {
            if done(self) {
                return Some(self.now - begin);
            }
            self.run_for(Duration::from_millis(10));
        }
        None
    }

    fn push(&mut self, at: Duration, step: Step) {
        self.steps += 1;
        self.queue.insert((at, self.steps), step);
    }

    fn step(&mut self, step: Step) {
        let (Step::Deliver { to: index, .. } | Step::Fire { node: index, .. }) = step;
        if !self.running[index] {
            return;
        }
        if let Some(until) = self.stalled[index].filter(|until| *until > self.now) {
            // In the order of arrival, before anything later.
            return self.push(until, step);
        }
        let mut out = Output::default();
        let node = &mut self.nodes[index];
        match step {
            Step::Deliver { from, via, message, .. } => node.on_message(self.now, from, via, message, &mut out),
            Step::Fire { timer, .. } => node.on_timer(self.now, timer, &mut self.rng, &mut out),
        }
        self.carry_out(index, out);
    }

    fn carry_out(&mut self, from: usize, out: Output) {
        self.suspicions += out.suspected;
        for subject in out.declared_dead {
            let is_stalled = self.stalled[subject].is_some_and(|until| until + Duration::from_secs(1) > self.now);
            if self.running[subject] && !is_stalled && !self.network.is_cut() {
                self.false_downs += 1;
            }
        }
        for (at, timer) in out.timers {
            self.push(at, Step::Fire { node: from, timer });
        }
        for (to, via, message) in out.messages {
            for delay in self.network.plan(&mut self.rng, addr(from), addr(to), via, 0) {
                let step = Step::Deliver { to, from, via, message: message.clone() };
                self.push(self.now + delay, step);
            }
        }
    }
}

fn addr(index: usize) -> SocketAddr {
    let [_, high, mid, low] = u32::try_from(index + 1).unwrap_or(u32::MAX).to_be_bytes();
    SocketAddr::from(([10, high, mid, low], 7946))
}
