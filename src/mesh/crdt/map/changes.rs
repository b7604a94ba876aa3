//! Which keys changed since somebody last asked.

use std::collections::BTreeSet;

use super::Key;

/// Keys that are remembered at most: 65 536. Beyond that every key counts as changed.
pub(super) const CHANGES_MAX: usize = 65_536;

/// A bounded set of keys that changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    keys: BTreeSet<Key>,
    too_many: bool,
}

impl Changes {
    /// Notes a change.
    pub(super) fn insert(&mut self, key: &[u8]) {
        if self.too_many || self.keys.contains(key) {
            return;
        }
        self.keys.insert(key.into());
        if self.keys.len() > CHANGES_MAX {
            self.keys.clear();
            self.too_many = true;
        }
    }

    /// What changed; none when it was too much.
    pub(super) fn take(&mut self) -> Option<BTreeSet<Key>> {
        let Self { keys, too_many } = std::mem::take(self);
        (!too_many).then_some(keys)
    }

    /// Whether nothing changed.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        n.to_be_bytes()[..].into()
    }

    #[test]
    fn changes_are_taken_once_and_bounded() {
        let mut changes = Changes::default();
        assert!(changes.is_empty());
        [1, 2, 1].iter().for_each(|n| changes.insert(&key(*n)));
        assert_eq!(changes.take().map(|keys| keys.len()), Some(2));
        assert!(changes.is_empty());
        (0..=CHANGES_MAX).for_each(|n| changes.insert(&key(n)));
        assert!(changes.keys.is_empty() && !changes.is_empty(), "nothing is held of what is too much");
        changes.insert(&key(1));
        assert_eq!(changes.take(), None);
        assert_eq!(changes.take(), Some(BTreeSet::new()));
    }
}
