//! Names and statuses of nodes: the words that every part of the mesh shares.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest node name in bytes: a DNS label path as Kubernetes makes them fits with room.
pub const NAME_BYTES_MAX: usize = 128;

/// Name of a node: 1 to 128 bytes of ASCII letters, digits, `.`, `_` and `-`; unique in the cluster.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeName(Arc<str>);

/// Why a text is no node name. Choose another name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a node name has 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-'")]
pub struct NodeNameError;

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, NodeNameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(plain) {
            return Err(NodeNameError);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Status of a node as another node sees it, in the order of precedence within one incarnation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum NodeStatus {
    /// The node is starting up and has not joined yet.
    Init,
    /// The node is healthy and reachable.
    Alive,
    /// The node may be unreachable: probes failed, and it may still refute.
    Suspected,
    /// The node is confirmed unreachable.
    Down,
    /// The node is shutting down on its own wish.
    Leaving,
}

impl NodeStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [Self::Init, Self::Alive, Self::Suspected, Self::Down, Self::Leaving];

    /// The spelling of the HA API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "INIT",
            Self::Alive => "ALIVE",
            Self::Suspected => "SUSPECTED",
            Self::Down => "DOWN",
            Self::Leaving => "LEAVING",
        }
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_short() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for (case, text, accepted) in [
            ("simple", "node1", true),
            ("stateful set pod with its domain", "smg-0.smg-mesh", true),
            ("longest", &*longest, true),
            ("too long", &*too_long, false),
            ("empty", "", false),
            ("space", "node 1", false),
            ("slash, which separates keys", "a/b", false),
            ("not ascii", "nöde", false),
        ] {
            assert_eq!(text.parse::<NodeName>().is_ok(), accepted, "{case}");
        }
    }
}
