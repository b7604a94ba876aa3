//! A worker added at one gateway is used by all, and a removed one stays removed.

use serde_json::{Value, json};

use crate::harness::{Gateway, Network, eventually, joined, never_for, s, worker};

fn three(network: Network, more: &[&str]) -> [Gateway; 3] {
    [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], more))
}

async fn worker_urls(gateway: &Gateway) -> Vec<String> {
    let Some((200, list)) = gateway.get("/workers").await else { return vec!["no answer".to_owned()] };
    let workers = list["workers"].as_array().cloned().unwrap_or_default();
    workers.iter().filter_map(|worker| worker["url"].as_str().map(str::to_owned)).collect()
}

fn content(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn added_at_one_used_by_all_removed_everywhere() {
    let network = Network::new();
    let [mut node1, node2, node3] = three(network, &[]);
    joined(&[&node1, &node2, &node3], 3, s(5)).await;
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let direct = reqwest::Client::new();
    eventually(s(5), "the worker is up", async || direct.get(format!("{url}/health")).send().await.is_ok()).await;

    let (status, added) = node1.post("/workers", json!({"url": url})).await;
    assert_eq!(status, 202, "{added}");
    eventually(
        s(1),
        "node 3 serves the model",
        async || matches!(node3.chat("m1").await, Ok((200, body)) if !content(&body).is_empty()),
    )
    .await;
    for gateway in [&node1, &node2] {
        eventually(s(1), "every node serves it", async || matches!(gateway.chat("m1").await, Ok((200, _)))).await;
    }

    let id = added["id"].as_str().unwrap().to_owned();
    let deleted = node2.http.delete(node2.url(&format!("/workers/{id}"))).send().await.unwrap();
    assert_eq!(deleted.status(), 202);
    for gateway in [&node1, &node2, &node3] {
        eventually(s(2), "the worker is gone", async || worker_urls(gateway).await.is_empty()).await;
        eventually(s(1), "nothing is routed to it", async || {
            matches!(gateway.chat("m1").await, Ok((503, body)) if body["error"]["code"] == "no_available_workers")
        })
        .await;
    }

    node1.process.kill();
    let node1 = Gateway::start(network, 1, &[1, 2, 3], &[]);
    joined(&[&node1, &node2, &node3], 3, s(12)).await;
    for gateway in [&node1, &node2, &node3] {
        assert!(worker_urls(gateway).await.is_empty(), "{} has it again", gateway.name);
    }
}

#[tokio::test]
async fn a_removed_flag_worker_stays_removed_after_a_restart_with_the_flag() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let flags = ["--worker-urls", url.as_str()];
    let [mut node1, node2, node3] = three(network, &flags);
    joined(&[&node1, &node2, &node3], 3, s(5)).await;
    for gateway in [&node1, &node2, &node3] {
        eventually(s(5), "ready", async || gateway.is_ready().await).await;
        assert_eq!(worker_urls(gateway).await, [url.as_str()], "one entry, not one per node");
    }
    let encoded = url.replace(':', "%3A").replace('/', "%2F");
    let deleted = node2.http.delete(node2.url(&format!("/workers/{encoded}"))).send().await.unwrap();
    assert_eq!(deleted.status(), 202);
    for gateway in [&node1, &node2, &node3] {
        eventually(s(2), "the worker is gone", async || worker_urls(gateway).await.is_empty()).await;
    }
    node1.process.kill();
    let node1 = Gateway::start(network, 1, &[1, 2, 3], &flags);
    never_for(s(1), "a removed worker gets a request", async || matches!(node1.chat("m1").await, Ok((200, _)))).await;
    joined(&[&node1, &node2, &node3], 3, s(12)).await;
    for gateway in [&node1, &node2, &node3] {
        eventually(s(3), "it stays gone", async || worker_urls(gateway).await.is_empty()).await;
    }
}

#[tokio::test]
async fn a_restarted_gateway_knows_the_models_before_it_is_ready() {
    let network = Network::new();
    let (_one, flagged) = worker(network, 100, "m1", &[]);
    let (_two, added) = worker(network, 101, "m2", &[]);
    let flags = ["--worker-urls", flagged.as_str()];
    let [mut node1, node2, node3] = three(network, &flags);
    joined(&[&node1, &node2, &node3], 3, s(5)).await;
    assert_eq!(node2.post("/workers?wait=5", json!({"url": added})).await.0, 201);
    node1.process.kill();
    let node1 = Gateway::start(network, 1, &[1, 2, 3], &flags);
    never_for(s(1), "a known model is unknown", async || matches!(node1.chat("m2").await, Ok((404, _)))).await;
    eventually(s(3), "ready", async || node1.is_ready().await).await;
    eventually(s(1), "the added worker serves", async || matches!(node1.chat("m2").await, Ok((200, _)))).await;
}

#[tokio::test]
async fn every_gateway_shows_what_each_of_them_sees() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let gateways = three(network, &["--worker-urls", &url]);
    joined(&gateways.each_ref(), 3, s(5)).await;
    for gateway in &gateways {
        eventually(s(5), "three observers see it ready", async || {
            let Some((200, body)) = gateway.get("/ha/workers").await else { return false };
            let observers = &body["workers"][0]["observers"];
            (1..=3).all(|n| observers[format!("node{n}")]["state"] == "ready")
        })
        .await;
    }
}

#[tokio::test]
async fn a_dead_worker_costs_no_request_while_another_lives() {
    let network = Network::new();
    let (mut first, first_url) = worker(network, 100, "m1", &[]);
    let (_second, second_url) = worker(network, 101, "m1", &[]);
    let urls = format!("{first_url},{second_url}");
    let gateway = Gateway::start(network, 1, &[], &["--worker-urls", &urls, "--policy", "round_robin"]);
    eventually(
        s(5),
        "both are ready",
        async || matches!(gateway.get("/readiness").await, Some((200, body)) if body["healthy_workers"] == 2),
    )
    .await;
    first.kill();
    for request in 0..20 {
        let (status, body) = gateway.chat("m1").await.unwrap();
        assert_eq!(status, 200, "request {request}: {body}");
    }
}

#[tokio::test]
async fn what_a_write_answered_holds_for_the_next_request() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let gateway = Gateway::start(network, 1, &[], &["--worker-urls", &url]);
    eventually(s(5), "ready", async || gateway.is_ready().await).await;
    let path = format!("/workers/{}", url.replace(':', "%3A").replace('/', "%2F"));
    for round in 0..20 {
        let deleted = gateway.http.delete(gateway.url(&path)).send().await.unwrap();
        assert_eq!(deleted.status(), 202);
        let (status, body) = gateway.chat("m1").await.unwrap();
        assert_eq!((status, &body["error"]["code"]), (503, &json!("no_available_workers")), "round {round}");
        // The same worker, spelled in another way.
        let (status, body) = gateway.post("/workers?wait=5", json!({"url": format!("{}/", url.to_uppercase())})).await;
        assert_eq!((status, &body["url"]), (201, &json!(url)), "round {round}");
        let (status, body) = gateway.chat("m1").await.unwrap();
        assert_eq!(status, 200, "round {round}: {body}");
    }
}

#[tokio::test]
async fn a_worker_that_was_not_asked_yet_may_have_any_model() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let gateway = Gateway::start(network, 1, &[], &["--worker-urls", &url]);
    eventually(s(5), "ready", async || gateway.is_ready().await).await;
    assert_eq!(gateway.chat("typo").await.unwrap().0, 404);
    // Nobody listens there.
    let silent = format!("http://{}:9000", network.ip(101));
    assert_eq!(gateway.post("/workers", json!({"url": silent})).await.0, 202);
    assert_eq!(gateway.chat("m1").await.unwrap().0, 200);
    let body = json!({"model": "typo", "messages": []});
    let answer = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    eventually(s(11), "a typo is a typo again", async || matches!(gateway.chat("typo").await, Ok((404, _)))).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_complete() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &["--fault", "truncate", "--tokens", "30"]);
    let gateway = Gateway::start(network, 1, &[], &["--worker-urls", &url]);
    eventually(s(5), "ready", async || gateway.is_ready().await).await;
    let (status, body) = gateway.chat("m1").await.unwrap();
    assert_eq!((status, &body["error"]["code"]), (502, &json!("worker_truncated")));
    let body = json!({"model": "m1", "stream": true, "messages": [{"role": "user", "content": "hello"}]});
    let mut answer = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    let mut text = Vec::new();
    let ended = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let text = String::from_utf8(text).unwrap();
    assert!(!ended && text.contains("data: {\"error\"") && !text.contains("[DONE]"), "{text}");
}
