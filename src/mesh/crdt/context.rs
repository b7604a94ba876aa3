//! Version vectors, and the guards that make them a causal context per key.

use std::{collections::BTreeMap, sync::Arc};

use super::dot::{ActorId, ActorTable, Dot, Key};

/// Guards of single keys that one namespace holds at most: 131 072. A frame that needs more is refused.
pub const KEY_GUARDS_MAX: usize = 131_072;

/// Guards of key ranges that one namespace holds at most: 4096. A frame that needs more is refused.
pub const RANGE_GUARDS_MAX: usize = 4096;

/// For each actor the largest counter up to which every dot was seen; an absent actor counts 0. Sorted by actor.
#[derive(Clone, Debug, Default)]
pub struct VersionVector(Vec<(ActorId, u64)>);

impl VersionVector {
    /// The actor's counter.
    #[must_use]
    pub fn get(&self, actor: ActorId) -> u64 {
        self.position(actor).map_or(0, |position| self.0[position].1)
    }

    /// Whether the dot was seen.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        dot.counter <= self.get(dot.actor)
    }

    /// Raises the actor's counter to `counter`, if it is lower.
    pub fn raise(&mut self, actor: ActorId, counter: u64) {
        match self.position(actor) {
            Ok(position) => self.0[position].1 = self.0[position].1.max(counter),
            Err(position) if counter > 0 => self.0.insert(position, (actor, counter)),
            Err(_) => {}
        }
    }

    /// The least vector above both.
    pub fn join(&mut self, other: &Self) {
        for (actor, counter) in other.iter() {
            self.raise(actor, counter);
        }
    }

    /// Whether everything seen by `other` was seen here.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(actor, counter)| counter <= self.get(actor))
    }

    /// The counters that exceed those of `other`; none when there are none.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Option<Self> {
        let rest: Vec<_> = self.iter().filter(|(actor, counter)| *counter > other.get(*actor)).collect();
        (!rest.is_empty()).then_some(Self(rest))
    }

    /// Actors with a counter above 0, by number.
    pub fn iter(&self) -> impl Iterator<Item = (ActorId, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Drops the actors that `is_kept` does not name.
    pub fn retain(&mut self, is_kept: impl Fn(ActorId) -> bool) {
        self.0.retain(|(actor, _)| is_kept(*actor));
    }

    fn position(&self, actor: ActorId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&actor, |(actor, _)| *actor)
    }
}

impl PartialEq for VersionVector {
    fn eq(&self, other: &Self) -> bool {
        self.covers(other) && other.covers(self)
    }
}

#[derive(Clone, Debug)]
struct RangeGuard {
    from: Key,
    /// Exclusive; none is the end of the key space.
    to: Option<Key>,
    context: Arc<VersionVector>,
}

impl RangeGuard {
    fn has(&self, key: &[u8]) -> bool {
        *self.from <= *key && self.to.as_deref().is_none_or(|to| key < to)
    }
}

/// What was seen of single keys and key ranges beyond the vector that holds for all keys.
///
/// Bounded by [`KEY_GUARDS_MAX`] and [`RANGE_GUARDS_MAX`]; empty when this node has seen all that its peers have.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    keys: BTreeMap<Key, Arc<VersionVector>>,
    ranges: Vec<RangeGuard>,
    /// Join of all guards: once it is covered, every guard can go.
    need: VersionVector,
}

impl Guards {
    /// Whether a guard of `key` covers the dot.
    #[must_use]
    pub fn contains(&self, actors: &ActorTable, key: &[u8], dot: Dot) -> bool {
        let covers = |context: &VersionVector| actors.covers(context, dot);
        covers(&self.need)
            && (self.keys.get(key).is_some_and(|context| covers(context))
                || self.ranges.iter().any(|range| range.has(key) && covers(&range.context)))
    }

    /// What the guards of `key` cover together.
    #[must_use]
    pub fn of(&self, key: &[u8]) -> VersionVector {
        let mut context = self.keys.get(key).map(|own| (**own).clone()).unwrap_or_default();
        for range in self.ranges.iter().filter(|range| range.has(key)) {
            context.join(&range.context);
        }
        context
    }

    /// What the range guards cover at `key`, and the first key above it where that changes.
    #[must_use]
    pub fn range_at(&self, key: &[u8]) -> (VersionVector, Option<Key>) {
        let mut context = VersionVector::default();
        for range in self.ranges.iter().filter(|range| range.has(key)) {
            context.join(&range.context);
        }
        let bounds = self.ranges.iter().flat_map(|range| [Some(&range.from), range.to.as_ref()]).flatten();
        (context, bounds.filter(|bound| ***bound > *key).min().cloned())
    }

    /// Keys from `from` on that have a guard of their own.
    pub fn keys_from(&self, from: &Key) -> impl Iterator<Item = &Key> {
        self.keys.range(from.clone()..).map(|(key, _)| key)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }

    /// Whether a range is guarded: a snapshot is on its way here, or stopped on it.
    #[must_use]
    pub fn has_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Whether `keys` more key guards and one more range guard fit.
    #[must_use]
    pub fn has_room(&self, keys: usize) -> bool {
        self.keys.len() + keys <= KEY_GUARDS_MAX && self.ranges.len() < RANGE_GUARDS_MAX
    }

    /// How many guards there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len() + self.ranges.len()
    }

    /// Notes that `context` was seen of `key`.
    pub fn guard_key(&mut self, key: &Key, context: &Arc<VersionVector>) {
        self.need.join(context);
        let slot = self.keys.entry(key.clone()).or_insert_with(|| context.clone());
        if !slot.covers(context) {
            Arc::make_mut(slot).join(context);
        }
    }

    /// Notes that `context` was seen of every key from `from` up to `to` (exclusive; none: the end).
    pub fn guard_range(&mut self, from: &Key, to: Option<&Key>, context: &Arc<VersionVector>) {
        self.need.join(context);
        if let Some(last) = self.ranges.last_mut()
            && last.to.as_ref() == Some(from)
            && *last.context == **context
        {
            last.to = to.cloned();
            return;
        }
        self.ranges.push(RangeGuard { from: from.clone(), to: to.cloned(), context: context.clone() });
    }

    /// Drops what `seen` covers by now, everything at once when that is so, else one by one; gives the keys that lost theirs.
    pub fn prune(&mut self, seen: &VersionVector) -> Vec<Key> {
        if seen.covers(&self.need) {
            return std::mem::take(self).keys.into_keys().collect();
        }
        let mut dropped = Vec::new();
        self.keys.retain(|key, context| {
            let is_needed = !seen.covers(context);
            if !is_needed {
                dropped.push(key.clone());
            }
            is_needed
        });
        self.ranges.retain(|range| !seen.covers(&range.context));
        dropped
    }

    /// Drops everything when `seen` covers all of it, and gives the keys that lost theirs; cheap enough for every frame.
    pub fn prune_all(&mut self, seen: &VersionVector) -> Vec<Key> {
        if self.is_empty() || !seen.covers(&self.need) {
            return Vec::new();
        }
        std::mem::take(self).keys.into_keys().collect()
    }
}
