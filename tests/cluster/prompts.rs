//! What gateways keep of prompts: no more memory than they were given, and no text anywhere.

use std::path::Path;

use futures_util::future::join_all;
use serde_json::json;

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

/// Prompts of one run, and what they may take.
struct Size {
    prompts: usize,
    /// Budget of an index, which the prompts overrun.
    index_bytes: usize,
    /// What a gateway may take beside that: less than a third of the text that it sees.
    beside_bytes: usize,
}

const SLICE: Size = Size { prompts: 4_800, index_bytes: 256 << 10, beside_bytes: 2 << 20 };

/// The size of real life when it is asked for: `SMG_PROMPTS=2000000`.
fn size() -> Size {
    let asked = std::env::var("SMG_PROMPTS").ok().map(|count| count.parse().expect("SMG_PROMPTS is a number"));
    asked.map_or(SLICE, |prompts| Size { prompts, index_bytes: 16 << 20, beside_bytes: 8 << 20 })
}

/// Clients of each gateway.
const CLIENTS: usize = 4;

/// Memory of the gateway that no file backs, in bytes.
fn resident(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// A prompt of 4 KiB of which no block is in another.
fn unique(number: usize) -> String {
    let mut text = String::with_capacity(4096 + 16);
    while text.len() < 4096 {
        text.push_str(&format!("{number}.{} ", text.len()));
    }
    text
}

/// Asks with each of these prompts, the gateways in turn.
async fn ask(gateways: &[Gateway], numbers: std::ops::Range<usize>) {
    let lanes = gateways.len() * CLIENTS;
    let lane = async |lane: usize| {
        let gateway = &gateways[lane % gateways.len()];
        for number in numbers.clone().skip(lane).step_by(lanes) {
            let body = json!({"model": "m1", "messages": [{"role": "user", "content": unique(number)}]});
            let request = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body);
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
    };
    join_all((0..lanes).map(lane)).await;
}

async fn evictions(gateway: &Gateway) -> u64 {
    let (_, policy) = gateway.get("/ha/policies/m1").await.unwrap();
    policy["index"]["evictions"].as_u64().unwrap()
}

#[tokio::test]
async fn unique_prompts_take_no_more_memory_than_they_were_given() {
    let (network, Size { prompts, index_bytes, beside_bytes }) = (Network::new(), size());
    let (workers, urls): (Vec<_>, Vec<_>) =
        (0..2).map(|n| worker(network, 100 + n, "m1", &["--cache-tokens", "0", "--tokens", "1"])).unzip();
    let (urls, bytes) = (urls.join(","), index_bytes.to_string());
    let flags = ["--worker-urls", &urls, "--cache-index-bytes", &bytes];
    let gateways = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &flags));
    joined(&gateways.iter().collect::<Vec<_>>(), 3, s(15)).await;
    for gateway in &gateways {
        eventually(s(10), "ready", async || gateway.is_ready().await).await;
    }
    // Connections, stacks and the buffers of all clients are no cost of prompts.
    ask(&gateways, 0..300).await;
    let before = gateways.each_ref().map(resident);
    ask(&gateways, 300..prompts / 2).await;
    let half = gateways.each_ref().map(resident);
    ask(&gateways, prompts / 2..prompts).await;
    let after = gateways.each_ref().map(resident);
    for (n, gateway) in gateways.iter().enumerate() {
        let case = format!("gateway {n}: {} KiB, then {} and {}", before[n] >> 10, half[n] >> 10, after[n] >> 10);
        println!("{case}; {} names evicted", evictions(gateway).await);
        assert!(evictions(gateway).await > 0, "the budget was used up");
        assert!(after[n] <= before[n] + index_bytes + beside_bytes, "{case}");
        assert!(after[n] <= half[n] + beside_bytes / 2, "{case}: flat");
    }
    drop(workers);
}

/// Files below a folder that hold this text.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if memchr::memmem::find(&std::fs::read(&path).unwrap(), text.as_bytes()).is_some() {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn no_prompt_is_on_disk() {
    const SECRET: &str = "which capybara counts its oranges";
    const KEY: &str = "sk-capybara-client";
    let (network, root) = (Network::new(), tempfile::tempdir().unwrap());
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let start = |n: u8| {
        let [data, logs] = ["data", "logs"].map(|kind| root.path().join(format!("node{n}")).join(kind));
        std::fs::create_dir_all(&logs).unwrap();
        let dirs = ["--mesh-data-dir", data.to_str().unwrap(), "--log-dir", logs.to_str().unwrap()];
        let flags = ["--worker-urls", &url, "--log-level", "debug", "--shutdown-grace-period-secs", "2"];
        Gateway::start(network, n, &[1, 2], &[&dirs[..], &flags[..]].concat())
    };
    let mut gateways = [1, 2].map(start);
    joined(&gateways.iter().collect::<Vec<_>>(), 2, s(15)).await;
    for gateway in &gateways {
        eventually(s(10), "ready", async || gateway.is_ready().await).await;
    }
    for turn in 1..=6 {
        let gateway = &gateways[turn % 2];
        for route in ["/v1/chat/completions", "/v1/completions", "/v1/no-such-route"] {
            let text = format!("{SECRET} ").repeat(20 * turn);
            let body = json!({"model": "m1", "prompt": text, "messages": [{"role": "user", "content": text}]});
            let request = gateway.http.post(gateway.url(route)).header("x-smg-routing-key", KEY);
            request.bearer_auth(KEY).json(&body).send().await.unwrap();
            // Bodies that are refused are told about too.
            let cut = format!("{{\"model\":\"m1\",\"prompt\":\"{SECRET}");
            let request = gateway.http.post(gateway.url(route)).header("content-type", "application/json");
            request.body(cut).send().await.unwrap();
        }
    }
    for gateway in &gateways {
        assert_eq!(gateway.post("/ha/shutdown", json!({})).await.0, 202);
    }
    for gateway in &mut gateways {
        assert!(gateway.process.exit(s(20)).await.success());
    }
    assert!(!files_with(root.path(), &url).is_empty(), "the search finds what is there");
    for text in [SECRET, KEY] {
        assert_eq!(files_with(root.path(), text), [""; 0], "{text}");
        for gateway in &gateways {
            assert!(!gateway.process.log().contains(text), "{text}");
        }
    }
}
