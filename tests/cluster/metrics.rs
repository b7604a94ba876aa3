//! The scrape of a gateway in a cluster: its names and labels, and that clients cannot make it grow.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use crate::harness::{Gateway, Network, eventually, joined, s, worker};

/// What is promised: names, and the labels of each of their series.
const PROMISED: &[(&str, &[&str])] = &[
    ("smg_http_requests_total", &["method", "path"]),
    ("smg_http_responses_total", &["path", "status_code", "error_code"]),
    ("smg_http_request_duration_seconds", &["path"]),
    ("smg_http_connections_active", &[]),
    ("smg_http_rate_limit_total", &["decision", "result"]),
    ("smg_queue_depth", &[]),
    ("smg_queue_wait_seconds", &[]),
    ("smg_shutdown_in_progress", &[]),
    ("smg_router_requests_total", &["model", "endpoint", "streaming"]),
    ("smg_router_request_duration_seconds", &["model", "endpoint"]),
    ("smg_router_request_errors_total", &["error_type"]),
    ("smg_router_ttft_seconds", &["model", "endpoint"]),
    ("smg_router_tpot_seconds", &["model", "endpoint"]),
    ("smg_router_tokens_total", &["token_type"]),
    ("smg_worker_pool_size", &[]),
    ("smg_worker_requests_active", &["worker"]),
    ("smg_worker_health", &["worker"]),
    ("smg_worker_health_checks_total", &["result"]),
    ("smg_worker_selection_total", &["policy"]),
    ("smg_worker_errors_total", &["error_type"]),
    ("smg_worker_cb_state", &["worker"]),
    ("smg_worker_cb_transitions_total", &["worker", "from", "to"]),
    ("smg_worker_retries_total", &[]),
    ("smg_cache_aware_policy_branch_total", &["branch"]),
    ("smg_cache_aware_match_ratio", &[]),
    ("smg_cache_aware_index_bytes", &["model"]),
    ("smg_cache_aware_index_evictions_total", &["model"]),
    ("smg_mesh_peers_total", &[]),
    ("smg_mesh_peer_status", &["peer"]),
    ("smg_mesh_sync_operations_total", &["type"]),
    ("smg_mesh_sync_latency_seconds", &[]),
    ("smg_mesh_leader_elections_total", &[]),
    ("smg_mesh_gossip_messages_total", &["direction", "kind"]),
    ("smg_mesh_suspicions_total", &["source"]),
    ("smg_mesh_refutations_total", &[]),
    ("smg_mesh_false_suspicions_total", &[]),
    ("smg_mesh_probe_rtt_seconds", &[]),
    ("smg_mesh_clock_skew_seconds", &["peer"]),
    ("smg_mesh_store_entries", &["store"]),
    ("smg_mesh_store_bytes", &["store"]),
    ("smg_mesh_replication_lag_seconds", &["peer"]),
    ("smg_mesh_rejected_total", &["plane", "reason"]),
    ("smg_mesh_leader", &[]),
    ("smg_mesh_term", &[]),
    ("smg_tls_cert_expiry_timestamp_seconds", &["role"]),
];

/// Labels of every series of a scrape, by family; of a histogram without `le`.
fn families(scrape: &str) -> BTreeMap<String, BTreeSet<BTreeSet<String>>> {
    let mut found: BTreeMap<String, BTreeSet<BTreeSet<String>>> = BTreeMap::new();
    let histograms: BTreeSet<&str> =
        scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram")).collect();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let name = base.filter(|base| histograms.contains(base)).unwrap_or(name);
        let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
        let labels = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        found.entry(name.to_owned()).or_default().insert(labels.filter(|label| label != "le").collect());
    }
    found
}

/// `promtool check metrics`; says so when there is no promtool.
fn check_with_promtool(scrape: &str) {
    let command =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut promtool) = command else {
        eprintln!("SKIPPED promtool check metrics: promtool is not installed (Debian package: prometheus)");
        return;
    };
    promtool.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "promtool: {said}");
}

/// A stream that tells its usage, a plain answer, and errors of client and worker.
async fn traffic(gateway: &Gateway) {
    let messages = json!([{"role": "user", "content": "hello ".repeat(200)}]);
    let streamed =
        json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}, "messages": messages});
    for body in [json!({"model": "m", "messages": messages}), streamed, json!({"model": "none", "messages": messages})]
    {
        let request = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body);
        request.send().await.unwrap().bytes().await.unwrap();
    }
}

#[tokio::test]
async fn a_scrape_has_the_promised_names_and_labels() {
    let network = Network::new();
    let (_worker, url) = worker(network, 9, "m", &["--fault", "500:first-1@/v1/chat/completions"]);
    let dir = tempfile::tempdir().unwrap();
    let smg = |args: &str| {
        let output = Command::new(crate::harness::SMG).args(args.split(' ')).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    smg("certs ca --out ca");
    let nodes = [1, 2].map(|n| {
        smg(&format!("certs issue --ca ca --node node{n} --out node{n}"));
        let tls = dir.path().join(format!("node{n}")).display().to_string();
        let limits = ["--max-concurrent-requests", "1", "--rate-limit-tokens-per-second", "1000"];
        let args = ["--worker-urls", &url, "--mesh-tls-dir", &tls];
        Gateway::start(network, n, &[1, 2], &[&args[..], &limits].concat())
    });
    joined(&nodes.each_ref(), 2, s(10)).await;
    eventually(s(10), "ready", async || nodes[0].is_ready().await).await;
    // Nobody speaks UDP in the clear to this mesh.
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"hello", (nodes[0].ip, 39527)).unwrap();
    traffic(&nodes[0]).await;
    eventually(s(15), "every promised name", async || {
        let found = families(&nodes[0].metrics().await);
        let missing: Vec<_> =
            PROMISED.iter().map(|(name, _)| *name).filter(|name| !found.contains_key(*name)).collect();
        if !missing.is_empty() {
            eprintln!("not there yet: {missing:?}");
            // Only one may be in flight, so that some of them wait.
            tokio::join!(traffic(&nodes[0]), traffic(&nodes[0]), traffic(&nodes[0]));
        }
        missing.is_empty()
    })
    .await;
    let scrape = nodes[0].metrics().await;
    let found = families(&scrape);
    for (name, labels) in PROMISED {
        let expected: BTreeSet<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!(found[*name], BTreeSet::from([expected]), "{name}");
    }
    let value = |series: &str| {
        let line =
            scrape.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series}: {scrape}"));
        line.trim().parse::<f64>().unwrap()
    };
    assert!(value(r#"smg_router_tokens_total{token_type="prompt"}"#) >= 2.0 * 300.0, "both answers told their tokens");
    assert!(value(r#"smg_mesh_clock_skew_seconds{peer="node2"}"#).abs() < 5.0, "one machine has one clock");
    assert!(value(r#"smg_mesh_store_entries{store="workers"}"#) >= 1.0);
    check_with_promtool(&scrape);
}

/// A client's word of every kind, another in each request: a path, a method, a model, a key, a user, a response.
async fn made_up(gateway: &Gateway, n: usize) {
    let (http, url) = (&gateway.http, |path: &str| gateway.url(path));
    let prompt =
        |model: &str| json!({"model": model, "prompt": format!("{n}"), "max_tokens": 1, "user": format!("user-{n}")});
    let request = match n % 6 {
        0 => http.get(url(&format!("/v1/nothing/{n}?key={n}"))),
        1 => http.request(format!("METHOD{n}").parse().unwrap(), url(&format!("/ha/policies/model-{n}"))),
        2 => http.post(url("/v1/completions")).json(&prompt(&format!("model-{n}"))),
        3 => http.get(url(&format!("/v1/responses/response-{n}"))),
        4 => http.post(url("/v1/completions")).header("x-smg-target-worker", format!("worker-{n}")).json(&prompt("m")),
        _ => http.post(url("/v1/completions")).header("x-smg-routing-key", format!("key-{n}")).json(&prompt("m")),
    };
    let request = request.header("x-request-id", format!("id-{n}")).header("authorization", format!("Bearer key-{n}"));
    request.send().await.unwrap().bytes().await.unwrap();
}

/// `SMG_SERIES` requests, 10 000 without it, to the gateways of a cluster in turn, with limits by key and by model in force.
#[tokio::test]
async fn ten_thousand_paths_models_and_keys_mint_no_series() {
    let count = std::env::var("SMG_SERIES").map_or(10_000, |text| text.parse().unwrap());
    let network = Network::new();
    let (_worker, url) = worker(network, 9, "m", &[]);
    let nodes = [1, 2, 3].map(|n| Gateway::start(network, n, &[1, 2, 3], &["--worker-urls", &url]));
    joined(&nodes.each_ref(), 3, s(10)).await;
    for gateway in &nodes {
        eventually(s(10), "ready", async || gateway.is_ready().await).await;
        traffic(gateway).await;
    }
    for of in [json!({"key": "0123456789abcdef"}), json!({"model": "model-8"})] {
        let mut limit = json!({"limit_per_second": 1_000_000, "burst": 1_000_000});
        limit.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
        let (code, answer) = nodes[0].post("/ha/rate-limit", limit).await;
        assert_eq!(code, 200, "{answer}");
    }
    let send = async |n: usize| made_up(&nodes[n % nodes.len()], n / nodes.len()).await;
    stream::iter(0..count).map(send).buffer_unordered(32).for_each(async |()| ()).await;
    for gateway in &nodes {
        let scrape = gateway.metrics().await;
        let series = || scrape.lines().filter(|line| !line.starts_with('#'));
        println!("{}: {} series", gateway.name, series().count());
        assert!(series().count() <= 3000, "{}: {} series", gateway.name, series().count());
        for word in ["model-", "key-", "user-", "id-", "METHOD", "nothing", "response-", "worker-"] {
            assert!(!series().any(|line| line.contains(word)), "{word}: {scrape}");
        }
        for counted in ["error_code=\"model_not_found\"", "path=\"unmatched\""] {
            assert!(series().any(|line| line.contains(counted)), "they were counted, as one: {counted}: {scrape}");
        }
        check_with_promtool(&scrape);
    }
}
