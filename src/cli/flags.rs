//! Every flag of `smg launch`, with its default and help text.
//!
//! A flag is declared here once. Its variable (`--a-b` reads `SMG_A_B`), its key in the file of `--config` (`a-b` or
//! `a_b`), its place in `--help` and its row in `deploy/REFERENCE.md` are derived from the declaration, so none of them
//! can be forgotten. A switch takes an optional value (`--log-json`, `--log-json=false`), so that a command line can
//! also take back what the environment said.

use clap::{Args, builder::TypedValueParser};

use crate::{
    config::{CONCURRENT_MAX, PolicyKind, RATE_MAX},
    mesh::quota::local::WithoutQuorum,
};

/// A year: longer waits are mistakes, and sums with it stay far from overflow.
const SECS_MAX: u64 = 31_536_000;

/// The flags of the gateway as given, before the checks that look at more than one of them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Bind")]
pub struct Flags {
    /// TOML file with the same keys as the flags; flags and variables win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,

    /// Address where clients connect: an IP address or a name of this host
    #[arg(long, default_value = "0.0.0.0")]
    pub host: String,
    /// Port where clients connect; 0 takes a free one
    #[arg(long, default_value_t = 30000)]
    pub port: u16,
    /// Certificate that clients are shown, its intermediates behind it, in PEM: with it they connect by TLS 1.2 or 1.3 alone
    #[arg(long, value_name = "FILE")]
    pub tls_cert_path: Option<String>,
    /// Private key of that certificate in PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key_path: Option<String>,
    /// Port where /liveness, /readiness and /health are answered too, by a thread of its own; 0 takes a free one; none has the main port alone
    #[arg(long, value_name = "PORT")]
    pub health_check_port: Option<u16>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub workers: WorkerFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cache: CacheFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub requests: RequestFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub limits: LimitFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub retry: RetryFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub breaker: BreakerFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub health: HealthFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub auth: AuthFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub telemetry: TelemetryFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub kubernetes: KubernetesFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub mesh: MeshFlags,
}

/// The workers and how one of them is chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workers and policy")]
pub struct WorkerFlags {
    /// Base URLs of workers, separated by commas or spaces; may be repeated
    #[arg(long, num_args = 1.., value_name = "URL")]
    pub worker_urls: Vec<String>,
    /// Bearer token sent to workers that have none of their own; `@path` reads it from a file
    #[arg(long, value_name = "KEY")]
    pub worker_api_key: Option<String>,
    /// Authorities that vouch for workers with `https` URLs, in PEM, instead of those that this machine trusts
    #[arg(long, value_name = "FILE")]
    pub worker_ca_path: Option<String>,
    /// Certificate shown to workers that ask for one, its intermediates behind it, in PEM
    #[arg(long, value_name = "FILE")]
    pub worker_client_cert_path: Option<String>,
    /// Private key of that certificate in PEM
    #[arg(long, value_name = "FILE")]
    pub worker_client_key_path: Option<String>,
    /// How long no worker may be ready after the start before that is logged as an error
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(0..=SECS_MAX))]
    pub worker_startup_timeout_secs: u64,
    /// How long a removed worker is still listed as draining while its last requests run; they are never cut off
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=SECS_MAX))]
    pub drain_settle_secs: u64,
    /// How a worker is chosen where no policy is set for the model
    #[arg(long, default_value = PolicyKind::CacheAware.as_str(), value_parser = policy_parser())]
    pub policy: PolicyKind,
}

/// How the policy `cache_aware` weighs caches against load.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cache-aware routing")]
pub struct CacheFlags {
    /// Least share of a prompt, 0 to 1, that a worker must have seen to be chosen for it
    #[arg(long, default_value = "0.3", value_name = "SHARE", value_parser = |text: &str| number_within(text, 0.0, 1.0))]
    pub cache_threshold: f64,
    /// A worker counts as overloaded only with more requests in flight than the least loaded one by this number
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub balance_abs_threshold: u32,
    /// A worker counts as overloaded only with more than this many times the requests of the least loaded one, 1 to 1000
    #[arg(long, default_value = "1.5", value_name = "FACTOR", value_parser = |text: &str| number_within(text, 1.0, 1000.0))]
    pub balance_rel_threshold: f64,
    /// Memory for the prefixes that workers have seen, in bytes, for each model
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(65_536..=1 << 36))]
    pub cache_index_bytes: u64,
}

/// Bounds on client requests.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Requests")]
pub struct RequestFlags {
    /// Longest time for a whole request
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub request_timeout_secs: u64,
    /// Longest time to the first byte of a streamed answer, per worker: then another worker is asked; 504 when none is left; none does not watch it
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub ttft_timeout_secs: Option<u64>,
    /// Longest time between two reads of a streamed answer: then it ends with an error event and is aborted; none does not watch it
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub stream_idle_timeout_secs: Option<u64>,
    /// Largest request body in bytes
    #[arg(long, default_value_t = 512 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub max_payload_size: u64,
    /// How long requests in flight may run on after SIGTERM
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(0..=SECS_MAX))]
    pub shutdown_grace_period_secs: u64,
    /// Headers that may carry a request id, the first present wins; comma separated
    #[arg(long, num_args = 1.., value_name = "NAME",
          default_values = ["x-request-id", "x-correlation-id", "x-trace-id", "request-id"])]
    pub request_id_headers: Vec<String>,
    /// Idle connections to workers are closed after this; keep it below the workers' own keep-alive time
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub upstream_pool_idle_timeout_secs: u64,
    /// Origins that browsers may call from, comma separated; `*` allows any, none sends no CORS headers
    #[arg(long, num_args = 1.., value_name = "ORIGIN")]
    pub cors_allowed_origins: Vec<String>,
}

/// Bounds on the load of this gateway.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Serving requests in flight at this gateway, response bodies included; further ones wait; -1 is no bound
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "N",
          value_parser = clap::value_parser!(i64).range(-1..=1_000_000))]
    pub max_concurrent_requests: i64,
    /// Serving requests in flight, with the mesh at all gateways together (give all the same), without it at this one;
    /// further ones get 429; none is no bound
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=CONCURRENT_MAX as i64))]
    pub cluster_max_concurrent_requests: Option<u32>,
    /// Requests that may wait for a place in flight, first come, first served, and in a mesh as many while this node was lent no part of a limit per second for less than 4 s; further ones get 429
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub queue_size: u32,
    /// Longest wait; then the answer is 408, or 429 where the rate limit was waited for
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub queue_timeout_secs: u64,
    /// Serving requests admitted per second, with the mesh by all gateways together (give all the same): one token each;
    /// further ones get 429; none is no bound
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=RATE_MAX as i64))]
    pub rate_limit_tokens_per_second: Option<u32>,
    /// Most of them at once after a pause; without it as many as per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=RATE_MAX as i64))]
    pub rate_limit_burst: Option<u32>,
}

/// Retries on another worker.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Retry")]
pub struct RetryFlags {
    /// Attempts after the first
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retry_max_retries: u32,
    /// First wait before a retry
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=3_600_000))]
    pub retry_initial_backoff_ms: u64,
    /// Longest wait before a retry
    #[arg(long, default_value_t = 30000, value_parser = clap::value_parser!(u64).range(0..=3_600_000))]
    pub retry_max_backoff_ms: u64,
    /// Growth of the wait from one retry to the next, 1 to 100
    #[arg(long, default_value = "1.5", value_parser = |text: &str| number_within(text, 1.0, 100.0))]
    pub retry_backoff_multiplier: f64,
    /// Random share of the wait, 0 to 1
    #[arg(long, default_value = "0.2", value_parser = |text: &str| number_within(text, 0.0, 1.0))]
    pub retry_jitter_factor: f64,
    /// Retries allowed as a percentage of requests
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retry_budget_percent: u32,
    /// Never retry
    #[arg(long)]
    pub disable_retries: bool,
}

/// Circuit breakers of workers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Circuit breaker")]
pub struct BreakerFlags {
    /// Failures within the window after which a worker gets no requests from this gateway
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub cb_failure_threshold: u32,
    /// Successes on trial after which it gets all requests again; as many may be on trial at a time
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub cb_success_threshold: u32,
    /// How long it gets none before the first trial
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub cb_timeout_duration_secs: u64,
    /// How long a failure counts
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub cb_window_duration_secs: u64,
    /// Never stop sending requests to a worker because they fail there
    #[arg(long)]
    pub disable_circuit_breaker: bool,
}

/// Active health checks of workers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Worker health")]
pub struct HealthFlags {
    /// Time between two checks of a ready worker
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub health_check_interval_secs: u64,
    /// Time for one check
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub health_check_timeout_secs: u64,
    /// Failures in a row that make a worker not ready
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub health_failure_threshold: u32,
    /// Successes in a row that make it ready again
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub health_success_threshold: u32,
    /// Path that is asked
    #[arg(long, default_value = "/health", value_name = "PATH")]
    pub health_check_endpoint: String,
    /// Never check: registered workers count as ready at once
    #[arg(long)]
    pub disable_health_check: bool,
}

/// Keys of clients and operators.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Authentication")]
pub struct AuthFlags {
    /// Keys for the serving routes, comma separated, may be repeated; `@path` reads one per line; none leaves them open
    #[arg(long, num_args = 1.., value_name = "KEY")]
    pub api_key: Vec<String>,
    /// Keys for the admin routes, given the same way; none admits loopback clients alone
    #[arg(long, num_args = 1.., value_name = "KEY")]
    pub admin_api_key: Vec<String>,
}

/// Logs and metrics.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Telemetry")]
pub struct TelemetryFlags {
    /// Address of the metrics listener
    #[arg(long, default_value = "0.0.0.0")]
    pub prometheus_host: String,
    /// Port of the metrics listener; unless it is given, a free one is taken when the default is in use
    #[arg(long, default_value_t = 29000)]
    pub prometheus_port: u16,
    /// Least severe level that is logged to standard output; `RUST_LOG` wins over it
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = ["trace", "debug", "info", "warn", "error"])]
    pub log_level: String,
    /// Log one JSON object per line instead of text
    #[arg(long)]
    pub log_json: bool,
    /// Also write the log to daily files in this directory; lines are dropped, and counted, when the disk is too slow
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<String>,
    /// Send traces of requests to an OpenTelemetry collector; the `OTEL_*` variables keep their meaning
    #[arg(long)]
    pub enable_trace: bool,
    /// Collector to send traces to, as `http://collector:4317`; without it `OTEL_EXPORTER_OTLP_ENDPOINT`, else this host
    #[arg(long, alias = "otlp-endpoint", value_name = "URL")]
    pub otlp_traces_endpoint: Option<String>,
    /// Collector to send metrics to as well, as `http://collector:4317`, every minute; without it `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`, else they are only scraped
    #[arg(long, value_name = "URL")]
    pub otlp_metrics_endpoint: Option<String>,
}

/// Workers and peers that are pods of a Kubernetes cluster.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesFlags {
    /// Find workers among the pods of a Kubernetes cluster; the API server is that of `KUBECONFIG`, else of the pod's service account, which must be allowed to list and watch pods
    #[arg(long)]
    pub service_discovery: bool,
    /// Labels of the pods that are workers, as `app=vllm,tier=gpu`: a pod must have all of them
    #[arg(long, num_args = 1.., value_name = "LABEL")]
    pub selector: Vec<String>,
    /// Port where those pods take requests: a number, or the name of a container port
    #[arg(long, default_value = "80", value_name = "PORT")]
    pub service_discovery_port: String,
    /// Scheme by which those pods are asked
    #[arg(long, default_value = "http", value_name = "SCHEME", value_parser = ["http", "https"])]
    pub service_discovery_scheme: String,
    /// Namespace of the pods; without it pods of all namespaces are looked at, which takes a ClusterRole
    #[arg(long, value_name = "NAMESPACE")]
    pub service_discovery_namespace: Option<String>,
    /// Time between two complete lists of the pods; what changes meanwhile comes by a watch
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=240))]
    pub service_discovery_interval_secs: u64,
    /// Labels of the pods that are gateways of this mesh, as `app=smg`: they are joined through, on the mesh port of this one, beside the peers that are named, of which it needs one
    #[arg(long, num_args = 1.., value_name = "LABEL")]
    pub router_selector: Vec<String>,
}

/// The mesh of gateways.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mesh")]
pub struct MeshFlags {
    /// Join a mesh of gateways; the other mesh flags need it
    #[arg(long)]
    pub enable_mesh: bool,
    /// Name of this node, unique in the cluster; without it `POD_NAME`, else the host name, which alone is made unique when another live node has it
    #[arg(long, value_name = "NAME")]
    pub mesh_server_name: Option<String>,
    /// Address that the mesh listens on
    #[arg(long, default_value = "0.0.0.0")]
    pub mesh_host: String,
    /// Port of the mesh, UDP datagrams and TCP gRPC; 0 takes a free one
    #[arg(long, default_value_t = 39527)]
    pub mesh_port: u16,
    /// Host that other nodes use to reach this one; without it `POD_IP`, else found from the routes of this host
    #[arg(long, value_name = "HOST")]
    pub mesh_advertise_host: Option<String>,
    /// Port that other nodes use to reach this one; without it the port that is bound
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub mesh_advertise_port: Option<u16>,
    /// Nodes to join through, as `host:port`, comma separated; the own address may be among them
    #[arg(long, num_args = 1.., value_name = "PEER")]
    pub mesh_peer_urls: Vec<String>,
    /// Label of the cluster: nodes with another label never merge with it
    #[arg(long, default_value = "smg", value_name = "LABEL")]
    pub mesh_cluster: String,
    /// Protect both planes of the mesh with mutual TLS 1.3; implied by any file or directory below
    #[arg(long)]
    pub mesh_tls: bool,
    /// Certificate of this node in PEM, its intermediates behind it; must name the node
    #[arg(long, value_name = "FILE")]
    pub mesh_tls_cert: Option<String>,
    /// Private key of that certificate in PEM
    #[arg(long, value_name = "FILE")]
    pub mesh_tls_key: Option<String>,
    /// Authorities that sign the nodes of this mesh, in PEM
    #[arg(long, alias = "mesh-tls-ca-cert", value_name = "FILE")]
    pub mesh_tls_ca: Option<String>,
    /// Directory with `tls.crt`, `tls.key` and `ca.crt`, as of `smg certs issue` or a Kubernetes secret, instead of the three files
    #[arg(long, value_name = "DIR")]
    pub mesh_tls_dir: Option<String>,
    /// Nodes that may be in this mesh, comma separated, this one among them; others stay out although an authority names them. `@FILE` holds one name per line and is read again every 5 s. None lets in every node that an authority names
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub mesh_allowed_nodes: Vec<String>,
    /// Datagrams of the mesh: `quic` with TLS, `udp` without; anything else is refused
    #[arg(long, value_name = "TRANSPORT", value_parser = ["udp", "quic"])]
    pub mesh_transport: Option<String>,
    /// Availability zone of this node
    #[arg(long, value_name = "ZONE")]
    pub mesh_zone: Option<String>,
    /// Directory of this node alone, in which it keeps the replicated state, so that a restart of all nodes at once loses nothing; made when it is missing
    #[arg(long, value_name = "DIR")]
    pub mesh_data_dir: Option<String>,
    /// Nodes that elect the leader, comma separated, the same list on every node; `auto`: the nodes agree on at most 7 of them, and no failure changes the set
    #[arg(long, num_args = 1.., default_value = "auto", value_name = "NAME")]
    pub mesh_voters: Vec<String>,
    /// Limited requests while this node was lent no part of the limit and knows no leader, as in a minority: `closed` refuses them; `local` admits 1/N of each limit, at least one at once, N being all nodes known or named, so that nodes which are cut off admit at most one limit more together, or one request each at once where that is more; requests wait up to 4 s before; both lend nothing for about 0.6 s when a leader begins, requests in flight up to 6.7 s where their leases had run out, and while a leader is heard that does not hear this node
    #[arg(long, default_value = WithoutQuorum::Closed.as_str(), value_name = "MODE", value_parser = WithoutQuorum::NAMES)]
    pub mesh_rate_limit_without_quorum: String,
    /// Each peer is probed once in this time
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub mesh_probe_interval_ms: u64,
    /// Time between two rounds of gossip
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub mesh_gossip_interval_ms: u64,
    /// Time between two checks with a peer that states agree
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=600_000))]
    pub mesh_sync_interval_ms: u64,
    /// Factor on the time that a suspected node has to refute, 0.1 to 10
    #[arg(long, default_value = "1.0", value_parser = |text: &str| number_within(text, 0.1, 10.0))]
    pub mesh_suspicion_multiplier: f64,
}

fn policy_parser() -> impl TypedValueParser<Value = PolicyKind> {
    clap::builder::PossibleValuesParser::new(PolicyKind::ALL.map(PolicyKind::as_str))
        .try_map(|text| text.parse::<PolicyKind>())
}

fn number_within(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("{number} is not in {least}..={most}")) }
}
