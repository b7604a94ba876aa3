//! What is believed of what is heard: records merge by their order (SWIM §4.2), and a sender's header is first-hand.

use std::{net::SocketAddr, time::Instant};

use super::{
    Body, Event, Packet, Swim, Via,
    config::HEARSAY_MAX,
    event::{ChangeReason, MemberChange},
    member::{Key, Member, Source},
    message::Update,
    rule::Rule,
};
use crate::mesh::node::{NodeName, NodeStatus};

/// Why a verdict of others may be wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum VerdictDoubt {
    /// Its subject was heard here after it: there is the usual time to refute.
    Heard,
    /// A cut may have lain between the subject or this node and those that gave it: they were not ALIVE here all the time
    /// since, or had no time to be missed; then this side has not long heard of a suspicion. A last round decides soon.
    Cut,
}

impl Swim {
    /// Takes the updates of a packet, and notes of whom they are surer signs than a rumour.
    pub(super) fn take_updates(&mut self, now: Instant, from: SocketAddr, via: Via, packet: &Packet) {
        let is_list = self.is_list_of_trust(from, via, packet);
        let (plausible, others): (Vec<_>, Vec<_>) =
            packet.updates.iter().partition(|update| self.is_plausible(now, update.epoch_ms));
        if let Some(update) = others.first() {
            self.events.push_back(Event::EpochRefused { name: update.name.clone(), epoch_ms: update.epoch_ms });
        }
        for update in plausible {
            let own = update.name == packet.node && via == Via::Datagram && update.addr == from;
            if is_list || own || self.has_room_for(update) {
                self.learn(now, update, &packet.node);
            }
            if is_list {
                self.members.vouch(&update.name, Source::List);
            }
        }
        if via == Via::Datagram && self.members.get(&packet.node).is_some_and(|member| member.addr == from) {
            self.members.vouch(&packet.node, Source::Heard);
            self.members.note(&packet.node, |member| {
                if member.boot_epoch_ms == packet.epoch_ms {
                    member.heard_at = Some(now);
                }
            });
        }
    }

    /// Whether the packet is a list of a member that was heard itself, or of a seed that was asked: such may name anybody.
    fn is_list_of_trust(&self, from: SocketAddr, via: Via, packet: &Packet) -> bool {
        let Body::Sync { seq, .. } = packet.body else { return false };
        let known = self.members.get(&packet.node).filter(|member| member.source == Source::Heard);
        known.is_some_and(|member| via == Via::Stream || member.addr == from) || self.seeds.asked(seq)
    }

    /// Whether one more may be known by rumour; what is said of others changes records, or is refused by their floor.
    fn has_room_for(&self, update: &Update) -> bool {
        let is_refused = || self.members.floor(&update.name).is_some_and(|floor| update.key() < floor);
        self.members.get(&update.name).is_some() || is_refused() || self.members.hearsay() < HEARSAY_MAX
    }

    /// Takes one update said by `from`.
    pub(super) fn learn(&mut self, now: Instant, update: &Update, from: &NodeName) {
        if update.name == self.config.node {
            return self.on_own_record(now, update);
        }
        if let Some(doubt) = self.doubt_of_verdict(now, update, from) {
            self.learn(now, &Update { status: NodeStatus::Suspected, accusers: Vec::new(), ..update.clone() }, from);
            if doubt == VerdictDoubt::Cut {
                self.plan_verification(now, &update.name);
            }
            return;
        }
        match self.floor(&update.name) {
            Some(floor) if self.config.is_older(update.key(), floor) => return self.tell_forgotten(now, update, from),
            Some(floor) if update.key() == floor => return self.merge_accusers(now, update),
            // Nobody gets to know of a node by its end, unless others still show it.
            None if update.status == NodeStatus::Down && update.age >= self.config.forget_down_after => return,
            None if update.status == NodeStatus::Leaving && update.age >= self.config.forget_left_after => return,
            _ => {}
        }
        let before = self.members.get(&update.name).cloned();
        let mut member = Member::from_update(update, now);
        if let Some(before) = &before {
            member.rtt = before.rtt;
            // At a new address it has to be heard anew.
            member.source = if before.addr == member.addr { before.source } else { before.source.min(Source::List) };
            if before.boot_epoch_ms == member.boot_epoch_ms {
                // What was refuted says nothing of another process.
                member.refuted_at.clone_from(&before.refuted_at);
            }
            let is_same = (before.addr, before.boot_epoch_ms) == (member.addr, member.boot_epoch_ms);
            member.heard_at = before.heard_at.filter(|_| is_same);
        }
        let first_hand = update.name == *from;
        let reason = if first_hand { ChangeReason::Direct } else { ChangeReason::Rumour };
        if !self.replace(now, member, reason) {
            return;
        }
        let same_process = before.as_ref().filter(|before| before.boot_epoch_ms == update.epoch_ms);
        match same_process {
            Some(before) if update.status == NodeStatus::Alive => self.exonerate(now, before),
            // What was suspected is gone, or worse is known of it.
            _ => drop(self.suspicions.remove(&update.name)),
        }
        if update.status == NodeStatus::Suspected {
            self.start_suspicion(now, &update.name, &update.accusers);
            self.plan_corroboration(now, &update.name);
            self.events.push_back(Event::Suspected { name: update.name.clone(), local: false });
        }
        if first_hand {
            self.broadcast(now, &update.name);
            if before.is_some_and(|before| before.status == NodeStatus::Down) {
                self.request_lists(now, update.addr);
            }
        } else {
            self.spread(now, &update.name);
        }
    }

    /// Why a peer that others called DOWN may be well. Then the verdict is taken for a suspicion without an accuser whom it
    /// would be held against: a peer that lives refutes it, and comes back on the other side without having gone here.
    /// memberlist takes every such rumour so (`mergeState`); here what the own side says of a node is believed, when that
    /// was silent and suspected here for some time.
    fn doubt_of_verdict(&self, now: Instant, update: &Update, from: &NodeName) -> Option<VerdictDoubt> {
        let member = self.members.get(&update.name).filter(|member| member.is_live())?;
        let is_verdict = update.status == NodeStatus::Down && update.name != *from;
        if !is_verdict || member.boot_epoch_ms != update.epoch_ms || member.key() >= update.key() {
            return None;
        }
        if member.was_heard_since(now, update.age) {
            return Some(VerdictDoubt::Heard);
        }
        let was_here = self.members.get(from).is_some_and(|teller| teller.was_alive_since(now, update.age));
        (!was_here || !self.is_long_suspected(now, &update.name)).then_some(VerdictDoubt::Cut)
    }

    /// The order below which nothing is believed of `name`.
    fn floor(&self, name: &NodeName) -> Option<Key> {
        if self.config.follows(Rule::Floor) {
            return self.members.floor(name);
        }
        self.members.get(name).map(Member::key)
    }

    /// A node that was forgotten as DOWN lives and says so with its old record: it is told what it is held for, and comes
    /// back with a higher incarnation. Else it would be refused for as long as its last record is remembered.
    fn tell_forgotten(&mut self, now: Instant, update: &Update, from: &NodeName) {
        if !self.config.follows(Rule::TellForgotten) {
            return;
        }
        let Some(last) = self.members.last_of_forgotten(now, update).filter(|_| update.name == *from) else { return };
        let packet = self.packet(Body::Gossip { seq: 0 }, vec![last]);
        self.transmit(update.addr, Via::Datagram, &packet);
    }

    /// Puts a peer's new record in place and reports what changed; `false` when the list is full.
    pub(super) fn replace(&mut self, now: Instant, member: Member, reason: ChangeReason) -> bool {
        let before = self.members.get(&member.name);
        let same = before.is_some_and(|before| {
            (before.status, before.addr, before.boot_epoch_ms) == (member.status, member.addr, member.boot_epoch_ms)
        });
        let change = MemberChange {
            name: member.name.clone(),
            from: before.map(|before| before.status),
            to: member.status,
            addr: member.addr,
            epoch_ms: member.boot_epoch_ms,
            reason,
        };
        if !self.members.put(member, now) {
            return false;
        }
        if !same {
            self.events.push_back(Event::MemberChanged(change));
        }
        true
    }

    /// The header is what the sender says of itself: it lives, in this epoch, with this incarnation.
    pub(super) fn on_header(&mut self, now: Instant, reply_to: SocketAddr, packet: &Packet) {
        let Some(member) = self.members.get(&packet.node) else {
            return self.request_record(now, reply_to);
        };
        if packet.epoch_ms > member.boot_epoch_ms {
            return self.request_record(now, reply_to);
        }
        let newer = packet.incarnation > member.incarnation;
        if packet.epoch_ms == member.boot_epoch_ms && newer && member.status != NodeStatus::Leaving {
            let mut update = member.to_update(now);
            update.status = NodeStatus::Alive;
            update.incarnation = packet.incarnation;
            return self.learn(now, &update, &packet.node);
        }
        // A peer that is held for worse than it is, or an earlier process of its name, is told so. The ack of a ping
        // carries it anyway.
        let current = packet.epoch_ms == member.boot_epoch_ms;
        let misjudged = current && matches!(member.status, NodeStatus::Suspected | NodeStatus::Down) && !newer;
        let outdated = !current && member.is_live();
        let is_ping = matches!(packet.body, Body::Ping { .. });
        if (misjudged && !is_ping) || outdated {
            let updates = self.update_of(now, &packet.node).into_iter().collect();
            let packet = self.packet(Body::Gossip { seq: 0 }, updates);
            self.transmit(reply_to, Via::Datagram, &packet);
        }
    }

    /// Forgets members DOWN or LEAVING for their documented time.
    pub(super) fn forget_gone(&mut self, now: Instant) {
        let config = &self.config;
        let (down, left, keep) = (config.forget_down_after, config.forget_left_after, config.remember_forgotten_for);
        for name in self.members.forget(now, down, left, keep) {
            self.events.push_back(Event::Forgotten { name });
        }
    }
}
