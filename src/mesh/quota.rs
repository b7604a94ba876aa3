//! Who may admit how much: limits of the whole cluster, cut into rights, as a pure machine.
//!
//! *Rights.* A limit is a rate and a burst; a right is a part of both. At any instant each part of a limit is in at most one
//! node's hands, so over any time τ the cluster admits no more than limit·τ + burst: tokens come from rates in force
//! alone, and no more than the burst of them are ever kept, because a node keeps no more than the burst that it holds. It
//! is escrow (O'Neil 1986; "The Escrow Transactional Method"), with leases (Gray and Cheriton 1989) for holders that die.
//!
//! *Leases.* The leader of the [`election`](crate::mesh::election) keeps the table of owners ([`issuer`]). A node asks for
//! rights about ten times a second ([`holder`]). A grant holds for [`Timing::lease`] from when the question was *sent*, on
//! the holder's clock; the leader counts [`Timing::hold`] from when it *answered*, on its own, and lends nothing of it to
//! anybody else before. The lease is over first even where each of the clocks is 10 % wrong. The rate is that of the holder's
//! clock: one that is a part too fast admits by that part more of its share.
//!
//! *Moving.* Shares follow the demand that nodes report ([`allot`]). What one node is to get, another gives up first: a
//! smaller grant counts as long as its holder has not said that it is in force, or the older has run out. Tokens move along:
//! what finds no room in a share that shrank is the leader's again, and goes with the next share that grows. Rights begin
//! without tokens otherwise, also after a lease that ran out: nothing comes of nothing.
//!
//! *A new leader* knows nothing. It draws a number for its reign and lends nothing for [`Timing::hold`]: then everything
//! that an earlier leader lent has run out. What a node says that it still holds, once it knows the number, it keeps
//! meanwhile: nobody has lent anything since the reign began, so what is held after that is disjoint. A leader that resigns
//! is so followed without a gap.
//!
//! *Without a leader* everybody's rights run out, and nothing is admitted until there is one; unless the operator prefers
//! that each node then admits a fixed part of the limit ([`local`]), which has a bound of its own.
//!
//! *Slots.* A limit on requests in flight is lent in the same way by a second machine ([`Kind::Slots`]), in whole slots. They
//! differ in one thing: what is in use cannot be given up at once. A holder whose share shrinks admits nothing above it from
//! then on, and says with each question what it still holds, the larger of its share and what is in use; so much of it counts
//! until it says less. It keeps its requests as long as its lease is renewed, breaks them when that is about to end, and so
//! has none left when the leader may lend its slots again. The leases are longer ([`Timing::slots`]): an election breaks nothing.
//!
//! *Changes* of a limit are replicated by the caller. The leader cuts what it knows of; a lower limit holds when the rights
//! to the higher one are given up, at the latest after [`Timing::hold`]. A leader that has just started may not know the
//! limits of the cluster yet, or know older ones: until it has the cluster's state it renews what everybody holds, cuts
//! nothing of it and lends nothing new.
//!
//! Bounds: [`message::LIMITS_MAX`] limits, [`issuer::HOLDERS_MAX`] holders, [`holder::ASKED_MAX`] questions that
//! may still be answered, [`issuer::OUTSTANDING_MAX`] grants of one holder that may be in force.

pub mod allot;
pub mod holder;
pub mod issuer;
pub mod local;
pub mod message;
pub mod share;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use self::{
    holder::Holder,
    issuer::{Issuer, Owner},
    local::{Local, WithoutQuorum},
    message::{LIMITS_MAX, Message, Transmit},
    share::{LimitId, Share},
};
use crate::mesh::node::NodeName;

/// Steps between a leader and itself for one input: a question, a number, a question, a grant, and what it changes.
const LOCAL_STEPS_MAX: usize = 8;

/// What is lent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Kind {
    /// Requests per second, spent as they come.
    #[default]
    Rates,
    /// Requests in flight, each with a slot until it ends: rate and burst of a share are the same number of them.
    Slots,
}

/// Durations of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// Between two questions of a node. Default 100 ms.
    pub ask: Duration,
    /// How long a grant holds, on the holder's clock, after the question was sent. Default 405 ms: 450 ms of true time
    /// where that clock is 10 % slow.
    pub lease: Duration,
    /// How long the leader takes it to hold, on its own clock, after the answer. Default 500 ms: 454 ms of true time where
    /// it is 10 % fast.
    pub hold: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { ask: Duration::from_millis(100), lease: Duration::from_millis(405), hold: Duration::from_millis(500) }
    }
}

impl Timing {
    /// Of slots: a lease of 5.4 s, 6.0 s of true time where the clock is 10 % slow, is taken to hold for 6.7 s, 6.09 s of true
    /// time where that clock is 10 % fast. With the [time](crate::gateway::slots::BREAK_AHEAD) that it takes to break what is
    /// running 3.9 s are left for an election, whose 99th percentile is 3.5 s.
    #[must_use]
    pub const fn slots() -> Self {
        Self { ask: Duration::from_millis(100), lease: Duration::from_millis(5400), hold: Duration::from_millis(6700) }
    }
}

/// What a node holds of one limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Holding {
    /// How much.
    pub share: Share,
    /// Until when.
    pub until: Instant,
    /// Micro-tokens that come with it, once.
    pub credit: u64,
}

/// The buckets that rights are spent from. No call may wait.
pub trait Buckets {
    /// Puts a holding in force. Tokens that are there stay, and the credit is added, as far as there is room. A bucket whose
    /// last holding has run out is empty. Returns the micro-tokens, at most the burst that is given up, which found no
    /// room.
    fn hold(&self, now: Instant, limit: LimitId, holding: &Holding) -> u64;

    /// Puts a local share in force, as [`hold`](Self::hold) does with one that was lent.
    fn hold_local(&self, now: Instant, limit: LimitId, holding: &Holding) {
        self.hold(now, limit, holding);
    }

    /// Requests that met the limit so far.
    fn usage(&self, limit: LimitId) -> Usage;

    /// Lent slots that are in use, which may be more than the share; of rates none.
    fn in_use(&self, _limit: LimitId) -> u64 {
        0
    }
}

/// One bucket of [`Buckets`], for callers that make them.
pub trait Bucket: fmt::Debug + Send + Sync {
    /// As [`Buckets::hold`].
    fn hold(&self, now: Instant, holding: &Holding) -> u64;

    /// As [`Buckets::hold_local`].
    fn hold_local(&self, now: Instant, holding: &Holding) {
        self.hold(now, holding);
    }

    /// As [`Buckets::in_use`].
    fn in_use(&self) -> u64 {
        0
    }

    /// Requests that met it so far.
    fn usage(&self) -> Usage;

    /// Micro-tokens that are there at `now`; none once the lease is over.
    fn tokens(&self, now: Instant) -> u64;
}

/// Requests that met a limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Admitted.
    pub admitted: u64,
    /// Refused.
    pub refused: u64,
}

impl Usage {
    /// What came since an earlier count; nothing where that was of another bucket.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let [admitted, refused] =
            [self.admitted.saturating_sub(earlier.admitted), self.refused.saturating_sub(earlier.refused)];
        Self { admitted, refused }
    }
}

/// Tokens of a limit that came into a node's hands and went out of them again, in thousandths of a token: at the largest rate
/// there is they count for 58 years.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tokens {
    /// Came in.
    pub came: u64,
    /// Were spent, given up or lost with their lease.
    pub gone: u64,
}

impl Tokens {
    /// Of one token.
    pub const PER_TOKEN: u64 = 1000;

    /// What is still there.
    #[must_use]
    pub const fn left(self) -> u64 {
        self.came.saturating_sub(self.gone)
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { came: self.came.saturating_add(other.came), gone: self.gone.saturating_add(other.gone) }
    }

    /// What must have come and gone where so many requests spent a token each, and `left` is there now instead of `before`.
    #[must_use]
    pub const fn between(before: u64, left: u64, spent: u64) -> Self {
        let gone = spent.saturating_mul(Self::PER_TOKEN);
        let (with, without) = (left.saturating_add(gone), before);
        Self { came: with.saturating_sub(without), gone: gone.saturating_add(without.saturating_sub(with)) }
    }
}

/// That this node leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lead {
    /// In which term.
    pub term: u64,
    /// The end of its lease.
    pub until: Instant,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Grants that came into force here.
    pub granted: u64,
    /// Leases that ran out here before they were renewed.
    pub lapsed: u64,
    /// Questions that this node answered with rights as the leader.
    pub lent: u64,
    /// Owners whose lease ran out while this node led: their rights were lent anew.
    pub reissued: u64,
    /// Times that local shares were put in force or prolonged here.
    pub local: u64,
}

/// The machine of one node. After each `handle_*` drain [`poll_transmit`](Self::poll_transmit).
#[derive(Clone, Debug)]
pub struct Escrow {
    node: NodeName,
    kind: Kind,
    timing: Timing,
    rng: Pcg64Mcg,
    limits: BTreeMap<LimitId, Share>,
    /// They are those of the cluster, not only those that this node has heard of so far.
    is_whole: bool,
    leader: Option<NodeName>,
    holder: Holder,
    local_shares: Local,
    issuer: Option<Issuer>,
    counts: Counts,
    transmits: VecDeque<Transmit>,
    /// Messages of this node to itself.
    local: VecDeque<Message>,
}

impl Escrow {
    /// A node that knows of no limit and no leader. `seed` drives every random choice.
    #[must_use]
    pub fn new(node: NodeName, kind: Kind, timing: Timing, mode: WithoutQuorum, now: Instant, seed: u64) -> Self {
        Self {
            node,
            kind,
            timing,
            rng: Pcg64Mcg::seed_from_u64(seed),
            limits: BTreeMap::new(),
            is_whole: false,
            leader: None,
            holder: Holder::new(kind, now),
            local_shares: Local::new(mode, now),
            issuer: None,
            counts: Counts::default(),
            transmits: VecDeque::new(),
            local: VecDeque::new(),
        }
    }

    /// Takes the limits that are in force in the cluster, as far as this node knows; the first [`LIMITS_MAX`] by id count. They
    /// are whole once this node has the cluster's state: before that it lends nothing by them.
    pub fn handle_limits(
        &mut self,
        now: Instant,
        limits: &BTreeMap<LimitId, Share>,
        is_whole: bool,
        buckets: &dyn Buckets,
    ) {
        self.is_whole = is_whole;
        self.limits = limits.iter().take(LIMITS_MAX).map(|(id, limit)| (*id, *limit)).collect();
        self.holder.ask_now(now);
        self.run(now, buckets);
    }

    /// Takes how many nodes share the limits: all that are known or expected, those that are silent included.
    pub fn handle_nodes(&mut self, count: usize) {
        self.local_shares.set_nodes(count);
    }

    /// Takes what the election knows: who leads, and whether it is this node. To be called after each input of the election,
    /// before anything else: nothing is lent on a lease that is older than the last call said.
    pub fn handle_leader(
        &mut self,
        now: Instant,
        leader: Option<&NodeName>,
        lead: Option<Lead>,
        buckets: &dyn Buckets,
    ) {
        match (&mut self.issuer, lead) {
            (Some(issuer), Some(lead)) if issuer.term() == lead.term => issuer.prolong(lead.until),
            (_, Some(lead)) => {
                let reign = self.rng.random_range(1..=u64::MAX);
                self.issuer = Some(Issuer::new(reign, lead, self.kind, self.timing, now));
            }
            (_, None) => self.issuer = None,
        }
        self.local_shares.note_leader(now, leader.is_some());
        if self.leader.as_ref() != leader {
            self.leader = leader.cloned();
            self.holder.ask_now(now);
        }
        self.run(now, buckets);
    }

    /// Takes one message of `from`, which membership or the transport vouches for.
    pub fn handle_message(&mut self, now: Instant, from: &NodeName, message: &Message, buckets: &dyn Buckets) {
        self.on_message(now, from, message, buckets);
        self.run(now, buckets);
    }

    /// Asks, when that is due.
    pub fn handle_timeout(&mut self, now: Instant, buckets: &dyn Buckets) {
        self.run(now, buckets);
    }

    /// This node leaves: it gives its rights back once no request has come for a while, and takes none any more.
    pub fn leave(&mut self, now: Instant, buckets: &dyn Buckets) {
        self.holder.leave();
        self.run(now, buckets);
    }

    /// The next message for a peer.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let local = self.local_shares.due().filter(|_| !self.limits.is_empty());
        self.may_ask().then(|| self.holder.ask_due()).into_iter().chain(local).min()
    }

    /// What this node was lent of a limit, at `now`.
    #[must_use]
    pub fn held(&self, now: Instant, limit: LimitId) -> Share {
        self.holder.share(now, limit)
    }

    /// Until when that holds; none when nothing is held.
    #[must_use]
    pub fn lease_until(&self, now: Instant) -> Option<Instant> {
        self.holder.until().filter(|until| now < *until)
    }

    /// The local share of a limit that is in force at `now`.
    #[must_use]
    pub fn local(&self, now: Instant, limit: LimitId) -> Share {
        self.local_shares.share(now, limit)
    }

    /// Until when local shares are in force; none while they are not.
    #[must_use]
    pub fn local_until(&self, now: Instant) -> Option<Instant> {
        self.local_shares.until().filter(|until| now < *until)
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The table of owners of a limit, when this node leads.
    #[must_use]
    pub fn owners(&self, limit: LimitId) -> Option<Vec<Owner>> {
        self.issuer.as_ref().map(|issuer| issuer.owners(limit))
    }

    /// Micro-tokens of a limit that nobody holds, where this node leads: they came at a rate that is not lent, or were given up.
    #[must_use]
    pub fn pooled(&self, limit: LimitId) -> u64 {
        self.issuer.as_ref().map_or(0, |issuer| issuer.pooled(limit))
    }

    fn may_ask(&self) -> bool {
        self.leader.is_some() && !self.limits.is_empty() && !self.holder.is_gone()
    }

    /// Whatever is due, and what this node says to itself.
    fn run(&mut self, now: Instant, buckets: &dyn Buckets) {
        self.counts.lapsed += u64::from(self.holder.note_lapse(now));
        if self.limits.is_empty() {
            self.local_shares.end(now, buckets);
        } else if self.may_be_local() && self.local_shares.run(now, &self.limits, &self.timing, buckets) {
            self.counts.local += 1;
        }
        for _ in 0..LOCAL_STEPS_MAX {
            if self.may_ask() && self.holder.ask_due() <= now {
                self.ask(now, buckets);
            }
            let Some(message) = self.local.pop_front() else { return };
            let node = self.node.clone();
            self.on_message(now, &node, &message, buckets);
        }
        self.local.clear();
    }

    /// Slots have a bucket of their own for local shares, which is there before a lease ends: what runs then may go on in it.
    fn may_be_local(&self) -> bool {
        self.kind == Kind::Slots || self.holder.until().is_none()
    }

    fn ask(&mut self, now: Instant, buckets: &dyn Buckets) {
        let Some(leader) = self.leader.clone() else { return };
        let ask = self.holder.ask(now, &leader, &self.limits, &self.timing, buckets);
        self.send(leader, Message::Ask(ask));
    }

    fn on_message(&mut self, now: Instant, from: &NodeName, message: &Message, buckets: &dyn Buckets) {
        match message {
            Message::Ask(ask) => {
                let Some(issuer) = &mut self.issuer else { return };
                let before = issuer.reissued();
                let answer = issuer.on_ask(now, from, ask, self.is_whole.then_some(&self.limits));
                self.counts.reissued += issuer.reissued() - before;
                if let Some(grant) = answer {
                    self.counts.lent += u64::from(grant.seq > 0);
                    self.send(from.clone(), Message::Grant(grant));
                }
            }
            Message::Grant(grant) => {
                if self.local_shares.is_active() && self.holder.would_take(now, from, grant, &self.timing) {
                    self.local_shares.end(now, buckets);
                }
                let taken = self.holder.on_grant(now, from, grant, &self.timing, &self.limits, buckets);
                self.counts.granted += u64::from(taken);
            }
        }
    }

    fn send(&mut self, to: NodeName, message: Message) {
        if to == self.node {
            self.local.push_back(message);
        } else {
            self.transmits.push_back(Transmit { to, message });
        }
    }
}
