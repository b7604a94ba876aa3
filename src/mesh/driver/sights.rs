//! Who sees whom: what each peer last said of the members, and when this node says so itself.
//!
//! A node says which members it does not hold for ALIVE, on the lane of hints, [`GATHER`] after something about members or
//! pipes has changed, at most once in [`PAUSE`], and every [`REPEAT`] while there are any. Nobody repeats that all is well, nor
//! tells of a suspicion that was refuted before that.
//! What a peer said is kept until its pipe ends: of one that cannot be heard nothing is known, and what one saw that is
//! DOWN is not shown. Above 32 nodes pipes lead to some of the nodes, so each knows what those see. It is for people:
//! nothing is decided by it, and so it must not crowd the probes that take the same pipes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::mesh::{
    node::{NodeName, NodeStatus},
    routing::{DOUBTS_MAX, Sight},
};

/// From a change to telling of it: what happens at the same time goes together, and a suspicion has time to be refuted.
const GATHER: Duration = Duration::from_secs(1);

/// Between two messages at least: where much is lost suspicions come and go all the time.
const PAUSE: Duration = Duration::from_secs(2);

/// Between two messages while a member is not ALIVE: a hint may be lost.
const REPEAT: Duration = Duration::from_secs(5);

/// What peers see; at most one for each peer with a pipe to this node.
#[derive(Debug, Default)]
pub(super) struct Sights {
    heard: Arc<BTreeMap<NodeName, Sight>>,
    due: Option<Instant>,
    told_at: Option<Instant>,
    /// What all who hear were told last.
    told: Option<Sight>,
}

impl Sights {
    /// Somebody hears from now on who was told nothing, or did not get it.
    pub(super) fn heeded(&mut self, now: Instant) {
        self.told = None;
        self.touch(now);
    }

    /// What the members are, or who hears of it, has changed.
    pub(super) fn touch(&mut self, now: Instant) {
        let due = self.told_at.map_or(now, |at| at + PAUSE).max(now + GATHER);
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// When [`take`](Self::take) has something.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// What is to be said now, of these members; none before it is due.
    pub(super) fn take<'a>(
        &mut self,
        now: Instant,
        members: impl Iterator<Item = (&'a NodeName, NodeStatus)>,
    ) -> Option<Sight> {
        self.due.take_if(|due| *due <= now)?;
        let sight = Sight::of(members);
        let is_told = self.told.as_ref() == Some(&sight);
        let repeat = (!sight.doubted.is_empty()).then_some(REPEAT);
        if let Some(at) = self.told_at.filter(|at| is_told && repeat.is_none_or(|repeat| *at + repeat > now)) {
            self.due = repeat.map(|repeat| at + repeat);
            return None;
        }
        self.due = repeat.map(|repeat| now + repeat);
        self.told_at = Some(now);
        self.told = Some(sight.clone());
        Some(sight)
    }

    /// A peer said what it sees; whether that is news.
    pub(super) fn heard(&mut self, peer: &NodeName, sight: Sight) -> bool {
        if self.heard.get(peer) == Some(&sight) {
            return false;
        }
        Arc::make_mut(&mut self.heard).insert(peer.clone(), sight);
        true
    }

    /// A peer cannot be heard any more; whether something was known of it.
    pub(super) fn gone(&mut self, peer: &NodeName) -> bool {
        self.heard.contains_key(peer) && Arc::make_mut(&mut self.heard).remove(peer).is_some()
    }

    /// Those of the peers that this is true of.
    pub(super) fn of(&self, counts: impl Fn(&NodeName) -> bool) -> Arc<BTreeMap<NodeName, Sight>> {
        if self.heard.keys().all(&counts) {
            return self.heard.clone();
        }
        let heard = self.heard.iter().filter(|(name, _)| counts(name));
        Arc::new(heard.map(|(name, sight)| (name.clone(), sight.clone())).collect())
    }
}

impl Sight {
    /// What these members are to who tells; of those in doubt the first [`DOUBTS_MAX`].
    #[must_use]
    pub fn of<'a>(members: impl Iterator<Item = (&'a NodeName, NodeStatus)>) -> Self {
        let mut sight = Self::default();
        for (name, status) in members {
            if status == NodeStatus::Alive {
                sight.alive += 1;
            } else if sight.doubted.len() < DOUBTS_MAX {
                sight.doubted.insert(name.clone(), status);
            }
        }
        sight
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_changes_is_told_once_and_doubt_again_and_again() {
        let (start, name): (_, NodeName) = (Instant::now(), "n2".parse().unwrap());
        let (mut sights, mut status) = (Sights::default(), NodeStatus::Alive);
        let mut told = Vec::new();
        for tick in 0..340_u32 {
            let now = start + tick * Duration::from_millis(100);
            let mut turns = |new, sights: &mut Sights| (status, ()) = (new, sights.touch(now));
            match tick {
                0 | 1 | 300 => sights.heeded(now),
                20 => turns(NodeStatus::Down, &mut sights),
                // A storm of changes that come to nothing.
                130..=169 => sights.touch(now),
                // Suspected, and refuted at once.
                250 => turns(NodeStatus::Suspected, &mut sights),
                200 | 255 => turns(NodeStatus::Alive, &mut sights),
                _ => {}
            }
            if let Some(sight) = sights.take(now, [(&name, status)].into_iter()) {
                let expected = if status == NodeStatus::Alive { (1, 0) } else { (0, 1) };
                assert_eq!((sight.alive, sight.doubted.len()), expected);
                told.push(tick);
            }
        }
        assert_eq!(told, [10, 30, 80, 130, 180, 210, 310]);
        assert_eq!(sights.poll_timeout(), None, "nobody repeats that all is well");
    }

    #[test]
    fn a_peer_that_is_down_is_not_shown_until_it_is_back() {
        let [down, other] = ["n2", "n3"].map(|name| name.parse::<NodeName>().unwrap());
        let mut sights = Sights::default();
        assert!(sights.heard(&down, Sight { alive: 3, ..Sight::default() }));
        assert!(sights.heard(&other, Sight { alive: 2, ..Sight::default() }));
        assert_eq!(sights.of(|name| *name != down).keys().collect::<Vec<_>>(), [&other]);
        assert!(!sights.heard(&other, Sight { alive: 2, ..Sight::default() }));
        assert_eq!(sights.of(|_| true).len(), 2, "it was wrong that it is DOWN, and need not say it again");
    }

    #[test]
    fn peers_that_cannot_be_heard_leave_nothing_and_lists_are_bounded() {
        let peer: NodeName = "n2".parse().unwrap();
        let mut sights = Sights::default();
        assert!(sights.heard(&peer, Sight::default()));
        assert!(!sights.heard(&peer, Sight::default()), "no news");
        assert!(sights.gone(&peer) && !sights.gone(&peer));
        assert!(sights.of(|_| true).is_empty());
        let names: Vec<NodeName> = (0..DOUBTS_MAX + 9).map(|n| format!("n{n}").parse().unwrap()).collect();
        assert_eq!(Sight::of(names.iter().map(|name| (name, NodeStatus::Down))).doubted.len(), DOUBTS_MAX);
    }
}
