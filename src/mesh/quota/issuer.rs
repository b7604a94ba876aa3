//! The leader's side: the table of owners, and what may be lent of each limit.
//!
//! Invariant: a grant, new or prolonged, leaves in no more than what the limit has beyond all that any other holder may
//! have in force at that instant. What a holder may have in force is the largest of its grants that it has not
//! replaced and whose lease may still run; of slots also what it said last that is in use beyond those, since that goes on
//! under whichever grant is renewed. Therefore a renewal prolongs every grant of slots that may be in force.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Kind, Lead, Timing,
    allot::{Survey, TURN},
    message::{Ask, Grant, Right, Want},
    share::{LimitId, Share, TOKEN, scale},
};
use crate::mesh::node::NodeName;

/// Nodes that hold rights at a time at most; others get none, and refuse what is limited.
pub const HOLDERS_MAX: usize = 4096;

/// Grants of one holder that may be in force at most; a holder that confirms none of them is left to run out.
pub const OUTSTANDING_MAX: usize = 4;

/// The needs of all are added up, and what has run out is looked for, this often at most.
const SURVEY_EVERY: Duration = Duration::from_millis(10);

/// A share is lowered when it is more than this part of itself too large; smaller steps would only be on their way all the
/// time. Where somebody lacks more than this part of what it should have, and nobody else has it to spare, every share that
/// is too large is lowered: one that starts among others that are full gets its part.
const SLACK_PART: u64 = 8;

/// One line of the table of owners.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    /// Who.
    pub node: NodeName,
    /// What it was lent last.
    pub share: Share,
    /// What it may have in force.
    pub bound: Share,
    /// Requests that come to it, in millionths per second.
    pub demand: u64,
}

/// A time of leading.
#[derive(Clone, Debug)]
pub struct Issuer {
    reign: u64,
    term: u64,
    since: Instant,
    /// The end of the leader's own lease.
    until: Instant,
    kind: Kind,
    timing: Timing,
    entries: BTreeMap<NodeName, Entry>,
    pools: BTreeMap<LimitId, Pool>,
    seq: u64,
    surveyed_at: Option<Instant>,
    reissued: u64,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    /// Grants that may be in force, oldest first; the last is the newest. Never empty in the table.
    grants: Vec<Outstanding>,
    demands: BTreeMap<LimitId, u64>,
}

#[derive(Clone, Debug)]
struct Outstanding {
    seq: u64,
    shares: BTreeMap<LimitId, Share>,
    /// What its holder holds beyond them: slots that were in use when they became fewer.
    excess: BTreeMap<LimitId, Share>,
    expires: Instant,
    is_confirmed: bool,
}

/// What nobody holds of a limit.
#[derive(Clone, Debug, Default)]
struct Pool {
    /// Tokens that holders gave up, and that came at the rate that nobody holds; at most the burst that nobody holds.
    tokens: u64,
    free: Share,
    at: Option<Instant>,
    /// What all may have in force, added up.
    bound: Share,
    /// Somebody lacks what it should have, and it is not free.
    is_short: bool,
    survey: Survey,
}

impl Entry {
    fn bound(&self, limit: LimitId) -> Share {
        let parts = self.grants.iter().flat_map(|grant| [grant.shares.get(&limit), grant.excess.get(&limit)]);
        parts.flatten().fold(Share::NONE, |sum, share| sum.max(*share))
    }

    fn newest(&self, limit: LimitId) -> Share {
        self.grants.last().and_then(|grant| grant.shares.get(&limit)).copied().unwrap_or_default()
    }

    fn is_confirmed(&self) -> bool {
        self.grants.last().is_none_or(|grant| grant.is_confirmed)
    }

    fn limits(&self) -> impl Iterator<Item = LimitId> + '_ {
        self.grants.iter().flat_map(|grant| grant.shares.keys().chain(grant.excess.keys()).copied())
    }
}

impl Kind {
    /// What a holder says that it holds beyond its shares. It cannot be more than its bound so far: one that says so takes
    /// nothing from the others.
    fn excess(
        self,
        shares: &BTreeMap<LimitId, Share>,
        bounds: &BTreeMap<LimitId, Share>,
        wants: &[Want],
    ) -> BTreeMap<LimitId, Share> {
        let part = |parts: &BTreeMap<LimitId, Share>, want: &Want| parts.get(&want.limit).copied().unwrap_or_default();
        let held = wants.iter().map(|want| (want, want.held.min(part(bounds, want))));
        let beyond = held.filter(|(want, held)| self == Self::Slots && !part(shares, want).covers(*held));
        beyond.map(|(want, held)| (want.limit, held)).collect()
    }
}

impl Pool {
    /// Adds what came at the rate that nobody held since the last look.
    fn accrue(&mut self, now: Instant) {
        let elapsed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let came = scale(self.free.rate, micros, 1_000_000);
        self.tokens = self.tokens.saturating_add(came).min(self.free.burst);
        self.at = Some(now);
    }

    /// Whether a holder of `has`, which should have `target`, waits for others.
    fn is_short_of(&self, target: Share, has: Share) -> bool {
        let is_short = |target: u64, has: u64, free: u64| has < target - target / SLACK_PART && free < target - has;
        is_short(target.rate, has.rate, self.free.rate) || is_short(target.burst, has.burst, self.free.burst)
    }

    fn set_free(&mut self, free: Share) {
        self.free = free;
        self.tokens = self.tokens.min(free.burst);
    }
}

impl Issuer {
    pub(super) fn new(reign: u64, lead: Lead, kind: Kind, timing: Timing, now: Instant) -> Self {
        Self {
            reign,
            term: lead.term,
            since: now,
            until: lead.until,
            kind,
            timing,
            entries: BTreeMap::new(),
            pools: BTreeMap::new(),
            seq: 0,
            surveyed_at: None,
            reissued: 0,
        }
    }

    pub(super) fn term(&self) -> u64 {
        self.term
    }

    pub(super) fn prolong(&mut self, until: Instant) {
        self.until = self.until.max(until);
    }

    pub(super) fn reissued(&self) -> u64 {
        self.reissued
    }

    pub(super) fn owners(&self, limit: LimitId) -> Vec<Owner> {
        let owner = |(node, entry): (&NodeName, &Entry)| Owner {
            node: node.clone(),
            share: entry.newest(limit),
            bound: entry.bound(limit),
            demand: entry.demands.get(&limit).copied().unwrap_or(0),
        };
        self.entries.iter().map(owner).collect()
    }

    pub(super) fn pooled(&self, limit: LimitId) -> u64 {
        self.pools.get(&limit).map_or(0, |pool| pool.tokens)
    }

    /// Rights of an earlier reign may still be in force somewhere.
    fn is_young(&self, now: Instant) -> bool {
        now < self.since + self.timing.hold
    }

    /// Answers a question; none when there is nothing to say. Without limits they are not known yet: what is held is renewed,
    /// and nothing is lent.
    pub(super) fn on_ask(
        &mut self,
        now: Instant,
        from: &NodeName,
        ask: &Ask,
        limits: Option<&BTreeMap<LimitId, Share>>,
    ) -> Option<Grant> {
        if self.until <= now {
            return None;
        }
        if ask.reign != self.reign {
            return Some(Grant { reign: self.reign, ask: ask.seq, ..Grant::default() });
        }
        let (known_limits, none) = (limits, BTreeMap::new());
        // Of a limit that is not known nothing is free, and no tokens come of it.
        let limits = limits.unwrap_or(&none);
        self.survey(now, limits);
        let known = self.entries.remove(from);
        let before = known.clone().unwrap_or_default();
        let is_new = known.is_none();
        let mut entry = known.unwrap_or_default();
        self.confirm(&mut entry, ask);
        if ask.leaves || (is_new && self.entries.len() >= HOLDERS_MAX) {
            self.replace(now, &before, &Entry::default(), limits);
            return None;
        }
        entry.demands = ask.wants.iter().map(|want| (want.limit, want.demand)).collect();
        let credits = match is_new && self.is_young(now) {
            true => self.adopt(now, &mut entry, &ask.wants),
            false => self.renew(now, from, &mut entry, &before, (known_limits, &ask.wants)),
        };
        self.replace(now, &before, &entry, limits);
        let answer = credits.map(|credits| self.grant(ask.seq, &entry, &credits));
        if !entry.grants.is_empty() {
            self.entries.insert(from.clone(), entry);
        }
        answer
    }

    /// Drops what the holder has replaced, and takes the tokens that it gave up for it.
    fn confirm(&mut self, entry: &mut Entry, ask: &Ask) {
        if !entry.grants.iter().any(|grant| grant.seq == ask.held) {
            return;
        }
        let bounds: BTreeMap<LimitId, Share> = ask.wants.iter().map(|w| (w.limit, entry.bound(w.limit))).collect();
        entry.grants.retain(|grant| grant.seq >= ask.held);
        let Some(held) = entry.grants.first_mut() else { return };
        held.excess = self.kind.excess(&held.shares, &bounds, &ask.wants);
        if held.is_confirmed {
            return;
        }
        held.is_confirmed = true;
        for Want { limit, given, .. } in &ask.wants {
            let kept = held.shares.get(limit).map_or(0, |share| share.burst);
            let freed = bounds.get(limit).map_or(0, |bound| bound.burst.saturating_sub(kept));
            let pool = self.pools.entry(*limit).or_default();
            pool.tokens = pool.tokens.saturating_add((*given).min(freed));
        }
    }

    /// Lets a holder keep what an earlier leader lent it: asked for with the number of this reign, it was in force after the
    /// reign began, and nobody has lent anything since.
    fn adopt(&mut self, now: Instant, entry: &mut Entry, wants: &[Want]) -> Option<BTreeMap<LimitId, u64>> {
        let shares = wants.iter().filter(|want| want.held != Share::NONE).map(|want| (want.limit, want.held)).collect();
        self.push_grant(now, entry, shares, &[]);
        Some(BTreeMap::new())
    }

    /// Prolongs what a holder has, or lends it what it should have, as far as nobody else may have that in force. The
    /// credits that go with it; none when it has to run out.
    fn renew(
        &mut self,
        now: Instant,
        from: &NodeName,
        entry: &mut Entry,
        before: &Entry,
        (limits, wants): (Option<&BTreeMap<LimitId, Share>>, &[Want]),
    ) -> Option<BTreeMap<LimitId, u64>> {
        if self.kind == Kind::Slots {
            // What is in use goes on under the lease that this answer is.
            entry.grants.iter_mut().for_each(|grant| grant.expires = now + self.timing.hold);
            if !entry.is_confirmed() {
                return Some(BTreeMap::new());
            }
        }
        let shares = match limits {
            Some(limits) => {
                let decide =
                    |(id, limit): (&LimitId, &Share)| (*id, self.decide(now, from, entry, before, *id, *limit));
                limits.iter().map(decide).filter(|(_, share)| *share != Share::NONE).collect()
            }
            None => entry.grants.last().map(|newest| newest.shares.clone()).unwrap_or_default(),
        };
        let newest = entry.grants.last_mut();
        if let Some(newest) = newest.filter(|newest| newest.shares == shares) {
            newest.expires = now + self.timing.hold;
            return Some(BTreeMap::new());
        }
        if entry.grants.len() >= OUTSTANDING_MAX {
            return None;
        }
        let mut credits = BTreeMap::new();
        for (id, share) in &shares {
            let grown = share.burst.saturating_sub(entry.bound(*id).burst);
            let pool = self.pools.entry(*id).or_default();
            let credit = pool.tokens.min(grown);
            pool.tokens -= credit;
            credits.insert(*id, credit);
        }
        self.push_grant(now, entry, shares, wants);
        Some(credits)
    }

    fn decide(&self, now: Instant, from: &NodeName, entry: &Entry, before: &Entry, id: LimitId, limit: Share) -> Share {
        let current = entry.newest(id);
        let Some(pool) = self.pools.get(&id) else { return Share::NONE };
        let target = pool.survey.share_of(limit, from, entry.demands.get(&id).copied().unwrap_or(0));
        let may_grow = entry.is_confirmed() && !self.is_young(now);
        let slack = |current: u64| if pool.is_short { 0 } else { current / SLACK_PART };
        let step = |target: u64, current: u64| match () {
            () if target > current && may_grow => target,
            () if target < current - slack(current) => target,
            () => current,
        };
        let wanted = Share { rate: step(target.rate, current.rate), burst: step(target.burst, current.burst) };
        let others = pool.bound.minus(before.bound(id));
        let share = wanted.min(limit.minus(others));
        // Less than a token admits nothing.
        if share.burst < TOKEN || share.rate == 0 { Share::NONE } else { share }
    }

    fn push_grant(&mut self, now: Instant, entry: &mut Entry, shares: BTreeMap<LimitId, Share>, wants: &[Want]) {
        self.seq += 1;
        let bounds = wants.iter().map(|want| (want.limit, entry.bound(want.limit))).collect();
        let (expires, excess) = (now + self.timing.hold, self.kind.excess(&shares, &bounds, wants));
        entry.grants.push(Outstanding { seq: self.seq, shares, excess, expires, is_confirmed: false });
    }

    fn grant(&self, ask: u64, entry: &Entry, credits: &BTreeMap<LimitId, u64>) -> Grant {
        let newest = entry.grants.last();
        let right = |(limit, share): (&LimitId, &Share)| Right {
            limit: *limit,
            share: *share,
            credit: credits.get(limit).copied().unwrap_or(0),
        };
        Grant {
            reign: self.reign,
            ask,
            seq: newest.map_or(0, |grant| grant.seq),
            lease_ms: u32::try_from(self.timing.lease.as_millis()).unwrap_or(u32::MAX),
            rights: newest.map(|grant| grant.shares.iter().map(right).collect()).unwrap_or_default(),
        }
    }

    /// Corrects the sums for a line of the table that changed.
    fn replace(&mut self, now: Instant, before: &Entry, after: &Entry, limits: &BTreeMap<LimitId, Share>) {
        let ids: Vec<LimitId> = before.limits().chain(after.limits()).collect();
        for id in ids.into_iter().collect::<std::collections::BTreeSet<_>>() {
            let is_young = self.is_young(now);
            let pool = self.pools.entry(id).or_default();
            pool.bound = pool.bound.minus(before.bound(id)).plus(after.bound(id));
            let limit = limits.get(&id).copied().filter(|_| !is_young).unwrap_or_default();
            pool.set_free(limit.minus(pool.bound));
        }
    }

    /// Lets go of what has run out, and adds everybody's needs up.
    fn survey(&mut self, now: Instant, limits: &BTreeMap<LimitId, Share>) {
        self.pools.values_mut().for_each(|pool| pool.accrue(now));
        if self.surveyed_at.is_some_and(|at| now < at + SURVEY_EVERY) {
            return;
        }
        self.surveyed_at = Some(now);
        let count = self.entries.len();
        for entry in self.entries.values_mut() {
            entry.grants.retain(|grant| now < grant.expires);
        }
        self.entries.retain(|_, entry| !entry.grants.is_empty());
        self.reissued += (count - self.entries.len()) as u64;
        let held: Vec<LimitId> = self.entries.values().flat_map(Entry::limits).collect();
        self.pools.retain(|id, _| limits.contains_key(id) || held.contains(id));
        let turn = now.saturating_duration_since(self.since).as_secs() / TURN.as_secs();
        let is_young = self.is_young(now);
        let ids: Vec<LimitId> = limits.keys().copied().chain(self.pools.keys().copied()).collect();
        for id in ids {
            let limit = limits.get(&id).copied().unwrap_or_default();
            let demand = |entry: &Entry| entry.demands.get(&id).copied().unwrap_or(0);
            let demands = self.entries.iter().map(|(name, entry)| (name, demand(entry))).collect();
            let bound = self.entries.values().fold(Share::NONE, |sum, entry| sum.plus(entry.bound(id)));
            let pool = self.pools.entry(id).or_default();
            pool.at = pool.at.or(Some(now));
            pool.survey = Survey::of(self.kind, limit, &demands, turn);
            pool.bound = bound;
            pool.set_free(if is_young { Share::NONE } else { limit.minus(bound) });
            let target = |name, entry| pool.survey.share_of(limit, name, demand(entry));
            let mut entries = self.entries.iter();
            pool.is_short = !is_young && entries.any(|(name, e)| pool.is_short_of(target(name, e), e.newest(id)));
        }
    }
}
