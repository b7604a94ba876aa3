//! What voters say to each other, before and after [`crate::mesh::wire::coordination`] makes bytes of it.

use crate::mesh::{
    election::voters::{Voters, VotersId},
    node::NodeName,
};

/// Terms stay below this, so that none can be made that no leader can exceed.
pub const TERM_MAX: u64 = (1 << 48) - 1;

/// One message.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Message {
    /// The newest term that the sender knows; of [`Body::Poll`] and its answer the term that is asked for.
    pub term: u64,
    /// The set of voters that the sender uses.
    pub voters: VotersId,
    /// What it says.
    pub body: Body,
}

/// What a [`Message`] says.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Body {
    /// Would the receiver vote for the sender in this term (Raft thesis §9.6, pre-vote)? Changes nothing at the receiver.
    Poll {
        /// The set that the sender wants to be elected by.
        set: Voters,
    },
    /// Answers a `Poll`.
    PollReply {
        /// Yes.
        granted: bool,
    },
    /// Asks for the vote in this term.
    Vote {
        /// The set that the sender wants to be elected by.
        set: Voters,
    },
    /// Answers a `Vote`.
    VoteReply {
        /// The vote is the sender's in this term, and so is the receiver's promise.
        granted: bool,
    },
    /// The leader of this term lives.
    Heartbeat {
        /// Number of the round, from 1 in each term.
        round: u64,
    },
    /// Answers a `Heartbeat`.
    HeartbeatReply {
        /// Of that round.
        round: u64,
        /// Whether the promise to this leader was prolonged.
        granted: bool,
    },
    /// The leader of this term leads no more; promises to it end.
    Resign,
    /// Who leads, and who votes?
    Query,
    /// Answers a `Query`, and follows a refusal.
    Hint {
        /// Who leads in `leader_term`, as far as the sender knows at this moment.
        leader: Option<NodeName>,
        /// Its term.
        leader_term: u64,
    },
    /// A set of voters that is newer than the receiver's.
    Set {
        /// The set.
        set: Voters,
    },
}

/// A message for a node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Transmit {
    /// For whom.
    pub to: NodeName,
    /// What.
    pub message: Message,
}
