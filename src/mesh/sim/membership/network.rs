//! The simulated network: what happens to a packet between two addresses.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};

use crate::mesh::swim::Via;

/// Larger datagrams vanish in an MTU hole. Bytes of payload: a ping with more than two pieces of news does not fit.
const HOLE_MTU: usize = 300;

/// What the network does to packets.
#[derive(Debug)]
pub struct Network {
    /// Share of datagrams lost, 0 to 1; a stream is delayed by 200 ms instead.
    pub loss: f64,
    /// Share of datagrams that arrive twice, 0 to 1.
    pub duplication: f64,
    /// Share of datagrams that are held back by up to 200 ms, past later ones; 0 to 1.
    pub reordering: f64,
    /// Share of datagrams of which a late copy arrives, up to [`Self::late_max`] after the first; 0 to 1.
    pub late: f64,
    /// Greatest delay of a late copy.
    pub late_max: Duration,
    /// Least one-way delay.
    pub latency: Duration,
    /// Greatest addition to it.
    pub jitter: Duration,
    /// Larger datagrams vanish. Bytes of payload.
    pub mtu: usize,
    /// Datagrams that wait at a stalled process at most; further ones are lost, as in a full socket buffer.
    pub inbox_max: usize,
    /// What really happened.
    pub faults: Faults,
    /// When the last of what is under way arrives.
    pub(super) last_arrival: Option<Instant>,
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    holes: BTreeSet<(SocketAddr, SocketAddr)>,
}

/// Counters of what really happened, so that a test that tested nothing fails.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Faults {
    /// Datagrams lost.
    pub lost: u64,
    /// Datagrams doubled.
    pub duplicated: u64,
    /// Datagrams held back.
    pub reordered: u64,
    /// Late copies.
    pub late: u64,
    /// Datagrams that a full socket buffer lost.
    pub overflowed: u64,
    /// Packets stopped by a cut.
    pub cut: u64,
    /// Datagrams above the MTU.
    pub too_large: u64,
    /// Packets that a node refused.
    pub refused: u64,
    /// Answers that nobody listens.
    pub refusals: u64,
    /// Nodes that died.
    pub crashes: u64,
    /// Nodes that came back.
    pub restarts: u64,
    /// Nodes that stalled.
    pub stalls: u64,
    /// Nodes that came back at a new address.
    pub moves: u64,
    /// Nodes that came back with the epoch that they had, and no memory of their incarnations.
    pub amnesias: u64,
    /// Clocks that jumped, monotonic ones ahead and wall clocks either way.
    pub clock_steps: u64,
    /// Clocks whose speed changed.
    pub drifts: u64,
    /// Nodes that left gracefully.
    pub leaves: u64,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
            late: 0.0,
            late_max: Duration::from_secs(60),
            latency: Duration::from_micros(200),
            jitter: Duration::from_micros(300),
            mtu: 1472,
            inbox_max: 4096,
            faults: Faults::default(),
            last_arrival: None,
            cuts: BTreeSet::new(),
            holes: BTreeSet::new(),
        }
    }
}

impl Network {
    /// Nothing passes from `from` to `to` any more.
    pub fn cut(&mut self, from: SocketAddr, to: SocketAddr) {
        self.cuts.insert((from, to));
    }

    /// Datagrams from `from` to `to` pass only when they are small.
    pub fn narrow(&mut self, from: SocketAddr, to: SocketAddr) {
        self.holes.insert((from, to));
    }

    /// All cuts and MTU holes are mended.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.holes.clear();
    }

    /// Whether anything is cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        !self.cuts.is_empty()
    }

    /// One delay.
    pub(super) fn latency(&self, rng: &mut impl Rng) -> Duration {
        self.latency + self.jitter.mul_f64(rng.random::<f64>())
    }

    /// The delays after which copies of a packet arrive.
    pub(in crate::mesh::sim) fn plan(
        &mut self,
        rng: &mut impl Rng,
        from: SocketAddr,
        to: SocketAddr,
        via: Via,
        bytes: usize,
    ) -> Vec<Duration> {
        // A stream needs both directions, for its acks.
        if self.cuts.contains(&(from, to)) || (via == Via::Stream && self.cuts.contains(&(to, from))) {
            self.faults.cut += 1;
            return Vec::new();
        }
        let delay = self.latency(rng);
        if via == Via::Stream {
            let resent = (0..10).take_while(|_| rng.random_bool(self.loss)).count();
            return vec![delay + Duration::from_millis(200) * u32::try_from(resent).unwrap_or(0)];
        }
        if bytes > self.mtu || (bytes > HOLE_MTU && self.holes.contains(&(from, to))) {
            self.faults.too_large += 1;
            return Vec::new();
        }
        if rng.random_bool(self.loss) {
            self.faults.lost += 1;
            return Vec::new();
        }
        let mut delays = vec![delay];
        if rng.random_bool(self.reordering) {
            self.faults.reordered += 1;
            delays[0] += Duration::from_millis(200).mul_f64(rng.random::<f64>());
        }
        if rng.random_bool(self.duplication) {
            self.faults.duplicated += 1;
            delays.push(self.latency(rng) * 3);
        }
        if self.late > 0.0 && rng.random_bool(self.late) {
            self.faults.late += 1;
            delays.push(delay + self.late_max.mul_f64(rng.random::<f64>()));
        }
        delays
    }
}
