//! What somebody reads who taps the network between the nodes: with `--mesh-tls` nothing, without it nearly all.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;

use super::{false_deaths, note_verdicts, note_whole};
use crate::{
    cluster::{Cluster, Setup, program},
    harness::{Process, eventually},
    http::Connection,
    inside::on_host,
    report::Row,
};

/// Said by clients; the worker hears it in plain text, on port 9000.
const PROMPT: &str = "which capybara counts its oranges by the river at night";

/// What gateways show the worker.
const WORKER_KEY: &str = "sk-capybara-0123456789";

const WORKER: &str = "10.77.0.5:9000";

/// How often each text is in a capture.
type Found = BTreeMap<&'static str, usize>;

/// A whole run by TLS, and the same without, in which the same search must find what it looks for.
pub async fn compared(cluster: &mut Cluster) -> Row {
    let mut row = Row::new("capture of a whole run", cluster.size);
    if !Command::new("tcpdump").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED capture: no tcpdump");
        row.note = "SKIPPED: no tcpdump".to_owned();
        return row;
    }
    let (sealed, sealed_bytes) = whole_run(cluster, &mut row).await;
    let mut plain = Cluster::start(cluster.size, "capture", Setup::default()).await.unwrap();
    let (open, open_bytes) = whole_run(&mut plain, &mut row).await;
    row.note = format!("by TLS {sealed_bytes} B: {sealed:?}; plain {open_bytes} B: {open:?}");
    for text in ["node names", "worker URL", "worker key"] {
        assert!(open[text] > 0, "the search finds {text} where it is: {row}");
        assert_eq!(sealed[text], 0, "{text} by TLS: {row}");
    }
    for found in [&sealed, &open] {
        assert_eq!(found["prompt"], 0, "a prompt leaves its gateway for the worker alone: {row}");
        assert!(found["prompt to the worker"] > 0, "the search finds the prompt where it is: {row}");
    }
    row
}

/// Every node restarts, a worker is added and asked, a node dies and comes back; all of it captured.
async fn whole_run(cluster: &mut Cluster, row: &mut Row) -> (Found, usize) {
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("all.pcap");
    let mut command = cluster.hosts.command(0, "tcpdump");
    command.args(["-i", "br0", "-s", "0", "-U", "-Z", "root", "-w"]).arg(&all);
    let mut tap = Process::start_command("tcpdump", &mut command, &[]);
    eventually(Duration::from_secs(10), "tcpdump listens", async || tap.log().contains("listening on")).await;

    for n in 1..=cluster.size {
        cluster.stop(n).await;
        cluster.spawn(n);
        note_whole(cluster, row).await;
    }
    let mut command = cluster.hosts.command(5, &program());
    command.args(["sim-worker", "--host", "10.77.0.5", "--port", "9000", "--model", "sim"]);
    let _worker = Process::start_command("worker", &mut command, &[]);
    let added = serde_json::json!({"url": format!("http://{WORKER}"), "api_key": WORKER_KEY}).to_string();
    cluster.hosts.post(1, "/workers", &added);
    cluster
        .wait_for(Duration::from_secs(40), "every gateway is ready", |cluster| {
            (1..=cluster.size).all(|n| cluster.hosts.answer(n, "/readiness")["status"] == "ready")
        })
        .await;
    for n in 1..=cluster.size {
        on_host(cluster, n, move || chat(n)).await;
    }
    let (victim, since) = (cluster.size, SystemTime::now());
    cluster.kill(victim);
    note_verdicts(cluster, row, since, &[victim].into()).await;
    row.false_deaths += false_deaths(cluster, since, &[victim].into());
    cluster.spawn(victim);
    note_whole(cluster, row).await;
    row.rounds += 1;

    tap.signal(Signal::SIGTERM);
    assert!(tap.exit(Duration::from_secs(10)).await.success(), "tcpdump: {}", tap.log());
    let between_nodes = dir.path().join("mesh.pcap");
    select(&all, "not tcp port 9000", &between_nodes);
    let (all, mesh) = (std::fs::read(all).unwrap(), std::fs::read(between_nodes).unwrap());
    let count = |capture: &[u8], text: &str| memchr::memmem::find_iter(capture, text).count();
    let names: usize = (1..=cluster.size).map(|n| count(&mesh, &format!("node{n}"))).sum();
    let found = Found::from([
        ("node names", names),
        ("worker URL", count(&mesh, WORKER)),
        ("worker key", count(&mesh, WORKER_KEY)),
        ("prompt", count(&mesh, PROMPT)),
        ("prompt to the worker", count(&all, PROMPT)),
    ]);
    (found, mesh.len())
}

/// A conversation at the node of this host, long enough that its placement is told to the other gateways.
async fn chat(n: usize) {
    let mut connection = Connection::open().await.unwrap();
    for turn in 1..=4 {
        let text = format!("gateway {n}: {}", format!("{PROMPT}; ").repeat(20 * turn));
        let body = serde_json::json!({"model": "sim", "messages": [{"role": "user", "content": text}]}).to_string();
        let (status, answer) = connection.send("POST", "/v1/chat/completions", &body).await.unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    }
}

/// Copies the packets that match `filter`.
fn select(from: &Path, filter: &str, to: &Path) {
    let mut command = Command::new("tcpdump");
    command.arg("-r").arg(from).args(["-Z", "root", "-w"]).arg(to).arg(filter).stderr(Stdio::null());
    assert!(command.status().unwrap().success(), "tcpdump -r {filter}");
}
