//! What clients come back for: sessions by routing key stay on their worker, whatever gateways and workers do.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

/// One request of a session: the worker that served it and what decided.
async fn ask(gateway: &Gateway, key: &str) -> (String, String) {
    let body = json!({"model": "m1", "messages": [{"role": "user", "content": "hello"}]});
    let request = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body);
    let answer = request.header("x-smg-routing-key", key).header("x-smg-explain", "1").send().await.unwrap();
    assert_eq!(answer.status(), 200, "{key}");
    let route = answer.headers()["x-smg-route"].to_str().unwrap().to_owned();
    let part = |name: &str| route.split("; ").find_map(|part| part.strip_prefix(name)).unwrap().to_owned();
    (part("worker="), part("branch="))
}

#[tokio::test]
async fn the_death_of_a_gateway_moves_no_session() {
    let network = Network::new();
    let (_one, one) = worker(network, 100, "m1", &[]);
    let (_two, two) = worker(network, 101, "m1", &[]);
    let (_three, three) = worker(network, 102, "m1", &[]);
    let urls = format!("{one},{two}");
    let flags = ["--policy", "manual", "--worker-urls", &urls];
    let mut gateways = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &flags));
    let [node1, node2, node3] = &gateways;
    joined(&[node1, node2, node3], 3, s(5)).await;
    let ready = async |gateway: &Gateway, n: u64| matches!(gateway.get("/readiness").await, Some((200, body)) if body["healthy_workers"] == n);
    for gateway in &gateways {
        eventually(s(5), "both workers are ready", async || ready(gateway, 2).await).await;
    }
    let keys: Vec<String> = (0..48).map(|n| format!("session-{n}")).collect();
    let mut at: BTreeMap<&str, String> = BTreeMap::new();
    for (n, key) in keys.iter().enumerate() {
        let (worker, branch) = ask(&gateways[n % 3], key).await;
        assert_eq!(branch, "new_session", "{key}");
        at.insert(key, worker);
    }
    assert_eq!(at.values().collect::<BTreeSet<_>>().len(), 2, "both workers have sessions");
    for gateway in &gateways {
        for key in &keys {
            eventually(s(5), "the session is known everywhere", async || ask(gateway, key).await.1 == "session").await;
        }
    }
    // A third of the keys would now be at home elsewhere: only the table keeps them.
    assert_eq!(gateways[0].post("/workers?wait=10", json!({"url": three})).await.0, 201);
    for gateway in &gateways {
        eventually(s(10), "the third worker is ready", async || ready(gateway, 3).await).await;
    }
    gateways[0].process.kill();
    for gateway in &gateways[1..] {
        for key in &keys {
            assert_eq!(ask(gateway, key).await, (at[key.as_str()].clone(), "session".to_owned()), "{key}");
        }
    }
    let mut fresh = BTreeSet::new();
    for n in 0..48 {
        fresh.insert(ask(&gateways[1], &format!("new-{n}")).await.0);
    }
    assert_eq!(fresh.len(), 3, "new sessions use the new worker");

    // A gateway that comes back knows the sessions of before.
    let again = Gateway::start(network, 1, &[1, 2, 3], &flags);
    eventually(s(10), "it serves", async || ready(&again, 3).await).await;
    for key in &keys {
        assert_eq!(ask(&again, key).await.0, at[key.as_str()], "{key} after a restart");
    }
}

#[tokio::test]
async fn a_session_whose_worker_dies_moves_once_and_keys_have_bounds() {
    let network = Network::new();
    let (mut one, one_url) = worker(network, 100, "m1", &[]);
    let (_two, two_url) = worker(network, 101, "m1", &[]);
    let urls = format!("{one_url},{two_url}");
    let gateways = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &["--worker-urls", &urls]));
    let [node1, node2] = &gateways;
    joined(&[node1, node2], 2, s(5)).await;
    let set = node1.http.put(node1.url("/ha/policies/m1")).json(&json!({"policy": "manual"})).send().await.unwrap();
    assert_eq!(set.status(), 200);
    let by_manual = async |gateway: &Gateway| {
        matches!(gateway.get("/ha/policies/m1").await, Some((200, body)) if body["policy"] == "manual")
            && matches!(gateway.get("/readiness").await, Some((200, body)) if body["healthy_workers"] == 2)
    };
    for gateway in &gateways {
        eventually(s(5), "the policy is here", async || by_manual(gateway).await).await;
    }
    let mut lost = None;
    for n in 0..32 {
        let key = format!("session-{n}");
        let worker = ask(node1, &key).await.0;
        let (_, listed) = node1.get(&format!("/workers/{worker}")).await.unwrap();
        if listed["url"] == one_url.as_str() {
            lost = Some((key, worker));
            break;
        }
    }
    let (key, before) = lost.expect("of 32 sessions one is on the first worker");
    one.kill();
    let after = ask(node1, &key).await.0;
    assert_ne!(after, before, "the other worker takes over within the request");
    eventually(s(5), "everybody knows", async || ask(node2, &key).await == (after.clone(), "session".to_owned())).await;

    let body = json!({"model": "m1", "messages": [{"role": "user", "content": "hello"}]});
    for (case, value, status) in [("longest", "k".repeat(256), 200), ("too long", "k".repeat(257), 400)] {
        let request = node1.http.post(node1.url("/v1/chat/completions")).json(&body);
        let answer = request.header("x-smg-routing-key", value).send().await.unwrap();
        assert_eq!(answer.status(), status, "{case}");
    }
}

/// Status, `x-sim-worker` and body of a request without a body of its own.
async fn stored(gateway: &Gateway, method: reqwest::Method, path: &str) -> (u16, String, Value) {
    let answer = gateway.http.request(method, gateway.url(path)).send().await.unwrap();
    let worker = answer.headers().get("x-sim-worker").map_or("", |name| name.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), worker, answer.json().await.unwrap_or(Value::Null))
}

/// Makes a response: its id, and the worker that has it.
async fn respond(gateway: &Gateway, body: Value) -> (String, String) {
    let answer = gateway.http.post(gateway.url("/v1/responses")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let worker = answer.headers()["x-sim-worker"].to_str().unwrap().to_owned();
    let text = answer.text().await.unwrap();
    let start = text.find("resp_").expect("an id");
    (text[start..start + 21].to_owned(), worker)
}

#[tokio::test]
async fn a_stored_response_is_reached_through_any_gateway() {
    let network = Network::new();
    let (_one, one) = worker(network, 100, "m1", &["--name", "one"]);
    let (_two, two) = worker(network, 101, "m1", &["--name", "two"]);
    let urls = format!("{one},{two}");
    let flags = ["--policy", "round_robin", "--worker-urls", &urls];
    let gateways = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &flags));
    let [node1, node2] = &gateways;
    joined(&[node1, node2], 2, s(5)).await;
    for gateway in &gateways {
        eventually(
            s(5),
            "both workers are ready",
            async || matches!(gateway.get("/readiness").await, Some((200, body)) if body["healthy_workers"] == 2),
        )
        .await;
    }
    for stream in [false, true] {
        for _ in 0..4 {
            let (id, at) = respond(node1, json!({"model": "m1", "input": "hi", "stream": stream})).await;
            for gateway in [node2, node1] {
                let (status, by, body) = stored(gateway, reqwest::Method::GET, &format!("/v1/responses/{id}")).await;
                assert_eq!((status, &by, &body["id"]), (200, &at, &json!(id)), "stream: {stream}");
            }
            let (status, by, _) = stored(node2, reqwest::Method::POST, &format!("/v1/responses/{id}/cancel")).await;
            assert_eq!((status, &by), (200, &at));
            let follow = json!({"model": "m1", "input": "more", "previous_response_id": id});
            assert_eq!(respond(node2, follow).await.1, at, "what continues it goes there too");
            let (status, by, body) = stored(node2, reqwest::Method::DELETE, &format!("/v1/responses/{id}")).await;
            assert_eq!((status, &by, &body["deleted"]), (200, &at, &json!(true)));
            assert_eq!(stored(node1, reqwest::Method::GET, &format!("/v1/responses/{id}")).await.0, 404);
        }
    }
    // Made behind the gateways' back: nobody knows of it, so the workers are asked.
    for (url, name) in [(&one, "one"), (&two, "two")] {
        let made = node1.http.post(format!("{url}/v1/responses")).json(&json!({"model": "m1", "input": "hi"}));
        let made: Value = made.send().await.unwrap().json().await.unwrap();
        let path = format!("/v1/responses/{}", made["id"].as_str().unwrap());
        let (status, by, body) = stored(node2, reqwest::Method::GET, &path).await;
        assert_eq!((status, by.as_str(), &body["id"]), (200, name, &made["id"]));
    }
    for (case, path, status, code) in [
        ("unknown", "/v1/responses/resp_0", 404, "response_not_found"),
        ("no id", "/v1/responses/a%2Fb", 404, "response_not_found"),
        ("nothing below", "/v1/responses/resp_0/x", 404, "not_found"),
    ] {
        let (found, _, body) = stored(node1, reqwest::Method::GET, path).await;
        assert_eq!((found, &body["error"]["code"]), (status, &json!(code)), "{case}");
    }
    assert_eq!(stored(node1, reqwest::Method::PUT, "/v1/responses/resp_0").await.0, 405);
}
