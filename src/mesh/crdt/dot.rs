//! Actors and dots: the names of operations.

use std::{collections::BTreeMap, sync::Arc};

use super::context::VersionVector;
use crate::mesh::node::NodeName;

/// Actors that one namespace knows at most: 65 536. A frame that would name more is refused.
pub const ACTORS_MAX: usize = 65_536;

/// Largest dot counter: 2^48 operations of one boot epoch. A frame with a larger one is refused.
pub const COUNTER_MAX: u64 = 1 << 48;

/// Largest floor: 2^46 milliseconds, in the year 4199. A frame with a larger one is refused, so that every node finds
/// an epoch above its floor.
pub const FLOOR_MS_MAX: u64 = 1 << 46;

/// A key of a namespace; shared between the entry and the indexes that point to it.
pub type Key = Arc<[u8]>;

/// Who performs operations: a node in one boot epoch, so that a restart without data never reuses a dot.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Actor {
    /// The node.
    pub node: NodeName,
    /// Unix time of its start in milliseconds.
    pub boot_epoch_ms: u64,
}

impl Actor {
    /// The pseudo-actor whose counter is the *floor* of `node`: actors of that node with a lower boot epoch are folded.
    /// See [`crdt`](super).
    #[must_use]
    pub fn floor_of(node: &NodeName) -> Self {
        Self { node: node.clone(), boot_epoch_ms: 0 }
    }

    /// Whether it is a floor, which performs no operations.
    #[must_use]
    pub fn is_floor(&self) -> bool {
        self.boot_epoch_ms == 0
    }
}

/// An actor's number in one table: of a namespace, or of a frame. It means nothing outside that table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ActorId(pub u32);

impl ActorId {
    /// The number as an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The name of one operation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Dot {
    /// Who performed it.
    pub actor: ActorId,
    /// Its number among that actor's operations in the namespace, from 1.
    pub counter: u64,
}

#[derive(Clone, Debug)]
struct Known {
    actor: Actor,
    hash: u64,
    floor: Option<ActorId>,
}

/// Actors of one namespace, numbered in the order of their arrival; at most [`ACTORS_MAX`]. Numbers are never reused.
#[derive(Clone, Debug, Default)]
pub struct ActorTable {
    ids: BTreeMap<Actor, ActorId>,
    actors: BTreeMap<ActorId, Known>,
    next: u32,
}

impl ActorTable {
    /// How many actors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.actors.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.actors.is_empty()
    }

    /// The number of a known actor.
    #[must_use]
    pub fn id(&self, actor: &Actor) -> Option<ActorId> {
        self.ids.get(actor).copied()
    }

    /// Whether the number still means an actor: folded ones without live dots are dropped.
    #[must_use]
    pub fn knows(&self, id: ActorId) -> bool {
        self.actors.contains_key(&id)
    }

    /// The actor of a number that this table gave and has not dropped.
    #[must_use]
    pub fn actor(&self, id: ActorId) -> &Actor {
        &self.actors[&id].actor
    }

    /// A hash of the actor that is the same on every node, unlike its number.
    #[must_use]
    pub fn hash(&self, id: ActorId) -> u64 {
        self.actors[&id].hash
    }

    /// Up to where `vector` covers the actor's dots, floors counted: all of a folded actor.
    #[must_use]
    pub fn counter(&self, vector: &VersionVector, id: ActorId) -> u64 {
        let is_folded = |known: &Known| {
            known.floor.is_some_and(|floor| !known.actor.is_floor() && vector.get(floor) > known.actor.boot_epoch_ms)
        };
        if self.actors.get(&id).is_none_or(is_folded) { COUNTER_MAX } else { vector.get(id) }
    }

    /// Whether `vector` covers the dot, floors counted.
    #[must_use]
    pub fn covers(&self, vector: &VersionVector, dot: Dot) -> bool {
        vector.contains(dot) || dot.counter <= self.counter(vector, dot.actor)
    }

    /// The number of an actor, given now if it is new. The caller has checked that there is room.
    pub fn intern(&mut self, actor: &Actor) -> ActorId {
        if let Some(id) = self.id(actor) {
            return id;
        }
        let id = ActorId(self.next);
        self.next = self.next.saturating_add(1);
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(actor.node.as_str().as_bytes(), actor.boot_epoch_ms);
        let mut floor = self.id(&Actor::floor_of(&actor.node));
        if actor.is_floor() {
            floor = Some(id);
            let of_node: Vec<ActorId> = self.of_node(&actor.node).map(|(_, id)| id).collect();
            for known in of_node {
                self.actors.entry(known).and_modify(|known| known.floor = floor);
            }
        }
        self.ids.insert(actor.clone(), id);
        self.actors.insert(id, Known { actor: actor.clone(), hash, floor });
        id
    }

    /// Every actor in the order of actors, which is the same on every node.
    pub fn iter(&self) -> impl Iterator<Item = (&Actor, ActorId)> {
        self.ids.iter().map(|(actor, id)| (actor, *id))
    }

    /// The actors of one node that are no floors, by epoch.
    pub fn of_node(&self, node: &NodeName) -> impl Iterator<Item = (&Actor, ActorId)> {
        let first = Actor { node: node.clone(), boot_epoch_ms: 1 };
        let last = Actor { node: node.clone(), boot_epoch_ms: u64::MAX };
        self.ids.range(first..=last).map(|(actor, id)| (actor, *id))
    }

    /// Drops an actor of which nothing is left.
    pub(super) fn drop(&mut self, id: ActorId) {
        if let Some(known) = self.actors.remove(&id) {
            self.ids.remove(&known.actor);
        }
    }
}
