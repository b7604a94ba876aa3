//! What nodes and the leader say to each other of rights, before [`crate::mesh::wire::coordination`] makes bytes of it.

use crate::mesh::{
    node::NodeName,
    quota::share::{LimitId, Share},
};

/// Limits that one message speaks of at most; a cluster has no more in force.
pub const LIMITS_MAX: usize = 32;

/// One message.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Message {
    /// To the leader.
    Ask(Ask),
    /// Answers an `Ask`.
    Grant(Grant),
}

/// A node asks for rights, and says what it holds: about ten times a second.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Ask {
    /// The reign that the sender knows of; 0: none.
    pub reign: u64,
    /// Number of the question, from 1; an answer names it.
    pub seq: u64,
    /// The newest grant of that reign that is in force at the sender; 0: none.
    pub held: u64,
    /// It leaves, and holds nothing any more.
    pub leaves: bool,
    /// Limits that it has use for, or holds something of; at most [`LIMITS_MAX`].
    pub wants: Vec<Want>,
}

/// What a node says of one limit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Want {
    /// Which.
    pub limit: LimitId,
    /// Requests that come to it, in millionths per second; those that are refused count too. Of slots those in flight, in
    /// millionths, and those refused within about 2 s, at most as many as are in flight and four.
    pub demand: u64,
    /// Micro-tokens that found no room when grant `held` came into force: they are the leader's again.
    pub given: u64,
    /// What the sender holds; of slots what is in use, where that is more than its share.
    pub held: Share,
}

/// What the leader lends to one node, until the lease ends.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Grant {
    /// A number that no other time of leading has; not 0.
    pub reign: u64,
    /// The question that is answered: the lease counts from when it was sent.
    pub ask: u64,
    /// Number of the grant within the reign; 0: nothing is granted yet, ask again with this reign.
    pub seq: u64,
    /// How long it holds, in milliseconds.
    pub lease_ms: u32,
    /// What the node holds from now on; of limits that are not named nothing. At most [`LIMITS_MAX`].
    pub rights: Vec<Right>,
}

/// A share of one limit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Right {
    /// Of which.
    pub limit: LimitId,
    /// How much.
    pub share: Share,
    /// Micro-tokens that come with it, once.
    pub credit: u64,
}

/// A message for a node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Transmit {
    /// For whom.
    pub to: NodeName,
    /// What.
    pub message: Message,
}
