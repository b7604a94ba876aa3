//! What a node remembers of a snapshot that it sends.

use crate::mesh::crdt::{
    context::VersionVector,
    dot::{Actor, Key},
    map::Map,
};

/// A snapshot on its way to the peer.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// What it covers at its end: by name, because actors may be dropped meanwhile.
    pub(super) base: Vec<(Actor, u64)>,
    /// Where the next chunk begins.
    pub(super) next: Key,
    /// It covers all that was here when it began; one that goes on with another's may cover less.
    pub(super) is_whole: bool,
    /// Against lasting divergence, of which vectors tell nothing.
    pub(super) is_repair: bool,
}

impl Snapshot {
    /// Whether the peer, having seen this much, has all that the snapshot would bring.
    pub(super) fn is_needless(&self, map: &Map, theirs: &VersionVector) -> bool {
        let has = |(actor, counter): &(Actor, u64)| {
            map.actors().id(actor).is_none_or(|id| map.actors().counter(theirs, id) >= *counter)
        };
        !self.is_repair && self.base.iter().all(has)
    }
}
