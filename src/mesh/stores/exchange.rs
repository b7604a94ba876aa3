//! What the stores of a node take from peers and from its disk.

use std::collections::BTreeSet;

use super::{Namespace, StoreEvent, Stores};
use crate::mesh::{
    crdt::{
        context::VersionVector,
        delta::{Body, BodyError},
        dot::{FLOOR_MS_MAX, Key},
        map::Map,
    },
    hlc::Timestamp,
    node::NodeName,
};

impl Stores {
    /// The boot epoch that this node writes in: its start, or more when its clock was set back over a restart.
    #[must_use]
    pub fn epoch_ms(&self) -> u64 {
        self.maps[0].own_epoch_ms()
    }

    /// Joins what a peer sent; gives by how many milliseconds the worst timestamp leads our clock, when that is too much
    /// to follow. When it says that our epoch is folded, a higher one is begun first.
    ///
    /// # Errors
    /// As [`Map::apply`]: nothing was applied.
    pub fn apply(
        &mut self,
        wall_ms: u64,
        namespace: Namespace,
        peer: &mut VersionVector,
        body: Body,
    ) -> Result<Option<u64>, BodyError> {
        self.heed_floors(&body)?;
        let stamps: Vec<Timestamp> = body.keys.iter().flat_map(|key| key.live.iter().map(|live| live.stamp)).collect();
        let changed = self.maps[namespace.index()].apply(peer, body)?;
        let ahead_ms = stamps.into_iter().filter_map(|stamp| self.clock.observe(wall_ms, stamp)).max();
        for key in changed {
            match namespace {
                Namespace::Policies => {
                    if let Ok(model) = std::str::from_utf8(&key) {
                        self.push_event(StoreEvent::PolicyChanged(model.into()));
                    }
                }
                Namespace::Workers => self.on_worker_key(&key),
                Namespace::Sessions => self.on_session_key(&key),
                Namespace::Routing => self.on_routing_key(&key),
            }
        }
        Ok(ahead_ms)
    }

    /// Joins what this node itself saved before it ended.
    ///
    /// # Errors
    /// As [`Map::apply`]: nothing was applied.
    pub fn restore(
        &mut self,
        wall_ms: u64,
        namespace: Namespace,
        saved: &mut VersionVector,
        body: Body,
    ) -> Result<(), BodyError> {
        self.apply(wall_ms, namespace, saved, body).map(drop)
    }

    /// From now on remembers which keys change. See [`Map::track_changes`].
    pub fn track_changes(&mut self) {
        self.maps.iter_mut().for_each(Map::track_changes);
    }

    /// The keys of a namespace that changed. See [`Map::take_changes`].
    pub fn take_changes(&mut self, namespace: Namespace) -> Option<BTreeSet<Key>> {
        self.maps[namespace.index()].take_changes()
    }

    /// Begins a higher epoch in every namespace when the body's floor for this node is above the present one.
    fn heed_floors(&mut self, body: &Body) -> Result<(), BodyError> {
        let chunk = body.chunk.iter().flat_map(|chunk| chunk.base.iter().chain(&chunk.guard)).copied();
        let told = body.context.iter().copied().chain(body.covers.iter().map(|cover| (cover.actor, cover.to)));
        let mut own_floor_ms = 0;
        let keys = body.keys.iter().flat_map(|state| &state.guard).copied();
        for (actor, floor_ms) in told.chain(chunk).chain(keys) {
            let Some(actor) = body.actors.get(actor.index()).filter(|actor| actor.is_floor()) else { continue };
            if floor_ms > FLOOR_MS_MAX {
                return Err(BodyError::FloorAhead);
            }
            if actor.node == self.node {
                own_floor_ms = own_floor_ms.max(floor_ms);
            }
        }
        if own_floor_ms > self.epoch_ms() {
            let epoch_ms = epoch_above(own_floor_ms, self.epoch_ms());
            for map in &mut self.maps {
                map.raise_epoch(epoch_ms);
            }
        }
        Ok(())
    }

    /// Folds dead epochs of a node: see [`Map::fold`].
    pub fn fold(&mut self, namespace: Namespace, node: &NodeName, floor_ms: u64) {
        self.maps[namespace.index()].fold(node, floor_ms);
    }

    /// Drops what is no longer needed; to be called now and then.
    pub fn prune(&mut self) {
        self.maps.iter_mut().for_each(Map::prune);
    }
}

/// An epoch at most 35 min above a floor, and so less than the hour that floors keep behind the clocks of others. It
/// depends on the process, so that one which did the same before, and whose dots may still live somewhere, had another.
fn epoch_above(floor_ms: u64, boot_epoch_ms: u64) -> u64 {
    floor_ms + 1 + (xxhash_rust::xxh3::xxh3_64(&boot_epoch_ms.to_le_bytes()) >> 43)
}
