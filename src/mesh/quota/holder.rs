//! The side that asks: what this node holds, until when, and what it needs.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    Buckets, Holding, Kind, Timing, Usage,
    message::{Ask, Grant, LIMITS_MAX, Want},
    share::{AMOUNT_MAX, LimitId, Share, TOKEN},
};
use crate::mesh::node::NodeName;

/// Questions whose answer still counts; at ten a second more than a lease of them.
pub const ASKED_MAX: usize = 16;

/// Shortest time between two questions, also where there is news.
const ASK_MIN: Duration = Duration::from_millis(10);

/// Over about this time the demand is averaged: long enough for few requests to say something, and a shift is all but
/// forgotten after 2 s.
const DEMAND_OVER: Duration = Duration::from_millis(400);

/// Refusals of slots count as demand for this long: a node that has no slot sees few requests, and those of its neighbours
/// have theirs for long.
const REFUSED_OVER: Duration = Duration::from_secs(2);

/// The refused count no more than what is in use and this many: no storm of short requests outweighs what runs elsewhere.
const REFUSED_BEYOND: f64 = 4.0;

/// A demand below a request in 20 s is none.
const DEMAND_MIN: f64 = 0.05;

/// A node that leaves returns its rights once no request has come for this long: longer than the 5 s in which a draining
/// gateway still serves, so that it refuses nobody. Without demand it holds little.
const QUIET: Duration = Duration::from_secs(6);

/// What this node holds.
#[derive(Clone, Debug)]
pub struct Holder {
    kind: Kind,
    /// The reign that it speaks with, and the newest grant of it that is in force; 0: none.
    reign: u64,
    held: u64,
    shares: BTreeMap<LimitId, Share>,
    until: Option<Instant>,
    /// Tokens given up when `held` came into force.
    given: BTreeMap<LimitId, u64>,
    seq: u64,
    /// Questions under way: number, when each was sent, and to whom.
    asked: VecDeque<(u64, Instant, NodeName)>,
    asked_at: Option<Instant>,
    due: Instant,
    demands: BTreeMap<LimitId, Demand>,
    leaves: bool,
    busy_at: Instant,
    is_gone: bool,
}

/// How many requests come, averaged exponentially.
#[derive(Clone, Copy, Debug)]
struct Demand {
    usage: Usage,
    at: Instant,
    /// Requests per second; of slots those in use.
    per_second: f64,
    /// Of slots those refused within [`REFUSED_OVER`].
    refused: f64,
}

impl Demand {
    /// Of slots those that are refused and those in use are the demand: one that got a slot is among the latter until it ends.
    fn update(&mut self, now: Instant, usage: Usage, in_use: Option<u64>) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        if elapsed <= 0.0 {
            return;
        }
        let Usage { admitted, refused } = usage.since(self.usage);
        let newest = in_use.map_or((admitted + refused) as f64 / elapsed, |in_use| in_use as f64);
        let weight = elapsed / (elapsed + DEMAND_OVER.as_secs_f64());
        self.per_second += (newest - self.per_second) * weight;
        if in_use.is_some() {
            // What is in use is no sample of a rate but a fact: it is wanted at once, and forgotten slowly. Where all of a share is
            // in use and more is refused, the demand so doubles with each question.
            self.per_second = self.per_second.max(newest);
            self.refused = self.refused * (-elapsed / REFUSED_OVER.as_secs_f64()).exp() + refused as f64;
        }
        (self.usage, self.at) = (usage, now);
    }

    /// In millionths per second.
    fn millionths(&self) -> u64 {
        let demand = self.per_second + self.refused.min(self.per_second + REFUSED_BEYOND);
        if demand < DEMAND_MIN { 0 } else { ((demand * 1e6) as u64).min(AMOUNT_MAX) }
    }
}

impl Holder {
    pub(super) fn new(kind: Kind, now: Instant) -> Self {
        Self {
            kind,
            reign: 0,
            held: 0,
            shares: BTreeMap::new(),
            until: None,
            given: BTreeMap::new(),
            seq: 0,
            asked: VecDeque::new(),
            asked_at: None,
            due: now,
            demands: BTreeMap::new(),
            leaves: false,
            busy_at: now,
            is_gone: false,
        }
    }

    pub(super) fn ask_due(&self) -> Instant {
        self.due
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub(super) fn leave(&mut self) {
        self.leaves = true;
    }

    /// There is news: ask as soon as may be.
    pub(super) fn ask_now(&mut self, now: Instant) {
        let earliest = self.asked_at.map_or(now, |at| at + ASK_MIN);
        self.due = self.due.min(earliest.max(now));
    }

    pub(super) fn share(&self, now: Instant, limit: LimitId) -> Share {
        if self.is_lapsed(now) { Share::NONE } else { self.shares.get(&limit).copied().unwrap_or_default() }
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    fn is_lapsed(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// Forgets what has run out; whether something has.
    pub(super) fn note_lapse(&mut self, now: Instant) -> bool {
        let lapses = self.until.is_some() && self.is_lapsed(now);
        if lapses {
            self.until = None;
            self.shares.clear();
            self.given.clear();
        }
        lapses
    }

    /// The question for `leader`.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        leader: &NodeName,
        limits: &BTreeMap<LimitId, Share>,
        timing: &Timing,
        buckets: &dyn Buckets,
    ) -> Ask {
        self.measure(now, limits, buckets);
        let is_quiet = now.saturating_duration_since(self.busy_at) >= QUIET;
        self.is_gone = self.leaves && is_quiet && self.give_up(now, buckets);
        self.seq += 1;
        if self.asked.len() == ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back((self.seq, now, leader.clone()));
        (self.asked_at, self.due) = (Some(now), now + timing.ask);
        let mut wants: Vec<Want> = limits.keys().map(|id| self.want(*id, buckets)).collect();
        wants.extend(self.shares.keys().filter(|id| !limits.contains_key(id)).map(|id| self.want(*id, buckets)));
        wants.truncate(LIMITS_MAX);
        Ask { reign: self.reign, seq: self.seq, held: self.held, leaves: self.is_gone, wants }
    }

    fn measure(&mut self, now: Instant, limits: &BTreeMap<LimitId, Share>, buckets: &dyn Buckets) {
        self.demands.retain(|id, _| limits.contains_key(id));
        for id in limits.keys() {
            let (usage, in_use) = (buckets.usage(*id), buckets.in_use(*id));
            let new = Demand { usage, at: now, per_second: 0.0, refused: 0.0 };
            let demand = self.demands.entry(*id).or_insert(new);
            // One that came and went between two looks is seen too.
            if usage.since(demand.usage) != Usage::default() || in_use > 0 {
                self.busy_at = now;
            }
            demand.update(now, usage, (self.kind == Kind::Slots).then_some(in_use));
        }
    }

    /// What is in use after the lease is on its way to its end, and no part of what is held: nobody may adopt it.
    fn want(&self, limit: LimitId, buckets: &dyn Buckets) -> Want {
        let in_use = if self.until.is_some() { buckets.in_use(limit) } else { 0 };
        let in_use = in_use.saturating_mul(TOKEN).min(AMOUNT_MAX);
        let in_use = Share { rate: in_use, burst: in_use };
        Want {
            limit,
            demand: self.demands.get(&limit).map_or(0, Demand::millionths),
            given: self.given.get(&limit).copied().unwrap_or(0),
            held: self.shares.get(&limit).copied().unwrap_or_default().max(in_use),
        }
    }

    /// Gives everything up; not when a request took a slot meanwhile, which then has it as before. Nothing is taken any more
    /// once the shares are nothing, so what is in use after that is all.
    fn give_up(&mut self, now: Instant, buckets: &dyn Buckets) -> bool {
        let until = self.until.unwrap_or(now);
        let hold = |limit: LimitId, share, credit| buckets.hold(now, limit, &Holding { share, until, credit });
        let given: Vec<(LimitId, u64)> = self.shares.keys().map(|id| (*id, hold(*id, Share::NONE, 0))).collect();
        if self.shares.keys().any(|id| buckets.in_use(*id) > 0) {
            for (limit, credit) in given {
                hold(limit, self.shares[&limit], credit);
            }
            self.busy_at = now;
            return false;
        }
        self.given.extend(given);
        self.shares.clear();
        self.until = None;
        true
    }

    /// Whether an answer will put rights in force, or prolong them.
    pub(super) fn would_take(&self, now: Instant, from: &NodeName, grant: &Grant, timing: &Timing) -> bool {
        !self.is_gone && self.lease_of(from, grant, timing).is_some_and(|until| self.is_current(now, grant, until))
    }

    /// The end of the lease that an answer stands for; none when nothing like it was asked.
    fn lease_of(&self, from: &NodeName, grant: &Grant, timing: &Timing) -> Option<Instant> {
        let asked = self.asked.iter().find(|(seq, _, to)| *seq == grant.ask && to == from);
        asked.map(|(_, sent, _)| *sent + Duration::from_millis(grant.lease_ms.into()).min(timing.lease))
    }

    fn is_current(&self, now: Instant, grant: &Grant, until: Instant) -> bool {
        let is_grant = grant.reign != 0 && grant.seq != 0;
        is_grant && grant.reign == self.reign && grant.seq >= self.held && now < until
    }

    /// Takes an answer; whether it put rights in force, or prolonged them.
    pub(super) fn on_grant(
        &mut self,
        now: Instant,
        from: &NodeName,
        grant: &Grant,
        timing: &Timing,
        limits: &BTreeMap<LimitId, Share>,
        buckets: &dyn Buckets,
    ) -> bool {
        let Some(until) = self.lease_of(from, grant, timing) else { return false };
        if self.is_gone || grant.reign == 0 {
            return false;
        }
        if grant.seq == 0 {
            if grant.reign != self.reign {
                // From now on nothing of an older reign comes into force here: what is reported to the new one is all.
                (self.reign, self.held) = (grant.reign, 0);
                self.given.clear();
                self.ask_now(now);
            }
            return false;
        }
        if !self.is_current(now, grant, until) {
            return false;
        }
        self.note_lapse(now);
        self.put_in_force(now, grant, until, buckets);
        self.keep_in_use(now, limits, buckets);
        true
    }

    fn put_in_force(&mut self, now: Instant, grant: &Grant, until: Instant, buckets: &dyn Buckets) {
        let is_new = grant.seq > self.held;
        let until = self.until.map_or(until, |known| if is_new { until } else { known.max(until) });
        let old = std::mem::take(&mut self.shares);
        let mut gives_up = false;
        if is_new {
            self.given.clear();
        }
        for right in &grant.rights {
            let credit = if is_new { right.credit } else { 0 };
            let given = buckets.hold(now, right.limit, &Holding { share: right.share, until, credit });
            let before = old.get(&right.limit).copied().unwrap_or_default();
            gives_up |= !right.share.covers(before);
            self.note_given(right.limit, given, is_new);
            self.shares.insert(right.limit, right.share);
        }
        for limit in old.into_keys() {
            if !self.shares.contains_key(&limit) {
                let given = buckets.hold(now, limit, &Holding { share: Share::NONE, until, credit: 0 });
                self.note_given(limit, given, is_new);
                gives_up = true;
            }
        }
        (self.held, self.until) = (grant.seq, Some(until));
        if gives_up {
            // Somebody waits for it.
            self.ask_now(now);
        }
    }

    /// Prolongs the lease of what is in use of limits of which nothing is lent any more: the leader has heard of it, and lends
    /// it to nobody before it has ended.
    fn keep_in_use(&self, now: Instant, limits: &BTreeMap<LimitId, Share>, buckets: &dyn Buckets) {
        let Some(until) = self.until else { return };
        for limit in limits.keys().filter(|id| !self.shares.contains_key(id) && buckets.in_use(**id) > 0) {
            buckets.hold(now, *limit, &Holding { share: Share::NONE, until, credit: 0 });
        }
    }

    fn note_given(&mut self, limit: LimitId, given: u64, is_new: bool) {
        if is_new && given > 0 {
            self.given.insert(limit, given);
        }
    }
}
