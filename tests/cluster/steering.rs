//! A client says where to, and is told where it went.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{Gateway, Network, eventually, s, worker};

/// Status, `X-SMG-Route` and the worker's name of a chat request with these headers.
async fn ask(gateway: &Gateway, headers: &[(&str, &str)]) -> (u16, String, String) {
    let body = json!({"model": "m1", "messages": [{"role": "user", "content": "hello"}]});
    let mut request = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let text = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), text("x-smg-route"), text("x-sim-worker"))
}

#[tokio::test]
async fn targets_keys_and_explanations() {
    let network = Network::new();
    let (mut first, first_url) = worker(network, 100, "m1", &["--name", "first"]);
    let (_second, second_url) = worker(network, 101, "m1", &["--name", "second"]);
    let urls = format!("{first_url},{second_url}");
    let flags = ["--worker-urls", &urls, "--policy", "consistent_hashing", "--mesh-zone", "z1"];
    let flags = [&flags[..], &["--health-check-interval-secs", "1", "--health-failure-threshold", "1"]].concat();
    let gateways = [1, 2].map(|n| Gateway::start(network, n, &[1, 2], &flags));
    for gateway in &gateways {
        eventually(
            s(5),
            "both are ready",
            async || matches!(gateway.get("/readiness").await, Some((200, body)) if body["healthy_workers"] == 2),
        )
        .await;
    }

    let (_, list) = gateways[0].get("/workers").await.unwrap();
    for (index, shown) in list["workers"].as_array().unwrap().iter().enumerate() {
        let (id, url) = (shown["id"].as_str().unwrap(), shown["url"].as_str().unwrap());
        let expected = if url == first_url { "first" } else { "second" };
        for named in [id, url, &index.to_string()] {
            let (status, route, by) =
                ask(&gateways[1], &[("x-smg-target-worker", named), ("x-smg-explain", "1")]).await;
            assert_eq!((status, by.as_str()), (200, expected), "{named}");
            let told =
                format!("policy=consistent_hashing; branch=target; worker={id}; retries=0; gateway=node2; zone=z1");
            assert_eq!(route, told, "{named}");
        }
    }

    let mut homes = BTreeSet::new();
    for n in 0..16 {
        let key = format!("session-{n}");
        let (_, _, home) = ask(&gateways[0], &[("x-smg-routing-key", &key)]).await;
        for gateway in [&gateways[0], &gateways[1], &gateways[1]] {
            let (status, route, by) = ask(gateway, &[("x-smg-routing-key", &key), ("x-smg-explain", "1")]).await;
            assert_eq!((status, &by), (200, &home), "{key} moved");
            assert!(route.contains("branch=routing_key;"), "{route}");
        }
        homes.insert(home);
    }
    assert_eq!(homes.len(), 2, "sixteen keys are spread over both workers");

    assert_eq!(ask(&gateways[0], &[("x-smg-target-worker", "http://127.0.0.9:1")]).await.0, 404);
    first.kill();
    eventually(s(10), "a worker that is not ready is refused", async || {
        ask(&gateways[0], &[("x-smg-target-worker", &first_url)]).await.0 == 503
    })
    .await;
    assert_eq!(ask(&gateways[0], &[("x-smg-target-worker", &second_url)]).await.0, 200);
}
