//! One modelled node: its list, its probes, its suspicions and its news.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, seq::SliceRandom};
use rand_pcg::Pcg64Mcg;

use super::timing::{
    self, AWARENESS_MAX, GOSSIP_INTERVAL, GOSSIP_NODES, INDIRECT_CHECKS, PROBE_INTERVAL, PROBE_TIMEOUT,
};
use crate::mesh::swim::Via;

/// How a node sees another.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Status {
    /// Well.
    Alive,
    /// Suspected.
    Suspect,
    /// Dead.
    Dead,
}

/// What is said of one node: SWIM §4.2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Claim {
    subject: usize,
    status: Status,
    incarnation: u64,
    by: usize,
}

/// A packet, with the news that rides on it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    body: Body,
    claims: Vec<Claim>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Body {
    Ping(u64),
    Ack(u64),
    PingReq { seq: u64, target: usize },
    Nack(u64),
    Gossip,
    PushPull { is_answer: bool },
}

/// What a node asks to be woken for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timer {
    Probe,
    Gossip,
    PushPull,
    /// The direct ping had its time.
    Timeout(u64),
    /// The probe had its time.
    Deadline(u64),
    /// A relayed ping had its time.
    Relay(u64),
    /// A suspicion may be over.
    Expiry(usize),
}

/// What an input causes.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) messages: Vec<(usize, Via, Message)>,
    pub(super) timers: Vec<(Duration, Timer)>,
    pub(super) declared_dead: Vec<usize>,
    pub(super) suspected: u64,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    status: Status,
    incarnation: u64,
}

#[derive(Debug)]
struct Probe {
    target: usize,
    relays: u32,
    nacks: u32,
}

#[derive(Debug)]
struct Relayed {
    requester: usize,
    seq: u64,
}

#[derive(Debug)]
struct Suspicion {
    started: Duration,
    accusers: BTreeSet<usize>,
}

impl Suspicion {
    fn expiry(&self, count: usize) -> Duration {
        let confirmations = u32::try_from(self.accusers.len().saturating_sub(1)).unwrap_or(u32::MAX);
        self.started + timing::suspicion_time(count, confirmations)
    }
}

#[derive(Debug)]
pub(super) struct Node {
    me: usize,
    records: Vec<Record>,
    /// Order of probing, shuffled anew after each pass (SWIM §4.3).
    order: Vec<usize>,
    next: usize,
    probes: BTreeMap<u64, Probe>,
    relayed: BTreeMap<u64, Relayed>,
    suspicions: BTreeMap<usize, Suspicion>,
    /// News by subject, with the times that it was sent.
    news: BTreeMap<usize, (Claim, u32)>,
    /// Local health: Lifeguard §IV.A.
    awareness: u32,
    seq: u64,
}

impl Node {
    pub(super) fn new(me: usize, count: usize, rng: &mut Pcg64Mcg) -> Self {
        let mut order: Vec<_> = (0..count).filter(|other| *other != me).collect();
        order.shuffle(rng);
        Self {
            me,
            records: vec![Record { status: Status::Alive, incarnation: 0 }; count],
            order,
            next: 0,
            probes: BTreeMap::new(),
            relayed: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            news: BTreeMap::new(),
            awareness: 0,
            seq: 0,
        }
    }

    pub(super) fn status(&self, of: usize) -> Status {
        self.records[of].status
    }

    pub(super) fn on_timer(&mut self, now: Duration, timer: Timer, rng: &mut Pcg64Mcg, out: &mut Output) {
        match timer {
            Timer::Probe => {
                out.timers.push((now + self.scaled(PROBE_INTERVAL), Timer::Probe));
                self.probe(now, rng, out);
            }
            Timer::Gossip => {
                out.timers.push((now + GOSSIP_INTERVAL, Timer::Gossip));
                for to in self.others(rng, GOSSIP_NODES, None) {
                    if !self.news.is_empty() {
                        self.send(to, Via::Datagram, Body::Gossip, None, out);
                    }
                }
            }
            Timer::PushPull => {
                out.timers.push((now + timing::push_pull_interval(self.live()), Timer::PushPull));
                for to in self.others(rng, 1, None) {
                    self.send_list(to, false, out);
                }
            }
            Timer::Timeout(seq) => self.escalate(seq, rng, out),
            Timer::Deadline(seq) => self.on_silence(now, seq, out),
            Timer::Relay(seq) => {
                if let Some(relayed) = self.relayed.remove(&seq) {
                    self.send(relayed.requester, Via::Datagram, Body::Nack(relayed.seq), None, out);
                }
            }
            Timer::Expiry(subject) => self.on_expiry(now, subject, out),
        }
    }

    pub(super) fn on_message(&mut self, now: Duration, from: usize, via: Via, message: Message, out: &mut Output) {
        for claim in message.claims {
            self.learn(now, claim, out);
        }
        match message.body {
            Body::Ping(seq) => self.send(from, via, Body::Ack(seq), None, out),
            Body::Ack(seq) => self.on_ack(seq, out),
            Body::PingReq { seq: theirs, target } => {
                let seq = self.next_seq();
                self.relayed.insert(seq, Relayed { requester: from, seq: theirs });
                out.timers.push((now + PROBE_TIMEOUT, Timer::Relay(seq)));
                self.send(target, Via::Datagram, Body::Ping(seq), Some(target), out);
            }
            Body::Nack(seq) => {
                if let Some(probe) = self.probes.get_mut(&seq) {
                    probe.nacks += 1;
                }
            }
            Body::PushPull { is_answer: false } => self.send_list(from, true, out),
            Body::PushPull { is_answer: true } | Body::Gossip => {}
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn live(&self) -> usize {
        self.records.iter().filter(|record| record.status != Status::Dead).count()
    }

    /// Lifeguard §IV.A: a node that trusts itself less takes its time.
    fn scaled(&self, time: Duration) -> Duration {
        time * (self.awareness + 1)
    }

    fn note_health(&mut self, worse: i64) {
        let score = (i64::from(self.awareness) + worse).clamp(0, i64::from(AWARENESS_MAX) - 1);
        self.awareness = u32::try_from(score).unwrap_or(0);
    }

    /// Some of the others that are not dead, without `but`.
    fn others(&self, rng: &mut Pcg64Mcg, wanted: usize, but: Option<usize>) -> Vec<usize> {
        let mut found = Vec::new();
        // As in the reference: a bounded number of draws instead of a shuffle.
        for _ in 0..3 * self.records.len() {
            let drawn = rng.random_range(0..self.records.len());
            let is_fit = drawn != self.me && Some(drawn) != but && self.records[drawn].status != Status::Dead;
            if is_fit && !found.contains(&drawn) {
                found.push(drawn);
            }
            if found.len() == wanted {
                break;
            }
        }
        found
    }

    /// SWIM §3.1, with the order of §4.3.
    fn probe(&mut self, now: Duration, rng: &mut Pcg64Mcg, out: &mut Output) {
        for _ in 0..self.order.len() {
            if self.next >= self.order.len() {
                self.next = 0;
                self.order.shuffle(rng);
            }
            let target = self.order[self.next];
            self.next += 1;
            if self.records[target].status == Status::Dead {
                continue;
            }
            let seq = self.next_seq();
            self.probes.insert(seq, Probe { target, relays: 0, nacks: 0 });
            out.timers.push((now + self.scaled(PROBE_TIMEOUT), Timer::Timeout(seq)));
            out.timers.push((now + self.scaled(PROBE_INTERVAL), Timer::Deadline(seq)));
            return self.send(target, Via::Datagram, Body::Ping(seq), Some(target), out);
        }
    }

    fn escalate(&mut self, seq: u64, rng: &mut Pcg64Mcg, out: &mut Output) {
        let Some(target) = self.probes.get(&seq).map(|probe| probe.target) else { return };
        let relays = self.others(rng, INDIRECT_CHECKS, Some(target));
        if let Some(probe) = self.probes.get_mut(&seq) {
            probe.relays = u32::try_from(relays.len()).unwrap_or(0);
        }
        for relay in relays {
            self.send(relay, Via::Datagram, Body::PingReq { seq, target }, None, out);
        }
        self.send(target, Via::Stream, Body::Ping(seq), Some(target), out);
    }

    fn on_ack(&mut self, seq: u64, out: &mut Output) {
        if self.probes.remove(&seq).is_some() {
            self.note_health(-1);
        } else if let Some(relayed) = self.relayed.remove(&seq) {
            self.send(relayed.requester, Via::Datagram, Body::Ack(relayed.seq), None, out);
        }
    }

    fn on_silence(&mut self, now: Duration, seq: u64, out: &mut Output) {
        let Some(probe) = self.probes.remove(&seq) else { return };
        let missed = probe.relays.saturating_sub(probe.nacks);
        self.note_health(if probe.relays == 0 { 1 } else { missed.into() });
        let record = self.records[probe.target];
        if record.status != Status::Dead {
            out.suspected += u64::from(record.status == Status::Alive);
            let claim =
                Claim { subject: probe.target, status: Status::Suspect, incarnation: record.incarnation, by: self.me };
            self.learn(now, claim, out);
        }
    }

    /// SWIM §4.2: what overrides what.
    fn learn(&mut self, now: Duration, claim: Claim, out: &mut Output) {
        let record = self.records[claim.subject];
        if claim.subject == self.me {
            return self.refute(claim, record);
        }
        let newer = match claim.status {
            Status::Alive => claim.incarnation > record.incarnation,
            Status::Suspect if record.status == Status::Suspect && claim.incarnation == record.incarnation => {
                return self.confirm(now, claim, out);
            }
            Status::Suspect => {
                claim.incarnation >= record.incarnation && record.status == Status::Alive
                    || claim.incarnation > record.incarnation && record.status == Status::Suspect
            }
            Status::Dead => claim.incarnation >= record.incarnation && record.status != Status::Dead,
        };
        if !newer {
            return;
        }
        self.records[claim.subject] = Record { status: claim.status, incarnation: claim.incarnation };
        self.news.insert(claim.subject, (claim, 0));
        self.suspicions.remove(&claim.subject);
        match claim.status {
            Status::Alive => {}
            Status::Suspect => {
                let suspicion = Suspicion { started: now, accusers: BTreeSet::from([claim.by]) };
                out.timers.push((suspicion.expiry(self.live()), Timer::Expiry(claim.subject)));
                self.suspicions.insert(claim.subject, suspicion);
            }
            Status::Dead => out.declared_dead.push(claim.subject),
        }
    }

    /// Lifeguard §IV.B: independent suspicions shorten the time, and as many as are wanted are passed on.
    fn confirm(&mut self, now: Duration, claim: Claim, out: &mut Output) {
        let count = self.live();
        let Some(suspicion) = self.suspicions.get_mut(&claim.subject) else { return };
        let wanted = timing::confirmations_wanted(count) as usize;
        if suspicion.accusers.len() > wanted || !suspicion.accusers.insert(claim.by) {
            return;
        }
        out.timers.push((suspicion.expiry(count).max(now), Timer::Expiry(claim.subject)));
        self.news.insert(claim.subject, (claim, 0));
    }

    fn refute(&mut self, claim: Claim, record: Record) {
        if claim.status == Status::Alive || claim.incarnation < record.incarnation {
            return;
        }
        let incarnation = claim.incarnation + 1;
        self.records[self.me].incarnation = incarnation;
        let alive = Claim { subject: self.me, status: Status::Alive, incarnation, by: self.me };
        self.news.insert(self.me, (alive, 0));
        self.note_health(1);
    }

    fn on_expiry(&mut self, now: Duration, subject: usize, out: &mut Output) {
        let count = self.live();
        if self.suspicions.get(&subject).is_none_or(|suspicion| suspicion.expiry(count) > now) {
            return;
        }
        let incarnation = self.records[subject].incarnation;
        self.learn(now, Claim { subject, status: Status::Dead, incarnation, by: self.me }, out);
    }

    /// Sends `body` with all news, the least told first; a suspected target is told so (Lifeguard §IV.C).
    fn send(&mut self, to: usize, via: Via, body: Body, target: Option<usize>, out: &mut Output) {
        let limit = timing::retransmits(self.live());
        let mut claims: Vec<Claim> = Vec::new();
        for (claim, sent) in self.news.values_mut() {
            *sent += 1;
            claims.push(*claim);
        }
        self.news.retain(|_, (_, sent)| *sent < limit);
        if let Some(target) = target.filter(|target| self.records[*target].status == Status::Suspect) {
            let incarnation = self.records[target].incarnation;
            claims.push(Claim { subject: target, status: Status::Suspect, incarnation, by: self.me });
        }
        out.messages.push((to, via, Message { body, claims }));
    }

    fn send_list(&mut self, to: usize, is_answer: bool, out: &mut Output) {
        let by = self.me;
        // A remote list makes nobody dead at once: its dead are taken for suspected.
        let claims = self.records.iter().enumerate().map(|(subject, record)| Claim {
            subject,
            status: record.status.min(Status::Suspect),
            incarnation: record.incarnation,
            by,
        });
        out.messages.push((to, Via::Stream, Message { body: Body::PushPull { is_answer }, claims: claims.collect() }));
    }
}
