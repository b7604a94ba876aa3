//! `--mesh-data-dir`: a restart of all nodes at once loses nothing, and brings nothing back.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Gateway, Network, Process, SMG, eventually, joined, s};

/// Starts nodes 1 to 3, each with a directory of its own.
fn start(network: Network, root: &Path) -> [Gateway; 3] {
    [1, 2, 3].map(|n| start_one(network, root, n))
}

fn start_one(network: Network, root: &Path, n: u8) -> Gateway {
    let dir = root.join(format!("node{n}"));
    Gateway::start(network, n, &[1, 2, 3], &["--mesh-data-dir", dir.to_str().unwrap()])
}

async fn all_joined(nodes: &[Gateway; 3]) {
    joined(&nodes.iter().collect::<Vec<_>>(), 3, s(15)).await;
}

/// The workers' URLs and the models that have a policy, sorted.
async fn state(gateway: &Gateway) -> (Vec<String>, Vec<String>) {
    let texts = |list: &Value, key: &str| {
        let mut texts: Vec<String> =
            list.as_array().into_iter().flatten().map(|entry| entry[key].as_str().unwrap().to_owned()).collect();
        texts.sort();
        texts
    };
    let (_, workers) = gateway.get("/workers").await.unwrap_or_default();
    let (_, policies) = gateway.get("/ha/policies").await.unwrap_or_default();
    // The default policy is shown too, for models with a prefix index.
    let set =
        |list: &Value| list.as_array().into_iter().flatten().filter(|set| set["policy"] == "random").cloned().collect();
    let mut models = texts(&Value::Array(set(&policies["policies"])), "model");
    models.retain(|model| model != "*");
    (texts(&workers["workers"], "url"), models)
}

async fn add(gateway: &Gateway, url: &str) {
    let (status, answer) = gateway.post("/workers", json!({"url": url, "models": ["m"]})).await;
    assert_eq!(status, 202, "{answer}");
}

async fn remove(gateway: &Gateway, url: &str) {
    let (_, workers) = gateway.get("/workers").await.unwrap();
    let worker = workers["workers"].as_array().unwrap().iter().find(|worker| worker["url"] == url).unwrap();
    let path = format!("/workers/{}", worker["id"].as_str().unwrap());
    assert_eq!(gateway.http.delete(gateway.url(&path)).send().await.unwrap().status(), 202);
    eventually(s(10), "it is gone here", async || !state(gateway).await.0.contains(&url.to_owned())).await;
}

async fn put_policy(gateway: &Gateway, model: &str) {
    let body = json!({"policy": "random", "config": {}});
    let url = gateway.url(&format!("/ha/policies/{model}"));
    assert_eq!(gateway.http.put(url).json(&body).send().await.unwrap().status(), 200);
}

fn kill(nodes: &mut [Gateway]) {
    nodes.iter_mut().for_each(|node| node.process.signal(nix::sys::signal::Signal::SIGKILL));
    nodes.iter_mut().for_each(|node| node.process.kill());
}

const URLS: [&str; 3] = ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"];

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn a_crash_of_all_nodes_at_once_loses_nothing_and_brings_nothing_back() {
    let (network, root) = (Network::new(), tempfile::tempdir().unwrap());
    let mut nodes = start(network, root.path());
    all_joined(&nodes).await;
    for (node, url) in nodes.iter().zip(URLS) {
        add(node, url).await;
        put_policy(node, &format!("model-of-{}", node.name)).await;
    }
    let models = texts(&["model-of-node1", "model-of-node2", "model-of-node3"]);
    let expected = (texts(&URLS), models.clone());
    for node in &nodes {
        eventually(s(5), "every node has all", async || state(node).await == expected).await;
    }
    // Removed where it was not added; then one more write that was answered a moment before the crash.
    remove(&nodes[2], URLS[0]).await;
    put_policy(&nodes[1], "last").await;
    kill(&mut nodes);

    let mut models = models;
    models.insert(0, "last".to_owned());
    let expected = (texts(&URLS[1..]), models);
    // The node that removed has it on its disk; for the others the answer to the removal was no promise.
    let nodes = start(network, root.path());
    all_joined(&nodes).await;
    for node in &nodes {
        eventually(s(10), "all is there, and what was removed is not", async || state(node).await == expected).await;
    }
    let mut nodes = nodes;
    kill(&mut nodes);
    // Alone, without a peer to ask: its own disk has it all by now.
    let alone = start_one(network, root.path(), 1);
    eventually(s(10), "from its own disk", async || state(&alone).await == expected).await;
    assert!(alone.metrics().await.contains("smg_mesh_data_saves_total{result=\"failed\"} 0"));
}

#[tokio::test]
async fn damaged_and_missing_files_are_made_good_by_peers() {
    let (network, root) = (Network::new(), tempfile::tempdir().unwrap());
    let mut nodes = start(network, root.path());
    all_joined(&nodes).await;
    add(&nodes[0], URLS[0]).await;
    put_policy(&nodes[1], "m").await;
    let expected = (texts(&URLS[..1]), texts(&["m"]));
    for node in &nodes {
        eventually(s(5), "every node has all", async || state(node).await == expected).await;
    }
    kill(&mut nodes);
    let damaged = root.path().join("node1/state.redb");
    let mut bytes = std::fs::read(&damaged).unwrap();
    let half = bytes.len() / 2;
    bytes[..half].iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&damaged, &bytes[..half]).unwrap();
    std::fs::remove_dir_all(root.path().join("node2")).unwrap();

    let nodes = start(network, root.path());
    all_joined(&nodes).await;
    for node in &nodes {
        eventually(s(10), "the third node's disk serves all", async || state(node).await == expected).await;
    }
    let log = nodes[0].process.log();
    assert!(log.contains("damaged and was set aside") && log.contains("state.redb.corrupt-"), "{log}");
    let names = std::fs::read_dir(root.path().join("node1")).unwrap();
    let names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("state.redb.corrupt-")), "{names:?}");
    // What was set aside is written anew.
    let mut nodes = nodes;
    eventually(s(10), "node 1 has saved it", async || {
        let done = nodes[0].metrics().await;
        done.lines().any(|line| line.starts_with("smg_mesh_data_saves_total{result=\"done\"}") && !line.ends_with(" 0"))
    })
    .await;
    kill(&mut nodes);
    let alone = start_one(network, root.path(), 1);
    eventually(s(10), "from its own disk", async || state(&alone).await == expected).await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named() {
    let (network, root) = (Network::new(), tempfile::tempdir().unwrap());
    let node1 = start_one(network, root.path(), 1);
    eventually(s(10), "it runs", async || node1.get("/liveness").await.is_some()).await;
    std::fs::write(root.path().join("file"), "").unwrap();
    let used = root.path().join("node1");
    let file = root.path().join("file");
    let ip = network.ip(9).to_string();
    let args = ["--enable-mesh", "--mesh-server-name", "node9", "--mesh-host", &ip, "--host", &ip, "--port", "0"];
    for (case, dir, expected) in [("in use", &used, "in use by another process"), ("a file", &file, "cannot use")] {
        let dir = ["--prometheus-host", &ip, "--prometheus-port", "0", "--mesh-data-dir", dir.to_str().unwrap()];
        let mut process = Process::start(case, args.into_iter().chain(dir), &[]);
        assert_eq!(process.exit(s(10)).await.code(), Some(1), "{case}: {}", process.log());
        let log = process.log();
        assert!(log.contains(expected) && log.contains("--mesh-data-dir"), "{case}: {log}");
    }
    let without = std::process::Command::new(SMG).args(["--mesh-data-dir", "/tmp/x"]).output().unwrap();
    assert_eq!(without.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&without.stderr).contains("--mesh-data-dir needs --enable-mesh"));
}
