//! Admin routes of one gateway, and what all of them make of it.

use serde_json::{Value, json};

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

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
