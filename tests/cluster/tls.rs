//! A mesh under mutual TLS: certificates from `smg certs` alone, and who stays out.

use std::{io::Write as _, net::TcpStream, path::Path, process::Command, sync::Arc, time::Instant};

use rustls::{SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};

use crate::{
    harness::{Gateway, Network, SMG, all_alive, eventually, joined, s},
    machine,
};

mod expiry;
mod flood;
mod mounted;
mod names;
mod rotation;
mod strangers;

/// Shows no certificate.
#[derive(Debug)]
struct Anonymous;

impl ResolvesClientCert for Anonymous {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

fn certs(dir: &Path, line: &str) {
    let done = Command::new(SMG).arg("certs").args(line.split_whitespace()).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

fn start(network: Network, dir: &Path, n: u8, peers: &[u8], identity: &str) -> Gateway {
    let files = dir.join(identity).display().to_string();
    Gateway::start(network, n, peers, &["--mesh-tls", "--mesh-tls-dir", &files])
}

fn counted(metrics: &str, plane: &str, reason: &str) -> bool {
    count(metrics, plane, reason) > 0
}

pub fn count(metrics: &str, plane: &str, reason: &str) -> u32 {
    let labels = [format!("plane=\"{plane}\""), format!("reason=\"{reason}\"")];
    let is_meant = |line: &&str| labels.iter().all(|label| line.contains(label));
    let line = metrics.lines().filter(|line| line.starts_with("smg_mesh_rejected_total{")).find(is_meant);
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
}

/// All that a counter has counted, whatever its labels.
pub fn total(metrics: &str, name: &str) -> f64 {
    let is_of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    metrics.lines().filter(is_of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Whether no suspicion may begin while a test runs: where `SMG_STRICT` says that nothing else keeps the machine busy.
/// Elsewhere a stall by the machine makes nodes suspect one that refutes it, which is the detector at its work.
fn is_strict() -> bool {
    std::env::var_os("SMG_STRICT").is_some()
}

/// That a node lists nodes 1 to `n`, none of them worse than SUSPECTED, or than ALIVE where `strict`. Where the machine is to
/// blame, a node that is DOWN has to come back.
async fn lists_all(node: &Gateway, n: u8, strict: bool, what: &str) {
    let listed = node.statuses().await;
    let lenient: Vec<String> = listed.iter().map(|node| node.replace("=SUSPECTED", "=ALIVE")).collect();
    let taken = if strict { &listed } else { &lenient };
    if *taken == all_alive(n) {
        return;
    }
    let excuse = machine::excuse().filter(|_| !strict);
    let excuse = excuse.unwrap_or_else(|| panic!("{}: {what}: {listed:?}", node.name));
    eprintln!("{}: {what}: {listed:?}; {excuse}", node.name);
    eventually(s(20), &format!("{}: {what}: all are back", node.name), async || node.statuses().await == all_alive(n))
        .await;
}

/// That a node has called nobody DOWN so far but those who are, unless the machine is to blame.
fn called_down(node: &Gateway, dead: &[&str], what: &str) {
    let log = node.process.log();
    let is_false = |line: &&str| line.contains("peer is down") && !dead.iter().any(|name| line.contains(name));
    let calls: Vec<&str> = log.lines().filter(is_false).collect();
    let excuse = machine::excuse().filter(|_| !is_strict());
    assert!(calls.is_empty() || excuse.is_some(), "{}: {what}: {calls:?}", node.name);
}

#[tokio::test]
async fn three_nodes_join_by_their_certificates_and_strangers_stay_out() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["ca --out ca", "ca --out other", "issue --ca other --node node4 --out node4"] {
        certs(dir.path(), line);
    }
    for n in 1..=3 {
        certs(dir.path(), &format!("issue --ca ca --node node{n} --out node{n}"));
    }
    let network = Network::new();
    let peers = [1, 2, 3];
    let nodes: Vec<Gateway> =
        peers.iter().map(|&n| start(network, dir.path(), n, &peers, &format!("node{n}"))).collect();
    joined(&nodes.iter().collect::<Vec<_>>(), 3, s(15)).await;
    let metrics = nodes[0].metrics().await;
    assert!(metrics.contains("smg_tls_cert_expiry_timestamp_seconds{role=\"mesh\"}"), "{metrics}");

    let stranger = start(network, dir.path(), 4, &[1], "node4");
    let plain = Gateway::start(network, 5, &[1], &[]);
    let mut greeting = TcpStream::connect((network.ip(1), 39527)).unwrap();
    greeting.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    for (plane, reason) in [("datagram", "refused_by_peer"), ("grpc", "plaintext")] {
        let what = format!("node1 counts {plane} {reason}");
        eventually(s(20), &what, async || counted(&nodes[0].metrics().await, plane, reason)).await;
    }
    eventually(s(20), "node4 counts the authority that it does not trust", async || {
        counted(&stranger.metrics().await, "datagram", "unknown_issuer")
    })
    .await;
    for node in &nodes {
        assert_eq!(node.statuses().await, all_alive(3), "{}", node.name);
    }
    for alone in [stranger, plain] {
        let known = alone.statuses().await;
        assert!(known.iter().all(|node| node.starts_with(&alone.name)), "{}: {known:?}", alone.name);
    }
}

#[tokio::test]
async fn a_node_that_is_not_on_the_list_stays_out_and_tries_rarely() {
    let dir = tempfile::tempdir().unwrap();
    certs(dir.path(), "ca --out ca");
    for n in [1, 2, 4] {
        certs(dir.path(), &format!("issue --ca ca --node node{n} --out node{n}"));
    }
    let network = Network::new();
    let on_list = |n: u8| {
        let files = dir.path().join(format!("node{n}")).display().to_string();
        let list = ["--mesh-tls-dir", &files, "--mesh-allowed-nodes", "node1,node2"];
        Gateway::start(network, n, &[1, 2], &list)
    };
    let nodes = [on_list(1), on_list(2)];
    joined(&[&nodes[0], &nodes[1]], 2, s(15)).await;

    let started = Instant::now();
    let excluded = start(network, dir.path(), 4, &[1, 2], "node4");
    let attempts = async |plane: &str| count(&nodes[0].metrics().await, plane, "not_allowed");
    eventually(s(30), "node1 counts three attempts", async || attempts("datagram").await >= 3).await;
    for plane in ["datagram", "grpc"] {
        let (attempts, span) = (attempts(plane).await, started.elapsed());
        assert!(span >= s(5) * attempts.saturating_sub(1), "{attempts} on {plane} in {span:?}");
    }
    for node in &nodes {
        assert_eq!(node.statuses().await, all_alive(2), "{}", node.name);
    }
    assert!(excluded.statuses().await.iter().all(|node| node.starts_with("node4")));
}

#[tokio::test]
async fn a_certificate_of_another_node_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    certs(dir.path(), "ca --out ca");
    certs(dir.path(), "issue --ca ca --node node9 --out node9");
    let mut gateway = start(Network::new(), dir.path(), 1, &[], "node9");
    assert!(!gateway.process.exit(s(10)).await.success());
    let log = gateway.process.log();
    assert!(log.contains("names node9, not node node1") && log.contains("--mesh-server-name"), "{log}");
}
