//! Cluster-wide limits on this node's datagrams: a machine of [`quota`] for each kind, and the buckets of the gateway.
//!
//! [`quota`]: crate::mesh::quota

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    mesh::{
        election::Leader,
        node::NodeName,
        quota::{
            Bucket, Buckets, Counts, Escrow, Holding, Kind, Lead, Timing, Usage,
            issuer::Owner,
            local::WithoutQuorum,
            message::{LIMITS_MAX, Message, Transmit},
            share::{LimitId, Share},
        },
        wire::coordination::encode_quota,
    },
    telemetry::metrics::RightsSample,
};

/// A limit that the cluster shares, and where this node spends what it holds of it.
#[derive(Clone, Debug)]
pub struct SharedLimit {
    /// Which.
    pub id: LimitId,
    /// What it is of.
    pub kind: Kind,
    /// The whole of it; nothing where it was taken away, and requests are still in flight under it.
    pub whole: Share,
    /// Where it is spent.
    pub bucket: Arc<dyn Bucket>,
}

/// The limits that the cluster shares, all of them.
#[derive(Clone, Debug, Default)]
pub struct SharedLimits {
    /// Each of them.
    pub limits: Vec<SharedLimit>,
    /// They are those of the cluster: what this node has of its state is whole. Until then it lends nothing by them.
    pub is_whole: bool,
}

/// What this node holds and lends, for people and metrics. It changes about ten times a second while there is a limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RightsView {
    /// Of limits per second.
    pub rates: Lent,
    /// Of limits in flight.
    pub slots: Lent,
}

/// That of one kind of limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lent {
    /// By limit what this node may admit.
    pub held: BTreeMap<LimitId, Share>,
    /// Until when; none: nothing.
    pub until: Option<Instant>,
    /// No leader lent it: it is this node's local share.
    pub is_local: bool,
    /// By limit who holds what, where this node leads.
    pub owners: Option<BTreeMap<LimitId, Vec<Owner>>>,
    /// What happened since the start.
    pub counts: Counts,
}

impl Lent {
    /// Whose word it is by which limited requests are admitted at `now`: `lent`, `local` or `none`.
    #[must_use]
    pub fn standing(&self, now: Instant) -> &'static str {
        match (self.until.is_some_and(|until| now < until), self.is_local) {
            (false, _) => "none",
            (true, false) => "lent",
            (true, true) => "local",
        }
    }

    /// What is held, and lent, of all limits together.
    fn sums(&self, now: Instant) -> (Share, Share) {
        let is_held = self.until.is_some_and(|until| now < until);
        let sum = |shares: &mut dyn Iterator<Item = Share>| shares.fold(Share::NONE, Share::plus);
        let held = if is_held { sum(&mut self.held.values().copied()) } else { Share::NONE };
        let owners = self.owners.iter().flat_map(BTreeMap::values).flatten();
        (held, sum(&mut owners.map(|owner| owner.bound)))
    }
}

impl RightsView {
    /// Whose word it is by which requests with limits of these kinds are admitted: that of the kind that is worse off.
    #[must_use]
    pub fn standing(&self, now: Instant, has_rates: bool, has_slots: bool) -> &'static str {
        let rates = has_rates.then(|| self.rates.standing(now));
        let slots = has_slots.then(|| self.slots.standing(now));
        let rank = |standing: &&str| ["none", "local", "lent"].iter().position(|known| known == standing);
        [rates, slots].into_iter().flatten().min_by_key(rank).unwrap_or("off")
    }

    /// The same for whoever does not know which kinds there are: `none` too without a limit.
    #[must_use]
    pub fn standing_of_any(&self, now: Instant) -> &'static str {
        match self.rates.standing(now) {
            "none" => self.slots.standing(now),
            standing => standing,
        }
    }

    /// For a scrape.
    pub(super) fn sample(&self, now: Instant) -> RightsSample {
        let ((held, lent), (slots_held, slots_lent)) = (self.rates.sums(now), self.slots.sums(now));
        let count = |count: fn(&Counts) -> u64| count(&self.rates.counts) + count(&self.slots.counts);
        RightsSample {
            held: held.tokens(),
            lent: lent.tokens(),
            slots: (slots_held.tokens().1, slots_lent.tokens().1),
            is_local: [&self.rates, &self.slots].iter().any(|lent| lent.standing(now) == "local"),
            granted: count(|counts| counts.granted),
            lapsed: count(|counts| counts.lapsed),
            lendings: count(|counts| counts.lent),
            reissued: count(|counts| counts.reissued),
        }
    }

    /// Whether something is held of each kind that has limits, `rates` and `slots`.
    #[must_use]
    pub fn is_lent(&self, [rates, slots]: [bool; 2]) -> bool {
        (!rates || self.rates.until.is_some()) && (!slots || self.slots.until.is_some())
    }

    fn part_of(&self, kind: Kind) -> &Lent {
        match kind {
            Kind::Rates => &self.rates,
            Kind::Slots => &self.slots,
        }
    }

    fn part(&mut self, kind: Kind) -> &mut Lent {
        match kind {
            Kind::Rates => &mut self.rates,
            Kind::Slots => &mut self.slots,
        }
    }
}

/// The buckets by limit.
#[derive(Debug, Default)]
struct Purse(BTreeMap<LimitId, Arc<dyn Bucket>>);

impl Buckets for Purse {
    fn hold(&self, now: Instant, limit: LimitId, holding: &Holding) -> u64 {
        self.0.get(&limit).map_or(0, |bucket| bucket.hold(now, holding))
    }

    fn hold_local(&self, now: Instant, limit: LimitId, holding: &Holding) {
        if let Some(bucket) = self.0.get(&limit) {
            bucket.hold_local(now, holding);
        }
    }

    fn usage(&self, limit: LimitId) -> Usage {
        self.0.get(&limit).map(|bucket| bucket.usage()).unwrap_or_default()
    }

    fn in_use(&self, limit: LimitId) -> u64 {
        self.0.get(&limit).map_or(0, |bucket| bucket.in_use())
    }
}

/// The machine, and who is told of what it finds.
pub(super) struct Rights {
    node: NodeName,
    kind: Kind,
    machine: Escrow,
    purse: Purse,
    limits: BTreeMap<LimitId, Share>,
    shown: watch::Sender<RightsView>,
    /// The last standing that was logged.
    standing: &'static str,
}

impl Rights {
    pub(super) fn new(
        node: &NodeName,
        kind: Kind,
        mode: WithoutQuorum,
        shown: watch::Sender<RightsView>,
        now: Instant,
    ) -> Self {
        let timing = match kind {
            Kind::Rates => Timing::default(),
            Kind::Slots => Timing::slots(),
        };
        Self {
            node: node.clone(),
            kind,
            machine: Escrow::new(node.clone(), kind, timing, mode, now, rand::random()),
            purse: Purse::default(),
            limits: BTreeMap::new(),
            shown,
            standing: "none",
        }
    }

    /// Takes the limits that are in force, all of them; those of another kind are not for this machine.
    pub(super) fn on_limits(&mut self, now: Instant, shared: &SharedLimits) {
        let limits = shared.limits.iter().filter(|limit| limit.kind == self.kind).take(LIMITS_MAX).cloned();
        let (whole, buckets): (BTreeMap<_, _>, _) =
            limits.map(|limit| ((limit.id, limit.whole), (limit.id, limit.bucket))).unzip();
        self.purse = Purse(buckets);
        self.machine.handle_limits(now, &whole, shared.is_whole, &self.purse);
        self.limits = whole.into_iter().filter(|(_, whole)| *whole != Share::NONE).collect();
    }

    /// Takes how many nodes share the limits, silent ones included.
    pub(super) fn on_nodes(&mut self, count: usize) {
        self.machine.handle_nodes(count);
    }

    /// Takes what the election knows: before each other input, and after each of its own.
    pub(super) fn on_leader(&mut self, now: Instant, leader: Option<&Leader>) {
        let lead = leader.filter(|leader| leader.name == self.node);
        let lead = lead.map(|leader| Lead { term: leader.term, until: leader.until });
        self.machine.handle_leader(now, leader.map(|leader| &leader.name), lead, &self.purse);
    }

    pub(super) fn on_message(&mut self, now: Instant, from: &NodeName, message: &Message) {
        self.machine.handle_message(now, from, message, &self.purse);
    }

    pub(super) fn leave(&mut self, now: Instant) {
        self.machine.leave(now, &self.purse);
    }

    /// As [`Escrow::pooled`].
    pub(super) fn pooled(&self, limit: LimitId) -> u64 {
        self.machine.pooled(limit)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.machine.poll_timeout()
    }

    /// The next message for a peer.
    pub(super) fn poll_payload(&mut self) -> Option<(NodeName, Bytes)> {
        let Transmit { to, message } = self.machine.poll_transmit()?;
        Some((to, encode_quota(self.kind, &message)))
    }

    /// Shows what is new.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.machine.poll_timeout().is_some_and(|at| at <= now) {
            self.machine.handle_timeout(now, &self.purse);
        }
        let counts = self.machine.counts();
        if counts == self.shown.borrow().part_of(self.kind).counts {
            return;
        }
        let holds = self.limits.keys().any(|id| self.machine.held(now, *id) != Share::NONE);
        let lent_until = self.machine.lease_until(now).filter(|_| holds);
        let until = lent_until.or_else(|| self.machine.local_until(now));
        let held = |id: &LimitId| match lent_until {
            Some(_) => self.machine.held(now, *id),
            None => self.machine.local(now, *id),
        };
        let owners = |id: &LimitId| self.machine.owners(*id).map(|owners| (*id, owners));
        let lent = Lent {
            held: self.limits.keys().map(|id| (*id, held(id))).collect(),
            until,
            is_local: until.is_some() && lent_until.is_none(),
            owners: self.limits.keys().map(owners).collect(),
            counts,
        };
        let standing = lent.standing(now);
        if standing != self.standing && !self.limits.is_empty() {
            self.standing = standing;
            let of = if self.kind == Kind::Slots { "in flight" } else { "per second" };
            match standing {
                "lent" => info!(of, "holds rights to admit requests"),
                "local" => warn!(of, "no leader: admits 1/N of each limit, as --mesh-rate-limit-without-quorum says"),
                _ => info!(of, "rights ran out: what is limited is refused until a leader lends some"),
            }
        }
        self.shown.send_modify(|shown| *shown.part(self.kind) = lent);
    }
}
