//! What gateways tell one another about prompts and loads, beside the replicated state: hints, each standing alone.
//!
//! They travel on a lane of the pipes that replication has, to every peer that a pipe leads to, once, and are not
//! repeated: a hint that is lost costs a request its best worker. Above 32 nodes, where pipes lead to some of the nodes
//! alone, the others go without: they find running conversations at their homes all the same.

use std::{collections::BTreeMap, sync::Arc};

use crate::mesh::node::{NodeName, NodeStatus};

/// Workers in one message at most.
pub const LOADS_MAX: usize = 4096;

/// Placements in one message at most.
pub const PLACEMENTS_MAX: usize = 4096;

/// Names in one placement at most.
pub const NAMES_MAX: usize = 4096;

/// Models in one message at most.
pub const MODELS_MAX: usize = 64;

/// Members in doubt that one message names at most.
pub const DOUBTS_MAX: usize = 256;

/// One hint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// Requests that the sender has in flight by tag of the worker; none at workers that are not named.
    Loads(Vec<(u32, u32)>),
    /// Prompts that went where others would not expect them.
    Placements(Vec<Placement>),
    /// The sender has just started: it wants the placements that the receiver used last.
    Ask,
    /// What the sender holds its members for.
    Sight(Sight),
}

/// What one node holds the members for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sight {
    /// Members that are ALIVE to it, itself included.
    pub alive: u32,
    /// Members that are not, and what they are instead; at most [`DOUBTS_MAX`].
    pub doubted: BTreeMap<NodeName, NodeStatus>,
}

/// A prompt that went to a worker, as names of its prefixes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Placement {
    /// Name of the model, 1 to 256 bytes.
    pub model: Arc<str>,
    /// Tag of the worker.
    pub worker: u32,
    /// Low byte of its generation.
    pub generation: u8,
    /// How long ago.
    pub age_ms: u32,
    /// Names of the prefixes, 1 to [`NAMES_MAX`].
    pub names: Vec<u64>,
}

impl Placement {
    /// About as many bytes as it takes in a frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        24 + 8 * self.names.len()
    }
}
