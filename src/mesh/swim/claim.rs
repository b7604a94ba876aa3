//! This node's own name: refutation of what is said of it (SWIM §4.2), and what happens when another process has it too.
//!
//! A record of this name at another address is either what an earlier process left behind or another live process. A
//! claim sent there tells: the one that started later gives the name up, but only to an answer that repeats the number
//! of its own claim. So neither a forged claim nor a late one of a process that is gone ends a node. When nobody answers
//! and the record has a higher epoch (a clock that went back), this node raises its own epoch above it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Body, Event, Packet, Swim, Via, message::Update, rule::Rule};
use rand::RngExt as _;

use crate::mesh::{node::NodeStatus, wire::membership::COUNTER_MAX};

/// Claims sent before silence is taken as an answer.
const TRIES_MAX: u32 = 3;

/// Time between them.
const TRY_INTERVAL: Duration = Duration::from_millis(300);

/// The question whether another process has this name.
#[derive(Debug)]
pub(super) struct Contest {
    addr: SocketAddr,
    epoch_ms: u64,
    /// What an answer must repeat; never 0.
    nonce: u64,
    tries: u32,
    pub(super) due: Instant,
}

/// Who claims this node's name.
struct Theirs {
    boot_ms: u64,
    addr: SocketAddr,
    epoch_ms: u64,
}

impl Swim {
    /// Something is said of this node.
    pub(super) fn on_own_record(&mut self, now: Instant, update: &Update) {
        let me = self.me();
        if update.addr != self.config.addr {
            if update.status == NodeStatus::Alive || update.epoch_ms >= me.boot_epoch_ms {
                self.contest(now, update.addr, update.epoch_ms);
            }
            return;
        }
        if update.epoch_ms > me.boot_epoch_ms {
            // This address is this process's alone: the record is of an earlier one, whose clock was ahead.
            self.raise_epoch(now, update.epoch_ms);
        } else if update.epoch_ms == me.boot_epoch_ms
            && update.key() > me.key()
            && self.config.follows(Rule::Refutation)
        {
            self.refute(now, update);
        }
    }

    fn refute(&mut self, now: Instant, update: &Update) {
        if update.incarnation + 1 >= COUNTER_MAX {
            return self.raise_epoch(now, update.epoch_ms);
        }
        self.change_me(now, |me| me.incarnation = update.incarnation + 1);
        if update.status != NodeStatus::Alive {
            // Others could not reach this node: maybe it is too slow to answer (Lifeguard §IV.A).
            self.worsen_health(1);
            self.events.push_back(Event::Refuted { incarnation: update.incarnation + 1 });
        }
        self.broadcast_me(now);
    }

    fn raise_epoch(&mut self, now: Instant, above: u64) {
        if above + 1 >= COUNTER_MAX || !self.config.follows(Rule::RaiseEpoch) {
            return;
        }
        self.change_me(now, |me| {
            me.boot_epoch_ms = above + 1;
            me.incarnation = 0;
        });
        self.events.push_back(Event::EpochRaised { epoch_ms: above + 1 });
        self.broadcast_me(now);
    }

    pub(super) fn broadcast_me(&mut self, now: Instant) {
        let me = self.config.node.clone();
        self.broadcast(now, &me);
    }

    /// A packet under this node's own name: its own, looped back, or another process's.
    pub(super) fn on_namesake(&mut self, now: Instant, from: SocketAddr, via: Via, packet: &Packet) {
        match &packet.body {
            Body::Claim { boot_ms, addr, nonce, echo } => {
                let theirs = Theirs { boot_ms: *boot_ms, addr: *addr, epoch_ms: packet.epoch_ms };
                self.on_claim(now, &theirs, *nonce, *echo);
            }
            Body::Sync { seq, .. } => match packet.updates.iter().find(|update| update.name == self.config.node) {
                Some(own) if own.addr == self.config.addr => {
                    let name = self.config.node.clone();
                    self.on_seed_answer(now, *seq, &name);
                }
                Some(other) => self.contest(now, other.addr, other.epoch_ms),
                None => {}
            },
            _ if via == Via::Datagram && packet.epoch_ms != self.epoch_ms() => {
                self.contest(now, from, packet.epoch_ms);
            }
            _ => {}
        }
    }

    /// Asks at `addr` whether another process has this name. A node that is leaving lets its successor be.
    fn contest(&mut self, now: Instant, addr: SocketAddr, epoch_ms: u64) {
        if self.me().status == NodeStatus::Leaving || !self.config.follows(Rule::Contest) {
            return;
        }
        if !self.is_plausible(now, epoch_ms) {
            return;
        }
        let nonce = self.rng.random_range(1..=u64::MAX);
        let contest = self.claim.get_or_insert(Contest { addr, epoch_ms, nonce, tries: 0, due: now });
        contest.epoch_ms = contest.epoch_ms.max(epoch_ms);
    }

    pub(super) fn run_contest(&mut self, now: Instant) {
        let Some(contest) = self.claim.as_mut().filter(|contest| contest.due <= now) else { return };
        if contest.tries < TRIES_MAX {
            contest.tries += 1;
            contest.due = now + TRY_INTERVAL;
            let (addr, nonce) = (contest.addr, contest.nonce);
            self.send_claim(addr, nonce, 0);
            return;
        }
        let epoch_ms = contest.epoch_ms;
        self.claim = None;
        if epoch_ms >= self.epoch_ms() {
            self.raise_epoch(now, epoch_ms);
        }
    }

    fn send_claim(&mut self, to: SocketAddr, nonce: u64, echo: u64) {
        let claim = Body::Claim { boot_ms: self.config.boot_epoch_ms, addr: self.config.addr, nonce, echo };
        let packet = self.packet(claim, Vec::new());
        self.transmit(to, Via::Datagram, &packet);
    }

    /// Another process claims this name: the older keeps it, the lower address of two equally old ones.
    fn on_claim(&mut self, now: Instant, theirs: &Theirs, nonce: u64, echo: u64) {
        let mine = (self.config.boot_epoch_ms, self.config.addr);
        if (theirs.boot_ms, theirs.addr) == mine || self.me().status == NodeStatus::Leaving {
            return;
        }
        let asked = self.claim.as_ref().filter(|contest| contest.addr == theirs.addr);
        let answers = asked.is_some_and(|contest| contest.nonce == echo);
        if (theirs.boot_ms, theirs.addr) > mine {
            let asking = asked.map_or(0, |contest| contest.nonce);
            self.send_claim(theirs.addr, asking, nonce);
        } else if answers {
            self.name_taken = true;
            self.events.push_back(Event::NameTaken { boot_epoch_ms: theirs.boot_ms, addr: theirs.addr });
            return;
        }
        self.contest(now, theirs.addr, theirs.epoch_ms);
    }
}
