//! `--max-concurrent-requests`: a bound that the worker can count on.

use serde_json::{Value, json};

use crate::harness::{Gateway, Network, eventually, s, worker};

#[tokio::test]
async fn with_a_bound_of_10_and_100_clients_the_worker_never_sees_11() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &["--tokens", "10", "--inter-token-delay-ms", "10"]);
    let flags = ["--worker-urls", &url, "--max-concurrent-requests", "10", "--queue-size", "90"];
    let gateway = Gateway::start(network, 1, &[], &flags);
    eventually(s(5), "ready", async || gateway.is_ready().await).await;
    let request = async |client: usize| {
        let is_stream = client < 50;
        let messages = json!([{"role": "user", "content": "hello"}]);
        let body = json!({"model": "m1", "stream": is_stream, "messages": messages});
        // A client of its own each, so that the kernel spreads the connections over the gateway's cores.
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = http.post(gateway.url("/v1/chat/completions")).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, !is_stream || text.ends_with("data: [DONE]\n\n"))
    };
    let answers = futures_util::future::join_all((0..100).map(request)).await;
    assert!(answers.iter().all(|answer| *answer == (200, true)), "{answers:?}");
    let stats: Value = reqwest::get(format!("{url}/sim/stats")).await.unwrap().json().await.unwrap();
    assert_eq!((&stats["peak_concurrency"], &stats["completed_requests"]), (&json!(10), &json!(100)), "{stats}");
    let metrics = gateway.metrics().await;
    for expected in [
        r#"smg_http_rate_limit_total{decision="allowed",result="immediate"} "#,
        r#"smg_http_rate_limit_total{decision="allowed",result="queued"} "#,
        "smg_queue_depth 0",
        "smg_queue_wait_seconds_count ",
    ] {
        assert!(metrics.contains(expected), "{expected} in {metrics}");
    }
    assert!(!metrics.contains(r#"decision="rejected""#), "{metrics}");
}
