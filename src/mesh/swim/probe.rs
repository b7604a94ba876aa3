//! Probe rounds: direct, then indirect and over the stream path (SWIM §3.1, DESIGN §3.2), and the relay's side of them.

use std::{
    borrow::Cow,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::seq::SliceRandom;

use super::{Body, Event, Swim, Via, config::FANOUT, member::Source, ring, suspicion::Suspicion};
use crate::mesh::node::{NodeName, NodeStatus};

/// Probes under way at most; a further one waits for its next round.
pub(super) const PROBES_MAX: usize = 64;

/// Probes for others under way at most; further requests are dropped, as if lost.
pub(super) const RELAYS_MAX: usize = 256;

/// How long a relay still passes on a late ack.
const RELAY_TIME: Duration = Duration::from_secs(2);

/// Why a probe is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ProbeKind {
    /// The ring says so.
    Ring,
    /// Another node suspects the target.
    Corroborate,
    /// A hint that nobody listens there: every path at once.
    Hint,
    /// Last try before the verdict: every path at once, the direct one twice.
    Verify,
}

/// One probe under way.
#[derive(Debug)]
pub(super) struct Probe {
    target: NodeName,
    /// Epoch and incarnation of the target when it was sent: silence says nothing about a newer one.
    life: (u64, u64),
    kind: ProbeKind,
    sent_at: Instant,
    /// When the other paths are tried; none once they are.
    pub(super) escalate_at: Option<Instant>,
    pub(super) deadline: Instant,
    relays: usize,
    nacks: usize,
}

/// One ping on behalf of another node.
#[derive(Debug)]
pub(super) struct Relay {
    requester: SocketAddr,
    requester_seq: u64,
    target: NodeName,
    /// When the requester is told that there was no answer so far; none once it was.
    nack_at: Option<Instant>,
    until: Instant,
}

impl Swim {
    /// Sends the ring probes that are due and plans the next round when the old one is over.
    pub(super) fn run_ring(&mut self, now: Instant) {
        let round = self.clock.round(now);
        if self.round != Some(round) {
            self.round = Some(round);
            self.forget_gone(now);
            let interval = self.config.probe_interval;
            let me = &self.config.node;
            let mut nodes = Cow::Borrowed(self.members.live());
            if let Err(at) = nodes.binary_search(me) {
                // A leaving node is probed by nobody, but keeps its view true as long as it runs.
                nodes.to_mut().insert(at, me.clone());
            }
            let plan = ring::plan(round, &nodes, me, interval);
            let starts = plan.into_iter().map(|(phase, target)| (self.clock.instant(round, phase), target));
            // What was long due when the round was planned belongs to a node that started or woke within it.
            self.ring_due = starts.rev().filter(|(at, _)| *at + interval / 4 >= now).collect();
        }
        while let Some((_, target)) = self.ring_due.pop_if(|(at, _)| *at <= now) {
            self.start_probe(now, &target, ProbeKind::Ring);
        }
    }

    pub(super) fn ring_timeout(&self) -> Instant {
        let next_round = self.clock.instant(self.round.map_or(0, |round| round + 1), Duration::ZERO);
        self.ring_due.last().map_or(next_round, |(at, _)| *at)
    }

    /// Starts a probe of a live peer; `false` when one is under way already or there are too many.
    pub(super) fn start_probe(&mut self, now: Instant, target: &NodeName, kind: ProbeKind) -> bool {
        let Some(member) = self.members.get(target).filter(|m| m.is_live() && m.name != self.config.node) else {
            return false;
        };
        let under_way = self.probes.iter().find(|(_, probe)| probe.target == *target).map(|(seq, _)| *seq);
        if let Some(seq) = under_way {
            if kind == ProbeKind::Hint {
                self.escalate(now, seq);
                return false;
            }
            let probe = &self.probes[&seq];
            // Silence at an earlier incarnation will say nothing.
            let is_of_use = probe.life == (member.boot_epoch_ms, member.incarnation);
            if kind != ProbeKind::Verify || (probe.kind == ProbeKind::Verify && is_of_use) {
                return false;
            }
            self.probes.remove(&seq);
        }
        if self.probes.len() >= PROBES_MAX {
            return false;
        }
        let (addr, health) = (member.addr, self.health.score());
        let probe = Probe {
            target: target.clone(),
            life: (member.boot_epoch_ms, member.incarnation),
            kind,
            sent_at: now,
            escalate_at: Some(now + member.rtt.timeout(health)),
            deadline: now + member.rtt.deadline(health),
            relays: 0,
            nacks: 0,
        };
        let seq = self.next_seq();
        self.probes.insert(seq, probe);
        self.ping(now, addr, Via::Datagram, seq, target);
        if kind == ProbeKind::Verify {
            self.ping(now, addr, Via::Datagram, seq, target);
        }
        if matches!(kind, ProbeKind::Hint | ProbeKind::Verify) {
            self.escalate(now, seq);
        }
        true
    }

    pub(super) fn ping(&mut self, now: Instant, addr: SocketAddr, via: Via, seq: u64, target: &NodeName) {
        let ping = Body::Ping { seq, target: Some(target.clone()), digest: self.members.digest() };
        self.send(now, addr, via, ping, Some(target));
    }

    /// Tries the other paths: three relays, those of other zones first, and the stream.
    fn escalate(&mut self, now: Instant, seq: u64) {
        let Some(probe) = self.probes.get_mut(&seq).filter(|probe| probe.escalate_at.is_some()) else { return };
        probe.escalate_at = None;
        let target = probe.target.clone();
        let relays = self.pick_relays(&target);
        if let Some(probe) = self.probes.get_mut(&seq) {
            probe.relays = relays.len();
        }
        for relay in relays {
            self.send(now, relay, Via::Datagram, Body::PingReq { seq, target: target.clone() }, None);
        }
        if let Some(addr) = self.members.get(&target).map(|member| member.addr) {
            self.ping(now, addr, Via::Stream, seq, &target);
        }
    }

    fn pick_relays(&mut self, target: &NodeName) -> Vec<SocketAddr> {
        // Of a side that comes back everybody may be in doubt, and well.
        let is_well = |name: &NodeName| self.suspicions.get(name).is_none_or(Suspicion::is_doubt);
        let usable = |name: &&NodeName| *name != target && **name != self.config.node && is_well(name);
        let mut names: Vec<_> = self.members.live().iter().filter(usable).cloned().collect();
        names.shuffle(&mut self.rng);
        let same_zone = |name: &NodeName| self.members.get(name).is_some_and(|m| m.zone == self.config.zone);
        names.sort_by_key(same_zone);
        names.iter().take(FANOUT).filter_map(|name| self.members.get(name)).map(|member| member.addr).collect()
    }

    /// Escalates probes at their timeout and judges them at their deadline.
    pub(super) fn run_probes(&mut self, now: Instant) {
        let late = self.probes.iter().filter(|(_, probe)| probe.escalate_at.is_some_and(|at| at <= now));
        for seq in late.map(|(seq, _)| *seq).collect::<Vec<_>>() {
            self.escalate(now, seq);
        }
        let over = self.probes.iter().filter(|(_, probe)| probe.deadline <= now);
        for seq in over.map(|(seq, _)| *seq).collect::<Vec<_>>() {
            if let Some(probe) = self.probes.remove(&seq) {
                self.on_silence(now, &probe);
            }
        }
    }

    pub(super) fn probes_timeout(&self) -> Option<Instant> {
        let probes = self.probes.values().map(|probe| probe.escalate_at.unwrap_or(probe.deadline).min(probe.deadline));
        let relays = self.relays.values().map(|relay| relay.nack_at.unwrap_or(relay.until));
        probes.chain(relays).min()
    }

    fn on_silence(&mut self, now: Instant, probe: &Probe) {
        if probe.nacks < probe.relays {
            // Relays that are well would have said so: the fault may be here (Lifeguard §IV.A).
            self.worsen_health(1);
        }
        let Some(member) = self.members.get(&probe.target).filter(|member| member.is_live()) else { return };
        if (member.boot_epoch_ms, member.incarnation) != probe.life {
            return;
        }
        match probe.kind {
            ProbeKind::Verify => {
                let heard = self.has_heard_since(probe.sent_at);
                match self.suspicions.get_mut(&probe.target).filter(|suspicion| suspicion.is_doubt() && !heard) {
                    Some(suspicion) => suspicion.restart(now),
                    None => self.declare_down(now, &probe.target),
                }
            }
            ProbeKind::Ring | ProbeKind::Corroborate | ProbeKind::Hint => {
                let heard = self.has_heard_since(probe.sent_at);
                self.suspect(now, &probe.target, heard);
            }
        }
    }

    /// Whether any node was heard after `sent_at`: else the silence of one of several says nothing of that one. With a
    /// single peer nobody can tell, and its silence counts.
    fn has_heard_since(&self, sent_at: Instant) -> bool {
        let peers = self.members.live().iter().filter(|name| **name != self.config.node).count();
        peers < 2 || self.heard_at.is_some_and(|at| at > sent_at)
    }

    /// An ack by the target itself (`target` none) or through a relay.
    pub(super) fn on_ack(&mut self, now: Instant, via: Via, seq: u64, target: Option<&NodeName>, from: &NodeName) {
        if let Some(relay) = self.relays.get(&seq).filter(|relay| target.is_none() && relay.target == *from) {
            let ack = Body::Ack { seq: relay.requester_seq, target: Some(from.clone()), digest: 0 };
            let requester = relay.requester;
            self.relays.remove(&seq);
            self.send(now, requester, Via::Datagram, ack, Some(from));
            return;
        }
        let reached = target.unwrap_or(from).clone();
        let Some(probe) = self.probes.get(&seq).filter(|probe| probe.target == reached) else { return };
        let (kind, sent_at, direct) = (probe.kind, probe.sent_at, probe.escalate_at.is_some() && target.is_none());
        self.probes.remove(&seq);
        self.improve_health();
        if target.is_none() {
            self.members.vouch(&reached, Source::Heard);
        }
        if direct && via == Via::Datagram {
            let rtt = now.saturating_duration_since(sent_at);
            self.members.note(&reached, |member| member.rtt.record(rtt));
            self.events.push_back(Event::Rtt { peer: reached.clone(), rtt });
        } else if kind == ProbeKind::Ring && (via == Via::Stream || target.is_some()) {
            self.events.push_back(Event::Detour { peer: reached.clone() });
        }
        self.on_reached(now, &reached, kind);
    }

    /// A probe reached a node; if it is suspected it hears so from here and refutes.
    fn on_reached(&mut self, now: Instant, name: &NodeName, kind: ProbeKind) {
        let Some(member) = self.members.get(name).filter(|member| member.status == NodeStatus::Suspected) else {
            return;
        };
        let addr = member.addr;
        self.send(now, addr, Via::Datagram, Body::Gossip { seq: 0 }, Some(name));
        if kind == ProbeKind::Verify
            && let Some(suspicion) = self.suspicions.get_mut(name)
        {
            suspicion.restart(now);
        }
    }

    pub(super) fn on_nack(&mut self, seq: u64) {
        if let Some(probe) = self.probes.get_mut(&seq) {
            probe.nacks += 1;
        }
    }

    /// Pings a third node for the requester. Only known members are pinged: nobody can make this node send elsewhere.
    pub(super) fn on_ping_req(&mut self, now: Instant, requester: SocketAddr, requester_seq: u64, target: &NodeName) {
        let Some(member) = self.members.get(target).filter(|member| member.name != self.config.node) else { return };
        if self.relays.len() >= RELAYS_MAX {
            return;
        }
        let (addr, nack_at) = (member.addr, Some(now + member.rtt.timeout(0)));
        let seq = self.next_seq();
        let relay = Relay { requester, requester_seq, target: target.clone(), nack_at, until: now + RELAY_TIME };
        self.relays.insert(seq, relay);
        self.ping(now, addr, Via::Datagram, seq, target);
    }

    /// Tells requesters that there was no answer so far, and ends old relays.
    pub(super) fn run_relays(&mut self, now: Instant) {
        let mut nacks = Vec::new();
        for relay in self.relays.values_mut() {
            if relay.nack_at.take_if(|at| *at <= now).is_some() {
                nacks.push((relay.requester, relay.requester_seq));
            }
        }
        for (requester, seq) in nacks {
            self.send(now, requester, Via::Datagram, Body::Nack { seq }, None);
        }
        self.relays.retain(|_, relay| relay.until > now);
    }
}
