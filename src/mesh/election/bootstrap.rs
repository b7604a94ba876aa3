//! The first set of voters of a cluster that was given none.
//!
//! A node that knows of no set asks whoever is ALIVE. When everybody who is knows of none either, and they are a quorum of
//! the nodes that the operator's list of peers speaks of, the first of them by name makes a set of them all. Two disjoint
//! groups cannot both be a quorum of the same list. Two sets that were made at once are ordered by the term of the first
//! leader, and every node takes the later one.
//!
//! A node without peers is a quorum of its own list. It waits [`Timing::alone`](super::Timing::alone) for nodes that know
//! more, because it may have run before: members contact a peer that is gone about once a second. If it starts again while
//! it is cut off from all of them, it leads alone until the cut is over; peers on every node, `--mesh-voters` or a data
//! directory rule that out.

use std::time::{Duration, Instant};

use super::{
    Election, Event, Role, Standing,
    message::Body,
    voters::{AUTO_VOTERS_MAX, Voters},
};
use crate::mesh::node::NodeName;

/// Between two questions to everybody, and twice the time that an answer counts.
const ASK_INTERVAL: Duration = Duration::from_millis(250);
const BLANK_FOR: Duration = Duration::from_millis(1500);

/// Peers that are asked at most; a cluster that starts with more makes its first set of these.
const ASKED_MAX: usize = 64;

impl Election {
    /// A peer says that it knows of no voters.
    pub(super) fn on_blank(&mut self, now: Instant, from: &NodeName) {
        if self.ballot.voters.is_none() && self.peers.contains_key(from) {
            self.blank.insert(from.clone(), now);
        }
    }

    pub(super) fn run_bootstrap(&mut self, now: Instant) {
        if self.ballot.voters.is_some() {
            return;
        }
        if self.set_query_due <= now {
            self.set_query_due = now + ASK_INTERVAL;
            for name in self.alive().iter().take(ASKED_MAX) {
                self.send(name, Body::Query);
            }
        }
        if let Some(set) = self.first_set(now) {
            self.ballot.voters = Some(set.clone());
            self.save();
            self.events.push_back(Event::VotersChanged(set.clone()));
            self.role = Role::Follower;
            self.campaign_due = now;
            let message = self.message(Body::Set { set });
            self.broadcast(&message);
        }
    }

    fn alive(&self) -> Vec<NodeName> {
        let alive = self.peers.iter().filter(|(_, standing)| **standing == Standing::Alive);
        alive.map(|(name, _)| name.clone()).collect()
    }

    /// The set, when it is on this node to make it.
    fn first_set(&self, now: Instant) -> Option<Voters> {
        let alive = self.alive();
        let is_blank = |name: &NodeName| self.blank.get(name).is_some_and(|at| now < *at + BLANK_FOR);
        let is_alone = alive.is_empty();
        let is_first = alive.iter().all(|name| *name > self.config.node);
        let agree = alive.iter().take(ASKED_MAX).all(is_blank) && alive.len() + 1 > self.config.expected / 2;
        let waited = if is_alone { self.config.timing.alone } else { Duration::ZERO };
        if self.leaving || !is_first || !agree || now < self.abstain_until || now < self.born + waited {
            return None;
        }
        let names = [self.config.node.clone()].into_iter().chain(alive).take(AUTO_VOTERS_MAX);
        Voters::new(0, 1, names).ok()
    }
}
