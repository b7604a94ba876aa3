//! Datagrams over a network that exists in memory alone: seeded loss, duplication, reordering, delay and cuts.
//!
//! For tests of what drives a [`Transport`]. The fate of the n-th datagram of a link (sender, receiver) is a function
//! of the seed, the two addresses and n; it does not depend on how tasks interleave. Delay follows tokio's clock, so a
//! paused runtime makes it virtual. A datagram to an address that nobody has bound comes back as
//! [`Incoming::Unreachable`], as from a living host without the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tokio::time::{Instant, Sleep};

use crate::{Incoming, Received, SendError, Transport};

/// Largest datagram in bytes; as [`crate::udp::DATAGRAM_BYTES_MAX`].
pub const DATAGRAM_BYTES_MAX: usize = crate::udp::DATAGRAM_BYTES_MAX;

/// How the network treats datagrams. The default is a perfect network: nothing lost, nothing late.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Seed of every decision; default 0.
    pub seed: u64,
    /// Share of datagrams that are lost, 0 to 1; default 0.
    pub loss: f64,
    /// Share of datagrams that arrive twice, 0 to 1; default 0.
    pub duplication: f64,
    /// Share of datagrams that later ones of the link overtake, by [`SimConfig::reordering_delay`] more; default 0.
    pub reordering: f64,
    /// Extra delay of a reordered datagram; default 5 ms.
    pub reordering_delay: Duration,
    /// Least one-way delay; default 0.
    pub delay_min: Duration,
    /// Greatest one-way delay, at least `delay_min`; default 0.
    pub delay_max: Duration,
    /// Datagrams and hints that may wait for one receiver, those under way included; more are lost. Default 1024.
    pub queue_datagrams_max: usize,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
            reordering_delay: Duration::from_millis(5),
            delay_min: Duration::ZERO,
            delay_max: Duration::ZERO,
            queue_datagrams_max: 1024,
        }
    }
}

/// What happened to datagrams so far: proof that the faults of a test really fired.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SimStats {
    /// Handed over by senders.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost to a cut link.
    pub cut: u64,
    /// Lost because the receiver's queue was full.
    pub overflowed: u64,
    /// Arrived twice.
    pub duplicated: u64,
    /// Held back for others to overtake.
    pub reordered: u64,
}

/// A network; clones are the same network.
#[derive(Clone)]
pub struct SimNetwork {
    net: Arc<Mutex<Net>>,
}

/// One address of a [`SimNetwork`]. Dropping it unbinds the address, as a process that dies.
pub struct SimTransport {
    addr: SocketAddr,
    net: Arc<Mutex<Net>>,
    timer: Mutex<Option<Pin<Box<Sleep>>>>,
}

struct Net {
    config: SimConfig,
    ports: BTreeMap<SocketAddr, Inbox>,
    links: BTreeMap<(SocketAddr, SocketAddr), Pcg64Mcg>,
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    stats: SimStats,
    next_seq: u64,
    next_port: u16,
}

/// What is under way to one address, by time of arrival, then by order of sending.
#[derive(Default)]
struct Inbox {
    pending: BTreeMap<(Instant, u64), Incoming>,
    waker: Option<Waker>,
}

/// What one draw decided for one datagram.
struct Fate {
    is_lost: bool,
    /// Delay of each copy that arrives.
    delays: [Option<Duration>; 2],
}

impl SimNetwork {
    /// Makes a network without nodes.
    ///
    /// # Panics
    /// A share is outside 0 to 1, or `delay_min` exceeds `delay_max`.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        let shares = [config.loss, config.duplication, config.reordering];
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "a share is outside 0 to 1");
        assert!(config.delay_min <= config.delay_max, "delay_min exceeds delay_max");
        let net = Net {
            config,
            ports: BTreeMap::new(),
            links: BTreeMap::new(),
            cuts: BTreeSet::new(),
            stats: SimStats::default(),
            next_seq: 0,
            next_port: 49152,
        };
        Self { net: Arc::new(Mutex::new(net)) }
    }

    /// Binds an address; port 0 takes a free one.
    ///
    /// # Errors
    /// `AddrInUse` when somebody has it, `AddrNotAvailable` when no port is free.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<SimTransport> {
        let mut net = lock(&self.net);
        let addr = if addr.port() == 0 { net.free_addr(addr.ip())? } else { addr };
        if net.ports.contains_key(&addr) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        net.ports.insert(addr, Inbox::default());
        Ok(SimTransport { addr, net: Arc::clone(&self.net), timer: Mutex::new(None) })
    }

    /// Loses everything sent from `from` to `to` from now on; the other direction is untouched.
    pub fn cut_one_way(&self, from: SocketAddr, to: SocketAddr) {
        lock(&self.net).cuts.insert((from, to));
    }

    /// Loses everything between two nodes from now on.
    pub fn cut(&self, a: SocketAddr, b: SocketAddr) {
        lock(&self.net).cuts.extend([(a, b), (b, a)]);
    }

    /// Undoes every cut.
    pub fn heal(&self) {
        lock(&self.net).cuts.clear();
    }

    /// Changes loss, duplication, reordering and delay for datagrams sent from now on; the seed stays.
    pub fn set_config(&self, config: SimConfig) {
        let mut net = lock(&self.net);
        net.config = SimConfig { seed: net.config.seed, ..config };
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> SimStats {
        lock(&self.net).stats
    }
}

impl Net {
    fn free_addr(&mut self, ip: IpAddr) -> io::Result<SocketAddr> {
        for _ in 0..=u16::MAX {
            let addr = SocketAddr::new(ip, self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(49152);
            if !self.ports.contains_key(&addr) {
                return Ok(addr);
            }
        }
        Err(io::ErrorKind::AddrNotAvailable.into())
    }

    /// Gives wakers to call once the lock is released.
    fn send(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8], now: Instant) -> Option<Waker> {
        self.stats.sent += 1;
        let fate = self.fate(from, to);
        if self.cuts.contains(&(from, to)) {
            self.stats.cut += 1;
            return None;
        }
        if fate.is_lost {
            self.stats.lost += 1;
            return None;
        }
        let delays = fate.delays.into_iter().flatten();
        if !self.ports.contains_key(&to) {
            // The answer of the host takes the way back.
            let back = delays.take(1).map(|delay| now + delay * 2);
            let is_cut = self.cuts.contains(&(to, from));
            return if is_cut { None } else { self.deliver(from, back, &Incoming::Unreachable(to)) };
        }
        let received = Received { from, identity: None, payload: Bytes::copy_from_slice(payload) };
        self.deliver(to, delays.map(|delay| now + delay), &Incoming::Datagram(received))
    }

    /// Draws the fate of the link's next datagram: always the same number of draws, so that configs stay comparable.
    fn fate(&mut self, from: SocketAddr, to: SocketAddr) -> Fate {
        let config = self.config;
        let rng = self.links.entry((from, to)).or_insert_with(|| link_rng(config.seed, from, to));
        let is_lost = rng.random_bool(config.loss);
        let is_duplicated = rng.random_bool(config.duplication);
        let is_reordered = rng.random_bool(config.reordering);
        let spread = config.delay_max.saturating_sub(config.delay_min);
        let mut delay = || config.delay_min + spread.mul_f64(rng.random::<f64>());
        let (first, second) = (delay(), delay());
        if !is_lost {
            self.stats.duplicated += u64::from(is_duplicated);
            self.stats.reordered += u64::from(is_reordered);
        }
        let held = if is_reordered { config.reordering_delay } else { Duration::ZERO };
        Fate { is_lost, delays: [Some(first + held), is_duplicated.then_some(second)] }
    }

    fn deliver(&mut self, to: SocketAddr, at: impl Iterator<Item = Instant>, what: &Incoming) -> Option<Waker> {
        let inbox = self.ports.get_mut(&to)?;
        for at in at {
            if inbox.pending.len() >= self.config.queue_datagrams_max {
                self.stats.overflowed += 1;
                continue;
            }
            inbox.pending.insert((at, self.next_seq), what.clone());
            self.next_seq += 1;
        }
        inbox.waker.take()
    }
}

impl Transport for SimTransport {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn max_datagram_bytes(&self, _peer: SocketAddr) -> usize {
        DATAGRAM_BYTES_MAX
    }

    fn try_send(&self, peer: SocketAddr, payload: &[u8]) -> Result<(), SendError> {
        if payload.len() > DATAGRAM_BYTES_MAX {
            return Err(SendError::TooLarge { len: payload.len(), max: DATAGRAM_BYTES_MAX });
        }
        let waker = lock(&self.net).send(self.addr, peer, payload, Instant::now());
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Incoming>> {
        let mut timer = lock(&self.timer);
        loop {
            let due = {
                let mut net = lock(&self.net);
                let Some(inbox) = net.ports.get_mut(&self.addr) else {
                    return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                };
                inbox.waker = Some(cx.waker().clone());
                match inbox.pending.first_entry() {
                    None => return Poll::Pending,
                    Some(first) if first.key().0 <= Instant::now() => return Poll::Ready(Ok(first.remove())),
                    Some(first) => first.key().0,
                }
            };
            let sleep = timer.insert(Box::pin(tokio::time::sleep_until(due)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        lock(&self.net).ports.remove(&self.addr);
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = lock(&self.net);
        f.debug_struct("SimNetwork").field("config", &net.config).field("stats", &net.stats).finish_non_exhaustive()
    }
}

impl fmt::Debug for SimTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimTransport").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// A generator for one link, mixed by FNV-1a from the seed and both addresses.
fn link_rng(seed: u64, from: SocketAddr, to: SocketAddr) -> Pcg64Mcg {
    let mut state = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in format!("{from}>{to}").bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Pcg64Mcg::seed_from_u64(state)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
