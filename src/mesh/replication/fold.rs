//! When dead epochs of a node may be folded away, so that vectors do not grow with restarts.
//!
//! The algorithm and its safety argument are in [`crdt`](crate::mesh::crdt). This file finds out that an epoch is dead
//! and that every member has seen the same of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::mesh::{
    crdt::{dot::Actor, map::Map},
    node::NodeName,
};

/// A member that left has a say for this long: 24 h.
pub const ABSENT_MAX: Duration = Duration::from_secs(24 * 3600);

/// A floor is at least this far behind our wall clock: 1 h. A node whose clock is set back by less than that while it
/// restarts can still write.
pub const FLOOR_MARGIN: Duration = Duration::from_secs(3600);

/// Who has a say. Bounded by the names of members and of actors.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// When each left; none: it is there.
    left: BTreeMap<NodeName, Option<Instant>>,
}

impl Members {
    /// Says who is there.
    pub(super) fn set(&mut self, now: Instant, present: &BTreeSet<NodeName>) {
        for (name, left) in &mut self.left {
            if !present.contains(name) {
                left.get_or_insert(now);
            }
        }
        self.left.extend(present.iter().map(|name| (name.clone(), None)));
    }

    /// Takes a node that is known from its writes alone for one that was there until now.
    pub(super) fn learn(&mut self, now: Instant, map: &Map) {
        for (actor, _) in map.actors().iter() {
            if !self.left.contains_key(&actor.node) {
                self.left.insert(actor.node.clone(), Some(now));
            }
        }
    }

    /// Everybody who has a say.
    pub(super) fn voters(&self, now: Instant) -> impl Iterator<Item = &NodeName> {
        let counts = move |left: &Option<Instant>| left.is_none_or(|at| now < at + ABSENT_MAX);
        self.left.iter().filter(move |(_, left)| counts(left)).map(|(name, _)| name)
    }
}

/// Nodes with epochs that could be folded, and the floor for each: its largest epoch that is not above `wall_ms` less the
/// margin, nor above the epoch that `running` says is running.
pub(super) fn candidates(map: &Map, wall_ms: u64, running: impl Fn(&NodeName) -> Option<u64>) -> Vec<(NodeName, u64)> {
    let margin_ms = u64::try_from(FLOOR_MARGIN.as_millis()).unwrap_or(u64::MAX);
    let mut floors = BTreeMap::<&NodeName, (u64, u64)>::new();
    let is_candidate = |actor: &&Actor| {
        let limit_ms = running(&actor.node).unwrap_or(u64::MAX).min(wall_ms.saturating_sub(margin_ms));
        !actor.is_floor() && !map.is_folded(actor) && actor.boot_epoch_ms <= limit_ms
    };
    for actor in map.actors().iter().map(|(actor, _)| actor).filter(is_candidate) {
        let (count, floor_ms) = floors.entry(&actor.node).or_default();
        (*count, *floor_ms) = (*count + 1, actor.boot_epoch_ms.max(*floor_ms));
    }
    // The epoch of the floor itself is not folded by it.
    let foldable = floors.into_iter().filter(|(_, (count, _))| *count > 1);
    foldable.map(|(node, (_, floor_ms))| (node.clone(), floor_ms)).collect()
}
