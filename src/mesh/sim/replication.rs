//! A cluster of stores and replicators in one thread: virtual time, seeded, over pipes that are slow, cut and restored.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::mesh::{
    node::NodeName,
    replication::{Config, FrameError, PipeId, Replicator, SyncEvent, topology::Topology},
    stores::{Namespace, Stores},
};

mod crash;

use self::crash::Saving;

/// Frames in flight on one pipe and direction at most; a full one is not writable.
const PIPE_FRAMES_MAX: usize = 4;

#[derive(Debug)]
struct Wire {
    ends: [usize; 2],
    /// Frames by direction: from the dialer, from the acceptor.
    queues: [VecDeque<(Instant, Bytes)>; 2],
}

/// One simulated node.
#[derive(Debug)]
pub struct Node {
    /// Its state.
    pub stores: Stores,
    /// Its machine.
    pub replicator: Replicator,
    /// What its machine reported.
    pub events: Vec<SyncEvent>,
    saving: Option<Saving>,
    name: NodeName,
    epoch_ms: u64,
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Bytes that arrived, acks included.
    pub bytes: usize,
    /// Frames that were refused; 0 unless a test breaks something.
    pub refused: Vec<FrameError>,
    now: Instant,
    start: Instant,
    wires: BTreeMap<u64, Wire>,
    next_pipe: u64,
    cut: BTreeSet<(usize, usize)>,
    latency: BTreeMap<usize, Duration>,
    clocks: BTreeMap<usize, Clock>,
    /// Epochs that were ever used: real ones do not repeat, simulated ones on a clock that was set back could.
    epochs: BTreeSet<(usize, u64)>,
    stopped: BTreeSet<usize>,
    topology: Topology,
    config: Config,
}

/// How a node's wall clock goes wrong.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    offset_ms: i64,
    drift_ppm: i64,
    drifts_since_ms: u64,
}

/// Wall clock at the start of every simulation, in milliseconds.
pub const WALL_MS: u64 = 1_700_000_000_000;

impl Cluster {
    /// `count` nodes named `n0`, `n1`, …, all connected. `start` is any instant.
    #[must_use]
    pub fn new(count: usize, start: Instant) -> Self {
        Self::with_topology(count, start, Topology::of(count))
    }

    /// The same with a topology of choice.
    #[must_use]
    pub fn with_topology(count: usize, start: Instant, topology: Topology) -> Self {
        let mut cluster = Self {
            nodes: Vec::new(),
            bytes: 0,
            refused: Vec::new(),
            now: start,
            start,
            wires: BTreeMap::new(),
            next_pipe: 1,
            cut: BTreeSet::new(),
            latency: BTreeMap::new(),
            clocks: BTreeMap::new(),
            epochs: BTreeSet::new(),
            stopped: BTreeSet::new(),
            topology,
            config: Config { sync_interval: Duration::from_secs(1) },
        };
        for index in 0..count {
            let node = cluster.boot(index, false);
            cluster.nodes.push(node);
        }
        let all: Vec<usize> = (0..count).collect();
        all.iter().for_each(|node| cluster.set_members(*node, &all));
        cluster.connect_all();
        cluster
    }

    /// Wall clock now, in milliseconds.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        WALL_MS + u64::try_from(self.now.duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    /// Wall clock of a node, in milliseconds.
    #[must_use]
    pub fn wall_ms_of(&self, node: usize) -> u64 {
        let (true_ms, clock) = (self.wall_ms(), self.clocks.get(&node).copied().unwrap_or_default());
        let drifting_ms = i64::try_from(true_ms - clock.drifts_since_ms.min(true_ms)).unwrap_or(i64::MAX);
        let drift_ms = drifting_ms.saturating_mul(clock.drift_ppm) / 1_000_000;
        true_ms.saturating_add_signed(clock.offset_ms + drift_ms)
    }

    /// Sets a node's wall clock this far from the true time, and lets it go right from now on.
    pub fn set_clock(&mut self, node: usize, offset_ms: i64) {
        self.clocks.insert(node, Clock { offset_ms, ..Clock::default() });
    }

    /// Lets a node's wall clock gain so many millionths from now on; negative: lose.
    pub fn set_drift(&mut self, node: usize, drift_ppm: i64) {
        let true_ms = self.wall_ms();
        let now_ms = self.wall_ms_of(node);
        let offset_ms = i64::try_from(now_ms).unwrap_or(i64::MAX) - i64::try_from(true_ms).unwrap_or(i64::MAX);
        self.clocks.insert(node, Clock { offset_ms, drift_ppm, drifts_since_ms: true_ms });
    }

    /// Cuts or restores both pipes of a pair.
    pub fn set_cut(&mut self, a: usize, b: usize, cut: bool) {
        let pair = (a.min(b), a.max(b));
        if cut {
            self.cut.insert(pair);
            self.drop_wires(|ends| (ends[0].min(ends[1]), ends[0].max(ends[1])) == pair);
        } else {
            self.cut.remove(&pair);
            self.connect_all();
        }
    }

    /// Cuts or restores all pairs with one node in `side` and one outside.
    pub fn partition(&mut self, side: &[usize], cut: bool) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                if side.contains(&a) != side.contains(&b) {
                    self.set_cut(a, b, cut);
                }
            }
        }
    }

    /// Breaks every pipe of a pair; they are dialed again at once.
    pub fn reconnect(&mut self, a: usize, b: usize) {
        self.set_cut(a, b, true);
        self.set_cut(a, b, false);
    }

    /// Delays every frame from or to a node.
    pub fn set_latency(&mut self, node: usize, latency: Duration) {
        self.latency.insert(node, latency);
    }

    /// Stops a node as SIGSTOP does, or lets it go on: its pipes stay open and it neither reads nor writes.
    pub fn set_stopped(&mut self, node: usize, stopped: bool) {
        if stopped {
            self.stopped.insert(node);
        } else {
            self.stopped.remove(&node);
        }
    }

    /// Tells a node who is in the cluster. At first and after a restart: all.
    pub fn set_members(&mut self, node: usize, present: &[usize]) {
        let present = present.iter().map(|node| self.nodes[*node].name.clone()).collect();
        self.nodes[node].replicator.set_members(self.now, &present);
    }

    /// Lets time pass in which nobody does anything.
    pub fn skip(&mut self, duration: Duration) {
        self.now += duration;
    }

    /// Restarts a node with empty state and a new boot epoch; its disk, if it has one, is empty too.
    pub fn restart(&mut self, index: usize) {
        let saving = self.nodes[index].saving.take();
        let node = self.boot(index, false);
        self.replace(index, node);
        if let Some(saving) = saving {
            self.give_disk(index, saving.batch_bytes);
        }
    }

    /// Puts another process in the place of a node.
    fn replace(&mut self, index: usize, node: Node) {
        self.drop_wires(|ends| ends.contains(&index));
        self.now += Duration::from_millis(1);
        self.nodes[index] = node;
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.set_members(index, &all);
        self.connect_all();
    }

    /// Runs for some virtual time: from one timer or arrival to the next, in steps of at least a millisecond.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.step();
        while self.now < end {
            let running = self.nodes.iter().enumerate().filter(|(index, _)| !self.stopped.contains(index));
            let timers = running.filter_map(|(_, node)| node.replicator.poll_timeout());
            let arrivals = self.wires.values().flat_map(|wire| {
                let reads = |end: usize| !self.stopped.contains(&wire.ends[end]);
                wire.queues.iter().enumerate().filter(move |(from, _)| reads(1 - from))
            });
            let arrivals = arrivals.filter_map(|(_, queue)| queue.front());
            let next = timers.chain(arrivals.map(|(at, _)| *at)).min().unwrap_or(end);
            self.now = next.max(self.now + Duration::from_millis(1)).min(end);
            self.step();
        }
    }

    /// Whether all nodes hold byte-equal state with equal roots.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.nodes.windows(2).all(|pair| {
            Namespace::ALL.iter().all(|namespace| {
                let (a, b) = (pair[0].stores.map(*namespace), pair[1].stores.map(*namespace));
                a.root() == b.root() && a.canonical() == b.canonical()
            })
        })
    }

    /// Runs until all nodes are equal; gives how long that took.
    ///
    /// # Panics
    /// When they are not equal within `limit`: for tests.
    pub fn converges_within(&mut self, limit: Duration) -> Duration {
        let from = self.now;
        while !self.is_equal() {
            assert!(self.now < from + limit, "not equal after {limit:?}; refused {:?}", self.refused);
            self.run_for(Duration::from_millis(10));
        }
        self.now - from
    }

    /// A new process. One that `keeps_epochs`, on its disk, begins above all that it ever used, whatever its clock says.
    fn boot(&mut self, index: usize, keeps_epochs: bool) -> Node {
        let name: NodeName = format!("n{index}").parse().unwrap_or_else(|_| unreachable!("letters and digits"));
        let mut epoch_ms = self.wall_ms_of(index);
        if keeps_epochs {
            let last = self.epochs.range((index, 0)..=(index, u64::MAX)).next_back();
            epoch_ms = epoch_ms.max(last.map_or(0, |(_, last)| last + 1));
        }
        while !self.epochs.insert((index, epoch_ms)) {
            epoch_ms += 1;
        }
        let mut replicator = Replicator::new(self.config, self.now, index as u64 * 1_000_003);
        replicator.set_topology(self.topology);
        let stores = Stores::new(name.clone(), epoch_ms);
        Node { stores, replicator, events: Vec::new(), saving: None, name, epoch_ms }
    }

    fn connect_all(&mut self) {
        let open: BTreeSet<[usize; 2]> = self.wires.values().map(|wire| wire.ends).collect();
        for dialer in 0..self.nodes.len() {
            for acceptor in self.topology.targets(dialer, self.nodes.len()) {
                let pair = (dialer.min(acceptor), dialer.max(acceptor));
                if open.contains(&[dialer, acceptor]) || self.cut.contains(&pair) {
                    continue;
                }
                let id = self.next_pipe;
                self.next_pipe += 1;
                self.wires.insert(id, Wire { ends: [dialer, acceptor], queues: Default::default() });
                for (node, peer, dialed) in [(dialer, acceptor, true), (acceptor, dialer, false)] {
                    let (name, epoch_ms) = (self.nodes[peer].name.clone(), self.nodes[peer].epoch_ms);
                    self.nodes[node].replicator.handle_connected(self.now, PipeId(id), name, epoch_ms, dialed);
                }
            }
        }
    }

    fn drop_wires(&mut self, which: impl Fn([usize; 2]) -> bool) {
        let gone: Vec<u64> = self.wires.iter().filter(|(_, wire)| which(wire.ends)).map(|(id, _)| *id).collect();
        for id in gone {
            self.drop_wire(id);
        }
    }

    fn drop_wire(&mut self, id: u64) {
        if let Some(wire) = self.wires.remove(&id) {
            for node in wire.ends {
                self.nodes[node].replicator.handle_disconnected(self.now, PipeId(id));
            }
        }
    }

    fn step(&mut self) {
        let now = self.now;
        let ids: Vec<u64> = self.wires.keys().copied().collect();
        let refused = self.refused.len();
        for id in ids {
            for direction in 0..2 {
                while let Some(wire) = self.wires.get_mut(&id)
                    && !self.stopped.contains(&wire.ends[1 - direction])
                    && wire.queues[direction].front().is_some_and(|(at, _)| *at <= now)
                    && let Some((_, bytes)) = wire.queues[direction].pop_front()
                {
                    self.bytes += bytes.len();
                    let index = wire.ends[1 - direction];
                    let wall_ms = self.wall_ms_of(index);
                    let node = &mut self.nodes[index];
                    let taken = node.replicator.handle_frame(now, wall_ms, &mut node.stores, PipeId(id), &bytes);
                    if let Err(error) = taken {
                        self.refused.push(error);
                        self.drop_wire(id);
                    }
                }
            }
        }
        for index in 0..self.nodes.len() {
            self.drive(index);
        }
        if self.refused.len() > refused {
            self.connect_all();
        }
    }

    fn drive(&mut self, index: usize) {
        if self.stopped.contains(&index) {
            return;
        }
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.replicator.poll_timeout().is_some_and(|due| due <= now) {
            node.replicator.handle_timeout(now, &mut node.stores);
        }
        loop {
            let wires = &self.wires;
            let writable = |pipe: PipeId| {
                wires
                    .get(&pipe.0)
                    .is_some_and(|wire| wire.queues[usize::from(wire.ends[0] != index)].len() < PIPE_FRAMES_MAX)
            };
            let Some((pipe, bytes)) = node.replicator.poll_transmit(now, &node.stores, &writable) else { break };
            if let Some(wire) = self.wires.get_mut(&pipe.0) {
                let direction = usize::from(wire.ends[0] != index);
                let slowest = wire.ends.iter().filter_map(|end| self.latency.get(end)).max();
                let arrival = now + slowest.copied().unwrap_or(Duration::from_millis(1));
                wire.queues[direction].push_back((arrival, bytes));
            }
        }
        node.events.extend(std::iter::from_fn(|| node.replicator.poll_event()));
    }
}

#[cfg(test)]
mod tests;
