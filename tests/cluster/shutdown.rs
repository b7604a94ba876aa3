//! Leaving: SIGTERM, `POST /ha/shutdown`, and requests that run on.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

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

/// Sends requests from several clients, each to another gateway when one does not serve, until `stop`: how many were
/// served, and how many by no gateway at all.
async fn load(urls: Vec<String>, stop: &AtomicBool) -> (usize, usize) {
    let (served, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let client = async |first: usize| {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy().build().unwrap();
        let mut turn = first;
        let mut pace = tokio::time::interval(Duration::from_millis(60));
        while !stop.load(Ordering::Relaxed) {
            let body = json!({"model": "m1", "stream": turn.is_multiple_of(2), "messages": [{"role": "user", "content": "hi"}]});
            let mut is_served = false;
            for url in urls.iter().cycle().skip(turn % urls.len()).take(urls.len()) {
                let Ok(answer) = http.post(url).json(&body).send().await else { continue };
                is_served = answer.status() == 200 && answer.bytes().await.is_ok();
                if is_served {
                    break;
                }
            }
            let counter = if is_served { &served } else { &lost };
            counter.fetch_add(1, Ordering::Relaxed);
            turn += 1;
            pace.tick().await;
        }
    };
    futures_util::future::join_all((0..6).map(client)).await;
    (served.into_inner(), lost.into_inner())
}

#[tokio::test]
async fn a_rolling_restart_fails_no_request() {
    let network = Network::new();
    let (_one, one) = worker(network, 100, "m1", &["--ttft-ms", "10", "--tokens", "20", "--inter-token-delay-ms", "1"]);
    let (_two, two) = worker(network, 101, "m1", &["--ttft-ms", "10", "--tokens", "20", "--inter-token-delay-ms", "1"]);
    let urls = format!("{one},{two}");
    let flags = ["--worker-urls", urls.as_str(), "--shutdown-grace-period-secs", "3"];
    let mut gateways = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &flags));
    let [node1, node2, node3] = &gateways;
    joined(&[node1, node2, node3], 3, s(5)).await;
    for gateway in &gateways {
        eventually(s(5), "ready", async || gateway.is_ready().await).await;
    }
    let targets = gateways.iter().map(|gateway| gateway.url("/v1/chat/completions")).collect();
    let stop = AtomicBool::new(false);
    let restart = async {
        for n in 1..=3_u8 {
            let gateway = &mut gateways[usize::from(n) - 1];
            gateway.process.signal(Signal::SIGTERM);
            assert_eq!(gateway.process.exit(s(8)).await.code(), Some(0));
            *gateway = Gateway::start(network, n, &[1, 2, 3], &flags);
            eventually(s(5), "ready again", async || gateway.is_ready().await).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let ((served, lost), ()) = tokio::join!(load(targets, &stop), restart);
    assert_eq!(lost, 0, "of {served}");
    assert!(served > 100, "{served}");
}
