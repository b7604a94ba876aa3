//! Leaving: SIGTERM, `POST /ha/shutdown`, and requests that run on.

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
