//! Flags to `Config`: the checks that look at more than the text of one value.
//!
//! Every problem is collected, so that a user mends a command line once, not once per mistake.

mod kubernetes;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use http::HeaderName;
use smg_certs::{AllowList, ClientFiles, IdentityFiles, PairFiles};

use super::{
    Environment,
    flags::{
        BreakerFlags, CacheFlags, Flags, HealthFlags, LimitFlags, MeshFlags, RequestFlags, RetryFlags, TelemetryFlags,
        WorkerFlags,
    },
    sources::{Origin, Origins},
};
use crate::{
    config::{
        self, Auth, Bind, Breaker, Cache, Config, Health, Limits, Mesh, MeshTls, RateLimit, Requests, Retry, Telemetry,
        Workers, address,
    },
    mesh::{
        election::voters::Voters,
        node::{NAME_BYTES_MAX, NodeName},
        quota::local::WithoutQuorum,
    },
};

/// Checks the flags and builds the configuration.
///
/// # Errors
///
/// Every problem, each naming its flag and what to change.
pub(super) fn config(flags: &Flags, origins: &Origins, env: &Environment) -> Result<Config, Vec<String>> {
    let mut check = Check { origins, env, problems: Vec::new() };
    check.contradictions(flags);
    let config = Config {
        bind: check.bind(flags),
        workers: check.workers(&flags.workers),
        policy: flags.workers.policy,
        cache: cache(&flags.cache),
        requests: check.requests(&flags.requests),
        retry: check.retry(&flags.retry),
        limits: check.limits(&flags.limits),
        breaker: breaker(&flags.breaker),
        health: check.health(&flags.health),
        auth: Auth {
            api_keys: check.keys("api-key", &flags.auth.api_key),
            admin_api_keys: check.keys("admin-api-key", &flags.auth.admin_api_key),
        },
        telemetry: check.telemetry(&flags.telemetry),
        kubernetes: check.kubernetes(&flags.kubernetes, &flags.mesh),
        mesh: check.mesh(&flags.mesh),
    };
    check.ports(&config);
    if check.problems.is_empty() { Ok(config) } else { Err(check.problems) }
}

/// The name of a flag, and its text where it has one.
type Given<'a> = (&'a str, &'a Option<String>);

struct Check<'a> {
    origins: &'a Origins,
    env: &'a Environment,
    problems: Vec<String>,
}

impl Check<'_> {
    fn problem(&mut self, long: &str, what: &str) {
        self.problems.push(format!("{}: {what}", self.origins.name(long)));
    }

    /// Keeps a good value; a bad one becomes a problem that shows the value.
    fn accept<T>(&mut self, long: &str, text: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|reason| self.problem(long, &format!("`{text}`: {reason}"))).ok()
    }

    /// A switch that turns a group of flags off, or is needed for them, beside one of that group on the command line.
    ///
    /// Only the command line is checked: the environment and the file are often shared by several deployments, and a
    /// value there for something that is off is no mistake.
    fn contradictions(&mut self, flags: &Flags) {
        let given = |long: &&str| *self.origins.of(long) == Origin::Flag;
        let mut found = Vec::new();
        if !flags.mesh.enable_mesh && *self.origins.of("enable-mesh") == Origin::Default {
            found.extend(MESH.iter().filter(|l| given(l)).map(|l| format!("--{l} needs --enable-mesh: add it")));
        }
        if flags.limits.max_concurrent_requests == -1 && !flags.mesh.enable_mesh {
            let need = |l: &&str| format!("--{l} needs --max-concurrent-requests or --enable-mesh: add it");
            found.extend(QUEUE.iter().filter(|l| given(l)).map(need));
        }
        if flags.limits.rate_limit_tokens_per_second.is_none() && given(&"rate-limit-burst") {
            found.push("--rate-limit-burst needs --rate-limit-tokens-per-second: add it".into());
        }
        if !flags.telemetry.enable_trace && given(&"otlp-traces-endpoint") {
            found.push("--otlp-traces-endpoint needs --enable-trace: add it".into());
        }
        for (is_off, switch, group) in [
            (flags.retry.disable_retries, "disable-retries", RETRY),
            (flags.breaker.disable_circuit_breaker, "disable-circuit-breaker", BREAKER),
            (flags.health.disable_health_check, "disable-health-check", HEALTH),
        ] {
            let both = is_off && given(&switch);
            found.extend(
                group
                    .iter()
                    .filter(|long| both && given(long))
                    .map(|long| format!("--{long} contradicts --{switch}: remove one of them")),
            );
        }
        self.problems.extend(found);
    }

    fn addr(&mut self, long: &str, host: &str, port: u16) -> SocketAddr {
        let bare = host.trim().trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return SocketAddr::new(ip, port);
        }
        let found = (bare, port).to_socket_addrs().ok().and_then(|mut addrs| addrs.next());
        found.unwrap_or_else(|| {
            self.problem(long, &format!("`{host}` is no IP address and does not resolve: use an address of this host"));
            SocketAddr::from(([0, 0, 0, 0], port))
        })
    }

    /// A certificate and its key: both or none.
    fn pair(&mut self, certificate: Given<'_>, key: Given<'_>) -> Option<PairFiles> {
        match (path(certificate.1), path(key.1)) {
            (Some(certificate), Some(key)) => return Some(PairFiles { certificate, key }),
            (Some(_), None) => self.problem(certificate.0, &format!("needs --{} too: add it", key.0)),
            (None, Some(_)) => self.problem(key.0, &format!("needs --{} too: add it", certificate.0)),
            (None, None) => {}
        }
        None
    }

    fn bind(&mut self, flags: &Flags) -> Bind {
        let addr = self.addr("host", &flags.host, flags.port);
        Bind {
            addr,
            probes: flags.health_check_port.map(|port| SocketAddr::new(addr.ip(), port)),
            tls: self.pair(("tls-cert-path", &flags.tls_cert_path), ("tls-key-path", &flags.tls_key_path)),
        }
    }

    fn workers(&mut self, flags: &WorkerFlags) -> Workers {
        let mut urls: Vec<String> = Vec::new();
        for text in entries(&flags.worker_urls) {
            if let Some(url) =
                self.accept("worker-urls", text, address::canonical(text).map_err(|error| error.to_string()))
                && !urls.contains(&url)
            {
                urls.push(url);
            }
        }
        let api_key = flags.worker_api_key.as_slice();
        let mut keys = self.keys("worker-api-key", api_key);
        if keys.len() > 1 {
            self.problem("worker-api-key", "more than one key: give exactly one");
        }
        let pair = self.pair(
            ("worker-client-cert-path", &flags.worker_client_cert_path),
            ("worker-client-key-path", &flags.worker_client_key_path),
        );
        Workers {
            urls,
            api_key: keys.pop(),
            tls: ClientFiles { authorities: path(&flags.worker_ca_path), pair },
            startup_timeout: Duration::from_secs(flags.worker_startup_timeout_secs),
            drain_settle: Duration::from_secs(flags.drain_settle_secs),
        }
    }

    fn requests(&mut self, flags: &RequestFlags) -> Requests {
        let mut request_id_headers = Vec::new();
        for text in entries(&flags.request_id_headers) {
            let name = text.parse::<HeaderName>().map_err(|_| "not a header name".to_owned());
            request_id_headers.extend(self.accept("request-id-headers", text, name));
        }
        let mut cors_allowed_origins = Vec::new();
        for text in entries(&flags.cors_allowed_origins) {
            cors_allowed_origins.extend(self.accept("cors-allowed-origins", text, config::cors_origin(text)));
        }
        Requests {
            timeout: Duration::from_secs(flags.request_timeout_secs),
            ttft_timeout: flags.ttft_timeout_secs.map(Duration::from_secs),
            stream_idle_timeout: flags.stream_idle_timeout_secs.map(Duration::from_secs),
            payload_bytes_max: usize::try_from(flags.max_payload_size).unwrap_or(usize::MAX),
            shutdown_grace: Duration::from_secs(flags.shutdown_grace_period_secs),
            request_id_headers,
            upstream_idle_timeout: Duration::from_secs(flags.upstream_pool_idle_timeout_secs),
            cors_allowed_origins,
        }
    }

    fn retry(&mut self, flags: &RetryFlags) -> Retry {
        let (initial, max) = (flags.retry_initial_backoff_ms, flags.retry_max_backoff_ms);
        if initial > max {
            let raise = self.origins.name("retry-max-backoff-ms");
            self.problem(
                "retry-initial-backoff-ms",
                &format!("{initial} exceeds {raise} {max}: lower it or raise that"),
            );
        }
        Retry {
            retries_max: if flags.disable_retries { 0 } else { flags.retry_max_retries },
            backoff_initial: Duration::from_millis(initial),
            backoff_max: Duration::from_millis(max),
            backoff_multiplier: flags.retry_backoff_multiplier,
            jitter_factor: flags.retry_jitter_factor,
            budget_percent: flags.retry_budget_percent,
        }
    }

    fn limits(&mut self, flags: &LimitFlags) -> Limits {
        if flags.max_concurrent_requests == 0 {
            self.problem(
                "max-concurrent-requests",
                "0 would refuse every request: give at least 1, or -1 for no bound",
            );
        }
        Limits {
            concurrent_requests_max: usize::try_from(flags.max_concurrent_requests).ok(),
            cluster_concurrent_max: flags.cluster_max_concurrent_requests,
            queue_max: flags.queue_size as usize,
            queue_timeout: Duration::from_secs(flags.queue_timeout_secs),
            rate: flags
                .rate_limit_tokens_per_second
                .map(|per_second| RateLimit { per_second, burst: flags.rate_limit_burst.unwrap_or(per_second) }),
        }
    }

    fn health(&mut self, flags: &HealthFlags) -> Health {
        let endpoint = &flags.health_check_endpoint;
        let is_path = endpoint.starts_with('/') && endpoint.parse::<http::uri::PathAndQuery>().is_ok();
        if !is_path {
            self.problem("health-check-endpoint", &format!("`{endpoint}` is no path: it begins with `/`"));
        }
        Health {
            enabled: !flags.disable_health_check,
            interval: Duration::from_secs(flags.health_check_interval_secs),
            timeout: Duration::from_secs(flags.health_check_timeout_secs),
            failure_threshold: flags.health_failure_threshold,
            success_threshold: flags.health_success_threshold,
            endpoint: endpoint.clone(),
        }
    }

    /// Keys as given, or one per line from `@path`. No message shows a key.
    fn keys(&mut self, long: &str, values: &[String]) -> Vec<String> {
        let mut keys = BTreeSet::new();
        for text in values.iter().flat_map(|value| value.split(',')).map(str::trim).filter(|text| !text.is_empty()) {
            let Some(path) = text.strip_prefix('@') else {
                keys.insert(text.to_owned());
                continue;
            };
            match std::fs::read_to_string(path) {
                Err(error) => self.problem(long, &format!("read keys from {path}: {error}")),
                Ok(lines) => {
                    let count = keys.len();
                    keys.extend(lines.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()));
                    if keys.len() == count {
                        self.problem(long, &format!("{path} holds no further key: one per line"));
                    }
                }
            }
        }
        // Left as it is, an empty shell variable would open the gateway without a word.
        if keys.is_empty() && !values.is_empty() {
            self.problem(long, "no key is given; leave the flag out to have none");
        }
        if keys.iter().any(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            self.problem(long, "a key has visible ASCII characters alone, no blanks");
        }
        keys.into_iter().collect()
    }

    fn traces(&mut self, flags: &TelemetryFlags) -> Option<config::Traces> {
        let given = flags.otlp_traces_endpoint.as_deref().filter(|_| flags.enable_trace);
        let endpoint = given.and_then(|text| self.accept("otlp-traces-endpoint", text, config::otlp_endpoint(text)));
        flags.enable_trace.then_some(config::Traces { endpoint })
    }

    /// The standard variable alone is enough, which the exporter reads itself.
    fn push(&mut self, flags: &TelemetryFlags) -> Option<config::MetricsPush> {
        let variable = self.env.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT").filter(|text| !text.is_empty());
        match flags.otlp_metrics_endpoint.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => self.accept("otlp-metrics-endpoint", text, config::otlp_endpoint(text)).map(Some),
            None => variable.map(|_| None),
        }
        .map(|endpoint| config::MetricsPush { endpoint })
    }

    fn telemetry(&mut self, flags: &TelemetryFlags) -> Telemetry {
        Telemetry {
            prometheus_addr: self.addr("prometheus-host", &flags.prometheus_host, flags.prometheus_port),
            prometheus_port_explicit: *self.origins.of("prometheus-port") != Origin::Default,
            log_level: flags.log_level.clone(),
            log_json: flags.log_json,
            log_dir: flags.log_dir.as_ref().map(PathBuf::from),
            traces: self.traces(flags),
            push: self.push(flags),
        }
    }

    fn mesh(&mut self, flags: &MeshFlags) -> Mesh {
        let bind = self.addr("mesh-host", &flags.mesh_host, flags.mesh_port);
        let mut peers: Vec<String> = Vec::new();
        for text in entries(&flags.mesh_peer_urls) {
            if let Some(peer) = self.accept("mesh-peer-urls", text, config::mesh_peer(text))
                && !peers.contains(&peer)
            {
                peers.push(peer);
            }
        }
        let (node, node_is_derived) = self.node(flags);
        let cluster = self.accept("mesh-cluster", &flags.mesh_cluster, config::label(&flags.mesh_cluster));
        let tls = self.mesh_tls(flags, &node, &flags.mesh_cluster);
        let zone = flags.mesh_zone.as_deref().filter(|zone| !zone.is_empty());
        let zone = zone.and_then(|zone| self.accept("mesh-zone", zone, config::label(zone)));
        if flags.mesh_gossip_interval_ms > flags.mesh_probe_interval_ms {
            let probe = self.origins.name("mesh-probe-interval-ms");
            self.problem("mesh-gossip-interval-ms", &format!("longer than {probe}: lower it or raise that"));
        }
        let voters = self.voters(&flags.mesh_voters);
        Mesh {
            enabled: flags.enable_mesh,
            node,
            node_is_derived,
            bind,
            advertise_host: self.advertise_host(flags, bind.ip()),
            advertise_port: flags.mesh_advertise_port,
            peers,
            cluster: cluster.unwrap_or_default(),
            zone: zone.unwrap_or_default(),
            voters,
            without_quorum: match flags.mesh_rate_limit_without_quorum.as_str() {
                "local" => WithoutQuorum::Local,
                _ => WithoutQuorum::Closed,
            },
            tls,
            data_dir: flags.mesh_data_dir.as_deref().filter(|dir| !dir.is_empty()).map(PathBuf::from),
            probe_interval: Duration::from_millis(flags.mesh_probe_interval_ms),
            gossip_interval: Duration::from_millis(flags.mesh_gossip_interval_ms),
            sync_interval: Duration::from_millis(flags.mesh_sync_interval_ms),
            suspicion_multiplier: flags.mesh_suspicion_multiplier,
        }
    }

    /// The operator's voters; none for `auto`.
    fn voters(&mut self, texts: &[String]) -> Option<Voters> {
        let texts: Vec<&str> = entries(texts).collect();
        if texts == ["auto"] {
            return None;
        }
        let parse = |text: &str| text.parse::<NodeName>().map_err(|error| error.to_string());
        let names = texts.iter().filter_map(|text| self.accept("mesh-voters", text, parse(text)));
        let names: Vec<NodeName> = names.collect();
        let voters = Voters::fixed(names);
        voters.map_err(|error| self.problem("mesh-voters", &format!("{error}: name so many, or `auto`"))).ok()
    }

    /// How the mesh is protected; none when it is to be plain.
    fn mesh_tls(&mut self, flags: &MeshFlags, node: &NodeName, cluster: &str) -> Option<MeshTls> {
        let allowed = self.allowed_nodes(flags, node, cluster);
        let files = self.mesh_identity(flags);
        if allowed.is_some() && files.is_none() {
            self.problem(
                "mesh-allowed-nodes",
                "needs --mesh-tls, since without it nobody can tell who a node is: add it",
            );
        }
        Some(MeshTls { files: files?, allowed })
    }

    fn allowed_nodes(&mut self, flags: &MeshFlags, node: &NodeName, cluster: &str) -> Option<AllowList> {
        let (mut named, mut files) = (BTreeSet::new(), Vec::new());
        for text in entries(&flags.mesh_allowed_nodes) {
            if let Some(file) = text.strip_prefix('@') {
                files.push(PathBuf::from(file));
                continue;
            }
            let name = text.parse::<NodeName>().map_err(|error| error.to_string());
            named.extend(self.accept("mesh-allowed-nodes", text, name).map(|name| name.to_string()));
        }
        if named.is_empty() && files.is_empty() {
            return None;
        }
        let list = AllowList { cluster: cluster.to_owned(), own: node.to_string(), named, files };
        if let Err(error) = list.read() {
            self.problem("mesh-allowed-nodes", &format!("{:#}", anyhow::Error::new(error)));
        }
        Some(list)
    }

    /// The files of the node's identity; none when the mesh is to be plain.
    fn mesh_identity(&mut self, flags: &MeshFlags) -> Option<IdentityFiles> {
        let files = [
            ("mesh-tls-cert", path(&flags.mesh_tls_cert)),
            ("mesh-tls-key", path(&flags.mesh_tls_key)),
            ("mesh-tls-ca", path(&flags.mesh_tls_ca)),
        ];
        let dir = path(&flags.mesh_tls_dir);
        let any = files.iter().find(|(_, file)| file.is_some()).map(|(long, _)| *long);
        let transport = flags.mesh_transport.as_deref();
        if !flags.mesh_tls && any.is_none() && dir.is_none() {
            if transport == Some("quic") {
                self.problem("mesh-transport", "`quic` needs --mesh-tls: add it and the files, or use `udp`");
            }
            return None;
        }
        if !flags.mesh_tls && *self.origins.of("mesh-tls") != Origin::Default {
            let given = self.origins.name(any.unwrap_or("mesh-tls-dir"));
            self.problem("mesh-tls", &format!("`false` contradicts {given}, which asks for TLS: remove one of them"));
        }
        if transport == Some("udp") {
            self.problem("mesh-transport", "`udp` cannot be protected by --mesh-tls: use `quic`, or leave it out");
        }
        if let Some(dir) = dir {
            if let Some(long) = any {
                self.problem(long, "given beside --mesh-tls-dir, which holds that file: remove one of them");
            }
            return Some(IdentityFiles::in_dir(&dir));
        }
        if any.is_none() {
            self.problem("mesh-tls", "needs --mesh-tls-dir, or --mesh-tls-cert, --mesh-tls-key and --mesh-tls-ca");
            return None;
        }
        let given = any.unwrap_or_default();
        for (long, _) in files.iter().filter(|(_, file)| file.is_none()) {
            self.problem(given, &format!("needs --{long} too: add it"));
        }
        let [(_, certificate), (_, key), (_, authorities)] = files;
        Some(IdentityFiles { certificate: certificate?, key: key?, authorities: authorities? })
    }

    /// The name of this node, and whether it was derived from the host.
    fn node(&mut self, flags: &MeshFlags) -> (NodeName, bool) {
        if let Some(text) = flags.mesh_server_name.as_deref().filter(|text| !text.is_empty()) {
            let name = text.parse::<NodeName>().map_err(|error| error.to_string());
            let name = self.accept("mesh-server-name", text, name);
            return (name.unwrap_or_else(|| derived_name("")), false);
        }
        if let Some(pod) = self.env.get("POD_NAME").filter(|pod| !pod.is_empty()) {
            return (derived_name(pod), false);
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let host = host.as_deref().or(self.env.get("HOSTNAME").map(String::as_str));
        (derived_name(host.unwrap_or_default().trim()), true)
    }

    /// SPEC row 4: `POD_IP` stands in when the mesh listens on every address.
    fn advertise_host(&mut self, flags: &MeshFlags, bind: IpAddr) -> Option<String> {
        if let Some(text) = flags.mesh_advertise_host.as_deref().filter(|text| !text.is_empty()) {
            return self.accept("mesh-advertise-host", text, config::host(text));
        }
        let pod_ip = self.env.get("POD_IP").filter(|_| bind.is_unspecified())?;
        pod_ip.parse::<IpAddr>().ok().and_then(|_| config::host(pod_ip).ok())
    }

    /// TCP ports of this process that cannot be bound together.
    fn ports(&mut self, config: &Config) {
        let public = ("port", config.bind.addr);
        let metrics = ("prometheus-port", config.telemetry.prometheus_addr);
        let mesh = ("mesh-port", config.mesh.bind);
        let mut bound = vec![public];
        bound.extend(config.bind.probes.map(|addr| ("health-check-port", addr)));
        if config.mesh.enabled {
            bound.push(mesh);
        }
        if config.telemetry.prometheus_port_explicit {
            bound.push(metrics);
        }
        for (index, (one, first)) in bound.iter().enumerate() {
            for (other, second) in &bound[index + 1..] {
                if overlap(*first, *second) {
                    let other = self.origins.name(other);
                    self.problem(one, &format!("port {} is also that of {other}: change one", first.port()));
                }
            }
        }
    }
}

fn cache(flags: &CacheFlags) -> Cache {
    Cache {
        threshold: flags.cache_threshold,
        balance_abs: flags.balance_abs_threshold as usize,
        balance_rel: flags.balance_rel_threshold,
        index_bytes: usize::try_from(flags.cache_index_bytes).unwrap_or(usize::MAX),
    }
}

/// A path that was given; an empty one counts as none.
fn path(value: &Option<String>) -> Option<PathBuf> {
    value.as_deref().filter(|text| !text.is_empty()).map(PathBuf::from)
}

fn breaker(flags: &BreakerFlags) -> Breaker {
    Breaker {
        enabled: !flags.disable_circuit_breaker,
        failure_threshold: flags.cb_failure_threshold,
        success_threshold: flags.cb_success_threshold,
        timeout: Duration::from_secs(flags.cb_timeout_duration_secs),
        window: Duration::from_secs(flags.cb_window_duration_secs),
    }
}

fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same_host = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_host
}

/// Entries of a list given with commas, blanks and repetition in any mixture.
fn entries(values: &[String]) -> impl Iterator<Item = &str> {
    let is_separator = |c: char| c == ',' || c.is_whitespace();
    values.iter().flat_map(move |value| value.split(is_separator)).filter(|entry| !entry.is_empty())
}

/// A node name made from the name of a pod or host: other characters become `-`, what is too long is cut.
fn derived_name(text: &str) -> NodeName {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = text.chars().map(plain).take(NAME_BYTES_MAX).collect();
    let fallback = if name.is_empty() { "smg" } else { &name };
    fallback.parse().expect("made of the characters and the length that a name has")
}

/// Flags that mean nothing without `--enable-mesh`.
pub(super) const MESH: &[&str] = &[
    "mesh-server-name",
    "mesh-host",
    "mesh-port",
    "mesh-advertise-host",
    "mesh-advertise-port",
    "mesh-peer-urls",
    "mesh-cluster",
    "mesh-tls",
    "mesh-tls-cert",
    "mesh-tls-key",
    "mesh-tls-ca",
    "mesh-tls-dir",
    "mesh-allowed-nodes",
    "mesh-transport",
    "mesh-zone",
    "mesh-data-dir",
    "mesh-voters",
    "mesh-rate-limit-without-quorum",
    "mesh-probe-interval-ms",
    "mesh-gossip-interval-ms",
    "mesh-sync-interval-ms",
    "mesh-suspicion-multiplier",
];

/// Flags that mean nothing without `--max-concurrent-requests` and without a mesh, whose limits are lent out.
pub(super) const QUEUE: &[&str] = &["queue-size", "queue-timeout-secs"];

/// Flags that mean nothing with `--disable-retries`.
pub(super) const RETRY: &[&str] = &[
    "retry-max-retries",
    "retry-initial-backoff-ms",
    "retry-max-backoff-ms",
    "retry-backoff-multiplier",
    "retry-jitter-factor",
    "retry-budget-percent",
];

/// Flags that mean nothing with `--disable-circuit-breaker`.
pub(super) const BREAKER: &[&str] =
    &["cb-failure-threshold", "cb-success-threshold", "cb-timeout-duration-secs", "cb-window-duration-secs"];

/// Flags that mean nothing with `--disable-health-check`.
pub(super) const HEALTH: &[&str] = &[
    "health-check-interval-secs",
    "health-check-timeout-secs",
    "health-failure-threshold",
    "health-success-threshold",
    "health-check-endpoint",
];
