//! Replication: what to send to whom until states agree.
//!
//! # The protocol
//!
//! A pipe is ordered and reliable; whoever dialed it pushes its state over it, the other side acks. In a mesh there is
//! one pipe per direction of each pair.
//!
//! 1. The acceptor begins with an *ack* that names its version vector and root per namespace: the digest.
//! 2. The dialer sends *deltas*: the present state of each key that a dot unknown to the peer leads to, and which dots
//!    that covers. Deltas are computed from the store when the pipe has room; nothing is queued per peer, the newest
//!    state wins by construction, and a slow peer costs O(actors) (delta-interval anti-entropy, Almeida et al. 2018 §6,
//!    with the store in the place of the delta buffer).
//! 3. After the first exchange a node pushes its *own* writes alone, at once. Dots of others go to a peer only when its
//!    acks still lack them after one to two sync intervals: in a full mesh the writer delivers them itself. A peer whose
//!    acks say that a snapshot is on its way to it is being served by somebody; that is waited for as well, for
//!    [`GRANT_FOR`] at most, and so is what would take a snapshot, while dots of its writer still arrive. In a sparse mesh ([`topology`]) dots of others go at once.
//! 4. A peer that lacks more than [`DELTA_KEYS_MAX`](outbound::DELTA_KEYS_MAX) keys, or whose vector is behind what the
//!    store remembers of removes, gets a *snapshot*: chunks in key order, resumed where an earlier one stopped, compressed
//!    where the acks say that they may be, at most [`CREDIT_BYTES`](outbound::CREDIT_BYTES) of them ahead of the acks. It
//!    ends early when the peer turns out to have what it covers, by its acks or by what its own bodies say that it has seen.
//!    Several donors may send to one node at once. What a peer lacks is counted of what was here when the pipe began, for
//!    what others write later they deliver themselves: after a partition, when each gateway says what it sees of thousands of
//!    workers, no snapshot goes back for that.
//! 5. The acceptor grants "everything" to one peer after another, so that a joiner is not sent all state by each. Own
//!    writes do not wait for it: a small backlog of them goes at once, a larger one after a sync interval, and new ones
//!    are pushed ahead of any backlog, without covering anything, so that the receiver guards their keys meanwhile.
//! 6. Acks carry what changed of the vector, and the roots: at most one per 20 ms, and at least one per half sync interval
//!    while anything changes. Without news one of ~40 bytes after 1, 2, 4, 8 and then each 16 sync intervals, up to a fifth
//!    earlier where other work wakes the node.
//! 7. Equal vectors with different roots for more than 2 s: a snapshot, whatever went wrong.
//! 8. Once a minute, where nothing else is sent, a body without content asks for the peer's clock: see [`clock`].
//! 9. Peers of another version may know other namespaces. An acceptor names those that it knows in its digest, and a
//!    dialer sends nothing of any other, skips what it does not know itself, and counts itself complete without it.
//!    Meanwhile no dead epoch of a namespace is folded that a voter does not know.
//!
//! Invariant: a frame is applied whole or not at all; after an error the pipe is closed and a new one starts from 1.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use self::{
    event::sent_event,
    fold::Members,
    frame::{Frame, Kind},
    inbound::Inbound,
    outbound::Outbound,
    topology::Topology,
};
use crate::mesh::{
    crdt::delta::BodyError,
    node::NodeName,
    stores::{Namespace, Stores},
    wire::replication::{self as wire, DecodeError},
};

pub mod clock;
mod event;
pub mod fold;
pub mod frame;
pub mod inbound;
pub mod outbound;
mod pack;
pub mod topology;

pub use self::event::SyncEvent;

/// Events waiting to be polled at most; the oldest goes first.
pub const EVENTS_MAX: usize = 1024;

/// Pipes at most; further ones are not served until one is disconnected.
pub const PIPES_MAX: usize = 4096;

/// A peer that was granted everything has this long before the next is granted it too: 5 s. One of which nothing comes
/// for a sync interval has no longer than that.
pub const GRANT_FOR: Duration = Duration::from_secs(5);

/// Name of a pipe, chosen by the driver and never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PipeId(pub u64);

/// What the machine needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Between two anti-entropy checks with a peer: `--mesh-sync-interval-ms`, default 1 s.
    pub sync_interval: Duration,
}

/// Why a frame was refused. Nothing of it was applied; close the pipe and count it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes are no frame of this protocol.
    #[error("malformed sync frame")]
    Decode(#[from] DecodeError),
    /// The frame contradicts what was seen.
    #[error("contradictory sync frame")]
    Body(#[from] BodyError),
    /// A frame before it was lost or repeated, or an ack counts frames that were never sent.
    #[error("sync frame out of sequence")]
    Sequence,
    /// An ack where bodies belong, or the reverse.
    #[error("sync frame for the other side of the pipe")]
    WrongDirection,
    /// The pipe is not connected.
    #[error("sync frame on an unknown pipe")]
    UnknownPipe,
}

impl FrameError {
    /// A label for `smg_mesh_rejected_total{reason}`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Decode(DecodeError::Checksum) => "sync_checksum",
            Self::Decode(_) => "sync_malformed",
            Self::Body(_) => "sync_contradiction",
            Self::Sequence => "sync_sequence",
            Self::WrongDirection => "sync_direction",
            Self::UnknownPipe => "sync_unknown_pipe",
        }
    }
}

#[derive(Debug)]
enum Role {
    Dialed(Box<Outbound>),
    Accepted(Box<Inbound>),
}

#[derive(Debug)]
struct Pipe {
    peer: NodeName,
    epoch_ms: u64,
    role: Role,
}

impl Role {
    /// When it does next what it does from time to time.
    fn upkeep_due(&self) -> Instant {
        match self {
            Self::Dialed(outbound) => outbound.tick_due,
            Self::Accepted(inbound) => inbound.check_due,
        }
    }
}

/// Who was granted everything last.
#[derive(Clone, Copy, Debug)]
struct Grant {
    pipe: PipeId,
    since: Instant,
    /// When something came from there.
    heard: Instant,
}

impl Grant {
    fn ends(&self, sync_interval: Duration) -> Instant {
        (self.since + GRANT_FOR).min(self.heard + sync_interval)
    }
}

/// The replication machine of one node. After each `handle_*` drain every `poll_*`.
#[derive(Debug)]
pub struct Replicator {
    config: Config,
    topology: Topology,
    members: Members,
    /// Our wall clock when the last frame came; 0 before.
    wall_ms: u64,
    pipes: BTreeMap<PipeId, Pipe>,
    /// Served after this one, so that pipes take turns.
    last_served: PipeId,
    grant: Option<Grant>,
    ungranted: VecDeque<PipeId>,
    events: VecDeque<SyncEvent>,
    prune_due: Instant,
    /// When the next of all that is done from time to time is due, as of the last time that it was done.
    upkeep_due: Option<Instant>,
    now: Instant,
    /// Offset of this node's timers, so that nodes started together do not tick together.
    phase: Duration,
}

impl Replicator {
    /// A machine without pipes. `seed` sets the phase of its timers.
    #[must_use]
    pub fn new(config: Config, now: Instant, seed: u64) -> Self {
        let interval_us = u64::try_from(config.sync_interval.as_micros()).unwrap_or(u64::MAX).max(1);
        Self {
            config,
            topology: Topology::Full,
            members: Members::default(),
            wall_ms: 0,
            pipes: BTreeMap::new(),
            last_served: PipeId(0),
            grant: None,
            ungranted: VecDeque::new(),
            events: VecDeque::new(),
            prune_due: now + config.sync_interval,
            upkeep_due: None,
            now,
            phase: Duration::from_micros(seed % interval_us),
        }
    }

    /// Says whether all nodes of the cluster are peers, or few of them. At first: all.
    pub fn set_topology(&mut self, topology: Topology) {
        self.topology = topology;
    }

    /// Says who is in the cluster: those who are there now, this node included or not. Nothing is folded without them.
    pub fn set_members(&mut self, now: Instant, present: &BTreeSet<NodeName>) {
        self.members.set(now, present);
    }

    /// A pipe to `peer` is open. The node that dialed it pushes its state over it. `peer_epoch_ms` is the peer's boot
    /// epoch; a new epoch is a new pipe, so nothing of an earlier one is kept.
    pub fn handle_connected(&mut self, now: Instant, pipe: PipeId, peer: NodeName, peer_epoch_ms: u64, dialed: bool) {
        self.now = now;
        self.handle_disconnected(now, pipe);
        if self.pipes.len() >= PIPES_MAX {
            return;
        }
        tracing::debug!(peer = %peer, peer_epoch_ms, dialed, "sync pipe connected");
        let role = if dialed {
            Role::Dialed(Box::new(Outbound::new(now + self.phase / 2, self.config.sync_interval)))
        } else {
            self.ungranted.push_back(pipe);
            Role::Accepted(Box::new(Inbound::new(now, self.config.sync_interval / 2)))
        };
        self.pipes.insert(pipe, Pipe { peer, epoch_ms: peer_epoch_ms, role });
        self.grant_next(now);
    }

    /// A pipe is closed.
    pub fn handle_disconnected(&mut self, now: Instant, pipe: PipeId) {
        self.now = now;
        if self.pipes.remove(&pipe).is_none() {
            return;
        }
        self.ungranted.retain(|waiting| *waiting != pipe);
        self.grant.take_if(|grant| grant.pipe == pipe);
        self.grant_next(now);
    }

    /// A frame arrived on a pipe.
    ///
    /// # Errors
    /// See [`FrameError`]: nothing was applied, the driver closes the pipe.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        wall_ms: u64,
        stores: &mut Stores,
        pipe: PipeId,
        bytes: &[u8],
    ) -> Result<(), FrameError> {
        (self.now, self.wall_ms) = (now, wall_ms);
        let Pipe { peer, role, .. } = self.pipes.get_mut(&pipe).ok_or(FrameError::UnknownPipe)?;
        let frame = wire::decode(bytes)?;
        match (role, frame.kind) {
            (Role::Dialed(outbound), Kind::Ack(ack)) => {
                if !outbound.accepts(frame.seq, &ack) {
                    return Err(FrameError::Sequence);
                }
                let outcome = outbound.on_ack(now, wall_ms, stores, ack);
                let peer = peer.clone();
                if let Some(skew_ms) = outcome.skew_ms {
                    self.push_event(SyncEvent::ClockSkew { peer: peer.clone(), skew_ms });
                }
                if let Some(latency) = outcome.latency {
                    self.push_event(SyncEvent::Acked { peer: peer.clone(), latency });
                }
                if outcome.in_sync {
                    self.push_event(SyncEvent::InSync { pipe, peer });
                }
            }
            (Role::Accepted(inbound), Kind::Body(namespace, body)) => {
                if frame.seq != inbound.expected_seq() {
                    return Err(FrameError::Sequence);
                }
                let (keys, complete) = (body.keys.len(), body.complete);
                let is_last = body.chunk.as_ref().map(|chunk| chunk.to.is_none());
                let epoch_ms = stores.epoch_ms();
                let ahead_ms = stores.apply(wall_ms, namespace, inbound.context(namespace), body)?;
                inbound.on_applied(now, wall_ms, bytes.len());
                let (peer, delta_bytes) = (peer.clone(), bytes.len());
                self.on_context(stores, pipe, namespace);
                if stores.epoch_ms() > epoch_ms {
                    self.push_event(SyncEvent::EpochRaised { peer: peer.clone(), epoch_ms: stores.epoch_ms() });
                }
                if let Some(ahead_ms) = ahead_ms {
                    self.push_event(SyncEvent::ClockAhead { peer: peer.clone(), ahead_ms });
                }
                self.push_event(match is_last {
                    Some(is_last) => {
                        SyncEvent::SnapshotReceived { pipe, namespace, peer, chunk_bytes: delta_bytes, is_last }
                    }
                    None => SyncEvent::DeltaReceived { peer, keys, delta_bytes },
                });
                if complete {
                    let peer = self.pipes.get(&pipe).map(|pipe| pipe.peer.clone());
                    peer.into_iter().for_each(|peer| self.push_event(SyncEvent::CaughtUp { peer }));
                }
                if let Some(grant) = self.grant.as_mut().filter(|grant| grant.pipe == pipe) {
                    grant.heard = now;
                    if complete {
                        self.grant = None;
                        self.grant_next(now);
                    }
                }
            }
            (Role::Dialed(_), Kind::Body(..)) | (Role::Accepted(_), Kind::Ack(_)) => {
                return Err(FrameError::WrongDirection);
            }
        }
        Ok(())
    }

    /// What a peer has seen is told by its bodies before its next ack tells it on the pipe of the other direction. Without
    /// that a node would send back what it has just been sent, all of it where that was a snapshot.
    fn on_context(&mut self, stores: &Stores, pipe: PipeId, namespace: Namespace) {
        let Some(Pipe { peer, epoch_ms, role: Role::Accepted(inbound) }) = self.pipes.get_mut(&pipe) else { return };
        let (peer, epoch_ms) = (peer.clone(), *epoch_ms);
        // Taken out for the time, so that nothing is copied for each frame.
        let context = std::mem::take(inbound.context(namespace));
        let is_other = |other: &&mut Pipe| other.peer == peer && other.epoch_ms == epoch_ms;
        for other in self.pipes.values_mut().filter(is_other) {
            if let Role::Dialed(outbound) = &mut other.role {
                outbound.on_context(stores, namespace, &context);
            }
        }
        if let Some(Pipe { role: Role::Accepted(inbound), .. }) = self.pipes.get_mut(&pipe) {
            *inbound.context(namespace) = context;
        }
    }

    /// The time that [`poll_timeout`](Self::poll_timeout) named has come.
    ///
    /// What is due within a quarter of the sync interval is done as well, so that the timers of all pipes fall together
    /// after a few rounds: an idle node wakes twice per interval, however many pipes it has.
    pub fn handle_timeout(&mut self, now: Instant, stores: &mut Stores) {
        self.now = now;
        let soon = now + self.config.sync_interval / 4;
        for pipe in self.pipes.values_mut() {
            match &mut pipe.role {
                Role::Dialed(outbound) if outbound.tick_due <= soon => {
                    outbound.tick_due = now + self.config.sync_interval;
                    outbound.on_tick(now, stores);
                }
                Role::Accepted(inbound) if inbound.check_due <= soon => {
                    inbound.on_check(now, self.config.sync_interval / 2, stores);
                }
                Role::Dialed(_) | Role::Accepted(_) => {}
            }
        }
        if self.prune_due <= soon {
            self.prune_due = now + self.config.sync_interval;
            self.fold(now, stores);
            stores.prune();
        }
        let pipes = self.pipes.values().map(|pipe| pipe.role.upkeep_due()).min();
        self.upkeep_due = pipes.map(|due| due.min(self.prune_due));
        self.grant.take_if(|grant| grant.ends(self.config.sync_interval) <= now);
        self.grant_next(now);
    }

    /// The next frame, for a pipe that has room. Pipes take turns; bodies are built here, so a pipe without room costs
    /// nothing and later gets the newest state.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        stores: &Stores,
        writable: &dyn Fn(PipeId) -> bool,
    ) -> Option<(PipeId, Bytes)> {
        let first = PipeId(self.last_served.0.wrapping_add(1));
        let turns: Vec<PipeId> =
            self.pipes.range(first..).chain(self.pipes.range(..first)).map(|(id, _)| *id).collect();
        let is_receiving = self.grant.is_some();
        for id in turns {
            let Some(Pipe { peer, role, .. }) = self.pipes.get_mut(&id) else { continue };
            // Most pipes have nothing to say most of the time: only the others are asked for room.
            let wants = match role {
                Role::Dialed(outbound) => outbound.wants_to_send(stores, self.topology),
                Role::Accepted(inbound) => inbound.ack_due.is_some_and(|due| due <= now),
            };
            if !wants || !writable(id) {
                continue;
            }
            let frame = match role {
                Role::Dialed(outbound) => outbound
                    .poll_body(now, stores, is_receiving, self.topology)
                    .map(|(seq, namespace, body)| Frame { seq, kind: Kind::Body(namespace, body) }),
                Role::Accepted(inbound) => {
                    let (seq, ack) = inbound.build_ack(now, stores);
                    Some(Frame { seq, kind: Kind::Ack(ack) })
                }
            };
            if let Some(frame) = frame {
                let bytes = wire::encode_for(&frame, matches!(role, Role::Dialed(outbound) if outbound.reads_lz4()));
                if let Role::Dialed(outbound) = role
                    && matches!(&frame.kind, Kind::Body(_, body) if body.chunk.is_some())
                {
                    outbound.on_chunk_sent(frame.seq, bytes.len());
                }
                let peer = peer.clone();
                self.push_event(sent_event(id, peer, &frame, bytes.len()));
                self.last_served = id;
                return Some((id, bytes));
            }
        }
        None
    }

    /// To whom this node has pipes of its own, and since when frames wait there for an ack; none: nothing waits.
    pub fn waiting(&self) -> impl Iterator<Item = (&NodeName, Option<Instant>)> {
        self.pipes.values().filter_map(|pipe| match &pipe.role {
            Role::Dialed(outbound) => Some((&pipe.peer, outbound.waiting_since())),
            Role::Accepted(_) => None,
        })
    }

    /// The next event. Bounded by [`EVENTS_MAX`].
    pub fn poll_event(&mut self) -> Option<SyncEvent> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; none without pipes.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let pipes = self.pipes.values().map(|pipe| match &pipe.role {
            Role::Dialed(_) => pipe.role.upkeep_due(),
            // An ack that is due waits for room in the pipe, not for the clock.
            Role::Accepted(inbound) => inbound
                .ack_due
                .filter(|due| *due > self.now)
                .map_or(inbound.check_due, |due| due.min(inbound.check_due)),
        });
        let grant = self.grant.filter(|_| !self.ungranted.is_empty());
        let grant = grant.map(|grant| grant.ends(self.config.sync_interval));
        pipes.chain(grant).min().map(|due| due.min(self.prune_due))
    }

    /// Whether what is done from time to time is due within a tenth of the sync interval: whoever is awake anyway calls
    /// [`handle_timeout`](Self::handle_timeout) then, and need not wake for it.
    #[must_use]
    pub fn is_upkeep_near(&self, now: Instant) -> bool {
        self.upkeep_due.is_some_and(|due| due <= now + self.config.sync_interval / 10)
    }

    /// Folds dead epochs of which every member has seen the same. See [`fold`].
    fn fold(&mut self, now: Instant, stores: &mut Stores) {
        for namespace in Namespace::ALL {
            let map = stores.map(namespace);
            self.members.learn(now, map);
            let own = map.actors().actor(map.own());
            let running = |node: &NodeName| {
                let epochs = self.pipes.values().filter(|pipe| pipe.peer == *node).map(|pipe| pipe.epoch_ms);
                epochs.chain((own.node == *node).then_some(own.boot_epoch_ms)).min()
            };
            let agrees = |voter: &NodeName, fold: (&NodeName, u64)| {
                let mut pipes = self.pipes.values().filter(|pipe| pipe.peer == *voter);
                pipes.any(|pipe| matches!(&pipe.role, Role::Dialed(out) if out.agrees(now, stores, namespace, fold)))
            };
            let mut agreed = fold::candidates(map, self.wall_ms, running);
            agreed.retain(|(node, floor_ms)| {
                self.members.voters(now).all(|voter| *voter == own.node || agrees(voter, (node, *floor_ms)))
            });
            for (node, floor_ms) in agreed {
                stores.fold(namespace, &node, floor_ms);
            }
        }
    }

    fn grant_next(&mut self, now: Instant) {
        while self.grant.is_none() {
            let Some(next) = self.ungranted.pop_front() else { return };
            if let Some(Pipe { role: Role::Accepted(inbound), .. }) = self.pipes.get_mut(&next) {
                inbound.grant(now);
                self.grant = Some(Grant { pipe: next, since: now, heard: now });
            }
        }
    }

    fn push_event(&mut self, event: SyncEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}
