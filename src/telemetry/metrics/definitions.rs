//! Name, kind, labels and help of every metric: the one place where these texts stand.

/// What a metric measures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only grows; starts at 0 with the process.
    Counter,
    /// The value at the time of the scrape.
    Gauge,
    /// Seconds, or a share from 0 to 1, in buckets.
    Histogram,
}

/// One metric as documented.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Full name in the exposition.
    pub name: &'static str,
    /// What it measures.
    pub kind: Kind,
    /// Label names, in the order of the manual.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
}

/// Buckets of request durations in seconds: from a cached answer to the default `--request-timeout-secs`.
pub const DURATION_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

/// Buckets of times to the first byte in seconds: below 50 ms a prefix cache answered, above 10 s a queue did.
pub const TTFT_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Buckets of times per output token in seconds: from 500 tokens a second to a stream that stutters.
pub const TPOT_BUCKETS: &[f64] = &[0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0];

/// Buckets of mesh round trips in seconds: from one rack to a link about to be given up.
pub const SYNC_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Buckets of probe round trips in seconds: from one host to the longest wait for an ack.
pub const RTT_BUCKETS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Buckets of shares.
pub(super) const RATIO_BUCKETS: &[f64] = &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

macro_rules! definitions {
    ($($constant:ident = $kind:ident $name:literal $labels:tt $help:literal;)*) => {
        $(pub(super) const $constant: Definition =
            Definition { name: $name, kind: Kind::$kind, labels: &$labels, help: $help };)*

        /// Every metric, in the order of the documentation.
        pub const ALL: &[Definition] = &[$($constant),*];
    };
}

definitions! {
    HTTP_REQUESTS = Counter "smg_http_requests_total" ["method", "path"] "Requests received, by method and route template.";
    HTTP_RESPONSES = Counter "smg_http_responses_total" ["path", "status_code", "error_code"]
        "Responses begun, by route template, status and the gateway's own error code (empty on success).";
    HTTP_DURATION = Histogram "smg_http_request_duration_seconds" ["path"]
        "Time from the end of the request head to the end of the response, by route template.";
    HTTP_CONNECTIONS = Gauge "smg_http_connections_active" [] "Client connections that are open.";
    HTTP_RATE_LIMIT = Counter "smg_http_rate_limit_total" ["decision", "result"]
        "Serving requests met by the rate limit: allowed (within_rate, awaited_share) or rejected (rate_exceeded); by the cluster's bound on requests in flight: rejected (concurrency_exceeded); and by --max-concurrent-requests: allowed (immediate, queued) or rejected (queue_full, queue_timeout, abandoned).";
    QUEUE_DEPTH = Gauge "smg_queue_depth" [] "Requests that wait for one in flight to end.";
    QUEUE_WAIT = Histogram "smg_queue_wait_seconds" [] "Time that requests were in the queue, however they left it.";
    SHUTDOWN = Gauge "smg_shutdown_in_progress" [] "1 while the gateway drains, else 0.";
    ROUTER_REQUESTS = Counter "smg_router_requests_total" ["model", "endpoint", "streaming"]
        "Requests routed to workers, by model, endpoint and whether a stream was asked for.";
    ROUTER_DURATION = Histogram "smg_router_request_duration_seconds" ["model", "endpoint"]
        "Time from routing a request to the end of the worker's answer.";
    ROUTER_TTFT = Histogram "smg_router_ttft_seconds" ["model", "endpoint"]
        "Time from routing a request to the first body byte of a stream.";
    ROUTER_TPOT = Histogram "smg_router_tpot_seconds" ["model", "endpoint"]
        "Time per output token of a stream after the first; an event counts as a token where the worker tells no usage.";
    ROUTER_TOKENS = Counter "smg_router_tokens_total" ["token_type"]
        "Tokens that workers reported: prompt, cached (those of prompt that a cache had) and completion.";
    ROUTER_ERRORS = Counter "smg_router_request_errors_total" ["error_type"] "Requests that ended in an error, by cause.";
    WORKER_POOL = Gauge "smg_worker_pool_size" [] "Workers that this gateway knows.";
    WORKER_ACTIVE = Gauge "smg_worker_requests_active" ["worker"] "Requests in flight from this gateway, by worker.";
    WORKER_HEALTH = Gauge "smg_worker_health" ["worker"] "1 while this gateway sees the worker ready, else 0.";
    WORKER_CHECKS = Counter "smg_worker_health_checks_total" ["result"] "Health checks of workers, by result.";
    WORKER_SELECTION = Counter "smg_worker_selection_total" ["policy"] "Choices of a worker, by policy.";
    CACHE_BRANCH = Counter "smg_cache_aware_policy_branch_total" ["branch"]
        "Choices of cache_aware, by what decided: cache, home, spill, balance or no_prompt.";
    CACHE_MATCH = Histogram "smg_cache_aware_match_ratio" []
        "Share of the prompt's blocks that the chosen worker had seen.";
    CACHE_SHARED = Counter "smg_cache_aware_placements_total" ["direction"]
        "Placements told to or by other gateways: sent, received, or dropped because too many waited.";
    CACHE_BYTES = Gauge "smg_cache_aware_index_bytes" ["model"] "Bytes of the prefix index that are in use, by model.";
    CACHE_EVICTIONS = Counter "smg_cache_aware_index_evictions_total" ["model"]
        "Prefixes that left the index for others, by model.";
    WORKER_ERRORS = Counter "smg_worker_errors_total" ["error_type"] "Failed attempts at workers, by cause.";
    WORKER_CB_STATE = Gauge "smg_worker_cb_state" ["worker"]
        "This gateway's circuit breaker for the worker: 0 closed, 1 open, 2 half-open.";
    WORKER_CB_TRANSITIONS = Counter "smg_worker_cb_transitions_total" ["worker", "from", "to"]
        "Changes of the circuit breaker's state, by worker.";
    WORKER_RETRIES = Counter "smg_worker_retries_total" [] "Attempts after the first.";
    MESH_PEERS = Gauge "smg_mesh_peers_total" []
        "Other nodes that are ALIVE. A gauge, exposed as untyped because of its documented name.";
    MESH_PEER_STATUS = Gauge "smg_mesh_peer_status" ["peer"] "1 while the other node is ALIVE, else 0.";
    MESH_SYNC_OPERATIONS = Counter "smg_mesh_sync_operations_total" ["type"] "Replication messages and checks, by type.";
    MESH_SYNC_LATENCY = Histogram "smg_mesh_sync_latency_seconds" [] "Time from sending state to a peer to its ack.";
    MESH_ELECTIONS = Counter "smg_mesh_leader_elections_total" []
        "Elections that gave the cluster a leader, as far as this node learnt of them.";
    MESH_LEADER = Gauge "smg_mesh_leader" [] "1 while this node leads the cluster, else 0.";
    MESH_TERM = Gauge "smg_mesh_term" [] "The newest term of a leader that this node knows.";
    MESH_VOTERS = Gauge "smg_mesh_voters" [] "Nodes that elect the leader, as this node knows them.";
    MESH_QUORUM = Gauge "smg_mesh_quorum" [] "1 while this node sees a quorum of the voters, else 0.";
    LIMIT_RATE_HELD = Gauge "smg_mesh_limit_rate_held" []
        "Requests per second that this node may admit now, of the limits that the cluster shares: the sum over the limit of all requests and those of keys and models.";
    LIMIT_BURST_HELD = Gauge "smg_mesh_limit_burst_held" []
        "Requests that this node may admit at once, of the limits that the cluster shares: the sum over the limit of all requests and those of keys and models.";
    LIMIT_RATE_LENT = Gauge "smg_mesh_limit_rate_lent" []
        "Requests per second that nodes may admit of what this node lends as the leader: the sum over the limit of all requests and those of keys and models.";
    LIMIT_BURST_LENT = Gauge "smg_mesh_limit_burst_lent" []
        "Requests at once that nodes may admit of what this node lends as the leader: the sum over the limit of all requests and those of keys and models.";
    LIMIT_SLOTS_HELD = Gauge "smg_mesh_limit_slots_held" []
        "Requests that this node may have in flight now, of the bounds that the cluster shares: the sum over the bound of all requests and those of keys and models.";
    LIMIT_SLOTS_LENT = Gauge "smg_mesh_limit_slots_lent" []
        "Requests that nodes may have in flight of what this node lends as the leader: the sum over the bound of all requests and those of keys and models.";
    LIMIT_LOCAL = Gauge "smg_mesh_limit_local" []
        "1 while this node admits its own part of each limit, for it knows no leader (--mesh-rate-limit-without-quorum local), else 0.";
    LIMIT_LEASES = Counter "smg_mesh_limit_leases_total" ["event"]
        "Leases of rights to admit requests: granted to this node, lapsed here, lent by it, reissued by it.";
    MESH_MEMBERS = Gauge "smg_mesh_members" ["status"] "Known nodes by status, this one included.";
    MESH_SUSPICIONS = Counter "smg_mesh_suspicions_total" ["source"]
        "Suspicions of other nodes: from own_probe, or heard from a peer.";
    MESH_FALSE_SUSPICIONS = Counter "smg_mesh_false_suspicions_total" []
        "Suspicions that their node refuted, and nodes called DOWN whose process came back: cut off or stalled, not dead.";
    MESH_REFUTATIONS = Counter "smg_mesh_refutations_total" []
        "Times that this node heard itself suspected or called down, and refuted it.";
    MESH_PROBE_RTT = Histogram "smg_mesh_probe_rtt_seconds" [] "Time from a direct probe to its ack.";
    MESH_DETOURS = Gauge "smg_mesh_probe_detours" ["peer"]
        "Probes in a row that reached the peer by its stream or through another node alone: datagrams between the two are lost.";
    MESH_LOCAL_HEALTH = Gauge "smg_mesh_local_health_score" []
        "How little this node trusts its own probes: 0 full trust, 8 the least.";
    MESH_GOSSIP = Counter "smg_mesh_gossip_messages_total" ["direction", "kind"] "Membership messages, by direction and kind.";
    MESH_REJECTED = Counter "smg_mesh_rejected_total" ["plane", "reason"]
        "Packets, handshakes and frames of the mesh that were refused, by plane and reason.";
    MESH_CLOCK_SKEW = Gauge "smg_mesh_clock_skew_seconds" ["peer"]
        "By how much the peer's wall clock leads that of this node, within 0.2 s (RFC 5905 section 8); measured on acks, once a minute and more often.";
    MESH_LAG = Gauge "smg_mesh_replication_lag_seconds" ["peer"]
        "How long the oldest state sent to the peer has waited for its ack; 0 when none waits.";
    MESH_STORE_ENTRIES = Gauge "smg_mesh_store_entries" ["store"] "Live keys of a replicated namespace.";
    MESH_STORE_BYTES = Gauge "smg_mesh_store_bytes" ["store"] "Live payload of a replicated namespace in bytes.";
    MESH_DATA_SAVES = Counter "smg_mesh_data_saves_total" ["result"]
        "Batches of replicated state written to --mesh-data-dir: done (flushed to the disk) or failed.";
    TRACE_SPANS = Counter "smg_trace_spans_total" ["result"]
        "Spans of --enable-trace: exported, failed to arrive, or dropped because too many waited.";
    OTLP_EXPORTS = Counter "smg_otlp_metric_exports_total" ["result"]
        "Exports of --otlp-metrics-endpoint: exported, or failed to arrive, which the next one makes up for.";
    KUBE_PODS = Gauge "smg_kubernetes_pods" ["kind"]
        "Pods found by --service-discovery that are Ready (worker), or by --router-selector (router).";
    KUBE_LISTED = Gauge "smg_kubernetes_last_list_timestamp_seconds" ["kind"]
        "Unix time of the last complete list of pods; of the start before the first.";
    KUBE_REQUESTS = Counter "smg_kubernetes_requests_total" ["operation", "result"]
        "Requests to the Kubernetes API: list, watch or node, and ok or why they failed.";
    TLS_EXPIRY = Gauge "smg_tls_cert_expiry_timestamp_seconds" ["role"]
        "Unix time at which the certificate in use expires, by what it is for (mesh, server, worker).";
    TLS_RELOAD_FAILURES = Counter "smg_tls_reload_failures_total" ["role"]
        "Readings of changed certificate files that could not be used, by what they are for; the old stay in use.";
    TLS_HANDSHAKE_FAILURES = Counter "smg_http_tls_handshake_failures_total" ["reason"]
        "TLS handshakes with clients that failed, by reason.";
}
