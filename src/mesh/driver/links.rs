//! What is known of the way to each peer: how far its clock is off.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use crate::mesh::{node::NodeName, replication::SyncEvent};

/// A clock further off than this is skewed: 500 ms, from where its timestamps are not followed (SPEC §4, `hlc`).
pub const SKEWED_FROM_MS: u64 = 500;

/// A skewed clock is fine again below this, so that one at the limit does not flap: 250 ms.
pub const FINE_BELOW_MS: u64 = 250;

/// Stamps ahead of our clock are told once in this time at `warn`, else at `debug`.
const AHEAD_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The way to one peer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Link {
    /// By how many milliseconds its wall clock leads ours; none before it was measured.
    pub skew_ms: Option<i64>,
    /// Its clock was more than [`SKEWED_FROM_MS`] off, and not less than [`FINE_BELOW_MS`] since.
    pub is_skewed: bool,
}

/// The ways to all peers; at most one for each member.
#[derive(Debug, Default)]
pub(super) struct Links {
    known: Arc<BTreeMap<NodeName, Link>>,
    ahead_told: Option<Instant>,
}

impl Links {
    /// Takes note of news from replication; whether a view shows them. `is_member` says who may have an entry.
    pub(super) fn note(&mut self, now: Instant, event: &SyncEvent, is_member: impl Fn(&NodeName) -> bool) -> bool {
        match event {
            SyncEvent::ClockSkew { peer, skew_ms } if is_member(peer) => self.on_skew(peer, *skew_ms),
            SyncEvent::ClockAhead { peer, ahead_ms } => {
                if self.ahead_told.is_none_or(|told| now.saturating_duration_since(told) >= AHEAD_LOG_INTERVAL) {
                    self.ahead_told = Some(now);
                    warn!(peer = %peer, ahead_ms, "state from a clock that is ahead of ours; synchronise the clocks");
                } else {
                    debug!(peer = %peer, ahead_ms, "state from a clock that is ahead of ours");
                }
                return false;
            }
            _ => return false,
        }
        true
    }

    /// A peer is not there any more.
    pub(super) fn gone(&mut self, peer: &NodeName) {
        if self.known.contains_key(peer) {
            Arc::make_mut(&mut self.known).remove(peer);
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Arc<BTreeMap<NodeName, Link>> {
        self.known.clone()
    }

    fn on_skew(&mut self, peer: &NodeName, skew_ms: i64) {
        let link = Arc::make_mut(&mut self.known).entry(peer.clone()).or_default();
        link.skew_ms = Some(skew_ms);
        let apart_ms = skew_ms.unsigned_abs();
        if !link.is_skewed && apart_ms > SKEWED_FROM_MS {
            link.is_skewed = true;
            warn!(peer = %peer, skew_ms, "clock of a peer differs from ours; synchronise the clocks");
        } else if link.is_skewed && apart_ms < FINE_BELOW_MS {
            link.is_skewed = false;
            info!(peer = %peer, skew_ms, "clock of a peer agrees with ours again");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::mesh::replication::PipeId;

    #[test]
    fn a_clock_is_skewed_above_half_a_second_and_fine_below_a_quarter() {
        let (now, peer): (_, NodeName) = (Instant::now(), "n2".parse().unwrap());
        let mut links = Links::default();
        for (skew_ms, is_skewed) in
            [(500, false), (501, true), (300, true), (-250, true), (249, false), (-500, false), (-600_000, true)]
        {
            let event = SyncEvent::ClockSkew { peer: peer.clone(), skew_ms };
            assert!(links.note(now, &event, |_| true));
            let link = links.all()[&peer];
            assert_eq!((link.skew_ms, link.is_skewed), (Some(skew_ms), is_skewed), "{skew_ms} ms");
        }
        links.gone(&peer);
        assert!(links.all().is_empty(), "nothing is left of a peer that is gone");
    }

    #[test]
    fn strangers_and_other_news_leave_nothing() {
        let (now, peer): (_, NodeName) = (Instant::now(), "n2".parse().unwrap());
        let mut links = Links::default();
        for event in
            [SyncEvent::ClockSkew { peer: peer.clone(), skew_ms: 9000 }, SyncEvent::InSync { pipe: PipeId(1), peer }]
        {
            assert!(!links.note(now, &event, |_| false), "{event:?}");
        }
        assert!(links.all().is_empty());
    }
}
