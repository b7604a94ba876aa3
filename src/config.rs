//! `Config`, checked when it is built, trusted afterwards.

pub mod address;

pub mod kubernetes;

mod syntax;

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use smg_certs::{AllowList, ClientFiles, IdentityFiles, PairFiles};

use crate::mesh::{election::voters::Voters, node::NodeName, quota::local::WithoutQuorum};

pub use syntax::{MESH_PORT, cors_origin, host, label, mesh_peer, otlp_endpoint};

/// Everything the program was told, checked and with defaults filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub bind: Bind,
    /// The inference workers named at start.
    pub workers: Workers,
    /// Default routing policy.
    pub policy: PolicyKind,
    /// Cache-aware routing.
    pub cache: Cache,
    /// Bounds on client requests.
    pub requests: Requests,
    /// Retries on another worker.
    pub retry: Retry,
    /// Bounds on the load of this gateway.
    pub limits: Limits,
    /// Circuit breakers of workers.
    pub breaker: Breaker,
    /// Active health checks of workers.
    pub health: Health,
    /// Keys of clients and operators.
    pub auth: Auth,
    /// Logs and metrics.
    pub telemetry: Telemetry,
    /// Pods that are workers or gateways.
    pub kubernetes: kubernetes::Kubernetes,
    /// The mesh; its `enabled` says whether there is one.
    pub mesh: Mesh,
}

/// Listening of the gateway.
#[derive(Clone, Debug)]
pub struct Bind {
    /// Public address, default 0.0.0.0:30000. Port 0 binds a free one.
    pub addr: SocketAddr,
    /// Certificate and key that clients are shown; none: they connect without TLS.
    pub tls: Option<PairFiles>,
    /// Where probes are answered too; none, the default: there alone.
    pub probes: Option<SocketAddr>,
}

/// Workers given by flags.
#[derive(Clone)]
pub struct Workers {
    /// Canonical base URLs, deduplicated, in the order given.
    pub urls: Vec<String>,
    /// Bearer token sent to workers that have none of their own.
    pub api_key: Option<String>,
    /// For workers with `https` URLs: whom to believe, and what to show.
    pub tls: ClientFiles,
    /// How long `/readiness` may stay 503 for want of a worker before that is logged as an error, default 1800 s.
    pub startup_timeout: Duration,
    /// A removed worker whose last requests still run is listed as draining this long, default 5 s.
    pub drain_settle: Duration,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("urls", &self.urls)
            .field("api_key", &self.api_key.as_ref().map(|_| "…"))
            .field("tls", &self.tls)
            .field("startup_timeout", &self.startup_timeout)
            .field("drain_settle", &self.drain_settle)
            .finish()
    }
}

/// Routing policies, as `--policy` spells them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PolicyKind {
    /// Any worker, uniformly.
    Random,
    /// Each in turn.
    RoundRobin,
    /// The less loaded of two drawn at random (Mitzenmacher 2001).
    PowerOfTwo,
    /// The one with fewest requests in flight.
    LeastLoad,
    /// By routing key on a ring (Karger et al. 1997), bounded load.
    ConsistentHashing,
    /// By the beginning of the prompt, bounded load.
    PrefixHash,
    /// Where the longest prefix of the prompt was seen, unless that worker is too busy.
    CacheAware,
    /// The worker that the session table names for the routing key, which every gateway has.
    Manual,
}

impl PolicyKind {
    /// Every policy, in the order of the manual.
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::RoundRobin,
        Self::PowerOfTwo,
        Self::LeastLoad,
        Self::ConsistentHashing,
        Self::PrefixHash,
        Self::CacheAware,
        Self::Manual,
    ];

    /// The spelling of `--policy`, of the API and of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::PowerOfTwo => "power_of_two",
            Self::LeastLoad => "least_load",
            Self::ConsistentHashing => "consistent_hashing",
            Self::PrefixHash => "prefix_hash",
            Self::CacheAware => "cache_aware",
            Self::Manual => "manual",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no policy. Choose one of [`PolicyKind::ALL`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no such policy")]
pub struct UnknownPolicy;

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or(UnknownPolicy)
    }
}

/// Cache-aware routing. A worker is *overloaded* when it has more requests than the least loaded one by both balance
/// thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cache {
    /// Least share of a prompt that a worker must have seen to be chosen for it, 0 to 1, default 0.3.
    pub threshold: f64,
    /// A worker is overloaded only with this many requests more than the least loaded one, default 64.
    pub balance_abs: usize,
    /// A worker is overloaded only with this many times the requests of the least loaded one, at least 1, default 1.5.
    pub balance_rel: f64,
    /// Budget of the prefix index in bytes, for each model, default 64 MiB.
    pub index_bytes: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self { threshold: 0.3, balance_abs: 64, balance_rel: 1.5, index_bytes: 64 << 20 }
    }
}

/// Bounds on client requests.
#[derive(Clone, Debug)]
pub struct Requests {
    /// Whole request, default 1800 s.
    pub timeout: Duration,
    /// One worker's first byte of a streamed answer, from when it is asked; none, the default: not watched.
    pub ttft_timeout: Option<Duration>,
    /// The worker's next byte of a streamed answer, from when the client has room; none, the default: not watched.
    pub stream_idle_timeout: Option<Duration>,
    /// Largest request body in bytes, default 512 MiB.
    pub payload_bytes_max: usize,
    /// Drain time after SIGTERM, default 180 s.
    pub shutdown_grace: Duration,
    /// Headers that may carry a request id, first present wins.
    pub request_id_headers: Vec<http::HeaderName>,
    /// Idle upstream connections are dropped after this, default 3 s.
    pub upstream_idle_timeout: Duration,
    /// Allowed CORS origins; empty: no CORS headers. `*` allows any.
    pub cors_allowed_origins: Vec<String>,
}

/// Retries, before the first response byte, on another worker.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Further attempts after the first, default 5; 0 with `--disable-retries`.
    pub retries_max: u32,
    /// First wait, default 50 ms.
    pub backoff_initial: Duration,
    /// Longest wait, default 30 s.
    pub backoff_max: Duration,
    /// Growth of the wait, at least 1.0, default 1.5.
    pub backoff_multiplier: f64,
    /// Random share of the wait, 0.0 to 1.0, default 0.2.
    pub jitter_factor: f64,
    /// Retries allowed as percentage of requests over a sliding window, 0 to 100, default 20.
    pub budget_percent: u32,
}

/// Bounds on the load of this gateway.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Serving requests in flight over all cores, response bodies included, at least 1; none: no bound.
    pub concurrent_requests_max: Option<usize>,
    /// Requests that may wait for one of them to end, default 100; beyond: 429.
    pub queue_max: usize,
    /// Longest wait, default 60 s; then 408.
    pub queue_timeout: Duration,
    /// Serving requests in flight in the whole cluster, 1 to 1 000 000, where the cluster has no say in it; none, the default: no
    /// bound.
    pub cluster_concurrent_max: Option<u32>,
    /// Serving requests per second, where the cluster has no say in it; none, the default: no bound.
    pub rate: Option<RateLimit>,
}

/// Most tokens per second, and at once, that a rate limit can have.
pub const RATE_MAX: u32 = 10_000_000;

/// Most requests in flight that the cluster can be bound to.
pub const CONCURRENT_MAX: u32 = 1_000_000;

/// How many requests are admitted: over any time τ at most `per_second`·τ + `burst`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RateLimit {
    /// 1 to [`RATE_MAX`].
    pub per_second: u32,
    /// 1 to [`RATE_MAX`].
    pub burst: u32,
}

/// Circuit breakers, one per worker and gateway.
#[derive(Clone, Debug)]
pub struct Breaker {
    /// Off with `--disable-circuit-breaker`: no breaker ever opens.
    pub enabled: bool,
    /// Failures within the window that open a breaker, default 10.
    pub failure_threshold: u32,
    /// Successes on trial that close it again, and so the most trials at a time; default 3, at most 1000.
    pub success_threshold: u32,
    /// How long it stays open before the first trial, default 60 s.
    pub timeout: Duration,
    /// How long a failure counts, default 120 s.
    pub window: Duration,
}

/// Active health checks.
#[derive(Clone, Debug)]
pub struct Health {
    /// Off with `--disable-health-check`: registered workers count as ready at once.
    pub enabled: bool,
    /// Between two checks of a ready worker, default 10 s.
    pub interval: Duration,
    /// For one check, default 5 s.
    pub timeout: Duration,
    /// Consecutive failures that make a worker not ready, default 3.
    pub failure_threshold: u32,
    /// Consecutive successes that make it ready again, default 2.
    pub success_threshold: u32,
    /// Path, default `/health`.
    pub endpoint: String,
}

/// Keys. Never logged.
#[derive(Clone, Default)]
pub struct Auth {
    /// Keys for serving routes; empty: open.
    pub api_keys: Vec<String>,
    /// Keys for admin routes; empty: loopback clients alone.
    pub admin_api_keys: Vec<String>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth {{ api_keys: {}, admin_api_keys: {} }}", self.api_keys.len(), self.admin_api_keys.len())
    }
}

/// Logs and metrics.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Metrics listener, default 0.0.0.0:29000.
    pub prometheus_addr: SocketAddr,
    /// The port was given by the operator: taken means error, not a free one.
    pub prometheus_port_explicit: bool,
    /// Default log filter, used when `RUST_LOG` is unset.
    pub log_level: String,
    /// One JSON object per line instead of text.
    pub log_json: bool,
    /// Also write daily files here.
    pub log_dir: Option<PathBuf>,
    /// Traces of requests; none without `--enable-trace`.
    pub traces: Option<Traces>,
    /// Metrics sent to a collector; none without `--otlp-metrics-endpoint` and its variable.
    pub push: Option<MetricsPush>,
}

/// Metrics sent to a collector.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetricsPush {
    /// OTLP endpoint, an http or https URL; none: as `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` says.
    pub endpoint: Option<String>,
}

/// Traces of requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Traces {
    /// OTLP endpoint, an http or https URL; none: as the `OTEL_*` variables say, else this host.
    pub endpoint: Option<String>,
}

/// The mesh.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// `--enable-mesh`.
    pub enabled: bool,
    /// This node's name.
    pub node: NodeName,
    /// The name was derived from the host: a conflict makes it unique instead of ending the process.
    pub node_is_derived: bool,
    /// Bind address of both planes, default 0.0.0.0:39527.
    pub bind: SocketAddr,
    /// Host that others use: IP literal or name; none: found by SPEC row 4.
    pub advertise_host: Option<String>,
    /// Port that others use; none: the bound one.
    pub advertise_port: Option<u16>,
    /// Seeds as `host:port`, scheme removed, in the order given.
    pub peers: Vec<String>,
    /// Cluster label, 1 to 64 bytes, default `smg`.
    pub cluster: String,
    /// Availability zone; empty when unset.
    pub zone: String,
    /// Who elects the leader; none: `auto`, the nodes agree on it.
    pub voters: Option<Voters>,
    /// What becomes of limited requests while nobody leads.
    pub without_quorum: WithoutQuorum,
    /// QUIC datagrams and gRPC, both with mutual TLS; none: UDP and plain gRPC.
    pub tls: Option<MeshTls>,
    /// Where the replicated state is kept over a restart; none: nowhere.
    pub data_dir: Option<PathBuf>,
    /// T: one probe of each peer per interval, default 1 s.
    pub probe_interval: Duration,
    /// Between two rounds of piggybacked gossip, default 100 ms.
    pub gossip_interval: Duration,
    /// Between two anti-entropy checks with a peer, default 1 s.
    pub sync_interval: Duration,
    /// Factor on the suspicion time, 0.1 to 10, default 1.0.
    pub suspicion_multiplier: f64,
}

/// Mutual TLS on both planes of the mesh.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MeshTls {
    /// Files of this node's identity.
    pub files: IdentityFiles,
    /// The nodes that are let in, this one among them; none: every node that the authorities name.
    pub allowed: Option<AllowList>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_policies_read_back() {
        for kind in PolicyKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!("cache-aware".parse::<PolicyKind>(), Err(UnknownPolicy));
    }
}
