//! What the replication machine tells of what it does.

use std::time::Duration;

use super::{
    PipeId,
    frame::{Frame, Kind},
};
use crate::mesh::{node::NodeName, stores::Namespace};

/// News for logs and metrics.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum SyncEvent {
    /// A delta was handed out.
    DeltaSent {
        /// On which pipe.
        pipe: PipeId,
        /// To whom.
        peer: NodeName,
        /// Keys in it.
        keys: usize,
        /// Size of the frame.
        delta_bytes: usize,
    },
    /// A delta was joined.
    DeltaReceived {
        /// From whom.
        peer: NodeName,
        /// Keys in it.
        keys: usize,
        /// Size of the frame.
        delta_bytes: usize,
    },
    /// A chunk of a snapshot was handed out.
    SnapshotSent {
        /// On which pipe.
        pipe: PipeId,
        /// Of what.
        namespace: Namespace,
        /// To whom.
        peer: NodeName,
        /// Size of the frame.
        chunk_bytes: usize,
        /// It was the last chunk.
        is_last: bool,
    },
    /// A chunk of a snapshot was joined.
    SnapshotReceived {
        /// On which pipe.
        pipe: PipeId,
        /// Of what.
        namespace: Namespace,
        /// From whom.
        peer: NodeName,
        /// Size of the frame.
        chunk_bytes: usize,
        /// It was the last chunk.
        is_last: bool,
    },
    /// A digest or ack was handed out.
    DigestSent {
        /// To whom.
        peer: NodeName,
        /// Size of the frame.
        digest_bytes: usize,
    },
    /// A peer has joined frames of ours.
    Acked {
        /// Who.
        peer: NodeName,
        /// From handing out the newest of them to its ack.
        latency: Duration,
    },
    /// A peer has sent everything that it had when its pipe opened.
    CaughtUp {
        /// Who.
        peer: NodeName,
    },
    /// A peer's vectors and roots equal ours.
    InSync {
        /// The pipe to it.
        pipe: PipeId,
        /// Who.
        peer: NodeName,
    },
    /// A peer said that this node's epoch is folded, as happens when its clock was set back over a restart: it goes on in
    /// a higher one.
    EpochRaised {
        /// Who said it.
        peer: NodeName,
        /// The new epoch in unix milliseconds.
        epoch_ms: u64,
    },
    /// An ack told the peer's clock.
    ClockSkew {
        /// Whose.
        peer: NodeName,
        /// By how many milliseconds it leads ours; see [`clock`](super::clock).
        skew_ms: i64,
    },
    /// A timestamp of a peer's state leads our wall clock too far to follow.
    ClockAhead {
        /// Who sent it; the writer may be another node.
        peer: NodeName,
        /// By how much, in milliseconds.
        ahead_ms: u64,
    },
}

/// What handing out a frame is told as.
pub(super) fn sent_event(pipe: PipeId, peer: NodeName, frame: &Frame, frame_bytes: usize) -> SyncEvent {
    match &frame.kind {
        Kind::Ack(_) => SyncEvent::DigestSent { peer, digest_bytes: frame_bytes },
        Kind::Body(namespace, body) => match &body.chunk {
            Some(chunk) => {
                let (namespace, is_last) = (*namespace, chunk.to.is_none());
                SyncEvent::SnapshotSent { pipe, namespace, peer, chunk_bytes: frame_bytes, is_last }
            }
            None => SyncEvent::DeltaSent { pipe, peer, keys: body.keys.len(), delta_bytes: frame_bytes },
        },
    }
}
