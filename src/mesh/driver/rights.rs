//! Cluster-wide limits on this node's datagrams: the machine of [`quota`], and the buckets of the gateway.
//!
//! [`quota`]: crate::mesh::quota

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    mesh::{
        election::Leader,
        node::NodeName,
        quota::{
            Bucket, Buckets, Counts, Escrow, Holding, Lead, Timing,
            issuer::Owner,
            local::WithoutQuorum,
            message::{LIMITS_MAX, Message, Transmit},
            share::{LimitId, Share},
        },
    },
    telemetry::metrics::RightsSample,
};

/// A limit that the cluster shares, and where this node spends what it holds of it.
#[derive(Clone, Debug)]
pub struct SharedLimit {
    /// Which.
    pub id: LimitId,
    /// The whole of it.
    pub whole: Share,
    /// Where it is spent.
    pub bucket: Arc<dyn Bucket>,
}

/// What this node holds and lends, for people and metrics. It changes about ten times a second while there is a limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RightsView {
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

impl RightsView {
    /// Whose word it is by which limited requests are admitted at `now`: `lent`, `local` or `none`.
    #[must_use]
    pub fn standing(&self, now: Instant) -> &'static str {
        match (self.until.is_some_and(|until| now < until), self.is_local) {
            (false, _) => "none",
            (true, false) => "lent",
            (true, true) => "local",
        }
    }

    /// For a scrape.
    pub(super) fn sample(&self, now: Instant) -> RightsSample {
        let is_held = self.until.is_some_and(|until| now < until);
        let sum = |shares: &mut dyn Iterator<Item = Share>| shares.fold(Share::NONE, Share::plus);
        let held = if is_held { sum(&mut self.held.values().copied()) } else { Share::NONE };
        let owners = self.owners.iter().flat_map(BTreeMap::values).flatten();
        let lent = sum(&mut owners.map(|owner| owner.bound));
        let Counts { granted, lapsed, lent: lendings, reissued, .. } = self.counts;
        let is_local = is_held && self.is_local;
        RightsSample { held: held.tokens(), lent: lent.tokens(), is_local, granted, lapsed, lendings, reissued }
    }
}

/// The buckets by limit.
#[derive(Debug, Default)]
struct Purse(BTreeMap<LimitId, Arc<dyn Bucket>>);

impl Buckets for Purse {
    fn hold(&self, now: Instant, limit: LimitId, holding: &Holding) -> u64 {
        self.0.get(&limit).map_or(0, |bucket| bucket.hold(now, holding))
    }

    fn arrivals(&self, limit: LimitId) -> u64 {
        self.0.get(&limit).map_or(0, |bucket| bucket.arrivals())
    }
}

/// The machine, and who is told of what it finds.
pub(super) struct Rights {
    node: NodeName,
    machine: Escrow,
    purse: Purse,
    limits: BTreeMap<LimitId, Share>,
    shown: watch::Sender<RightsView>,
    /// The last standing that was logged.
    standing: &'static str,
}

impl Rights {
    pub(super) fn new(node: &NodeName, mode: WithoutQuorum, shown: watch::Sender<RightsView>, now: Instant) -> Self {
        Self {
            node: node.clone(),
            machine: Escrow::new(node.clone(), Timing::default(), mode, now, rand::random()),
            purse: Purse::default(),
            limits: BTreeMap::new(),
            shown,
            standing: "none",
        }
    }

    /// Takes the limits that are in force, all of them.
    pub(super) fn on_limits(&mut self, now: Instant, limits: Vec<SharedLimit>) {
        let limits = limits.into_iter().take(LIMITS_MAX);
        let (whole, buckets) = limits.map(|limit| ((limit.id, limit.whole), (limit.id, limit.bucket))).unzip();
        (self.limits, self.purse) = (whole, Purse(buckets));
        self.machine.handle_limits(now, &self.limits, &self.purse);
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

    pub(super) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.machine.poll_transmit()
    }

    /// Shows what is new.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.machine.poll_timeout().is_some_and(|at| at <= now) {
            self.machine.handle_timeout(now, &self.purse);
        }
        let counts = self.machine.counts();
        if counts == self.shown.borrow().counts {
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
        let view = RightsView {
            held: self.limits.keys().map(|id| (*id, held(id))).collect(),
            until,
            is_local: until.is_some() && lent_until.is_none(),
            owners: self.limits.keys().map(owners).collect(),
            counts,
        };
        let standing = view.standing(now);
        if standing != self.standing && !self.limits.is_empty() {
            self.standing = standing;
            match standing {
                "lent" => info!("holds rights to admit requests"),
                "local" => warn!("no leader: admits 1/N of each limit, as --mesh-rate-limit-without-quorum says"),
                _ => info!("rights ran out: what is limited is refused until a leader lends some"),
            }
        }
        self.shown.send_replace(view);
    }
}
