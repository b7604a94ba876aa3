//! What the machine tells the rest of the program.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;

use crate::mesh::node::{NodeName, NodeStatus};

/// News for the rest of the program, in the order in which it happened.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// This node left INIT: another node was heard, or there is none to wait for.
    Joined,
    /// A peer appeared or changed its status, epoch or address.
    MemberChanged(MemberChange),
    /// A peer that was DOWN or LEAVING for its documented time is no longer a member.
    Forgotten {
        /// Who.
        name: NodeName,
    },
    /// A peer is suspected.
    Suspected {
        /// Who.
        name: NodeName,
        /// Whether this node's own probe failed; otherwise it was heard from another.
        local: bool,
    },
    /// A peer that was suspected or called DOWN showed that the same process lives.
    FalseSuspicion {
        /// Who.
        name: NodeName,
    },
    /// This node heard itself called SUSPECTED, DOWN or LEAVING and raised its incarnation.
    Refuted {
        /// The new incarnation.
        incarnation: u64,
    },
    /// A direct probe was answered.
    Rtt {
        /// By whom.
        peer: NodeName,
        /// After how long.
        rtt: Duration,
    },
    /// A probe of the ring reached a peer by its stream or through another node: the ping or the ack by datagram was lost.
    Detour {
        /// Whom.
        peer: NodeName,
    },
    /// How much this node trusts its own probes changed (Lifeguard §IV.A): 0 is full trust, 8 the least.
    LocalHealth {
        /// The new score.
        score: u32,
    },
    /// An older live process has this node's name. This process must exit or take another name.
    NameTaken {
        /// Start of the other in unix milliseconds.
        boot_epoch_ms: u64,
        /// Where the other is.
        addr: SocketAddr,
    },
    /// A peer held a higher epoch for this name, left by an earlier process: this node's epoch was raised above it.
    EpochRaised {
        /// The new membership epoch.
        epoch_ms: u64,
    },
    /// A record with an epoch that is years ahead was refused: nothing could exceed it.
    EpochRefused {
        /// Of whom; the first of a packet.
        name: NodeName,
        /// The epoch.
        epoch_ms: u64,
    },
    /// A peer sent a message for another part of the program. It proves nothing but that the peer could send it.
    User {
        /// Who.
        from: NodeName,
        /// 1 to [`USER_BYTES_MAX`](crate::mesh::wire::membership::USER_BYTES_MAX) bytes.
        payload: Bytes,
    },
    /// A quorum of the live peers knows that this node is leaving, or the bounded wait is over.
    Left,
}

/// One change of a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MemberChange {
    /// Who.
    pub name: NodeName,
    /// Its status before; none for a new member.
    pub from: Option<NodeStatus>,
    /// Its status now.
    pub to: NodeStatus,
    /// Its address now.
    pub addr: SocketAddr,
    /// Its epoch now.
    pub epoch_ms: u64,
    /// Why.
    pub reason: ChangeReason,
}

/// Why a peer changed.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ChangeReason {
    /// The peer said so itself.
    Direct,
    /// Another peer said so.
    Rumour,
    /// This node's probes were not answered in time.
    ProbeFailed,
    /// The time to refute is over and a last round of probes met silence.
    Verified,
}

impl ChangeReason {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Rumour => "rumour",
            Self::ProbeFailed => "probe_failed",
            Self::Verified => "verified",
        }
    }
}
