//! How news travels: rumours that ride on pings, acks and gossip rounds (SWIM §4.1), and posts that are acked, for
//! clusters of up to 32 nodes (DESIGN §3.8).

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    Body, Packet, Swim, Via,
    config::{ACKED_NODES_MAX, FANOUT},
    member::NameMap,
    message::DATAGRAM_BYTES_MAX,
};
use crate::mesh::{node::NodeName, wire::membership as wire};

/// What every node sends of a rumour beyond ln n: with ln n + c sendings all hear of it with probability e^(−e^(−c))
/// (Kermarrec, Massoulié and Ganesh 2003, "Probabilistic reliable dissemination in large-scale systems" §3), so that one
/// rumour in 8000 misses somebody. λ·⌈log n⌉ of SWIM §4.1 with the usual λ of 4 and decimal logarithms missed one node of
/// a hundred in 3 % of the verdicts, which then came 1.6 s later there.
const SENDINGS_BEYOND_LOG: f64 = 9.0;

/// The same in a cluster whose updates are acked: what rides on pings and acks is a second way there.
const SENDINGS_BESIDE_POSTS: u32 = 8;

/// Sendings of one post at most; what is still not acked is left to the exchange of lists.
const POST_TRIES_MAX: u32 = 5;

/// Names whose record still has to be told, those told least first; newest record wins.
///
/// Each name waits in the queue of the number of times that it was told. A name that is pushed anew leaves its old place
/// behind as a stale one, which is skipped, and swept once the stale ones are as many as the names: so the whole is
/// bounded by twice the member list.
#[derive(Debug, Default)]
pub(super) struct Rumours {
    /// Times told, and the push that counts. Never iterated: its order means nothing.
    told: NameMap<(u32, u64)>,
    queues: Vec<VecDeque<(NodeName, u64)>>,
    places: usize,
    pushes: u64,
}

impl Rumours {
    pub(super) fn push(&mut self, name: &NodeName) {
        self.pushes += 1;
        self.told.insert(name.clone(), (0, self.pushes));
        self.place(0, name.clone(), self.pushes);
        if self.places > 2 * self.told.len() {
            self.sweep();
        }
    }

    /// Names, and their places in the queues.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.told.len(), self.places)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    fn place(&mut self, times: u32, name: NodeName, push: u64) {
        let queue = times as usize;
        if self.queues.len() <= queue {
            self.queues.resize_with(queue + 1, VecDeque::new);
        }
        self.queues[queue].push_back((name, push));
        self.places += 1;
    }

    fn sweep(&mut self) {
        for (times, queue) in (0..).zip(&mut self.queues) {
            queue.retain(|(name, push)| self.told.get(name) == Some(&(times, *push)));
        }
        self.places = self.told.len();
    }

    /// Takes names, those told least first and longest waiting first among them, as long as `tell` tells them; each is
    /// told `limit` times in all. A name that `tell` does not know any more is dropped.
    fn tell(&mut self, limit: u32, mut tell: impl FnMut(&NodeName) -> Telling) {
        let mut told = Vec::new();
        'queues: for times in 0..self.queues.len() {
            while let Some((name, push)) = self.queues[times].pop_front() {
                self.places -= 1;
                if self.told.get(&name) != Some(&(times as u32, push)) {
                    continue;
                }
                match tell(&name) {
                    Telling::Told => told.push((times as u32 + 1, name, push)),
                    Telling::Unknown => {
                        self.told.remove(&name);
                    }
                    Telling::NoRoom => {
                        self.queues[times].push_front((name, push));
                        self.places += 1;
                        break 'queues;
                    }
                }
            }
        }
        for (times, name, push) in told {
            if times < limit {
                self.told.insert(name.clone(), (times, push));
                self.place(times, name, push);
            } else {
                self.told.remove(&name);
            }
        }
    }
}

/// How often each of `live` nodes sends a rumour.
fn sendings(live: usize) -> u32 {
    if live <= ACKED_NODES_MAX {
        return SENDINGS_BESIDE_POSTS;
    }
    ((live.max(1) as f64).ln() + SENDINGS_BEYOND_LOG).ceil() as u32
}

/// What became of one rumour.
enum Telling {
    Told,
    Unknown,
    /// It does not fit any more; nothing further is tried.
    NoRoom,
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
        let limit = sendings(self.members.live().len());
        let before = packet.updates.len();
        let mut rumours = std::mem::take(&mut self.rumours);
        rumours.tell(limit, |name| {
            let Some(update) = self.update_of(now, name) else { return Telling::Unknown };
            let len = wire::update_len(&update);
            if len > room {
                return Telling::NoRoom;
            }
            if packet.updates[..before].iter().all(|other| other.name != *name) {
                room -= len;
                packet.updates.push(update);
            }
            Telling::Told
        });
        self.rumours = rumours;
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
        let live = self.members.live();
        let own = live.binary_search(&self.config.node).ok();
        // The own place in the list is passed over: what is drawn at or behind it means the next one.
        let others = live.len() - usize::from(own.is_some());
        let drawn = rand::seq::index::sample(&mut self.rng, others, FANOUT.min(others));
        let chosen = drawn.iter().map(|at| &live[at + usize::from(own.is_some_and(|own| at >= own))]);
        let chosen = chosen.filter_map(|name| self.members.get(name));
        for addr in chosen.map(|member| member.addr).collect::<Vec<_>>() {
            self.send(now, addr, Via::Datagram, Body::Gossip { seq: 0 }, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn design_3_8_sendings_grow_with_the_logarithm() {
        for (live, times) in [(1, 8), (32, 8), (33, 13), (99, 14), (100, 14), (1000, 16), (4096, 18)] {
            assert_eq!(sendings(live), times, "n={live}");
        }
    }

    #[test]
    fn rumours_told_least_come_first_and_stale_places_are_swept() {
        let name = |text: &str| text.parse::<NodeName>().expect("a name");
        let mut rumours = Rumours::default();
        let tell = |rumours: &mut Rumours, room: usize| {
            let mut told = Vec::new();
            rumours.tell(2, |name| {
                if told.len() == room {
                    return Telling::NoRoom;
                }
                told.push(name.to_string());
                Telling::Told
            });
            told
        };
        rumours.push(&name("a"));
        rumours.push(&name("b"));
        assert_eq!(tell(&mut rumours, 1), ["a"]);
        rumours.push(&name("c"));
        assert_eq!(tell(&mut rumours, 2), ["b", "c"]);
        assert_eq!(tell(&mut rumours, 9), ["a", "b", "c"], "the second and last time");
        assert!(rumours.is_empty());
        for _ in 0..1000 {
            rumours.push(&name("a"));
        }
        assert!(rumours.places <= 3, "{} places for one name", rumours.places);
        assert_eq!(tell(&mut rumours, 9), ["a"]);
        rumours.tell(2, |_| Telling::Unknown);
        assert!(rumours.is_empty());
    }
}
