//! The manual's commands, as they stand there.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    harness::{Gateway, Network, Process, SMG, all_alive, eventually, joined, s},
    hosts::Hosts,
};

/// Starts the manual's *Basic Configuration*: node 1 without peers, node 2 with one, node 3 with two.
fn basic(network: Network) -> [Gateway; 3] {
    [(1, &[][..]), (2, &[1]), (3, &[1, 2])].map(|(n, peers)| Gateway::start(network, n, peers, &[]))
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

#[tokio::test]
async fn basic_configuration_forms_a_cluster_within_5_s() {
    let gateways = basic(Network::new());
    joined(&gateways.each_ref(), 3, s(5)).await;
    for gateway in &gateways {
        let (_, status) = gateway.get("/ha/status").await.unwrap();
        assert_eq!(
            keys(&status),
            BTreeSet::from([
                "cache",
                "gateway",
                "leader",
                "limits",
                "node_count",
                "node_name",
                "nodes",
                "quorum",
                "stores",
                "term",
                "voters",
                "warnings"
            ])
        );
        assert_eq!(
            keys(&status["nodes"][0]),
            BTreeSet::from(["address", "lag_seconds", "name", "probe_detours", "sees", "status", "zone"])
        );
        assert_eq!(keys(&status["stores"]), BTreeSet::from(["policies", "routing", "workers"]));
        assert_eq!(keys(&status["stores"]["workers"]), BTreeSet::from(["entry_count", "last_sync", "root"]));
        assert_eq!(status["node_name"], gateway.name.as_str());
        assert_eq!(status["node_count"], 3);
        let address = format!("{}:39527", gateway.ip);
        assert!(status["nodes"].as_array().unwrap().iter().any(|node| node["address"] == address.as_str()));
    }
}

#[tokio::test]
async fn environment_alone_forms_a_cluster() {
    let network = Network::new();
    let peers = (1..=3).map(|n| format!("{}:39527", network.ip(n))).collect::<Vec<_>>().join(",");
    let gateways = [1, 2, 3].map(|n| {
        let ip = network.ip(n).to_string();
        let env = [
            ("SMG_ENABLE_MESH", "true".to_owned()),
            ("SMG_MESH_SERVER_NAME", format!("node{n}")),
            ("SMG_MESH_HOST", ip.clone()),
            ("SMG_MESH_PORT", "39527".to_owned()),
            ("SMG_MESH_PEER_URLS", peers.clone()),
            ("SMG_HOST", ip.clone()),
            ("SMG_PORT", "8000".to_owned()),
            ("SMG_PROMETHEUS_HOST", ip),
            ("SMG_PROMETHEUS_PORT", "29000".to_owned()),
        ];
        Gateway::attach(Process::start(&format!("node{n}"), [], &env), format!("node{n}"), network.ip(n))
    });
    joined(&gateways.each_ref(), 3, s(5)).await;
}

#[tokio::test]
async fn start_order_does_not_matter() {
    let network = Network::new();
    let node2 = Gateway::start(network, 2, &[1], &[]);
    let node3 = Gateway::start(network, 3, &[1, 2], &[]);
    // Node 2 knows node 1 alone, and node 1 is not there: it waits, and serves its API meanwhile.
    eventually(s(5), "node 2 answers", async || !node2.statuses().await.is_empty()).await;
    let (until, mut tick) = (tokio::time::Instant::now() + s(6), tokio::time::interval(s(1)));
    while tick.tick().await < until {}
    let node1 = Gateway::start(network, 1, &[], &[]);
    joined(&[&node1, &node2, &node3], 3, s(5)).await;
}

#[tokio::test]
async fn a_dead_first_peer_does_not_delay_joining() {
    let network = Network::new();
    let node2 = Gateway::start(network, 2, &[], &[]);
    eventually(s(5), "node 2 is up", async || node2.statuses().await == ["node2=ALIVE"]).await;
    let node1 = Gateway::start(network, 1, &[9, 2], &[]);
    eventually(s(5), "node 1 answers", async || !node1.statuses().await.is_empty()).await;
    joined(&[&node1, &node2], 2, s(2)).await;
}

#[tokio::test]
async fn peers_may_be_host_names_and_name_the_node_itself() {
    let network = Network::new();
    let peers = format!("http://localhost:1, no-such-host.invalid:39527,{}:39527 {}", network.ip(1), network.ip(2));
    let gateways = [1, 2].map(|n| Gateway::start(network, n, &[], &["--mesh-peer-urls", &peers]));
    joined(&gateways.each_ref(), 2, s(5)).await;
}

#[tokio::test]
async fn foreign_cluster_labels_never_merge() {
    let network = Network::new();
    let a = Gateway::start(network, 1, &[2], &["--mesh-cluster", "a"]);
    let b = Gateway::start(network, 2, &[1], &["--mesh-cluster", "b"]);
    for gateway in [&a, &b] {
        eventually(s(5), "a foreign message is refused and counted", async || {
            gateway.metrics().await.contains("smg_mesh_rejected_total{plane=\"datagram\",reason=\"foreign_cluster\"")
        })
        .await;
        assert_eq!(gateway.statuses().await.len(), 1, "{} took the foreign node in", gateway.name);
    }
}

#[tokio::test]
async fn ha_api_without_the_mesh_says_so() {
    let network = Network::new();
    let ip = network.ip(1).to_string();
    let process = Process::start("alone", ["--host", &ip, "--port", "8000", "--prometheus-host", &ip], &[]);
    let gateway = Gateway::attach(process, "alone".to_owned(), network.ip(1));
    eventually(s(5), "it answers", async || gateway.get("/ha/status").await.is_some()).await;
    for path in ["/ha/health", "/ha/status", "/ha/workers", "/ha/policies"] {
        let (status, body) = gateway.get(path).await.unwrap();
        assert_eq!((status, body), (503, serde_json::json!({"error": "mesh not enabled"})), "{path}");
    }
}

/// The manual's three commands word for word, on three hosts with the manual's names. Needs root for the namespaces.
#[tokio::test]
async fn verbatim_commands_on_three_hosts() {
    let Some(hosts) = Hosts::new(3) else {
        eprintln!("SKIPPED verbatim_commands_on_three_hosts: network namespaces need root");
        return;
    };
    let command = |text: &str| text.replace('\\', " ");
    let nodes = [
        command(
            "--enable-mesh --mesh-server-name node1 --mesh-host 0.0.0.0 --mesh-port 39527 --host 0.0.0.0 --port 8000",
        ),
        command(
            "--enable-mesh --mesh-server-name node2 --mesh-port 39527 --mesh-peer-urls node1:39527 --host 0.0.0.0 --port 8000",
        ),
        command(
            "--enable-mesh --mesh-server-name node3 --mesh-port 39527 --mesh-peer-urls node1:39527,node2:39527 --host 0.0.0.0 --port 8000",
        ),
    ];
    let start = |(i, args): (usize, &String)| {
        Process::start_command(&format!("node{}", i + 1), hosts.command(i + 1, SMG).args(args.split_whitespace()), &[])
    };
    let _processes: Vec<Process> = nodes.iter().enumerate().map(start).collect();
    for n in 1..=3 {
        eventually(s(5), "three ALIVE nodes", async || hosts.statuses(n) == all_alive(3)).await;
    }
}
