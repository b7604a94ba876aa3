//! The exposition as a scrape sees it.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, time::Instant};

use super::*;
use crate::mesh::{node::NodeStatus, stores::Namespace};

fn lines(metrics: &Metrics, start: &str) -> Vec<String> {
    metrics.encode().lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
}

fn sample(id: &WorkerId) -> WorkerSample {
    WorkerSample {
        id: id.clone(),
        requests_active: 3,
        ready: true,
        breaker: 2,
        breaker_transitions: [
            ("closed", "open", 4),
            ("open", "half_open", 3),
            ("half_open", "closed", 1),
            ("half_open", "open", 1),
        ],
    }
}

/// One event of every kind.
fn busy() -> Arc<Metrics> {
    let metrics = Metrics::new();
    let elapsed = Duration::from_millis(30);
    metrics.http_request(&http::Method::POST, "/v1/chat/completions");
    metrics.http_response("/v1/chat/completions", http::StatusCode::OK, "", elapsed);
    metrics.http_response("unmatched", http::StatusCode::NOT_FOUND, "not_found", elapsed);
    metrics.http_connection_opened();
    metrics.shutdown_in_progress(true);
    metrics.rate_limit("allowed", "queued");
    metrics.queue_entered();
    metrics.queue_entered();
    metrics.queue_left(elapsed);
    metrics.router_request("llama", "/v1/chat/completions", true);
    metrics.router_duration("llama", "/v1/chat/completions", elapsed);
    metrics.router_ttft("llama", "/v1/chat/completions", elapsed);
    metrics.router_tpot("llama", "/v1/chat/completions", elapsed);
    metrics.router_tokens(10, 4, 3);
    metrics.router_error("no_available_workers");
    metrics.worker_selected(PolicyKind::LeastLoad);
    metrics.cache_aware("cache", 3, 4);
    metrics.cache_shared("sent", 1);
    metrics.watch_caches(|| vec![CacheSample { model: "llama".into(), bytes: 400, evictions: 2 }]);
    metrics.worker_error("connect");
    metrics.worker_retry();
    metrics.worker_health_check(true);
    let id = WorkerId::of_url("http://worker1:8000");
    metrics.watch_workers(move || vec![sample(&id)]);
    metrics.mesh_election();
    let rights = RightsSample { lendings: 27, reissued: 2, ..RightsSample::default() };
    metrics.watch_mesh(move || MeshSample {
        election: Some(ElectionSample { leads: true, term: 4, voters: 3, has_quorum: true }),
        peers: vec![("node2".parse().unwrap(), true), ("node3".parse().unwrap(), false)],
        members: vec![(NodeStatus::Alive, 2), (NodeStatus::Down, 1)],
        rights: Some(RightsSample {
            held: (33.5, 6.0),
            lent: (100.0, 20.0),
            slots: (4.0, 12.0),
            granted: 9,
            lapsed: 1,
            ..rights
        }),
    });
    let (peer, stranger) = ("node2".parse().unwrap(), "forgotten".parse().unwrap());
    metrics.mesh_clock_skew(&peer, -250);
    metrics.mesh_clock_skew(&stranger, 9);
    for (peer, by_datagram) in [(&peer, true), (&peer, false), (&peer, false), (&stranger, false)] {
        metrics.mesh_probed(peer, by_datagram);
    }
    metrics.mesh_replication(Instant::now(), || [(&peer, None)].into_iter());
    metrics.mesh_replication(Instant::now(), || [(&stranger, None)].into_iter());
    metrics.mesh_store(Namespace::Workers, 7, 900);
    metrics.mesh_data_save(true);
    metrics.mesh_suspicion(true);
    metrics.mesh_false_suspicion();
    metrics.mesh_refutation();
    metrics.mesh_probe_rtt(elapsed);
    metrics.mesh_local_health(3);
    metrics.mesh_sync_operation("delta_sent");
    metrics.mesh_sync_latency(elapsed);
    metrics.mesh_gossip_message("sent", "ping");
    metrics.trace_spans("exported", 2);
    metrics.otlp_export("exported");
    metrics.kubernetes_request("list", "ok");
    metrics.kubernetes_found("worker", 3);
    metrics.kubernetes_listed("worker");
    metrics.tls_expiry("mesh", 1);
    metrics.tls_handshake_failed("timeout");
    metrics.mesh_rejected("datagram", "malformed");
    metrics
}

#[test]
fn every_metric_is_exposed_under_its_documented_name() {
    let text = busy().encode();
    for definition in ALL {
        let kind = match definition.kind {
            _ if definition.name == "smg_mesh_peers_total" => "untyped",
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {} {kind}\n", definition.name)), "{}: {text}", definition.name);
        assert!(text.contains(&format!("# HELP {} {}\n", definition.name, definition.help)), "{}", definition.name);
        let suffix = if definition.kind == Kind::Histogram { "_count" } else { "" };
        let samples: Vec<&str> =
            text.lines().filter(|l| family_of(l) == format!("{}{suffix}", definition.name)).collect();
        assert!(!samples.is_empty(), "{}", definition.name);
        for sample in samples {
            let expected: BTreeSet<&str> = definition.labels.iter().copied().collect();
            assert_eq!(labels_of(sample), expected, "{sample}");
        }
    }
    let declared: BTreeSet<&str> = ALL.iter().map(|definition| definition.name).collect();
    let exposed: BTreeSet<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(exposed, declared, "nothing else is exposed");
    // For `promtool check metrics` in `.ci/run`.
    if let Some(path) = std::env::var_os("SMG_EXPOSITION") {
        std::fs::write(path, text).unwrap();
    }
}

fn family_of(line: &str) -> String {
    line.split(['{', ' ']).next().unwrap_or_default().to_owned()
}

fn labels_of(line: &str) -> BTreeSet<&str> {
    let Some((_, rest)) = line.split_once('{') else { return BTreeSet::new() };
    let (labels, _) = rest.rsplit_once('}').unwrap();
    labels.split("\",").map(|pair| pair.split('=').next().unwrap()).collect()
}

#[test]
fn samples_have_their_values() {
    let metrics = busy();
    let worker = WorkerId::of_url("http://worker1:8000");
    for expected in [
        r#"smg_http_requests_total{method="POST",path="/v1/chat/completions"} 1"#,
        r#"smg_http_responses_total{error_code="not_found",path="unmatched",status_code="404"} 1"#,
        r#"smg_http_request_duration_seconds_bucket{path="unmatched",le="0.025"} 0"#,
        r#"smg_http_request_duration_seconds_bucket{path="unmatched",le="0.05"} 1"#,
        r#"smg_http_request_duration_seconds_bucket{path="unmatched",le="1800"} 1"#,
        "smg_http_connections_active 1",
        "smg_shutdown_in_progress 1",
        r#"smg_http_rate_limit_total{decision="allowed",result="queued"} 1"#,
        "smg_queue_depth 1",
        r#"smg_queue_wait_seconds_bucket{le="0.05"} 1"#,
        r#"smg_router_requests_total{endpoint="/v1/chat/completions",model="llama",streaming="true"} 1"#,
        r#"smg_worker_selection_total{policy="least_load"} 1"#,
        r#"smg_cache_aware_policy_branch_total{branch="cache"} 1"#,
        r#"smg_cache_aware_match_ratio_bucket{le="0.7"} 0"#,
        r#"smg_cache_aware_match_ratio_bucket{le="0.8"} 1"#,
        r#"smg_cache_aware_index_bytes{model="llama"} 400"#,
        r#"smg_cache_aware_index_evictions_total{model="llama"} 2"#,
        r#"smg_worker_selection_total{policy="random"} 0"#,
        r#"smg_worker_health_checks_total{result="success"} 1"#,
        "smg_worker_pool_size 1",
        &format!("smg_worker_requests_active{{worker=\"{worker}\"}} 3"),
        &format!("smg_worker_cb_state{{worker=\"{worker}\"}} 2"),
        &format!("smg_worker_cb_transitions_total{{from=\"closed\",to=\"open\",worker=\"{worker}\"}} 4"),
        &format!("smg_worker_cb_transitions_total{{from=\"half_open\",to=\"closed\",worker=\"{worker}\"}} 1"),
        r#"smg_router_tokens_total{token_type="prompt"} 10"#,
        r#"smg_router_tokens_total{token_type="cached"} 4"#,
        r#"smg_router_tokens_total{token_type="completion"} 3"#,
        r#"smg_router_tpot_seconds_bucket{endpoint="/v1/chat/completions",model="llama",le="0.03"} 1"#,
        r#"smg_mesh_clock_skew_seconds{peer="node2"} -0.25"#,
        r#"smg_mesh_probe_detours{peer="node2"} 2"#,
        r#"smg_mesh_replication_lag_seconds{peer="node2"} 0"#,
        r#"smg_mesh_store_entries{store="workers"} 7"#,
        r#"smg_mesh_store_bytes{store="workers"} 900"#,
        r#"smg_mesh_store_bytes{store="sessions"} 0"#,
        "smg_mesh_peers_total 1",
        r#"smg_mesh_peer_status{peer="node2"} 1"#,
        r#"smg_mesh_peer_status{peer="node3"} 0"#,
        r#"smg_mesh_members{status="ALIVE"} 2"#,
        r#"smg_mesh_members{status="DOWN"} 1"#,
        r#"smg_mesh_suspicions_total{source="own_probe"} 1"#,
        r#"smg_mesh_suspicions_total{source="peer"} 0"#,
        "smg_mesh_false_suspicions_total 1",
        "smg_mesh_refutations_total 1",
        r#"smg_mesh_probe_rtt_seconds_bucket{le="0.02"} 0"#,
        r#"smg_mesh_probe_rtt_seconds_bucket{le="0.05"} 1"#,
        "smg_mesh_local_health_score 3",
        r#"smg_mesh_gossip_messages_total{direction="sent",kind="ping"} 1"#,
        r#"smg_mesh_rejected_total{plane="datagram",reason="malformed"} 1"#,
    ] {
        let text = metrics.encode();
        assert!(text.lines().any(|line| line == expected), "{expected} in\n{text}");
    }
}

#[test]
fn without_a_source_series_are_absent_and_plain_counters_are_zero() {
    let metrics = Metrics::new();
    for (case, start, expected) in [
        ("elections", "smg_mesh_leader_elections_total", vec!["smg_mesh_leader_elections_total 0"]),
        ("leader", "smg_mesh_leader ", vec![]),
        ("retries", "smg_worker_retries_total", vec!["smg_worker_retries_total 0"]),
        ("connections", "smg_http_connections_active", vec!["smg_http_connections_active 0"]),
        ("refutations", "smg_mesh_refutations_total", vec!["smg_mesh_refutations_total 0"]),
        ("pool", "smg_worker_pool_size", vec![]),
        ("peers", "smg_mesh_peer", vec![]),
    ] {
        assert_eq!(lines(&metrics, start), expected, "{case}");
    }
}

#[test]
fn series_go_with_their_source() {
    let metrics = busy();
    assert_eq!(lines(&metrics, "smg_worker_health{").len(), 1);
    assert_eq!(lines(&metrics, "smg_mesh_peer_status{").len(), 2);
    for (name, line) in [
        ("smg_mesh_leader_elections_total", "smg_mesh_leader_elections_total 1"),
        ("smg_mesh_leader ", "smg_mesh_leader 1"),
        ("smg_mesh_term", "smg_mesh_term 4"),
        ("smg_mesh_voters", "smg_mesh_voters 3"),
        ("smg_mesh_quorum", "smg_mesh_quorum 1"),
        ("smg_mesh_limit_rate_held", "smg_mesh_limit_rate_held 33.5"),
        ("smg_mesh_limit_burst_lent", "smg_mesh_limit_burst_lent 20"),
        ("smg_mesh_limit_slots_held", "smg_mesh_limit_slots_held 4"),
        ("smg_mesh_limit_slots_lent", "smg_mesh_limit_slots_lent 12"),
        ("smg_mesh_limit_leases_total{event=\"granted", "smg_mesh_limit_leases_total{event=\"granted\"} 9"),
    ] {
        assert_eq!(lines(&metrics, name), [line]);
    }
    metrics.watch_workers(Vec::new);
    metrics.watch_mesh(MeshSample::default);
    assert_eq!(lines(&metrics, "smg_worker_pool_size"), ["smg_worker_pool_size 0"]);
    assert_eq!(lines(&metrics, "smg_mesh_peers_total"), ["smg_mesh_peers_total 0"]);
    for gone in [
        "smg_worker_cb_state{",
        "smg_worker_cb_transitions_total{",
        "smg_worker_health{",
        "smg_worker_requests_active{",
        "smg_mesh_peer_status{",
        "smg_mesh_members{",
        "smg_mesh_clock_skew_seconds{",
        "smg_mesh_probe_detours{",
        "smg_mesh_store_entries{",
    ] {
        assert_eq!(lines(&metrics, gone), Vec::<String>::new(), "{gone}");
    }
}

#[test]
fn labels_are_bounded() {
    let metrics = Metrics::new();
    for n in 0..MODELS_MAX + 10 {
        metrics.router_request(&format!("model-{n}"), "/v1/completions", false);
    }
    for name in ["BREW", "PROPFIND"] {
        metrics.http_request(&http::Method::from_bytes(name.as_bytes()).unwrap(), "unmatched");
    }
    for status in [599, 742, 999] {
        metrics.http_response("/generate", http::StatusCode::from_u16(status).unwrap(), "", Duration::ZERO);
    }
    assert_eq!(lines(&metrics, "smg_router_requests_total{").len(), MODELS_MAX + 1);
    let other = r#"smg_router_requests_total{endpoint="/v1/completions",model="other",streaming="false"} 10"#;
    assert_eq!(lines(&metrics, other).len(), 1);
    assert_eq!(
        lines(&metrics, "smg_http_requests_total{"),
        [r#"smg_http_requests_total{method="OTHER",path="unmatched"} 2"#]
    );
    assert_eq!(
        lines(&metrics, "smg_http_responses_total{"),
        [r#"smg_http_responses_total{error_code="",path="/generate",status_code="other"} 3"#]
    );
}

#[test]
fn cores_count_without_losing_events() {
    let metrics = Metrics::new();
    std::thread::scope(|scope| {
        for core in 0..4 {
            let metrics = &metrics;
            scope.spawn(move || {
                for n in 0..1000 {
                    metrics.router_request(if n % 2 == 0 { "a" } else { "b" }, "/generate", core % 2 == 0);
                }
            });
        }
    });
    let counts = lines(&metrics, "smg_router_requests_total{");
    assert_eq!(counts.len(), 4);
    assert!(counts.iter().all(|line| line.ends_with(" 1000")), "{counts:?}");
}

/// Prints the cost of one request's events; run with `--release --nocapture` to judge it.
#[test]
fn cost_of_one_request() {
    let metrics = busy();
    let rounds = if cfg!(debug_assertions) { 1_000 } else { 2_000_000 };
    let start = Instant::now();
    for _ in 0..rounds {
        let elapsed = Duration::from_millis(30);
        metrics.http_request(&http::Method::POST, "/v1/chat/completions");
        metrics.router_request("llama", "/v1/chat/completions", false);
        metrics.worker_selected(PolicyKind::RoundRobin);
        metrics.router_duration("llama", "/v1/chat/completions", elapsed);
        metrics.http_response("/v1/chat/completions", http::StatusCode::OK, "", elapsed);
    }
    println!("{} ns per request", start.elapsed().as_nanos() / rounds);
    let count = lines(&metrics, r#"smg_worker_selection_total{policy="round_robin"}"#);
    assert_eq!(count, [format!(r#"smg_worker_selection_total{{policy="round_robin"}} {rounds}"#)]);
}
