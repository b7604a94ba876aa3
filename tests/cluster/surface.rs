//! Probes, models, metrics: what monitoring and clients read.

use std::process::{Command, Stdio};

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

#[tokio::test]
async fn probes_models_and_serving_routes() {
    let network = Network::new();
    let (_one, one) = worker(network, 100, "m1", &[]);
    let (_two, two) = worker(network, 101, "m2", &[]);
    let gateway = Gateway::start(network, 1, &[], &["--worker-urls", &one, "--worker-urls", &two]);
    eventually(s(5), "both ready", async || {
        matches!(gateway.get("/readiness").await, Some((200, body))
            if body == serde_json::json!({"status": "ready", "healthy_workers": 2, "total_workers": 2}))
    })
    .await;
    for path in ["/liveness", "/health", "/ha/health", "/ha/policies", "/get_model_info", "/get_server_info"] {
        let answer = gateway.http.get(gateway.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    let (_, models) = gateway.get("/v1/models").await.unwrap();
    let mut ids: Vec<_> = models["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["m1", "m2"]);
    for (path, body) in [
        ("/v1/completions", serde_json::json!({"model": "m1", "prompt": "hi"})),
        ("/v1/embeddings", serde_json::json!({"model": "m2", "input": "hi"})),
        ("/v1/responses", serde_json::json!({"model": "m1", "input": "hi"})),
        ("/v1/rerank", serde_json::json!({"model": "m1", "query": "a", "documents": ["b", "c"]})),
        ("/rerank", serde_json::json!({"model": "m1", "query": "a", "documents": ["b", "c"]})),
        (
            "/v1/messages",
            serde_json::json!({"model": "m1", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}),
        ),
        ("/v1/classify", serde_json::json!({"model": "m2", "input": "hi"})),
        ("/generate", serde_json::json!({"text": "hi"})),
    ] {
        let (status, answer) = gateway.post(path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_policy_set_at_one_gateway_holds_at_all_and_is_told_to_followers() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "org/m1", &[]);
    let [node1, node2] = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &["--worker-urls", &url]));
    joined(&[&node1, &node2], 2, s(5)).await;
    let mut events = node2.http.get(node2.url("/ha/events")).send().await.unwrap();
    let mut told = String::new();
    let path = "/ha/policies/org/m1";
    for (case, body) in [
        ("unknown policy", serde_json::json!({"policy": "fastest"})),
        ("parameter that it does not have", serde_json::json!({"policy": "random", "config": {"seed": 1}})),
        ("unknown field", serde_json::json!({"policy": "random", "colour": "red"})),
    ] {
        let refused = node1.http.put(node1.url(path)).json(&body).send().await.unwrap();
        assert_eq!(refused.status(), 400, "{case}");
    }
    let body = serde_json::json!({"policy": "least_load"});
    let set = node1.http.put(node1.url(path)).json(&body).send().await.unwrap();
    assert_eq!(set.status(), 200);
    let expected = serde_json::json!({"model": "org/m1", "policy": "least_load", "config": {}});
    eventually(
        s(1),
        "node 2 has the policy",
        async || matches!(node2.get(path).await, Some((200, body)) if body == expected),
    )
    .await;
    eventually(s(5), "the follower is told", async || {
        let chunk = events.chunk().await.unwrap().unwrap_or_default();
        told.push_str(&String::from_utf8_lossy(&chunk));
        told.starts_with("event: status\n") && told.contains("event: policy\n")
    })
    .await;
    eventually(s(5), "requests follow it", async || {
        node2.chat("org/m1").await.is_ok()
            && node2.metrics().await.contains("smg_worker_selection_total{policy=\"least_load\"}")
    })
    .await;
}

#[tokio::test]
async fn paths_are_taken_literally_and_head_answers_like_get() {
    let network = Network::new();
    let gateway = Gateway::start(network, 1, &[], &[]);
    eventually(s(5), "it answers", async || !gateway.statuses().await.is_empty()).await;
    for path in ["/ha/", "/ha/nothing", "/ha/status/", "/ha/%73tatus", "/workers/", "/v1/models/", "//liveness"] {
        let (status, body) = gateway.get(path).await.unwrap();
        assert_eq!((status, &body["error"]["code"]), (404, &serde_json::json!("not_found")), "{path}");
    }
    for path in ["/liveness", "/health", "/v1/models", "/workers", "/ha/status", "/ha/workers", "/ha/nothing"] {
        let [get, head] = [reqwest::Method::GET, reqwest::Method::HEAD]
            .map(|method| gateway.http.request(method, gateway.url(path)).send());
        let (get, head) = (get.await.unwrap(), head.await.unwrap());
        assert_eq!(get.status(), head.status(), "{path}");
        assert_eq!(get.headers()["content-length"], head.headers()["content-length"], "{path}");
        assert_eq!(head.bytes().await.unwrap().len(), 0, "{path}");
    }
    assert_eq!(gateway.get("/workers/nothing").await.unwrap().0, 404);
    assert_eq!(gateway.post("/ha/status", serde_json::json!({})).await.0, 405);
    let text = gateway.metrics().await;
    for line in [
        r#"smg_http_responses_total{error_code="worker_not_found",path="/workers/{*worker}",status_code="404"} 1"#,
        r#"smg_http_responses_total{error_code="method_not_allowed",path="/ha/status",status_code="405"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is missing in:\n{text}");
    }
    assert!(!text.contains("client_closed"), "{text}");
}

#[tokio::test]
async fn the_scrape_shows_the_documented_metrics() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let [node1, node2] = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &["--worker-urls", &url]));
    joined(&[&node1, &node2], 2, s(5)).await;
    eventually(s(5), "ready", async || node1.is_ready().await).await;
    assert!(matches!(node1.chat("m1").await, Ok((200, _))));
    eventually(s(5), "all six mesh metrics", async || {
        let text = node1.metrics().await;
        let sync = [
            "smg_mesh_sync_operations_total{",
            "smg_mesh_sync_latency_seconds_count",
            "smg_mesh_gossip_messages_total{",
        ];
        let gauges =
            ["smg_mesh_peers_total 1", "smg_mesh_peer_status{peer=\"node2\"} 1", "smg_mesh_leader_elections_total 0"];
        sync.iter().chain(&gauges).all(|name| text.contains(name))
    })
    .await;
    let text = node1.metrics().await;
    for name in [
        "smg_http_requests_total",
        "smg_http_request_duration_seconds_bucket",
        "smg_http_responses_total",
        "smg_http_connections_active",
        "smg_shutdown_in_progress 0",
        "smg_router_requests_total",
        "smg_router_request_duration_seconds",
        "smg_worker_pool_size 1",
        "smg_worker_requests_active{",
        "smg_worker_health{",
        "smg_worker_health_checks_total",
        "smg_worker_selection_total",
    ] {
        assert!(text.contains(name), "{name} is missing in:\n{text}");
    }
    assert!(node1.get("/metrics").await.is_none_or(|(status, _)| status == 404), "metrics leak to the public port");
    promtool(&text);
}

/// Runs `promtool check metrics` where it is installed.
fn promtool(text: &str) {
    let Ok(mut child) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        eprintln!("SKIPPED promtool check metrics: promtool is not installed");
        return;
    };
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // The manual names two series against the naming rules; every other complaint is ours.
    let ours: Vec<&str> = said.lines().filter(|line| !line.contains("smg_mesh_peers_total")).collect();
    assert!(ours.is_empty(), "{said}");
}
