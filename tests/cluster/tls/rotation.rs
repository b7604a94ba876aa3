//! Certificates, authorities and the list of nodes, all replaced while requests flow.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use smg_certs::{Authority, IdentityFiles, NodeRequest};
use time::{Duration, OffsetDateTime};

use super::*;
use crate::harness::worker;

/// Peers of open connections are checked again this often, and files are read every 5 s.
const TAKES_EFFECT: std::time::Duration = s(25);

/// Four nodes in a mesh by TLS; the list of nodes is one file of all.
struct Renewed {
    dir: tempfile::TempDir,
    nodes: Vec<Gateway>,
}

impl Renewed {
    /// Writes the identity of each node, valid from `age` days ago, so that each round has an end of its own.
    fn write(dir: &Path, of: &Authority, age: i64, trusted: &str) {
        let from = OffsetDateTime::now_utc() - Duration::days(age);
        for n in 1..=4 {
            let node = format!("node{n}");
            let request =
                NodeRequest { cluster: "smg".into(), node: node.clone(), days: Some(5), ..NodeRequest::default() };
            let issued = of.issue(&request, from).unwrap();
            std::fs::create_dir_all(dir.join(&node)).unwrap();
            let files = IdentityFiles::in_dir(&dir.join(&node));
            std::fs::write(&files.certificate, issued.chain_pem).unwrap();
            std::fs::write(&files.key, issued.key_pem).unwrap();
            std::fs::write(&files.authorities, trusted).unwrap();
        }
    }

    async fn start(network: Network, of: &Authority, workers: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::write(dir.path(), of, 0, of.bundle_pem());
        std::fs::write(dir.path().join("nodes"), "node1\nnode2\nnode3\nnode4\n").unwrap();
        let list = format!("@{}", dir.path().join("nodes").display());
        let start = |n: u8| {
            let files = dir.path().join(format!("node{n}")).display().to_string();
            let more = ["--mesh-tls-dir", &files, "--mesh-allowed-nodes", &list, "--worker-urls", workers];
            Gateway::start(network, n, &[1, 2, 3, 4], &more)
        };
        let nodes: Vec<Gateway> = (1..=4).map(start).collect();
        joined(&nodes.iter().collect::<Vec<_>>(), 4, s(20)).await;
        for node in &nodes {
            eventually(s(20), "ready", || node.is_ready()).await;
        }
        Self { dir, nodes }
    }

    /// Replaces the files of all nodes, and waits until each has said so.
    async fn renew(&self, what: &str, of: &Authority, age: i64, trusted: &str) {
        let replaced = |node: &Gateway| node.process.log().matches("certificate files replaced").count();
        let before: Vec<usize> = self.nodes.iter().map(replaced).collect();
        Self::write(self.dir.path(), of, age, trusted);
        for (node, before) in self.nodes.iter().zip(before) {
            eventually(s(30), &format!("{} uses {what}", node.name), async || replaced(node) > before).await;
        }
        self.is_whole(what).await;
    }

    /// How many suspicions each node has begun so far.
    async fn suspicions(&self) -> Vec<f64> {
        let mut all = Vec::new();
        for node in &self.nodes {
            let metrics = node.metrics().await;
            assert!(metrics.contains("smg_mesh_peers_total"), "{}: no scrape", node.name);
            all.push(total(&metrics, "smg_mesh_suspicions_total"));
        }
        all
    }

    async fn is_whole(&self, what: &str) {
        for node in &self.nodes {
            lists_all(node, 4, is_strict(), what).await;
        }
    }
}

#[tokio::test]
async fn certificates_authorities_and_the_list_change_under_load() {
    let network = Network::new();
    let (_worker, url) = worker(network, 9, "m", &[]);
    let now = OffsetDateTime::now_utc() - Duration::days(30);
    let (old, new) = (Authority::create("smg", 90, now).unwrap(), Authority::create("smg", 90, now).unwrap());
    let cluster = Renewed::start(network, &old, &url).await;
    let (is_over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let failed: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let clients: Vec<_> = cluster.nodes[..3]
        .iter()
        .map(|node| {
            let (is_over, served, failed) = (is_over.clone(), served.clone(), failed.clone());
            let (http, url) = (node.http.clone(), node.url("/v1/chat/completions"));
            let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
            tokio::spawn(async move {
                let mut tick = tokio::time::interval(std::time::Duration::from_millis(50));
                while !is_over.load(Ordering::Relaxed) {
                    tick.tick().await;
                    let sent = Instant::now();
                    let outcome = match http.post(&url).json(&body).send().await {
                        Ok(answer) if answer.status() == 200 => answer.bytes().await.map(|_| String::new()),
                        Ok(answer) => answer.text().await,
                        Err(error) => Err(error),
                    };
                    let outcome = outcome.unwrap_or_else(|error| format!("{error:?} after {:?}", sent.elapsed()));
                    if outcome.is_empty() {
                        served.fetch_add(1, Ordering::Relaxed);
                    } else {
                        *failed.lock().unwrap().entry(outcome).or_default() += 1;
                    }
                }
            })
        })
        .collect();

    let suspected_before = cluster.suspicions().await;
    let both = format!("{}{}", old.bundle_pem(), new.bundle_pem());
    cluster.renew("new leaves", &old, 1, old.bundle_pem()).await;
    cluster.renew("both authorities", &old, 2, &both).await;
    cluster.renew("leaves of the new authority", &new, 3, &both).await;
    cluster.renew("the new authority alone", &new, 4, new.bundle_pem()).await;
    let (since, mut tick) = (Instant::now(), tokio::time::interval(std::time::Duration::from_millis(100)));
    while since.elapsed() < TAKES_EFFECT {
        cluster.is_whole("connections are checked by the new authority").await;
        tick.tick().await;
    }
    for node in &cluster.nodes {
        called_down(node, &[], "after the new authority");
    }
    let suspected = cluster.suspicions().await;
    assert!(
        suspected == suspected_before || !is_strict(),
        "{suspected_before:?} suspicions before, {suspected:?} after"
    );

    std::fs::write(cluster.dir.path().join("nodes"), "node1\nnode2\nnode3\n").unwrap();
    for node in &cluster.nodes[..3] {
        let took = eventually(s(60), &format!("{} puts node4 out", node.name), async || {
            node.statuses().await == ["node1=ALIVE", "node2=ALIVE", "node3=ALIVE", "node4=DOWN"]
        })
        .await;
        eprintln!("{}: node4 is out after {took:?}", node.name);
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let served = served.load(Ordering::Relaxed);
    assert!(failed.lock().unwrap().is_empty() && served > 1000, "{served} served, {:?}", failed.lock().unwrap());
}
