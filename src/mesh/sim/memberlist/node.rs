//! One modelled node: a pure machine with the same shape as the one that ships.

mod probe;
mod records;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_pcg::Pcg64Mcg;

use self::probe::{Probe, Relay};
use super::{
    message::{self, COMPOUND_BYTES, Message, News, PART_BYTES, Peer},
    queue::Queue,
    suspicion::Suspicion,
    timing::{self, AWARENESS_MAX, DATAGRAM_BYTES, GOSSIP_INTERVAL, GOSSIP_NODES, GOSSIP_TO_THE_DEAD, PROBE_INTERVAL},
};
use crate::mesh::{
    node::NodeStatus::{self, Alive, Down},
    swim::Via,
};

/// What a node knows of a node.
#[derive(Clone, Copy, Debug)]
struct Record {
    incarnation: u32,
    status: NodeStatus,
    changed: Duration,
}

/// Messages for a peer.
#[derive(Debug)]
pub(super) struct Transmit {
    pub(super) to: Peer,
    pub(super) via: Via,
    pub(super) messages: Vec<Message>,
}

/// What a node reports.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Event {
    /// Its own probe failed and made a live node suspected.
    Suspected(Peer),
    /// A node is DOWN here.
    Down(Peer),
}

/// A node; virtual time since the start of the run is an argument.
#[derive(Debug)]
pub(super) struct Node {
    me: Peer,
    rng: Pcg64Mcg,
    incarnation: u32,
    /// Local health: 0 is good, [`AWARENESS_MAX`] − 1 is worst.
    health: u32,
    records: Vec<Option<Record>>,
    /// All known nodes in the order of probing, this one included.
    list: Vec<Peer>,
    next: usize,
    queue: Queue,
    suspicions: BTreeMap<Peer, Suspicion>,
    probe: Option<Probe>,
    /// A probe interval began while the last probe was still under way; more than one is not remembered.
    is_probe_due: bool,
    /// Pings for others that wait for an ack, each for one probe timeout.
    relays: VecDeque<Relay>,
    seq: u32,
    probe_at: Duration,
    gossip_at: Duration,
    exchange_at: Duration,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Node {
    /// A node that starts at `now` and knows nobody.
    pub(super) fn new(me: Peer, now: Duration, seed: u64) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut within = |interval: Duration| now + interval.mul_f64(rng.random::<f64>());
        let (probe_at, gossip_at) = (within(PROBE_INTERVAL), within(GOSSIP_INTERVAL));
        let exchange_at = within(timing::exchange_interval(1));
        let mut node = Self {
            me,
            rng,
            incarnation: 1,
            health: 0,
            records: Vec::new(),
            list: Vec::new(),
            next: 0,
            queue: Queue::default(),
            suspicions: BTreeMap::new(),
            probe: None,
            is_probe_due: false,
            relays: VecDeque::new(),
            seq: 0,
            probe_at,
            gossip_at,
            exchange_at,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        };
        node.on_alive(now, me, 1);
        node
    }

    /// Makes it know all of `peers`, with nothing left to tell, as after a long quiet time.
    pub(super) fn settle(&mut self, now: Duration, peers: usize) {
        for peer in 0..peers {
            self.on_alive(now, peer, 1);
        }
        self.queue = Queue::default();
        self.list.shuffle(&mut self.rng);
        self.next = self.rng.random_range(0..peers.max(1));
        self.exchange_at = now + timing::exchange_interval(peers).mul_f64(self.rng.random::<f64>());
    }

    /// Joins the cluster of `seed`: lists are exchanged.
    pub(super) fn join(&mut self, seed: Peer) {
        self.send_list(seed, false);
    }

    /// The status of `peer` as it is seen here.
    pub(super) fn status(&self, peer: Peer) -> Option<NodeStatus> {
        self.record(peer).map(|record| record.status)
    }

    /// Nodes that are not DOWN here, this one included.
    pub(super) fn live(&self) -> usize {
        self.list.iter().filter(|peer| self.status(**peer) != Some(Down)).count()
    }

    /// Takes the messages of one packet.
    pub(super) fn handle_packet(&mut self, now: Duration, from: Peer, via: Via, messages: &[Message]) {
        for message in messages {
            match message {
                Message::Ping { seq } => self.send(from, via, Message::Ack { seq: *seq }),
                Message::Ack { seq } => self.on_ack(now, *seq, via),
                Message::IndirectPing { seq, target } => self.on_indirect_ping(now, from, *seq, *target),
                Message::Nack { seq } => self.on_nack(*seq),
                Message::News(news) => self.on_news(now, *news),
                Message::List { is_answer, list } => {
                    if !is_answer {
                        self.send_list(from, true);
                    }
                    self.on_list(now, list);
                }
            }
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Duration) {
        self.run_relays(now);
        self.run_probe(now);
        if self.gossip_at <= now {
            self.gossip_at = next_tick(self.gossip_at, GOSSIP_INTERVAL, now);
            self.gossip(now);
        }
        if self.exchange_at <= now {
            self.exchange_at = now + timing::exchange_interval(self.list.len());
            for peer in self.draw(1, |node, peer| node.status(peer) == Some(Alive)) {
                self.send_list(peer, false);
            }
        }
        self.run_suspicions(now);
    }

    /// The next packet to send.
    pub(super) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing to report.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` is due.
    pub(super) fn poll_timeout(&self) -> Duration {
        let ticks = [self.probe_at, self.gossip_at, self.exchange_at];
        let probe = self.probe.as_ref().map(Probe::due);
        let relay = self.relays.front().map(|relay| relay.until);
        let suspicions = self.suspicions.values().map(Suspicion::deadline);
        ticks.into_iter().chain(probe).chain(relay).chain(suspicions).min().unwrap_or(self.probe_at)
    }

    fn record(&self, peer: Peer) -> Option<&Record> {
        self.records.get(peer)?.as_ref()
    }

    /// SWIM §4.1 and the gossip that runs beside the probes: each of some nodes gets what has been told least, also those
    /// that died lately, so that they can refute.
    fn gossip(&mut self, now: Duration) {
        let hears = |node: &Self, peer| {
            node.record(peer).is_some_and(|record| record.status != Down || now - record.changed <= GOSSIP_TO_THE_DEAD)
        };
        for to in self.draw(GOSSIP_NODES, hears) {
            let news = self.queue.take(DATAGRAM_BYTES - COMPOUND_BYTES, timing::retransmits(self.list.len()));
            if news.is_empty() {
                return;
            }
            let messages = news.into_iter().map(Message::News).collect();
            self.transmits.push_back(Transmit { to, via: Via::Datagram, messages });
        }
    }

    /// Up to `wanted` others that are `fit`, by at most three draws for each node of the list.
    fn draw(&mut self, wanted: usize, fit: impl Fn(&Self, Peer) -> bool) -> Vec<Peer> {
        let mut drawn = Vec::new();
        for _ in 0..3 * self.list.len() {
            if drawn.len() == wanted {
                break;
            }
            let peer = self.list[self.rng.random_range(0..self.list.len())];
            if peer != self.me && !drawn.contains(&peer) && fit(self, peer) {
                drawn.push(peer);
            }
        }
        drawn
    }

    /// Sends a message; what room a datagram has left carries news.
    fn send(&mut self, to: Peer, via: Via, message: Message) {
        let mut messages = vec![message];
        if via == Via::Datagram {
            let room = DATAGRAM_BYTES - COMPOUND_BYTES - PART_BYTES - message::bytes(&messages[0]);
            let news = self.queue.take(room, timing::retransmits(self.list.len()));
            messages.extend(news.into_iter().map(Message::News));
        }
        self.transmits.push_back(Transmit { to, via, messages });
    }

    fn send_list(&mut self, to: Peer, is_answer: bool) {
        let news = |peer: &Peer| {
            let record = self.record(*peer)?;
            Some(News { of: *peer, incarnation: record.incarnation, status: record.status, from: self.me })
        };
        let list: Arc<[News]> = self.list.iter().filter_map(news).collect();
        self.send(to, Via::Stream, Message::List { is_answer, list });
    }

    /// Lifeguard §IV.A: evidence for or against this node's own health.
    fn note_health(&mut self, worse: i64) {
        let score = (i64::from(self.health) + worse).clamp(0, i64::from(AWARENESS_MAX) - 1);
        self.health = u32::try_from(score).unwrap_or(0);
    }

    fn next_seq(&mut self) -> u32 {
        self.seq += 1;
        self.seq
    }
}

/// The first tick after `now` of a ticker that ticked at `last`; missed ones are left out.
fn next_tick(last: Duration, interval: Duration, now: Duration) -> Duration {
    let missed = (now - last).as_nanos() / interval.as_nanos();
    last + interval * u32::try_from(missed + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
