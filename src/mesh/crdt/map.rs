//! A namespace: a map from keys to CRDTs, as one causal dot store.
//!
//! Live dots are kept in the order of keys and in that of dots, which answers "what does a peer lack" as range scans, so no
//! log of operations exists. A 64-bit root over all live dots is kept up to date with each change: equal states have
//! equal roots, whatever order their operations arrived in.

use std::collections::BTreeSet;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    context::{Guards, VersionVector},
    delta::{Body, BodyError, KeyState},
    dot::{ACTORS_MAX, Actor, ActorId, ActorTable, COUNTER_MAX, Dot, Key},
    records::Records,
};
use crate::mesh::{hlc::Timestamp, node::NodeName};

mod apply;
mod changes;
mod entries;
mod slots;

use self::{
    changes::Changes,
    entries::{Entries, Spot},
};
pub use self::{entries::Dots, slots::LiveRef};
pub use super::records::RECORDS_MAX;

/// Snapshots that are received at once at most, by what they cover; of one more the oldest has to begin again.
pub const SNAPSHOTS_MAX: usize = 8;

/// How far a snapshot that is being received has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Keys below are here.
    pub until: Key,
    /// What the snapshot will cover at its end.
    pub base: VersionVector,
}

impl Progress {
    /// Whether a chunk of a snapshot of this base can follow that begins here.
    fn reaches(&self, from: &Key, base: &VersionVector) -> bool {
        *from <= self.until && self.base == *base
    }
}

/// One namespace on one node.
#[derive(Clone, Debug)]
pub struct Map {
    actors: ActorTable,
    own: ActorId,
    seen: VersionVector,
    entries: Entries,
    records: Records,
    guards: Guards,
    /// The one that moved last at the end; at most [`SNAPSHOTS_MAX`].
    progress: Vec<Progress>,
    root: u64,
    payload_bytes: usize,
    /// Keys that changed since they were last taken; none while nobody asks for them.
    changes: Option<Changes>,
}

impl Map {
    /// An empty namespace in which local operations are `own`'s. No other process may ever use the same actor.
    #[must_use]
    pub fn new(own: &Actor) -> Self {
        let mut actors = ActorTable::default();
        let id = actors.intern(own);
        Self {
            actors,
            own: id,
            seen: VersionVector::default(),
            entries: Entries::default(),
            records: Records::default(),
            guards: Guards::default(),
            progress: Vec::new(),
            root: 0,
            payload_bytes: 0,
            changes: None,
        }
    }

    // --- reading ---

    /// The live dots of a key; empty when there is none.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Dots<'_> {
        self.entries.get(key)
    }

    /// Live keys from `from` on, in order.
    pub fn range_from<'a>(&'a self, from: &[u8]) -> impl Iterator<Item = (&'a [u8], Dots<'a>)> + use<'a> {
        self.entries.range_from(from)
    }

    /// Live keys that start with `prefix`, in order.
    pub fn with_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], Dots<'a>)> {
        self.range_from(prefix).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// How many keys live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key lives.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    /// Sum of the live payloads, in bytes.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Root over all live dots: equal states have equal roots.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.root
    }

    /// What was seen of every key.
    #[must_use]
    pub fn seen(&self) -> &VersionVector {
        &self.seen
    }

    /// The actors that the numbers of this namespace mean.
    #[must_use]
    pub fn actors(&self) -> &ActorTable {
        &self.actors
    }

    /// The actor of local operations.
    #[must_use]
    pub fn own(&self) -> ActorId {
        self.own
    }

    /// What was seen of single keys beyond [`seen`](Self::seen).
    #[must_use]
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// How far the snapshot that moved last, of those that are being received, has come.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        self.progress.last()
    }

    /// Up to which counter of `actor` dead dots may be forgotten: a peer that has seen less needs a snapshot.
    #[must_use]
    pub fn floor(&self, actor: ActorId) -> u64 {
        self.records.floor(actor)
    }

    /// Remembered dead dots.
    #[must_use]
    pub fn records_len(&self) -> usize {
        self.records.len()
    }

    /// The newest timestamp of a key's live dots.
    #[must_use]
    pub fn newest(&self, key: &[u8]) -> Timestamp {
        self.get(key).map(|live| live.stamp).max().unwrap_or_default()
    }

    /// The first dot of `actor` above `after` that leads to a key, and whether the dot is dead.
    ///
    /// It may lie above [`seen`](Self::seen): a guarded key's killer must travel with the dots that it killed.
    #[must_use]
    pub fn next_event(&self, actor: ActorId, after: u64) -> Option<(u64, &[u8], bool)> {
        let live = self.entries.next_dot(actor, after).map(|(counter, key)| (counter, key, false));
        let dead = self.records.next(actor, after).map(|(counter, key)| (counter, key, true));
        match (live, dead) {
            (Some(live), Some(dead)) => Some(if live.0 < dead.0 { live } else { dead }),
            (live, dead) => live.or(dead),
        }
    }

    // --- local operations ---

    /// Writes a key, superseding every dot of it seen here: the operation of LWW-Register and OR-Set.
    pub fn write(&mut self, key: &[u8], stamp: Timestamp, payload: &[u8]) {
        self.operate(key, |_, _| true, Some((stamp, payload)));
    }

    /// Writes a key, superseding this actor's own dot alone: the operation of the counters.
    pub fn write_own(&mut self, key: &[u8], stamp: Timestamp, payload: &[u8]) {
        let own = self.own;
        self.operate(key, |_, live| live.dot.actor == own, Some((stamp, payload)));
    }

    /// Removes a key; `false`, and no operation, when it does not live here.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        self.retract(key, |_, _| true)
    }

    /// Kills those live dots of a key that `which` names; `false`, and no operation, when there are none.
    pub fn retract(&mut self, key: &[u8], which: impl Fn(&ActorTable, LiveRef<'_>) -> bool) -> bool {
        let any = self.get(key).any(|live| which(&self.actors, live));
        if any {
            self.operate(key, which, None);
        }
        any
    }

    fn operate(
        &mut self,
        key: &[u8],
        kills: impl Fn(&ActorTable, LiveRef<'_>) -> bool,
        adds: Option<(Timestamp, &[u8])>,
    ) {
        let dot = Dot { actor: self.own, counter: self.seen.get(self.own) + 1 };
        let spot = self.entries.find(key);
        let killed = self.entries.at(spot).filter(|old| kills(&self.actors, *old));
        let mut gone: Vec<Dot> = killed.map(|old| old.dot).collect();
        gone.sort_unstable();
        self.seen.raise(self.own, dot.counter);
        match adds {
            Some((stamp, payload)) => self.change(key, spot, &gone, &[LiveRef { dot, stamp, payload }]),
            None => {
                self.records.insert(dot, key);
                self.change(key, spot, &gone, &[]);
            }
        }
    }

    // --- upkeep ---

    /// Drops guards that are no longer needed, and folded actors of which nothing is left; to be called now and then.
    pub fn prune(&mut self) {
        let unguarded = self.guards.prune(&self.seen);
        self.note_changes(&unguarded);
        // A fold may have been what such a snapshot was still to bring.
        self.progress.retain(|progress| !self.seen.covers(&progress.base));
        // Guards and a snapshot under way name actors by number.
        if !self.guards.is_empty() || !self.progress.is_empty() {
            return;
        }
        let gone = |(actor, id): &(&Actor, ActorId)| self.is_folded(actor) && !self.entries.has_actor(*id);
        let gone: Vec<ActorId> = self.actors.iter().filter(gone).map(|(_, id)| id).collect();
        for id in &gone {
            self.actors.drop(*id);
            self.records.drop_actor(*id);
        }
        if !gone.is_empty() {
            self.seen.retain(|id| self.actors.knows(id));
        }
    }

    /// Folds the epochs of `node` below `floor_ms`: all their dots count as seen from now on. The caller has made sure
    /// that they are dead and stable; see [`crdt`](super).
    pub fn fold(&mut self, node: &NodeName, floor_ms: u64) {
        if self.actors.len() < ACTORS_MAX && (node != &self.own_actor().node || floor_ms <= self.own_epoch_ms()) {
            let id = self.actors.intern(&Actor::floor_of(node));
            self.seen.raise(id, floor_ms);
            self.settle();
        }
    }

    /// From now on remembers which keys change, those of this actor's own operations so far among them.
    pub fn track_changes(&mut self) {
        let mut changes = Changes::default();
        let mut at = 0;
        while let Some((counter, key, _)) = self.next_event(self.own, at) {
            changes.insert(key);
            at = counter;
        }
        self.changes = Some(changes);
    }

    fn guard_key(&mut self, key: &Key, context: &std::sync::Arc<VersionVector>) {
        self.guards.guard_key(key, context);
        self.note_changes(std::slice::from_ref(key));
    }

    fn note_changes(&mut self, keys: &[Key]) {
        if let Some(changes) = &mut self.changes {
            keys.iter().for_each(|key| changes.insert(key));
        }
    }

    /// The keys whose live dots or guards changed since the last call, in order; none when they are too many to remember, or were
    /// never tracked: then any key may have changed.
    pub fn take_changes(&mut self) -> Option<BTreeSet<Key>> {
        self.changes.as_mut().and_then(Changes::take)
    }

    /// Whether a key may have changed since the last [`take_changes`](Self::take_changes).
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.changes.as_ref().is_none_or(|changes| !changes.is_empty())
    }

    /// Goes on as a higher epoch of the same node, and writes anew what lives of the epoch so far, with its stamps: for a
    /// node that others count as folded, because its clock was set back over a restart. `false`, and nothing is changed,
    /// when the epoch is not higher or no more actors fit.
    pub fn raise_epoch(&mut self, epoch_ms: u64) -> bool {
        let raised = Actor { node: self.own_actor().node.clone(), boot_epoch_ms: epoch_ms };
        if epoch_ms <= self.own_epoch_ms() || self.actors.len() >= ACTORS_MAX {
            return false;
        }
        let was = std::mem::replace(&mut self.own, self.actors.intern(&raised));
        let mut after = 0;
        while let Some((counter, key)) = self.entries.next_dot(was, after) {
            after = counter;
            let key: Key = key.into();
            let written = self.get(&key).filter(|live| live.dot.actor == was).max_by_key(|live| live.dot.counter);
            if let Some((stamp, payload)) = written.map(|live| (live.stamp, live.payload.to_vec())) {
                self.operate(&key, |_, live| live.dot.actor == was, Some((stamp, &payload)));
            }
        }
        true
    }

    /// Whether a floor covers the actor.
    #[must_use]
    pub fn is_folded(&self, actor: &Actor) -> bool {
        let floor = self.actors.id(&Actor::floor_of(&actor.node)).map_or(0, |id| self.seen.get(id));
        !actor.is_floor() && actor.boot_epoch_ms < floor
    }

    /// Up to where the dots of an actor were seen: all of a folded one, none of an unknown one.
    #[must_use]
    pub fn seen_of(&self, actor: &Actor) -> u64 {
        if self.is_folded(actor) {
            return COUNTER_MAX;
        }
        self.actors.id(actor).map_or(0, |id| self.seen.get(id))
    }

    /// Brings the counters of folded actors in line with the floors.
    fn settle(&mut self) {
        let folded: Vec<ActorId> =
            self.actors.iter().filter(|(actor, _)| self.is_folded(actor)).map(|(_, id)| id).collect();
        for id in folded {
            self.seen.raise(id, COUNTER_MAX);
        }
    }

    fn own_actor(&self) -> &Actor {
        self.actors.actor(self.own)
    }

    /// The boot epoch of local operations.
    pub(in crate::mesh) fn own_epoch_ms(&self) -> u64 {
        self.own_actor().boot_epoch_ms
    }

    /// The whole state of a key, in this namespace's actor numbers.
    #[must_use]
    pub fn key_state(&self, key: &[u8]) -> KeyState {
        self.key_state_of(key, self.get(key))
    }

    /// The same of a key whose live dots are at hand.
    #[must_use]
    pub fn key_state_of(&self, key: &[u8], live: Dots<'_>) -> KeyState {
        let beyond = (!self.guards.is_empty()).then(|| self.guards.of(key).beyond(&self.seen)).flatten();
        KeyState {
            key: key.into(),
            live: live.map(Into::into).collect(),
            records: Vec::new(),
            guard: beyond.map(|vector| vector.iter().collect()).unwrap_or_default(),
        }
    }

    /// The state in a form that is equal on every node that has seen the same operations: for tests and comparisons.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let counted = |(actor, id): &(&Actor, ActorId)| self.seen.get(*id) > 0 && !self.is_folded(actor);
        for (actor, id) in self.actors.iter().filter(counted) {
            out.extend(format!("{}@{}:{}\n", actor.node, actor.boot_epoch_ms, self.seen.get(id)).bytes());
        }
        for (key, live) in self.range_from(b"") {
            let mut dots: Vec<_> = live.map(|live| (self.actors.actor(live.dot.actor), live)).collect();
            dots.sort_by_key(|(actor, live)| ((*actor).clone(), live.dot.counter));
            out.extend_from_slice(key);
            for (actor, live) in dots {
                let (counter, stamp) = (live.dot.counter, live.stamp.to_bits());
                out.extend(format!(" {}@{}:{counter} {stamp} ", actor.node, actor.boot_epoch_ms).bytes());
                out.extend_from_slice(live.payload);
            }
            out.push(b'\n');
        }
        out
    }

    /// Takes the dots `gone`, which are in order, from the key at `spot`, and gives it `new` ones: in entries, records and
    /// root.
    fn change(&mut self, key: &[u8], spot: Spot, gone: &[Dot], new: &[LiveRef<'_>]) {
        let Self { entries, actors, own, records, root, payload_bytes, changes, .. } = self;
        if let Some(changes) = changes {
            changes.insert(key);
        }
        let is_gone = |dot: Dot| gone.binary_search(&dot).is_ok();
        if !gone.is_empty() {
            let before = entries.at(spot);
            let kept = before.map(|old| old.dot).filter(|dot| !is_gone(*dot));
            let own_after = kept.chain(new.iter().map(|new| new.dot)).filter(|dot| dot.actor == *own).max();
            for old in before.filter(|old| is_gone(old.dot)) {
                *root = root.wrapping_sub(hash(actors, key, old));
                *payload_bytes -= old.payload.len();
                // A later own dot of the key leads peers to it; a foreign killer does not, so the dead dot must.
                if old.dot.actor == *own && own_after.is_none_or(|dot| dot < old.dot) {
                    records.insert(old.dot, key);
                }
            }
        }
        for new in new {
            *root = root.wrapping_add(hash(actors, key, *new));
            *payload_bytes += new.payload.len();
        }
        entries.change(key, spot, gone, new);
    }

    fn intern(&mut self, actor: &Actor) -> ActorId {
        let id = self.actors.intern(actor);
        if self.is_folded(actor) {
            self.seen.raise(id, COUNTER_MAX);
        }
        id
    }
}

impl Map {
    /// Joins what a peer sent. `peer` is what that peer has seen, as the bodies of its pipe told so far; it is brought up
    /// to date. Gives the keys whose live dots changed.
    ///
    /// # Errors
    /// When the body contradicts itself or what was seen here; then neither the namespace nor `peer` has changed.
    pub fn apply(&mut self, peer: &mut VersionVector, body: Body) -> Result<Vec<Key>, BodyError> {
        let known = apply::check(self, peer, &body)?;
        Ok(apply::join(self, peer, body, &known))
    }
}

/// A dot's share of the root: what every node that holds it adds.
fn hash(actors: &ActorTable, key: &[u8], live: LiveRef<'_>) -> u64 {
    let mut name = [0_u8; 24];
    name[..8].copy_from_slice(&actors.hash(live.dot.actor).to_le_bytes());
    name[8..16].copy_from_slice(&live.dot.counter.to_le_bytes());
    name[16..].copy_from_slice(&live.stamp.to_bits().to_le_bytes());
    xxh3_64_with_seed(live.payload, xxh3_64_with_seed(key, xxh3_64(&name)))
}
