//! The yardstick: a model of HashiCorp memberlist with the timing of its LAN profile, in virtual time.
//!
//! Made from published rules: SWIM (Das, Gupta and Motivala 2002) §3.1 and §4.1 to §4.3, Lifeguard (Dadgar, Phillips and
//! Currey 2018) §IV, and the documented defaults of `DefaultLANConfig` ([`timing`]).
//! - A node probes one other per second, in the order of a list that is shuffled after each pass. After 500 ms without an
//!   ack it asks three relays and the target's stream, and at the end of the second it suspects.
//! - A suspicion is a timer at every node that hears of it. It lasts six times its least and comes down to it as others
//!   suspect too. Its end is the verdict, unless the suspected node has refuted with a higher incarnation.
//! - News rides on every datagram, and on gossip to three nodes each 200 ms, 4·⌈log10(n + 1)⌉ times from each node.
//! - Every 30 s, less often in large clusters, whole lists are exchanged with one node on a stream.
//! - A node whose probes go wrong without word from its relays, or that had to refute, gives its probes more time.
//!
//! The network is that of [`membership`](super::membership), so that both detectors meet the same latency, loss and cuts.
//! Where the library has a choice the model takes the one that flatters it: a process that wakes reads its sockets first,
//! and a lost segment of a stream costs 200 ms. Not modelled: leaving, restarts, encryption, and that joining fails.

mod message;
mod node;
mod queue;
mod suspicion;
pub mod timing;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    net::SocketAddr,
    time::Duration,
};

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use xxhash_rust::xxh3::Xxh3;

pub use self::message::Peer;
use self::{
    message::Message,
    node::{Event, Node, Transmit},
};
use super::membership::{network::Network, trace::Trace};
use crate::mesh::{
    node::NodeStatus::{self, Alive},
    swim::Via,
};

/// IP and UDP headers, as in [`membership`](super::membership); those of a stream are not larger.
const HEADER_BYTES: u64 = 28;

/// A cluster of modelled nodes in virtual time.
#[derive(Debug)]
pub struct Cluster {
    /// What the network does.
    pub network: Network,
    /// Verdicts DOWN of one node over another that ran, was not stalled, and was not cut off.
    pub false_downs: u64,
    /// Verdicts DOWN over dead, stalled or cut off nodes.
    pub true_downs: u64,
    /// Suspicions by a node's own probes.
    pub suspicions: u64,
    /// Hash over all that happened.
    pub trace: Trace,
    processes: Vec<Process>,
    seed: u64,
    now: Duration,
    rng: Pcg64Mcg,
    steps: BTreeMap<(Duration, u64), Step>,
    pushed: u64,
}

#[derive(Debug)]
struct Process {
    /// The machine; none while dead.
    node: Option<Node>,
    sent_bytes: u64,
    stalled_until: Option<Duration>,
    inbox: Vec<Packet>,
    /// Its next alarm.
    wake_at: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Packet {
    from: Peer,
    via: Via,
    messages: Vec<Message>,
}

#[derive(Debug)]
enum Step {
    Deliver(Peer, Packet),
    Wake(Peer),
}

impl Cluster {
    /// An empty cluster.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            network: Network::default(),
            false_downs: 0,
            true_downs: 0,
            suspicions: 0,
            trace: Trace::default(),
            processes: Vec::new(),
            seed,
            now: Duration::ZERO,
            rng: Pcg64Mcg::seed_from_u64(seed),
            steps: BTreeMap::new(),
            pushed: 0,
        }
    }

    /// A cluster of `count` nodes that all know each other and have nothing left to tell.
    #[must_use]
    pub fn settled(seed: u64, count: usize) -> Self {
        let mut cluster = Self::new(seed);
        for _ in 0..count {
            cluster.start(|node| node.settle(Duration::ZERO, count));
        }
        cluster
    }

    /// Starts a node that joins through `seed`, or alone; its index.
    pub fn add(&mut self, seed: Option<Peer>) -> Peer {
        self.start(|node| {
            if let Some(seed) = seed {
                node.join(seed);
            }
        })
    }

    /// The process dies. Whether its kernel lives is nothing to memberlist: its sockets are not connected, so that it does
    /// not hear of refusals, and a refused stream is like a silent one.
    pub fn crash(&mut self, index: Peer) {
        self.network.faults.crashes += 1;
        let process = &mut self.processes[index];
        process.node = None;
        process.inbox.clear();
        process.stalled_until = None;
    }

    /// The process does not run for `time`; what arrives waits.
    pub fn stall(&mut self, index: Peer, time: Duration) {
        self.network.faults.stalls += 1;
        let until = self.now + time;
        self.processes[index].stalled_until = Some(until);
        self.push(until, Step::Wake(index));
    }

    /// Runs for `time`.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.steps.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), step) = entry.remove_entry();
            self.now = at;
            match step {
                Step::Deliver(to, packet) => self.deliver(to, packet),
                Step::Wake(index) => self.wake(index),
            }
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

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now
    }

    /// The status of node `of` as node `by` sees it.
    #[must_use]
    pub fn status(&self, by: Peer, of: Peer) -> Option<NodeStatus> {
        self.processes[by].node.as_ref()?.status(of)
    }

    /// Whether every other running node sees `index` as `status`.
    #[must_use]
    pub fn all_see(&self, index: Peer, status: NodeStatus) -> bool {
        self.running().filter(|by| *by != index).all(|by| self.status(by, index) == Some(status))
    }

    /// Whether every running node sees every running node ALIVE, and nobody else live.
    #[must_use]
    pub fn is_converged(&self) -> bool {
        let running: Vec<_> = self.running().collect();
        running.iter().all(|by| {
            let live = self.processes[*by].node.as_ref().map(Node::live);
            live == Some(running.len()) && running.iter().all(|of| self.status(*by, *of) == Some(Alive))
        })
    }

    /// Indices of the running nodes.
    pub fn running(&self) -> impl Iterator<Item = Peer> {
        (0..self.processes.len()).filter(|index| self.processes[*index].node.is_some())
    }

    /// Bytes that all nodes sent, headers included; lists as before compression.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.processes.iter().map(|process| process.sent_bytes).sum()
    }

    fn start(&mut self, prepare: impl FnOnce(&mut Node)) -> Peer {
        let index = self.processes.len();
        let mut node = Node::new(index, self.now, self.seed ^ (index as u64) << 32);
        prepare(&mut node);
        let node = Some(node);
        self.processes.push(Process { node, sent_bytes: 0, stalled_until: None, inbox: Vec::new(), wake_at: None });
        self.drain(index);
        index
    }

    fn push(&mut self, at: Duration, step: Step) {
        self.pushed += 1;
        self.steps.insert((at, self.pushed), step);
    }

    fn deliver(&mut self, to: Peer, packet: Packet) {
        let mut hasher = Xxh3::new();
        packet.messages.hash(&mut hasher);
        self.trace.delivered(self.now, addr(to), &hasher.finish().to_le_bytes());
        let process = &mut self.processes[to];
        if process.stalled_until.is_some_and(|until| until > self.now) {
            process.inbox.push(packet);
        } else if let Some(node) = &mut process.node {
            node.handle_packet(self.now, packet.from, packet.via, &packet.messages);
            self.drain(to);
        }
    }

    fn wake(&mut self, index: Peer) {
        let now = self.now;
        let process = &mut self.processes[index];
        if process.stalled_until.is_some_and(|until| until > now) {
            return;
        }
        process.wake_at = process.wake_at.filter(|at| *at > now);
        let Some(node) = &mut process.node else { return };
        // A process that wakes reads its sockets before it looks at its timers.
        if process.stalled_until.take().is_some() {
            for packet in std::mem::take(&mut process.inbox) {
                node.handle_packet(now, packet.from, packet.via, &packet.messages);
            }
        }
        if node.poll_timeout() <= now {
            node.handle_timeout(now);
        }
        self.drain(index);
    }

    /// Empties the machine after an input and sets its alarm.
    fn drain(&mut self, index: Peer) {
        while let Some(transmit) = self.processes[index].node.as_mut().and_then(Node::poll_transmit) {
            self.transmit(index, transmit);
        }
        while let Some(event) = self.processes[index].node.as_mut().and_then(Node::poll_event) {
            self.watch(event);
        }
        let now = self.now;
        let process = &mut self.processes[index];
        let Some(at) = process.node.as_ref().map(|node| node.poll_timeout().max(now)) else { return };
        if process.wake_at.is_none_or(|wake| at < wake) {
            process.wake_at = Some(at);
            self.push(at, Step::Wake(index));
        }
    }

    fn transmit(&mut self, from: Peer, Transmit { to, via, messages }: Transmit) {
        let bytes = message::packet_bytes(&messages);
        self.processes[from].sent_bytes += bytes as u64 + HEADER_BYTES;
        let mut plan = self.network.plan(&mut self.rng, addr(from), addr(to), via, bytes);
        // A stream is opened for each question: there and back once more before it can be sent.
        let is_opening = matches!(messages[..], [Message::Ping { .. } | Message::List { is_answer: false, .. }]);
        if via == Via::Stream && is_opening {
            for (from, to) in [(from, to), (to, from)] {
                let legs = self.network.plan(&mut self.rng, addr(from), addr(to), via, 0);
                plan = plan.iter().zip(legs).map(|(sum, leg)| *sum + leg).collect();
            }
        }
        for delay in plan {
            let packet = Packet { from, via, messages: messages.clone() };
            self.push(self.now + delay, Step::Deliver(to, packet));
        }
    }

    fn watch(&mut self, event: Event) {
        match event {
            Event::Suspected(_) => self.suspicions += 1,
            Event::Down(of) => {
                let process = &self.processes[of];
                let runs = process.node.is_some() && process.stalled_until.is_none_or(|until| until <= self.now);
                if runs && !self.network.is_cut() {
                    self.false_downs += 1;
                } else {
                    self.true_downs += 1;
                }
            }
        }
    }
}

fn addr(peer: Peer) -> SocketAddr {
    let [_, high, mid, low] = u32::try_from(peer).unwrap_or(u32::MAX).to_be_bytes();
    SocketAddr::from(([10, high, mid, low], 7946))
}
