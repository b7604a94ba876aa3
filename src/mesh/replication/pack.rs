//! Packing key states into a body with actor numbers of its own.

use std::collections::BTreeMap;

use crate::mesh::crdt::{
    context::VersionVector,
    delta::{Body, KeyState},
    dot::{Actor, ActorId, Dot},
    map::{Dots, Map},
};

/// Bytes that a live dot takes beside its payload, about.
const DOT_BYTES: usize = 24;

pub(super) struct Packer<'a> {
    map: &'a Map,
    numbers: BTreeMap<ActorId, ActorId>,
    positions: BTreeMap<&'a [u8], usize>,
    body: Body,
    bytes: usize,
}

impl<'a> Packer<'a> {
    pub(super) fn new(map: &'a Map) -> Self {
        Self { map, numbers: BTreeMap::new(), positions: BTreeMap::new(), body: Body::default(), bytes: 0 }
    }

    /// What the keys take so far, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The body's number for an actor.
    pub(super) fn number(&mut self, actor: ActorId) -> ActorId {
        let next = ActorId(u32::try_from(self.body.actors.len()).unwrap_or(u32::MAX));
        let number = *self.numbers.entry(actor).or_insert(next);
        if number == next {
            self.body.actors.push(self.map.actors().actor(actor).clone());
        }
        number
    }

    /// The body's number for an actor that this node may have dropped.
    pub(super) fn number_of(&mut self, actor: &Actor) -> ActorId {
        if let Some(id) = self.map.actors().id(actor) {
            return self.number(id);
        }
        let known = self.body.actors.iter().position(|other| other == actor).unwrap_or_else(|| {
            self.body.actors.push(actor.clone());
            self.body.actors.len() - 1
        });
        ActorId(u32::try_from(known).unwrap_or(u32::MAX))
    }

    /// Adds the key that a dot leads to; a dead dot travels along, so that the receiver can pass it on.
    pub(super) fn add_event(&mut self, actor: ActorId, counter: u64, key: &'a [u8], dead: bool) {
        let position = self.add_key(key);
        if dead {
            let actor = self.number(actor);
            self.body.keys[position].records.push(Dot { actor, counter });
            self.bytes += 8;
        }
    }

    /// Adds a key once; gives its position.
    pub(super) fn add_key(&mut self, key: &'a [u8]) -> usize {
        if let Some(position) = self.positions.get(key) {
            return *position;
        }
        self.positions.insert(key, self.body.keys.len());
        self.push(self.map.key_state(key))
    }

    /// Adds a live key that comes in order, and so once, with its dots: there is no need to look for them.
    pub(super) fn add_next(&mut self, key: &[u8], live: Dots<'_>) {
        self.push(self.map.key_state_of(key, live));
    }

    fn push(&mut self, mut state: KeyState) -> usize {
        self.bytes += state.key.len() + 8 + 12 * state.guard.len();
        for live in &mut state.live {
            live.dot.actor = self.number(live.dot.actor);
            self.bytes += live.payload.len() + DOT_BYTES;
        }
        for (actor, _) in &mut state.guard {
            *actor = self.number(*actor);
        }
        self.body.keys.push(state);
        self.body.keys.len() - 1
    }

    /// The body, with what the context gained beyond `context_sent`.
    pub(super) fn finish(mut self, context_sent: &mut VersionVector) -> Body {
        if let Some(news) = self.map.seen().beyond(context_sent) {
            for (actor, counter) in news.iter() {
                let actor = self.number(actor);
                self.body.context.push((actor, counter));
            }
            context_sent.join(&news);
        }
        self.body
    }
}
