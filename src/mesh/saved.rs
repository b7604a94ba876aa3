//! What a node keeps of its replicated state over a restart, and how that becomes state again.
//!
//! # What is saved
//!
//! Per key its live dots and what was seen of it (its causal context); per namespace what was seen of *every* key. As in
//! memory, a dot that the context covers and the key lacks is dead, so removals need no tombstone on the disk either.
//!
//! # Sweeps
//!
//! A [`Saver`] works in *sweeps*: it takes the set of changed keys and notes what was seen at that moment (the mark), then
//! hands out those keys in batches of about [`BATCH_BYTES`], and with the last of them the mark as the namespace's new
//! context. Each batch is to be saved whole or not at all. A crash between two batches is harmless: the keys that were
//! saved carry what was seen of them beyond the *old* context, exactly as a guarded key does, and the context moves only
//! when every key that it speaks of is there. Invariant: what is saved is at any time a state that this node might have
//! had by receiving less. So a restart is for the others no more than a node that was away.
//!
//! After a failure, and when too many keys changed to remember them, the sweep is of all keys, in key order: each batch
//! replaces a range. Then nothing is assumed of what the disk holds.
//!
//! # Restoring
//!
//! The saved state is joined as if a peer had sent it in a snapshot, with the same checks. The restored node is a new
//! actor: its boot epoch is above every one that was saved of it ([`Saved::epoch_floor`]), so no dot is used twice, even
//! with a clock that was set back.

use std::collections::{BTreeMap, BTreeSet};

use crate::mesh::{
    crdt::{
        context::VersionVector,
        delta::{Body, BodyError, Chunk, KeyState, Live},
        dot::{Actor, ActorId, Key},
        map::Map,
    },
    node::NodeName,
    stores::{Namespace, Stores},
    wire::saved::{self, SavedKey},
};

/// A batch is closed once its keys take this many bytes: 256 KiB. It exceeds that by one key at most.
pub const BATCH_BYTES: usize = 256 << 10;

/// Keys that are restored at a time.
const RESTORE_KEYS: usize = 4096;

/// What is to be saved together, or not at all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Batch {
    /// By namespace; those without news are left out.
    pub parts: Vec<Part>,
}

/// A batch's share of one namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// Which.
    pub namespace: Namespace,
    /// Keys from the first (inclusive) to the second (exclusive; none: the end) that are not among `puts` are gone.
    pub replaces: Option<(Key, Option<Key>)>,
    /// Keys and their encoded states.
    pub puts: Vec<(Key, Vec<u8>)>,
    /// Keys that no longer live.
    pub removes: Vec<Key>,
    /// The encoded context of the namespace, when every key that it speaks of is saved with this batch.
    pub context: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Pending {
    Keys(BTreeSet<Key>),
    /// Everything from this key on.
    From(Key),
}

#[derive(Clone, Debug, Default)]
struct Sweep {
    /// What the disk says was seen of every key, or less.
    saved: VersionVector,
    /// What it will say after this sweep; none between sweeps.
    mark: Option<VersionVector>,
    pending: Option<Pending>,
    /// Whether the batch that is out carries the mark.
    is_closing: bool,
    /// The next sweep is of all keys.
    again: bool,
}

/// Works out what to save. After each [`poll_batch`](Self::poll_batch) that gave one, say what became of it.
#[derive(Clone, Debug)]
pub struct Saver {
    sweeps: [Sweep; Namespace::COUNT],
    batch_bytes: usize,
    begun: u64,
    done: u64,
    is_out: bool,
}

impl Default for Saver {
    fn default() -> Self {
        Self { sweeps: Default::default(), batch_bytes: BATCH_BYTES, begun: 0, done: 0, is_out: false }
    }
}

impl Saver {
    /// A saver of stores that were just restored from what the disk holds, before any other change. Begins to track
    /// changes.
    #[must_use]
    pub fn new(stores: &mut Stores) -> Self {
        stores.track_changes();
        let sweeps = Namespace::ALL.map(|namespace| {
            let map = stores.map(namespace);
            let mut saved = map.seen().clone();
            // What restoring made this node write itself is not on the disk.
            saved.retain(|actor| actor != map.own());
            Sweep { saved, ..Sweep::default() }
        });
        Self { sweeps, ..Self::default() }
    }

    /// The same with batches of about this many bytes instead of [`BATCH_BYTES`]: for simulations of crashes.
    #[must_use]
    pub fn with_batch_bytes(self, batch_bytes: usize) -> Self {
        Self { batch_bytes, ..self }
    }

    /// The next batch; none while one is out, or when there is nothing to save.
    pub fn poll_batch(&mut self, stores: &mut Stores) -> Option<Batch> {
        if self.is_out {
            return None;
        }
        if self.done == self.begun {
            if !self.has_news(stores) {
                return None;
            }
            self.begin(stores);
        }
        let mut batch = Batch::default();
        let mut bytes = 0;
        for namespace in Namespace::ALL {
            let sweep = &mut self.sweeps[namespace.index()];
            if sweep.mark.is_some() && bytes < self.batch_bytes {
                let (part, part_bytes) = sweep.build(stores.map(namespace), namespace, self.batch_bytes - bytes);
                bytes += part_bytes;
                batch.parts.push(part);
            }
        }
        self.is_out = true;
        Some(batch)
    }

    /// The batch that is out is on the disk.
    pub fn handle_saved(&mut self) {
        self.is_out = false;
        for sweep in &mut self.sweeps {
            if std::mem::take(&mut sweep.is_closing)
                && let Some(mark) = sweep.mark.take()
            {
                sweep.saved = mark;
            }
        }
        if self.sweeps.iter().all(|sweep| sweep.mark.is_none()) {
            self.done = self.begun;
        }
    }

    /// The batch that is out may be on the disk or not: all is to be saved again.
    pub fn handle_failed(&mut self) {
        self.is_out = false;
        self.sweeps = Default::default();
        self.sweeps.iter_mut().for_each(|sweep| sweep.again = true);
        self.done = self.begun;
    }

    /// Whether [`poll_batch`](Self::poll_batch) would give one.
    #[must_use]
    pub fn wants_to_save(&self, stores: &Stores) -> bool {
        !self.is_out && (self.done < self.begun || self.has_news(stores))
    }

    /// Names what the stores hold now, for [`is_saved`](Self::is_saved).
    #[must_use]
    pub fn ticket(&self, stores: &Stores) -> u64 {
        if self.has_news(stores) { self.begun + 1 } else { self.begun }
    }

    /// Whether all that the stores held when the ticket was given is on the disk.
    #[must_use]
    pub fn is_saved(&self, ticket: u64) -> bool {
        self.done >= ticket && self.sweeps.iter().all(|sweep| !sweep.again)
    }

    fn has_news(&self, stores: &Stores) -> bool {
        Namespace::ALL.iter().any(|namespace| {
            let (map, sweep) = (stores.map(*namespace), &self.sweeps[namespace.index()]);
            sweep.again || map.has_changes() || map.seen() != sweep.mark.as_ref().unwrap_or(&sweep.saved)
        })
    }

    fn begin(&mut self, stores: &mut Stores) {
        self.begun += 1;
        for namespace in Namespace::ALL {
            let sweep = &mut self.sweeps[namespace.index()];
            let changes = stores.take_changes(namespace);
            sweep.pending = Some(match changes.filter(|_| !sweep.again) {
                Some(keys) => Pending::Keys(keys),
                None => Pending::From(Key::from(&b""[..])),
            });
            sweep.again = false;
            sweep.mark = Some(stores.map(namespace).seen().clone());
        }
    }
}

impl Sweep {
    /// The next keys of the sweep, with the mark when they are the last; and their bytes, about.
    fn build(&mut self, map: &Map, namespace: Namespace, budget: usize) -> (Part, usize) {
        let mut part = Part { namespace, replaces: None, puts: Vec::new(), removes: Vec::new(), context: None };
        let mut bytes = 0;
        match self.pending.take() {
            Some(Pending::Keys(mut keys)) => {
                while bytes < budget
                    && let Some(key) = keys.pop_first()
                {
                    bytes += key.len();
                    match self.encode(map, &key) {
                        Some(state) => {
                            bytes += state.len();
                            part.puts.push((key, state));
                        }
                        None => part.removes.push(key),
                    }
                }
                self.pending = (!keys.is_empty()).then_some(Pending::Keys(keys));
            }
            Some(Pending::From(from)) => {
                let mut end = None;
                let mut live = map.range_from(&from).map(|(key, _)| Key::from(key)).peekable();
                let mut guarded = map.guards().keys_from(&from).cloned().peekable();
                while let Some(key) = live.peek().into_iter().chain(guarded.peek()).min().cloned() {
                    if bytes >= budget {
                        end = Some(key);
                        break;
                    }
                    live.next_if_eq(&key);
                    guarded.next_if_eq(&key);
                    if let Some(state) = self.encode(map, &key) {
                        bytes += key.len() + state.len();
                        part.puts.push((key, state));
                    }
                }
                drop((live, guarded));
                self.pending = end.clone().map(Pending::From);
                part.replaces = Some((from, end));
            }
            None => {}
        }
        if self.pending.is_none()
            && let Some(mark) = &self.mark
        {
            self.is_closing = true;
            let is_named = |(actor, _): &(ActorId, u64)| map.actors().knows(*actor);
            let named = |(actor, counter)| (map.actors().actor(actor).clone(), counter);
            let seen: Vec<(Actor, u64)> = mark.iter().filter(is_named).map(named).collect();
            part.context = Some(saved::encode_context(&seen));
        }
        (part, bytes)
    }

    /// A key with what was seen of it beyond the context that the disk has; none when it does not live and the context says
    /// all that was seen of it. A removed key whose guard says more is kept: else its removal would be lost with a crash.
    fn encode(&self, map: &Map, key: &[u8]) -> Option<Vec<u8>> {
        let mut live: Vec<Live> = map.get(key).map(Into::into).collect();
        let mut context = map.seen().clone();
        let guard = if map.guards().is_empty() { None } else { map.guards().of(key).beyond(&context) };
        if live.is_empty() && guard.is_none() {
            return None;
        }
        if let Some(guard) = guard {
            context.join(&guard);
        }
        context.retain(|actor| map.actors().knows(actor));
        let mut numbers = Numbers::default();
        let mut number = |actor: ActorId| numbers.of(map.actors().actor(actor));
        live.iter_mut().for_each(|live| live.dot.actor = number(live.dot.actor));
        let beyond = context.beyond(&self.saved).unwrap_or_default();
        let guard = beyond.iter().map(|(actor, counter)| (number(actor), counter)).collect();
        let state = KeyState { key: key.into(), live, records: Vec::new(), guard };
        Some(saved::encode_key(&SavedKey { actors: numbers.actors, state }))
    }
}

/// Numbers of actors in the order of their first use.
#[derive(Debug, Default)]
struct Numbers {
    known: BTreeMap<Actor, ActorId>,
    actors: Vec<Actor>,
}

impl Numbers {
    fn of(&mut self, actor: &Actor) -> ActorId {
        if let Some(number) = self.known.get(actor) {
            return *number;
        }
        let number = ActorId(u32::try_from(self.actors.len()).unwrap_or(u32::MAX));
        self.actors.push(actor.clone());
        self.known.insert(actor.clone(), number);
        number
    }
}

/// What the disk held of one namespace.
#[derive(Clone, Debug)]
pub struct SavedNamespace {
    /// Which.
    pub namespace: Namespace,
    /// What was seen of every key.
    pub context: Vec<(Actor, u64)>,
    /// The keys, in their order.
    pub keys: Vec<SavedKey>,
}

/// What the disk held.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// By namespace, each once.
    pub namespaces: Vec<SavedNamespace>,
}

impl Saved {
    /// A boot epoch that `node` must exceed: it has used this one and those below.
    #[must_use]
    pub fn epoch_floor(&self, node: &NodeName) -> u64 {
        let contexts = self.namespaces.iter().flat_map(|saved| &saved.context);
        let seen = contexts.filter(|(actor, _)| actor.node == *node);
        let seen = seen.map(|(actor, counter)| if actor.is_floor() { *counter } else { actor.boot_epoch_ms });
        let keys = self.namespaces.iter().flat_map(|saved| &saved.keys).flat_map(|key| &key.actors);
        let keys = keys.filter(|actor| actor.node == *node).map(|actor| actor.boot_epoch_ms);
        seen.chain(keys).max().unwrap_or(0)
    }

    /// Joins what was saved into new stores.
    ///
    /// # Errors
    /// When it contradicts itself. The stores hold a part of it then and are of no use.
    pub fn restore(self, stores: &mut Stores, wall_ms: u64) -> Result<(), BodyError> {
        for SavedNamespace { namespace, context, keys } in self.namespaces {
            let mut seen = VersionVector::default();
            let mut keys = keys.into_iter().peekable();
            let mut from = Key::from(&b""[..]);
            loop {
                let some: Vec<SavedKey> = keys.by_ref().take(RESTORE_KEYS).collect();
                let to = keys.peek().map(|next| next.state.key.clone());
                let body = chunk(&context, some, from, to.clone());
                stores.restore(wall_ms, namespace, &mut seen, body)?;
                let Some(next) = to else { break };
                from = next;
            }
        }
        Ok(())
    }
}

/// A snapshot's chunk of saved keys.
fn chunk(context: &[(Actor, u64)], keys: Vec<SavedKey>, from: Key, to: Option<Key>) -> Body {
    let mut numbers = Numbers::default();
    let base: Vec<(ActorId, u64)> = context.iter().map(|(actor, counter)| (numbers.of(actor), *counter)).collect();
    let keys = keys.into_iter().map(|SavedKey { actors, mut state }| {
        let ids: Vec<ActorId> = actors.iter().map(|actor| numbers.of(actor)).collect();
        state.live.iter_mut().for_each(|live| live.dot.actor = ids[live.dot.actor.index()]);
        state.guard.iter_mut().for_each(|(actor, _)| *actor = ids[actor.index()]);
        state
    });
    let keys = keys.collect();
    Body {
        context: base.clone(),
        keys,
        chunk: Some(Chunk { from, to, guard: Vec::new(), base }),
        actors: numbers.actors,
        ..Body::default()
    }
}

#[cfg(test)]
mod tests;
