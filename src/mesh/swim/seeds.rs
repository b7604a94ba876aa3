//! Getting in, and staying in touch with whom nobody hears: the configured seeds and peers that are DOWN (DESIGN §3.10).
//!
//! A node in INIT asks every seed at 100 ms, 200 ms, … up to once a second, for ever. A node that has joined asks one
//! silent seed and one DOWN peer per probe interval, for ever, so that partitions heal by themselves.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{RngExt, seq::IndexedRandom};

use super::{Body, Member, Swim, Via, rule::Rule};
use crate::mesh::node::{NodeName, NodeStatus};

/// Seed addresses at most; further ones are left out.
pub(super) const SEEDS_MAX: usize = 256;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Seed {
    addr: SocketAddr,
    /// Number of the last question.
    asked: u64,
    /// Who answered: an address may be one of several of a node, or of a load balancer.
    answered: Option<NodeName>,
}

/// The configured seeds.
#[derive(Debug)]
pub(super) struct Seeds {
    list: Vec<Seed>,
    pub(super) due: Instant,
    backoff: Duration,
}

impl Seeds {
    pub(super) fn new(now: Instant) -> Self {
        Self { list: Vec::new(), due: now, backoff: BACKOFF_MIN }
    }

    /// Whether `seq` is the number of a question to a seed.
    pub(super) fn asked(&self, seq: u64) -> bool {
        self.list.iter().any(|seed| seed.asked == seq && seq != 0)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }
}

impl Swim {
    /// Takes the addresses of `--mesh-peer-urls`, each time that they were resolved. The own address is ignored; when no
    /// other remains the node is ALIVE at once. An empty list says nothing. At most 256 addresses are kept.
    pub fn handle_seeds(&mut self, now: Instant, seeds: &[SocketAddr]) {
        if seeds.is_empty() || self.name_taken {
            return;
        }
        let mut old = std::mem::take(&mut self.seeds.list);
        for addr in seeds.iter().filter(|addr| **addr != self.config.addr) {
            if self.seeds.list.len() < SEEDS_MAX && self.seeds.list.iter().all(|seed| seed.addr != *addr) {
                let known = old.iter().position(|seed| seed.addr == *addr).map(|at| old.swap_remove(at));
                let seed = known.unwrap_or(Seed { addr: *addr, asked: 0, answered: None });
                if seed.asked == 0 {
                    self.seeds.due = now;
                }
                self.seeds.list.push(seed);
            }
        }
        self.join_if_alone(now);
    }

    /// Whether a seed has not been found among the live members: the driver resolves host names anew while this holds.
    #[must_use]
    pub fn has_silent_seeds(&self) -> bool {
        self.seeds.list.is_empty() || self.seeds.list.iter().any(|seed| self.is_silent(seed))
    }

    fn is_silent(&self, seed: &Seed) -> bool {
        let answered = seed.answered.as_ref().and_then(|name| self.members.get(name));
        !answered.is_some_and(Member::is_live) && self.members.at(seed.addr).is_none()
    }

    /// When seeds and peers that are DOWN are due; none while there is nobody to ask, so that an idle node need not wake for it.
    /// The clock goes on meanwhile, with each other timer: whoever falls silent is asked within an interval, and by nodes
    /// that saw it at the same time not at the same time.
    pub(super) fn seeds_timeout(&self) -> Option<Instant> {
        let is_joining = self.me().status == NodeStatus::Init;
        let is_down = |member: &Member| member.status == NodeStatus::Down;
        let has_whom =
            is_joining || self.members.gone().any(is_down) || self.seeds.list.iter().any(|seed| self.is_silent(seed));
        has_whom.then_some(self.seeds.due)
    }

    fn join_if_alone(&mut self, now: Instant) {
        let me = &self.config.node;
        if self.seeds.list.iter().all(|seed| seed.answered.as_ref() == Some(me)) {
            self.join(now);
        }
    }

    /// Asks whom it is time to ask.
    pub(super) fn run_seeds(&mut self, now: Instant) {
        if self.seeds.due > now {
            return;
        }
        let silent = (0..self.seeds.list.len()).filter(|at| self.is_silent(&self.seeds.list[*at]));
        let silent: Vec<usize> = silent.collect();
        if self.me().status == NodeStatus::Init {
            for at in silent {
                self.ask_seed(now, at);
            }
            let jitter = self.rng.random_range(0.9..1.1);
            self.seeds.due = now + self.seeds.backoff.mul_f64(jitter);
            self.seeds.backoff = (self.seeds.backoff * 2).min(BACKOFF_MAX);
            return;
        }
        if let Some(at) = silent.choose(&mut self.rng).copied() {
            self.ask_seed(now, at);
        }
        let down = self.members.gone().filter(|member| member.status == NodeStatus::Down);
        let down: Vec<_> = down.map(|member| (member.name.clone(), member.addr)).collect();
        if let Some((name, addr)) = down.choose(&mut self.rng).filter(|_| self.config.follows(Rule::DownContact)) {
            let seq = self.next_seq();
            self.ping(now, *addr, Via::Datagram, seq, name);
        }
        // Jitter keeps nodes that started together from asking together.
        let jitter = self.rng.random_range(0.9..1.1);
        self.seeds.due = now + self.config.probe_interval.mul_f64(jitter);
    }

    fn ask_seed(&mut self, now: Instant, at: usize) {
        let seq = self.next_seq();
        self.seeds.list[at].asked = seq;
        self.send_own_record(now, self.seeds.list[at].addr, seq);
    }

    /// An answer to a question to a seed, maybe by this node itself.
    pub(super) fn on_seed_answer(&mut self, now: Instant, seq: u64, by: &NodeName) {
        if let Some(seed) = self.seeds.list.iter_mut().find(|seed| seed.asked == seq) {
            seed.answered = Some(by.clone());
            self.join_if_alone(now);
        }
    }

    /// Introduces this node to whoever is at `to`, who answers with its list.
    pub(super) fn send_own_record(&mut self, now: Instant, to: SocketAddr, seq: u64) {
        let updates = vec![self.me().to_update(now)];
        let packet = self.packet(Body::Sync { seq, reply_wanted: true }, updates);
        self.transmit(to, Via::Datagram, &packet);
    }
}
