//! The data plane over real loopback sockets, between a raw client and a raw worker that the tests drive by hand.

#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, path::PathBuf};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    config::{
        Auth, Bind, Breaker, Cache, Health, Limits, Mesh, PolicyKind, RateLimit, Requests, Retry, Telemetry, Workers,
    },
    gateway::{
        limiter::Limiter,
        limits::RateLimits,
        view::{Registered, Route},
        worker::Worker,
    },
    mesh::stores::WorkerId,
};

mod breaker;
mod drain;
mod faults;
mod forward;
mod hostile;
mod limits;
mod probes;
mod refuse;
mod steering;
mod timeouts;
mod tls;

const PATIENCE: Duration = Duration::from_secs(10);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing happened in time")
}

/// Waits until the condition holds.
async fn eventually(mut holds: impl FnMut() -> bool) {
    within(async {
        let mut poll = interval(Duration::from_millis(2));
        while !holds() {
            poll.tick().await;
        }
    })
    .await;
}

fn workers(second: Duration) -> Workers {
    let tls = smg_certs::ClientFiles::default();
    Workers { urls: vec![], api_key: None, tls, startup_timeout: second, drain_settle: second }
}

fn telemetry(prometheus_addr: SocketAddr) -> Telemetry {
    Telemetry {
        prometheus_addr,
        prometheus_port_explicit: false,
        log_level: "info".into(),
        log_json: false,
        log_dir: None::<PathBuf>,
        traces: None,
        push: None,
    }
}

fn unlimited(queue_timeout: Duration) -> Limits {
    Limits { concurrent_requests_max: None, queue_max: 0, queue_timeout, cluster_concurrent_max: None, rate: None }
}

fn config() -> Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let second = Duration::from_secs(1);
    Config {
        bind: Bind { addr: any, probes: None, tls: None },
        workers: workers(second),
        policy: PolicyKind::RoundRobin,
        cache: Cache::default(),
        requests: Requests {
            timeout: Duration::from_secs(30),
            ttft_timeout: None,
            stream_idle_timeout: None,
            payload_bytes_max: 1 << 20,
            shutdown_grace: second,
            request_id_headers: vec!["x-request-id".parse().unwrap()],
            upstream_idle_timeout: Duration::from_secs(30),
            cors_allowed_origins: vec![],
        },
        retry: Retry {
            retries_max: 5,
            backoff_initial: Duration::from_millis(1),
            backoff_max: Duration::from_millis(2),
            backoff_multiplier: 1.5,
            jitter_factor: 0.2,
            budget_percent: 20,
        },
        limits: unlimited(second),
        breaker: Breaker {
            enabled: true,
            failure_threshold: 2,
            success_threshold: 1,
            timeout: second,
            window: second * 60,
        },
        health: Health {
            enabled: true,
            interval: second,
            timeout: second,
            failure_threshold: 1,
            success_threshold: 1,
            endpoint: "/health".into(),
        },
        auth: Auth::default(),
        telemetry: telemetry(any),
        kubernetes: crate::config::kubernetes::Kubernetes::default(),
        mesh: Mesh {
            voters: None,
            without_quorum: crate::mesh::quota::local::WithoutQuorum::Closed,
            enabled: false,
            node: "node1".parse().unwrap(),
            node_is_derived: false,
            bind: any,
            advertise_host: None,
            advertise_port: None,
            peers: vec![],
            cluster: "smg".into(),
            zone: String::new(),
            probe_interval: second,
            gossip_interval: second,
            sync_interval: second,
            suspicion_multiplier: 1.0,
            tls: None,
            data_dir: None,
        },
    }
}

/// A worker at this address.
fn worker(addr: SocketAddr) -> Arc<Worker> {
    let url = format!("http://{addr}");
    let host = addr.to_string();
    let authority = host.parse().unwrap();
    Arc::new(Worker::new(WorkerId::of_url(&url), false, authority, host.parse().unwrap(), String::new(), None))
}

/// The same with a breaker that one failure opens, for `open_ms`.
fn fragile_worker(addr: SocketAddr, open_ms: u64) -> Arc<Worker> {
    let timeout = Duration::from_millis(open_ms);
    let rules = Breaker { failure_threshold: 1, timeout, ..config().breaker };
    Arc::new(Arc::into_inner(worker(addr)).unwrap().with_breaker(&rules))
}

/// A view with these workers ready for model `m`.
fn view(workers: &[Arc<Worker>]) -> RoutingView {
    let route = Arc::new(Route {
        label: "m".into(),
        policy: PolicyKind::RoundRobin,
        ready: workers.to_vec(),
        ..Route::default()
    });
    RoutingView {
        is_joining: false,
        models: HashMap::from([("m".into(), route.clone())]),
        any: route,
        wildcard: Arc::default(),
        registered: workers.iter().map(|worker| Registered { worker: worker.clone(), is_ready: true }).collect(),
        unasked_until: None,
        workers_total: workers.len(),
        workers_ready: workers.len(),
    }
}

fn start_with(config: Config, control: axum::Router, workers: &[Arc<Worker>]) -> Plane {
    let view = Arc::new(ArcSwap::from_pointee(view(workers)));
    start_on(config, view, Metrics::new(), control).unwrap()
}

fn start_on(
    config: Config,
    view: Arc<ArcSwap<RoutingView>>,
    metrics: Arc<Metrics>,
    control: axum::Router,
) -> Result<Plane, BindError> {
    let limits = Arc::new(RateLimits::of(Arc::new(Limiter::of(config.limits.rate))));
    let (reports, tls) = (Reports { limits, ..Reports::default() }, Tls::default());
    Plane::start(Arc::new(config), view, metrics, reports, control, &tls)
}

fn start(workers: &[Arc<Worker>]) -> Plane {
    start_with(config(), axum::Router::new(), workers)
}

/// A worker that does nothing by itself.
struct Upstream(TcpListener);

impl Upstream {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn worker(&self) -> Arc<Worker> {
        worker(self.0.local_addr().unwrap())
    }

    async fn accept(&self) -> Wire {
        Wire::new(within(self.0.accept()).await.unwrap().0)
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// One connection, seen from either end.
struct Wire {
    stream: Box<dyn Duplex>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn error_code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        let code = body["error"]["code"].as_str().unwrap();
        assert_eq!(self.header("x-smg-error-code"), Some(code));
        code.into()
    }
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    fn over(stream: impl Duplex + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new() }
    }

    async fn connect(plane: &Plane) -> Self {
        Self::new(TcpStream::connect(plane.addr()).await.unwrap())
    }

    async fn send(&mut self, text: impl AsRef<[u8]>) {
        within(self.stream.write_all(text.as_ref())).await.unwrap();
    }

    /// Reads more; false at the end, also when it is a reset.
    async fn more(&mut self) -> bool {
        within(self.stream.read_buf(&mut self.buffer)).await.is_ok_and(|read| read > 0)
    }

    /// Reads until the text was seen and takes everything up to its end.
    async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, text.as_bytes()) {
                let rest = self.buffer.split_off(at + text.len());
                return String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
            }
            assert!(self.more().await, "ended before {text:?}: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// A message with a `Content-Length` or none.
    async fn message(&mut self) -> Message {
        let head = self.until("\r\n\r\n").await;
        let mut message = Message { head, body: Vec::new() };
        let len: usize = message.header("content-length").map_or(0, |len| len.parse().unwrap());
        while self.buffer.len() < len {
            assert!(self.more().await, "body ended early");
        }
        let rest = self.buffer.split_off(len);
        message.body = std::mem::replace(&mut self.buffer, rest);
        message
    }

    /// What comes until the other end closes.
    async fn rest(&mut self) -> String {
        String::from_utf8(self.rest_bytes().await).unwrap()
    }

    async fn rest_bytes(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    async fn ends(&mut self) {
        assert_eq!(self.rest().await, "");
    }

    async fn ask(&mut self, text: impl AsRef<[u8]>) -> Message {
        self.send(text).await;
        self.message().await
    }

    async fn answer(&mut self, body: &str) {
        self.send(ok(body)).await;
    }
}

fn post(body: &str) -> String {
    post_with("", body)
}

fn post_with(headers: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {len}\r\n\r\n{body}"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n")
}

fn ok(body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}")
}

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

const CHAT: &str = r#"{"model":"m"}"#;
const STREAM: &str = r#"{"model":"m","stream":true}"#;
