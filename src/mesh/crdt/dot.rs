//! Actors and dots: the names of operations.

use std::{collections::BTreeMap, sync::Arc};

use crate::mesh::node::NodeName;

/// Actors that one namespace knows at most: 65 536. A frame that would name more is refused.
pub const ACTORS_MAX: usize = 65_536;

/// Largest dot counter: 2^48 operations of one boot epoch. A frame with a larger one is refused.
pub const COUNTER_MAX: u64 = 1 << 48;

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

/// Actors of one namespace, numbered in the order of their arrival; at most [`ACTORS_MAX`], never removed.
#[derive(Clone, Debug, Default)]
pub struct ActorTable {
    ids: BTreeMap<Actor, ActorId>,
    actors: Vec<(Actor, u64)>,
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

    /// The actor of a number that this table gave.
    #[must_use]
    pub fn actor(&self, id: ActorId) -> &Actor {
        &self.actors[id.index()].0
    }

    /// A hash of the actor that is the same on every node, unlike its number.
    #[must_use]
    pub fn hash(&self, id: ActorId) -> u64 {
        self.actors[id.index()].1
    }

    /// The number of an actor, given now if it is new. The caller has checked that there is room.
    pub fn intern(&mut self, actor: &Actor) -> ActorId {
        if let Some(id) = self.id(actor) {
            return id;
        }
        let id = ActorId(u32::try_from(self.actors.len()).unwrap_or(u32::MAX));
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(actor.node.as_str().as_bytes(), actor.boot_epoch_ms);
        self.ids.insert(actor.clone(), id);
        self.actors.push((actor.clone(), hash));
        id
    }

    /// Every actor in the order of actors, which is the same on every node.
    pub fn iter(&self) -> impl Iterator<Item = (&Actor, ActorId)> {
        self.ids.iter().map(|(actor, id)| (actor, *id))
    }
}
