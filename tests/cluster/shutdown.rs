//! Leaving: SIGTERM, `POST /ha/shutdown`, and requests that run on.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Gateway, Network, SMG, eventually, joined, s, worker};

#[tokio::test]
async fn sigterm_finishes_what_runs_and_tells_the_others() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &["--inter-token-delay-ms", "100", "--tokens", "30"]);
    let [mut node1, node2] = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &["--worker-urls", &url]));
    joined(&[&node1, &node2], 2, s(5)).await;
    eventually(s(5), "ready", async || node1.is_ready().await).await;

    let body = json!({"model": "m1", "stream": true, "messages": [{"role": "user", "content": "hello"}]});
    let answer = node1.http.post(node1.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut chunks = answer.bytes_stream();
    let mut text = chunks.next().await.unwrap().unwrap().to_vec();

    node1.process.signal(Signal::SIGTERM);
    eventually(s(2), "it is not ready any more", async || matches!(node1.get("/readiness").await, Some((503, _))))
        .await;
    assert!(matches!(node1.get("/liveness").await, Some((200, _)) | None));
    eventually(s(3), "node 2 knows that node 1 leaves", async || {
        node2.statuses().await == ["node1=LEAVING", "node2=ALIVE"] || node2.statuses().await == ["node2=ALIVE"]
    })
    .await;
    while let Some(chunk) = chunks.next().await {
        text.extend_from_slice(&chunk.expect("the stream runs on"));
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    assert_eq!(node1.process.exit(s(12)).await.code(), Some(0));
    assert!(!node1.process.log().contains("DOWN"));
}

#[tokio::test]
async fn ha_shutdown_is_the_path_of_sigterm() {
    let network = Network::new();
    let mut node1 = Gateway::start(network, 1, &[], &["--shutdown-grace-period-secs", "2"]);
    eventually(s(5), "it answers", async || !node1.statuses().await.is_empty()).await;
    assert_eq!(node1.post("/ha/shutdown", json!({})).await.0, 202);
    assert_eq!(node1.process.exit(s(6)).await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &["--ttft-ms", "60000"]);
    let mut node1 = Gateway::start(network, 1, &[], &["--worker-urls", &url]);
    eventually(s(5), "ready", async || node1.is_ready().await).await;
    let (client, target) = (node1.http.clone(), node1.url("/v1/chat/completions"));
    let body = json!({"model": "m1", "messages": [{"role": "user", "content": "hello"}]});
    let stuck = tokio::spawn(async move { client.post(target).json(&body).send().await });
    eventually(s(5), "the request is in flight", async || {
        node1
            .metrics()
            .await
            .lines()
            .any(|line| line.starts_with("smg_worker_requests_active{") && line.ends_with(" 1"))
    })
    .await;
    node1.process.signal(Signal::SIGTERM);
    eventually(s(2), "it drains", async || matches!(node1.get("/readiness").await, Some((503, _)))).await;
    assert!(node1.process.is_running());
    node1.process.signal(Signal::SIGTERM);
    assert_ne!(node1.process.exit(s(1)).await.code(), Some(0));
    assert!(stuck.await.unwrap().is_err());
}

/// What a load balancer does: it sends to the gateways that said at its last look that they are ready, in turn, and never
/// twice.
struct Balancer {
    bases: Vec<String>,
    ready: Vec<AtomicBool>,
    turn: AtomicUsize,
    http: reqwest::Client,
}

impl Balancer {
    fn new(bases: Vec<String>) -> Self {
        let ready = bases.iter().map(|_| AtomicBool::new(false)).collect();
        let http = reqwest::Client::builder().timeout(s(20)).no_proxy().build().unwrap();
        Self { bases, ready, turn: AtomicUsize::new(0), http }
    }

    /// Looks at one gateway until `stop`.
    async fn watch(&self, index: usize, stop: &AtomicBool) {
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while !stop.load(Ordering::Relaxed) {
            let answer = self.http.get(format!("{}/readiness", self.bases[index])).timeout(s(2)).send().await;
            let is_ready = match &answer {
                Ok(answer) => answer.status() == 200,
                // On a machine that is busy with other tests silence says nothing; a refused connection does.
                Err(error) if error.is_timeout() => self.ready[index].load(Ordering::Relaxed),
                Err(_) => false,
            };
            if self.ready[index].swap(is_ready, Ordering::Relaxed) != is_ready {
                let said = answer.map(|answer| answer.status());
                eprintln!("{} is {}ready: {said:?}", self.bases[index], if is_ready { "" } else { "not " });
            }
            look.tick().await;
        }
    }

    /// One request; a stream of `stream_tokens`, 100 ms apart, or a short answer without. Says what went wrong.
    async fn ask(&self, stream_tokens: Option<u32>) -> Result<(), String> {
        let count = self.bases.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let chosen = (turn..turn + count).map(|n| n % count).find(|n| self.ready[*n].load(Ordering::Relaxed));
        let base = &self.bases[chosen.ok_or("no gateway is ready")?];
        let body = json!({
            "model": "m1", "stream": stream_tokens.is_some(), "max_tokens": stream_tokens.unwrap_or(1),
            "messages": [{"role": "user", "content": "hi"}],
        });
        let sent = self.http.post(format!("{base}/v1/chat/completions")).json(&body).send().await;
        let answer = sent.map_err(|error| format!("{base}: {error:?}"))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| format!("{base}: {status}, then {error:?}"))?;
        let is_whole = stream_tokens.is_none() || text.ends_with("data: [DONE]\n\n");
        if status == 200 && is_whole { Ok(()) } else { Err(format!("{base}: {status} {text}")) }
    }
}

/// Requests a second: 40, or what `SMG_ROLLING_RATE` says. Every other one is a stream of 3 s.
fn rolling_rate() -> u32 {
    std::env::var("SMG_ROLLING_RATE").map_or(40, |rate| rate.parse().expect("SMG_ROLLING_RATE is a number"))
}

/// Sends at a fixed rate until `stop`, whatever becomes of the requests before: how many, and what went wrong.
async fn load(balancer: &Balancer, stop: &AtomicBool) -> (usize, Vec<String>) {
    let mut pace = tokio::time::interval(s(1) / rolling_rate());
    let mut asked = futures_util::stream::FuturesUnordered::new();
    let (mut sent, mut failed) = (0, Vec::new());
    loop {
        tokio::select! {
            _ = pace.tick(), if !stop.load(Ordering::Relaxed) => {
                asked.push(balancer.ask((sent % 2 == 0).then_some(30)));
                sent += 1;
            }
            Some(outcome) = asked.next() => failed.extend(outcome.err()),
            else => return (sent, failed),
        }
    }
}

/// The program that a variable names, else the one under test.
fn build(variable: &str) -> String {
    std::env::var(variable).ok().filter(|path| !path.is_empty()).unwrap_or_else(|| SMG.to_owned())
}

/// SPEC §5 rule 7, also from one build to another, see `tests/upgrade/run`. `SMG_ROLLING_RATE=200 cargo test --release --test cluster a_rolling_restart` is the size of real life.
#[tokio::test]
async fn a_rolling_restart_fails_no_request_and_cuts_no_stream() {
    let network = Network::new();
    let pace = ["--inter-token-delay-ms", "100", "--ttft-ms", "10"];
    let (_one, one) = worker(network, 100, "m1", &pace);
    let (_two, two) = worker(network, 101, "m1", &pace);
    let urls = format!("{one},{two}");
    // A limit far above the load: shares of it are handed from leader to leader.
    let limit = ["--rate-limit-tokens-per-second", "3000", "--rate-limit-burst", "3000"];
    let flags =
        ["--worker-urls", urls.as_str(), "--shutdown-grace-period-secs", "8", limit[0], limit[1], limit[2], limit[3]];
    let (old, new) = (build("SMG_ROLLING_FROM"), build("SMG_ROLLING_TO"));
    let start = |program: &str, n: u8| Gateway::start_by(program, &format!("node{n}"), network, n, &[1, 2, 3], &flags);
    let mut gateways = [1, 2, 3].map(|n| start(&old, n));
    let [node1, node2, node3] = &gateways;
    joined(&[node1, node2, node3], 3, s(5)).await;
    for gateway in &gateways {
        eventually(s(10), "holds a share", async || {
            let stats = gateway.get("/ha/rate-limit/stats").await.map(|(_, stats)| stats).unwrap_or_default();
            stats["held"]["lease_ms"].is_u64()
        })
        .await;
        eventually(s(5), "ready", async || gateway.is_ready().await).await;
    }
    let balancer = Balancer::new(gateways.iter().map(|gateway| gateway.url("")).collect());
    let is_ready = async |n: usize| balancer.ready[n].load(Ordering::Relaxed);
    let (stop, began) = (AtomicBool::new(false), AtomicBool::new(false));
    let restart = async {
        for n in 0..3 {
            eventually(s(5), "the balancer sees it", async || is_ready(n).await).await;
        }
        began.store(true, Ordering::Relaxed);
        for n in 0..3_u8 {
            let gateway = &mut gateways[usize::from(n)];
            gateway.process.signal(Signal::SIGTERM);
            assert_eq!(gateway.process.exit(s(12)).await.code(), Some(0));
            *gateway = start(&new, n + 1);
            eventually(s(10), "the balancer sees it again", async || is_ready(usize::from(n)).await).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let loaded = async {
        eventually(s(10), "the balancer is up", async || began.load(Ordering::Relaxed)).await;
        load(&balancer, &stop).await
    };
    let watched = futures_util::future::join_all((0..3).map(|n| balancer.watch(n, &stop)));
    let ((sent, failed), (), _) = tokio::join!(loaded, restart, watched);
    assert!(failed.is_empty(), "{} of {sent}: {:#?}", failed.len(), &failed[..failed.len().min(5)]);
    assert!(sent > 200, "{sent}");
    joined(&gateways.iter().collect::<Vec<_>>(), 3, s(5)).await;
    eprintln!("{sent} requests, half of them streams of 3 s: 0 failed");
}
