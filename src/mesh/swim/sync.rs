//! Repair of what gossip missed: a hash over the live members in each ping and ack, and an exchange of lists with a peer
//! whose hash stays different.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Body, Swim, Via};
use crate::mesh::node::NodeName;

/// How long news may be under way before a different hash means that some was lost.
const DOUBT_TIME: Duration = Duration::from_secs(2);

/// Shortest time between two questions that a stranger's packets can cause.
const ASK_INTERVAL_MIN: Duration = Duration::from_millis(20);

/// A peer whose hash differed.
#[derive(Debug)]
pub(super) struct Doubt {
    peer: NodeName,
    /// Own hash then: when it has changed since, news was under way.
    digest: u64,
    pub(super) due: Instant,
    /// Whether the peer was asked again; the next answer decides.
    asked: bool,
}

impl Swim {
    /// Compares a peer's hash with the own one. One doubt is held at a time, so exchanges are at least 2 s apart.
    pub(super) fn compare_digest(&mut self, now: Instant, peer: &NodeName, theirs: u64) {
        let mine = self.members.digest();
        if theirs == 0 {
            return;
        }
        let Some(doubt) = &self.doubt else {
            if theirs != mine {
                let due = now + DOUBT_TIME;
                self.doubt = Some(Doubt { peer: peer.clone(), digest: mine, due, asked: false });
            }
            return;
        };
        if doubt.peer != *peer {
            return;
        }
        if theirs == mine {
            self.doubt = None;
        } else if doubt.asked && doubt.digest == mine {
            self.doubt = None;
            if let Some(addr) = self.members.get(peer).map(|member| member.addr) {
                self.request_lists(now, addr);
            }
        }
    }

    /// Asks a doubted peer for its hash again, or drops a doubt that time has answered.
    pub(super) fn run_doubt(&mut self, now: Instant) {
        let Some(doubt) = self.doubt.as_mut().filter(|doubt| doubt.due <= now) else { return };
        let peer = doubt.peer.clone();
        let ask = !doubt.asked && doubt.digest == self.members.digest();
        doubt.asked = true;
        doubt.due = now + DOUBT_TIME;
        match self.members.get(&peer).filter(|member| ask && member.is_live()).map(|member| member.addr) {
            Some(addr) => {
                let seq = self.next_seq();
                self.ping(now, addr, Via::Datagram, seq, &peer);
            }
            None => self.doubt = None,
        }
    }

    /// Sends the whole list and asks for the peer's.
    pub(super) fn request_lists(&mut self, now: Instant, to: SocketAddr) {
        let seq = self.next_seq();
        self.send_list(now, to, seq, true);
    }

    /// Asks a sender that is not known for its record.
    pub(super) fn request_record(&mut self, now: Instant, to: SocketAddr) {
        if self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < ASK_INTERVAL_MIN) {
            return;
        }
        self.asked_at = Some(now);
        let seq = self.next_seq();
        self.send_own_record(now, to, seq);
    }

    /// A join, a list, or an answer; what it says was learned already.
    pub(super) fn on_sync(
        &mut self,
        now: Instant,
        reply_to: SocketAddr,
        seq: u64,
        reply_wanted: bool,
        from: &NodeName,
    ) {
        if reply_wanted {
            self.send_list(now, reply_to, seq, false);
        } else {
            self.on_seed_answer(now, seq, from);
        }
    }

    fn send_list(&mut self, now: Instant, to: SocketAddr, seq: u64, reply_wanted: bool) {
        let members = self.members.by_name();
        let updates = members.iter().filter_map(|member| self.update_of(now, &member.name)).collect();
        let packet = self.packet(Body::Sync { seq, reply_wanted }, updates);
        self.transmit(to, Via::Datagram, &packet);
    }
}
