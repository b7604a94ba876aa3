//! Traces as a collector gets them: by gRPC and by HTTP, from real requests.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::State,
    http::HeaderMap,
    routing::{get, post},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value as Any,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;

use crate::harness::{Gateway, Network, Process, eventually, joined, s, worker};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const SECRET: &str = "nobody may read this prompt";

/// What a collector was sent.
#[derive(Clone, Debug, Default)]
struct Collected(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collected {
    fn push(&self, request: ExportTraceServiceRequest) {
        self.0.lock().unwrap().push(request);
    }

    fn spans(&self, kind: SpanKind) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let scopes = requests.iter().flat_map(|it| &it.resource_spans).flat_map(|it| &it.scope_spans);
        scopes.flat_map(|scope| &scope.spans).filter(|span| span.kind == kind as i32).cloned().collect()
    }

    fn service(&self) -> String {
        let requests = self.0.lock().unwrap();
        let resource = requests[0].resource_spans[0].resource.clone().unwrap();
        text(&resource.attributes, "service.name")
    }
}

#[tonic::async_trait]
impl TraceService for Collected {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on a port of its own.
async fn collector(is_grpc: bool) -> (Collected, SocketAddr) {
    let (collected, listener) = (Collected::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (addr, service) = (listener.local_addr().unwrap(), collected.clone());
    if is_grpc {
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming));
    } else {
        let take = async |State(collected): State<Collected>, body: axum::body::Bytes| {
            collected.push(ExportTraceServiceRequest::decode(body).unwrap());
        };
        let router = Router::new().route("/v1/traces", post(take)).with_state(service);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    }
    (collected, addr)
}

/// A worker that keeps the headers of each chat request.
async fn listening_worker() -> (Arc<Mutex<Vec<HeaderMap>>>, String) {
    let (kept, listener) = (Arc::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let url = format!("http://{}", listener.local_addr().unwrap());
    let chat = async |State(kept): State<Arc<Mutex<Vec<HeaderMap>>>>, headers: HeaderMap| {
        kept.lock().unwrap().push(headers);
        let usage = json!({"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}});
        Json(json!({"choices": [], "usage": usage}))
    };
    let router = Router::new()
        .route("/health", get(async || ""))
        .route("/v1/models", get(async || Json(json!({"object": "list", "data": [{"id": "m", "object": "model"}]}))))
        .route("/v1/chat/completions", post(chat))
        .with_state(Arc::clone(&kept));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (kept, url)
}

fn gateway(network: Network, url: &str, more: &[&str], env: &[(&str, String)]) -> Gateway {
    let ip = network.ip(1).to_string();
    let mut args = vec!["--host", &ip, "--port", "8000", "--prometheus-host", &ip, "--prometheus-port", "29000"];
    args.extend(["--worker-urls", url]);
    args.extend(more);
    let env = [env, &[("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned())]].concat();
    Gateway::attach(Process::start("traced", args, &env), "traced".to_owned(), network.ip(1))
}

async fn chat(gateway: &Gateway, headers: &[(&str, &str)]) -> u16 {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": SECRET}]});
    let mut request = gateway.http.post(gateway.url("/v1/chat/completions?key=hidden")).json(&body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    answer.bytes().await.unwrap();
    status
}

fn text(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|it| it.key == key).and_then(|it| it.value.clone()?.value);
    match found {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::BoolValue(is)) => is.to_string(),
        _ => String::new(),
    }
}

/// The context that a worker was sent.
fn context(headers: &HeaderMap) -> (&str, &str) {
    (headers["traceparent"].to_str().unwrap(), headers["tracestate"].to_str().unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn spans_continue_the_clients_trace_and_reach_a_collector_by_grpc() {
    let (network, (collected, addr)) = (Network::new(), collector(true).await);
    let (kept, url) = listening_worker().await;
    let endpoint = format!("http://{addr}");
    let gateway = gateway(network, &url, &["--enable-trace", "--otlp-endpoint", &endpoint], &[]);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    assert_eq!(chat(&gateway, &[("traceparent", PARENT), ("tracestate", "a=b")]).await, 200);
    eventually(s(10), "both spans", async || {
        collected.spans(SpanKind::Client).len() == 1
            && collected.spans(SpanKind::Server).iter().any(|span| span.name == "POST /v1/chat/completions")
    })
    .await;
    let client = collected.spans(SpanKind::Client).remove(0);
    let server = collected.spans(SpanKind::Server).into_iter().find(|it| it.name.ends_with("completions")).unwrap();
    assert_eq!(hex(&server.trace_id), &PARENT[3..35]);
    assert_eq!(hex(&server.parent_span_id), &PARENT[36..52]);
    assert_eq!((&client.trace_id, &client.parent_span_id), (&server.trace_id, &server.span_id));
    for (key, expected) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/chat/completions"),
        ("http.response.status_code", "200"),
        ("url.path", "/v1/chat/completions"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.usage.input_tokens", "7"),
        ("gen_ai.usage.cache_read.input_tokens", "3"),
        ("gen_ai.usage.output_tokens", "2"),
    ] {
        assert_eq!(text(&server.attributes, key), expected, "{key}");
    }
    assert_eq!(text(&client.attributes, "http.response.status_code"), "200");
    assert_eq!(collected.service(), "smg");
    let sent = kept.lock().unwrap().remove(0);
    let expected = format!("00-{}-{}-01", hex(&client.trace_id), hex(&client.span_id));
    assert_eq!(context(&sent), (&*expected, "a=b"));
    let all = format!("{:?}", collected.0.lock().unwrap());
    assert!(!all.contains(SECRET) && !all.contains("hidden"), "neither prompt nor query: {all}");
}

#[tokio::test]
async fn snapshots_and_syncs_of_the_mesh_are_spans_of_both_sides() {
    let (network, (collected, addr)) = (Network::new(), collector(true).await);
    let (root, endpoint) = (tempfile::tempdir().unwrap(), format!("http://{addr}"));
    let start = |n: u8, peers: &[u8]| {
        let dir = root.path().join(n.to_string());
        let flags = ["--enable-trace", "--otlp-endpoint", &endpoint, "--mesh-data-dir", dir.to_str().unwrap()];
        Gateway::start(network, n, peers, &flags)
    };
    let add = async |gateway: &Gateway, url: &str| {
        let worker = json!({"url": url, "models": ["m"], "api_key": SECRET});
        assert_eq!(gateway.post("/workers", worker).await.0, 202);
    };
    let mut first = start(1, &[]);
    eventually(s(10), "the API", async || first.get("/workers").await.is_some()).await;
    add(&first, "http://127.0.0.1:1/hidden").await;
    // What was written before a restart goes to others as a snapshot: of removes nothing is remembered.
    first.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(first.process.exit(s(20)).await.success());
    let first = start(1, &[]);
    let second = start(2, &[1]);
    joined(&[&first, &second], 2, s(15)).await;
    let named = |name: &str| {
        let kinds = [SpanKind::Client, SpanKind::Producer, SpanKind::Consumer];
        let spans = kinds.into_iter().flat_map(|kind| collected.spans(kind)).filter(|span| span.name == name);
        spans.collect::<Vec<_>>()
    };
    let of_workers = |name: &str, peer: &str| {
        let wanted = [("smg.mesh.namespace", "workers"), ("smg.mesh.peer", peer), ("smg.mesh.outcome", "complete")];
        named(name).into_iter().find(|span| wanted.iter().all(|(key, value)| text(&span.attributes, key) == *value))
    };
    eventually(s(20), "a snapshot, as both sides tell it", async || {
        let sent = of_workers("mesh snapshot send", "node2");
        sent.is_some() && of_workers("mesh snapshot receive", "node1").is_some()
    })
    .await;
    let sent = of_workers("mesh snapshot send", "node2").unwrap();
    let received = of_workers("mesh snapshot receive", "node1").unwrap();
    assert_eq!((&sent.trace_id, &sent.parent_span_id), (&received.trace_id, &received.parent_span_id));
    let pipe = named("mesh connect").into_iter().find(|span| span.span_id == sent.parent_span_id).unwrap();
    assert_eq!(text(&pipe.attributes, "smg.mesh.peer"), "node2");
    for key in ["smg.mesh.frames", "smg.mesh.bytes"] {
        assert_eq!(text(&sent.attributes, key), text(&received.attributes, key), "{key}");
    }
    add(&first, "http://127.0.0.1:2/hidden").await;
    eventually(s(20), "a round that ends in sync", async || {
        named("mesh sync").iter().any(|span| {
            let (outcome, peer) = (text(&span.attributes, "smg.mesh.outcome"), text(&span.attributes, "smg.mesh.peer"));
            outcome == "in_sync" && peer == "node2" && span.links.iter().any(|link| link.span_id == pipe.span_id)
        })
    })
    .await;
    let all = format!("{:?}", collected.0.lock().unwrap());
    assert!(!all.contains(SECRET) && !all.contains("hidden"), "neither key nor URL: {all}");
}

#[tokio::test]
async fn each_attempt_is_a_span_and_http_works_too() {
    let (network, (collected, addr)) = (Network::new(), collector(false).await);
    let (_worker, url) = worker(network, 9, "m", &["--fault", "reset:first-1@/v1/chat/completions"]);
    let env = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{addr}")),
        ("OTEL_SERVICE_NAME", "edge".to_owned()),
    ];
    let mut gateway = gateway(network, &url, &["--enable-trace"], &env);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    assert_eq!(chat(&gateway, &[("traceparent", "nonsense"), ("tracestate", "a=b")]).await, 200);
    // What waits is handed out at the end.
    gateway.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(gateway.process.exit(s(20)).await.success());
    let attempts = collected.spans(SpanKind::Client);
    let found: Vec<_> = attempts
        .iter()
        .map(|span| (text(&span.attributes, "error.type"), text(&span.attributes, "http.request.resend_count")))
        .collect();
    assert_eq!(found, [("reset".to_owned(), String::new()), (String::new(), "1".to_owned())]);
    let server = collected.spans(SpanKind::Server).into_iter().find(|it| it.name.ends_with("completions")).unwrap();
    assert!(server.parent_span_id.is_empty(), "what is no context begins a trace");
    assert_eq!(collected.service(), "edge");
}

#[tokio::test]
async fn without_a_collector_requests_go_on_and_lost_spans_are_counted() {
    let (network, (kept, url)) = (Network::new(), listening_worker().await);
    let env = [("OTEL_BSP_MAX_QUEUE_SIZE", "4".to_owned()), ("OTEL_BSP_EXPORT_TIMEOUT", "100".to_owned())];
    // Nothing answers there: packets to it come back as refused at once.
    let gateway = gateway(network, &url, &["--enable-trace", "--otlp-traces-endpoint", "http://127.0.0.1:9"], &env);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    for _ in 0..40 {
        assert_eq!(chat(&gateway, &[]).await, 200);
    }
    assert_eq!(kept.lock().unwrap().len(), 40);
    eventually(s(10), "spans are counted as lost", async || {
        gateway.metrics().await.contains("smg_trace_spans_total{result=\"failed\"}")
    })
    .await;
}

#[tokio::test]
async fn without_tracing_the_clients_context_passes_as_it_came() {
    let (network, (kept, url)) = (Network::new(), listening_worker().await);
    let gateway = gateway(network, &url, &[], &[]);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    for (traceparent, tracestate) in [(PARENT, "a=b"), ("nonsense", "c=d")] {
        assert_eq!(chat(&gateway, &[("traceparent", traceparent), ("tracestate", tracestate)]).await, 200);
        let sent = kept.lock().unwrap().remove(0);
        assert_eq!(context(&sent), (traceparent, tracestate));
    }
}
