//! Snapshots: when a peer needs one, what a node remembers of one that it sends, and its chunks.

use super::{BODY_BYTES, DELTA_KEYS_MAX, OutNamespace, Packer, vector};
use crate::mesh::crdt::{
    context::VersionVector,
    delta::{Body, Chunk},
    dot::{Actor, ActorId, Key},
    map::Map,
};

/// A snapshot on its way to the peer.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// What it covers at its end: by name, because actors may be dropped meanwhile.
    pub(super) base: Vec<(Actor, u64)>,
    /// Where the next chunk begins.
    pub(super) next: Key,
    /// It covers all that was here when it began; one that goes on with another's may cover less.
    pub(super) is_whole: bool,
    /// Against lasting divergence, of which vectors tell nothing.
    pub(super) is_repair: bool,
    /// For want of what `full` is about: of no use once the peer has that.
    pub(super) is_for_basis: bool,
}

impl Snapshot {
    /// Whether the peer, having seen this much, has all that the snapshot would bring.
    pub(super) fn is_needless(&self, map: &Map, theirs: &VersionVector) -> bool {
        let has = |(actor, counter): &(Actor, u64)| {
            map.actors().id(actor).is_none_or(|id| map.actors().counter(theirs, id) >= *counter)
        };
        !self.is_repair && self.base.iter().all(has)
    }
}

impl OutNamespace {
    /// Whether the peer lacks something that was here when pushing everything became its turn.
    pub(super) fn lacks_basis(&self, map: &Map) -> bool {
        self.basis.iter().any(|(actor, counter)| counter > map.actors().counter(&self.sent, actor))
    }

    /// Whether the store no longer knows what the peer lacks, or it lacks too much.
    pub(super) fn needs_snapshot(&mut self, map: &Map) -> bool {
        let had = |actor: ActorId| map.actors().counter(&self.sent, actor);
        let is_behind = |actor: ActorId| had(actor) < map.floor(actor);
        if is_behind(map.own()) {
            return true;
        }
        // What others wrote since then they deliver themselves.
        let lacking: Vec<_> = self.basis.iter().filter(|(actor, counter)| *counter > had(*actor)).collect();
        if self.full && lacking.iter().any(|(actor, _)| is_behind(*actor)) {
            return true;
        }
        // Of what is here but for a snapshot that this node is being sent, nobody needs to be told.
        if self.full && map.guards().has_ranges() && !lacking.is_empty() {
            return true;
        }
        if self.full && !std::mem::replace(&mut self.sized, true) {
            let mut keys = 0;
            for (actor, until) in lacking {
                let mut at = had(actor);
                while let Some((counter, ..)) = map.next_event(actor, at).filter(|(counter, ..)| *counter <= until) {
                    (at, keys) = (counter, keys + 1);
                    if keys > DELTA_KEYS_MAX {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// A snapshot from the beginning, or from where an earlier one to this peer, by whomever, stopped.
    pub(super) fn begin_snapshot(&mut self, map: &Map) {
        self.cursor = None;
        self.full = true;
        let resumed = self.resume.take().and_then(|(next, named)| {
            let base = vector(map, named.iter().map(|(actor, counter)| (actor, *counter)));
            let is_known = named.iter().all(|(actor, counter)| *counter <= map.seen_of(actor));
            let is_current =
                map.actors().iter().all(|(_, actor)| map.actors().counter(&base, actor) >= map.floor(actor));
            let snapshot = Snapshot { base: named, next, is_whole: false, is_repair: false, is_for_basis: false };
            (is_known && is_current).then_some(snapshot)
        });
        let name = |(actor, counter)| (map.actors().actor(actor).clone(), counter);
        let base = || map.seen().iter().map(name).collect();
        let next = Key::from(&b""[..]);
        let start = || Snapshot { base: base(), next, is_whole: true, is_repair: false, is_for_basis: false };
        self.snapshot = Some(resumed.unwrap_or_else(start));
    }

    pub(super) fn build_chunk(&mut self, map: &Map) -> Option<Body> {
        let snapshot = self.snapshot.take()?;
        let from = snapshot.next;
        let (guard, boundary) = map.guards().range_at(&from);
        let within = |key: &[u8]| boundary.as_deref().is_none_or(|boundary| key < boundary);
        let mut live = map.range_from(&from).take_while(|(key, _)| within(key)).peekable();
        let mut guarded = map.guards().keys_from(&from).map(|key| &**key).take_while(|key| within(key)).peekable();
        let mut packer = Packer::new(map);
        let mut to = boundary.clone();
        loop {
            let key = match (live.peek(), guarded.peek()) {
                (Some((live, _)), Some(guarded)) => (*live).min(*guarded),
                (Some((key, _)), None) | (None, Some(key)) => *key,
                (None, None) => break,
            };
            if packer.bytes() >= BODY_BYTES {
                to = Some(key.into());
                break;
            }
            match live.next_if(|(live, _)| *live == key) {
                Some((key, live)) => packer.add_next(key, live),
                None => drop(packer.add_key(key)),
            }
            guarded.next_if_eq(&key);
        }
        let guard = guard.beyond(map.seen()).unwrap_or_default();
        let guard = guard.iter().map(|(actor, counter)| (packer.number(actor), counter)).collect();
        let base = snapshot.base.iter().map(|(actor, counter)| (packer.number_of(actor), *counter)).collect();
        let mut body = packer.finish(&mut self.context_sent);
        body.chunk = Some(Chunk { from: from.clone(), to: to.clone(), guard, base });
        match to {
            Some(next) => self.snapshot = Some(Snapshot { next, ..snapshot }),
            None => {
                self.sent.join(&vector(map, snapshot.base.iter().map(|(actor, counter)| (actor, *counter))));
                if snapshot.is_whole {
                    // What others wrote since it began they deliver themselves; to look for it now, when acks have yet
                    // to tell what the peer has got from them, would be to begin again.
                    (body.complete, self.was_complete, self.full) = (true, true, false);
                }
            }
        }
        Some(body)
    }
}
