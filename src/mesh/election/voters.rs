//! Who elects: a set of nodes, and its place in the order of such sets.

use xxhash_rust::xxh3::Xxh3;

use crate::mesh::node::NodeName;

/// Nodes in one set at most. `--mesh-voters` takes as many; `auto` stops at [`AUTO_VOTERS_MAX`].
pub const VOTERS_MAX: usize = 31;

/// `auto` makes no more nodes than this voters: two of seven may be lost during an upgrade of a third, and each further
/// voter only makes elections slower.
pub const AUTO_VOTERS_MAX: usize = 7;

/// A set of voters. Sets are ordered by (term, version), as in the logless reconfiguration of MongoDB (Schultz, Dardik and
/// Tripakis, OPODIS 2021): a leader takes the set into its term, and each change of it raises the version. A set that an
/// operator fixed is above all others and never changes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Voters {
    id: VotersId,
    /// Sorted, without duplicates, 1 to [`VOTERS_MAX`].
    names: Vec<NodeName>,
}

/// Stands for one set of voters: its place in the order, then a hash of its names.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VotersId {
    /// Term of the leader that made the set, or took it over; [`FIXED_TERM`] when an operator did.
    pub term: u64,
    /// Changes so far, from 1; 0 says that there is no set yet.
    pub version: u64,
    /// xxh3-64 of the names.
    pub hash: u64,
}

/// Term of a set that an operator gave. No leader reaches it: terms end at 2^48.
pub const FIXED_TERM: u64 = 1 << 48;

/// No or too many voters in a set.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a set of voters has 1 to {VOTERS_MAX} nodes")]
pub struct VotersError;

impl Voters {
    /// A set at a place in the order.
    ///
    /// # Errors
    /// When it is empty or larger than [`VOTERS_MAX`].
    pub fn new(term: u64, version: u64, names: impl IntoIterator<Item = NodeName>) -> Result<Self, VotersError> {
        let mut names: Vec<NodeName> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() || names.len() > VOTERS_MAX {
            return Err(VotersError);
        }
        let mut hash = Xxh3::new();
        for name in &names {
            hash.update(name.as_str().as_bytes());
            hash.update(&[0]);
        }
        Ok(Self { id: VotersId { term, version, hash: hash.digest() }, names })
    }

    /// What an operator chose; it never changes.
    ///
    /// # Errors
    /// When it is empty or larger than [`VOTERS_MAX`].
    pub fn fixed(names: impl IntoIterator<Item = NodeName>) -> Result<Self, VotersError> {
        Self::new(FIXED_TERM, 1, names)
    }

    /// Whether an operator chose it.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.id.term == FIXED_TERM
    }

    /// What stands for it.
    #[must_use]
    pub fn id(&self) -> VotersId {
        self.id
    }

    /// The names, sorted.
    #[must_use]
    pub fn names(&self) -> &[NodeName] {
        &self.names
    }

    /// How many of them decide: more than half.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.names.len() / 2 + 1
    }

    /// Whether `name` is one of them.
    #[must_use]
    pub fn contains(&self, name: &NodeName) -> bool {
        self.names.binary_search(name).is_ok()
    }

    /// The same names in the term of a new leader; a fixed set stays what it is.
    #[must_use]
    pub(super) fn in_term(&self, term: u64) -> Self {
        let place = if self.is_fixed() { self.id } else { VotersId { term, ..self.id } };
        Self { id: place, names: self.names.clone() }
    }

    /// The next set, with `name` added or, if it is one of them, removed; none when that set would be empty or too large.
    #[must_use]
    pub(super) fn toggled(&self, name: &NodeName) -> Option<Self> {
        let mut names = self.names.clone();
        match names.binary_search(name) {
            Ok(at) => drop(names.remove(at)),
            Err(at) => names.insert(at, name.clone()),
        }
        Self::new(self.id.term, self.id.version + 1, names).ok()
    }
}

impl VotersId {
    /// No set is known.
    pub const NONE: Self = Self { term: 0, version: 0, hash: 0 };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(text: &str) -> Vec<NodeName> {
        text.split(' ').filter(|name| !name.is_empty()).map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_quorum_is_more_than_half() {
        for (set, quorum) in [("a", 1), ("a b", 2), ("a b c", 2), ("a b c d", 3), ("a b c d e", 3), ("a a b", 2)] {
            assert_eq!(Voters::new(0, 1, names(set)).unwrap().quorum(), quorum, "{set}");
        }
    }

    #[test]
    fn sets_have_an_order_and_bounds() {
        let [first, second] = ["a b", "a b c"].map(|set| Voters::new(0, 1, names(set)).unwrap());
        let changed = first.toggled(&"c".parse().unwrap()).unwrap();
        assert_eq!(changed.names(), second.names());
        assert!(changed.id() > first.id() && changed.id() > second.id() && first.id() > VotersId::NONE);
        assert!(first.in_term(1).id() > changed.id());
        let fixed = Voters::fixed(names("a b")).unwrap();
        assert!(fixed.id() > first.in_term(FIXED_TERM - 1).id());
        assert_eq!(fixed.in_term(7), fixed);
        assert_eq!(Voters::new(0, 1, names("")), Err(VotersError));
        let many: Vec<NodeName> = (0..=VOTERS_MAX).map(|n| format!("n{n}").parse().unwrap()).collect();
        assert_eq!(Voters::new(0, 1, many), Err(VotersError));
        assert_eq!(Voters::new(0, 1, names("a")).unwrap().toggled(&"a".parse().unwrap()), None);
    }
}
