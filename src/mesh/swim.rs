//! Who is in the cluster: SWIM (Das et al. 2002) with the Lifeguard extensions (Dadgar et al. 2018) and the rules of
//! DESIGN §3, as a pure machine.
//!
//! *Detection.* Each node probes one other per interval T in an aligned ring ([`ring`]); up to eight nodes everybody
//! probes everybody. A ping not acked within the adaptive timeout ([`rtt`]) is followed by three indirect probes and one
//! on the stream path. Silence beyond the deadline makes a suspicion, which other nodes corroborate by probes of their
//! own. When the time to refute is over a last round of probes verifies it, and only total silence makes it DOWN.
//!
//! *Records.* What is said of a node is ordered by (epoch, incarnation, status). The epoch is the start of its process,
//! so a restart wins at once, from any address. The incarnation is raised by the node itself alone, to refute.
//!
//! *Dissemination.* Up to 32 nodes the origin of an update sends it to every peer until acked; above, and besides, it is
//! gossiped. Pings and acks carry a hash over the live members; one that stays different leads to an exchange of lists.
//!
//! Invariants: a record is never replaced by one that is ordered before it; a node that this one holds DOWN comes back
//! only by a higher incarnation or epoch, which it alone makes; bytes from the network change nothing unless they carry
//! this cluster's label and version; every table has a bound, named by a constant in its file.
//!
//! Departures from the papers: the ring instead of random or shuffled targets (SWIM §4.3), confirmation by own probes
//! instead of by chance (Lifeguard §IV.B), verification before the verdict, acked updates in small clusters; and a verdict of
//! others that may come from across a cut is a suspicion (`learn`), which a last round of this node's own decides. And from
//! DESIGN §3.8: messages of other parts of the program go in packets of their own, with news in what room is left, so
//! that no share of a packet has to be kept free for them.

pub mod config;
pub mod event;
pub mod health;
pub mod member;
pub mod message;
pub mod ring;
pub mod rtt;

mod claim;
mod gossip;
mod learn;
mod leave;
mod probe;
pub(in crate::mesh) mod rule;
mod seeds;
pub mod sizes;
mod suspicion;
mod sync;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

pub use self::{
    config::SwimConfig,
    event::{ChangeReason, Event, MemberChange},
    member::Member,
    message::{MessageKind, Transmit, Via},
};
use self::{
    health::LocalHealth,
    member::Members,
    message::{Body, DATAGRAM_BYTES_MAX, Packet, Update},
    ring::RingClock,
    rtt::RttEstimate,
};
use crate::mesh::{
    node::{NodeName, NodeStatus},
    wire::membership::{self as wire, DecodeError},
};

/// A timer that fires this much too late means that the process did not run (DESIGN §3.9).
const STALL_MIN: Duration = Duration::from_millis(500);

/// Largest update in bytes: with the longest header and label it still fits a datagram.
const UPDATE_BYTES_MAX: usize = 900;

/// 2026-01-01 in unix milliseconds: no clock that is right shows less, so a clock that shows less is not asked.
const RELEASED_MS: u64 = 1_767_225_600_000;

/// How far an epoch may be ahead of this node's clock: ten years.
const EPOCH_AHEAD_MAX_MS: u64 = 10 * 365 * 24 * 3_600_000;

/// Why a packet was refused. The member list is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// The bytes are no membership packet. The peer may send again.
    #[error("malformed datagram of {0} bytes")]
    Malformed(usize, #[source] DecodeError),
    /// The sender belongs to another cluster. Sending again cannot help before one side's label is changed.
    #[error("datagram of a foreign cluster")]
    ForeignCluster,
    /// The sender speaks another protocol version. Sending again cannot help before one side is upgraded.
    #[error("datagram of protocol version {0}")]
    Version(u32),
    /// The sender's epoch is years ahead. Sending again cannot help before the clock of one side is set right.
    #[error("datagram of epoch {0}, which is years ahead of this node's clock: synchronise the clocks")]
    Epoch(u64),
}

impl DatagramError {
    /// The label value of `smg_mesh_rejected_total`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(..) => "malformed",
            Self::ForeignCluster => "foreign_cluster",
            Self::Version(_) => "version",
            Self::Epoch(_) => "epoch",
        }
    }
}

/// The membership machine of one node. After each `handle_*` (and `leave`), drain every `poll_*` to `None`: what waits
/// there is bounded by what one input can cause, at most a few entries per member.
#[derive(Debug)]
pub struct Swim {
    config: SwimConfig,
    clock: RingClock,
    rng: Pcg64Mcg,
    members: Members,
    health: LocalHealth,
    /// When another node was heard last.
    heard_at: Option<Instant>,
    /// The round whose ring probes are in `ring_due`.
    round: Option<u64>,
    /// Ring probes still to send in this round, the next one last.
    ring_due: Vec<(Instant, NodeName)>,
    probes: BTreeMap<u64, probe::Probe>,
    relays: BTreeMap<u64, probe::Relay>,
    suspicions: BTreeMap<NodeName, suspicion::Suspicion>,
    rumours: gossip::Rumours,
    /// The next gossip round; none while there is no news.
    gossip_due: Option<Instant>,
    posts: BTreeMap<NodeName, gossip::Post>,
    seeds: seeds::Seeds,
    doubt: Option<sync::Doubt>,
    asked_at: Option<Instant>,
    claim: Option<claim::Contest>,
    leave: Option<leave::Leave>,
    /// An older live node has this name: this one is silent from then on.
    name_taken: bool,
    seq: u64,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Swim {
    /// A node that has spoken to nobody yet. `seed` drives every random choice.
    #[must_use]
    pub fn new(config: SwimConfig, now: Instant, seed: u64) -> Self {
        let me = Member {
            name: config.node.clone(),
            status: NodeStatus::Init,
            addr: config.addr,
            host: config.host.clone(),
            zone: config.zone.clone(),
            boot_epoch_ms: config.boot_epoch_ms,
            incarnation: 0,
            since: now,
            source: member::Source::Heard,
            rtt: RttEstimate::default(),
            heard_at: None,
            refuted_at: Vec::new(),
        };
        let members = Members::of(me, now);
        let mut swim = Self {
            clock: RingClock::new(now, config.wall_at_start_ms, config.probe_interval),
            rng: Pcg64Mcg::seed_from_u64(seed),
            members,
            health: LocalHealth::default(),
            heard_at: None,
            round: None,
            ring_due: Vec::new(),
            probes: BTreeMap::new(),
            relays: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            rumours: gossip::Rumours::default(),
            gossip_due: None,
            posts: BTreeMap::new(),
            seeds: seeds::Seeds::new(now),
            doubt: None,
            asked_at: None,
            claim: None,
            leave: None,
            name_taken: false,
            // Answers to an earlier process at this address match no number of this one.
            seq: config.boot_epoch_ms.wrapping_mul(1 << 20) >> 1,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            config,
        };
        if !swim.config.has_seeds {
            swim.join(now);
        }
        swim
    }

    /// Takes one packet that came from `from` on the path `via`; gives its kind.
    ///
    /// # Errors
    /// When it is no packet of this cluster and version; nothing was taken from it.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        via: Via,
        bytes: &[u8],
    ) -> Result<MessageKind, DatagramError> {
        let packet = wire::decode(&self.config.cluster, bytes).map_err(|error| match error {
            DecodeError::ForeignCluster => DatagramError::ForeignCluster,
            DecodeError::Version(version) => DatagramError::Version(version),
            error => DatagramError::Malformed(bytes.len(), error),
        })?;
        let kind = packet.body.kind();
        if self.name_taken {
            return Ok(kind);
        }
        if !self.is_plausible(now, packet.epoch_ms) {
            return Err(DatagramError::Epoch(packet.epoch_ms));
        }
        if packet.node == self.config.node {
            self.on_namesake(now, from, via, &packet);
        } else {
            self.on_packet(now, from, via, packet);
        }
        self.flush_posts(now);
        Ok(kind)
    }

    /// Takes word that nobody may be listening at `addr` (ICMP unreachable, connection refused, stream reset): the second
    /// step of a probe starts at once. Never a verdict (DESIGN §3.7).
    pub fn handle_hint(&mut self, now: Instant, addr: SocketAddr) {
        let Some(member) = self.members.at(addr).filter(|member| member.name != self.config.node) else { return };
        let name = member.name.clone();
        if !self.name_taken {
            self.start_probe(now, &name, probe::ProbeKind::Hint);
        }
    }

    /// Takes word that this process did not run for `stalled`. Call it after the sockets were drained and before
    /// `handle_timeout`: waits are prolonged by that time and this node trusts itself less (DESIGN §3.9).
    pub fn handle_stall(&mut self, _now: Instant, stalled: Duration) {
        self.worsen_health(2);
        for probe in self.probes.values_mut() {
            probe.deadline += stalled;
            probe.escalate_at = probe.escalate_at.map(|at| at + stalled);
        }
        for suspicion in self.suspicions.values_mut() {
            suspicion.started += stalled;
        }
    }

    /// Does what is due. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.name_taken {
            return;
        }
        if let Some(late) = self.poll_timeout().map(|due| now.saturating_duration_since(due))
            && late >= STALL_MIN
        {
            self.handle_stall(now, late);
        }
        self.run_ring(now);
        self.run_probes(now);
        self.run_relays(now);
        self.run_suspicions(now);
        self.run_seeds(now);
        self.run_doubt(now);
        self.run_contest(now);
        self.run_leave(now);
        self.run_gossip(now);
        self.flush_posts(now);
    }

    /// The next packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next piece of news.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` is due next; none once the name is lost.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.name_taken {
            return None;
        }
        [
            Some(self.ring_timeout()),
            self.probes_timeout(),
            self.suspicions_timeout(),
            self.seeds_timeout(),
            self.doubt.as_ref().map(|doubt| doubt.due),
            self.claim.as_ref().map(|contest| contest.due),
            self.leave.as_ref().and_then(leave::Leave::timeout),
            self.gossip_due,
            self.posts.values().map(|post| post.due).min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Every member, this node included, sorted by name.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.by_name().into_iter()
    }

    /// The member `name`.
    #[must_use]
    pub fn member(&self, name: &NodeName) -> Option<&Member> {
        self.members.get(name)
    }

    /// Hash over the live members with their epochs and incarnations: equal at nodes that agree on them.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.members.digest()
    }

    /// This node's own status.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.me().status
    }

    /// This node's membership epoch in unix milliseconds: at least the configured one.
    #[must_use]
    pub fn epoch_ms(&self) -> u64 {
        self.me().boot_epoch_ms
    }

    /// Whether this node is done: it has left, or an older one has its name.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.name_taken || self.leave.as_ref().is_some_and(leave::Leave::is_over)
    }

    /// How little this node trusts its own probes: 0 to 8.
    #[must_use]
    pub fn local_health(&self) -> u32 {
        self.health.score()
    }

    /// The advertised address of this node.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.config.addr
    }

    /// Whether an epoch can be that of a process. One that nothing could exceed would bar its name for ever; one at the
    /// bound is exceeded as time goes on. Many wrong clocks pass, on either side.
    fn is_plausible(&self, now: Instant, epoch_ms: u64) -> bool {
        epoch_ms <= self.clock.wall_ms(now).max(RELEASED_MS) + EPOCH_AHEAD_MAX_MS
    }

    fn me(&self) -> &Member {
        self.members.get(&self.config.node).expect("`new` puts this node into its list and nothing takes it out")
    }

    /// Changes this node's own record.
    fn change_me(&mut self, now: Instant, change: impl FnOnce(&mut Member)) {
        let mut me = self.me().clone();
        change(&mut me);
        self.members.put(me, now);
    }

    fn join(&mut self, now: Instant) {
        if self.me().status == NodeStatus::Init {
            self.change_me(now, |me| {
                me.status = NodeStatus::Alive;
                me.since = now;
            });
            self.events.push_back(Event::Joined);
        }
    }

    /// A packet of another node: first what it says of others, then what its header says of itself, then its message.
    fn on_packet(&mut self, now: Instant, from: SocketAddr, via: Via, packet: Packet) {
        self.join(now);
        self.heard_at = Some(now);
        self.take_updates(now, from, via, &packet);
        // Streams come from ports that nobody listens on, datagrams from the socket that hears the answer.
        let reply_to = match (via, self.members.get(&packet.node)) {
            (Via::Stream, Some(member)) => member.addr,
            _ => from,
        };
        self.on_header(now, reply_to, &packet);
        match packet.body {
            Body::Ping { seq, target, digest } => {
                if target.is_none_or(|target| target == self.config.node) {
                    let ack = Body::Ack { seq, target: None, digest: self.members.digest() };
                    self.send(now, reply_to, via, ack, Some(&packet.node));
                    self.compare_digest(now, &packet.node, digest);
                }
            }
            Body::Ack { seq, target, digest } => {
                self.on_ack(now, via, seq, target.as_ref(), &packet.node);
                self.compare_digest(now, &packet.node, digest);
            }
            Body::PingReq { seq, target } => self.on_ping_req(now, reply_to, seq, &target),
            Body::Nack { seq } => self.on_nack(seq),
            // A gossip without a number wants no ack; a claim is for a node of the sender's name, and this one has another.
            Body::Gossip { seq: 0 } | Body::Claim { .. } => {}
            Body::Gossip { seq } => self.send(now, reply_to, via, Body::GossipAck { seq }, None),
            Body::GossipAck { seq } => self.on_gossip_ack(now, seq, &packet.node),
            // A node that membership has no record of is nobody's peer yet.
            Body::User { payload } if self.members.get(&packet.node).is_some() => {
                self.events.push_back(Event::User { from: packet.node, payload });
            }
            Body::User { .. } => {}
            Body::Sync { seq, reply_wanted } => self.on_sync(now, reply_to, seq, reply_wanted, &packet.node),
        }
    }

    /// Sends a message of another part of the program to a member that is not DOWN, once, with as much news as fits beside
    /// it. It may be lost, come twice or out of order. False when there is no such member, or the message is empty or larger
    /// than [`USER_BYTES_MAX`](wire::USER_BYTES_MAX).
    pub fn send_user(&mut self, now: Instant, to: &NodeName, payload: Bytes) -> bool {
        let is_sendable = !payload.is_empty() && payload.len() <= wire::USER_BYTES_MAX && !self.name_taken;
        match self.members.get(to).filter(|member| member.status != NodeStatus::Down && *to != self.config.node) {
            Some(member) if is_sendable => {
                let addr = member.addr;
                self.send(now, addr, Via::Datagram, Body::User { payload }, Some(to));
                true
            }
            _ => false,
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.seq = (self.seq + 1) & (u64::MAX >> 1);
        self.seq
    }

    fn worsen_health(&mut self, by: u32) {
        let before = self.health.score();
        self.health.worsen(by);
        self.report_health(before);
    }

    fn improve_health(&mut self) {
        let before = self.health.score();
        self.health.improve();
        self.report_health(before);
    }

    fn report_health(&mut self, before: u32) {
        let score = self.health.score();
        if score != before {
            self.events.push_back(Event::LocalHealth { score });
        }
    }

    fn packet(&self, body: Body, updates: Vec<Update>) -> Packet {
        let me = self.me();
        Packet { node: me.name.clone(), epoch_ms: me.boot_epoch_ms, incarnation: me.incarnation, body, updates }
    }

    /// Sends `body` to `to` with as much news as fits a datagram; first of all what is said of `about`, unless it is well.
    fn send(&mut self, now: Instant, to: SocketAddr, via: Via, body: Body, about: Option<&NodeName>) {
        let kind = body.kind();
        let mut packet = self.packet(body, Vec::new());
        let mut room = DATAGRAM_BYTES_MAX.saturating_sub(wire::packet_len(&self.config.cluster, &packet));
        if let Some(update) = about.and_then(|name| self.update_if_not_alive(now, name)) {
            room = room.saturating_sub(wire::update_len(&update));
            packet.updates.push(update);
        }
        if matches!(kind, MessageKind::Ping | MessageKind::Ack | MessageKind::Gossip | MessageKind::User) {
            self.add_rumours(now, &mut packet, room);
        }
        self.transmit(to, via, &packet);
    }

    fn transmit(&mut self, to: SocketAddr, via: Via, packet: &Packet) {
        let payload = wire::encode(&self.config.cluster, packet);
        let via = if payload.len() > DATAGRAM_BYTES_MAX { Via::Stream } else { via };
        self.transmits.push_back(Transmit { to, via, kind: packet.body.kind(), payload });
    }

    /// What this node says of `name`, accusers included.
    fn update_of(&self, now: Instant, name: &NodeName) -> Option<Update> {
        let mut update = self.members.get(name)?.to_update(now);
        if let Some(suspicion) = self.suspicions.get(name) {
            update.accusers.clone_from(&suspicion.accusers);
            // Long names must not make an update that fits no datagram; the first accusers say enough.
            while wire::update_len(&update) > UPDATE_BYTES_MAX && update.accusers.pop().is_some() {}
        }
        Some(update)
    }

    fn update_if_not_alive(&self, now: Instant, name: &NodeName) -> Option<Update> {
        self.update_of(now, name).filter(|update| update.status != NodeStatus::Alive)
    }
}
