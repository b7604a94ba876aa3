//! Workers and peers that are pods: three gateways and an API server that fails.

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::{
    harness::{Gateway, Network, Process, eventually, joined, never_for, s, worker},
    kube_server::{Mode, Server, pod},
};

/// Gateways that find workers, and one another, by the label that the pods of the server have.
struct Cluster {
    network: Network,
    server: Server,
    kubeconfig: tempfile::NamedTempFile,
}

impl Cluster {
    async fn start() -> Self {
        let network = Network::new();
        let server = Server::start(network.ip(200)).await;
        server.stored().zones.insert("n1".into(), "z1".into());
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(kubeconfig.path(), server.kubeconfig()).unwrap();
        Self { network, server, kubeconfig }
    }

    /// Node `n`; with `peers` empty it has nobody but the pods.
    fn gateway(&self, n: u8, peers: &str, more: &[&str]) -> Gateway {
        let (name, ip) = (format!("node{n}"), self.network.ip(n).to_string());
        let mut args = vec!["--enable-mesh", "--mesh-server-name", &name, "--mesh-host", &ip, "--mesh-port", "39527"];
        args.extend(["--host", &ip, "--port", "8000", "--prometheus-host", &ip, "--prometheus-port", "29000"]);
        args.extend(["--health-check-interval-secs=1", "--mesh-peer-urls", peers]);
        args.extend(more);
        let env = [("KUBECONFIG", self.kubeconfig.path().display().to_string())];
        Gateway::attach(Process::start(&name, args, &env), name.clone(), self.network.ip(n))
    }

    /// A gateway that finds workers.
    fn finder(&self, n: u8) -> Gateway {
        let peers = [1, 2, 3].map(|peer| format!("{}:39527", self.network.ip(peer))).join(",");
        let search = ["--service-discovery", "--selector=app=w", "--service-discovery-port=http"];
        self.gateway(n, &peers, &[&search[..], &["--service-discovery-interval-secs=1"]].concat())
    }

    /// The pod of the worker at address `n`.
    fn pod(&self, n: u8) -> Value {
        pod(&format!("w-{n}"), &self.network.ip(n).to_string(), "n1")
    }
}

/// `address state` of every worker, sorted; none while the gateway does not answer.
async fn workers(gateway: &Gateway) -> Vec<String> {
    let Some((200, listing)) = gateway.get("/workers").await else { return Vec::new() };
    let text = |worker: &Value, key: &str| worker[key].as_str().unwrap_or_default().to_owned();
    let shown = listing["workers"].as_array().unwrap().iter();
    let mut shown: Vec<String> = shown.map(|w| format!("{} {}", text(w, "url"), text(w, "state"))).collect();
    shown.sort();
    shown
}

async fn all_show(gateways: &[&Gateway], what: &str, expected: &[String]) {
    for gateway in gateways {
        eventually(s(20), &format!("{}: {what}", gateway.name), async || workers(gateway).await == expected).await;
    }
}

#[tokio::test]
async fn pods_come_and_go_as_workers_of_the_whole_cluster() {
    let cluster = Cluster::start().await;
    let server = &cluster.server;
    let slow = ["--inter-token-delay-ms", "100", "--tokens", "40"];
    let (_worker1, url1) = worker(cluster.network, 101, "m1", &slow);
    let (_worker2, url2) = worker(cluster.network, 102, "m1", &[]);
    server.put(&cluster.pod(101));
    let gateways = [1, 2, 3].map(|n| cluster.finder(n));
    let all: Vec<&Gateway> = gateways.iter().collect();
    joined(&all, 3, s(10)).await;
    all_show(&all, "the pod is a worker", &[format!("{url1} ready")]).await;
    // Zones are looked up once workers are found, and delay none.
    eventually(s(20), "the pod's zone is known", async || {
        let (_, listing) = all[0].get("/workers").await.unwrap();
        let worker = &listing["workers"][0];
        assert_eq!(worker["origin"], "discovered");
        worker["zone"] == "z1"
    })
    .await;

    // A stream runs on while its pod is being deleted, and another takes over.
    let body = json!({"model": "m1", "stream": true, "messages": [{"role": "user", "content": "hello"}]});
    let answer = all[0].http.post(all[0].url("/v1/chat/completions")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    server.put(&cluster.pod(102));
    let mut ending = cluster.pod(101);
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    server.put(&ending);
    for gateway in &all[1..] {
        let left = async || workers(gateway).await == [format!("{url2} ready")];
        eventually(s(20), "the one that is being deleted gets nothing", left).await;
    }
    let mut text = Vec::new();
    let mut chunks = answer.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        text.extend_from_slice(&chunk.expect("the stream runs on"));
    }
    assert!(String::from_utf8(text).unwrap().trim_end().ends_with("data: [DONE]"));
    server.delete("w-101");

    // Not Ready: still registered, and asked by nobody.
    let mut unready = cluster.pod(102);
    unready["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    server.put(&unready);
    all_show(&all, "held", &[format!("{url2} not_ready")]).await;
    assert_eq!(all[0].chat("m1").await.unwrap().0, 503);
    server.put(&cluster.pod(102));
    all_show(&all, "Ready again", &[format!("{url2} ready")]).await;

    // What an operator removed does not come back while its pod lives; another pod at the address does.
    let path = format!("/workers/{}", url2.replace(':', "%3A").replace('/', "%2F"));
    let removed = all[1].http.delete(all[1].url(&path)).send().await.unwrap();
    assert_eq!(removed.status(), 202);
    let lists = server.stored().lists;
    eventually(s(20), "three lists a gateway", async || server.stored().lists > lists + 9).await;
    all_show(&all, "removed by the operator", &[]).await;
    // Nor when its label was off for a while.
    server.delete("w-102");
    let lists = server.stored().lists;
    eventually(s(20), "two lists a gateway without it", async || server.stored().lists > lists + 6).await;
    server.put(&cluster.pod(102));
    let lists = server.stored().lists;
    eventually(s(20), "two lists a gateway with it", async || server.stored().lists > lists + 6).await;
    all_show(&all, "still removed", &[]).await;
    let mut other = cluster.pod(102);
    other["metadata"]["uid"] = json!("another");
    server.put(&other);
    all_show(&all, "another pod", &[format!("{url2} ready")]).await;
}

#[tokio::test]
async fn a_worker_that_a_flag_names_too_stays_when_its_pod_goes() {
    let cluster = Cluster::start().await;
    let (_worker, url) = worker(cluster.network, 101, "m1", &[]);
    cluster.server.put(&cluster.pod(101));
    let finder = cluster.finder(1);
    all_show(&[&finder], "found", &[format!("{url} ready")]).await;
    let peers = format!("{}:39527", cluster.network.ip(1));
    let namer = cluster.gateway(2, &peers, &["--worker-urls", &url]);
    let both = [&finder, &namer];
    joined(&both, 2, s(10)).await;
    for gateway in both {
        let origin = async || gateway.get("/workers").await.map(|(_, listing)| listing["workers"][0]["origin"].clone());
        eventually(s(10), "the flag's", async || origin().await == Some(json!("seed"))).await;
    }
    cluster.server.delete("w-101");
    let lists = cluster.server.stored().lists;
    eventually(s(20), "three lists without it", async || cluster.server.stored().lists > lists + 3).await;
    all_show(&both, "it stays", &[format!("{url} ready")]).await;
}

#[tokio::test]
async fn an_api_server_that_fails_takes_no_worker_away() {
    let cluster = Cluster::start().await;
    let (_worker, url) = worker(cluster.network, 101, "m1", &[]);
    cluster.server.put(&cluster.pod(101));
    let gateways = [1, 2].map(|n| cluster.finder(n));
    let all: Vec<&Gateway> = gateways.iter().collect();
    let ready = [format!("{url} ready")];
    all_show(&all, "the pod is a worker", &ready).await;
    // A gateway that has not asked the worker yet shows what the others saw.
    eventually(s(10), "it serves", async || matches!(all[1].chat("m1").await, Ok((200, _)))).await;
    for mode in [Mode::Empties, Mode::Forbids, Mode::Babbles, Mode::Hangs] {
        cluster.server.set_mode(mode);
        let is_changed = async || workers(all[0]).await != ready || !matches!(all[1].chat("m1").await, Ok((200, _)));
        never_for(s(3), &format!("{mode:?}"), is_changed).await;
    }
    // A gateway that starts meanwhile has what the others found.
    let third = cluster.finder(3);
    all_show(&[&third], "known from its peers", &ready).await;
    let scrape = all[0].metrics().await;
    assert!(scrape.contains("smg_kubernetes_requests_total{operation=\"list\",result=\"forbidden\"}"), "{scrape}");
    let log = all[0].process.log();
    assert!(log.contains("pods not followed, what is known stays"));
    assert!(!log.contains("kube_client"), "the search says what failed: {log}");
    cluster.server.set_mode(Mode::Works);
    let mut ending = cluster.pod(101);
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    cluster.server.put(&ending);
    // A list that hung is given up after 30 s.
    for gateway in &all {
        eventually(s(60), "the server is back", async || workers(gateway).await.is_empty()).await;
    }
}

#[tokio::test]
async fn gateways_find_one_another_by_label() {
    let cluster = Cluster::start().await;
    for n in [1, 2, 3] {
        let mut router = cluster.pod(n);
        router["status"]["conditions"] = json!([]);
        cluster.server.put(&router);
    }
    let gateways = [1, 2, 3].map(|n| cluster.gateway(n, NOBODY, &["--router-selector=app=w"]));
    joined(&gateways.iter().collect::<Vec<_>>(), 3, s(20)).await;
    // One whose pod comes later is joined from either side.
    cluster.server.put(&cluster.pod(4));
    let fourth = cluster.gateway(4, NOBODY, &["--router-selector=app=w"]);
    joined(&[&gateways[0], &fourth], 4, s(20)).await;
}

/// A peer whose name is not found: all that is known of the others is that there are some.
const NOBODY: &str = "smg-mesh.invalid:39527";

#[tokio::test]
async fn without_an_api_server_to_ask_the_gateway_does_not_start() {
    let network = Network::new();
    let ip = network.ip(1).to_string();
    let args = ["--host", &ip, "--port", "8000", "--prometheus-host", &ip, "--service-discovery", "--selector=app=w"];
    let env = [("KUBECONFIG", "/nonexistent".to_owned()), ("HOME", "/nonexistent".to_owned())];
    let mut process = Process::start("node1", args, &env);
    assert_eq!(process.exit(s(10)).await.code(), Some(1));
    assert!(process.log().contains("--service-discovery: find the Kubernetes API server"), "{}", process.log());
}
