//! `/ha/status` and `/ha/health`: who is in the cluster.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    config::Mesh,
    gateway::view::RoutingView,
    ha::rate_limit::InForce,
    mesh::{
        driver::{
            handle::{Leadership, NodeView, View},
            rights::RightsView,
        },
        node::NodeStatus,
        quota::local::WithoutQuorum,
        routing::Sight,
    },
    telemetry::metrics::Metrics,
};

/// Answer of `GET /ha/status`. The keys are those of the manual.
#[derive(Debug, Serialize)]
pub struct Status {
    /// This node.
    pub node_name: String,
    /// Nodes listed, whatever their status.
    pub node_count: usize,
    /// Every known node, sorted by name.
    pub nodes: Vec<Node>,
    /// The replicated stores.
    pub stores: Stores,
    /// Who leads, as this node knows it at this moment; null while it knows of nobody.
    pub leader: Option<String>,
    /// The newest term of a leader that this node knows; 0 before the first election.
    pub term: u64,
    /// Whether this node sees a quorum of the voters. Without one everything keeps routing, and nobody leads.
    pub quorum: bool,
    /// Who elects the leader, sorted; empty before it is known.
    pub voters: Vec<String>,
    /// What a person should change about the cluster; empty when nothing.
    pub warnings: Vec<String>,
    /// How cluster-wide limits fare at this gateway.
    pub limits: Limits,
    /// What workers' caches spared the requests of this gateway.
    pub cache: Cache,
    /// The process that answers.
    pub gateway: Gateway,
}

/// How cluster-wide limits fare at one gateway.
#[derive(Debug, Serialize)]
pub struct Limits {
    /// What becomes of limited requests while this gateway knows no leader: `closed` or `local`.
    pub without_quorum: &'static str,
    /// By whose word it admits them now: `lent`, `local` or `none`, also where nothing is limited.
    pub rights: &'static str,
    /// Requests per second of all gateways together; 0: no limit. Limits of some requests are not shown here.
    pub limit_per_second: u64,
    /// Most of them at once; 0 without a limit.
    pub burst: u64,
    /// Requests in flight of all gateways together; 0: no bound.
    pub concurrent: u32,
}

/// Tokens as workers reported them, since this gateway's start.
#[derive(Debug, Serialize)]
pub struct Cache {
    /// Of prompts.
    pub prompt_tokens: u64,
    /// Of these, how many a worker's cache had: their share is the share of hits.
    pub cached_tokens: u64,
}

/// What a node holds the members for.
#[derive(Debug, Serialize)]
pub struct Sees {
    /// Members that are ALIVE to it, itself included.
    pub alive: u32,
    /// Members that are not, and what they are to it; at most 256.
    pub not_alive: BTreeMap<String, &'static str>,
}

impl Sees {
    /// As a node told.
    #[must_use]
    pub fn of(sight: &Sight) -> Self {
        let not_alive = sight.doubted.iter().map(|(name, status)| (name.to_string(), status.as_str()));
        Self { alive: sight.alive, not_alive: not_alive.collect() }
    }
}

/// The process that answers.
#[derive(Debug, Serialize)]
pub struct Gateway {
    /// Its release.
    pub version: &'static str,
    /// Its clock, in RFC 3339, UTC, milliseconds.
    pub time: String,
    /// Label of its cluster.
    pub cluster: String,
    /// What carries its datagrams: udp or quic.
    pub transport: &'static str,
    /// Descriptors that it may open at most; null where the system does not say.
    pub descriptors_max: Option<u64>,
}

/// What a process is told at its start and `/ha/status` shows.
#[derive(Clone, Debug)]
pub struct About {
    /// Label of its cluster.
    pub cluster: String,
    /// What carries its datagrams: udp or quic.
    pub transport: &'static str,
    /// What becomes of limited requests while no leader is known.
    pub without_quorum: WithoutQuorum,
}

impl About {
    /// As the configuration has it.
    #[must_use]
    pub fn of(mesh: &Mesh) -> Self {
        let transport = if mesh.tls.is_some() { "quic" } else { "udp" };
        Self { cluster: mesh.cluster.clone(), transport, without_quorum: mesh.without_quorum }
    }

    fn gateway(&self) -> Gateway {
        Gateway {
            version: env!("CARGO_PKG_VERSION"),
            time: humantime::format_rfc3339_millis(SystemTime::now().max(SystemTime::UNIX_EPOCH)).to_string(),
            cluster: self.cluster.clone(),
            transport: self.transport,
            descriptors_max: rlimit::Resource::NOFILE.get_soft().ok(),
        }
    }
}

/// One node.
#[derive(Debug, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// INIT, ALIVE, SUSPECTED, DOWN or LEAVING.
    pub status: &'static str,
    /// Its mesh address, `host:port`.
    pub address: String,
    /// Its availability zone; empty when it has told none.
    pub zone: String,
    /// What it holds the members for by its own word, some 200 ms old; null while it is DOWN, and while this node does not hear
    /// it, as above 32 nodes of all but its neighbours.
    pub sees: Option<Sees>,
    /// For how long changes that this node sends it have been waiting for its answer, in seconds; null where it sends none.
    pub lag_seconds: Option<f64>,
    /// Probes by this node in a row that it answered, and none by a datagram: those are lost on the way. 0 when the last was; null
    /// before there was one.
    pub probe_detours: Option<u32>,
}

/// The replicated stores.
#[derive(Debug, Serialize)]
pub struct Stores {
    /// Workers.
    pub workers: Store,
    /// Policies set through the API.
    pub policies: Store,
    /// Where prompts went: the prefix indexes of all models, in this gateway's memory.
    pub routing: RoutingStore,
}

/// The prefix indexes.
#[derive(Debug, Serialize)]
pub struct RoutingStore {
    /// Prefixes known.
    pub entry_count: usize,
    /// Bytes that they take.
    pub bytes: usize,
    /// Bytes that they may take.
    pub bytes_max: usize,
    /// Prefixes that left for others since the start.
    pub evictions: u64,
    /// As of the other stores.
    pub last_sync: Option<String>,
}

/// One store.
#[derive(Debug, Serialize)]
pub struct Store {
    /// Live entries.
    pub entry_count: usize,
    /// When it was last known equal to a peer's, in RFC 3339, UTC, whole seconds; null before the first exchange.
    pub last_sync: Option<String>,
    /// Root over all that it holds, 16 hexadecimal digits: gateways with equal roots hold the same.
    pub root: String,
}

/// An even number of voters tolerates no more failures than one less; fewer than three tolerate none.
fn warnings(voters: usize) -> Vec<String> {
    let tolerated = voters.saturating_sub(1) / 2;
    match voters {
        0 => Vec::new(),
        1 | 2 => {
            vec![format!("{voters} voters tolerate no failure: use 3, 5 or 7 nodes, or name so many in --mesh-voters")]
        }
        _ if voters.is_multiple_of(2) => {
            vec![format!("{voters} voters tolerate {tolerated} failures, no more than {} would", voters - 1)]
        }
        _ => Vec::new(),
    }
}

/// What a picture of the cluster is made from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// What the mesh knows.
    pub view: &'a View,
    /// Who leads.
    pub leadership: Leadership,
    /// What this gateway holds of limits.
    pub rights: RightsView,
    /// What requests are routed by.
    pub routing: &'a RoutingView,
    /// The limit of all requests.
    pub in_force: InForce,
    /// What the process was told at its start.
    pub about: &'a About,
    /// What it has counted.
    pub metrics: &'a Metrics,
}

/// What a node of the view holds the members for.
fn sees(view: &View, node: &NodeView) -> Option<Sees> {
    if node.name == view.node {
        return Some(Sees::of(&Sight::of(view.nodes.iter().map(|node| (&node.name, node.status)))));
    }
    view.sights.get(&node.name).map(Sees::of)
}

/// The cluster as this node sees it.
#[must_use]
pub fn cluster(sources: &Sources<'_>) -> Status {
    let Sources { view, leadership, rights, routing, in_force, about, metrics } = sources;
    let (lags, detours) = (metrics.replication_lags(), metrics.probe_detours());
    let nodes = view.nodes.iter().map(|node| Node {
        name: node.name.to_string(),
        status: node.status.as_str(),
        address: node.address.clone(),
        zone: node.zone.clone(),
        sees: sees(view, node),
        lag_seconds: lags.get(&node.name).map(|lag| (lag.as_secs_f64() * 1e3).round() / 1e3),
        probe_detours: detours.get(&node.name).copied(),
    });
    let (prompt_tokens, cached_tokens) = metrics.cached_tokens();
    let store =
        |entry_count, root| Store { entry_count, last_sync: view.last_sync.map(rfc3339), root: format!("{root:016x}") };
    Status {
        node_name: view.node.to_string(),
        node_count: view.nodes.len(),
        nodes: nodes.collect(),
        leader: leadership.leader_at(Instant::now()).map(ToString::to_string),
        term: leadership.term,
        quorum: leadership.has_quorum,
        voters: leadership.voters.iter().map(ToString::to_string).collect(),
        warnings: warnings(leadership.voters.len()),
        limits: Limits {
            without_quorum: about.without_quorum.as_str(),
            rights: rights.standing_of_any(Instant::now()),
            limit_per_second: in_force.limit_per_second,
            burst: in_force.burst,
            concurrent: in_force.concurrent,
        },
        cache: Cache { prompt_tokens, cached_tokens },
        gateway: about.gateway(),
        stores: Stores {
            workers: store(view.workers.len(), view.roots.workers),
            policies: store(view.policies.len(), view.roots.policies),
            routing: routing_store(view, routing),
        },
    }
}

fn routing_store(view: &View, routing: &RoutingView) -> RoutingStore {
    let last_sync = view.last_sync.map(rfc3339);
    let mut store = RoutingStore { entry_count: 0, bytes: 0, bytes_max: 0, evictions: 0, last_sync };
    let routes = routing.models.values().chain([&routing.any, &routing.wildcard]);
    for stats in routes.filter_map(|route| route.index_stats()) {
        store.entry_count += stats.entries;
        store.bytes += stats.bytes;
        store.bytes_max += stats.bytes_max;
        store.evictions += stats.evictions;
    }
    store
}

/// Whether this node is healthy, and the answer of `GET /ha/health`. `cluster_size` counts ALIVE nodes.
#[must_use]
pub fn health(view: &View, is_draining: bool) -> (bool, Value) {
    let own = view.nodes.iter().find(|node| node.name == view.node).map_or(NodeStatus::Init, |node| node.status);
    let own = if is_draining { NodeStatus::Leaving } else { own };
    let alive = view.nodes.iter().filter(|node| node.status == NodeStatus::Alive).count();
    let (is_healthy, status) = match own {
        // Others may suspect this node, which can still answer: it is about to refute.
        NodeStatus::Alive | NodeStatus::Suspected => (true, "healthy"),
        NodeStatus::Init => (false, "starting"),
        NodeStatus::Leaving => (false, "draining"),
        NodeStatus::Down => (false, "unhealthy"),
    };
    let body = json!({
        "status": status,
        "node_name": view.node.as_str(),
        "node_status": own.as_str(),
        "cluster_size": alive,
    });
    (is_healthy, body)
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    // Formatting fails for times before 1970, which a broken clock may show.
    let time = time.max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_and_small_numbers_of_voters_are_warned_about() {
        for (voters, expected) in [
            (0, None),
            (1, Some("1 voters tolerate no failure")),
            (2, Some("2 voters tolerate no failure")),
            (3, None),
            (4, Some("4 voters tolerate 1 failures, no more than 3")),
            (5, None),
            (6, Some("6 voters tolerate 2 failures, no more than 5")),
            (7, None),
        ] {
            let found = warnings(voters);
            assert_eq!(found.len(), usize::from(expected.is_some()), "{voters}: {found:?}");
            assert!(found.iter().all(|found| found.starts_with(expected.unwrap_or_default())), "{voters}: {found:?}");
        }
    }
}
