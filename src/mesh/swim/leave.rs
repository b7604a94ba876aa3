//! Leaving: the node says so itself, waits until a quorum of its live peers has acked, and is never called DOWN for it.
//!
//! A LEAVING node is not probed. It answers as long as it runs, is shown LEAVING, and is forgotten after
//! `SwimConfig::forget_left_after`.

use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;

use super::{Event, Swim, config::ACKED_NODES_MAX};
use crate::mesh::node::{NodeName, NodeStatus};

/// How long a leaving node waits for acks.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A leave under way.
#[derive(Debug)]
pub(super) struct Leave {
    /// Who was told and has not acked.
    told: Vec<NodeName>,
    /// Acks still wanted.
    wanted: usize,
    /// End of the wait; none once it is over.
    until: Option<Instant>,
}

impl Leave {
    pub(super) fn is_over(&self) -> bool {
        self.until.is_none()
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        self.until
    }
}

impl Swim {
    /// Announces LEAVING. [`Event::Left`] follows once a quorum of the live peers (of at most 32 of them) has acked, or
    /// after 2 s. Calling it again changes nothing.
    pub fn leave(&mut self, now: Instant) {
        if self.leave.is_some() || self.name_taken {
            return;
        }
        self.change_me(now, |me| {
            me.status = NodeStatus::Leaving;
            me.since = now;
        });
        let me = self.config.node.clone();
        let live = self.members.live().to_vec();
        let told: Vec<_> = live.sample(&mut self.rng, ACKED_NODES_MAX).cloned().collect();
        self.spread(now, &me);
        for peer in &told {
            self.post(now, peer, &me);
        }
        let wanted = if told.is_empty() { 0 } else { told.len() / 2 + 1 };
        self.leave = Some(Leave { told, wanted, until: Some(now + WAIT_MAX) });
        self.run_leave(now);
        self.flush_posts(now);
    }

    pub(super) fn on_own_record_acked(&mut self, peer: &NodeName) {
        if let Some(leave) = &mut self.leave
            && let Some(at) = leave.told.iter().position(|name| name == peer)
        {
            leave.told.swap_remove(at);
            leave.wanted = leave.wanted.saturating_sub(1);
            if leave.wanted == 0 && leave.until.take().is_some() {
                self.events.push_back(Event::Left);
            }
        }
    }

    pub(super) fn run_leave(&mut self, now: Instant) {
        if let Some(leave) = &mut self.leave
            && leave.until.take_if(|until| *until <= now || leave.wanted == 0).is_some()
        {
            self.events.push_back(Event::Left);
        }
    }
}
