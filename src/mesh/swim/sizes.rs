//! How much the machine holds, next to the most that it may: what "every table has a bound" means, in numbers.

use super::{
    Swim,
    config::MEMBERS_MAX,
    probe::{PROBES_MAX, RELAYS_MAX},
    seeds::SEEDS_MAX,
};

/// Entries of each table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sizes {
    /// Members, this node included; at most [`MEMBERS_MAX`].
    pub members: usize,
    /// Last records of forgotten members; at most [`MEMBERS_MAX`].
    pub forgotten: usize,
    /// Probes under way; at most 64.
    pub probes: usize,
    /// Probes for others under way; at most 256.
    pub relays: usize,
    /// Suspicions; at most one per member.
    pub suspicions: usize,
    /// Names that are rumours; at most one per member, present or forgotten.
    pub rumours: usize,
    /// Their places in the queues; at most two per rumour and one.
    pub rumour_places: usize,
    /// Peers that have news to ack; at most one per member, present or forgotten.
    pub posts: usize,
    /// Probes planned for this round; at most one per member.
    pub ring: usize,
    /// Configured seeds; at most 256.
    pub seeds: usize,
}

impl Swim {
    /// The sizes of all tables.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let (members, forgotten) = self.members.sizes();
        let (rumours, rumour_places) = self.rumours.sizes();
        Sizes {
            members,
            forgotten,
            probes: self.probes.len(),
            relays: self.relays.len(),
            suspicions: self.suspicions.len(),
            rumours,
            rumour_places,
            posts: self.posts.len(),
            ring: self.ring_due.len(),
            seeds: self.seeds.len(),
        }
    }

    /// The table that is larger than its bound, if any. `burst` is the number of packets that one input has caused: at most
    /// eight per member, one per seed and one per relayed probe, and 16.
    #[must_use]
    pub fn excess(&self, burst: usize) -> Option<&'static str> {
        let sizes = self.sizes();
        let known = sizes.members + sizes.forgotten;
        [
            (sizes.members <= MEMBERS_MAX, "members"),
            (sizes.forgotten <= MEMBERS_MAX, "forgotten members"),
            (sizes.probes <= PROBES_MAX, "probes"),
            (sizes.relays <= RELAYS_MAX, "relayed probes"),
            (sizes.suspicions <= sizes.members, "suspicions"),
            (sizes.rumours <= known, "rumours"),
            (sizes.rumour_places <= 2 * sizes.rumours + 1, "places of rumours"),
            (sizes.posts <= known, "posts"),
            (sizes.ring <= sizes.members, "planned probes"),
            (sizes.seeds <= SEEDS_MAX, "seeds"),
            (burst <= 16 + 8 * sizes.members + sizes.seeds + RELAYS_MAX, "packets at once"),
        ]
        .iter()
        .find_map(|(holds, what)| (!holds).then_some(*what))
    }
}
