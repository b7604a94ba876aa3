//! Whole clusters of [`Swim`] machines in one thread: seeded, in virtual time.
//!
//! The machines are the ones that ship. The network loses, duplicates, reorders and delays, has an MTU, one-way cuts and
//! partitions ([`network`]); nodes crash, restart (with a new epoch, at a new address, with a clock that went back), stall
//! and run slow. Streams lose nothing: a loss is a delay, a cut is silence. Checkers watch every change
//! ([`checker`]); [`Faults`] counts what really happened, so that a run that tested nothing shows.

pub mod actions;
pub mod adversary;
pub mod checker;
pub mod network;
#[cfg(test)]
mod tests;
pub mod trace;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use self::{
    checker::Checker,
    network::{Faults, Network},
    trace::Trace,
};
use crate::mesh::{
    node::{NodeName, NodeStatus},
    swim::{Event, Member, MessageKind, Swim, SwimConfig, Via},
};

/// Unix milliseconds at the start of every run.
const WALL_AT_START_MS: u64 = 1_700_000_000_000;

/// IPv4 and UDP headers, which count as traffic.
const HEADER_BYTES: u64 = 28;

/// One process, running or dead.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its advertised address.
    pub addr: SocketAddr,
    /// The machine; none while dead.
    pub swim: Option<Swim>,
    /// Bytes sent, headers included.
    pub sent_bytes: u64,
    /// Everything that it reported, in order.
    pub events: Vec<(Instant, Event)>,
    seeds: Vec<SocketAddr>,
    /// Speed of its monotonic clock; 1 is right.
    speed: f64,
    /// When its clock was set last, and what it showed then.
    clock: (Instant, Instant),
    /// How far its wall clock is off, in milliseconds; read at its next start.
    wall_off_ms: i64,
    /// Processes that this node has been, this one included.
    lives: u64,
    /// Epoch and incarnation that its process shows, and whether the checker has not seen them yet.
    issued: (u64, u64),
    unseen: bool,
    /// What its wall clock showed at its start.
    boot_ms: u64,
    /// Begin and end of its last stall.
    stalled: Option<(Instant, Instant)>,
    stalled_until: Option<Instant>,
    inbox: Vec<Arrival>,
    wake_at: Option<Instant>,
    died_at: Option<Instant>,
    /// Dead, but its kernel answers that nobody listens.
    refuses: bool,
}

#[derive(Debug)]
enum Arrival {
    Packet { from: SocketAddr, via: Via, payload: Bytes },
    Hint(SocketAddr),
}

#[derive(Debug)]
enum Step {
    Deliver(SocketAddr, Arrival),
    Wake(usize),
}

/// A cluster in virtual time.
#[derive(Debug)]
pub struct Cluster {
    /// What the network does.
    pub network: Network,
    /// What the checkers saw.
    pub checker: Checker,
    /// All processes by index, dead ones included.
    pub nodes: Vec<Node>,
    /// Hash over all that happened.
    pub trace: Trace,
    /// Packets and bytes of payload sent, by kind.
    pub traffic: BTreeMap<MessageKind, (u64, u64)>,
    seed: u64,
    start: Instant,
    now: Instant,
    rng: Pcg64Mcg,
    /// What is to happen, by time; steps of one instant in the order in which they were planned.
    steps: BTreeMap<(Instant, u64), Step>,
    by_addr: BTreeMap<SocketAddr, usize>,
    next_step: u64,
    next_addr: u32,
    configure: fn(&mut SwimConfig),
    /// The same, for who runs scripts of others.
    setup: fn(&mut SwimConfig),
}

impl Cluster {
    /// An empty cluster.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // The one instant of a run; its value never shows, because only differences are used.
        let start = epoch();
        Self {
            network: Network::default(),
            checker: Checker::default(),
            nodes: Vec::new(),
            trace: Trace::default(),
            traffic: BTreeMap::new(),
            seed,
            start,
            now: start,
            rng: Pcg64Mcg::seed_from_u64(seed),
            steps: BTreeMap::new(),
            by_addr: BTreeMap::new(),
            next_step: 0,
            next_addr: 0,
            configure: |_| {},
            setup: |_| {},
        }
    }

    /// A cluster of `count` nodes that has converged; the first is everybody's seed.
    ///
    /// # Panics
    /// When it does not converge in 60 s.
    #[must_use]
    pub fn converged(seed: u64, count: usize) -> Self {
        let mut cluster = Self::new(seed);
        for _ in 0..count {
            let seeds = cluster.nodes.first().map(|node| node.addr).into_iter().collect();
            cluster.add(seeds);
        }
        cluster.run_until(Duration::from_secs(60), Cluster::is_converged).expect("a healthy network converges");
        cluster
    }

    /// Changes the settings of nodes that start from now on.
    pub fn configure(&mut self, change: fn(&mut SwimConfig)) {
        self.configure = change;
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// The virtual instant.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// A random number below `bound`, for scripts.
    pub fn random(&mut self, bound: u64) -> u64 {
        self.rng.random_range(0..bound.max(1))
    }

    /// An address that no node has.
    pub fn fresh_addr(&mut self) -> SocketAddr {
        self.next_addr += 1;
        let [_, high, mid, low] = self.next_addr.to_be_bytes();
        SocketAddr::from(([10, high, mid, low], 39527))
    }

    /// Starts a new node `node<index>`; its index.
    pub fn add(&mut self, seeds: Vec<SocketAddr>) -> usize {
        let name = format!("node{}", self.nodes.len());
        self.add_named(&name, seeds)
    }

    /// Starts a new node named `name`, which may be taken; its index.
    ///
    /// # Panics
    /// When `name` is no node name.
    pub fn add_named(&mut self, name: &str, seeds: Vec<SocketAddr>) -> usize {
        let addr = self.fresh_addr();
        let index = self.nodes.len();
        self.nodes.push(Node {
            name: name.parse().expect("scripts use plain names"),
            addr,
            swim: None,
            sent_bytes: 0,
            events: Vec::new(),
            seeds,
            speed: 1.0,
            clock: (self.now, self.now),
            wall_off_ms: 0,
            lives: 0,
            issued: (0, 0),
            unseen: true,
            boot_ms: 0,
            stalled: None,
            stalled_until: None,
            inbox: Vec::new(),
            wake_at: None,
            died_at: None,
            refuses: false,
        });
        self.start_node(index, self.wall_ms(index));
        index
    }

    /// Who sees whom how, for messages of failed assertions.
    #[must_use]
    pub fn describe(&self) -> String {
        let views = self.nodes.iter().filter_map(|node| {
            let swim = node.swim.as_ref()?;
            let view =
                |m: &Member| format!("{} {} {}.{} at {}", m.name, m.status, m.boot_epoch_ms, m.incarnation, m.addr);
            let members: Vec<_> = swim.members().map(view).collect();
            Some(format!("{} at {}: {}", node.name, node.addr, members.join("; ")))
        });
        views.collect::<Vec<_>>().join("\n")
    }

    /// Hands bytes to a node as if they came from `from`.
    pub fn inject(&mut self, index: usize, from: SocketAddr, payload: Bytes) {
        self.arrive(index, Arrival::Packet { from, via: Via::Datagram, payload });
    }

    /// Runs for `time`.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.steps.first_entry()
            && entry.key().0 <= end
        {
            self.now = entry.key().0;
            match entry.remove() {
                Step::Deliver(to, arrival) => self.deliver(to, arrival),
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

    /// The status of node `of` as node `by` sees it.
    #[must_use]
    pub fn status(&self, by: usize, of: usize) -> Option<NodeStatus> {
        self.nodes[by].swim.as_ref()?.member(&self.nodes[of].name).map(|member| member.status)
    }

    /// Indices of the running nodes.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].swim.is_some())
    }

    /// Whether every running node sees every running node ALIVE with its present epoch and address, and nobody else live.
    #[must_use]
    pub fn is_converged(&self) -> bool {
        // Nodes that disagree are told apart by their digests long before the records are looked at.
        let mut digests = self.nodes.iter().filter_map(|node| node.swim.as_ref().map(Swim::digest));
        let first = digests.next();
        digests.all(|digest| Some(digest) == first) && self.agrees_in_full()
    }

    fn agrees_in_full(&self) -> bool {
        let running: Vec<_> = self.running().collect();
        running.iter().all(|by| {
            let Some(swim) = &self.nodes[*by].swim else { return true };
            let live = swim.members().filter(|member| member.is_live()).count();
            live == running.len() && running.iter().all(|of| self.sees_truly(swim, *of))
        })
    }

    /// Whether `swim` holds the running node `of` ALIVE with its present epoch and address.
    fn sees_truly(&self, swim: &Swim, of: usize) -> bool {
        let (node, member) = (&self.nodes[of], swim.member(&self.nodes[of].name));
        let epoch = node.swim.as_ref().map(Swim::epoch_ms);
        member.is_some_and(|member| {
            member.status == NodeStatus::Alive && member.addr == node.addr && Some(member.boot_epoch_ms) == epoch
        })
    }

    /// Whether every running node sees node `index` as `status`.
    #[must_use]
    pub fn all_see(&self, index: usize, status: NodeStatus) -> bool {
        self.running().filter(|by| *by != index).all(|by| self.status(by, index) == Some(status))
    }

    /// What really happened so far.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.network.faults
    }

    /// What the wall clock of node `index` shows.
    fn wall_ms(&self, index: usize) -> u64 {
        let right = WALL_AT_START_MS + u64::try_from(self.elapsed().as_millis()).unwrap_or(0);
        right.saturating_add_signed(self.nodes[index].wall_off_ms)
    }

    fn start_node(&mut self, index: usize, boot_ms: u64) {
        let now = self.now;
        let node = &mut self.nodes[index];
        let mut config = SwimConfig::new(node.name.clone(), node.addr, boot_ms);
        config.has_seeds = !node.seeds.is_empty();
        (self.configure)(&mut config);
        (self.setup)(&mut config);
        let mut swim = Swim::new(config, now, self.seed ^ (index as u64) << 32 ^ boot_ms);
        swim.handle_seeds(now, &node.seeds);
        node.issued = (swim.epoch_ms(), 0);
        node.unseen = true;
        node.boot_ms = boot_ms;
        node.stalled = None;
        node.stalled_until = None;
        node.swim = Some(swim);
        node.clock = (now, now);
        node.lives += 1;
        node.died_at = None;
        node.wake_at = None;
        self.by_addr.insert(node.addr, index);
        self.drain(index);
    }

    /// The instant that the node's own clock shows.
    fn local_now(&self, index: usize) -> Instant {
        let node = &self.nodes[index];
        let (set, shown) = node.clock;
        shown + (self.now - set).mul_f64(node.speed)
    }

    fn push(&mut self, at: Instant, step: Step) {
        self.next_step += 1;
        self.steps.insert((at, self.next_step), step);
    }

    fn deliver(&mut self, to: SocketAddr, arrival: Arrival) {
        let Some(index) = self.by_addr.get(&to).copied() else { return };
        let node = &mut self.nodes[index];
        if node.swim.is_none() {
            if let (true, Arrival::Packet { from, .. }) = (node.refuses, arrival) {
                let at = self.now + self.network.latency(&mut self.rng);
                self.network.faults.refusals += 1;
                self.push(at, Step::Deliver(from, Arrival::Hint(to)));
            }
        } else if node.stalled_until.is_some_and(|until| until > self.now) {
            // Datagrams that the socket buffer has no room for are lost; a stream waits.
            let is_datagram = matches!(arrival, Arrival::Packet { via: Via::Datagram, .. });
            if is_datagram && node.inbox.len() >= self.network.inbox_max {
                self.network.faults.overflowed += 1;
            } else {
                node.inbox.push(arrival);
            }
        } else {
            self.arrive(index, arrival);
        }
    }

    fn arrive(&mut self, index: usize, arrival: Arrival) {
        let local = self.local_now(index);
        let (elapsed, node) = (self.elapsed(), &mut self.nodes[index]);
        let Some(swim) = &mut node.swim else { return };
        match arrival {
            Arrival::Packet { from, via, payload } => {
                self.trace.delivered(elapsed, node.addr, &payload);
                if swim.handle_datagram(local, from, via, &payload).is_err() {
                    self.network.faults.refused += 1;
                }
                checker::heard(self, index, &payload);
            }
            Arrival::Hint(addr) => {
                self.trace.delivered(elapsed, node.addr, &[]);
                swim.handle_hint(local, addr);
            }
        }
        self.drain(index);
    }

    fn wake(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.stalled_until.is_some_and(|until| until > now) {
            return;
        }
        // A process that wakes reads its sockets before it looks at its timers.
        if node.stalled_until.take().is_some() {
            for arrival in std::mem::take(&mut node.inbox) {
                self.arrive(index, arrival);
            }
        }
        let local = self.local_now(index);
        let node = &mut self.nodes[index];
        node.wake_at = node.wake_at.filter(|at| *at > now);
        let Some(swim) = &mut node.swim else { return };
        if swim.poll_timeout().is_some_and(|due| due <= local) {
            swim.handle_timeout(local);
        }
        self.drain(index);
    }

    /// Empties the machine after an input and sets its alarm.
    fn drain(&mut self, index: usize) {
        let now = self.now;
        let mut sends = Vec::new();
        let node = &mut self.nodes[index];
        let Some(swim) = &mut node.swim else { return };
        while let Some(transmit) = swim.poll_transmit() {
            node.sent_bytes += transmit.payload.len() as u64 + HEADER_BYTES;
            let kind = self.traffic.entry(transmit.kind).or_default();
            *kind = (kind.0 + 1, kind.1 + transmit.payload.len() as u64);
            sends.push(transmit);
        }
        let from = node.events.len();
        while let Some(event) = swim.poll_event() {
            node.events.push((now, event));
        }
        let (due, (set, shown), speed, addr) = (swim.poll_timeout(), node.clock, node.speed, node.addr);
        let burst = sends.len();
        for transmit in sends {
            let plan = self.network.plan(&mut self.rng, addr, transmit.to, transmit.via, transmit.payload.len());
            let latest = plan.iter().max().map_or(now, |delay| now + *delay);
            self.network.last_arrival = self.network.last_arrival.max(Some(latest));
            for delay in plan {
                let arrival = Arrival::Packet { from: addr, via: transmit.via, payload: transmit.payload.clone() };
                self.push(now + delay, Step::Deliver(transmit.to, arrival));
            }
        }
        checker::look(self, index, burst);
        for at in from..self.nodes[index].events.len() {
            let event = self.nodes[index].events[at].1.clone();
            self.trace.reported(self.elapsed(), index, &event);
            checker::watch(self, index, &event);
        }
        if let Some(due) = due {
            let local = due.saturating_duration_since(shown).div_f64(speed);
            // Rounding must not wake a slow clock just before its time, again and again.
            let at = (set + local + Duration::from_nanos(u64::from(speed != 1.0) * 1000)).max(now);
            let node = &mut self.nodes[index];
            if node.wake_at.is_none_or(|wake| at < wake || wake <= now) {
                node.wake_at = Some(at);
                self.push(at, Step::Wake(index));
            }
        }
    }
}

/// Runs `script` with seeds 1 to `seeds`, or with that of `SMG_SIM_SEED` alone; a failure prints how to repeat it.
///
/// # Panics
/// When the script does, or when a checker found a record that went back or a dead node that came back.
pub fn check(seeds: u64, script: impl Fn(&mut Cluster)) {
    let chosen = std::env::var("SMG_SIM_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    for seed in chosen.map_or(1..=seeds, |seed| seed..=seed) {
        let repeat = Repeat(seed);
        let mut cluster = Cluster::new(seed);
        script(&mut cluster);
        assert_eq!(cluster.checker.violations, Vec::<String>::new(), "seed {seed}");
        drop(repeat);
    }
}

/// Prints how to repeat a run when it is dropped by a panic.
struct Repeat(u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            #[allow(clippy::print_stderr, reason = "this is how a failing test says what to run")]
            {
                eprintln!("SMG_SIM_SEED={} cargo test {}", self.0, thread.name().unwrap_or_default());
            }
        }
    }
}

fn epoch() -> Instant {
    Instant::now()
}
