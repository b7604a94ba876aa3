//! The dialing side of a pipe: works out from acks what the peer lacks, and builds bodies from the store.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    GRANT_FOR,
    clock::{self, Asking},
    frame::{Ack, NamespaceAck},
    pack::Packer,
    topology::Topology,
};
use crate::mesh::{
    crdt::{
        context::VersionVector,
        delta::{Body, Cover},
        dot::{ACTORS_MAX, Actor, ActorId, COUNTER_MAX, Key},
        map::Map,
    },
    node::NodeName,
    stores::{Namespace, Stores},
};

mod lags;
mod snapshot;

use self::{lags::Lags, snapshot::Snapshot};

/// A body is closed once its keys take this many bytes: 256 KiB. It exceeds that by one key at most.
pub const BODY_BYTES: usize = 256 << 10;

/// Bytes of a snapshot that may be on their way without an ack: 4 MiB. The next chunk waits for one.
pub const CREDIT_BYTES: usize = 4 << 20;

/// A peer that lacks more keys than this is served by a snapshot.
pub const DELTA_KEYS_MAX: usize = 16_384;

/// Equal vectors with different roots for this long mean a snapshot.
pub const DIVERGED_FOR: Duration = Duration::from_secs(2);

/// A peer that has not granted everything yet is sent our own writes at once when it lacks no more keys than this.
const BACKLOG_AT_ONCE_KEYS: usize = 256;

/// The same, once it was waited for the grant for a sync interval.
const BACKLOG_WAITED_KEYS: usize = 4096;

/// Keys that are pushed ahead of a backlog at most; later ones wait for their turn. Each costs the receiver a guard
/// until then, of [`KEY_GUARDS_MAX`](crate::mesh::crdt::context::KEY_GUARDS_MAX).
const AHEAD_KEYS_MAX: usize = 2048;

/// What a peer said of its vector counts for a fold for this long. Acks come every 16 sync intervals and more often.
const AGREED_FOR: Duration = Duration::from_secs(60);

/// Frames whose acks are timed at most; beyond that the latency of the oldest is not measured.
const TIMED_MAX: usize = 256;

/// Guarded keys that one delta may carry beyond its budget before a snapshot is cheaper.
const GUARDED_BYTES_MAX: usize = 2 << 20;

#[derive(Debug, Default)]
struct OutNamespace {
    /// The peer's vector by actor, as its acks told; none before its digest.
    peer: Option<BTreeMap<Actor, u64>>,
    peer_root: u64,
    /// When the last ack came, and whether the peer then knew more of some keys than of all: of a writer's keys wherever
    /// it lacks what the writer has from others, so that says nothing of who sends it what.
    told_at: Option<Instant>,
    peer_guarded: bool,
    /// Since when a snapshot is on its way to it, without a break: somebody is sending it what it lacks.
    served_since: Option<Instant>,
    resume: Option<(Key, Vec<(Actor, u64)>)>,
    /// What the peer has or will have once the frames on their way arrive.
    sent: VersionVector,
    /// Position of a delta that did not fit one frame.
    cursor: Option<VersionVector>,
    context_sent: VersionVector,
    /// Foreign dots are pushed too: those of `basis`, which is what was seen here when the pipe began, or when it turned out
    /// that the peer still lacked some.
    full: bool,
    basis: VersionVector,
    /// The size of what is missing was checked.
    sized: bool,
    /// All that was here at some moment of this pipe was sent.
    was_complete: bool,
    /// What was seen here a sync interval ago.
    mark: VersionVector,
    /// What the peer lacks of that.
    lags: Lags,
    snapshot: Option<Snapshot>,
    diverged_since: Option<Instant>,
    /// Writes up to here are not pushed ahead of a backlog: they are part of it, or were pushed.
    ahead: VersionVector,
    ahead_keys: usize,
    /// A sync interval has passed without a grant.
    waited: bool,
    /// What the peer lacks of our own writes is little; none when that has to be counted again.
    is_little: Option<bool>,
}

/// State of a dialed pipe: O(actors), whatever the peer lacks.
#[derive(Debug)]
pub(super) struct Outbound {
    frames: u64,
    acks: u64,
    granted: bool,
    timed: VecDeque<(u64, Instant)>,
    /// Since when a frame waits for its ack, or a later time.
    waiting_since: Option<Instant>,
    reads_lz4: bool,
    /// Chunks that the peer has not acked, with their sizes. Bounded by [`CREDIT_BYTES`] and one chunk.
    on_the_way: VecDeque<(u64, usize)>,
    pub(super) tick_due: Instant,
    asking: Asking,
    namespaces: [OutNamespace; Namespace::COUNT],
}

/// What an ack meant.
#[derive(Debug, Default)]
pub(super) struct AckOutcome {
    pub(super) latency: Option<Duration>,
    /// By how many milliseconds the peer's clock leads ours, when the ack told.
    pub(super) skew_ms: Option<i64>,
    pub(super) in_sync: bool,
}

impl Outbound {
    pub(super) fn new(now: Instant, sync_interval: Duration) -> Self {
        Self {
            frames: 0,
            acks: 0,
            asking: Asking::default(),
            granted: false,
            timed: VecDeque::new(),
            waiting_since: None,
            reads_lz4: false,
            on_the_way: VecDeque::new(),
            tick_due: now + sync_interval / 2,
            namespaces: Default::default(),
        }
    }

    /// Whether an ack can be the next of this pipe.
    pub(super) fn accepts(&self, seq: u64, ack: &Ack) -> bool {
        seq == self.acks && ack.received <= self.frames
    }

    /// Since when the oldest frame without an ack waits for it; none when there is none.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// Takes note of what the peer has.
    pub(super) fn on_ack(&mut self, now: Instant, wall_ms: u64, stores: &Stores, ack: Ack) -> AckOutcome {
        self.acks += 1;
        self.reads_lz4 |= ack.reads_lz4;
        while self.on_the_way.front().is_some_and(|(seq, _)| *seq < ack.received) {
            self.on_the_way.pop_front();
        }
        let mut outcome = AckOutcome::default();
        while let Some((_, sent_at)) = self.timed.front().filter(|(seq, _)| *seq < ack.received) {
            outcome.latency = Some(now.saturating_duration_since(*sent_at));
            self.timed.pop_front();
        }
        let is_waiting = ack.received < self.frames;
        self.waiting_since = is_waiting.then(|| self.timed.front().map_or(now, |(_, sent_at)| *sent_at));
        let timed = outcome.latency.zip(ack.clock);
        outcome.skew_ms = timed.and_then(|(latency, reading)| clock::skew_ms(wall_ms, latency, reading));
        if ack.grant && !self.granted {
            self.granted = true;
            self.namespaces.iter_mut().for_each(|namespace| namespace.full = true);
        }
        for told in ack.namespaces {
            let index = told.namespace.index();
            self.namespaces[index].on_told(now, stores.map(told.namespace), told);
        }
        outcome.in_sync = true;
        for namespace in Namespace::ALL {
            let is_sending = !self.on_the_way.is_empty();
            let equal = self.namespaces[namespace.index()].compare(now, stores.map(namespace), is_sending);
            outcome.in_sync &= equal.unwrap_or(true);
        }
        outcome
    }

    /// Takes note of what the peer's own bodies told that it has seen.
    pub(super) fn on_context(&mut self, stores: &Stores, namespace: Namespace, context: &VersionVector) {
        self.namespaces[namespace.index()].on_seen(stores.map(namespace), context);
    }

    /// Once per sync interval: foreign dots that the peer still lacks are pushed after all, lasting divergence is healed.
    pub(super) fn on_tick(&mut self, now: Instant, stores: &Stores) {
        if self.namespaces.iter().any(|out| out.peer.is_some()) {
            self.asking.on_tick(now);
        }
        for namespace in Namespace::ALL {
            let (map, out) = (stores.map(namespace), &mut self.namespaces[namespace.index()]);
            let Some(peer) = &out.peer else { continue };
            (out.waited, out.is_little) = (true, None);
            let mut peer = vector(map, peer.iter().map(|(actor, counter)| (actor, *counter)));
            peer.join(&out.sent);
            for vector in [&mut out.sent, &mut out.context_sent, &mut out.ahead, &mut out.basis] {
                vector.retain(|actor| map.actors().knows(actor));
            }
            let is_served = out.served_since.is_some_and(|since| now.saturating_duration_since(since) < GRANT_FOR);
            if out.lags.are_left(now, map, &out.mark, &peer) && self.granted && !is_served {
                (out.full, out.basis) = (true, map.seen().clone());
            }
            out.mark = map.seen().clone();
            if self.granted
                && out.snapshot.is_none()
                && out.diverged_since.is_some_and(|since| now.saturating_duration_since(since) > DIVERGED_FOR)
            {
                (out.diverged_since, out.resume) = (None, None);
                out.begin_snapshot(map);
                out.snapshot.iter_mut().for_each(|snapshot| snapshot.is_repair = true);
            }
        }
    }

    /// Whether the peer's acks said that chunks to it may be compressed.
    pub(super) fn reads_lz4(&self) -> bool {
        self.reads_lz4
    }

    /// Notes the size of a chunk that was handed out.
    pub(super) fn on_chunk_sent(&mut self, seq: u64, chunk_bytes: usize) {
        self.on_the_way.push_back((seq, chunk_bytes));
    }

    /// Whether [`poll_body`](Self::poll_body) may have something; cheap.
    pub(super) fn wants_to_send(&self, stores: &Stores, topology: Topology) -> bool {
        let wants = |namespace: &Namespace| {
            self.namespaces[namespace.index()].wants(stores.map(*namespace), self.granted, topology)
        };
        self.asking.is_due() || Namespace::ALL.iter().any(wants)
    }

    /// Whether the peer agrees to a fold. See [`fold`](super::fold).
    pub(super) fn agrees(&self, now: Instant, stores: &Stores, namespace: Namespace, fold: (&NodeName, u64)) -> bool {
        self.namespaces[namespace.index()].agrees(now, stores.map(namespace), fold.0, fold.1)
    }

    /// The next body for the peer; none when it has, or waits for, nothing.
    pub(super) fn poll_body(
        &mut self,
        now: Instant,
        stores: &Stores,
        is_receiving: bool,
        topology: Topology,
    ) -> Option<(u64, Namespace, Body)> {
        let has_credit = self.on_the_way.iter().map(|(_, bytes)| bytes).sum::<usize>() < CREDIT_BYTES;
        for namespace in Namespace::ALL {
            let map = stores.map(namespace);
            // What is still arriving would be pushed in pieces, most of it to where it comes from.
            let waits = is_receiving && map.progress().is_some();
            let out = &mut self.namespaces[namespace.index()];
            if let Some(mut body) = out.poll_body(map, self.granted, waits, has_credit, topology) {
                body.complete &= self.namespaces.iter().all(|out| out.peer.is_none() || out.was_complete);
                return Some((self.count_frame(now), namespace, body));
            }
        }
        // A body without content, whose ack tells the peer's clock.
        let known = Namespace::ALL.into_iter().find(|namespace| self.namespaces[namespace.index()].peer.is_some());
        let namespace = known.filter(|_| self.asking.is_due())?;
        Some((self.count_frame(now), namespace, Body::default()))
    }

    fn count_frame(&mut self, now: Instant) -> u64 {
        let seq = self.frames;
        self.frames += 1;
        if self.timed.len() == TIMED_MAX {
            self.timed.pop_front();
        }
        self.timed.push_back((seq, now));
        self.waiting_since.get_or_insert(now);
        self.asking.on_sent(now);
        seq
    }
}

impl OutNamespace {
    fn on_told(&mut self, now: Instant, map: &Map, told: NamespaceAck) {
        (self.told_at, self.peer_guarded) = (Some(now), told.guarded);
        self.served_since = told.is_receiving.then(|| self.served_since.unwrap_or(now));
        if let Some((until, base)) = told.resume {
            self.resume = Some((Key::from(&*until), base));
        }
        if self.peer.is_none() {
            (self.ahead, self.basis) = (map.seen().clone(), map.seen().clone());
        }
        self.is_little = None;
        let peer = self.peer.get_or_insert_default();
        for (actor, counter) in told.seen {
            if peer.len() < ACTORS_MAX || peer.contains_key(&actor) {
                let slot = peer.entry(actor).or_default();
                *slot = (*slot).max(counter);
            }
        }
        let floors: Vec<_> = peer.iter().filter(|(actor, _)| actor.is_floor()).map(|(a, c)| (a.clone(), *c)).collect();
        for (actor, floor_ms) in floors {
            peer.retain(|other, _| other.node != actor.node || other.is_floor() || other.boot_epoch_ms >= floor_ms);
        }
        self.peer_root = told.root;
        let theirs = vector(map, peer.iter().map(|(actor, counter)| (actor, *counter)));
        self.on_seen(map, &theirs);
    }

    /// The peer has seen this much.
    fn on_seen(&mut self, map: &Map, theirs: &VersionVector) {
        self.snapshot.take_if(|snapshot| snapshot.is_needless(map, theirs));
        self.sent.join(theirs);
        let has_basis = !self.lacks_basis(map) && map.actors().counter(&self.sent, map.own()) >= map.floor(map.own());
        self.snapshot.take_if(|snapshot| snapshot.is_for_basis && has_basis);
    }

    /// Whether both sides are equal, as far as the last ack tells; none when the peer does not know the namespace.
    /// Divergence is counted from when no chunk is on its way that could end it.
    fn compare(&mut self, now: Instant, map: &Map, is_sending: bool) -> Option<bool> {
        let peer = self.peer.as_ref()?;
        let knows_more = peer.iter().any(|(actor, counter)| map.seen_of(actor) < *counter);
        let theirs = vector(map, peer.iter().map(|(actor, counter)| (actor, *counter)));
        let knows_all = map.seen().iter().all(|(actor, counter)| counter <= map.actors().counter(&theirs, actor));
        let equal_vectors = !knows_more && knows_all;
        let equal_roots = self.peer_root == map.root();
        if !equal_vectors || equal_roots || is_sending || self.snapshot.is_some() {
            self.diverged_since = None;
        } else {
            self.diverged_since.get_or_insert(now);
        }
        Some(equal_vectors && equal_roots)
    }

    fn wants(&self, map: &Map, granted: bool, topology: Topology) -> bool {
        let lacks = || match topology {
            Topology::Full => map.seen().get(map.own()) > self.sent.get(map.own()),
            Topology::Sparse => {
                map.seen().iter().any(|(actor, counter)| counter > map.actors().counter(&self.sent, actor))
            }
        };
        self.peer.is_some() && (granted && (self.snapshot.is_some() || self.full) || lacks())
    }

    /// Whether the peer lately said that it has seen exactly what was seen here of the epochs of `node` below `floor_ms`,
    /// or has folded them.
    fn agrees(&self, now: Instant, map: &Map, node: &NodeName, floor_ms: u64) -> bool {
        let (Some(peer), Some(told_at)) = (&self.peer, self.told_at) else { return false };
        // Where keys are guarded somebody may hold a dot above what was seen, unless the live dots are equal.
        let is_plain = !self.peer_guarded && map.guards().is_empty();
        if told_at + AGREED_FOR < now || !(is_plain || self.peer_root == map.root()) {
            return false;
        }
        let peer_floor_ms = peer.get(&Actor::floor_of(node)).copied().unwrap_or(0);
        let theirs = |actor: &Actor| match peer.get(actor) {
            _ if actor.boot_epoch_ms < peer_floor_ms => COUNTER_MAX,
            counter => counter.copied().unwrap_or(0),
        };
        let below = |actor: &&Actor| actor.node == *node && !actor.is_floor() && actor.boot_epoch_ms < floor_ms;
        let here = map.actors().of_node(node).map(|(actor, _)| actor);
        peer_floor_ms >= floor_ms
            || here.chain(peer.keys()).filter(below).all(|actor| theirs(actor) == map.seen_of(actor))
    }

    fn poll_body(
        &mut self,
        map: &Map,
        granted: bool,
        waits: bool,
        has_credit: bool,
        topology: Topology,
    ) -> Option<Body> {
        self.peer.as_ref()?;
        let scope = scope(map, topology == Topology::Sparse);
        let lacks = scope.iter().any(|actor| map.seen().get(*actor) > map.actors().counter(&self.sent, *actor));
        if !granted {
            return match lacks {
                true if self.lacks_little(map, &scope) => self.build_delta(map, &scope),
                true => self.push_ahead(map, &scope),
                false => None,
            };
        }
        if lacks && topology == Topology::Sparse && !self.full {
            (self.full, self.basis) = (true, map.seen().clone());
        }
        let waits = waits && self.full && self.snapshot.is_none();
        if (waits || self.snapshot.is_some() || self.cursor.is_some())
            && lacks
            && let Some(body) = self.push_ahead(map, &scope)
        {
            return Some(body);
        }
        if self.snapshot.is_some() {
            return if has_credit { self.build_chunk(map) } else { None };
        }
        if waits || !(self.full || lacks) {
            return None;
        }
        if self.needs_snapshot(map) {
            self.begin_snapshot(map);
            self.snapshot.iter_mut().for_each(|snapshot| snapshot.is_for_basis = true);
            return if has_credit { self.build_chunk(map) } else { None };
        }
        let full = (self.full && self.lacks_basis(map)).then(|| self::scope(map, true));
        self.build_delta(map, full.as_ref().unwrap_or(&scope))
    }

    /// Whether what the peer lacks of the actors that are pushed at once is too little to wait for its grant.
    fn lacks_little(&mut self, map: &Map, scope: &[ActorId]) -> bool {
        let had = |actor: ActorId| map.actors().counter(&self.sent, actor);
        if scope.iter().any(|actor| had(*actor) < map.floor(*actor)) {
            return false;
        }
        let limit = if self.waited { BACKLOG_WAITED_KEYS } else { BACKLOG_AT_ONCE_KEYS };
        // A delta that was begun goes on.
        self.cursor.is_some()
            || *self.is_little.get_or_insert_with(|| {
                let lacking = scope.iter().flat_map(|actor| {
                    let after = |at: u64| map.next_event(*actor, at).map(|(counter, ..)| counter);
                    std::iter::successors(after(had(*actor)), move |at| after(*at))
                });
                lacking.take(limit + 1).count() <= limit
            })
    }

    /// States of keys that were written since the pipe began, ahead of a backlog that waits for its turn. They cover
    /// nothing: the receiver guards their keys, and gets them again with the rest.
    fn push_ahead(&mut self, map: &Map, scope: &[ActorId]) -> Option<Body> {
        let mut packer = Packer::new(map);
        for actor in scope.iter().copied() {
            let mut at = self.ahead.get(actor).max(map.actors().counter(&self.sent, actor)).max(map.floor(actor));
            while self.ahead_keys < AHEAD_KEYS_MAX && packer.bytes() < BODY_BYTES {
                let Some((counter, key, dead)) = map.next_event(actor, at) else { break };
                if counter > map.seen().get(actor) {
                    break;
                }
                packer.add_event(actor, counter, key, dead);
                self.ahead_keys += 1;
                at = counter;
            }
            self.ahead.raise(actor, at);
        }
        (packer.bytes() > 0).then(|| packer.finish(&mut self.context_sent))
    }

    /// States of the keys that the peer lacks, in the order of dots. Nothing counts as covered before a frame reaches the
    /// end of what was seen: a dead dot may have been killed by one that comes later.
    fn build_delta(&mut self, map: &Map, scope: &[ActorId]) -> Option<Body> {
        let mut cursor = self.cursor.take().unwrap_or_default();
        cursor.join(&self.sent);
        let mut packer = Packer::new(map);
        let mut fits = true;
        'seen: for actor in scope {
            while let Some((counter, key, dead)) = map.next_event(*actor, map.actors().counter(&cursor, *actor)) {
                if counter > map.seen().get(*actor) {
                    break;
                }
                if packer.bytes() >= BODY_BYTES {
                    fits = false;
                    break 'seen;
                }
                packer.add_event(*actor, counter, key, dead);
                cursor.raise(*actor, counter);
            }
        }
        let covers_any = scope.iter().any(|actor| map.seen().get(*actor) > map.actors().counter(&self.sent, *actor));
        if fits && covers_any {
            // Killers that only guards know travel with what they killed, each time, until they are seen.
            for actor in scope {
                let mut at = map.seen().get(*actor).max(map.actors().counter(&cursor, *actor));
                while let Some((counter, key, dead)) = map.next_event(*actor, at) {
                    packer.add_event(*actor, counter, key, dead);
                    at = counter;
                }
            }
            if packer.bytes() > GUARDED_BYTES_MAX {
                self.begin_snapshot(map);
                return self.build_chunk(map);
            }
        }
        let mut covers = Vec::new();
        if fits {
            for actor in scope {
                let (from, to) = (map.actors().counter(&self.sent, *actor), map.seen().get(*actor));
                if to > from {
                    covers.push(Cover { actor: packer.number(*actor), from, to });
                    self.sent.raise(*actor, to);
                }
            }
            self.ahead_keys = 0;
        } else {
            self.cursor = Some(cursor);
        }
        let complete = fits && self.full;
        if complete {
            (self.resume, self.was_complete) = (None, true);
        }
        self.full &= !fits;
        let mut body = packer.finish(&mut self.context_sent);
        (body.covers, body.complete) = (covers, complete);
        Some(body)
    }
}

/// The actors whose dots are pushed.
fn scope(map: &Map, all: bool) -> Vec<ActorId> {
    if all { map.actors().iter().map(|(_, id)| id).collect() } else { vec![map.own()] }
}

fn vector<'a>(map: &Map, named: impl IntoIterator<Item = (&'a Actor, u64)>) -> VersionVector {
    let mut vector = VersionVector::default();
    for (actor, counter) in named {
        if let Some(id) = map.actors().id(actor) {
            vector.raise(id, counter);
        }
    }
    vector
}

#[cfg(test)]
mod tests;
