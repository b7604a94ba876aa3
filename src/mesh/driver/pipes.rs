//! Which pipe leads to which address, and when to dial again.
//!
//! Two kinds of pipes are dialed. *Wanted* ones lead to the peers that this node replicates to and are kept up: a
//! closed one is dialed again after a back-off of 100 ms doubling to 5 s. *Occasional* ones carry a membership message
//! that did not fit a packet, or a probe over the stream path, to an address that is not wanted (a seed, a peer that is
//! DOWN); they are dialed once, hold at most [`PENDING_MAX`] messages meanwhile, and are closed when
//! [`OCCASIONAL_IDLE`] passes without use. At most [`OCCASIONAL_MAX`] exist; beyond that the message is dropped, as a
//! packet might have been.
//!
//! Accepted pipes are known by the address they come from, so that an answer can go back the way the question came.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smg_transport::grpc::PipeId;

/// Messages held for a pipe that is being dialed; the oldest goes when one more comes.
pub(super) const PENDING_MAX: usize = 8;

/// Occasional pipes at most.
pub(super) const OCCASIONAL_MAX: usize = 64;

/// An occasional pipe without use is closed after this.
pub(super) const OCCASIONAL_IDLE: Duration = Duration::from_secs(30);

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the driver has to do.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Dial this address and report the pipe by [`Pipes::dialing`].
    Dial(SocketAddr),
    /// Close this pipe: nobody wants it any more.
    Close(PipeId),
}

/// The book of pipes.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    targets: BTreeMap<SocketAddr, Target>,
    /// Open and dialing pipes of ours, and the target of each.
    dialed: BTreeMap<PipeId, SocketAddr>,
    accepted: BTreeMap<SocketAddr, PipeId>,
    close: Vec<PipeId>,
}

#[derive(Debug)]
struct Target {
    wanted: bool,
    state: State,
    failures: u32,
    pending: VecDeque<Bytes>,
    used: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Waiting(Instant),
    Dialing(PipeId),
    Open(PipeId),
}

impl Pipes {
    /// Says which peers are replicated to from now on; pipes to others are closed when idle.
    pub(super) fn want(&mut self, now: Instant, addresses: &BTreeSet<SocketAddr>) {
        for (address, target) in &mut self.targets {
            if target.wanted && !addresses.contains(address) {
                target.wanted = false;
                target.used = now;
            }
        }
        for &address in addresses {
            self.targets.entry(address).or_insert_with(|| Target::new(now)).wanted = true;
        }
    }

    /// The pipe that reaches `address` now: one of ours, or one that came from there.
    #[must_use]
    pub(super) fn open(&mut self, now: Instant, address: SocketAddr) -> Option<PipeId> {
        if let Some(target) = self.targets.get_mut(&address)
            && let State::Open(pipe) = target.state
        {
            target.used = now;
            return Some(pipe);
        }
        self.accepted.get(&address).copied()
    }

    /// Keeps a message until the pipe to `address` is open, dialing it if need be. `false`: dropped for want of room.
    pub(super) fn defer(&mut self, now: Instant, address: SocketAddr, message: Bytes) -> bool {
        let occasional = self.targets.values().filter(|target| !target.wanted).count();
        if occasional >= OCCASIONAL_MAX && !self.targets.contains_key(&address) {
            return false;
        }
        let target = self.targets.entry(address).or_insert_with(|| Target::new(now));
        target.used = now;
        if target.pending.len() == PENDING_MAX {
            target.pending.pop_front();
        }
        target.pending.push_back(message);
        true
    }

    /// Notes that the driver is dialing `address` by `pipe`.
    pub(super) fn dialing(&mut self, address: SocketAddr, pipe: PipeId) {
        if let Some(target) = self.targets.get_mut(&address) {
            target.state = State::Dialing(pipe);
            self.dialed.insert(pipe, address);
        }
    }

    /// Notes an open pipe; gives the messages that waited for it.
    pub(super) fn opened(&mut self, now: Instant, pipe: PipeId, from: SocketAddr, was_dialed: bool) -> VecDeque<Bytes> {
        if !was_dialed {
            self.accepted.insert(from, pipe);
            return VecDeque::new();
        }
        let Some(target) = self.dialed.get(&pipe).and_then(|address| self.targets.get_mut(address)) else {
            return VecDeque::new();
        };
        target.state = State::Open(pipe);
        target.failures = 0;
        target.used = now;
        std::mem::take(&mut target.pending)
    }

    /// Notes the end of a pipe.
    pub(super) fn closed(&mut self, now: Instant, pipe: PipeId, from: SocketAddr) {
        if self.accepted.get(&from) == Some(&pipe) {
            self.accepted.remove(&from);
        }
        let Some(address) = self.dialed.remove(&pipe) else { return };
        let Some(target) = self.targets.get_mut(&address) else { return };
        target.pending.clear();
        if target.wanted {
            let wait = BACKOFF_FIRST.saturating_mul(1 << target.failures.min(10)).min(BACKOFF_MAX);
            target.state = State::Waiting(now + wait);
            target.failures = target.failures.saturating_add(1);
        } else {
            self.targets.remove(&address);
        }
    }

    /// The next thing to do, if any is due.
    pub(super) fn poll_action(&mut self, now: Instant) -> Option<Action> {
        self.retire(now);
        if let Some(pipe) = self.close.pop() {
            return Some(Action::Close(pipe));
        }
        let due = |(_, target): &(&SocketAddr, &mut Target)| {
            matches!(target.state, State::Waiting(at) if at <= now) && (target.wanted || !target.pending.is_empty())
        };
        let (&address, target) = self.targets.iter_mut().find(due)?;
        // The driver answers with `dialing`; should it fail to, the address is tried again later.
        target.state = State::Waiting(now + BACKOFF_MAX);
        Some(Action::Dial(address))
    }

    /// When [`Pipes::poll_action`] has something to do.
    #[must_use]
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = |target: &Target| match target.state {
            State::Waiting(at) if target.wanted || !target.pending.is_empty() => Some(at),
            _ if !target.wanted => Some(target.used + OCCASIONAL_IDLE),
            _ => None,
        };
        self.targets.values().filter_map(due).min()
    }

    fn retire(&mut self, now: Instant) {
        let idle = |target: &Target| !target.wanted && target.used + OCCASIONAL_IDLE <= now;
        let close = &mut self.close;
        self.targets.retain(|_, target| {
            if idle(target)
                && let State::Open(pipe) | State::Dialing(pipe) = target.state
            {
                close.push(pipe);
            }
            !idle(target)
        });
    }
}

impl Target {
    fn new(now: Instant) -> Self {
        Self { wanted: false, state: State::Waiting(now), failures: 0, pending: VecDeque::new(), used: now }
    }
}
