//! Who leads the cluster: terms, votes and leases, as a pure machine.
//!
//! *Leases.* Each vote, and each answer to a heartbeat, is a *promise* of a voter: for some time it votes for nobody else.
//! A candidate that a quorum of voters has promised leads for a *lease*, counted from the instant at which it sent what
//! was answered (Gray and Cheriton 1989 §2; Liskov's "promise not to vote" of leader leases). A promise outlasts the lease
//! that is built on it even where each of the two clocks is 10 % wrong, so two leases that overlap in time
//! would need one voter with two promises at once. That argument needs no term, no synchronised clock and no disk; terms
//! name leaders for people and fence what an earlier one did. A leader steps down when its lease runs out, not when it
//! hears of a higher term: nobody can be elected before.
//!
//! *Elections.* Raft's (Ongaro and Ousterhout 2014 §5.2) with randomised timeouts and a poll before the vote (Ongaro's
//! thesis §9.6): whoever cannot be elected never raises a term, so a minority that comes back disturbs nobody. A voter
//! that is asked while its promise holds refuses and names the leader: a node that the leader does not reach, but another
//! voter does, keeps polling in vain and leaves the leader in place.
//!
//! *Amnesia.* A ballot (term, vote, set of voters) goes to [`Election::poll_ballot`] before anything that depends on it
//! leaves; with a data directory the driver answers [`Election::handle_saved`] once it is on the disk. Promises are in
//! memory alone. So a process that starts grants nothing until all that an earlier one of its name may have promised has
//! lapsed. Without a data directory a term may so name two leaders, one after the other, but never at one instant.
//!
//! *Voters.* Either the operator's (`--mesh-voters`), or those that the cluster agreed on: the first set is made by the
//! first of a quorum of the configured peers that all know of none (`bootstrap`); later the leader adds nodes that are
//! ALIVE, up to [`voters::AUTO_VOTERS_MAX`], and removes those that left or were forgotten, one at a time, the next after
//! a quorum has the last (`lead`; logless reconfiguration, Schultz et al. 2021 §4). Failures change no set.

mod bootstrap;
mod campaign;
mod lead;
pub mod message;
#[cfg(test)]
mod tests;
pub mod voters;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use self::{
    message::{Body, Message, TERM_MAX, Transmit},
    voters::{Voters, VotersId},
};
use crate::mesh::node::NodeName;

/// Messages that wait for the ballot to be saved; when full the oldest is dropped, as if the network had lost it.
const HELD_MAX: usize = 64;

/// How long a node that is no voter believes what it was told of the leader.
const HINT_FOR: Duration = Duration::from_secs(2);

/// Between two questions of a node that does not hear the leader itself.
const QUERY_INTERVAL: Duration = Duration::from_secs(1);

/// Durations of the protocol.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Timing {
    /// Between two heartbeats. Default 250 ms.
    pub heartbeat: Duration,
    /// How long a leader leads, on its own clock, after it sent what a quorum answered. Default 810 ms: 900 ms of true time
    /// where that clock is 10 % slow.
    pub lease: Duration,
    /// How long a voter keeps a promise, on its own clock. Default 990 ms: 900 ms of true time where it is 10 % fast.
    pub promise: Duration,
    /// Shortest silence after which a voter wants to lead. Default 1 s; not below the promise.
    pub timeout_min: Duration,
    /// Longest. Default 2 s.
    pub timeout_max: Duration,
    /// How long a node without peers waits for others before it makes itself the only voter. Default 5 s.
    pub alone: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            lease: Duration::from_millis(810),
            promise: Duration::from_millis(990),
            timeout_min: Duration::from_secs(1),
            timeout_max: Duration::from_secs(2),
            alone: Duration::from_secs(5),
        }
    }
}

/// Settings of [`Election`].
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// This node.
    pub node: NodeName,
    /// The operator's voters; none: `auto`.
    pub fixed: Option<Voters>,
    /// How many nodes the operator's list of peers speaks of, this one included; at least 1. The first set of voters needs
    /// a quorum of so many.
    pub expected: usize,
    /// What an earlier process of this name saved.
    pub saved: Option<Ballot>,
    /// Durations.
    pub timing: Timing,
}

/// What a voter must not forget.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Ballot {
    /// The newest term that it took part in.
    pub term: u64,
    /// Whom it voted for in that term.
    pub voted_for: Option<NodeName>,
    /// The set of voters that it uses; none before there is one.
    pub voters: Option<Voters>,
}

/// News for the rest of the program.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Another node leads than before, or nobody as far as is known here.
    LeaderChanged {
        /// Who; none while there is none.
        leader: Option<NodeName>,
        /// The newest term known here.
        term: u64,
    },
    /// This node asks for votes.
    Campaign {
        /// In which term.
        term: u64,
    },
    /// Another set of voters is in use.
    VotersChanged(Voters),
    /// A peer was given another `--mesh-voters`: neither will vote for the other.
    VotersDiffer {
        /// Who.
        peer: NodeName,
    },
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Promise {
    to: NodeName,
    until: Instant,
}

/// Who leads, as far as is known here.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Leader {
    /// Who.
    pub name: NodeName,
    /// In which term.
    pub term: u64,
    /// Until when this is known, on this node's clock; of this node itself the end of its lease.
    pub until: Instant,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Role {
    Follower,
    Polling(campaign::Campaign),
    Candidate(campaign::Campaign),
    Leader(lead::Lead),
}

/// What membership says of a node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Standing {
    /// ALIVE or INIT.
    Alive,
    /// SUSPECTED or DOWN.
    Silent,
    /// LEAVING: it will not come back by itself.
    Leaving,
}

/// The election machine of one node. After each `handle_*` drain every `poll_*` to `None`: what waits there is bounded by
/// what one input can cause, a few messages per voter.
#[derive(Clone, Debug)]
pub struct Election {
    config: ElectionConfig,
    rng: Pcg64Mcg,
    born: Instant,
    ballot: Ballot,
    /// The highest term whose leader this node promised anything.
    led_term: u64,
    role: Role,
    promise: Option<Promise>,
    /// Nothing is promised before this.
    abstain_until: Instant,
    leader: Option<Leader>,
    /// When silence makes this node want to lead.
    campaign_due: Instant,
    query_due: Instant,
    set_query_due: Instant,
    peers: BTreeMap<NodeName, Standing>,
    /// When each peer last said that it knows of no voters.
    blank: BTreeMap<NodeName, Instant>,
    leaving: bool,
    /// Ballots given to the driver, and how many of them are on the disk.
    saves: u64,
    saved: u64,
    ballots: VecDeque<Ballot>,
    /// Messages that wait for the save of that number.
    held: VecDeque<(u64, Transmit)>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    differ_said: BTreeSet<NodeName>,
}

impl Election {
    /// A node that has heard of nobody. `seed` drives every random choice.
    #[must_use]
    pub fn new(config: ElectionConfig, now: Instant, seed: u64) -> Self {
        let mut ballot = config.saved.clone().unwrap_or_default();
        if let Some(fixed) = &config.fixed {
            ballot.voters = Some(fixed.clone());
        } else if ballot.voters.as_ref().is_some_and(Voters::is_fixed) {
            // The operator took a list back: what was fixed is the start of what may change.
            ballot.voters = ballot.voters.and_then(|set| Voters::new(ballot.term, 1, set.names().to_vec()).ok());
        }
        let abstain_until = now + config.timing.promise;
        let mut election = Self {
            rng: Pcg64Mcg::seed_from_u64(seed),
            born: now,
            led_term: 0,
            ballot,
            role: Role::Follower,
            promise: None,
            abstain_until,
            leader: None,
            campaign_due: abstain_until,
            query_due: now,
            set_query_due: now,
            peers: BTreeMap::new(),
            blank: BTreeMap::new(),
            leaving: false,
            saves: 0,
            saved: 0,
            ballots: VecDeque::new(),
            held: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            differ_said: BTreeSet::new(),
            config,
        };
        election.campaign_due = abstain_until + election.draw(Duration::ZERO, election.config.timing.timeout_min / 2);
        election
    }

    /// Takes one message of `from`, which membership or the transport vouches for.
    pub fn handle_message(&mut self, now: Instant, from: &NodeName, message: Message) {
        self.lapse(now);
        self.compare_voters(now, from, message.voters);
        let Message { term, voters, body } = message;
        match body {
            Body::Poll { set } => self.on_poll(now, from, term, set),
            Body::PollReply { granted } => self.on_poll_reply(now, from, term, granted),
            Body::Vote { set } => self.on_vote(now, from, term, set),
            Body::VoteReply { granted } => self.on_vote_reply(now, from, term, granted),
            Body::Heartbeat { round } => self.on_heartbeat(now, from, term, round),
            Body::HeartbeatReply { round, granted } => self.on_heartbeat_reply(now, from, term, voters, round, granted),
            Body::Resign => self.on_resign(now, from, term),
            Body::Query => self.send_hint(now, from),
            Body::Hint { leader, leader_term } => self.on_hint(now, from, voters, leader, leader_term),
            Body::Set { set } => self.adopt(now, set),
        }
        self.step(now);
    }

    /// Takes what membership says of all other nodes, whenever it changes.
    pub fn handle_peers(&mut self, now: Instant, peers: BTreeMap<NodeName, Standing>) {
        self.blank.retain(|name, _| peers.contains_key(name));
        self.peers = peers;
        self.step(now);
    }

    /// Takes anew how many nodes the operator's list of peers speaks of; see [`ElectionConfig::expected`].
    pub fn expect_nodes(&mut self, count: usize) {
        self.config.expected = count.max(1);
    }

    /// Takes word that the first `count` ballots of [`poll_ballot`](Self::poll_ballot) are on the disk, or need not be.
    pub fn handle_saved(&mut self, now: Instant, count: u64) {
        self.saved = self.saved.max(count.min(self.saves));
        while self.held.front().is_some_and(|(needs, _)| *needs <= self.saved) {
            self.transmits.extend(self.held.pop_front().map(|(_, transmit)| transmit));
        }
        self.count_votes(now);
        self.step(now);
    }

    /// This node leaves: it resigns and wants to lead no more. It votes until it ends.
    pub fn leave(&mut self, now: Instant) {
        self.leaving = true;
        if let Role::Leader(_) = self.role {
            self.step_down(now);
            self.leader = None;
            self.tell_leader();
            let message = self.message(Body::Resign);
            self.broadcast(&message);
        } else if !matches!(self.role, Role::Follower) {
            self.follow(now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.lapse(now);
        self.step(now);
    }

    /// The next message for a peer.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next ballot to save; see [`handle_saved`](Self::handle_saved).
    pub fn poll_ballot(&mut self) -> Option<Ballot> {
        self.ballots.pop_front()
    }

    /// The next piece of news.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let role = match &self.role {
            Role::Leader(lead) => Some(lead.due().min(self.lease_until(lead).unwrap_or(lead.due()))),
            Role::Polling(campaign) | Role::Candidate(campaign) => Some(campaign.again_at),
            Role::Follower => None,
        };
        let campaign = self.may_campaign().then_some(self.campaign_due);
        let query = match (&self.role, &self.ballot.voters) {
            (Role::Leader(_), _) => None,
            (_, None) => Some(self.set_query_due),
            (_, Some(_)) => Some(self.query_due),
        };
        let known = self.leader.as_ref().map(|leader| leader.until);
        [role, campaign, query, known].into_iter().flatten().min()
    }

    /// Whether this node holds the lease at `now`.
    #[must_use]
    pub fn is_leader(&self, now: Instant) -> bool {
        matches!(&self.role, Role::Leader(lead) if self.lease_until(lead).is_some_and(|until| now < until))
    }

    /// Who leads at `now`, as far as is known here.
    #[must_use]
    pub fn leader(&self, now: Instant) -> Option<Leader> {
        match &self.role {
            Role::Leader(lead) => {
                let until = self.lease_until(lead).filter(|until| now < *until)?;
                Some(Leader { name: self.config.node.clone(), term: self.ballot.term, until })
            }
            _ => self.leader.clone().filter(|leader| now < leader.until),
        }
    }

    /// The newest term known here; 0 before the first election.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.leader.as_ref().map_or(0, |leader| leader.term).max(self.ballot.term)
    }

    /// The set of voters in use; none before there is one.
    #[must_use]
    pub fn voters(&self) -> Option<&Voters> {
        self.ballot.voters.as_ref()
    }

    /// Whether a quorum of the voters is there at `now`: a leader is known, or enough of them are ALIVE.
    #[must_use]
    pub fn has_quorum(&self, now: Instant) -> bool {
        let Some(voters) = self.voters() else { return false };
        let is_alive = |name: &&NodeName| {
            **name == self.config.node || self.peers.get(*name).is_some_and(|standing| *standing == Standing::Alive)
        };
        self.leader(now).is_some() || voters.names().iter().filter(is_alive).count() >= voters.quorum()
    }

    fn is_voter(&self) -> bool {
        self.voters().is_some_and(|voters| voters.contains(&self.config.node))
    }

    fn voters_id(&self) -> VotersId {
        self.voters().map_or(VotersId::NONE, Voters::id)
    }

    /// Everything that the machine's answers depend on but its settings and its generator.
    #[cfg(test)]
    pub(in crate::mesh) fn hash_state(&self, state: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (&self.ballot, self.led_term, &self.role, &self.promise, self.abstain_until).hash(state);
        (&self.leader, self.campaign_due, self.leaving, self.saves == self.saved, &self.held).hash(state);
    }

    /// Whatever became true with the input or the time.
    fn step(&mut self, now: Instant) {
        if let Role::Leader(_) = self.role {
            self.run_lead(now);
        } else {
            self.run_bootstrap(now);
            self.run_campaign(now);
            self.run_query(now);
        }
    }

    /// Lets go of what has run out.
    fn lapse(&mut self, now: Instant) {
        if self.promise.as_ref().is_some_and(|promise| promise.until <= now) {
            self.promise = None;
        }
        if matches!(&self.role, Role::Leader(lead) if self.lease_until(lead).is_none_or(|until| until <= now)) {
            self.step_down(now);
        }
        if self.leader.as_ref().is_some_and(|leader| leader.until <= now) {
            self.leader = None;
            self.tell_leader();
        }
    }

    fn step_down(&mut self, now: Instant) {
        self.follow(now);
        self.leader = None;
        self.tell_leader();
    }

    fn follow(&mut self, now: Instant) {
        self.role = Role::Follower;
        self.rest(now);
    }

    /// Waits for a leader for a while before the next try.
    fn rest(&mut self, now: Instant) {
        let Timing { timeout_min, timeout_max, .. } = self.config.timing;
        self.campaign_due = now + self.draw(timeout_min, timeout_max);
    }

    fn draw(&mut self, from: Duration, to: Duration) -> Duration {
        from + to.saturating_sub(from).mul_f64(self.rng.random_range(0.0..1.0))
    }

    fn tell_leader(&mut self) {
        let leader = self.leader.as_ref().map(|leader| leader.name.clone());
        self.events.push_back(Event::LeaderChanged { leader, term: self.term() });
    }

    /// Takes word of who leads.
    fn know(&mut self, name: &NodeName, term: u64, until: Instant) {
        let is_news = self.leader.as_ref().is_none_or(|leader| leader.name != *name || leader.term != term);
        let until = match &self.leader {
            Some(known) if !is_news => known.until.max(until),
            _ => until,
        };
        self.leader = Some(Leader { name: name.clone(), term, until });
        if is_news {
            self.tell_leader();
        }
    }

    /// Uses a newer set of voters.
    fn adopt(&mut self, now: Instant, set: Voters) {
        if set.id() <= self.voters_id() || self.config.fixed.is_some() {
            return;
        }
        let leads = matches!(self.role, Role::Leader(_));
        self.ballot.voters = Some(set.clone());
        self.save();
        self.events.push_back(Event::VotersChanged(set));
        self.blank.clear();
        // Somebody else led after this node's last election: its lease is over, or about to be.
        if leads {
            self.step_down(now);
        } else if !matches!(self.role, Role::Follower) {
            self.follow(now);
        }
    }

    /// The set moves to whoever has the older one. Two lists of operators never meet.
    fn compare_voters(&mut self, now: Instant, from: &NodeName, theirs: VotersId) {
        let mine = self.voters_id();
        if mine.term == voters::FIXED_TERM && theirs.term == voters::FIXED_TERM && mine != theirs {
            if self.differ_said.len() < voters::VOTERS_MAX && self.differ_said.insert(from.clone()) {
                self.events.push_back(Event::VotersDiffer { peer: from.clone() });
            }
        } else if theirs < mine
            && let Some(set) = self.ballot.voters.clone()
        {
            self.send(from, Body::Set { set });
        } else if theirs > mine && self.set_query_due <= now {
            // One question in a while, however many messages say the same; the set follows.
            self.set_query_due = now + self.config.timing.heartbeat;
            self.send(from, Body::Query);
        }
    }

    fn message(&self, body: Body) -> Message {
        Message { term: self.ballot.term, voters: self.voters_id(), body }
    }

    fn send(&mut self, to: &NodeName, body: Body) {
        let message = self.message(body);
        self.send_message(to, message);
    }

    /// Nothing leaves before the ballot that it depends on is saved.
    fn send_message(&mut self, to: &NodeName, message: Message) {
        let transmit = Transmit { to: to.clone(), message };
        if self.saved == self.saves {
            self.transmits.push_back(transmit);
            return;
        }
        if self.held.len() == HELD_MAX {
            self.held.pop_front();
        }
        self.held.push_back((self.saves, transmit));
    }

    /// To every other voter.
    fn broadcast(&mut self, message: &Message) {
        for name in self.other_voters() {
            self.send_message(&name, message.clone());
        }
    }

    fn other_voters(&self) -> Vec<NodeName> {
        let names = self.voters().map(Voters::names).unwrap_or_default();
        names.iter().filter(|name| **name != self.config.node).cloned().collect()
    }

    fn save(&mut self) {
        self.saves += 1;
        self.ballots.push_back(self.ballot.clone());
    }

    /// Takes a term that somebody else is in; votes in it are still to be given.
    fn raise_term(&mut self, term: u64) {
        if term > self.ballot.term && term <= TERM_MAX {
            self.ballot.term = term;
            self.ballot.voted_for = None;
            self.save();
        }
    }

    /// Says who leads, as far as this node has it from the leader itself: hearsay would go round for ever.
    fn send_hint(&mut self, now: Instant, to: &NodeName) {
        let leads = matches!(self.role, Role::Leader(_));
        let is_direct =
            |leader: &Leader| leads || self.promise.as_ref().is_some_and(|promise| promise.to == leader.name);
        let known = self.leader(now).filter(is_direct);
        let (leader, leader_term) = known.map_or((None, 0), |leader| (Some(leader.name), leader.term));
        self.send(to, Body::Hint { leader, leader_term });
    }

    fn on_hint(&mut self, now: Instant, from: &NodeName, theirs: VotersId, leader: Option<NodeName>, term: u64) {
        if theirs == VotersId::NONE {
            self.on_blank(now, from);
        }
        if let Some(name) = leader
            && name != self.config.node
            && !matches!(self.role, Role::Leader(_))
            && term >= self.leader.as_ref().map_or(0, |leader| leader.term)
        {
            self.know(&name, term, now + HINT_FOR);
        }
    }

    /// Asks somebody who leads, unless the leader speaks to this node.
    fn run_query(&mut self, now: Instant) {
        if now < self.query_due {
            return;
        }
        self.query_due = now + QUERY_INTERVAL;
        let hears_leader = self.promise.as_ref().is_some_and(|promise| now < promise.until);
        if self.ballot.voters.is_none() || hears_leader {
            return;
        }
        let is_there = |name: &&NodeName| self.peers.get(*name).is_some_and(|standing| *standing == Standing::Alive);
        let voters = self.voters().map(Voters::names).unwrap_or_default();
        let mut asked: Vec<NodeName> = voters.iter().filter(is_there).cloned().collect();
        if asked.is_empty() {
            asked = self.peers.keys().filter(is_there).cloned().collect();
        }
        if !asked.is_empty() {
            let at = self.rng.random_range(0..asked.len());
            self.send(&asked[at], Body::Query);
        }
    }
}
