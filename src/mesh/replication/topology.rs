//! Who pushes to whom.
//!
//! Up to [`FULL_MESH_NODES`] nodes everybody dials everybody, and each node delivers its own writes itself. Above, a node
//! dials those at distances 1, 2, 4, … on the ring of nodes (as the fingers of Chord, Stoica et al. 2001 §4.3), so that
//! every node is within log n steps of every other, and passes on at once what its peers lack, whoever wrote it. A dot
//! then crosses each link about once: a node forwards when a dot is new to it, which is once, and not over links whose
//! acks have named it. The ring is in the order of zones, then names, which keeps short links inside a zone.

/// Up to this many nodes everybody dials everybody: 32.
pub const FULL_MESH_NODES: usize = 32;

/// Who passes on what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Topology {
    /// Every node is a peer: own writes are pushed at once, those of others after one to two sync intervals.
    #[default]
    Full,
    /// Few nodes are peers: everything is pushed at once.
    Sparse,
}

impl Topology {
    /// The topology of a cluster of `nodes`, this one included.
    #[must_use]
    pub fn of(nodes: usize) -> Self {
        if nodes > FULL_MESH_NODES { Self::Sparse } else { Self::Full }
    }

    /// Positions that the node at `own` dials on a ring of `nodes`, each once and never its own.
    pub fn targets(self, own: usize, nodes: usize) -> impl Iterator<Item = usize> {
        let step = (1..nodes).filter(move |step| self == Self::Full || step.is_power_of_two());
        step.map(move |step| (own + step) % nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_to_32_nodes_dial_each_other_and_above_few_reach_all() {
        for (nodes, dialed, steps) in [(1, 0, 0), (2, 1, 1), (32, 31, 1), (33, 6, 5), (50, 6, 5), (100, 7, 6)] {
            let topology = Topology::of(nodes);
            let mut reached: Vec<usize> = vec![0];
            let mut needed = 0;
            while reached.len() < nodes {
                let next: Vec<usize> = reached.iter().flat_map(|at| topology.targets(*at, nodes)).collect();
                reached.extend(next);
                reached.sort_unstable();
                reached.dedup();
                needed += 1;
            }
            let own = topology.targets(nodes - 1, nodes).filter(|target| *target != nodes - 1);
            assert_eq!(own.count(), dialed, "{nodes} nodes");
            assert!(needed <= steps, "{nodes} nodes: {needed} steps");
        }
    }
}
