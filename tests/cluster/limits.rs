//! `--max-concurrent-requests` and the rate limit: bounds that workers can count on.

use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

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

#[tokio::test]
async fn a_rate_limit_set_at_one_gateway_holds_at_each() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let flags = ["--worker-urls", &url, "--rate-limit-tokens-per-second", "1000"];
    let [node1, node2] = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &flags));
    joined(&[&node1, &node2], 2, s(5)).await;
    eventually(s(20), "node 2 serves", async || matches!(node2.chat("m1").await, Ok((200, _)))).await;
    let set_part = |mut body: Value| {
        // Whose word it is comes a little later; `shared_limits` waits for it.
        body.as_object_mut()
            .map(|body| ["rights", "without_quorum", "limits", "concurrent"].map(|field| body.remove(field)));
        body
    };
    let limit =
        async |node: &Gateway| node.get("/ha/rate-limit").await.map(|(_, body)| set_part(body)).unwrap_or_default();
    let by_flag = json!({"limit_per_second": 1000, "burst": 1000, "source": "flag", "scope": "cluster"});
    assert_eq!(limit(&node2).await, by_flag);
    let set = json!({"limit_per_second": 1, "burst": 3, "source": "api", "scope": "cluster"});
    let answer = node1.post("/ha/rate-limit", json!({"limit_per_second": 1, "burst": 3})).await;
    assert_eq!((answer.0, set_part(answer.1)), (200, set.clone()));
    eventually(s(1), "node 2 has the limit", async || limit(&node2).await == set).await;

    // What was lent of the limit before is given up within half a second.
    eventually(s(5), "node 2 holds a part of the new limit", async || {
        let stats = node2.get("/ha/rate-limit/stats").await.map(|(_, stats)| stats).unwrap_or_default();
        stats["held"]["per_second"].as_f64().is_some_and(|held| held <= 1.0)
    })
    .await;
    let started = Instant::now();
    let mut admitted = 0;
    let mut refused = None;
    while refused.is_none() {
        let answer = node2.chat("m1").await.unwrap();
        match answer.0 {
            200 => admitted += 1,
            _ => refused = Some(answer),
        }
    }
    let (status, body) = refused.unwrap();
    assert_eq!((status, &body["error"]["code"]), (429, &json!("rate_limit_exceeded")), "{body}");
    assert!(admitted <= 3 + started.elapsed().as_secs() + 1, "{admitted} in {:?}", started.elapsed());
    let metrics = node2.metrics().await;
    assert!(metrics.contains(r#"smg_http_rate_limit_total{decision="rejected",result="rate_exceeded"} "#), "{metrics}");
    let (_, stats) = node2.get("/ha/rate-limit/stats").await.unwrap();
    assert_eq!(stats["node_name"], "node2", "{stats}");
    assert!(stats["rejected"].as_u64() >= Some(1), "{stats}");

    assert_eq!(node2.post("/ha/rate-limit", json!({"limit_per_second": 0})).await.0, 200);
    for _ in 0..10 {
        assert_eq!(node2.chat("m1").await.unwrap().0, 200, "0 is no limit");
    }
}

/// A limit that is far from used up refuses nobody while the leader that lends it is replaced, nor when it has just been set.
#[tokio::test]
async fn the_death_of_a_leader_refuses_nobody_below_the_limit() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let mut nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &["--worker-urls", &url]));
    joined(&nodes.each_ref(), 3, s(10)).await;
    for node in &nodes {
        eventually(s(20), "ready", async || node.is_ready().await).await;
    }
    let led_by = async |node: &Gateway| {
        node.get("/ha/status").await.and_then(|(_, status)| status["leader"].as_str().map(str::to_owned))
    };
    eventually(s(20), "a leader", async || led_by(&nodes[0]).await.is_some()).await;
    let statuses = async |node: &Gateway, requests: u32| {
        let mut pace = tokio::time::interval(s(1) / 20);
        let mut statuses = Vec::new();
        for _ in 0..requests {
            pace.tick().await;
            statuses.push(node.chat("m1").await.unwrap().0);
        }
        statuses
    };
    let set = nodes[0].post("/ha/rate-limit", json!({"limit_per_second": 3000, "burst": 3000})).await;
    assert_eq!(set.0, 200, "{}", set.1);
    assert_eq!(statuses(&nodes[0], 20).await, [200; 20], "just set");
    let leader = led_by(&nodes[0]).await.unwrap();
    let place = nodes.iter().position(|node| node.name == leader).unwrap();
    nodes[place].process.kill();
    let rest: Vec<&Gateway> = nodes.iter().filter(|node| node.name != leader).collect();
    let (one, two) = tokio::join!(statuses(rest[0], 80), statuses(rest[1], 80));
    assert_eq!((one, two), (vec![200; 80], vec![200; 80]), "{leader} was killed");
    let mut awaited = 0;
    for node in rest {
        awaited += usize::from(node.metrics().await.contains(r#"result="awaited_share"} "#));
    }
    assert_eq!(awaited, 2, "each had a gap to bridge");
}
