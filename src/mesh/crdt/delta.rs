//! What one replica tells another: states of whole keys, with the context that they were taken in.

use std::sync::Arc;

use super::{
    dot::{Actor, ActorId, Dot, Key},
    map::LiveRef,
};
use crate::mesh::hlc::Timestamp;

/// A dot that lives, with what its operation wrote.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Live {
    /// The operation.
    pub dot: Dot,
    /// When it was, by the writer's HLC.
    pub stamp: Timestamp,
    /// What it wrote.
    pub payload: Arc<[u8]>,
}

impl From<LiveRef<'_>> for Live {
    fn from(live: LiveRef<'_>) -> Self {
        Self { dot: live.dot, stamp: live.stamp, payload: live.payload.into() }
    }
}

/// The whole state of one key at the sender.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyState {
    /// The key.
    pub key: Key,
    /// Its live dots; empty: the key is removed.
    pub live: Vec<Live>,
    /// Dead dots by which the key was found, so that the receiver can pass them on.
    pub records: Vec<Dot>,
    /// What the sender has seen of this key beyond its context.
    pub guard: Vec<(ActorId, u64)>,
}

/// The receiver has seen every dot of `actor` above `from` up to `to` once the body is applied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cover {
    /// Whose dots.
    pub actor: ActorId,
    /// Exclusive; the receiver must have seen up to here.
    pub from: u64,
    /// Inclusive.
    pub to: u64,
}

/// Part of a snapshot: the body lists every key of the range that lives at the sender.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// First key of the range, inclusive; empty for the first chunk.
    pub from: Key,
    /// End of the range, exclusive; none for the last chunk.
    pub to: Option<Key>,
    /// What the sender has seen of every key of the range beyond its context.
    pub guard: Vec<(ActorId, u64)>,
    /// What the sender had seen when the snapshot began; seen by the receiver after the last chunk.
    pub base: Vec<(ActorId, u64)>,
}

/// A delta or a chunk of a snapshot. Actor numbers are indices into `actors`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Body {
    /// The actors that the numbers mean.
    pub actors: Vec<Actor>,
    /// What the sender's context gained since its last body on the same pipe.
    pub context: Vec<(ActorId, u64)>,
    /// States of keys.
    pub keys: Vec<KeyState>,
    /// What the receiver has seen after this body.
    pub covers: Vec<Cover>,
    /// Present in a chunk of a snapshot.
    pub chunk: Option<Chunk>,
    /// The receiver now has seen all that the sender has, in every namespace that both know.
    pub complete: bool,
}

/// Why a body was refused. Nothing of it was applied; the pipe that brought it is to be closed, and a new one starts
/// from the digest.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// A dot, record or cover lies beyond what the sender says it has seen.
    #[error("dot beyond the sender's context")]
    DotBeyondContext,
    /// It names dots of this very actor that were never given.
    #[error("forged dot of the receiving actor")]
    ForgedDot,
    /// It folds the receiver's own epoch, which its stores avoid by a higher one, or epochs that no clock reaches.
    #[error("floor above a running epoch")]
    FloorAhead,
    /// It starts above what was seen here, or a snapshot goes on where none stopped.
    #[error("gap between what was seen and what is covered")]
    Gap,
    /// A number names no actor of the body.
    #[error("unknown actor number")]
    UnknownActor,
    /// The namespace would know more actors than it may.
    #[error("too many actors")]
    TooManyActors,
    /// This node is too far behind too many keys to keep their guards; it recovers through a snapshot.
    #[error("too many guarded keys")]
    TooManyGuards,
    /// A key lies outside the chunk's range, or the range is empty.
    #[error("key outside the chunk")]
    KeyOutsideChunk,
}
