//! A rate limit of the whole cluster, as its clients see it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

const LIMIT: f64 = 100.0;
const BURST: f64 = 20.0;

/// What became of a request, and when it was under way.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    sent: Instant,
    answered: Instant,
    is_admitted: bool,
}

/// Clients that send requests at a steady pace until they are dropped.
struct Load {
    ended: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Each of `urls` gets 100 requests a second, or as many as the machine can send.
    fn start(urls: &[String], seen: &Arc<Mutex<Vec<Outcome>>>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for url in urls {
            clients.spawn(client(url.clone(), seen.clone(), ended.clone()));
        }
        Self { ended, clients }
    }

    async fn end(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
    }
}

async fn client(url: String, seen: Arc<Mutex<Vec<Outcome>>>, ended: Arc<AtomicBool>) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({"model": "m1", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]});
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    while !ended.load(Ordering::Relaxed) {
        pace.tick().await;
        let sent = Instant::now();
        // A gateway that was killed answers nothing.
        let Ok(answer) = http.post(&url).json(&body).send().await else { continue };
        let (status, answered) = (answer.status().as_u16(), Instant::now());
        if status == 429 {
            for header in ["retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"] {
                assert!(answer.headers().contains_key(header), "no {header}");
            }
        } else {
            assert_eq!(status, 200);
        }
        drop(answer.bytes().await);
        seen.lock().unwrap().push(Outcome { sent, answered, is_admitted: status == 200 });
    }
}

/// Every window: what was sent in it and answered in it was admitted in it.
fn assert_within_limit(seen: &[Outcome]) {
    let mut admitted: Vec<Outcome> = seen.iter().filter(|outcome| outcome.is_admitted).copied().collect();
    admitted.sort_by_key(|outcome| outcome.answered);
    for (n, first) in admitted.iter().enumerate() {
        let begin = first.sent;
        let mut count = 0;
        // Nothing that was answered before was sent after.
        for last in &admitted[n..] {
            count += u32::from(last.sent >= begin);
            let allowed = LIMIT * (last.answered - begin).as_secs_f64() + BURST;
            assert!(f64::from(count) <= allowed + 1.0, "{count} of {allowed} in {:?}", last.answered - begin);
        }
    }
}

/// Waits for two seconds in which nearly all of the limit was used.
async fn is_used(seen: &Arc<Mutex<Vec<Outcome>>>, what: &str) {
    let begin = Instant::now();
    let span = s(2);
    eventually(s(40), what, async || {
        let now = Instant::now();
        let since = now - span;
        let is_recent = |outcome: &&Outcome| outcome.is_admitted && outcome.answered >= since;
        let admitted = seen.lock().unwrap().iter().filter(is_recent).count();
        since >= begin && admitted as f64 >= 0.9 * LIMIT * span.as_secs_f64()
    })
    .await;
}

async fn stats(gateway: &Gateway) -> Value {
    gateway.get("/ha/rate-limit/stats").await.map_or(Value::Null, |(_, stats)| stats)
}

/// The leader's table of owners, by whoever has it.
async fn table(gateways: &[&Gateway]) -> Option<(usize, Vec<Value>)> {
    for (n, gateway) in gateways.iter().enumerate() {
        if let Some(owners) = stats(gateway).await["owners"].as_array() {
            return Some((n, owners.clone()));
        }
    }
    None
}

#[tokio::test]
async fn three_gateways_admit_what_the_limit_allows_also_when_the_leader_is_killed() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let flags = ["--worker-urls", &url, "--rate-limit-tokens-per-second", "100", "--rate-limit-burst", "20"];
    let mut nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &flags));
    joined(&nodes.each_ref(), 3, s(10)).await;
    for node in &nodes {
        eventually(s(20), "serves", async || matches!(node.chat("m1").await, Ok((200, _)))).await;
    }
    let seen: Arc<Mutex<Vec<Outcome>>> = Arc::default();
    let urls: Vec<String> = nodes.iter().map(|node| node.url("/v1/chat/completions")).collect();

    let even = Load::start(&urls, &seen);
    is_used(&seen, "an even load uses the limit").await;
    even.end().await;

    let one = Load::start(&[urls[1].clone(), urls[1].clone(), urls[1].clone()], &seen);
    is_used(&seen, "a load on one gateway uses the limit").await;
    let (leader, owners) = table(&nodes.each_ref()).await.expect("a leader");
    assert_eq!(owners.len(), 3, "{owners:?}");
    let rates: Vec<f64> = owners.iter().filter_map(|owner| owner["per_second"].as_f64()).collect();
    assert!(rates.iter().sum::<f64>() <= LIMIT + 1e-6 && rates[1] > 80.0, "{owners:?}");
    one.end().await;

    let even = Load::start(&urls, &seen);
    is_used(&seen, "an even load uses the limit again").await;
    nodes[leader].process.kill();
    is_used(&seen, "the others use the limit after a kill").await;
    even.end().await;
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().filter(|outcome| !outcome.is_admitted).count() > 100, "more came than the limit allows");
    assert_within_limit(&seen);

    let others: Vec<&Gateway> = nodes.iter().enumerate().filter(|(n, _)| *n != leader).map(|(_, node)| node).collect();
    let (second, owners) = table(&others).await.expect("another leader");
    assert_eq!(owners.len(), 2, "{owners:?}");
    let metrics = others[second].metrics().await;
    for series in ["smg_mesh_limit_rate_held ", "smg_mesh_limit_leases_total{event=\"lent\"} "] {
        assert!(metrics.contains(series), "{series} in {metrics}");
    }
    let lent = metrics.lines().find_map(|line| line.strip_prefix("smg_mesh_limit_rate_lent ")?.parse().ok());
    // A share that moves is in nobody's hands for a moment.
    assert!(lent.is_some_and(|lent| (0.75 * LIMIT..=LIMIT).contains(&lent)), "{lent:?}");
}

#[tokio::test]
async fn a_limit_that_is_set_or_taken_away_holds_everywhere() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let nodes = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &["--worker-urls", &url]));
    joined(&nodes.each_ref(), 2, s(10)).await;
    for node in &nodes {
        eventually(s(10), "serves", async || matches!(node.chat("m1").await, Ok((200, _)))).await;
    }
    let set = json!({"limit_per_second": 1, "burst": 2});
    assert_eq!(nodes[0].post("/ha/rate-limit", set).await.0, 200);
    eventually(s(10), "both hold a part", async || {
        let held = [stats(&nodes[0]).await, stats(&nodes[1]).await];
        held.iter().all(|stats| stats["held"]["burst"].as_f64() == Some(1.0))
    })
    .await;
    for node in &nodes {
        eventually(s(20), "refuses", async || matches!(node.chat("m1").await, Ok((429, _)))).await;
    }
    assert_eq!(nodes[1].post("/ha/rate-limit", json!({"limit_per_second": 0})).await.0, 200);
    for node in &nodes {
        eventually(s(10), "no limit", async || stats(node).await["limit_per_second"] == 0).await;
        for _ in 0..10 {
            assert_eq!(node.chat("m1").await.unwrap().0, 200, "0 is no limit");
        }
    }
}

/// Two of three die. The third has no quorum: `closed` refuses, `local` admits its third and says so everywhere.
#[tokio::test]
async fn a_rest_without_a_quorum_admits_its_part_where_that_is_wanted() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let limit = ["--worker-urls", &url, "--rate-limit-tokens-per-second", "90", "--rate-limit-burst", "30"];
    let local = [&limit[..], &["--mesh-rate-limit-without-quorum", "local"]].concat();
    let mut nodes = [
        Gateway::start(network, 1, &[1, 2, 3], &local),
        Gateway::start(network, 2, &[1, 2, 3], &limit),
        Gateway::start(network, 3, &[1, 2, 3], &limit),
    ];
    joined(&nodes.each_ref(), 3, s(10)).await;
    for node in &nodes {
        eventually(s(20), "serves", async || matches!(node.chat("m1").await, Ok((200, _)))).await;
    }
    nodes[2].process.kill();
    eventually(s(10), "two are a quorum, and one of them lends", async || stats(&nodes[0]).await["rights"] == "lent")
        .await;
    nodes[1].process.kill();
    let [rest, ..] = &nodes;
    eventually(s(10), "admits by itself", async || stats(rest).await["rights"] == "local").await;
    let held = stats(rest).await;
    assert_eq!((held["held"]["per_second"].as_f64(), held["held"]["burst"].as_f64()), (Some(30.0), Some(10.0)));
    assert_eq!(held["without_quorum"], "local");
    eventually(s(10), "/ha/status says it", async || {
        let limits = rest.get("/ha/status").await.unwrap().1["limits"].take();
        limits["without_quorum"] == "local" && limits["rights"] == "local" && limits["limit_per_second"] == 90
    })
    .await;
    assert!(rest.metrics().await.contains("smg_mesh_limit_local 1"));
    assert!(rest.process.log().contains("--mesh-rate-limit-without-quorum"));

    let seen: Arc<Mutex<Vec<Outcome>>> = Arc::default();
    let begin = Instant::now();
    let load = Load::start(&[rest.url("/v1/chat/completions")], &seen);
    let admitted = || seen.lock().unwrap().iter().filter(|outcome| outcome.is_admitted).count();
    eventually(s(20), "serves by its part", async || admitted() > 60).await;
    load.end().await;
    let allowed = 30.0 * begin.elapsed().as_secs_f64() + 10.0;
    assert!(admitted() as f64 <= allowed + 1.0, "{} of {allowed}", admitted());

    // With a quorum again it is lent a share, and its own part is over.
    let back = Gateway::start(network, 2, &[1, 2, 3], &limit);
    eventually(s(20), "is lent a share", async || stats(rest).await["rights"] == "lent").await;
    // The other, which refuses without a quorum, serves as well.
    eventually(s(10), "serves", async || matches!(back.chat("m1").await, Ok((200, _)))).await;
    drop(back);
    nodes[0].process.kill();
}

/// One of three that starts cut off from the others, whom it never met, counts them all the same.
#[tokio::test]
async fn one_of_three_that_starts_alone_admits_its_third() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let local = ["--rate-limit-tokens-per-second", "90", "--rate-limit-burst", "30"];
    for (n, voters) in [(1, "auto"), (2, "node1,node2,node3")] {
        let more = ["--worker-urls", &url, "--mesh-rate-limit-without-quorum", "local", "--mesh-voters", voters];
        let alone = Gateway::start(network, n, &[1, 2, 3], &[&local[..], &more].concat());
        let mut held = Value::Null;
        eventually(s(20), "admits by itself", async || {
            held = stats(&alone).await;
            held["rights"] == "local"
        })
        .await;
        let found = (held["held"]["per_second"].as_f64(), held["held"]["burst"].as_f64());
        assert_eq!(found, (Some(30.0), Some(10.0)), "--mesh-voters {voters}: {held}");
    }
}

#[tokio::test]
async fn a_rest_without_a_quorum_refuses_by_default() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let flags = ["--worker-urls", &url, "--rate-limit-tokens-per-second", "90", "--mesh-voters", "node1,node2,node3"];
    let rest = Gateway::start(network, 1, &[1, 2, 3], &flags);
    eventually(s(20), "ready", async || rest.is_ready().await).await;
    let (status, _) = rest.chat("m1").await.unwrap();
    assert_eq!(status, 429);
    let stats = stats(&rest).await;
    assert_eq!((&stats["rights"], &stats["without_quorum"]), (&json!("none"), &json!("closed")), "{stats}");
}

/// The id of an API key, as `sha256sum` prints it.
const KEY_ID: &str = "2cf24dba5fb0a30e";

/// Waits until each knows what all counted for the limit of the key.
async fn count_alike(nodes: &[Gateway], admitted: u64) {
    for node in nodes {
        eventually(s(10), "both know what both counted", async || {
            let total = &stats(node).await["limits"][1]["cluster"];
            let names: Vec<&str> =
                total["nodes"].as_array().unwrap().iter().filter_map(|n| n["node_name"].as_str()).collect();
            total["allowed"] == admitted && total["rejected"].as_u64() >= Some(40) && names == ["node1", "node2"]
        })
        .await;
    }
}

/// Limits of a key and of a model hold over all gateways, beside the one of all; who is refused by one costs no other a
/// token.
#[tokio::test]
async fn limits_of_a_key_and_of_a_model_hold_over_all_gateways() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let flags = ["--worker-urls", &url, "--api-key", "hello", "--rate-limit-tokens-per-second", "1000"];
    let nodes = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &flags));
    joined(&nodes.each_ref(), 2, s(10)).await;
    for (node, body) in [
        (0, json!({"limit_per_second": 1, "burst": 4, "key": KEY_ID})),
        (1, json!({"limit_per_second": 500, "burst": 500, "model": "m1"})),
    ] {
        let (status, answer) = nodes[node].post("/ha/rate-limit", body).await;
        assert_eq!(status, 200, "{answer}");
    }
    let limits = json!([
        {"key": null, "model": "m1", "limit_per_second": 500, "burst": 500, "concurrent": 0, "in_force": true},
        {"key": KEY_ID, "model": null, "limit_per_second": 1, "burst": 4, "concurrent": 0, "in_force": true},
    ]);
    let body = json!({"model": "m1", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]});
    let chat = async |node: &Gateway| {
        let request = node.http.post(node.url("/v1/chat/completions")).bearer_auth("hello").json(&body);
        request.send().await.unwrap()
    };
    for node in &nodes {
        eventually(s(10), "shows both", async || node.get("/ha/rate-limit").await.unwrap().1["limits"] == limits).await;
        eventually(s(20), "holds a part of each", async || {
            let stats = stats(node).await;
            stats["limits"].as_array().unwrap().iter().all(|limit| limit["held"]["burst"].as_f64() > Some(0.9))
        })
        .await;
        assert_eq!(nodes[0].post("/ha/rate-limit", json!({"limit_per_second": 1, "key": "hello"})).await.0, 400);
    }
    let begin = Instant::now();
    let (mut admitted, mut refused) = (0_u64, 0);
    // Rights begin without tokens: the first comes after a second or two.
    while refused < 40 || admitted < 3 {
        assert!(begin.elapsed() < s(30), "{admitted} admitted, {refused} refused");
        for node in &nodes {
            let answer = chat(node).await;
            match answer.status().as_u16() {
                200 => admitted += 1,
                429 => {
                    refused += 1;
                    assert_eq!(answer.headers()["x-ratelimit-limit"], "1", "the tightest is told");
                }
                other => panic!("{other}"),
            }
        }
    }
    let allowed = begin.elapsed().as_secs_f64() + 4.0;
    assert!(admitted as f64 <= allowed + 1.0, "{admitted} of {allowed}");
    let mut counted = 0;
    for node in &nodes {
        let stats = stats(node).await;
        let of = |n: usize| stats["limits"][n]["allowed"].as_u64().unwrap();
        assert_eq!([of(0), of(1)], [stats["allowed"].as_u64().unwrap(); 2], "counted in all or in none: {stats}");
        counted += of(1);
    }
    assert_eq!(counted, admitted);
    count_alike(&nodes, admitted).await;
    assert_eq!(nodes[1].post("/ha/rate-limit", json!({"limit_per_second": 0, "key": KEY_ID})).await.0, 200);
    for node in &nodes {
        eventually(s(10), "without it", async || {
            node.get("/ha/rate-limit").await.unwrap().1["limits"].as_array().unwrap().len() == 1
        })
        .await;
        for _ in 0..10 {
            assert_eq!(chat(node).await.status().as_u16(), 200);
        }
    }
}

/// Every gateway tells how many tokens the bucket of the cluster holds: full at rest, less by what was admitted anywhere, and
/// without those of one that died.
#[tokio::test]
async fn every_gateway_tells_what_the_bucket_of_the_cluster_holds() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let flags = ["--worker-urls", &url];
    let mut nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &flags));
    joined(&nodes.each_ref(), 3, s(10)).await;
    assert_eq!(stats(&nodes[0]).await["cluster"]["tokens"], Value::Null, "no limit, no bucket");
    let set = json!({"limit_per_second": 10, "burst": 60});
    assert_eq!(nodes[0].post("/ha/rate-limit", set).await.0, 200);
    let tokens = async |node: &Gateway| {
        let cluster = stats(node).await["cluster"].take();
        let by_node: f64 = cluster["nodes"].as_array().unwrap().iter().filter_map(|n| n["tokens"].as_f64()).sum();
        let total = cluster["tokens"].as_f64().unwrap();
        assert!((0.0..=60.0).contains(&total) && total <= by_node + 1e-6, "{cluster}");
        total
    };
    // Thousandths are rounded down, once for each gateway.
    for node in &nodes {
        eventually(s(30), "the bucket fills", async || tokens(node).await >= 59.9).await;
    }
    for _ in 0..20 {
        assert_eq!(nodes[1].chat("m1").await.unwrap().0, 200, "there is room for more");
    }
    for node in &nodes {
        eventually(s(10), "all know of the tokens that were spent", async || {
            let cluster = stats(node).await["cluster"].take();
            cluster["allowed"] == 20 && cluster["tokens"].as_f64().is_some_and(|tokens| tokens < 60.0)
        })
        .await;
    }
    for node in &nodes {
        eventually(s(30), "the bucket fills again", async || tokens(node).await >= 59.9).await;
    }
    nodes[2].process.kill();
    eventually(s(20), "a dead gateway holds nothing", async || {
        let cluster = stats(&nodes[0]).await["cluster"].take();
        cluster["nodes"].as_array().unwrap().iter().any(|n| n["node_name"] == "node3" && n["tokens"] == 0.0)
    })
    .await;
    for node in &nodes[..2] {
        eventually(s(30), "what it held is lent anew", async || tokens(node).await >= 59.9).await;
    }
}
