//! How news travels: rumours that ride on pings, acks and gossip rounds (SWIM §4.1), and posts that are acked, for
//! clusters of up to 32 nodes (DESIGN §3.8).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::seq::IndexedRandom;

use super::{
    Body, Packet, Swim, Via,
    config::{ACKED_NODES_MAX, FANOUT},
    message::DATAGRAM_BYTES_MAX,
};
use crate::mesh::{node::NodeName, wire::membership as wire};

/// λ of SWIM §4.1: a rumour is sent λ·⌈log10(n + 1)⌉ times from each node.
const RETRANSMIT_FACTOR: u32 = 4;

/// Sendings of one post at most; what is still not acked is left to the exchange of lists.
const POST_TRIES_MAX: u32 = 5;

/// Names whose record still has to be told, those told least first. Bounded by the member list; newest record wins.
#[derive(Debug, Default)]
pub(super) struct Rumours {
    sent: BTreeMap<NodeName, u32>,
    order: BTreeSet<(u32, NodeName)>,
}

impl Rumours {
    pub(super) fn push(&mut self, name: &NodeName) {
        self.remove(name);
        self.sent.insert(name.clone(), 0);
        self.order.insert((0, name.clone()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    fn remove(&mut self, name: &NodeName) {
        if let Some(sent) = self.sent.remove(name) {
            self.order.remove(&(sent, name.clone()));
        }
    }

    /// Counts one more sending of `name`, which is told no more after `limit` of them.
    fn count(&mut self, name: &NodeName, limit: u32) {
        let Some(sent) = self.sent.get(name).copied() else { return };
        self.remove(name);
        if sent + 1 < limit {
            self.sent.insert(name.clone(), sent + 1);
            self.order.insert((sent + 1, name.clone()));
        }
    }
}

/// What one peer has still to ack.
#[derive(Debug)]
pub(super) struct Post {
    subjects: BTreeSet<NodeName>,
    /// Subjects of the packet under way that have not changed since.
    in_flight: BTreeSet<NodeName>,
    seq: u64,
    tries: u32,
    pub(super) due: Instant,
}

impl Swim {
    /// News that this node is the origin of: to every peer in a small cluster, by gossip in a large one.
    pub(super) fn broadcast(&mut self, now: Instant, subject: &NodeName) {
        self.spread(now, subject);
        if self.members.live().len() > ACKED_NODES_MAX {
            return;
        }
        let suspected = self.suspicions.contains_key(subject);
        let peers: Vec<_> = self.members.live().iter().filter(|peer| *peer != subject || suspected).cloned().collect();
        for peer in peers {
            self.post(now, &peer, subject);
        }
    }

    /// News that came from elsewhere: passed on with what is sent anyway, and by gossip in a large cluster.
    pub(super) fn spread(&mut self, now: Instant, subject: &NodeName) {
        self.rumours.push(subject);
        self.gossip_due.get_or_insert(now);
    }

    /// Sends the record of `subject` to `peer` until acked.
    pub(super) fn post(&mut self, now: Instant, peer: &NodeName, subject: &NodeName) {
        if *peer == self.config.node {
            return;
        }
        let post = self.posts.entry(peer.clone()).or_insert_with(|| Post {
            subjects: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            seq: 0,
            tries: 0,
            due: now,
        });
        post.subjects.insert(subject.clone());
        post.in_flight.remove(subject);
        post.tries = 0;
        post.due = now;
    }

    /// Sends the posts that are due.
    pub(super) fn flush_posts(&mut self, now: Instant) {
        let due = self.posts.iter().filter(|(_, post)| post.due <= now).map(|(peer, _)| peer.clone());
        for peer in due.collect::<Vec<_>>() {
            let live = self.members.get(&peer).filter(|member| member.is_live());
            let wanted = self.posts.get(&peer).filter(|post| post.tries < POST_TRIES_MAX && !post.subjects.is_empty());
            let (Some(member), Some(post)) = (live, wanted) else {
                self.posts.remove(&peer);
                continue;
            };
            let (addr, rtt, subjects) = (member.addr, member.rtt, post.subjects.clone());
            let seq = self.next_seq();
            let mut packet = self.packet(Body::Gossip { seq }, Vec::new());
            let mut room = DATAGRAM_BYTES_MAX.saturating_sub(wire::packet_len(&self.config.cluster, &packet));
            let mut sent = BTreeSet::new();
            let mut vanished = Vec::new();
            for subject in subjects {
                match self.update_of(now, &subject) {
                    Some(update) if wire::update_len(&update) <= room => {
                        room -= wire::update_len(&update);
                        packet.updates.push(update);
                        sent.insert(subject);
                    }
                    Some(_) => {}
                    None => vanished.push(subject),
                }
            }
            self.transmit(addr, Via::Datagram, &packet);
            if let Some(post) = self.posts.get_mut(&peer) {
                post.subjects.retain(|name| !vanished.contains(name));
                post.in_flight = sent;
                post.seq = seq;
                post.due = now + rtt.timeout(0) * (1 << post.tries.min(4));
                post.tries += 1;
            }
        }
    }

    pub(super) fn on_gossip_ack(&mut self, now: Instant, seq: u64, peer: &NodeName) {
        let Some(post) = self.posts.get_mut(peer).filter(|post| post.seq == seq) else { return };
        let acked = std::mem::take(&mut post.in_flight);
        post.subjects.retain(|subject| !acked.contains(subject));
        if post.subjects.is_empty() {
            self.posts.remove(peer);
        } else {
            post.tries = 0;
            post.due = now;
        }
        if acked.contains(&self.config.node) {
            self.on_own_record_acked(peer);
        }
    }

    /// Fills `packet` with the rumours that fit into `room` bytes and counts them as told.
    pub(super) fn add_rumours(&mut self, now: Instant, packet: &mut Packet, mut room: usize) {
        if self.rumours.is_empty() {
            return;
        }
        let limit = RETRANSMIT_FACTOR * ((self.members.live().len() + 1) as f64).log10().ceil().max(1.0) as u32;
        let mut told = Vec::new();
        for (_, name) in &self.rumours.order {
            let Some(update) = self.update_of(now, name) else {
                told.push((name.clone(), 0));
                continue;
            };
            let len = wire::update_len(&update);
            if len > room {
                break;
            }
            if packet.updates.iter().all(|other| other.name != *name) {
                room -= len;
                packet.updates.push(update);
            }
            told.push((name.clone(), limit));
        }
        for (name, limit) in told {
            self.rumours.count(&name, limit);
        }
    }

    /// One gossip round of a large cluster, while there is news.
    pub(super) fn run_gossip(&mut self, now: Instant) {
        if self.gossip_due.is_none_or(|due| due > now) {
            return;
        }
        // In a small cluster posts carry the news, and what is left rides on pings and acks.
        if self.rumours.is_empty() || self.members.live().len() <= ACKED_NODES_MAX {
            self.gossip_due = None;
            return;
        }
        self.gossip_due = Some(now + self.config.gossip_interval.max(Duration::from_millis(10)));
        let others: Vec<_> = self.members.live().iter().filter(|name| **name != self.config.node).collect();
        let chosen = others.sample(&mut self.rng, FANOUT).filter_map(|name| self.members.get(name));
        for addr in chosen.map(|member| member.addr).collect::<Vec<_>>() {
            self.send(now, addr, Via::Datagram, Body::Gossip { seq: 0 }, None);
        }
    }
}
