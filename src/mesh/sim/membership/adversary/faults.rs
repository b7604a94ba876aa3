//! The faults that a schedule draws from.

use std::{net::SocketAddr, time::Duration};

use super::{super::network::Network, Adversary, Seeding};
/// Processes beside those of the first nodes that take a name that is taken, at most in one run.
const NAMESAKES_MAX: usize = 2;

/// Nodes that faults leave running at least.
const RUNNING_MIN: usize = 2;

/// What every run begins and ends with.
pub(super) fn fair_weather(network: &mut Network) {
    let plain = Network::default();
    network.loss = plain.loss;
    network.duplication = plain.duplication;
    network.reordering = plain.reordering;
    network.late = plain.late;
    network.latency = plain.latency;
    network.jitter = plain.jitter;
    network.mtu = plain.mtu;
    network.inbox_max = plain.inbox_max;
}

impl Adversary {
    /// One fault, of a random kind.
    pub(super) fn strike(&mut self) {
        let index = self.any();
        match self.cluster.random(18) {
            0 | 1 => self.die(index, false),
            2 => self.die(index, true),
            3..=5 => self.revive(),
            6 | 7 => self.stall(index),
            8 => self.cut_one_way(index),
            9 => self.split(),
            10 => self.cut_partly(),
            11 => self.cluster.network.heal(),
            12 => self.disturb_clock(index),
            13 => self.leave(index),
            14 => self.namesake(index),
            15 => self.narrow(index),
            _ => self.weather(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.fired.entry(what).or_default() += 1;
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.cluster.random(bound as u64)).unwrap_or(0)
    }

    fn any(&mut self) -> usize {
        let count = self.cluster.nodes.len();
        self.below(count)
    }

    fn addr(&self, index: usize) -> SocketAddr {
        self.cluster.nodes[index].addr
    }

    fn runs(&self, index: usize) -> bool {
        self.cluster.nodes[index].swim.is_some()
    }

    fn die(&mut self, index: usize, kernel_alive: bool) {
        if !self.runs(index) || self.cluster.running().count() <= RUNNING_MIN {
            return;
        }
        if kernel_alive {
            self.cluster.kill(index);
        } else {
            self.cluster.crash(index);
        }
    }

    /// A dead node starts again: with a right or a wrong clock, where it was or elsewhere, or as its own ghost.
    fn revive(&mut self) {
        let dead: Vec<_> = (0..self.cluster.nodes.len()).filter(|index| !self.runs(*index)).collect();
        if dead.is_empty() {
            return;
        }
        let index = dead[self.below(dead.len())];
        match self.cluster.random(5) {
            0 => {
                let off = i64::try_from(self.cluster.random(7_200_000)).unwrap_or(0) - 3_600_000;
                self.cluster.step_wall(index, off);
                self.start_again(index, None);
            }
            1 if self.seeding == Seeding::All => {
                let addr = self.cluster.fresh_addr();
                self.start_again(index, Some(addr));
                self.resolve();
            }
            2 if !self.is_namesake(index) => {
                self.seed(index);
                self.cluster.restart_amnesiac(index);
            }
            _ => self.start_again(index, None),
        }
    }

    /// Whether another node has the name of `index`.
    fn is_namesake(&self, index: usize) -> bool {
        let nodes = &self.cluster.nodes;
        nodes.iter().enumerate().any(|(other, node)| other != index && node.name == nodes[index].name)
    }

    /// Starts a dead node, unless that would make a second live process of its name.
    pub(super) fn start_again(&mut self, index: usize, addr: Option<SocketAddr>) {
        let nodes = &self.cluster.nodes;
        if nodes.iter().any(|node| node.swim.is_some() && node.name == nodes[index].name) {
            return;
        }
        self.seed(index);
        self.cluster.restart(index, addr, Duration::ZERO);
    }

    /// A starting node knows the others, as an operator sees to.
    fn seed(&mut self, index: usize) {
        if self.seeding == Seeding::Forgotten {
            self.cluster.nodes[index].seeds = self.cluster.nodes.iter().map(|node| node.addr).collect();
        }
    }

    /// A node that has met another forgets its seeds.
    pub(super) fn unseed(&mut self, index: usize) {
        let met = self.cluster.nodes[index].swim.as_ref().is_some_and(|swim| swim.members().count() > 1);
        if self.seeding == Seeding::Forgotten && met {
            let own = self.addr(index);
            self.cluster.reseed(index, &[own]);
        }
    }

    fn stall(&mut self, index: usize) {
        let long = self.cluster.random(6) == 0;
        let time = if long { 45_000 + self.cluster.random(20_000) } else { self.cluster.random(6000) };
        if self.runs(index) {
            self.cluster.stall(index, Duration::from_millis(time));
        }
    }

    fn cut_one_way(&mut self, index: usize) {
        let other = self.any();
        let (from, to) = (self.addr(index), self.addr(other));
        self.cluster.network.cut(from, to);
        self.count("one-way cuts");
    }

    /// Two sides that do not hear each other; one time in four for so long that they forget each other.
    fn split(&mut self) {
        let sides: Vec<bool> = (0..self.cluster.nodes.len()).map(|_| self.cluster.random(2) == 0).collect();
        let side = |wanted: bool| (0..sides.len()).filter(|index| sides[*index] == wanted).collect::<Vec<_>>();
        self.cluster.partition(&side(true), &side(false));
        self.count("partitions");
        if self.cluster.random(4) == 0 {
            self.live(Duration::from_secs(75));
            self.count("long partitions");
        }
    }

    /// A node loses some of the others, who keep each other.
    fn cut_partly(&mut self) {
        let index = self.any();
        let others: Vec<_> = (0..self.cluster.nodes.len()).filter(|other| *other != index).collect();
        let lost: Vec<_> = others.into_iter().filter(|_| self.cluster.random(2) == 0).collect();
        self.cluster.partition(&[index], &lost);
        self.count("partial partitions");
    }

    fn disturb_clock(&mut self, index: usize) {
        if !self.runs(index) {
            return;
        }
        if self.cluster.random(2) == 0 {
            let step = Duration::from_millis(self.cluster.random(20_000));
            self.cluster.step_clock(index, step);
        } else {
            let speed = 0.9 + self.cluster.random(21) as f64 / 100.0;
            self.cluster.set_speed(index, speed);
        }
    }

    fn leave(&mut self, index: usize) {
        let stalled = self.cluster.nodes[index].stalled_until.is_some();
        if self.runs(index) && !stalled && self.cluster.running().count() > RUNNING_MIN {
            self.cluster.leave(index);
        }
    }

    /// Another process starts under a name that is taken, elsewhere.
    fn namesake(&mut self, index: usize) {
        let beside = self.fired.get("namesakes").copied().unwrap_or(0);
        if self.seeding != Seeding::All || beside >= NAMESAKES_MAX as u64 {
            return;
        }
        let name = self.cluster.nodes[index].name.to_string();
        let seeds = self.cluster.nodes.iter().map(|node| node.addr).collect();
        self.cluster.add_named(&name, seeds);
        self.count("namesakes");
    }

    fn narrow(&mut self, index: usize) {
        let other = self.any();
        let (from, to) = (self.addr(index), self.addr(other));
        self.cluster.network.narrow(from, to);
        self.cluster.network.narrow(to, from);
    }

    fn weather(&mut self) {
        fair_weather(&mut self.cluster.network);
        let mut one_of =
            |choices: &[f64]| choices[usize::try_from(self.cluster.random(choices.len() as u64)).unwrap_or(0)];
        let (loss, duplication, reordering) =
            (one_of(&[0.0, 0.05, 0.1, 0.3, 0.6]), one_of(&[0.0, 0.1, 0.5]), one_of(&[0.0, 0.1, 0.5]));
        let (late, jitter_ms, inbox) =
            (one_of(&[0.0, 0.0, 0.01, 0.05]), one_of(&[0.3, 20.0, 150.0]), one_of(&[4096.0, 8.0, 64.0]));
        let network = &mut self.cluster.network;
        network.loss = loss;
        network.duplication = duplication;
        network.reordering = reordering;
        network.late = late;
        network.jitter = Duration::from_secs_f64(jitter_ms / 1000.0);
        network.inbox_max = inbox as usize;
    }
}
