//! `kill -9` of a gateway: the others notice, and go on serving; it comes back with everything.

use serde_json::json;

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

#[tokio::test]
async fn a_killed_node_is_down_within_10_s_and_comes_back_with_all_state() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let [node1, node2, mut node3] = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &[]));
    joined(&[&node1, &node2, &node3], 3, s(5)).await;
    assert_eq!(node2.post("/workers?wait=10", json!({"url": url, "zone": "z1"})).await.0, 201);
    for gateway in [&node1, &node3] {
        eventually(s(2), "ready", async || gateway.is_ready().await).await;
    }

    node3.process.kill();
    let down = ["node1=ALIVE", "node2=ALIVE", "node3=DOWN"];
    let mut served = 0;
    for gateway in [&node1, &node2] {
        eventually(s(10), "node 3 is DOWN", async || {
            let (status, body) = gateway.chat("m1").await.unwrap();
            assert_eq!(status, 200, "a living gateway failed a request: {body}");
            served += 1;
            gateway.statuses().await == down
        })
        .await;
    }
    assert!(served > 2);
    assert!(node1.metrics().await.contains("smg_mesh_peer_status{peer=\"node3\"} 0"));
    assert!(node1.metrics().await.contains("smg_mesh_peers_total 1"));

    let node3 = Gateway::start(network, 3, &[1, 2, 3], &[]);
    joined(&[&node1, &node2, &node3], 3, s(5)).await;
    eventually(s(5), "it serves the worker it was never told of", async || {
        matches!(node3.chat("m1").await, Ok((200, _)))
    })
    .await;
    let (_, workers) = node3.get("/workers").await.unwrap();
    assert_eq!(workers["workers"][0]["zone"], "z1");
}

#[tokio::test]
async fn the_newer_of_two_live_nodes_of_one_name_exits() {
    let network = Network::new();
    let node1 = Gateway::start(network, 1, &[2], &[]);
    let node2 = Gateway::start(network, 2, &[1], &[]);
    joined(&[&node1, &node2], 2, s(5)).await;
    let mut double = Gateway::start_as("node2", network, 3, &[1], &[]);
    let status = double.process.exit(s(10)).await;
    assert_eq!(status.code(), Some(1));
    let log = double.process.log();
    assert!(log.contains("--mesh-server-name"), "the error names the flag to change: {log}");
    joined(&[&node1, &node2], 2, s(5)).await;
}
