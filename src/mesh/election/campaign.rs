//! Becoming the leader: a poll, then the vote, and what a voter answers.

use std::{collections::BTreeSet, time::Instant};

use super::{
    Election, Event, Promise, Role, Standing,
    lead::Lead,
    message::{Body, Message, TERM_MAX},
    voters::{Voters, VotersId},
};
use crate::mesh::node::NodeName;

/// A poll or a vote that this node asked for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Campaign {
    /// The term in question.
    pub(super) term: u64,
    /// When it was first asked: a lease counts from here.
    pub(super) asked_at: Instant,
    /// When whoever has not answered is asked again.
    pub(super) again_at: Instant,
    answered: BTreeSet<NodeName>,
    granted: BTreeSet<NodeName>,
}

impl Election {
    /// Whether this node could lead.
    pub(super) fn may_campaign(&self) -> bool {
        !self.leaving && self.is_voter() && !matches!(self.role, Role::Leader(_))
    }

    /// Starts, repeats or gives up.
    pub(super) fn run_campaign(&mut self, now: Instant) {
        if !self.may_campaign() || now < self.abstain_until {
            return;
        }
        if self.campaign_due <= now {
            // A voter of its own does not vote for itself while another holds its promise.
            match &self.promise {
                Some(promise) if promise.until > now => self.campaign_due = promise.until,
                _ => self.start_poll(now),
            }
            return;
        }
        let again = match &mut self.role {
            Role::Polling(campaign) if campaign.again_at <= now => (true, campaign),
            Role::Candidate(campaign) if campaign.again_at <= now => (false, campaign),
            _ => return,
        };
        let (is_poll, campaign) = again;
        campaign.again_at = now + self.config.timing.heartbeat;
        let (term, answered) = (campaign.term, campaign.answered.clone());
        self.ask(is_poll, term, &answered);
    }

    fn start_poll(&mut self, now: Instant) {
        let term = self.ballot.term.max(self.led_term) + 1;
        // At the end of all terms nobody is elected any more, rather than a term used twice.
        if term > TERM_MAX {
            self.rest(now);
            return;
        }
        self.role = Role::Polling(self.campaign(now, term));
        self.rest(now);
        self.ask(true, term, &BTreeSet::new());
        self.count_poll(now);
    }

    fn campaign(&self, now: Instant, term: u64) -> Campaign {
        Campaign {
            term,
            asked_at: now,
            again_at: now + self.config.timing.heartbeat,
            answered: BTreeSet::new(),
            granted: [self.config.node.clone()].into(),
        }
    }

    fn ask(&mut self, is_poll: bool, term: u64, answered: &BTreeSet<NodeName>) {
        let Some(set) = self.ballot.voters.clone() else { return };
        let voters = set.id();
        let body = if is_poll { Body::Poll { set } } else { Body::Vote { set } };
        let message = Message { term, voters, body };
        for name in self.other_voters().iter().filter(|name| !answered.contains(*name)) {
            self.send_message(name, message.clone());
        }
    }

    fn count_poll(&mut self, now: Instant) {
        let Role::Polling(campaign) = &self.role else { return };
        if !self.is_quorum(&campaign.granted) {
            return;
        }
        let term = campaign.term;
        self.role = Role::Candidate(self.campaign(now, term));
        self.ballot.term = term;
        self.ballot.voted_for = Some(self.config.node.clone());
        self.save();
        self.events.push_back(Event::Campaign { term });
        self.rest(now);
        self.ask(false, term, &BTreeSet::new());
        self.count_votes(now);
    }

    /// A candidate's own vote counts once it is saved.
    pub(super) fn count_votes(&mut self, now: Instant) {
        let Role::Candidate(campaign) = &self.role else { return };
        if !self.is_quorum(&campaign.granted) || self.saved != self.saves {
            return;
        }
        let lease = self.config.timing.lease;
        // Answers that came too late would make a leader whose lease is over.
        if self.voters().is_some_and(|voters| voters.names().len() > 1) && campaign.asked_at + lease <= now {
            return;
        }
        let lead = Lead::new(now, campaign.asked_at, &campaign.granted);
        self.begin_lead(now, lead);
    }

    pub(super) fn is_quorum(&self, names: &BTreeSet<NodeName>) -> bool {
        let Some(voters) = self.voters() else { return false };
        names.iter().filter(|name| voters.contains(name)).count() >= voters.quorum()
    }

    /// Whether this voter is free to promise `candidate` anything.
    fn is_free(&self, now: Instant, candidate: &NodeName) -> bool {
        let is_promised = self.promise.as_ref().is_some_and(|promise| promise.until > now && promise.to != *candidate);
        let leads = matches!(self.role, Role::Leader(_));
        now >= self.abstain_until && !is_promised && !leads
    }

    /// Whether `candidate`, elected by `set`, may have this voter's vote in `term`.
    fn would_vote(&self, now: Instant, candidate: &NodeName, term: u64, set: VotersId) -> bool {
        let votes_again = term == self.ballot.term && self.ballot.voted_for.as_ref() == Some(candidate);
        self.is_free(now, candidate)
            && self.is_voter()
            && term > self.led_term
            && (term > self.ballot.term || votes_again)
            && set >= self.voters_id()
    }

    pub(super) fn on_poll(&mut self, now: Instant, from: &NodeName, term: u64, set: Voters) {
        let id = set.id();
        self.adopt(now, set);
        let granted = self.would_vote(now, from, term, id);
        self.answer(now, from, if granted { term } else { self.ballot.term }, Body::PollReply { granted }, granted);
    }

    pub(super) fn on_vote(&mut self, now: Instant, from: &NodeName, term: u64, set: Voters) {
        let id = set.id();
        self.adopt(now, set);
        let granted = self.would_vote(now, from, term, id);
        if granted {
            // Also when the vote is given once more: with its promise this voter wants nothing for itself.
            self.follow(now);
            if term > self.ballot.term {
                self.ballot.term = term;
                self.ballot.voted_for = Some(from.clone());
                self.save();
            }
            self.promise = Some(Promise { to: from.clone(), until: now + self.config.timing.promise });
        }
        self.answer(now, from, self.ballot.term, Body::VoteReply { granted }, granted);
    }

    /// A refusal goes with word of who leads.
    fn answer(&mut self, now: Instant, to: &NodeName, term: u64, body: Body, granted: bool) {
        let message = Message { term, voters: self.voters_id(), body };
        self.send_message(to, message);
        if !granted {
            self.send_hint(now, to);
        }
    }

    pub(super) fn on_poll_reply(&mut self, now: Instant, from: &NodeName, term: u64, granted: bool) {
        let Role::Polling(campaign) = &mut self.role else { return };
        if granted && term == campaign.term {
            campaign.answered.insert(from.clone());
            campaign.granted.insert(from.clone());
            self.count_poll(now);
        } else if !granted {
            campaign.answered.insert(from.clone());
            self.learn_term(from, term);
        }
    }

    pub(super) fn on_vote_reply(&mut self, now: Instant, from: &NodeName, term: u64, granted: bool) {
        let Role::Candidate(campaign) = &mut self.role else { return };
        if granted && term == campaign.term {
            campaign.answered.insert(from.clone());
            campaign.granted.insert(from.clone());
            self.count_votes(now);
        } else if !granted && term >= campaign.term {
            campaign.answered.insert(from.clone());
            self.learn_term(from, term);
        }
    }

    /// A voter is ahead: the next poll asks for more.
    fn learn_term(&mut self, from: &NodeName, term: u64) {
        if term > self.ballot.term && self.voters().is_some_and(|voters| voters.contains(from)) {
            // A vote for itself in the old term is worth nothing in the new one.
            self.role = Role::Follower;
            self.raise_term(term);
        }
    }

    pub(super) fn on_resign(&mut self, now: Instant, from: &NodeName, term: u64) {
        if self.promise.as_ref().is_some_and(|promise| promise.to == *from) && term >= self.led_term {
            self.promise = None;
            // The next election need not wait for a silence. The first that is left asks at once, and is alone with it; each
            // further one gives those before it the time of two rounds.
            let is_before = |name: &&NodeName| {
                **name < self.config.node
                    && *name != from
                    && self.peers.get(*name).is_some_and(|standing| *standing == Standing::Alive)
            };
            let before = self.voters().map_or(0, |voters| voters.names().iter().filter(is_before).count());
            let turn = self.config.timing.heartbeat / 3 * u32::try_from(before).unwrap_or(u32::MAX);
            self.campaign_due = now + turn;
        }
        if self.leader.as_ref().is_some_and(|leader| leader.name == *from && leader.term <= term) {
            self.leader = None;
            self.tell_leader();
        }
    }
}
