//! The election on this node's datagrams: its messages travel as user messages of membership.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

mod disk;

use bytes::Bytes;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{debug, error, info, warn};

use crate::{
    config::Mesh,
    mesh::{
        driver::{
            data::{DataError, Votes, record::Found},
            handle::Leadership,
            leader::disk::Disk,
            rights::{Rights, RightsView, SharedLimits},
        },
        election::{Ballot, Election, ElectionConfig, Event, Standing, Timing},
        node::{NodeName, NodeStatus},
        quota::Kind,
        swim::Swim,
        wire::coordination::{self, Incoming},
    },
    telemetry::metrics::Metrics,
};

/// Where the election shows itself, and what it keeps.
#[derive(Clone, Debug)]
pub(super) struct Podium {
    pub(super) shown: watch::Sender<Leadership>,
    /// Of the rights that the leader lends.
    pub(super) rights: watch::Sender<RightsView>,
    /// Where ballots are kept, and the last one that was; none without `--mesh-data-dir`.
    pub(super) votes: Option<(Votes, Option<Ballot>)>,
}

impl Podium {
    /// Reads the last ballot, off the runtime.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub(super) async fn open(
        shown: watch::Sender<Leadership>,
        rights: watch::Sender<RightsView>,
        dir: Option<PathBuf>,
        unix_ms: u64,
    ) -> Result<Self, DataError> {
        let Some(dir) = dir else { return Ok(Self { shown, rights, votes: None }) };
        let votes = Votes::in_dir(&dir);
        let reader = votes.clone();
        let found = spawn_blocking(move || reader.load(unix_ms / 1000)).await.map_err(io::Error::other).flatten();
        let ballot = match found.map_err(|source| DataError::Io { dir, what: "read the vote".to_owned(), source })? {
            Found::Record(ballot) => Some(ballot),
            Found::Nothing => None,
            Found::Lost { aside } => {
                error!(aside = %aside.display(), "vote in --mesh-data-dir is damaged and was set aside");
                None
            }
        };
        Ok(Self { shown, rights, votes: Some((votes, ballot)) })
    }
}

/// The machine, and who is told of what it finds.
pub(super) struct Chair {
    node: NodeName,
    machine: Election,
    metrics: Arc<Metrics>,
    shown: watch::Sender<Leadership>,
    /// How many distinct peers the flag names, and whether this node is one of them.
    named: usize,
    names_itself: bool,
    saves: u64,
    /// None without a data directory: the machine abstains after each start instead.
    disk: Option<Disk>,
    /// The term of the newest leader that was counted.
    counted_term: u64,
    /// A set of voters whose size was warned about.
    warned: usize,
    /// How many nodes the operator's list speaks of, and how many membership knows.
    expected: usize,
    there: usize,
    /// What the leader lends: it stands on the election.
    pub(super) rights: Rights,
    /// The same of what may be in flight.
    slots: Rights,
}

impl Chair {
    pub(super) fn new(
        config: &Mesh,
        node: &NodeName,
        own_host: &str,
        metrics: &Arc<Metrics>,
        podium: Podium,
        now: Instant,
    ) -> Self {
        let (votes, saved) = podium.votes.unzip();
        let names_itself = config.peers.iter().any(|peer| peer == own_host);
        let expected = expected(config.peers.len(), names_itself, 0);
        let election = ElectionConfig {
            node: node.clone(),
            fixed: config.voters.clone(),
            expected,
            saved: saved.flatten(),
            timing: Timing::default(),
        };
        let mut chair = Self {
            node: node.clone(),
            machine: Election::new(election, now, rand::random()),
            metrics: metrics.clone(),
            shown: podium.shown,
            named: config.peers.len(),
            names_itself,
            saves: 0,
            disk: votes.map(Disk::new),
            counted_term: 0,
            warned: 0,
            expected,
            there: 1,
            slots: Rights::new(node, Kind::Slots, config.without_quorum, podium.rights.clone(), now),
            rights: Rights::new(node, Kind::Rates, config.without_quorum, podium.rights, now),
        };
        chair.count_nodes();
        chair
    }

    /// Takes what the peers of the flag resolved to.
    pub(super) fn on_seeds(&mut self, seeds: &[SocketAddr], own: SocketAddr) {
        self.names_itself |= seeds.contains(&own);
        let others = seeds.iter().filter(|addr| **addr != own).collect::<BTreeSet<_>>().len();
        self.expected = expected(self.named, self.names_itself, others);
        self.machine.expect_nodes(self.expected);
        self.count_nodes();
    }

    /// Tells the rights how many nodes share the limits: from the start and after each change of what they are counted from,
    /// so that a node which has met nobody yet does not take itself for all of them.
    fn count_nodes(&mut self) {
        let voters = self.machine.voters().map_or(0, |voters| voters.names().len());
        let nodes = self.there.max(self.expected).max(voters);
        self.each().for_each(|rights| rights.on_nodes(nodes));
    }

    /// Takes a user message of membership.
    pub(super) fn on_message(&mut self, now: Instant, from: &NodeName, payload: &[u8]) {
        match coordination::decode(payload) {
            Ok(Incoming::Election(message)) => self.machine.handle_message(now, from, message),
            Ok(Incoming::Quota(kind, message)) => {
                self.tell_rights(now);
                match kind {
                    Kind::Rates => self.rights.on_message(now, from, &message),
                    Kind::Slots => self.slots.on_message(now, from, &message),
                }
            }
            Err(error) => {
                self.metrics.mesh_rejected("datagram", "malformed_user");
                debug!(peer = %from, reason = "malformed_user", %error, "user message dropped");
            }
        }
    }

    /// Takes what membership knows.
    pub(super) fn on_members(&mut self, now: Instant, swim: &Swim) {
        let standing = |status| match status {
            NodeStatus::Init | NodeStatus::Alive => Standing::Alive,
            NodeStatus::Suspected | NodeStatus::Down => Standing::Silent,
            NodeStatus::Leaving => Standing::Leaving,
        };
        let members = swim.members().map(|member| (member.name.clone(), standing(member.status)));
        let mut members: BTreeMap<_, _> = members.collect();
        self.there = members.len();
        self.count_nodes();
        members.remove(&self.node);
        self.machine.handle_peers(now, members);
    }

    /// Who leads as far as is known, and the newest term.
    pub(super) fn leader(&self) -> (Option<NodeName>, u64) {
        let shown = self.shown.borrow();
        (shown.leader.as_ref().map(|leader| leader.name.clone()), shown.term)
    }

    pub(super) fn leave(&mut self, now: Instant) {
        self.machine.leave(now);
        self.tell_rights(now);
        self.each().for_each(|rights| rights.leave(now));
    }

    /// Takes the limits that the cluster shares, all of them.
    pub(super) fn on_limits(&mut self, now: Instant, limits: &SharedLimits) {
        self.tell_rights(now);
        self.each().for_each(|rights| rights.on_limits(now, limits));
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Rights> {
        [&mut self.rights, &mut self.slots].into_iter()
    }

    /// Nothing may be lent on an election that is over: the rights hear of it before anything else.
    fn tell_rights(&mut self, now: Instant) {
        let leader = self.machine.leader(now);
        self.each().for_each(|rights| rights.on_leader(now, leader.as_ref()));
    }

    /// Waits until one more ballot is on the disk. Dropping the future loses nothing.
    pub(super) async fn next_saved(&mut self) -> u64 {
        match &mut self.disk {
            Some(disk) => disk.saved().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn on_saved(&mut self, now: Instant, count: u64) {
        self.machine.handle_saved(now, count);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.machine.poll_timeout(), self.rights.poll_timeout(), self.slots.poll_timeout()];
        due.into_iter().flatten().min()
    }

    /// Fires what is due and drains the machine into `swim`; whether there is something new to show.
    pub(super) fn settle(&mut self, now: Instant, swim: &mut Swim) -> bool {
        if self.machine.poll_timeout().is_some_and(|at| at <= now) {
            self.machine.handle_timeout(now);
        }
        while let Some(ballot) = self.machine.poll_ballot() {
            self.saves += 1;
            match &self.disk {
                Some(disk) => disk.save(self.saves, ballot),
                None => self.machine.handle_saved(now, self.saves),
            }
        }
        while let Some(transmit) = self.machine.poll_transmit() {
            let payload: Bytes = coordination::encode_election(&transmit.message);
            // To a peer that is DOWN nothing goes; the machine repeats what matters.
            swim.send_user(now, &transmit.to, payload);
        }
        self.tell_rights(now);
        for rights in self.each() {
            rights.settle(now);
            while let Some((to, payload)) = rights.poll_payload() {
                // One that is lost is asked or answered again.
                swim.send_user(now, &to, payload);
            }
        }
        let mut changed = false;
        while let Some(event) = self.machine.poll_event() {
            changed = true;
            self.tell(&event);
        }
        self.show(now);
        changed
    }

    fn show(&self, now: Instant) {
        let leader = self.machine.leader(now);
        let voters = self.machine.voters().map(|voters| voters.names().to_vec()).unwrap_or_default();
        let has_quorum = self.machine.has_quorum(now);
        self.shown.send_if_modified(|shown| {
            let newest = Leadership { leader, term: self.machine.term(), voters, has_quorum };
            let is_new = *shown != newest;
            *shown = newest;
            is_new
        });
    }

    fn tell(&mut self, event: &Event) {
        match event {
            Event::LeaderChanged { leader: Some(leader), term } => {
                info!(peer = %leader, term, "leader elected");
                if *term > self.counted_term {
                    self.counted_term = *term;
                    self.metrics.mesh_election();
                }
            }
            Event::LeaderChanged { leader: None, term } => info!(term, "no leader"),
            Event::Campaign { term } => debug!(term, "asks for votes"),
            Event::VotersChanged(voters) => {
                let names = voters.names();
                info!(voters = names.len(), quorum = voters.quorum(), names = ?names, "voters changed");
                self.warn_of_size(names.len());
                self.count_nodes();
            }
            Event::VotersDiffer { peer } => {
                warn!(peer = %peer, "peer has another --mesh-voters: neither votes for the other; give all nodes one list");
            }
        }
    }

    /// An even number of voters tolerates no more failures than one less; fewer than three tolerate none.
    fn warn_of_size(&mut self, count: usize) {
        let is_weak = count < 3 || count.is_multiple_of(2);
        if is_weak && count != self.warned {
            warn!(
                voters = count,
                "an even or small number of voters; use 3, 5 or 7 nodes, or name so many in --mesh-voters"
            );
        }
        self.warned = count;
    }
}

/// How many nodes the operator's list speaks of, this one included. Names that have not resolved yet count too.
fn expected(named: usize, names_itself: bool, resolved_others: usize) -> usize {
    1 + named.saturating_sub(usize::from(names_itself)).max(resolved_others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_speaks_of_so_many_nodes() {
        for (case, named, names_itself, resolved, count) in [
            ("no peers", 0, false, 0, 1),
            ("all three on every node", 3, true, 2, 3),
            ("all three, not resolved yet", 3, false, 0, 4),
            ("the two others", 2, false, 2, 3),
            ("one name of five addresses", 1, true, 4, 5),
            ("one of three does not resolve", 3, true, 1, 3),
        ] {
            assert_eq!(expected(named, names_itself, resolved), count, "{case}");
        }
    }
}
