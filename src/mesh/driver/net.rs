//! The sockets and the machines that use them: membership on datagrams, replication on pipes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use smg_certs::Material;
use smg_transport::{
    Incoming, PeerIdentity, SendError, Transport,
    grpc::{Hello, Lane, PipeError, PipeId, StreamEvent, StreamEvents, Streams},
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};
use tracing::{debug, info};

use crate::{
    config::Mesh,
    mesh::{
        driver::{
            absent::Absent,
            advertise,
            data::Saving,
            handle::{Command, NodeView},
            leader::{Chair, Podium},
            links::{Link, Links},
            pipes::{Action, Pipes},
            report::{self, Refusals},
            resolve,
            rights::SharedLimits,
            sharing::Sharing,
            spans::Spans,
            story::Story,
        },
        node::{NodeName, NodeStatus},
        quota::share::LimitId,
        replication::{self, Replicator, SyncEvent, topology::Topology},
        routing::{Message, Sight},
        stores::Stores,
        swim::{Event, MemberChange, Swim, SwimConfig, Transmit, Via},
        wire::membership,
    },
    telemetry::{metrics::Metrics, traces::mesh::MeshTraces},
};

mod error;
mod planes;

pub use error::NetError;
pub(super) use planes::Runtimes;

/// How long a starting node waits for a peer's state before it serves with what it has.
const SYNC_WAIT_MAX: Duration = Duration::from_secs(2);

/// Frames of replication are built for this long, then packets and other inputs have a turn: a chunk of a snapshot takes
/// about a millisecond, and a probe is not to wait for many of them.
const BUILD_TIME: Duration = Duration::from_millis(2);

/// What can wake the driver.
#[derive(Debug)]
pub(super) enum Input {
    Command(Command),
    Datagram(io::Result<Incoming>),
    Stream(Option<StreamEvent>),
    Seeds(Option<Vec<SocketAddr>>),
    Saved(Saving),
    Ballot(u64),
    Timer,
}

/// What a settling changed.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) changed: bool,
    /// Only the time of the last exchange is new.
    pub(super) synced: bool,
    pub(super) left: bool,
    pub(super) name_taken: bool,
    /// The datagram socket is of no use any more.
    pub(super) broken: Option<io::Error>,
}

/// Where news for the rest of the program go, beside the view, where pods to join through come from, and where tasks run.
#[derive(Clone, Debug)]
pub(super) struct Outlets {
    /// Of the election.
    pub(super) podium: Podium,
    /// Routing hints from peers.
    pub(super) shared: mpsc::Sender<(NodeName, Message)>,
    pub(super) pods: watch::Receiver<Vec<SocketAddr>>,
    /// Where spans go, with `--enable-trace`.
    pub(super) traces: Option<MeshTraces>,
    pub(super) runtimes: Runtimes,
}

pub(super) struct Net {
    metrics: Arc<Metrics>,
    node: NodeName,
    swim: Swim,
    chair: Chair,
    replicator: Replicator,
    transport: Arc<dyn Transport>,
    streams: Streams,
    events: StreamEvents,
    pipes: Pipes,
    /// Address of the far end of each open pipe, as [`Pipes`] knows it, and who is there by its certificate.
    open: BTreeMap<PipeId, (SocketAddr, Option<PeerIdentity>)>,
    cluster: String,
    sharing: Sharing,
    refusals: Refusals,
    /// Connections without a place that were counted.
    crowds: u64,
    seeds: mpsc::Receiver<Vec<SocketAddr>>,
    resolver: AbortHandle,
    joined: watch::Sender<bool>,
    absent: Absent,
    last_sync: Option<SystemTime>,
    story: Story,
    links: Links,
    spans: Option<Spans>,
    broken: Option<io::Error>,
    /// Since when frames are to be built that the last turn had no time for.
    unbuilt: Option<Instant>,
    /// When this node serves although no peer has sent its state; none once one has.
    sync_due: Option<Instant>,
}

impl Net {
    /// Binds both planes on one port and makes the machines.
    ///
    /// # Errors
    /// When a plane cannot be bound or no address can be advertised.
    pub(super) async fn bind(
        config: &Mesh,
        node: &NodeName,
        boot_epoch_ms: u64,
        metrics: &Arc<Metrics>,
        pod_ip: Option<IpAddr>,
        tls: Option<Arc<Material>>,
        outlets: Outlets,
    ) -> Result<Self, NetError> {
        let hello = Hello { cluster: config.cluster.clone(), node: node.to_string(), boot_epoch_ms };
        let (transport, streams, events) = planes::bind(config.bind, &hello, tls.as_ref(), &outlets.runtimes)?;
        let bound = transport.local_addr();
        let advertised = advertise::choose(config, bound, pod_ip).await?;
        info!(node = %node, bound = %bound, addr = %advertised.addr, cluster = %config.cluster, "mesh listening");
        let now = Instant::now();
        let chair = Chair::new(config, node, &advertised.host, metrics, outlets.podium, now);
        let swim = SwimConfig {
            cluster: config.cluster.clone(),
            zone: config.zone.clone(),
            probe_interval: config.probe_interval,
            gossip_interval: config.gossip_interval,
            suspicion_multiplier: config.suspicion_multiplier,
            host: advertised.host,
            has_seeds: !config.peers.is_empty(),
            ..SwimConfig::new(node.clone(), advertised.addr, boot_epoch_ms)
        };
        let (joined, watch_joined) = watch::channel(false);
        let (found, seeds) = mpsc::channel(1);
        let resolver =
            tokio::spawn(resolve::run(config.peers.clone(), outlets.pods, watch_joined, found)).abort_handle();
        Ok(Self {
            metrics: metrics.clone(),
            node: node.clone(),
            swim: Swim::new(swim, now, rand::random()),
            chair,
            replicator: Replicator::new(
                replication::Config { sync_interval: config.sync_interval },
                now,
                rand::random(),
            ),
            transport,
            streams,
            events,
            pipes: Pipes::default(),
            open: BTreeMap::new(),
            cluster: config.cluster.clone(),
            sharing: Sharing::new(outlets.shared),
            refusals: Refusals::default(),
            crowds: 0,
            seeds,
            resolver,
            joined,
            absent: Absent::default(),
            last_sync: None,
            broken: None,
            unbuilt: None,
            sync_due: (!config.peers.is_empty()).then_some(now + SYNC_WAIT_MAX),
            story: Story::default(),
            links: Links::default(),
            spans: outlets.traces.map(Spans::new),
        })
    }

    /// Waits for one input. Dropping the future loses nothing.
    pub(super) async fn next_input(&mut self) -> Input {
        tokio::select! {
            datagram = self.transport.recv() => Input::Datagram(datagram),
            event = self.events.next() => Input::Stream(event),
            seeds = self.seeds.recv() => Input::Seeds(seeds),
            count = self.chair.next_saved() => Input::Ballot(count),
        }
    }

    /// Waits for a packet of the datagram plane. Dropping the future loses nothing.
    pub(super) async fn next_packet(&mut self) -> Input {
        Input::Datagram(self.transport.recv().await)
    }

    pub(super) fn handle(&mut self, now: Instant, wall_ms: u64, stores: &mut Stores, input: Input) {
        match input {
            Input::Datagram(Ok(Incoming::Datagram(received))) => {
                if self.is_named(now, received.from, Via::Datagram, received.identity.as_ref(), &received.payload) {
                    self.on_membership(now, received.from, Via::Datagram, &received.payload);
                } else if let Some(identity) = &received.identity {
                    self.transport.exclude(received.from, identity);
                }
            }
            Input::Datagram(Ok(Incoming::Rejected { from, reason, times })) => {
                self.refusals.count(now, &self.metrics, ("datagram", reason), from, times);
            }
            Input::Datagram(Ok(Incoming::Unreachable(addr))) => self.swim.handle_hint(now, addr),
            Input::Datagram(Err(error)) => self.broken = Some(error),
            Input::Stream(Some(event)) => self.on_stream(now, wall_ms, stores, event),
            Input::Seeds(Some(seeds)) => {
                self.chair.on_seeds(&seeds, self.swim.addr());
                self.swim.handle_seeds(now, &seeds);
            }
            Input::Ballot(count) => self.chair.on_saved(now, count),
            Input::Stream(None) | Input::Seeds(None) | Input::Saved(_) | Input::Command(_) | Input::Timer => {}
        }
    }

    /// Sends a routing frame to one peer, or to all.
    pub(super) fn share(&self, to: Option<&NodeName>, frame: &Bytes) {
        self.sharing.send(&self.streams, to, frame);
    }

    /// Takes the limits that the cluster shares.
    pub(super) fn share_limits(&mut self, now: Instant, limits: &SharedLimits) {
        self.chair.on_limits(now, limits);
    }

    /// As [`Escrow::pooled`](crate::mesh::quota::Escrow::pooled).
    pub(super) fn pooled(&self, limit: LimitId) -> u64 {
        self.chair.rights.pooled(limit)
    }

    pub(super) fn leave(&mut self, now: Instant) {
        self.chair.leave(now);
        self.swim.leave(now);
    }

    /// Stops both planes.
    pub(super) async fn stop(self) {
        self.resolver.abort();
        self.streams.shutdown().await;
    }

    /// Counts connections that found no place: too many for an event each.
    fn count_crowds(&mut self) {
        let refused = self.streams.stats().connections_refused;
        let more = refused - std::mem::replace(&mut self.crowds, refused);
        if more > 0 {
            self.metrics.mesh_rejected_times("grpc", "too_many_connections", more);
        }
    }

    /// Fires due timers, then drains every machine until all are quiet.
    pub(super) fn settle(&mut self, now: Instant, stores: &mut Stores) -> Outcome {
        self.count_crowds();
        let mut outcome = Outcome { broken: self.broken.take(), ..Outcome::default() };
        if self.swim.poll_timeout().is_some_and(|at| at <= now) {
            self.swim.handle_timeout(now);
        }
        if self.replicator.is_upkeep_near(now) || self.replicator.poll_timeout().is_some_and(|at| at <= now) {
            self.replicator.handle_timeout(now, stores);
        }
        self.drain_membership(now, stores, &mut outcome);
        if self.chair.settle(now, &mut self.swim) {
            outcome.changed = true;
        }
        self.drain_membership(now, stores, &mut outcome);
        self.drain_replication(now, stores, &mut outcome);
        self.drain_pipes(now);
        outcome.changed |= self.sharing.settle(now, &self.streams, &self.swim);
        outcome.changed |= self.absent.mask(now, stores);
        if self.sync_due.is_some_and(|at| at <= now) {
            self.on_synced(&mut outcome);
        }
        self.metrics.mesh_replication(now, || self.replicator.waiting());
        outcome
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let masks = self.absent.poll_timeout();
        let machines = [self.swim.poll_timeout(), self.chair.poll_timeout(), self.replicator.poll_timeout()];
        let others =
            [self.pipes.poll_timeout(), self.sharing.sights.poll_timeout(), masks, self.sync_due, self.unbuilt];
        machines.into_iter().chain(others).flatten().min()
    }

    /// Every known node, sorted by name.
    pub(super) fn nodes(&self) -> Vec<NodeView> {
        let mut nodes: Vec<NodeView> = self.swim.members().map(NodeView::of).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// Whether the cluster's state is here, as far as it can be had; see [`View::synced`](super::handle::View::synced).
    pub(super) fn synced(&self) -> bool {
        self.sync_due.is_none()
    }

    /// Who leads as far as is known, and the newest term.
    pub(super) fn leader(&self) -> (Option<NodeName>, u64) {
        self.chair.leader()
    }

    pub(super) fn links(&self) -> Arc<BTreeMap<NodeName, Link>> {
        self.links.all()
    }

    pub(super) fn sights(&self) -> Arc<BTreeMap<NodeName, Sight>> {
        let is_there = |name: &NodeName| self.swim.member(name).is_some_and(|it| it.status != NodeStatus::Down);
        self.sharing.sights.of(is_there)
    }

    pub(super) fn last_sync(&self) -> Option<SystemTime> {
        self.last_sync
    }

    /// Whether a packet says that it is from whom its connection is; nothing else of it has been read yet.
    fn is_named(
        &mut self,
        now: Instant,
        from: SocketAddr,
        via: Via,
        identity: Option<&PeerIdentity>,
        bytes: &[u8],
    ) -> bool {
        let Some(identity) = identity else { return true };
        let is_named = membership::sender(bytes).is_some_and(|node| identity.allows(&self.cluster, &node));
        if !is_named {
            self.refusals.count(now, &self.metrics, (report::plane(via), "wrong_name"), from, 1);
        }
        is_named
    }

    fn on_membership(&mut self, now: Instant, from: SocketAddr, via: Via, bytes: &[u8]) {
        match self.swim.handle_datagram(now, from, via, bytes) {
            Ok(kind) => self.metrics.mesh_gossip_message("received", kind.as_str()),
            Err(error) => report::refused(&self.metrics, from, via, &error),
        }
    }

    fn on_stream(&mut self, now: Instant, wall_ms: u64, stores: &mut Stores, event: StreamEvent) {
        match event {
            StreamEvent::Opened { pipe, dialed, addr, hello, identity, traceparent } => {
                debug!(peer = %hello.node, addr = %addr, dialed, "pipe opened");
                self.open.insert(pipe, (addr, identity));
                if let Some(spans) = &mut self.spans {
                    spans.opened(pipe, &hello.node, traceparent.as_deref());
                }
                if dialed {
                    for message in self.pipes.opened(now, pipe, hello.boot_epoch_ms) {
                        self.send_on_pipe(pipe, message);
                    }
                } else {
                    self.pipes.accepted(pipe, addr);
                }
                // The stream plane has checked the name already; what it lets through parses.
                if let Ok(peer) = hello.node.parse::<NodeName>() {
                    self.sharing.opened(now, pipe, peer.clone(), dialed);
                    self.replicator.handle_connected(now, pipe_id(pipe), peer, hello.boot_epoch_ms, dialed);
                }
            }
            StreamEvent::Frame { pipe, lane: Lane::Datagram, payload } => {
                let Some((from, identity)) = self.open.get(&pipe).cloned() else { return };
                if self.is_named(now, from, Via::Stream, identity.as_ref(), &payload) {
                    self.on_membership(now, from, Via::Stream, &payload);
                } else {
                    // At once, not with the pipe's end: nothing more is read of it, and the address is left alone.
                    self.let_go(now, pipe, from, true);
                    self.streams.close(pipe, "packet in another's name");
                }
            }
            StreamEvent::Frame { pipe, lane: Lane::Sync, payload } => {
                if let Err(error) = self.replicator.handle_frame(now, wall_ms, stores, pipe_id(pipe), &payload) {
                    report::frame_refused(&self.metrics, self.open.get(&pipe).map(|(addr, _)| addr), &error);
                    // At once, not with the pipe's end: nothing more is to be sent on it meanwhile.
                    self.replicator.handle_disconnected(now, pipe_id(pipe));
                    self.streams.close(pipe, "malformed replication frame");
                }
            }
            StreamEvent::Frame { pipe, lane: Lane::Routing, payload } => {
                self.sharing.received(&self.metrics, pipe, &payload);
            }
            StreamEvent::Writable { .. } => {}
            StreamEvent::Closed { pipe, addr, dialed, error } => {
                if let Some(spans) = &mut self.spans {
                    spans.closed(pipe, error.as_ref().map(PipeError::reason));
                }
                if let Some(reason) = report::pipe_closed(addr, dialed, error.as_ref()) {
                    self.refusals.count(now, &self.metrics, ("grpc", reason), addr, 1);
                }
                let lost = error.is_some();
                let excluded = error.is_some_and(|error| error.is_exclusion());
                self.let_go(now, pipe, addr, excluded);
                if lost && dialed {
                    self.swim.handle_hint(now, addr);
                }
            }
        }
    }

    /// Forgets a pipe, and says whether one side excludes the other.
    fn let_go(&mut self, now: Instant, pipe: PipeId, addr: SocketAddr, excluded: bool) {
        self.open.remove(&pipe);
        self.sharing.closed(pipe);
        self.pipes.closed(now, pipe, addr, excluded);
        self.replicator.handle_disconnected(now, pipe_id(pipe));
    }

    fn drain_membership(&mut self, now: Instant, stores: &mut Stores, outcome: &mut Outcome) {
        loop {
            while let Some(transmit) = self.swim.poll_transmit() {
                self.transmit(now, transmit);
            }
            let Some(event) = self.swim.poll_event() else { break };
            self.story.tell(now, &self.node, &self.metrics, &event);
            self.on_event(now, stores, &event, outcome);
        }
    }

    fn on_event(&mut self, now: Instant, stores: &mut Stores, event: &Event, outcome: &mut Outcome) {
        match event {
            Event::Joined => {
                outcome.changed = true;
                self.joined.send_replace(true);
                if self.swim.members().count() == 1 {
                    self.on_synced(outcome);
                }
                self.retarget(now);
            }
            Event::MemberChanged(MemberChange { name, to, addr, epoch_ms, .. }) => {
                outcome.changed = true;
                self.chair.on_members(now, &self.swim);
                self.absent.on_status(now, name, *to, stores);
                self.retarget(now);
                match to {
                    NodeStatus::Alive => self.pipes.revive(now, *addr, *epoch_ms),
                    NodeStatus::Down => self.pipes.abandon(*addr),
                    NodeStatus::Init | NodeStatus::Suspected | NodeStatus::Leaving => {}
                }
            }
            Event::Forgotten { name } => {
                outcome.changed = true;
                self.absent.on_forgotten(name, stores);
                self.links.gone(name);
                self.chair.on_members(now, &self.swim);
                self.retarget(now);
            }
            Event::User { from, payload } => self.chair.on_message(now, from, payload),
            Event::NameTaken { .. } => outcome.name_taken = true,
            Event::Left => (outcome.changed, outcome.left) = (true, true),
            // What happens on the way to a change of status is for logs and metrics alone.
            _ => {}
        }
    }

    /// Sends one membership message by the plane that it fits.
    fn transmit(&mut self, now: Instant, transmit: Transmit) {
        self.metrics.mesh_gossip_message("sent", transmit.kind.as_str());
        if transmit.via == Via::Stream {
            return self.transmit_by_stream(now, transmit.to, transmit.payload);
        }
        match self.transport.try_send(transmit.to, &transmit.payload) {
            Ok(()) => {}
            Err(SendError::TooLarge { .. }) => self.transmit_by_stream(now, transmit.to, transmit.payload),
            Err(SendError::Unreachable(_)) => self.swim.handle_hint(now, transmit.to),
            Err(error) => report::datagram_lost(&self.metrics, transmit.to, &error),
        }
    }

    fn transmit_by_stream(&mut self, now: Instant, to: SocketAddr, payload: Bytes) {
        match self.pipes.open(now, to) {
            Some(pipe) => self.send_on_pipe(pipe, payload),
            None => {
                if !self.pipes.defer(now, to, payload) {
                    self.metrics.mesh_rejected("grpc", "pipes_full");
                }
            }
        }
    }

    fn send_on_pipe(&self, pipe: PipeId, payload: Bytes) {
        if let Err(error) = self.streams.try_send(pipe, Lane::Datagram, payload) {
            // Lost like a packet: the machine repeats what matters.
            debug!(%error, "membership message lost on its pipe");
        }
    }

    fn drain_replication(&mut self, now: Instant, stores: &Stores, outcome: &mut Outcome) {
        let streams = &self.streams;
        let room = |pipe: replication::PipeId| streams.has_room(PipeId(pipe.0));
        let start = Instant::now();
        self.unbuilt = None;
        while self.unbuilt.is_none()
            && let Some((pipe, payload)) = self.replicator.poll_transmit(now, stores, &room)
        {
            self.unbuilt = (start.elapsed() >= BUILD_TIME).then_some(now);
            if let Err(error) = streams.try_send(PipeId(pipe.0), Lane::Sync, payload) {
                // The pipe ended between the look and the send; its end is reported as an event of its own.
                debug!(%error, "replication frame lost on its pipe");
                self.replicator.handle_disconnected(now, pipe);
                streams.close(PipeId(pipe.0), "lost a replication frame");
            }
        }
        if let Some(spans) = &mut self.spans {
            spans.expire(now);
        }
        while let Some(event) = self.replicator.poll_event() {
            report::sync_event(&self.metrics, &event);
            if let Some(spans) = &mut self.spans {
                spans.note(now, &event);
            }
            let is_member = |name: &NodeName| self.swim.members().any(|member| member.name == *name);
            outcome.changed |= self.links.note(now, &event, is_member);
            if matches!(event, SyncEvent::CaughtUp { .. } | SyncEvent::InSync { .. }) {
                self.on_synced(outcome);
            }
            if matches!(event, SyncEvent::InSync { .. } | SyncEvent::Acked { .. }) {
                // That there was an exchange at all is news; when the last one was can wait.
                outcome.changed |= self.last_sync.is_none();
                outcome.synced = true;
                self.last_sync = Some(SystemTime::now());
            }
        }
    }

    fn on_synced(&mut self, outcome: &mut Outcome) {
        outcome.changed |= self.sync_due.take().is_some();
    }

    fn drain_pipes(&mut self, now: Instant) {
        while let Some(action) = self.pipes.poll_action(now) {
            match action {
                Action::Dial(address) => {
                    let connecting = self.spans.as_ref().map(|spans| spans.connect(address));
                    let context = connecting.as_ref().map(|span| span.context().traceparent());
                    let pipe = self.streams.dial_within(address, context);
                    if let (Some(spans), Some(span)) = (&mut self.spans, connecting) {
                        spans.dialing(pipe, span);
                    }
                    self.pipes.dialing(address, pipe);
                }
                Action::Close(pipe) => self.streams.close(pipe, "idle"),
            }
        }
    }

    /// Chooses the peers that this node pushes its state to. See [`replication::topology`].
    fn retarget(&mut self, now: Instant) {
        self.sharing.sights.touch(now);
        let mut ring: Vec<(&str, &NodeName, SocketAddr)> = self
            .swim
            .members()
            .filter(|member| matches!(member.status, NodeStatus::Alive | NodeStatus::Suspected | NodeStatus::Leaving))
            .map(|member| (member.zone.as_str(), &member.name, member.addr))
            .collect();
        ring.sort_unstable();
        let present: BTreeSet<NodeName> = ring.iter().map(|(_, name, _)| (*name).clone()).collect();
        self.replicator.set_members(now, &present);
        let wanted: BTreeSet<SocketAddr> = match ring.iter().position(|(_, name, _)| **name == self.node) {
            Some(own) => {
                let topology = Topology::of(ring.len());
                self.replicator.set_topology(topology);
                topology.targets(own, ring.len()).map(|position| ring[position].2).collect()
            }
            None => ring.iter().map(|(.., addr)| *addr).collect(),
        };
        self.pipes.want(now, &wanted);
    }
}

fn pipe_id(pipe: PipeId) -> replication::PipeId {
    replication::PipeId(pipe.0)
}

#[cfg(test)]
mod tests;
