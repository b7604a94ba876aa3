//! The election on this node's datagrams: its messages travel as user messages of membership.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{
    config::Mesh,
    mesh::{
        driver::handle::Leadership,
        election::{Election, ElectionConfig, Event, Standing, Timing},
        node::{NodeName, NodeStatus},
        swim::Swim,
        wire::coordination::{self, Incoming},
    },
    telemetry::metrics::Metrics,
};

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
    /// The term of the newest leader that was counted.
    counted_term: u64,
    /// A set of voters whose size was warned about.
    warned: usize,
}

impl Chair {
    pub(super) fn new(
        config: &Mesh,
        node: &NodeName,
        own_host: &str,
        metrics: &Arc<Metrics>,
        shown: watch::Sender<Leadership>,
        now: Instant,
    ) -> Self {
        let names_itself = config.peers.iter().any(|peer| peer == own_host);
        let election = ElectionConfig {
            node: node.clone(),
            fixed: config.voters.clone(),
            expected: expected(config.peers.len(), names_itself, 0),
            saved: None,
            timing: Timing::default(),
        };
        Self {
            node: node.clone(),
            machine: Election::new(election, now, rand::random()),
            metrics: metrics.clone(),
            shown,
            named: config.peers.len(),
            names_itself,
            saves: 0,
            counted_term: 0,
            warned: 0,
        }
    }

    /// Takes what the peers of the flag resolved to.
    pub(super) fn on_seeds(&mut self, seeds: &[SocketAddr], own: SocketAddr) {
        self.names_itself |= seeds.contains(&own);
        let others = seeds.iter().filter(|addr| **addr != own).collect::<BTreeSet<_>>().len();
        self.machine.expect_nodes(expected(self.named, self.names_itself, others));
    }

    /// Takes a user message of membership.
    pub(super) fn on_message(&mut self, now: Instant, from: &NodeName, payload: &[u8]) {
        match coordination::decode(payload) {
            Ok(Incoming::Election(message)) => self.machine.handle_message(now, from, message),
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
        let others = swim.members().filter(|member| member.name != self.node);
        self.machine.handle_peers(now, others.map(|member| (member.name.clone(), standing(member.status))).collect());
    }

    /// Who leads as far as is known, and the newest term.
    pub(super) fn leader(&self) -> (Option<NodeName>, u64) {
        let shown = self.shown.borrow();
        (shown.leader.as_ref().map(|leader| leader.name.clone()), shown.term)
    }

    pub(super) fn leave(&mut self, now: Instant) {
        self.machine.leave(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.machine.poll_timeout()
    }

    /// Fires what is due and drains the machine into `swim`; whether there is something new to show.
    pub(super) fn settle(&mut self, now: Instant, swim: &mut Swim) -> bool {
        if self.machine.poll_timeout().is_some_and(|at| at <= now) {
            self.machine.handle_timeout(now);
        }
        while self.machine.poll_ballot().is_some() {
            self.saves += 1;
        }
        // Without a data directory nothing is kept: the machine abstains after each start instead.
        self.machine.handle_saved(now, self.saves);
        while let Some(transmit) = self.machine.poll_transmit() {
            let payload: Bytes = coordination::encode_election(&transmit.message);
            // To a peer that is DOWN nothing goes; the machine repeats what matters.
            swim.send_user(now, &transmit.to, payload);
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
