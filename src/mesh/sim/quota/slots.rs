//! Requests in flight in the simulated cluster: the bucket, the leases and the breaking of requests are those that ship.
//!
//! Each request takes a slot where it arrives and has it until it ends, or until its node notices that its lease is about to
//! end: on time, or up to [`NOTICED_WITHIN`] late, as with a client that reads nothing. The checker counts after every step, in
//! true time, what is in flight in slots that were lent: never more than there are. In slots of local shares never more are
//! than there are, or nodes if that is more.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::RngExt;

use super::{Cluster, LIMIT, lead};
use crate::{
    gateway::slots::{Slots, Standing, Taken},
    mesh::{
        election::Election,
        node::NodeName,
        quota::{
            Bucket, Buckets, Escrow, Holding, Kind, Timing, Usage,
            local::WithoutQuorum,
            message::{Message, Transmit},
            share::{LimitId, Share, TOKEN},
        },
    },
};

/// How late a node may notice that a request has lost its slot: a second between two looks, and a quarter of grace.
pub const NOTICED_WITHIN: Duration = Duration::from_millis(1250);

/// What requests in flight are made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// In flight at most.
    pub slots: u64,
    /// Mean length of a request, exponentially distributed.
    pub length: Duration,
    /// Durations of the protocol.
    pub timing: Timing,
    /// A node that lets requests go on when their lease is over: what the checker is there for.
    pub ignores_end: bool,
}

impl Default for Plan {
    /// 20 slots for requests of 2 s.
    fn default() -> Self {
        Self { slots: 20, length: Duration::from_secs(2), timing: Timing::slots(), ignores_end: false }
    }
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// That began.
    pub begun: u64,
    /// That were refused.
    pub refused: u64,
    /// That ended by themselves.
    pub ended: u64,
    /// That were broken because their lease was over.
    pub broken: u64,
    /// That went on in a slot of a local share then.
    pub moved: u64,
    /// Most in flight in slots that were lent, and in those of local shares.
    pub most: (u64, u64),
    /// Seconds that requests were in flight, all together.
    pub busy: f64,
    serial: u64,
}

/// What is to happen to a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    End { node: usize, request: u64 },
    Look { node: usize, request: u64 },
}

/// One process's part in it.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) escrow: Escrow,
    slots: Slots,
    requests: BTreeMap<u64, Taken>,
}

struct Purse<'a>(&'a Slots);

impl Buckets for Purse<'_> {
    fn hold(&self, now: Instant, _: LimitId, holding: &Holding) -> u64 {
        self.0.hold(now, holding)
    }

    fn hold_local(&self, now: Instant, _: LimitId, holding: &Holding) {
        self.0.hold_local(now, holding);
    }

    fn usage(&self, _: LimitId) -> Usage {
        self.0.usage()
    }

    fn in_use(&self, _: LimitId) -> u64 {
        Bucket::in_use(self.0)
    }
}

impl Desk {
    pub(super) fn open(
        name: &NodeName,
        plan: &Plan,
        mode: WithoutQuorum,
        nodes: usize,
        local: Instant,
        seed: u64,
    ) -> Self {
        let slots = Slots::new(local);
        let mut escrow = Escrow::new(name.clone(), Kind::Slots, plan.timing, mode, local, seed);
        escrow.handle_nodes(nodes);
        let limit = Share::of_tokens(plan.slots, plan.slots);
        escrow.handle_limits(local, &[(LIMIT, limit)].into(), true, &Purse(&slots));
        Self { escrow, slots, requests: BTreeMap::new() }
    }

    pub(super) fn leave(&mut self, local: Instant) {
        self.escrow.leave(local, &Purse(&self.slots));
    }

    pub(super) fn lead(&mut self, local: Instant, own: &NodeName, election: &Election) {
        lead(local, own, election, &mut self.escrow, &Purse(&self.slots));
    }

    pub(super) fn on_message(
        &mut self,
        local: Instant,
        (own, from): (&NodeName, &NodeName),
        message: &Message,
        election: &Election,
    ) {
        self.lead(local, own, election);
        self.escrow.handle_message(local, from, message, &Purse(&self.slots));
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Transmit> {
        std::iter::from_fn(|| self.escrow.poll_transmit())
    }
}

impl Cluster {
    /// One request that takes a slot, where there is one.
    pub(super) fn begin(&mut self, n: usize) {
        let Some(plan) = self.plan.slots else { return };
        let local = self.local(n);
        let Some(desk) = self.nodes[n].process.as_mut().and_then(|process| process.desk.as_mut()) else { return };
        let Some(taken) = desk.slots.take(local) else {
            self.slots.refused += 1;
            return;
        };
        self.slots.serial += 1;
        self.slots.begun += 1;
        let request = self.slots.serial;
        desk.requests.insert(request, taken);
        let length = plan.length.mul_f64(-self.stage.rng.random_range(f64::MIN_POSITIVE..1.0).ln());
        self.slots.busy += length.as_secs_f64();
        self.stage.plan(self.stage.now + length, super::Step::Slots(Step::End { node: n, request }));
        self.look(n, request);
    }

    pub(super) fn take_slots_step(&mut self, step: Step) {
        match step {
            Step::End { node, request } => {
                let desk = self.nodes[node].process.as_mut().and_then(|process| process.desk.as_mut());
                if let Some((desk, taken)) = desk.and_then(|desk| desk.requests.remove(&request).map(|t| (desk, t))) {
                    desk.slots.give_back(taken);
                    self.slots.ended += 1;
                }
            }
            Step::Look { node, request } => self.look(node, request),
        }
    }

    /// A request looks at how its slot stands.
    fn look(&mut self, n: usize, request: u64) {
        let local = self.local(n);
        let speed = self.nodes[n].speed;
        let Some(desk) = self.nodes[n].process.as_mut().and_then(|process| process.desk.as_mut()) else { return };
        let Some(taken) = desk.requests.get_mut(&request) else { return };
        let before = desk.slots.in_local_use();
        match desk.slots.look(local, taken) {
            Standing::Until(at) => {
                let late = NOTICED_WITHIN.mul_f64(self.stage.rng.random_range(0.0..1.0));
                let at = self.stage.true_time(at + late, speed);
                self.stage.plan(at, super::Step::Slots(Step::Look { node: n, request }));
            }
            Standing::Free => self.slots.moved += u64::from(desk.slots.in_local_use() > before),
            Standing::Lost if self.plan.slots.is_some_and(|plan| plan.ignores_end) => {}
            Standing::Lost => {
                if let Some(taken) = desk.requests.remove(&request) {
                    desk.slots.give_back(taken);
                }
                self.slots.broken += 1;
            }
        }
    }

    /// What is in flight now, in slots that were lent and in those of local shares.
    #[must_use]
    pub fn in_flight(&self) -> (u64, u64) {
        let desks = self.nodes.iter().filter_map(|node| node.process.as_ref()?.desk.as_ref());
        desks
            .fold((0, 0), |(lent, local), desk| (lent + Bucket::in_use(&desk.slots), local + desk.slots.in_local_use()))
    }

    /// Slots that a node holds now, lent ones.
    #[must_use]
    pub fn slots_held(&self, n: usize) -> u64 {
        let desk = self.nodes[n].process.as_ref().and_then(|process| process.desk.as_ref());
        desk.map_or(0, |desk| desk.escrow.held(self.local(n), LIMIT).burst / TOKEN)
    }

    /// No more is in flight than there are slots, at this instant.
    pub(super) fn check_slots(&mut self) {
        let Some(plan) = self.plan.slots else { return };
        let (lent, local) = self.in_flight();
        self.slots.most = (self.slots.most.0.max(lent), self.slots.most.1.max(local));
        if lent > plan.slots || local > plan.slots.max(self.nodes.len() as u64) {
            self.violations += 1;
            self.count(if lent > plan.slots { "in flight beyond" } else { "in flight locally beyond" });
        }
    }
}
