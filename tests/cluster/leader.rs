//! The leader, as `/ha/status`, `/ha/events` and the metrics show it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Gateway, Network, eventually, joined, never_for, s};

/// What `/ha/status` says of the leader: name, term, quorum.
async fn leadership(gateway: &Gateway) -> (Option<String>, u64, bool) {
    let status = gateway.get("/ha/status").await.map_or(Value::Null, |(_, status)| status);
    let leader = status["leader"].as_str().map(str::to_owned);
    (leader, status["term"].as_u64().unwrap_or_default(), status["quorum"].as_bool().unwrap_or_default())
}

/// Waits until all name one leader, and gives it with its term.
async fn led(gateways: &[&Gateway], within: std::time::Duration) -> (String, u64) {
    let mut agreed = None;
    eventually(within, "all name one leader", async || {
        let mut seen = BTreeSet::new();
        for gateway in gateways {
            seen.insert(leadership(gateway).await);
        }
        agreed = seen.first().cloned();
        seen.len() == 1 && agreed.as_ref().is_some_and(|(leader, _, quorum)| leader.is_some() && *quorum)
    })
    .await;
    let (leader, term, _) = agreed.unwrap();
    (leader.unwrap(), term)
}

#[tokio::test]
async fn three_nodes_have_one_leader_and_get_another_when_it_dies() {
    let network = Network::new();
    let mut nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &[]));
    joined(&nodes.each_ref(), 3, s(10)).await;
    let (first, term) = led(&nodes.each_ref(), s(10)).await;
    let at = ["node1", "node2", "node3"].iter().position(|name| *name == first).unwrap();
    for (n, node) in nodes.iter().enumerate() {
        let metrics = node.metrics().await;
        let leads = usize::from(n == at);
        for line in
            [format!("smg_mesh_leader {leads}"), "smg_mesh_quorum 1".to_owned(), format!("smg_mesh_term {term}")]
        {
            assert!(metrics.contains(&line), "node {}: no {line}", n + 1);
        }
    }
    nodes[at].process.kill();
    let others: Vec<&Gateway> = nodes.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, node)| node).collect();
    eventually(s(10), "another leads, in a later term", async || {
        let (leader, newer, quorum) = leadership(others[0]).await;
        leader.is_some_and(|leader| leader != first) && newer > term && quorum
    })
    .await;
    let (second, later) = led(&others, s(10)).await;
    // The dead node comes back and takes nothing over.
    let name = u8::try_from(at + 1).unwrap();
    let back = Gateway::start(network, name, &[1, 2, 3], &[]);
    joined(&[others[0], others[1], &back], 3, s(10)).await;
    assert_eq!(led(&[others[0], others[1], &back], s(10)).await, (second, later));
    let elections = others[0].metrics().await;
    assert!(elections.contains("smg_mesh_leader_elections_total 2"), "{elections}");
}

#[tokio::test]
async fn a_lone_rest_of_three_has_no_leader_and_no_quorum_but_serves() {
    let network = Network::new();
    let mut nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &[]));
    joined(&nodes.each_ref(), 3, s(10)).await;
    led(&nodes.each_ref(), s(10)).await;
    nodes[1].process.kill();
    nodes[2].process.kill();
    eventually(s(15), "no leader, no quorum", async || {
        let (leader, _, quorum) = leadership(&nodes[0]).await;
        leader.is_none() && !quorum
    })
    .await;
    never_for(s(3), "a leader without a quorum", async || leadership(&nodes[0]).await.0.is_some()).await;
    assert_eq!(nodes[0].get("/ha/status").await.unwrap().0, 200);
}

/// The manual's basic configuration: the first node has no peers, and is a voter like the others.
#[tokio::test]
async fn a_first_node_without_peers_is_one_voter_of_three() {
    let network = Network::new();
    let node1 = Gateway::start(network, 1, &[], &[]);
    let node2 = Gateway::start(network, 2, &[1], &[]);
    let node3 = Gateway::start(network, 3, &[1, 2], &[]);
    joined(&[&node1, &node2, &node3], 3, s(10)).await;
    led(&[&node1, &node2, &node3], s(15)).await;
    eventually(s(10), "three voters", async || {
        let (_, status) = node2.get("/ha/status").await.unwrap();
        status["voters"] == serde_json::json!(["node1", "node2", "node3"])
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_is_shut_down_hands_over() {
    let network = Network::new();
    let mut nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &["--mesh-voters", "node1,node2,node3"]));
    joined(&nodes.each_ref(), 3, s(10)).await;
    let (first, term) = led(&nodes.each_ref(), s(10)).await;
    let at = ["node1", "node2", "node3"].iter().position(|name| *name == first).unwrap();
    nodes[at].process.signal(nix::sys::signal::Signal::SIGTERM);
    let other = &nodes[(at + 1) % 3];
    eventually(s(5), "another leads", async || {
        let (leader, newer, _) = leadership(other).await;
        leader.is_some_and(|leader| leader != first) && newer > term
    })
    .await;
    let status = nodes[at].process.exit(s(20)).await;
    assert!(status.success(), "{status}");
}
