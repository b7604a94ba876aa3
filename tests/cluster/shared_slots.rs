//! A bound on requests in flight of the whole cluster, as clients and workers see it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{Gateway, Network, Process, eventually, joined, s, worker};

/// What became of a stream: status, error code, and whether it came to its end.
type Outcome = (u16, String, bool);

async fn stream(url: String) -> Outcome {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({"model": "m1", "stream": true, "messages": [{"role": "user", "content": "hello"}]});
    let mut answer = http.post(&url).json(&body).send().await.unwrap();
    let status = answer.status().as_u16();
    if status == 429 {
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(answer.headers()["x-ratelimit-remaining"], "0");
    }
    let mut text = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        text.extend_from_slice(&chunk);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let error = text.lines().rev().map(|line| line.strip_prefix("data: ").unwrap_or(line));
    let error = error.filter_map(|line| serde_json::from_str::<Value>(line).ok()).next().unwrap_or_default();
    let code = error["error"]["code"].as_str().unwrap_or_default().to_owned();
    (status, code, text.ends_with("data: [DONE]\n\n"))
}

/// Streams that run; one that is refused is tried again until so many run.
async fn running(gateway: &Gateway, count: usize) -> Vec<JoinHandle<Outcome>> {
    let mut streams: Vec<JoinHandle<Outcome>> = Vec::new();
    eventually(s(30), "so many streams run", async || {
        let mut running = Vec::new();
        for stream in streams.drain(..) {
            if stream.is_finished() {
                // Refused, or over before so many ran.
                let outcome = stream.await.unwrap();
                assert!(outcome.1 == "concurrency_limit_exceeded" || outcome.2, "{outcome:?}");
            } else {
                running.push(stream);
            }
        }
        streams = running;
        while streams.len() < count {
            streams.push(tokio::spawn(stream(gateway.url("/v1/chat/completions"))));
        }
        in_flight(gateway).await == count as u64
    })
    .await;
    streams.retain(|stream| !stream.is_finished());
    streams
}

async fn figures(gateway: &Gateway) -> Value {
    gateway.get("/ha/rate-limit/stats").await.map_or(Value::Null, |(_, mut stats)| stats["in_flight"].take())
}

async fn in_flight(gateway: &Gateway) -> u64 {
    figures(gateway).await["here"].as_u64().unwrap_or(0)
}

async fn at_worker(url: &str) -> Value {
    reqwest::get(format!("{url}/sim/stats")).await.unwrap().json().await.unwrap()
}

/// Three gateways that share 12 slots, each of which holds some, and a worker whose streams take `tokens` tenths of a second.
async fn start(tokens: &str, more: &[&str]) -> ([Gateway; 3], Process, String) {
    let network = Network::new();
    let (process, url) = worker(network, 100, "m1", &["--tokens", tokens, "--inter-token-delay-ms", "100"]);
    let flags = [&["--worker-urls", &url, "--cluster-max-concurrent-requests", "12"], more].concat();
    let nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &flags));
    joined(&nodes.each_ref(), 3, s(10)).await;
    for node in &nodes {
        eventually(s(30), "is lent slots", async || {
            node.is_ready().await && figures(node).await["held"].as_u64() >= Some(1)
        })
        .await;
    }
    (nodes, process, url)
}

#[tokio::test]
async fn the_workers_never_see_more_requests_than_the_cluster_may_have() {
    // Longer than refusals count as demand, so that shares have moved before the first of them end.
    let (nodes, _worker, url) = start("60", &[]).await;
    let even = (0..45).map(|n| stream(nodes[n % 3].url("/v1/chat/completions")));
    let outcomes = futures_util::future::join_all(even).await;
    let (served, refused): (Vec<_>, Vec<_>) = outcomes.iter().partition(|(status, ..)| *status == 200);
    assert!(served.iter().all(|(_, code, is_whole)| code.is_empty() && *is_whole), "{served:?}");
    assert!(
        refused.iter().all(|(status, code, _)| *status == 429 && code == "concurrency_limit_exceeded"),
        "{refused:?}"
    );
    assert!((3..=12).contains(&served.len()), "{} served at once", served.len());

    // Nearly all of them where all the demand is; the two others keep one each.
    let long = running(&nodes[1], 10).await;
    let stats = at_worker(&url).await;
    assert!(stats["peak_concurrency"].as_u64() <= Some(12), "{stats}");
    let mut owners = Vec::new();
    for node in &nodes {
        owners.extend(figures(node).await["owners"].as_array().cloned().unwrap_or_default());
    }
    let sum = |field: &str| owners.iter().filter_map(|owner| owner[field].as_u64()).sum::<u64>();
    assert!(owners.len() == 3 && sum("bound") <= 12, "{owners:?}");
    assert!(nodes[1].metrics().await.contains("smg_mesh_limit_slots_held "));
    for stream in long {
        let (status, code, is_whole) = stream.await.unwrap();
        assert_eq!((status, code.as_str(), is_whole), (200, "", true));
    }

    // Without a bound nobody is refused.
    assert_eq!(nodes[2].post("/ha/rate-limit", json!({"concurrent": 0})).await.0, 200);
    for node in &nodes {
        eventually(s(10), "no bound", async || figures(node).await == Value::Null).await;
    }
    let all = (0..30).map(|n| stream(nodes[n % 3].url("/v1/chat/completions")));
    let outcomes = futures_util::future::join_all(all).await;
    assert!(outcomes.iter().all(|(status, _, is_whole)| *status == 200 && *is_whole), "{outcomes:?}");
    assert!(at_worker(&url).await["peak_concurrency"].as_u64() > Some(12));
}

/// Of three gateways two die. The third cannot know that: it breaks what it runs, in sight of the clients, before a leader on
/// the other side could lend the slots anew; with `local` it keeps its third.
#[tokio::test]
async fn a_gateway_that_is_cut_off_breaks_what_it_may_not_run_any_more() {
    for (mode, kept) in [("closed", 0), ("local", 4)] {
        let (mut nodes, _worker, url) = start("600", &["--mesh-rate-limit-without-quorum", mode]).await;
        let streams = running(&nodes[0], 6).await;
        assert_eq!(streams.len(), 6);
        nodes[1].process.kill();
        nodes[2].process.kill();
        eventually(s(20), "the rest is broken", async || in_flight(&nodes[0]).await == kept).await;
        eventually(s(5), "the worker knows", async || at_worker(&url).await["active"] == kept).await;
        let mut broken = 0;
        for stream in streams {
            match tokio::time::timeout(Duration::ZERO, stream).await {
                Ok(outcome) => {
                    assert_eq!(outcome.unwrap(), (200, "slot_lost".to_owned(), false), "{mode}");
                    broken += 1;
                }
                Err(_) => assert_eq!(mode, "local"),
            }
        }
        assert_eq!(broken, 6 - kept, "{mode}");
        let refused = stream(nodes[0].url("/v1/chat/completions")).await;
        assert_eq!(refused, (429, "concurrency_limit_exceeded".to_owned(), false), "{mode}");
    }
}

/// A gateway that drains keeps its slots until its streams have ended, and then the others have them.
#[tokio::test]
async fn a_gateway_that_leaves_cuts_no_stream_and_returns_its_slots() {
    let (mut nodes, _worker, _url) = start("80", &[]).await;
    let streams = running(&nodes[2], 6).await;
    nodes[2].process.signal(nix::sys::signal::Signal::SIGTERM);
    for stream in streams {
        assert_eq!(stream.await.unwrap(), (200, String::new(), true));
    }
    assert!(nodes[2].process.exit(s(60)).await.success());
    let streams = running(&nodes[0], 11).await;
    assert_eq!(streams.len(), 11);
}
