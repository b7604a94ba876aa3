//! The frames of the sync lane, decoded.

use bytes::Bytes;

use super::clock::Reading;
use crate::mesh::{
    crdt::{delta::Body, dot::Actor},
    stores::Namespace,
};

/// One frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Position among the frames of this direction of the pipe, from 0.
    pub seq: u64,
    /// What it says.
    pub kind: Kind,
}

/// What a frame says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// From the node that accepted the pipe.
    Ack(Ack),
    /// From the node that dialed it: a delta, or a chunk of a snapshot.
    Body(Namespace, Body),
}

/// What the acceptor has, and what it has received.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ack {
    /// Frames received on this pipe so far.
    pub received: u64,
    /// The dialer may push everything, not its own writes alone.
    pub grant: bool,
    /// Chunks to the acceptor may be compressed.
    pub reads_lz4: bool,
    /// The acceptor's clock, when frames came since the last ack.
    pub clock: Option<Reading>,
    /// What changed.
    pub namespaces: Vec<NamespaceAck>,
}

/// What the acceptor has in one namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamespaceAck {
    /// Which.
    pub namespace: Namespace,
    /// What was seen of every key, where that changed since the last ack on the pipe.
    pub seen: Vec<(Actor, u64)>,
    /// Root over all live dots.
    pub root: u64,
    /// More than `seen` is known of some keys.
    pub guarded: bool,
    /// A snapshot is on its way to the acceptor, from whomever, or stopped on it.
    pub is_receiving: bool,
    /// A snapshot stopped before this key, and would cover these dots.
    pub resume: Option<(Bytes, Vec<(Actor, u64)>)>,
}
