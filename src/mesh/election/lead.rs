//! Being the leader, and following one: heartbeats, the lease, and changes of the set of voters.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    Election, Event, Promise, Role, Standing,
    message::Body,
    voters::{AUTO_VOTERS_MAX, VOTERS_MAX, Voters, VotersId},
};
use crate::mesh::node::NodeName;

/// Heartbeat rounds whose send is remembered: 2 s of them; a later answer prolongs nothing.
const ROUNDS_MAX: usize = 8;

/// A voter that membership does not know is removed by a leader of this age: by then the leader knows all members.
const UNKNOWN_AFTER: Duration = Duration::from_secs(60);

/// What a leader keeps.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Lead {
    since: Instant,
    heartbeat_at: Instant,
    round: u64,
    /// When the newest rounds were sent.
    sent: VecDeque<(u64, Instant)>,
    /// Per voter when what it last promised to was sent.
    promised: BTreeMap<NodeName, Instant>,
    /// Which set of voters each has, as of its last answer.
    holds: BTreeMap<NodeName, VotersId>,
}

impl Lead {
    pub(super) fn new(now: Instant, asked_at: Instant, granted: &BTreeSet<NodeName>) -> Self {
        Self {
            since: now,
            heartbeat_at: now,
            round: 0,
            sent: VecDeque::new(),
            promised: granted.iter().map(|name| (name.clone(), asked_at)).collect(),
            holds: BTreeMap::new(),
        }
    }

    pub(super) fn due(&self) -> Instant {
        self.heartbeat_at
    }
}

impl Election {
    pub(super) fn begin_lead(&mut self, now: Instant, lead: Lead) {
        let term = self.ballot.term;
        self.role = Role::Leader(lead);
        self.led_term = term;
        self.promise = None;
        self.leader = None;
        if let Some(set) = self.ballot.voters.as_ref().map(|set| set.in_term(term))
            && set.id() != self.voters_id()
        {
            self.ballot.voters = Some(set.clone());
            self.save();
            self.events.push_back(Event::VotersChanged(set));
        }
        self.events.push_back(Event::LeaderChanged { leader: Some(self.config.node.clone()), term });
        self.run_lead(now);
    }

    /// The end of the lease: the promise of a quorum, this node's own among them, counted from what it answered. None
    /// while too few have promised anything.
    pub(super) fn lease_until(&self, lead: &Lead) -> Option<Instant> {
        self.lease_by(lead, self.voters()?)
    }

    /// The same, if `voters` were those in use.
    fn lease_by(&self, lead: &Lead, voters: &Voters) -> Option<Instant> {
        let others = voters.names().iter().filter(|name| **name != self.config.node);
        let mut sent: Vec<Instant> = others.filter_map(|name| lead.promised.get(name).copied()).collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        let needed = voters.quorum() - usize::from(voters.contains(&self.config.node));
        match needed {
            // The only voter has only itself to ask.
            0 => Some(lead.heartbeat_at + self.config.timing.lease),
            needed => Some(*sent.get(needed - 1)? + self.config.timing.lease),
        }
    }

    pub(super) fn run_lead(&mut self, now: Instant) {
        let Role::Leader(lead) = &mut self.role else { return };
        if lead.heartbeat_at > now {
            return;
        }
        lead.heartbeat_at = now + self.config.timing.heartbeat;
        lead.round += 1;
        let round = lead.round;
        lead.sent.push_back((round, now));
        if lead.sent.len() > ROUNDS_MAX {
            lead.sent.pop_front();
        }
        let message = self.message(Body::Heartbeat { round });
        self.broadcast(&message);
        self.change_voters(now);
    }

    /// At most one node more or less, and only after a quorum of the set has it in this leader's term: two successive
    /// sets then always have a voter in common that knows of the later one.
    fn change_voters(&mut self, now: Instant) {
        let Some(set) = self.voters().filter(|set| !set.is_fixed()) else { return };
        let Role::Leader(lead) = &self.role else { return };
        let holds = |name: &&NodeName| {
            **name == self.config.node || lead.holds.get(*name).is_some_and(|held| *held == set.id())
        };
        if set.names().iter().filter(holds).count() < set.quorum() {
            return;
        }
        let knows_all = now >= lead.since + UNKNOWN_AFTER;
        let is_gone = |name: &&NodeName| {
            let standing = self.peers.get(*name);
            **name != self.config.node && standing.map_or(knows_all, |standing| *standing == Standing::Leaving)
        };
        let is_new = |(name, standing): &(&NodeName, &Standing)| **standing == Standing::Alive && !set.contains(name);
        let gone = set.names().iter().find(is_gone);
        let new = self.peers.iter().find(is_new).map(|(name, _)| name);
        let change = gone.or(new.filter(|_| set.names().len() < AUTO_VOTERS_MAX.min(VOTERS_MAX)));
        let Some(next) = change.and_then(|name| set.toggled(name)) else { return };
        // A leader whose lease stands on the promise of a voter that leaves, as while another has just started and promises
        // nothing yet, keeps that voter until it has others.
        let heartbeat = self.config.timing.heartbeat;
        if gone.is_some() && self.lease_by(lead, &next).is_none_or(|until| until <= now + heartbeat) {
            return;
        }
        self.ballot.voters = Some(next.clone());
        self.save();
        self.events.push_back(Event::VotersChanged(next.clone()));
        if let Role::Leader(lead) = &mut self.role {
            // A voter that comes back starts anew.
            lead.promised.retain(|name, _| next.contains(name));
            lead.holds.retain(|name, _| next.contains(name));
        }
        let message = self.message(Body::Set { set: next });
        self.broadcast(&message);
        self.lapse(now);
    }

    pub(super) fn on_heartbeat(&mut self, now: Instant, from: &NodeName, term: u64, round: u64) {
        let is_promised = self.promise.as_ref().is_some_and(|promise| promise.until > now && promise.to != *from);
        // What an earlier leader said may still be under way.
        if term < self.led_term || matches!(self.role, Role::Leader(_)) {
            return self.send_hint(now, from);
        }
        let granted = self.is_voter() && !is_promised && now >= self.abstain_until;
        if granted {
            self.led_term = term;
            self.promise = Some(Promise { to: from.clone(), until: now + self.config.timing.promise });
            if !matches!(self.role, Role::Follower) {
                self.role = Role::Follower;
            }
            self.raise_term(term);
            self.rest(now);
        }
        if !is_promised {
            self.know(from, term, now + self.config.timing.promise);
        }
        let mut reply = self.message(Body::HeartbeatReply { round, granted });
        // The answer is about the leader's term; this node's own may be higher after a vote that nobody won.
        reply.term = term;
        self.send_message(from, reply);
    }

    pub(super) fn on_heartbeat_reply(
        &mut self,
        now: Instant,
        from: &NodeName,
        term: u64,
        holds: VotersId,
        round: u64,
        granted: bool,
    ) {
        let is_voter = self.voters().is_some_and(|voters| voters.contains(from));
        if !is_voter || term != self.ballot.term {
            return;
        }
        let Role::Leader(lead) = &mut self.role else { return };
        lead.holds.insert(from.clone(), holds);
        if granted && let Some((_, sent)) = lead.sent.iter().find(|(sent, _)| *sent == round) {
            let promised = lead.promised.entry(from.clone()).or_insert(*sent);
            *promised = (*promised).max(*sent);
        }
        self.change_voters(now);
    }

    /// How long the lease still holds; zero for everybody but the leader.
    #[must_use]
    pub fn lease_left(&self, now: Instant) -> Duration {
        match &self.role {
            Role::Leader(lead) => {
                self.lease_until(lead).map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
            }
            _ => Duration::ZERO,
        }
    }
}
