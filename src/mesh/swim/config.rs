//! Settings of the machine and the numbers that bound it.

use std::{net::SocketAddr, time::Duration};

use crate::mesh::node::NodeName;

/// Members known at most, this node included. When full, the longest gone (DOWN or LEAVING) makes room; without one the
/// newcomer is refused and asks again at its next round.
pub const MEMBERS_MAX: usize = 4096;

/// Members at most of which rumours alone tell. Without `--mesh-tls` a stranger's datagrams can invent many; further ones
/// are taken only from themselves, or from a list that a heard member or an asked seed sent.
pub const HEARSAY_MAX: usize = 256;

/// How long a DOWN node is kept that was never heard itself; `forget_down_after` when that is less. Who heard it keeps it,
/// so that no partition goes unhealed.
pub const FORGET_HEARSAY_AFTER: Duration = Duration::from_secs(300);

/// Up to this many live nodes everybody probes everybody in each interval (DESIGN §3.1).
pub const FULL_PROBE_NODES_MAX: usize = 8;

/// Up to this many live nodes an update goes to every peer and is acked; above, it is gossiped (DESIGN §3.8).
pub const ACKED_NODES_MAX: usize = 32;

/// Peers that one gossip round reaches.
pub const FANOUT: usize = 3;

/// Settings of [`super::Swim`].
#[derive(Clone, Debug)]
pub struct SwimConfig {
    /// This node's name.
    pub node: NodeName,
    /// Cluster label, 1 to 64 bytes; packets with another label are refused. Default `smg`.
    pub cluster: String,
    /// Start of this process in unix milliseconds: the epoch of its records, unless peers hold a higher one.
    pub boot_epoch_ms: u64,
    /// Advertised address, never unspecified.
    pub addr: SocketAddr,
    /// Advertised `host:port` for people, at most 262 bytes. Default: `addr` as text.
    pub host: String,
    /// Availability zone, at most 64 bytes; empty when unknown. Default empty.
    pub zone: String,
    /// Whether `--mesh-peer-urls` names anybody: without peers the node is ALIVE at once, with them it stays INIT until
    /// another node was heard. Default false.
    pub has_seeds: bool,
    /// T, the time in which each node is probed at least once; 10 ms to 60 s. Default 1 s.
    pub probe_interval: Duration,
    /// Time between two gossip rounds while there is news; 10 ms to `probe_interval`. Default 100 ms.
    pub gossip_interval: Duration,
    /// Scales the time that a suspected node has to refute; 0.1 to 10. Default 1.
    pub suspicion_multiplier: f64,
    /// Unix milliseconds at the instant given to `new`; from there the ring's clock runs monotonically.
    pub wall_at_start_ms: u64,
    /// How long a DOWN node is shown and contacted before it is forgotten. Default 1 h: an operator sees what died, and
    /// a partition of that length heals from either side. Seeds are contacted for ever.
    pub forget_down_after: Duration,
    /// How long a LEAVING node is shown before it is forgotten. Default 5 min: above the default shutdown grace of 3 min.
    pub forget_left_after: Duration,
    /// How long the last record of a forgotten node is kept, unseen, to refuse older news of it. Default 24 h.
    pub remember_forgotten_for: Duration,
    /// The rule that the mutation check has switched off.
    #[cfg(test)]
    pub(in crate::mesh) without: Option<super::rule::Rule>,
}

impl SwimConfig {
    /// Default settings of `node` at `addr`, started at `now_ms` (unix milliseconds).
    #[must_use]
    pub fn new(node: NodeName, addr: SocketAddr, now_ms: u64) -> Self {
        Self {
            node,
            cluster: "smg".into(),
            boot_epoch_ms: now_ms,
            addr,
            host: addr.to_string(),
            zone: String::new(),
            has_seeds: false,
            probe_interval: Duration::from_secs(1),
            gossip_interval: Duration::from_millis(100),
            suspicion_multiplier: 1.0,
            wall_at_start_ms: now_ms,
            forget_down_after: Duration::from_secs(3600),
            forget_left_after: Duration::from_secs(300),
            remember_forgotten_for: Duration::from_secs(86_400),
            #[cfg(test)]
            without: None,
        }
    }
}
