//! Which pipe leads to which address, and when to dial again.
//!
//! Two kinds of pipes are dialed. *Wanted* ones lead to the peers that this node replicates to and are kept up: a
//! closed one is dialed again after a back-off of 100 ms doubling to 5 s, which starts anew once a pipe has held for
//! [`STABLE_FOR`] or membership says that the peer is ALIVE again: a peer that takes pipes only to break them costs at
//! most one cycle per 5 s in the long run. *Occasional* ones carry a membership message
//! that did not fit a packet, or a probe over the stream path, to an address that is not wanted (a seed, a peer that is
//! DOWN); they are dialed once, hold at most [`PENDING_MAX`] messages meanwhile, and are closed when
//! [`OCCASIONAL_IDLE`] passes without use. At most [`OCCASIONAL_MAX`] exist; beyond that the message is dropped, as a
//! packet might have been.
//!
//! An address where one side *excludes* the other (by its certificate, its name, its cluster) is left alone for
//! [`EXCLUDED_FOR`], whoever wants a pipe there and whatever membership says of it meanwhile.
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

/// A pipe that was open this long was a success; one that broke earlier counts as a failed dial.
pub(super) const STABLE_FOR: Duration = Duration::from_secs(5);

/// An address that excludes us, or that we exclude, is dialed once in this time at most.
pub(super) const EXCLUDED_FOR: Duration = Duration::from_secs(5);

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
    Excluded(Instant),
    Dialing(PipeId),
    Open {
        pipe: PipeId,
        since: Instant,
        /// The start of the process at the far end, as it greeted.
        epoch_ms: u64,
    },
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
            && let State::Open { pipe, .. } = target.state
        {
            target.used = now;
            return Some(pipe);
        }
        self.accepted.get(&address).copied()
    }

    /// Membership holds the process at `address` for DOWN: a pipe there that nobody else wants would hang for as long as
    /// TCP backs off, also after the network has healed. It is given up, and made anew when the peer is ALIVE again.
    pub(super) fn abandon(&mut self, address: SocketAddr) {
        let is_kept = |target: &Target| target.wanted || matches!(target.state, State::Excluded(_));
        if self.targets.get(&address).is_some_and(|target| !is_kept(target))
            && let Some(target) = self.targets.remove(&address)
        {
            self.close.extend(target.state.pipe());
        }
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

    /// Notes an open pipe of ours to a process that started at `epoch_ms`; gives the messages that waited for it.
    pub(super) fn opened(&mut self, now: Instant, pipe: PipeId, epoch_ms: u64) -> VecDeque<Bytes> {
        let Some(target) = self.dialed.get(&pipe).and_then(|address| self.targets.get_mut(address)) else {
            return VecDeque::new();
        };
        if target.state != State::Dialing(pipe) {
            return VecDeque::new();
        }
        target.state = State::Open { pipe, since: now, epoch_ms };
        target.used = now;
        std::mem::take(&mut target.pending)
    }

    /// Notes a pipe that came from `from`.
    pub(super) fn accepted(&mut self, pipe: PipeId, from: SocketAddr) {
        self.accepted.insert(from, pipe);
    }

    /// Membership says that the process at `address`, started at `epoch_ms`, is ALIVE: it is dialed without further
    /// waiting, and a pipe to an earlier process there is given up.
    pub(super) fn revive(&mut self, now: Instant, address: SocketAddr, epoch_ms: u64) {
        let Some(target) = self.targets.get_mut(&address) else { return };
        match target.state {
            State::Waiting(at) => target.state = State::Waiting(at.min(now)),
            State::Open { pipe, epoch_ms: earlier, .. } if earlier < epoch_ms => {
                self.close.push(pipe);
                target.state = State::Waiting(now);
            }
            State::Excluded(_) | State::Dialing(_) | State::Open { .. } => return,
        }
        target.failures = 0;
    }

    /// Notes the end of a pipe, and whether one side excludes the other.
    pub(super) fn closed(&mut self, now: Instant, pipe: PipeId, from: SocketAddr, excluded: bool) {
        if self.accepted.get(&from) == Some(&pipe) {
            self.accepted.remove(&from);
        }
        let Some(address) = self.dialed.remove(&pipe) else { return };
        let Some(target) = self.targets.get_mut(&address).filter(|target| target.state.pipe() == Some(pipe)) else {
            // Another pipe has taken its place.
            return;
        };
        target.pending.clear();
        if let State::Open { since, .. } = target.state
            && since + STABLE_FOR <= now
        {
            target.failures = 0;
        }
        if excluded {
            target.state = State::Excluded(now + EXCLUDED_FOR);
            target.used = now;
        } else if target.wanted {
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
            matches!(target.state, State::Waiting(at) | State::Excluded(at) if at <= now)
                && (target.wanted || !target.pending.is_empty())
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
            State::Waiting(at) | State::Excluded(at) if target.wanted || !target.pending.is_empty() => Some(at),
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
                && let Some(pipe) = target.state.pipe()
            {
                close.push(pipe);
            }
            !idle(target)
        });
    }
}

impl State {
    fn pipe(self) -> Option<PipeId> {
        match self {
            Self::Waiting(_) | Self::Excluded(_) => None,
            Self::Dialing(pipe) | Self::Open { pipe, .. } => Some(pipe),
        }
    }
}

impl Target {
    fn new(now: Instant) -> Self {
        Self { wanted: false, state: State::Waiting(now), failures: 0, pending: VecDeque::new(), used: now }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn addr() -> SocketAddr {
        "10.0.0.1:1".parse().unwrap()
    }

    /// Pipes that want [`addr`], and the instant of it.
    fn wanting() -> (Pipes, Instant) {
        let (mut pipes, now) = (Pipes::default(), Instant::now());
        pipes.want(now, &BTreeSet::from([addr()]));
        (pipes, now)
    }

    /// Dials when due, and says when that was.
    fn dial(pipes: &mut Pipes, now: Instant, pipe: u64) -> Instant {
        let due = pipes.poll_timeout().unwrap().max(now);
        assert_eq!(pipes.poll_action(due), Some(Action::Dial(addr())));
        pipes.dialing(addr(), PipeId(pipe));
        due
    }

    #[test]
    fn a_peer_that_breaks_each_pipe_is_dialed_less_and_less() {
        let (mut pipes, start) = wanting();
        let mut now = start;
        let mut dials = 0;
        while now < start + 60_000 * MS {
            now = dial(&mut pipes, now, dials);
            pipes.opened(now, PipeId(dials), 1);
            pipes.closed(now, PipeId(dials), addr(), false);
            dials += 1;
        }
        assert!((15..=20).contains(&dials), "{dials} cycles in the first minute");
    }

    #[test]
    fn an_address_that_excludes_us_is_dialed_once_in_five_seconds() {
        for wanted in [true, false] {
            let (mut pipes, start) = (Pipes::default(), Instant::now());
            if wanted {
                pipes.want(start, &BTreeSet::from([addr()]));
            }
            let mut dials = Vec::new();
            for tick in 0..600 {
                let now = start + tick * 100 * MS;
                // What would end another wait: messages, news that it is ALIVE, news that it is DOWN.
                assert!(pipes.defer(now, addr(), Bytes::from_static(b"x")));
                pipes.revive(now, addr(), u64::from(tick));
                pipes.abandon(addr());
                assert!(pipes.defer(now, addr(), Bytes::from_static(b"y")));
                while let Some(action) = pipes.poll_action(now) {
                    assert_eq!(action, Action::Dial(addr()));
                    let pipe = PipeId(u64::from(tick));
                    pipes.dialing(addr(), pipe);
                    pipes.closed(now, pipe, addr(), true);
                    dials.push(now);
                }
            }
            assert_eq!(dials.len(), 12, "wanted: {wanted}");
            assert!(dials.windows(2).all(|pair| pair[1] - pair[0] >= EXCLUDED_FOR), "wanted: {wanted}");
            let later = dials[11] + OCCASIONAL_IDLE + EXCLUDED_FOR;
            if !wanted {
                pipes.targets.get_mut(&addr()).unwrap().pending.clear();
                assert_eq!(pipes.poll_action(later), None);
                assert!(pipes.targets.is_empty(), "an occasional one is forgotten");
            }
        }
    }

    #[test]
    fn back_off_starts_anew_after_a_stable_pipe() {
        let (mut pipes, now) = wanting();
        for (case, pipe, held, wait) in [
            ("first failure", 0, Duration::ZERO, 100 * MS),
            ("second", 1, Duration::ZERO, 200 * MS),
            ("held too short", 2, STABLE_FOR - MS, 400 * MS),
            ("held long enough", 3, STABLE_FOR, 100 * MS),
        ] {
            let opened = dial(&mut pipes, now, pipe);
            pipes.opened(opened, PipeId(pipe), 1);
            pipes.closed(opened + held, PipeId(pipe), addr(), false);
            assert_eq!(pipes.poll_timeout(), Some(opened + held + wait), "{case}");
        }
    }

    #[test]
    fn a_peer_that_is_alive_again_is_dialed_at_once() {
        let (mut pipes, mut now) = wanting();
        for pipe in 0..8 {
            now = dial(&mut pipes, now, pipe);
            pipes.closed(now, PipeId(pipe), addr(), false);
        }
        assert_eq!(pipes.poll_action(now), None);
        pipes.revive(now, addr(), 2);
        assert_eq!(dial(&mut pipes, now, 8), now);
        pipes.closed(now, PipeId(8), addr(), false);
        assert_eq!(pipes.poll_timeout(), Some(now + 100 * MS), "the back-off started anew");
    }

    #[test]
    fn a_pipe_to_an_earlier_process_is_replaced() {
        let (mut pipes, now) = wanting();
        dial(&mut pipes, now, 1);
        pipes.opened(now, PipeId(1), 5);
        pipes.revive(now, addr(), 5);
        assert_eq!(pipes.poll_action(now), None, "the same process keeps its pipe");
        pipes.revive(now, addr(), 6);
        assert_eq!(pipes.poll_action(now), Some(Action::Close(PipeId(1))));
        dial(&mut pipes, now, 2);
        pipes.closed(now, PipeId(1), addr(), false);
        pipes.opened(now, PipeId(2), 6);
        assert_eq!(pipes.open(now, addr()), Some(PipeId(2)), "the end of the old pipe is not that of the new one");
    }

    #[test]
    fn a_pipe_to_a_peer_that_is_down_is_given_up_and_made_anew() {
        let (mut pipes, now) = wanting();
        dial(&mut pipes, now, 1);
        pipes.opened(now, PipeId(1), 1);
        pipes.abandon(addr());
        assert_eq!(pipes.poll_action(now), None, "another process there is wanted");
        pipes.want(now, &BTreeSet::new());
        pipes.abandon(addr());
        assert_eq!(pipes.poll_action(now), Some(Action::Close(PipeId(1))));
        pipes.want(now, &BTreeSet::from([addr()]));
        assert_eq!(dial(&mut pipes, now, 2), now);
        pipes.closed(now, PipeId(1), addr(), false);
        pipes.opened(now, PipeId(2), 1);
        assert_eq!(pipes.open(now, addr()), Some(PipeId(2)));
    }

    #[test]
    fn an_occasional_pipe_is_closed_when_idle() {
        let (mut pipes, now) = (Pipes::default(), Instant::now());
        assert!(pipes.defer(now, addr(), Bytes::from_static(b"x")));
        dial(&mut pipes, now, 1);
        assert_eq!(pipes.opened(now, PipeId(1), 1).len(), 1);
        assert_eq!(pipes.poll_action(now + OCCASIONAL_IDLE - MS), None);
        assert_eq!(pipes.poll_action(now + OCCASIONAL_IDLE), Some(Action::Close(PipeId(1))));
    }
}
