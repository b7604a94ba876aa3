//! `smg cluster` as an operator runs it, against three gateways of which one is killed.

use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Gateway, Network, Process, SMG, eventually, joined, s, worker};

/// Exit code, standard output and standard error of `smg cluster ARGS`.
async fn cluster(args: &[&str]) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(SMG);
    command.arg("cluster").args(args).env_remove("SMG_CLUSTER_URL").env_remove("SMG_ADMIN_API_KEY");
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Polls a command until it ends with this code, and gives what it printed.
async fn until(code: i32, args: &[&str]) -> String {
    let mut last = (0, String::new(), String::new());
    eventually(s(30), &format!("exit code {code} of {args:?}"), async || {
        last = cluster(args).await;
        last.0 == code
    })
    .await;
    last.1
}

#[tokio::test]
async fn status_watch_doctor_and_leave_tell_the_truth() {
    let network = Network::new();
    let (_worker, url) = worker(network, 9, "m", &[]);
    let mut nodes = [1, 2, 3].map(|n| {
        let zone = format!("zone{n}");
        Gateway::start(network, n, &[1, 2, 3], &["--mesh-zone", &zone, "--worker-urls", &url, "--admin-api-key", "k"])
    });
    joined(&nodes.each_ref(), 3, s(10)).await;
    let urls = format!("{},{}", nodes[0].url(""), nodes[1].url(""));

    let text = until(0, &["status", "--url", &urls]).await;
    for expected in ["healthy, says node1", "in zone zone2", "this gateway", "1 of 1 ready", "quorum yes", "root "] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let text = until(0, &["doctor", "--url", &urls]).await;
    for expected in ["3 answered: node1, node2, node3", "3 zones", "within ", "TCP connects", "0 problems"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }

    let watch = Process::start("watch", ["cluster", "watch", "--url", &urls, "--json"], &[]);
    eventually(s(10), "the first event", async || watch.log().contains("\"event\":\"status\"")).await;

    nodes[2].process.kill();
    let text = until(1, &["status", "--url", &urls, "--json"]).await;
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["healthy"], false);
    // By the word of another gateway, too.
    eventually(s(15), "node2 says that node3 is DOWN", async || {
        let report: Value = serde_json::from_str(&cluster(&["status", "--url", &urls, "--json"]).await.1).unwrap();
        let sees = &report["status"]["nodes"][1]["sees"];
        sees["alive"] == 2 && sees["not_alive"]["node3"] == "DOWN" && report["status"]["nodes"][2]["sees"].is_null()
    })
    .await;
    eventually(s(15), "status says which node is down", async || {
        cluster(&["status", "--url", &urls]).await.1.contains("node node3 is DOWN: start it again")
    })
    .await;
    let text = until(1, &["doctor", "--url", &urls, "--json"]).await;
    let report: Value = serde_json::from_str(&text).unwrap();
    let problems: Vec<&Value> =
        report["findings"].as_array().unwrap().iter().filter(|it| it["level"] == "problem").collect();
    assert!(problems.iter().any(|it| it["check"] == "planes" && it["found"].as_str().unwrap().contains("node3")));
    eventually(s(10), "watch tells it", async || watch.log().contains("\"status\":\"DOWN\"")).await;

    let leaving = nodes[0].url("");
    let (code, _, error) = cluster(&["leave", "--url", &leaving, "--admin-api-key", "wrong"]).await;
    assert!(code == 1 && error.contains("--admin-api-key"), "{code}: {error}");
    let (code, text, error) = cluster(&["leave", "--url", &leaving, "--admin-api-key", "k"]).await;
    assert!(code == 0 && text.contains("node node1 has left"), "{code}: {text}{error}");
    assert!(nodes[0].process.exit(s(20)).await.success());
    // The stream of node1 ended; watch goes on at node2, and its picture shows who left.
    eventually(s(20), "watch goes on", async || watch.log().matches("\"event\":\"status\"").count() > 1).await;
}

/// A process that hangs keeps its connections, and what it saw last is no news of it any more.
#[tokio::test]
async fn what_a_node_saw_is_not_shown_while_it_is_down() {
    let network = Network::new();
    let nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &[]));
    joined(&nodes.each_ref(), 3, s(10)).await;
    let third = async || nodes[0].get("/ha/status").await.unwrap().1["nodes"][2].clone();
    eventually(s(10), "node1 hears node3", async || !third().await["sees"].is_null()).await;
    nodes[2].process.signal(nix::sys::signal::Signal::SIGSTOP);
    eventually(s(30), "node3 is DOWN", async || third().await["status"] == "DOWN").await;
    let shown = third().await;
    assert!(shown["status"] != "DOWN" || shown["sees"].is_null(), "{shown}");
    let text = cluster(&["status", "--url", &nodes[0].url("")]).await.1;
    assert!(text.contains("node node3 is DOWN"), "{text}");
    nodes[2].process.signal(nix::sys::signal::Signal::SIGCONT);
    let is_back = async || third().await["status"] == "ALIVE" && !third().await["sees"].is_null();
    eventually(s(30), "node3 is back, and heard", is_back).await;
}

#[tokio::test]
async fn who_cannot_be_asked_and_what_is_wrong_usage() {
    let network = Network::new();
    let nobody = format!("http://{}:8000", network.ip(1));
    for (case, args, code, expected) in [
        ("status of nobody", vec!["status", "--url", &nobody], 1, "/ha/status"),
        ("leave of nobody", vec!["leave", "--url", &nobody], 1, "/ha/shutdown"),
        ("watch of nobody", vec!["watch", "--url", &nobody, "--max-reconnects", "1"], 1, ""),
        ("doctor of nobody", vec!["doctor", "--url", &nobody], 1, ""),
        ("no such subcommand", vec!["stats"], 2, "unrecognized"),
        ("no URL", vec!["status", "--url", "node1"], 2, "--url"),
        ("a certificate without its key", vec!["doctor", "--mesh-tls-cert", "x"], 2, "--mesh-tls-key"),
    ] {
        let (found, text, error) = cluster(&args).await;
        assert_eq!(found, code, "{case}: {text}{error}");
        assert!(error.contains(expected), "{case}: {error}");
    }
    // Without the mesh there is no cluster to show.
    let ip = network.ip(2).to_string();
    let process = Process::start("alone", ["--host", &ip, "--port", "8000", "--prometheus-host", &ip], &[]);
    let gateway = Gateway::attach(process, "alone".to_owned(), network.ip(2));
    eventually(s(10), "it answers", async || gateway.get("/ha/status").await.is_some()).await;
    let (code, _, error) = cluster(&["status", "--url", &gateway.url("")]).await;
    assert!(code == 1 && error.contains("mesh not enabled"), "{code}: {error}");
}

#[tokio::test]
async fn doctor_proves_both_planes_of_a_mesh_with_tls() {
    let network = Network::new();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca").display().to_string();
    let certs = async |args: &[&str]| {
        let output = tokio::process::Command::new(SMG).arg("certs").args(args).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    certs(&["ca", "--out", &ca]).await;
    let mut dirs = Vec::new();
    for node in ["node1", "node2"] {
        let out = dir.path().join(node).display().to_string();
        certs(&["issue", "--ca", &ca, "--node", node, "--out", &out]).await;
        dirs.push(out);
    }
    let nodes = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &["--mesh-tls-dir", &dirs[usize::from(n) - 1]]));
    joined(&nodes.each_ref(), 2, s(10)).await;
    let (urls, dirs) = (nodes[0].url(""), dirs.join(","));
    let text = until(0, &["doctor", "--url", &urls, "--mesh-tls-dir", &dirs]).await;
    assert_eq!(text.matches("TCP connects; QUIC answers").count(), 2, "{text}");
    for expected in ["is node1, good until", "is node2, good until", "2 answered: node1, node2"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}
