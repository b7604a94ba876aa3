//! Elections in one thread: seeded, in virtual time, on clocks that run too fast and too slow.
//!
//! The machines are the ones that ship. The network loses, duplicates, delays and reorders messages and is cut between any
//! two nodes in either direction; processes crash (with their ballots or without), start twice in a row, and stall. What
//! membership would say is simplified: a node that is dead or cut off for 2.5 s is silent to the others. After each
//! step at most one node may hold a lease, in true time.

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use crate::mesh::{
    election::{
        Ballot, Election, ElectionConfig, Event, Timing,
        message::{Message, Transmit},
        voters::Voters,
    },
    node::NodeName,
    sim::stage::{DETECTED_AFTER, Stage, parted},
};

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes, 1 to 31.
    pub nodes: usize,
    /// Whether all are given the same voters; otherwise they find them.
    pub fixed: bool,
    /// Whether ballots survive a crash.
    pub durable: bool,
    /// Share of messages that are lost, 0 to 1.
    pub loss: f64,
    /// Share of messages that come twice, 0 to 1.
    pub duplicates: f64,
    /// Shortest and longest delay.
    pub delay: (Duration, Duration),
    /// Clocks run at 1 − drift to 1 + drift; the timing allows 0.1.
    pub drift: f64,
    /// Durations of the protocol.
    pub timing: Timing,
}

impl Default for Plan {
    /// Three nodes with fixed voters on a healthy LAN.
    fn default() -> Self {
        Self {
            nodes: 3,
            fixed: true,
            durable: false,
            loss: 0.0,
            duplicates: 0.0,
            delay: (Duration::from_micros(100), Duration::from_millis(2)),
            drift: 0.0,
            timing: Timing::default(),
        }
    }
}

/// One process, running or dead.
#[derive(Debug)]
struct Node {
    name: NodeName,
    machine: Option<Election>,
    /// Local seconds per true second.
    speed: f64,
    disk: Option<Ballot>,
    /// Saves under way: when they are on the disk, and which.
    saving: BTreeMap<Duration, (u64, Ballot)>,
    saves: u64,
    stalled_until: Duration,
    /// The earliest planned look at its timers.
    wake_at: Option<Duration>,
    inbox: Vec<(NodeName, Message)>,
    died_at: Option<Duration>,
    leaving: bool,
}

#[derive(Debug)]
enum Step {
    Deliver { from: usize, to: usize, message: Message },
    Wake(usize),
    Detect,
}

/// A cluster of election machines.
#[derive(Debug)]
pub struct Cluster {
    /// What it was made of; loss, delay and duplicates may be changed at any time.
    pub plan: Plan,
    /// Elections won since the start.
    pub elections: u64,
    /// Instants at which two nodes held a lease; more than none is a bug.
    pub violations: u64,
    /// Terms that two different nodes led, one after the other; only amnesia can bring that about.
    pub shared_terms: u64,
    nodes: Vec<Node>,
    stage: Stage<Step>,
    led: BTreeMap<u64, usize>,
    leader: Option<usize>,
}

impl Cluster {
    /// A cluster whose nodes start now.
    ///
    /// # Panics
    /// When the plan has no node, or more than a set of voters can have.
    #[must_use]
    pub fn new(plan: Plan, seed: u64) -> Self {
        let node = |n: usize| Node {
            name: format!("n{n:02}").parse().expect("a node name"),
            machine: None,
            speed: 1.0,
            disk: None,
            saving: BTreeMap::new(),
            saves: 0,
            stalled_until: Duration::ZERO,
            wake_at: None,
            inbox: Vec::new(),
            died_at: None,
            leaving: false,
        };
        let mut cluster = Self {
            nodes: (0..plan.nodes).map(node).collect(),
            elections: 0,
            violations: 0,
            shared_terms: 0,
            stage: Stage::new(seed),
            led: BTreeMap::new(),
            leader: None,
            plan,
        };
        for n in 0..cluster.nodes.len() {
            cluster.start(n);
        }
        cluster
    }

    /// True time since the start of the run.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.stage.now
    }

    /// Who holds the lease.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|n| self.holds_lease(*n))
    }

    /// The machine of a node; none while it is dead.
    #[must_use]
    pub fn machine(&self, n: usize) -> Option<&Election> {
        self.nodes[n].machine.as_ref()
    }

    /// The instant of now on a node's clock.
    #[must_use]
    pub fn local(&self, n: usize) -> Instant {
        self.stage.local(self.nodes[n].speed)
    }

    /// Faults and events that really happened, by name.
    #[must_use]
    pub fn faults(&self) -> &BTreeMap<&'static str, u64> {
        &self.stage.faults
    }

    /// A random generator for the schedule of faults.
    pub fn rng(&mut self) -> &mut Pcg64Mcg {
        &mut self.stage.rng
    }

    /// Starts the process of a node, or starts it anew; it knows what is on its disk.
    ///
    /// # Panics
    /// When the plan has more nodes than a set of voters can have.
    pub fn start(&mut self, n: usize) {
        let names: Vec<NodeName> = self.nodes.iter().map(|node| node.name.clone()).collect();
        self.nodes[n].speed = self.stage.speed(self.plan.drift);
        let config = ElectionConfig {
            node: names[n].clone(),
            fixed: self.plan.fixed.then(|| Voters::fixed(names.clone()).expect("as many as the plan may have")),
            expected: names.len(),
            saved: self.nodes[n].disk.clone().filter(|_| self.plan.durable),
            timing: self.plan.timing,
        };
        let (local, seed) = (self.local(n), self.stage.rng.random());
        let node = &mut self.nodes[n];
        node.machine = Some(Election::new(config, local, seed));
        (node.saves, node.died_at, node.leaving, node.stalled_until) = (0, None, false, Duration::ZERO);
        node.saving.clear();
        node.inbox.clear();
        self.detect();
        self.stage.plan(self.stage.now + DETECTED_AFTER, Step::Detect);
        self.settle(n);
    }

    /// Kills the process of a node; a save under way is lost.
    pub fn crash(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.machine = None;
        node.died_at = Some(self.stage.now);
        self.stage.plan(self.stage.now + DETECTED_AFTER, Step::Detect);
    }

    /// Stops a node for a while; what comes meanwhile is read afterwards.
    pub fn stall(&mut self, n: usize, time: Duration) {
        self.nodes[n].stalled_until = self.stage.now + time;
        self.stage.plan(self.stage.now + time, Step::Wake(n));
    }

    /// A node says that it leaves.
    pub fn leave(&mut self, n: usize) {
        let local = self.local(n);
        self.nodes[n].leaving = true;
        if let Some(machine) = &mut self.nodes[n].machine {
            machine.leave(local);
        }
        self.detect();
        self.settle(n);
    }

    /// Cuts what goes from one node to another.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.stage.cut(from, to, Step::Detect);
    }

    /// Cuts both ways between two groups.
    pub fn partition(&mut self, one: &BTreeSet<usize>) {
        parted(self.nodes.len(), one).for_each(|(from, to)| self.cut(from, to));
    }

    /// Takes every cut back.
    pub fn heal(&mut self) {
        self.stage.heal();
        self.detect();
    }

    /// Counts a fault that was planned.
    pub fn count(&mut self, fault: &'static str) {
        self.stage.count(fault);
    }

    /// Runs for a time.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.stage.now + time;
        self.run_until(until, |_| false);
    }

    /// Runs until a condition holds, at most until `limit`; whether it holds.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            let Some(at) = self.stage.next_at() else { return false };
            if at > limit {
                self.stage.now = limit;
                self.check();
                return done(self);
            }
            if let Some(step) = self.stage.next() {
                self.take(step);
            }
            self.check();
        }
        true
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Deliver { from, to, message } => {
                if !self.stage.vanishes(from, to) && self.nodes[to].machine.is_some() {
                    let from = self.nodes[from].name.clone();
                    self.nodes[to].inbox.push((from, message));
                    self.settle(to);
                }
            }
            Step::Wake(n) => self.settle(n),
            Step::Detect => self.detect(),
        }
    }

    /// Gives a node what waits for it and takes what it has to say.
    fn settle(&mut self, n: usize) {
        let (now, local) = (self.stage.now, self.local(n));
        let node = &mut self.nodes[n];
        let Some(machine) = &mut node.machine else { return };
        if now < node.stalled_until {
            return;
        }
        for (from, message) in node.inbox.drain(..) {
            machine.handle_message(local, &from, message);
        }
        while node.saving.first_key_value().is_some_and(|(at, _)| *at <= now) {
            let Some((_, (count, ballot))) = node.saving.pop_first() else { break };
            node.disk = Some(ballot);
            machine.handle_saved(local, count);
        }
        if machine.poll_timeout().is_some_and(|at| at <= local) {
            machine.handle_timeout(local);
        }
        self.drain(n);
    }

    fn drain(&mut self, n: usize) {
        let local = self.local(n);
        let durable = self.plan.durable;
        loop {
            let Some(machine) = &mut self.nodes[n].machine else { return };
            let ballots: Vec<Ballot> = std::iter::from_fn(|| machine.poll_ballot()).collect();
            if !durable && !ballots.is_empty() {
                self.nodes[n].saves += ballots.len() as u64;
                let count = self.nodes[n].saves;
                if let Some(machine) = &mut self.nodes[n].machine {
                    machine.handle_saved(local, count);
                }
                continue;
            }
            for ballot in ballots {
                self.nodes[n].saves += 1;
                let last = self.nodes[n].saving.last_key_value().map_or(self.stage.now, |(at, _)| *at);
                let at = last.max(self.stage.now) + Duration::from_micros(self.stage.rng.random_range(200..20_000));
                let count = self.nodes[n].saves;
                self.nodes[n].saving.insert(at, (count, ballot));
                self.stage.plan(at, Step::Wake(n));
            }
            break;
        }
        let Some(machine) = &mut self.nodes[n].machine else { return };
        let transmits: Vec<Transmit> = std::iter::from_fn(|| machine.poll_transmit()).collect();
        let events: Vec<Event> = std::iter::from_fn(|| machine.poll_event()).collect();
        let timeout = machine.poll_timeout();
        for event in events {
            if let Event::LeaderChanged { leader: Some(leader), term } = event
                && leader == self.nodes[n].name
            {
                self.elections += 1;
                if *self.led.entry(term).or_insert(n) != n {
                    self.shared_terms += 1;
                }
            }
        }
        for transmit in transmits {
            self.send(n, &transmit);
        }
        if let Some(at) = timeout {
            let at = self.stage.true_time(at, self.nodes[n].speed);
            if self.nodes[n].wake_at.is_none_or(|planned| planned <= self.stage.now || at < planned) {
                self.nodes[n].wake_at = Some(at);
                self.stage.plan(at, Step::Wake(n));
            }
        }
    }

    fn send(&mut self, from: usize, transmit: &Transmit) {
        let Some(to) = self.nodes.iter().position(|node| node.name == transmit.to) else { return };
        for at in self.stage.arrivals(self.plan.loss, self.plan.duplicates, self.plan.delay) {
            let message = transmit.message.clone();
            self.stage.plan(at, Step::Deliver { from, to, message });
        }
    }

    /// Tells every node what membership would say of the others.
    fn detect(&mut self) {
        for n in 0..self.nodes.len() {
            let standing = |other: usize| {
                let node = &self.nodes[other];
                self.stage.standing(n, other, node.died_at, node.leaving)
            };
            let others = (0..self.nodes.len()).filter(|other| *other != n);
            let peers = others.map(|other| (self.nodes[other].name.clone(), standing(other))).collect();
            let (local, now) = (self.local(n), self.stage.now);
            let node = &mut self.nodes[n];
            if let Some(machine) = node.machine.as_mut().filter(|_| now >= node.stalled_until) {
                machine.handle_peers(local, peers);
                self.drain(n);
            }
        }
    }

    fn holds_lease(&self, n: usize) -> bool {
        self.nodes[n].machine.as_ref().is_some_and(|machine| machine.is_leader(self.local(n)))
    }

    /// At most one lease at any instant. Leases begin with a step of their node and end by themselves, so it is enough to
    /// look after each step.
    fn check(&mut self) {
        let leaders = (0..self.nodes.len()).filter(|n| self.holds_lease(*n)).count();
        self.violations += u64::from(leaders > 1);
        self.leader = self.leader();
    }
}

/// Random faults until so many elections were won; the cluster as it is then. Schedules that elect nobody for long end
/// after an hour of virtual time for each hundred elections.
#[must_use]
pub fn storm(plan: Plan, seed: u64, elections: u64) -> Cluster {
    let loss = plan.loss;
    let mut cluster = Cluster::new(plan, seed);
    let limit = Duration::from_secs(3600 * (1 + elections / 100));
    while cluster.elections < elections && cluster.violations == 0 && cluster.stage.now < limit {
        let calm = Duration::from_millis(cluster.stage.rng.random_range(0..3000));
        cluster.run_for(calm);
        fault(&mut cluster);
        if cluster.stage.rng.random_bool(0.3) {
            cluster.heal();
            cluster.plan.loss = loss;
            for n in 0..cluster.nodes.len() {
                if cluster.nodes[n].machine.is_none() || cluster.nodes[n].leaving {
                    cluster.start(n);
                }
            }
        }
    }
    cluster
}

/// One fault; the leader, when there is one, is its victim more often than others.
fn fault(cluster: &mut Cluster) {
    let count = cluster.nodes.len();
    let any = cluster.stage.rng.random_range(0..count);
    let victim = cluster.leader().filter(|_| cluster.stage.rng.random_bool(0.5)).unwrap_or(any);
    match cluster.stage.rng.random_range(0..8) {
        0 => {
            cluster.count("crash");
            cluster.crash(victim);
        }
        1 => {
            cluster.count("restart");
            cluster.crash(victim);
            let gap = Duration::from_millis(cluster.stage.rng.random_range(0..300));
            cluster.run_for(gap);
            cluster.start(victim);
        }
        2 => {
            cluster.count("double restart");
            for _ in 0..2 {
                cluster.crash(victim);
                cluster.start(victim);
                let gap = Duration::from_millis(cluster.stage.rng.random_range(0..1500));
                cluster.run_for(gap);
            }
        }
        3 => {
            cluster.count("stall");
            let time = Duration::from_millis(cluster.stage.rng.random_range(50..4000));
            cluster.stall(victim, time);
        }
        4 => {
            cluster.count("partition");
            let one = (0..count).filter(|_| cluster.stage.rng.random_bool(0.5)).collect();
            cluster.partition(&one);
        }
        5 => {
            cluster.count("one-way cut");
            let other = cluster.stage.rng.random_range(0..count);
            if other != victim {
                cluster.cut(victim, other);
            }
        }
        6 => {
            cluster.count("heavy loss");
            cluster.plan.loss = cluster.stage.rng.random_range(0.0..0.4);
        }
        _ => {
            cluster.count("leave");
            cluster.leave(victim);
        }
    }
}
