//! Probes: SWIM §3.1 in the order of §4.3, with the local health of Lifeguard §IV.A.

use std::time::Duration;

use rand::{RngExt, seq::SliceRandom};

use super::{Event, Node, Transmit, next_tick};
use crate::mesh::{
    node::NodeStatus::{Alive, Down, Suspected},
    sim::memberlist::{
        message::{Message, News, Peer},
        timing::{GOSSIP_TO_THE_DEAD, INDIRECT_CHECKS, PROBE_INTERVAL, PROBE_TIMEOUT},
    },
    swim::Via,
};

/// The probe that is under way.
#[derive(Debug)]
pub(super) struct Probe {
    target: Peer,
    seq: u32,
    /// When relays and the stream are asked; none once they were.
    escalate_at: Option<Duration>,
    deadline: Duration,
    relays: usize,
    nacks: usize,
    /// The target answered on the stream.
    is_reached: bool,
}

impl Probe {
    pub(super) fn due(&self) -> Duration {
        self.escalate_at.unwrap_or(self.deadline)
    }
}

/// A ping on behalf of another node.
#[derive(Debug)]
pub(super) struct Relay {
    seq: u32,
    requester: Peer,
    requester_seq: u32,
    pub(super) until: Duration,
}

impl Node {
    /// Starts, escalates and ends probes that are due; one runs at a time.
    pub(super) fn run_probe(&mut self, now: Duration) {
        if self.probe_at <= now {
            self.probe_at = next_tick(self.probe_at, PROBE_INTERVAL, now);
            self.is_probe_due = true;
        }
        if self.probe.as_ref().is_some_and(|probe| probe.escalate_at.is_some_and(|at| at <= now)) {
            self.escalate();
        }
        if let Some(probe) = self.probe.take_if(|probe| probe.deadline <= now) {
            self.on_deadline(now, &probe);
        }
        self.start_probe(now);
    }

    fn start_probe(&mut self, now: Duration) {
        if !self.is_probe_due || self.probe.is_some() {
            return;
        }
        self.is_probe_due = false;
        let Some(target) = self.next_target(now) else { return };
        let seq = self.next_seq();
        // The time to answer grows with doubt in oneself; that before others are asked does not, as in the library and
        // other than in the paper.
        let deadline = now + PROBE_INTERVAL * (self.health + 1);
        let escalate_at = Some(now + PROBE_TIMEOUT);
        self.probe = Some(Probe { target, seq, escalate_at, deadline, relays: 0, nacks: 0, is_reached: false });
        self.ping(target, seq);
    }

    /// Lifeguard §IV.C, the buddy system: a suspected node learns of it from whoever pings it.
    fn ping(&mut self, target: Peer, seq: u32) {
        match self.record(target).copied().filter(|record| record.status == Suspected) {
            Some(record) => {
                let news = News { of: target, incarnation: record.incarnation, status: Suspected, from: self.me };
                let messages = vec![Message::Ping { seq }, Message::News(news)];
                self.transmits.push_back(Transmit { to: target, via: Via::Datagram, messages });
            }
            None => self.send(target, Via::Datagram, Message::Ping { seq }),
        }
    }

    /// SWIM §4.3: one after the other of a list that is shuffled when it is through.
    fn next_target(&mut self, now: Duration) -> Option<Peer> {
        for _ in 0..=self.list.len() {
            if self.next >= self.list.len() {
                self.next = 0;
                self.forget_dead(now);
                self.list.shuffle(&mut self.rng);
            }
            let target = *self.list.get(self.next)?;
            self.next += 1;
            if target != self.me && self.status(target) != Some(Down) {
                return Some(target);
            }
        }
        None
    }

    fn forget_dead(&mut self, now: Duration) {
        let records = &mut self.records;
        self.list.retain(|peer| {
            let record = &mut records[*peer];
            let is_over = record.is_some_and(|r| r.status == Down && now - r.changed > GOSSIP_TO_THE_DEAD);
            if is_over {
                *record = None;
            }
            !is_over
        });
    }

    /// SWIM §3.1: asks relays; and the target itself on a stream, which gets through where datagrams do not.
    fn escalate(&mut self) {
        let Some(probe) = &mut self.probe else { return };
        probe.escalate_at = None;
        let (target, seq) = (probe.target, probe.seq);
        let relays = self.draw(INDIRECT_CHECKS, |node, peer| peer != target && node.status(peer) == Some(Alive));
        if let Some(probe) = &mut self.probe {
            probe.relays = relays.len();
        }
        for relay in relays {
            self.send(relay, Via::Datagram, Message::IndirectPing { seq, target });
        }
        self.send(target, Via::Stream, Message::Ping { seq });
    }

    /// The probe had its time: unless the stream reached the target, it is suspected.
    fn on_deadline(&mut self, now: Duration, probe: &Probe) {
        if probe.is_reached {
            return self.note_health(-1);
        }
        // Relays that did not even say that they heard nothing speak against this node.
        let missed = probe.relays.saturating_sub(probe.nacks);
        self.note_health(if probe.relays == 0 { 1 } else { i64::try_from(missed).unwrap_or(0) });
        let Some(record) = self.record(probe.target).copied() else { return };
        if record.status == Alive {
            self.events.push_back(Event::Suspected(probe.target));
        }
        let news = News { of: probe.target, incarnation: record.incarnation, status: Suspected, from: self.me };
        self.on_news(now, news);
    }

    pub(super) fn on_ack(&mut self, now: Duration, seq: u32, via: Via) {
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.seq == seq) {
            if via == Via::Stream {
                // Noted until the end: a datagram may still get through.
                probe.is_reached = true;
            } else {
                self.probe = None;
                self.note_health(-1);
                self.start_probe(now);
            }
        } else if let Some(at) = self.relays.iter().position(|relay| relay.seq == seq)
            && let Some(relay) = self.relays.remove(at)
        {
            self.send(relay.requester, Via::Datagram, Message::Ack { seq: relay.requester_seq });
        }
    }

    pub(super) fn on_nack(&mut self, seq: u32) {
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.seq == seq) {
            probe.nacks += 1;
        }
    }

    pub(super) fn on_indirect_ping(&mut self, now: Duration, requester: Peer, requester_seq: u32, target: Peer) {
        let seq = self.next_seq();
        self.relays.push_back(Relay { seq, requester, requester_seq, until: now + PROBE_TIMEOUT });
        self.send(target, Via::Datagram, Message::Ping { seq });
    }

    /// Lifeguard §IV.A: a relay that hears nothing says so. After one probe timeout, as in the library, so that at full
    /// health the word comes too late by a round trip; the paper says 80 % of it.
    pub(super) fn run_relays(&mut self, now: Duration) {
        while self.relays.front().is_some_and(|relay| relay.until <= now)
            && let Some(relay) = self.relays.pop_front()
        {
            self.send(relay.requester, Via::Datagram, Message::Nack { seq: relay.requester_seq });
        }
    }

    /// A place on the list at random, so that not all probe a new node last: SWIM §4.3.
    pub(super) fn enlist(&mut self, peer: Peer) {
        let place = self.rng.random_range(0..=self.list.len());
        self.list.push(peer);
        let last = self.list.len() - 1;
        self.list.swap(place, last);
    }
}
