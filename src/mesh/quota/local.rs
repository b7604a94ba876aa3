//! What a node admits by itself while nobody leads, where its operator wants that.
//!
//! A node that has known of no leader for [`ALONE_FOR`], and whose rights have run out, takes a *local share* of each limit:
//! its rate and burst divided by the number of nodes, at least one token at once. It keeps it, in leases like those of a
//! leader, until a leader answers with a grant; then the tokens of the local share are gone. The first grants of a leader that
//! begins are empty for [`Timing::hold`], so the node refuses for about as long. A node that hears a leader which does not
//! hear it keeps the local share that it has, but takes none: to it there is a leader.
//!
//! Bound: with N the least number of nodes that any of them counts, and no more than N of them running, all local shares
//! together admit no more than limit·τ + max(burst, N) in any time τ. That comes on top of what a leader lends on its side
//! of a partition: k cut-off nodes of N admit at most k/N of the rate beyond it, and k/N of the burst or one each at once. The number counts nodes that are DOWN too,
//! until they are forgotten, and all that the operator's list names, from the start on, so that a cut makes no share larger.
//! An entry that has not resolved yet counts as one node.
//!
//! Of slots the share is whole, and one at least: all local shares together are no more than max(limit, N) in flight, beside
//! what a leader lends. What began by a local share may end when a leader is back; it is no slot of the leader's.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Buckets, Holding, Timing,
    share::{LimitId, Share, TOKEN},
};

/// How long no leader must be known: an old leader's rights have run out on every node after half of it.
pub const ALONE_FOR: Duration = Duration::from_secs(1);

/// What a node does with limited requests when it was lent nothing and nobody leads.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WithoutQuorum {
    /// It refuses them.
    #[default]
    Closed,
    /// It admits its local share.
    Local,
}

impl WithoutQuorum {
    /// Both, as the flag spells them.
    pub const NAMES: [&str; 2] = ["closed", "local"];

    /// As the flag spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Local => "local",
        }
    }
}

/// The local shares of one node.
#[derive(Clone, Debug)]
pub struct Local {
    mode: WithoutQuorum,
    nodes: u64,
    /// Since when no leader has been known; none while one is.
    alone_since: Option<Instant>,
    shares: BTreeMap<LimitId, Share>,
    /// The end of the shares, and when they are prolonged; none while there are none.
    until: Option<(Instant, Instant)>,
}

impl Local {
    pub(super) fn new(mode: WithoutQuorum, now: Instant) -> Self {
        Self { mode, nodes: 1, alone_since: Some(now), shares: BTreeMap::new(), until: None }
    }

    pub(super) fn set_nodes(&mut self, count: usize) {
        self.nodes = (count as u64).max(1);
    }

    pub(super) fn note_leader(&mut self, now: Instant, is_known: bool) {
        self.alone_since = if is_known { None } else { self.alone_since.or(Some(now)) };
    }

    pub(super) fn is_active(&self) -> bool {
        self.until.is_some()
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until.map(|(until, _)| until)
    }

    /// When [`run`](Self::run) is due.
    pub(super) fn due(&self) -> Option<Instant> {
        match (self.mode, self.until) {
            (WithoutQuorum::Closed, _) => None,
            (WithoutQuorum::Local, Some((_, renew))) => Some(renew),
            (WithoutQuorum::Local, None) => self.alone_since.map(|since| since + ALONE_FOR),
        }
    }

    pub(super) fn share(&self, now: Instant, limit: LimitId) -> Share {
        let is_over = self.until.is_none_or(|(until, _)| until <= now);
        if is_over { Share::NONE } else { self.shares.get(&limit).copied().unwrap_or_default() }
    }

    /// Puts the local shares in force, or prolongs them, when that is due; whether it was.
    pub(super) fn run(
        &mut self,
        now: Instant,
        limits: &BTreeMap<LimitId, Share>,
        timing: &Timing,
        buckets: &dyn Buckets,
    ) -> bool {
        if self.due().is_none_or(|due| now < due) {
            return false;
        }
        let until = now + timing.lease;
        let shares: BTreeMap<LimitId, Share> = limits.iter().map(|(id, limit)| (*id, self.part(*limit))).collect();
        for (limit, share) in &shares {
            buckets.hold_local(now, *limit, &Holding { share: *share, until, credit: 0 });
        }
        (self.shares, self.until) = (shares, Some((until, now + timing.ask)));
        true
    }

    /// Takes the local shares out of force, with their tokens.
    pub(super) fn end(&mut self, now: Instant, buckets: &dyn Buckets) {
        if self.until.take().is_some() {
            for limit in std::mem::take(&mut self.shares).into_keys() {
                buckets.hold_local(now, limit, &Holding { share: Share::NONE, until: now, credit: 0 });
            }
        }
    }

    fn part(&self, limit: Share) -> Share {
        let even = limit.part(1, self.nodes);
        Share { rate: even.rate, burst: even.burst.max(TOKEN) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_share_is_an_even_part_of_one_token_at_least() {
        for (case, nodes, limit, expected) in [
            ("alone", 1, Share::of_tokens(90, 30), Share::of_tokens(90, 30)),
            ("one of three", 3, Share::of_tokens(90, 30), Share::of_tokens(30, 10)),
            ("a small burst", 5, Share::of_tokens(10, 2), Share::of_tokens(2, 1)),
            ("no count is one node", 0, Share::of_tokens(4, 4), Share::of_tokens(4, 4)),
        ] {
            let mut local = Local::new(WithoutQuorum::Local, Instant::now());
            local.set_nodes(nodes);
            assert_eq!(local.part(limit), expected, "{case}");
        }
    }
}
