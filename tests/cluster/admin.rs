//! Admin routes of one gateway, and what all of them make of it.

use serde_json::{Value, json};

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

/// What the worker counts under this name.
async fn stat(url: &str, name: &str) -> u64 {
    let stats: Value = reqwest::get(format!("{url}/sim/stats")).await.unwrap().json().await.unwrap();
    stats[name].as_u64().unwrap()
}

#[tokio::test]
async fn every_worker_is_asked_and_each_answer_shown() {
    let network = Network::new();
    let (_one, one) = worker(network, 100, "m1", &["--cache-block-tokens", "1"]);
    let (mut two, two_url) = worker(network, 101, "m2", &["--cache-block-tokens", "1"]);
    let gateway = Gateway::start(network, 1, &[], &["--worker-urls", &format!("{one},{two_url}")]);
    eventually(
        s(5),
        "both are ready",
        async || matches!(gateway.get("/readiness").await, Some((200, body)) if body["healthy_workers"] == 2),
    )
    .await;
    for model in ["m1", "m2"] {
        assert_eq!(gateway.chat(model).await.unwrap().0, 200);
    }
    assert!(stat(&one, "cache_tokens").await > 0 && stat(&two_url, "cache_tokens").await > 0);

    let (status, loads) = gateway.get("/get_loads").await.unwrap();
    assert_eq!((status, &loads["succeeded"], &loads["failed"]), (200, &json!(2), &json!(0)), "{loads}");
    for worker in loads["workers"].as_array().unwrap() {
        assert!(worker["answer"][0]["num_tokens"].as_u64().unwrap() > 0, "{worker}");
    }
    assert_eq!(gateway.post("/flush_cache", json!({})).await.0, 200);
    assert_eq!((stat(&one, "cache_tokens").await, stat(&two_url, "cache_tokens").await), (0, 0));
    assert_eq!(gateway.get("/flush_cache").await.unwrap().0, 405);

    arm(&one, &["500@/get_loads"]).await;
    let (status, loads) = gateway.get("/get_loads").await.unwrap();
    assert_eq!((status, &loads["succeeded"], &loads["failed"]), (206, &json!(1), &json!(1)), "{loads}");
    let ill = loads["workers"].as_array().unwrap().iter().find(|worker| worker["url"] == one.as_str()).unwrap();
    assert_eq!((&ill["ok"], &ill["error"]), (&json!(false), &json!("status 500 Internal Server Error")));

    two.kill();
    let (status, loads) = gateway.get("/get_loads").await.unwrap();
    assert_eq!((status, &loads["error"]["code"]), (502, &json!("workers_failed")), "{loads}");
    arm(&one, &["hang@/flush_cache"]).await;
    let (status, flushed) = gateway.post("/flush_cache", json!({})).await;
    assert_eq!((status, &flushed["failed"]), (502, &json!(2)), "a worker that hangs holds nobody up: {flushed}");
}

async fn arm(url: &str, faults: &[&str]) {
    let answer = reqwest::Client::new().post(format!("{url}/sim/faults")).json(&json!({"faults": faults}));
    assert_eq!(answer.send().await.unwrap().status(), 200);
}

/// `PATCH`es the worker at this URL.
async fn change(gateway: &Gateway, worker: &str, body: Value) -> (u16, Value) {
    let worker = worker.replace(':', "%3A").replace('/', "%2F");
    let request = gateway.http.patch(gateway.url(&format!("/workers/{worker}"))).json(&body);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn a_change_at_one_gateway_is_one_at_all() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let [node1, node2] = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &["--worker-urls", &url]));
    joined(&[&node1, &node2], 2, s(5)).await;
    eventually(s(5), "node 2 serves", async || matches!(node2.chat("m1").await, Ok((200, _)))).await;

    let (status, held) = change(&node1, &url, json!({"draining": true})).await;
    assert_eq!((status, &held["state"]), (200, &json!("draining")), "{held}");
    assert_eq!(node1.chat("m1").await.unwrap().0, 503, "at the gateway that was told, at once");
    eventually(s(1), "node 2 holds back", async || matches!(node2.chat("m1").await, Ok((503, _)))).await;

    let (status, back) = change(&node2, &url, json!({"draining": null, "models": ["m1", "alias"]})).await;
    assert_eq!((status, &back["models"]), (200, &json!(["m1", "alias"])), "{back}");
    eventually(s(1), "node 1 serves again", async || matches!(node1.chat("m1").await, Ok((200, _)))).await;
    let (_, models) = node1.get("/v1/models").await.unwrap();
    assert_eq!(models["data"][0]["id"], "alias", "{models}");
    assert_eq!(change(&node1, &url, json!({"url": "http://127.0.0.1:1"})).await.0, 400);
    assert_eq!(change(&node1, "http://127.0.0.9:1", json!({})).await.0, 404);
}
