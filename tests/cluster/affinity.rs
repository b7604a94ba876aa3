//! Conversations find their cache through any gateway, and nobody has to be alive for it who was there before.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Gateway, Network, Process, eventually, joined, s, worker};

/// Least share of follow-ups on the same worker.
const SAME_MIN: f64 = 0.95;

const CONVERSATIONS: usize = 60;
const TURNS: usize = 6;
const WORKERS: u8 = 4;

/// A conversation and how it went.
struct Talk {
    messages: Vec<Value>,
    worker: String,
    follow_ups: usize,
    same: usize,
    cached: Vec<u64>,
}

/// Text of about so many bytes that no other seed shares.
fn text(seed: usize, bytes: usize) -> String {
    (0..).map(|i| format!("{} ", (seed + 1) * 7919 + i * 31)).take(bytes / 6).collect()
}

impl Talk {
    /// Every tenth conversation has the same system prompt.
    fn new(number: usize) -> Self {
        let system = json!({"role": "system", "content": text(1000 + number % 10, 2400)});
        Self { messages: vec![system], worker: String::new(), follow_ups: 0, same: 0, cached: Vec::new() }
    }

    async fn turn(&mut self, number: usize, gateway: &Gateway) {
        let question = text(number * 100 + self.messages.len(), 600);
        self.messages.push(json!({"role": "user", "content": question}));
        let body = json!({"model": "m1", "messages": self.messages});
        let answer = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let by = answer.headers()["x-sim-worker"].to_str().unwrap().to_owned();
        let answer: Value = answer.json().await.unwrap();
        if !self.worker.is_empty() {
            self.follow_ups += 1;
            self.same += usize::from(self.worker == by);
        }
        self.worker = by;
        self.cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
        self.messages.push(answer["choices"][0]["message"].clone());
    }
}

/// Gateways with the workers of a network, all ready and joined.
async fn start(network: Network, count: u8) -> (Vec<Gateway>, Vec<Process>) {
    let workers = (0..WORKERS).map(|n| {
        let name = format!("worker{n}");
        worker(network, 100 + n, "m1", &["--name", &name, "--ttft-ms", "30"])
    });
    let (processes, urls): (Vec<_>, Vec<_>) = workers.unzip();
    let peers: Vec<u8> = (1..=count).collect();
    let gateways: Vec<_> = (1..=count).map(|n| gateway(network, n, &peers, &urls)).collect();
    joined(&gateways.iter().collect::<Vec<_>>(), count, s(10)).await;
    for gateway in &gateways {
        ready(gateway).await;
    }
    (gateways, processes)
}

fn gateway(network: Network, n: u8, peers: &[u8], urls: &[String]) -> Gateway {
    Gateway::start(network, n, peers, &["--worker-urls", &urls.join(",")])
}

async fn ready(gateway: &Gateway) {
    let all = u64::from(WORKERS);
    eventually(
        s(10),
        "all workers are ready",
        async || matches!(gateway.get("/readiness").await, Some((200, body)) if body["healthy_workers"] == all),
    )
    .await;
}

/// Some turns of all conversations, each turn at the next of the gateways; all at once, as clients do.
async fn talk(talks: &mut [Talk], turns: std::ops::Range<usize>, gateways: &[Gateway]) {
    for turn in turns {
        let asked = talks.iter_mut().enumerate();
        join_all(asked.map(|(number, talk)| talk.turn(number, &gateways[(number + turn) % gateways.len()]))).await;
        // People read an answer before they go on. Here for as long as hints take on a machine that runs all tests at
        // once; they may be lost, so the wait has an end.
        let _ = timeout(s(2), heard(gateways)).await;
    }
}

/// Waits until each gateway has received as many placements as the others sent.
async fn heard(gateways: &[Gateway]) {
    loop {
        let counts = join_all(gateways.iter().map(|gateway| async {
            let metrics = gateway.metrics().await;
            ["sent", "received"].map(|direction| {
                let start = format!("smg_cache_aware_placements_total{{direction=\"{direction}\"}} ");
                metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok()).unwrap_or(0)
            })
        }));
        let counts = counts.await;
        let sent: u64 = counts.iter().map(|[sent, _]| sent).sum();
        if counts.iter().all(|[own, received]| received + own >= sent) {
            return;
        }
    }
}

fn same_share(talks: &[Talk]) -> f64 {
    let (same, all) = talks.iter().fold((0, 0), |sum, talk| (sum.0 + talk.same, sum.1 + talk.follow_ups));
    same as f64 / all as f64
}

/// Mean cached tokens of the first [`TURNS`] turns.
fn cached(talks: &[Talk]) -> f64 {
    let tokens: u64 = talks.iter().flat_map(|talk| &talk.cached[..TURNS]).sum();
    tokens as f64 / (talks.len() * TURNS) as f64
}

fn talks() -> Vec<Talk> {
    (0..CONVERSATIONS).map(Talk::new).collect()
}

#[tokio::test]
async fn three_gateways_route_as_one_and_a_fresh_one_joins_in() {
    let network = Network::new();
    let (gateways, _workers) = start(network, 3).await;
    let mut shared = talks();
    talk(&mut shared, 0..TURNS, &gateways).await;
    let (alone_gateways, _alone_workers) = start(Network::new(), 1).await;
    let mut alone = talks();
    talk(&mut alone, 0..TURNS, &alone_gateways).await;
    let (same, ratio) = (same_share(&shared), cached(&shared) / cached(&alone));
    let case = format!("same worker {same:.3}, cached tokens {ratio:.3} of those through one gateway");
    assert!(same >= SAME_MIN, "{case}");
    assert!(ratio >= 0.90, "{case}");
    let used: BTreeSet<&str> = shared.iter().map(|talk| talk.worker.as_str()).collect();
    assert_eq!(used.len(), usize::from(WORKERS), "all workers take part");

    let urls: Vec<String> = (0..WORKERS).map(|n| format!("http://{}:9000", network.ip(100 + n))).collect();
    let fresh = [gateway(network, 4, &[1, 2, 3], &urls)];
    ready(&fresh[0]).await;
    let before: usize = shared.iter().map(|talk| talk.same).sum();
    talk(&mut shared, TURNS..TURNS + 1, &fresh).await;
    let kept = shared.iter().map(|talk| talk.same).sum::<usize>() - before;
    assert!(kept * 10 >= CONVERSATIONS * 9, "the fresh gateway kept {kept} of {CONVERSATIONS} conversations");
    let (_, status) = fresh[0].get("/ha/status").await.unwrap();
    assert!(status["stores"]["routing"]["entry_count"].as_u64().unwrap() > 0, "{status}");
    let (_, policy) = fresh[0].get("/ha/policies/m1").await.unwrap();
    assert_eq!(policy["policy"], "cache_aware");
    assert!(policy["index"]["bytes"].as_u64().unwrap() > 0, "{policy}");
}

#[tokio::test]
async fn conversations_survive_a_killed_gateway() {
    let (mut gateways, _workers) = start(Network::new(), 3).await;
    let mut all = talks();
    talk(&mut all, 0..TURNS / 2, &gateways).await;
    gateways[1].process.kill();
    gateways.remove(1);
    let before: usize = all.iter().map(|talk| talk.same).sum();
    talk(&mut all, TURNS / 2..TURNS, &gateways).await;
    let kept = all.iter().map(|talk| talk.same).sum::<usize>() - before;
    let asked = CONVERSATIONS * (TURNS - TURNS / 2);
    assert!(kept * 100 >= asked * 95, "{kept} of {asked} follow-ups stayed after the kill");
    assert!(same_share(&all) >= SAME_MIN, "{:.3}", same_share(&all));
}

#[tokio::test]
async fn a_flushed_cache_counts_nowhere() {
    let (gateways, _workers) = start(Network::new(), 2).await;
    // Matched blocks of a prompt that both gateways may have seen.
    let matched = async |gateway: &Gateway, number: usize| {
        let messages = json!([{"role": "user", "content": text(number, 2000)}]);
        let request = gateway.http.post(gateway.url("/v1/chat/completions")).header("x-smg-explain", "1");
        let answer = request.json(&json!({"model": "m1", "messages": messages})).send().await.unwrap();
        let route = answer.headers()["x-smg-route"].to_str().unwrap().to_owned();
        let told = route.split("matched=").nth(1).unwrap().split('/').next().unwrap().to_owned();
        told.parse::<u32>().unwrap()
    };
    for number in 0..100 {
        assert_eq!(matched(&gateways[0], number).await, 0);
    }
    assert!(matched(&gateways[0], 0).await > 0);
    assert_eq!(gateways[1].post("/flush_cache", json!({})).await.0, 200);
    let mut number = 0;
    eventually(s(2), "the other gateway counts nothing from before", async || {
        number += 1;
        matched(&gateways[0], number).await == 0
    })
    .await;
}
