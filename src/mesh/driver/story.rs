//! Membership events as metrics, and as the story of a failover: at `info` one line per thing that happened to a peer.
//!
//! What led to it (who suspected, whose probe failed, how far this node trusts itself) is told at `debug`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tracing::{debug, info, trace, warn};

use crate::{
    mesh::{
        node::{NodeName, NodeStatus},
        swim::{Event, MemberChange},
    },
    telemetry::metrics::Metrics,
};

/// What was last said of each peer; as many as there are members.
#[derive(Debug, Default)]
pub(super) struct Story {
    peers: BTreeMap<NodeName, Said>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    epoch_ms: u64,
    addr: SocketAddr,
    /// Since when the peer is not ALIVE.
    ill_since: Option<Instant>,
}

/// What a change of a peer means to an operator.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Turn {
    Appeared,
    Suspected,
    Answers,
    Down,
    Back,
    Restarted,
    Moved,
    Leaving,
    /// Nothing that is worth a line.
    Nothing,
}

impl Story {
    /// Tells one event.
    pub(super) fn tell(&mut self, now: Instant, node: &NodeName, metrics: &Metrics, event: &Event) {
        match event {
            Event::Joined => info!(node = %node, "joined the cluster"),
            Event::MemberChanged(change) => self.member_changed(now, change),
            Event::Forgotten { name } => {
                self.peers.remove(name);
                info!(peer = %name, "peer forgotten");
            }
            Event::Suspected { name, local } => {
                metrics.mesh_suspicion(*local);
                debug!(peer = %name, local, "suspicion begins");
            }
            Event::FalseSuspicion { name } => {
                metrics.mesh_false_suspicion();
                debug!(peer = %name, "suspicion was false");
            }
            Event::Refuted { incarnation } => {
                metrics.mesh_refutation();
                info!(node = %node, incarnation, "suspected by others, refuted");
            }
            Event::Rtt { peer, rtt } => {
                metrics.mesh_probe_rtt(*rtt);
                metrics.mesh_probed(peer, true);
                trace!(peer = %peer, rtt_ms = rtt.as_secs_f64() * 1e3, "probe answered");
            }
            Event::Detour { peer } => {
                metrics.mesh_probed(peer, false);
                debug!(peer = %peer, "probe answered, but by no datagram");
            }
            Event::LocalHealth { score } => {
                metrics.mesh_local_health(*score);
                debug!(score, "trust in own probes changed");
            }
            Event::NameTaken { addr, .. } => warn!(node = %node, addr = %addr, "an older live node has this name"),
            Event::EpochRefused { name, epoch_ms } => {
                metrics.mesh_rejected("datagram", "epoch");
                debug!(peer = %name, epoch_ms, "a record years ahead of this node's clock refused");
            }
            Event::EpochRaised { epoch_ms } => {
                warn!(epoch_ms, "peers remember a later start of this node, the clock went back; epoch raised");
            }
            // Its part of the program tells what came of it.
            Event::User { .. } => {}
            Event::Left => info!(node = %node, "left the cluster"),
        }
    }

    fn member_changed(&mut self, now: Instant, change: &MemberChange) {
        let MemberChange { name, from, to, addr, epoch_ms, reason } = change;
        let before = self.peers.get(name).copied();
        let turn = turn(*from, *to, before.map(|said| (said.epoch_ms, said.addr)), (*epoch_ms, *addr));
        let ill_since = before.and_then(|said| said.ill_since);
        // How long the peer was, or has been, in doubt.
        let ill_ms = ill_since.map(|since| millis(now.saturating_duration_since(since)));
        let ill_since = (*to != NodeStatus::Alive).then(|| ill_since.unwrap_or(now));
        self.peers.insert(name.clone(), Said { epoch_ms: *epoch_ms, addr: *addr, ill_since });
        let reason = reason.as_str();
        match turn {
            Turn::Appeared => info!(peer = %name, addr = %addr, status = %to, %reason, "peer appeared"),
            Turn::Suspected => info!(peer = %name, addr = %addr, status = %to, %reason, "peer suspected"),
            Turn::Answers => info!(peer = %name, addr = %addr, status = %to, ill_ms, %reason, "peer lives after all"),
            Turn::Down => warn!(peer = %name, addr = %addr, status = %to, ill_ms, %reason, "peer is down"),
            Turn::Back => info!(peer = %name, addr = %addr, status = %to, ill_ms, %reason, "peer is back"),
            Turn::Restarted => info!(peer = %name, addr = %addr, status = %to, ill_ms, %reason, "peer restarted"),
            Turn::Moved => info!(peer = %name, addr = %addr, status = %to, %reason, "peer moved to another address"),
            Turn::Leaving => info!(peer = %name, addr = %addr, status = %to, %reason, "peer is leaving"),
            Turn::Nothing => debug!(peer = %name, addr = %addr, status = %to, %reason, "record of a peer changed"),
        }
    }
}

fn turn(
    from: Option<NodeStatus>,
    to: NodeStatus,
    before: Option<(u64, SocketAddr)>,
    (epoch_ms, addr): (u64, SocketAddr),
) -> Turn {
    let is_new_epoch = before.is_some_and(|(epoch, _)| epoch != epoch_ms);
    match (from, to) {
        (None, _) => Turn::Appeared,
        (_, NodeStatus::Init)
        | (Some(NodeStatus::Down), NodeStatus::Down)
        | (Some(NodeStatus::Leaving), NodeStatus::Leaving) => Turn::Nothing,
        (_, NodeStatus::Down) => Turn::Down,
        (_, NodeStatus::Leaving) => Turn::Leaving,
        (_, _) if is_new_epoch => Turn::Restarted,
        (Some(NodeStatus::Suspected), NodeStatus::Suspected) => Turn::Nothing,
        (_, NodeStatus::Suspected) => Turn::Suspected,
        (Some(NodeStatus::Suspected), NodeStatus::Alive) => Turn::Answers,
        (Some(NodeStatus::Down | NodeStatus::Leaving), NodeStatus::Alive) => Turn::Back,
        (_, NodeStatus::Alive) if before.is_some_and(|(_, before)| before != addr) => Turn::Moved,
        (_, NodeStatus::Alive) => Turn::Nothing,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_change_is_one_turn_of_the_story() {
        let [here, there]: [SocketAddr; 2] = ["10.0.0.1:1", "10.0.0.2:1"].map(|addr| addr.parse().unwrap());
        let (old, moved, new) = (Some((1, here)), (1, there), (2, there));
        use NodeStatus::{Alive, Down, Leaving, Suspected};
        for (case, from, to, before, now, expected) in [
            ("first seen", None, Alive, None, (1, here), Turn::Appeared),
            ("silent", Some(Alive), Suspected, old, (1, here), Turn::Suspected),
            ("answers in time", Some(Suspected), Alive, old, (1, here), Turn::Answers),
            ("verdict", Some(Suspected), Down, old, (1, here), Turn::Down),
            ("heard of the verdict", Some(Alive), Down, old, (1, here), Turn::Down),
            ("same process again", Some(Down), Alive, old, (1, here), Turn::Back),
            ("new process after the verdict", Some(Down), Alive, old, new, Turn::Restarted),
            ("new process before it", Some(Suspected), Alive, old, new, Turn::Restarted),
            ("new process unnoticed", Some(Alive), Alive, old, (2, here), Turn::Restarted),
            ("new address", Some(Alive), Alive, old, moved, Turn::Moved),
            ("leaves", Some(Alive), Leaving, old, (1, here), Turn::Leaving),
            ("earlier process is gone", Some(Down), Down, old, new, Turn::Nothing),
        ] {
            assert_eq!(turn(from, to, before, now), expected, "{case}");
        }
    }
}
