//! What the machine says and hears, before and after [`crate::mesh::wire::membership`] makes bytes of it.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;

use crate::mesh::node::{NodeName, NodeStatus};

/// Largest packet that is sent as a datagram, in bytes: fits every path that carries IPv6 with tunnels.
pub const DATAGRAM_BYTES_MAX: usize = 1200;

/// The path that a packet takes or took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Via {
    /// One datagram: unordered, may be lost.
    Datagram,
    /// The ordered stream between the two nodes.
    Stream,
}

/// What kind of message a packet is, for metrics.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum MessageKind {
    /// Direct probe.
    Ping,
    /// Answer to a probe.
    Ack,
    /// Request for an indirect probe.
    PingReq,
    /// A relay without an answer.
    Nack,
    /// Updates.
    Gossip,
    /// Acknowledged updates.
    GossipAck,
    /// A join or an exchange of whole lists.
    Sync,
    /// A name claimed.
    Claim,
    /// A message of another part of the program.
    User,
}

impl MessageKind {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Ack => "ack",
            Self::PingReq => "ping_req",
            Self::Nack => "nack",
            Self::Gossip => "gossip",
            Self::GossipAck => "gossip_ack",
            Self::Sync => "sync",
            Self::Claim => "claim",
            Self::User => "user",
        }
    }
}

/// Bytes for a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transmit {
    /// Advertised address of the peer, or the address that its packet came from.
    pub to: SocketAddr,
    /// Which path to take. Anything above [`DATAGRAM_BYTES_MAX`] is for the stream.
    pub via: Via,
    /// Kind of the message.
    pub kind: MessageKind,
    /// The packet.
    pub payload: Bytes,
}

/// One packet. Version and cluster label are the codec's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Sender.
    pub node: NodeName,
    /// Membership epoch of the sender in unix milliseconds.
    pub epoch_ms: u64,
    /// Incarnation of the sender.
    pub incarnation: u64,
    /// The message.
    pub body: Body,
    /// What the sender says of nodes.
    pub updates: Vec<Update>,
}

/// The message of a [`Packet`]. A `seq` is chosen by the asking side and repeated by the answer; a `digest` is the hash
/// over the sender's live members, 0 when unknown.
#[allow(missing_docs, reason = "the fields are those of membership.proto, where each has its unit and range")]
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// Asks `target` for an ack; anybody when none.
    Ping { seq: u64, target: Option<NodeName>, digest: u64 },
    /// `target` (the sender when none) answered the ping.
    Ack { seq: u64, target: Option<NodeName>, digest: u64 },
    /// Asks the receiver to ping `target`.
    PingReq { seq: u64, target: NodeName },
    /// The relay had no answer in time.
    Nack { seq: u64 },
    /// Updates; `seq` 0 wants no ack.
    Gossip { seq: u64 },
    /// The updates of `seq` arrived.
    GossipAck { seq: u64 },
    /// A join (own record alone) or a whole list.
    Sync { seq: u64, reply_wanted: bool },
    /// The name is the sender's since `boot_ms`; `echo` repeats the `nonce` of the claim that it answers.
    Claim { boot_ms: u64, addr: SocketAddr, nonce: u64, echo: u64 },
    /// A message of another part of the program, carried unread.
    User { payload: Bytes },
}

impl Body {
    /// The kind for metrics.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Ping { .. } => MessageKind::Ping,
            Self::Ack { .. } => MessageKind::Ack,
            Self::PingReq { .. } => MessageKind::PingReq,
            Self::Nack { .. } => MessageKind::Nack,
            Self::Gossip { .. } => MessageKind::Gossip,
            Self::GossipAck { .. } => MessageKind::GossipAck,
            Self::Sync { .. } => MessageKind::Sync,
            Self::Claim { .. } => MessageKind::Claim,
            Self::User { .. } => MessageKind::User,
        }
    }
}

/// What is said of one node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Update {
    /// Its name.
    pub name: NodeName,
    /// Its status; never [`NodeStatus::Init`], which a node says of itself alone.
    pub status: NodeStatus,
    /// Its membership epoch in unix milliseconds.
    pub epoch_ms: u64,
    /// Its incarnation within the epoch.
    pub incarnation: u64,
    /// Its advertised address.
    pub addr: SocketAddr,
    /// The same for people, `host:port`.
    pub host: String,
    /// Its zone; empty when unknown.
    pub zone: String,
    /// How long it has had this status, in whole seconds; zero unless DOWN or LEAVING.
    pub age: Duration,
    /// Who suspects it; empty unless SUSPECTED.
    pub accusers: Vec<NodeName>,
}
