//! Every metric of the program, with its unit and labels.
//!
//! Instruments are OpenTelemetry's; [`Metrics::encode`] is its Prometheus exporter's text. Names are declared in
//! `definitions` exactly as documented, so the exporter's own suffixes are off.
//!
//! Invariant: no text from a client becomes a label. Methods and statuses come from closed sets, paths are route
//! templates, reasons are literals; models are what workers declare, at most [`MODELS_MAX`] of them, then `other`.
//! Series of workers and peers are observed at each scrape and go with their source. Above 2 000 sets of labels of one
//! instrument the SDK counts into `otel_metric_overflow="true"`.
//!
//! Cost: an event is one read of an immutable map and one or two atomic additions, see `family`.

mod caches;
mod definitions;
mod family;
mod kubernetes;
mod mesh;
mod tls;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use opentelemetry::{
    KeyValue, StringValue,
    metrics::{AsyncInstrument, BoundCounter, BoundHistogram, Counter, Histogram, Meter, MeterProvider},
};
use opentelemetry_sdk::{
    Resource,
    metrics::{MeterProviderBuilder, SdkMeterProvider, reader::MetricReader},
};
use prometheus::{Registry, TextEncoder};

use crate::{config::PolicyKind, mesh::stores::WorkerId};
use caches::Caches;
use definitions as def;
use family::Family;
pub use mesh::{ElectionSample, MeshSample, RightsSample};
use mesh::{observe_mesh, observe_replication};

pub use caches::CacheSample;
pub use definitions::{ALL, DURATION_BUCKETS, Definition, Kind, RTT_BUCKETS, SYNC_BUCKETS, TPOT_BUCKETS, TTFT_BUCKETS};

/// Distinct model names with series of their own; later ones are counted as `other`. With ten serving endpoints and
/// both values of `streaming` this many stay below the SDK's 2 000 sets of labels.
pub const MODELS_MAX: usize = 96;

/// Model label of everything that has none of its own.
const OTHER_MODEL: &str = "other";

/// Sets of closed labels per instrument; more than the program can make.
const CLOSED_MAX: usize = 1900;

/// One live worker at the time of a scrape.
#[derive(Clone, Debug)]
pub struct WorkerSample {
    /// Label `worker`.
    pub id: WorkerId,
    /// Requests in flight from this gateway.
    pub requests_active: u64,
    /// Whether this gateway sees it ready.
    pub ready: bool,
    /// This gateway's circuit breaker for it: 0 closed, 1 open, 2 half-open.
    pub breaker: u8,
    /// Changes of the breaker's state: labels `from` and `to`, and how often.
    pub breaker_transitions: [(&'static str, &'static str, u64); 4],
}

/// By path, status and error code.
type ByResponse = Family<(&'static str, u16, &'static str), (BoundCounter<u64>, BoundHistogram<f64>)>;

/// Called at each scrape, once there is one.
type Source<T> = Arc<ArcSwapOption<Box<dyn Fn() -> T + Send + Sync>>>;

/// Handle to every instrument; recording never blocks and never fails.
pub struct Metrics {
    http_requests: Family<(u8, &'static str), BoundCounter<u64>>,
    http_responses: ByResponse,
    http_connections: Arc<AtomicI64>,
    shutdown: Arc<AtomicBool>,
    rate_limit: Family<(&'static str, &'static str), BoundCounter<u64>>,
    queue_depth: Arc<AtomicI64>,
    queue_wait: BoundHistogram<f64>,
    models: Family<String, Arc<Model>>,
    /// Prompt, cached, completion.
    router_tokens: [BoundCounter<u64>; 3],
    router_errors: Family<&'static str, BoundCounter<u64>>,
    worker_selections: [BoundCounter<u64>; PolicyKind::ALL.len()],
    caches: Caches,
    worker_errors: Family<&'static str, BoundCounter<u64>>,
    worker_retries: BoundCounter<u64>,
    worker_checks: [BoundCounter<u64>; 2],
    workers: Source<Vec<WorkerSample>>,
    mesh: Source<MeshSample>,
    mesh_replication: Arc<mesh::Replication>,
    mesh_sync_operations: Family<&'static str, BoundCounter<u64>>,
    mesh_sync_latency: BoundHistogram<f64>,
    /// Heard from a peer, from an own probe.
    mesh_suspicions: [BoundCounter<u64>; 2],
    mesh_false_suspicions: BoundCounter<u64>,
    mesh_elections: BoundCounter<u64>,
    mesh_refutations: BoundCounter<u64>,
    mesh_probe_rtt: BoundHistogram<f64>,
    mesh_local_health: Arc<AtomicI64>,
    mesh_gossip: Family<(&'static str, &'static str), BoundCounter<u64>>,
    mesh_rejected: Family<(&'static str, &'static str), BoundCounter<u64>>,
    /// Failed, done.
    mesh_data_saves: [BoundCounter<u64>; 2],
    trace_spans: Family<&'static str, BoundCounter<u64>>,
    kubernetes: kubernetes::Kubernetes,
    otlp_exports: Family<&'static str, BoundCounter<u64>>,
    tls_expiry: tls::Expiry,
    tls_reload_failures: Family<&'static str, BoundCounter<u64>>,
    tls_handshake_failures: Family<&'static str, BoundCounter<u64>>,
    registry: Registry,
    provider: SdkMeterProvider,
}

/// Instruments of one model, by endpoint.
#[derive(Debug)]
struct Model {
    requests: Family<(&'static str, bool), BoundCounter<u64>>,
    duration: Family<&'static str, BoundHistogram<f64>>,
    ttft: Family<&'static str, BoundHistogram<f64>>,
    tpot: Family<&'static str, BoundHistogram<f64>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("models", &self.models).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Builds the provider, the Prometheus exporter and every instrument.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with(SdkMeterProvider::builder())
    }

    /// The same, read by another reader too, for which they are those of this resource. Each measurement then costs about
    /// twice what it does otherwise.
    #[must_use]
    pub fn read_by(reader: impl MetricReader, resource: Resource) -> Arc<Self> {
        Self::with(SdkMeterProvider::builder().with_reader(reader).with_resource(resource))
    }

    fn with(provider: MeterProviderBuilder) -> Arc<Self> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .without_target_info()
            .scope_info_enabled(false)
            .build()
            .expect("a new registry holds no other collector");
        let provider = provider.with_reader(exporter).build();
        let meter = provider.meter("smg");
        let (workers, mesh) = (Source::default(), Source::default());
        observe_workers(&meter, &workers);
        observe_mesh(&meter, &mesh);
        let mesh_replication = observe_replication(&meter, &mesh);
        let (http_connections, shutdown, queue_depth) = (Arc::default(), Arc::default(), Arc::default());
        observe_process(&meter, &http_connections, &shutdown, &queue_depth);
        let local_health: Arc<AtomicI64> = Arc::default();
        let health = local_health.clone();
        gauge(&meter, &def::MESH_LOCAL_HEALTH, move |gauge| gauge.observe(health.load(Ordering::Relaxed), &[]));
        let selections = counter(&meter, &def::WORKER_SELECTION);
        let checks = counter(&meter, &def::WORKER_CHECKS);
        let tokens = counter(&meter, &def::ROUTER_TOKENS);
        let saves = counter(&meter, &def::MESH_DATA_SAVES);
        let suspicions = counter(&meter, &def::MESH_SUSPICIONS);
        Arc::new(Self {
            http_requests: http_requests(&meter),
            http_responses: http_responses(&meter),
            http_connections,
            shutdown,
            rate_limit: counters_by_two(&meter, &def::HTTP_RATE_LIMIT),
            queue_depth,
            queue_wait: histogram(&meter, &def::QUEUE_WAIT, TTFT_BUCKETS).bind(&[]),
            models: models(&meter),
            router_tokens: ["prompt", "cached", "completion"]
                .map(|kind| tokens.bind(&[KeyValue::new("token_type", kind)])),
            router_errors: counters_by_one(&meter, &def::ROUTER_ERRORS),
            worker_selections: PolicyKind::ALL.map(|p| selections.bind(&[KeyValue::new("policy", p.as_str())])),
            caches: Caches::new(&meter),
            worker_errors: counters_by_one(&meter, &def::WORKER_ERRORS),
            worker_retries: plain_counter(&meter, &def::WORKER_RETRIES),
            worker_checks: ["failure", "success"].map(|result| checks.bind(&[KeyValue::new("result", result)])),
            workers,
            mesh,
            mesh_replication,
            mesh_sync_operations: counters_by_one(&meter, &def::MESH_SYNC_OPERATIONS),
            mesh_sync_latency: histogram(&meter, &def::MESH_SYNC_LATENCY, SYNC_BUCKETS).bind(&[]),
            mesh_suspicions: ["peer", "own_probe"].map(|from| suspicions.bind(&[KeyValue::new("source", from)])),
            mesh_false_suspicions: plain_counter(&meter, &def::MESH_FALSE_SUSPICIONS),
            mesh_elections: plain_counter(&meter, &def::MESH_ELECTIONS),
            mesh_refutations: plain_counter(&meter, &def::MESH_REFUTATIONS),
            mesh_probe_rtt: histogram(&meter, &def::MESH_PROBE_RTT, RTT_BUCKETS).bind(&[]),
            mesh_local_health: local_health,
            mesh_gossip: counters_by_two(&meter, &def::MESH_GOSSIP),
            mesh_rejected: counters_by_two(&meter, &def::MESH_REJECTED),
            mesh_data_saves: ["failed", "done"].map(|result| saves.bind(&[KeyValue::new("result", result)])),
            trace_spans: counters_by_one(&meter, &def::TRACE_SPANS),
            kubernetes: kubernetes::Kubernetes::new(&meter),
            otlp_exports: counters_by_one(&meter, &def::OTLP_EXPORTS),
            tls_expiry: tls::expiry(&meter),
            tls_reload_failures: counters_by_one(&meter, &def::TLS_RELOAD_FAILURES),
            tls_handshake_failures: counters_by_one(&meter, &def::TLS_HANDSHAKE_FAILURES),
            registry,
            provider,
        })
    }

    /// The exposition text of a scrape, format 0.0.4.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "scrape encoded in part");
        }
        // A gauge must not end in `_total` (promtool's rule), but the documented name does.
        let name = def::MESH_PEERS.name;
        text.replace(&format!("# TYPE {name} gauge\n"), &format!("# TYPE {name} untyped\n"))
    }

    /// `smg_http_requests_total{method,path}`; `path` is the route template, `unmatched` otherwise.
    pub fn http_request(&self, method: &http::Method, path: &'static str) {
        self.http_requests.with(&(method_index(method), path), |counter| counter.add(1));
    }

    /// `smg_http_responses_total{path,status_code,error_code}` and `smg_http_request_duration_seconds`; `error_code` is empty on success.
    pub fn http_response(
        &self,
        path: &'static str,
        status: http::StatusCode,
        error_code: &'static str,
        elapsed: Duration,
    ) {
        self.http_responses.with(&(path, status.as_u16(), error_code), |(counter, duration)| {
            counter.add(1);
            duration.record(elapsed.as_secs_f64());
        });
    }

    /// `smg_http_connections_active` up.
    pub fn http_connection_opened(&self) {
        self.http_connections.fetch_add(1, Ordering::Relaxed);
    }

    /// `smg_http_connections_active` down.
    pub fn http_connection_closed(&self) {
        self.http_connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// `smg_shutdown_in_progress` 0 or 1.
    pub fn shutdown_in_progress(&self, on: bool) {
        self.shutdown.store(on, Ordering::Relaxed);
    }

    /// `smg_http_rate_limit_total{decision,result}`: allowed (within_rate, awaited_share, immediate, queued) or rejected (rate_exceeded,
    /// concurrency_exceeded, queue_full, queue_timeout, abandoned).
    pub fn rate_limit(&self, decision: &'static str, result: &'static str) {
        self.rate_limit.with(&(decision, result), |counter| counter.add(1));
    }

    /// `smg_queue_depth` up.
    pub fn queue_entered(&self) {
        self.queue_depth.fetch_add(1, Ordering::Relaxed);
    }

    /// `smg_queue_depth` down, and `smg_queue_wait_seconds`.
    pub fn queue_left(&self, elapsed: Duration) {
        self.queue_depth.fetch_sub(1, Ordering::Relaxed);
        self.queue_wait.record(elapsed.as_secs_f64());
    }

    /// `smg_router_requests_total{model,endpoint,streaming}`; `model` is a known model or `other`.
    pub fn router_request(&self, model: &str, endpoint: &'static str, streaming: bool) {
        self.model(model, |model| model.requests.with(&(endpoint, streaming), |counter| counter.add(1)));
    }

    /// `smg_router_request_duration_seconds{model,endpoint}`.
    pub fn router_duration(&self, model: &str, endpoint: &'static str, elapsed: Duration) {
        self.model(model, |model| model.duration.with(&endpoint, |duration| duration.record(elapsed.as_secs_f64())));
    }

    /// `smg_router_ttft_seconds{model,endpoint}`: to the first body byte of a stream.
    pub fn router_ttft(&self, model: &str, endpoint: &'static str, elapsed: Duration) {
        self.model(model, |model| model.ttft.with(&endpoint, |duration| duration.record(elapsed.as_secs_f64())));
    }

    /// `smg_router_tpot_seconds{model,endpoint}`: of a stream, per token after the first.
    pub fn router_tpot(&self, model: &str, endpoint: &'static str, per_token: Duration) {
        self.model(model, |model| model.tpot.with(&endpoint, |tpot| tpot.record(per_token.as_secs_f64())));
    }

    /// `smg_router_tokens_total{token_type}`: prompt, cached, completion.
    pub fn router_tokens(&self, prompt: u64, cached: u64, completion: u64) {
        self.caches.add_tokens(prompt, cached);
        for (counter, tokens) in self.router_tokens.iter().zip([prompt, cached, completion]) {
            counter.add(tokens);
        }
    }

    /// `smg_router_request_errors_total{error_type}`.
    pub fn router_error(&self, error_type: &'static str) {
        self.router_errors.with(&error_type, |counter| counter.add(1));
    }

    /// `smg_worker_selection_total{policy}`.
    pub fn worker_selected(&self, policy: PolicyKind) {
        self.worker_selections[policy as usize].add(1);
    }

    /// `smg_worker_errors_total{error_type}`: connect, reset, timeout, ttft, idle, truncated, status, local.
    pub fn worker_error(&self, error_type: &'static str) {
        self.worker_errors.with(&error_type, |counter| counter.add(1));
    }

    /// `smg_worker_retries_total`.
    pub fn worker_retry(&self) {
        self.worker_retries.add(1);
    }

    /// `smg_worker_health_checks_total{result}`: success, failure.
    pub fn worker_health_check(&self, success: bool) {
        self.worker_checks[usize::from(success)].add(1);
    }

    /// Source of `smg_worker_pool_size`, `smg_worker_requests_active{worker}`, `smg_worker_health{worker}`,
    /// `smg_worker_cb_state{worker}` and `smg_worker_cb_transitions_total{worker,from,to}`; called at each scrape.
    ///
    /// A later source replaces an earlier one.
    pub fn watch_workers(&self, source: impl Fn() -> Vec<WorkerSample> + Send + Sync + 'static) {
        self.workers.store(Some(Arc::new(Box::new(source))));
    }

    /// The cluster got a leader.
    pub fn mesh_election(&self) {
        self.mesh_elections.add(1);
    }

    /// Source of `smg_mesh_peers_total`, `smg_mesh_peer_status{peer}`, `smg_mesh_members{status}`; called at each scrape.
    ///
    /// A later source replaces an earlier one.
    pub fn watch_mesh(&self, source: impl Fn() -> MeshSample + Send + Sync + 'static) {
        self.mesh.store(Some(Arc::new(Box::new(source))));
    }

    /// `smg_mesh_sync_operations_total{type}`: delta_sent, delta_received, snapshot_sent, snapshot_received, digest.
    pub fn mesh_sync_operation(&self, kind: &'static str) {
        self.mesh_sync_operations.with(&kind, |counter| counter.add(1));
    }

    /// `smg_mesh_sync_latency_seconds`: from sending a frame to its ack.
    pub fn mesh_sync_latency(&self, elapsed: Duration) {
        self.mesh_sync_latency.record(elapsed.as_secs_f64());
    }

    /// `smg_mesh_data_saves_total{result}`: done, failed.
    pub fn mesh_data_save(&self, is_done: bool) {
        self.mesh_data_saves[usize::from(is_done)].add(1);
    }

    /// `smg_mesh_suspicions_total{source}`: own_probe when it was this node's probe that failed, peer when it was heard.
    pub fn mesh_suspicion(&self, is_own: bool) {
        self.mesh_suspicions[usize::from(is_own)].add(1);
    }

    /// `smg_mesh_false_suspicions_total`.
    pub fn mesh_false_suspicion(&self) {
        self.mesh_false_suspicions.add(1);
    }

    /// `smg_mesh_refutations_total`.
    pub fn mesh_refutation(&self) {
        self.mesh_refutations.add(1);
    }

    /// `smg_mesh_probe_rtt_seconds`.
    pub fn mesh_probe_rtt(&self, rtt: Duration) {
        self.mesh_probe_rtt.record(rtt.as_secs_f64());
    }

    /// `smg_mesh_local_health_score`, 0 to 8.
    pub fn mesh_local_health(&self, score: u32) {
        self.mesh_local_health.store(score.into(), Ordering::Relaxed);
    }

    /// `smg_mesh_gossip_messages_total{direction,kind}`; direction sent or received, kind ping, ack, ping_req, ….
    pub fn mesh_gossip_message(&self, direction: &'static str, kind: &'static str) {
        self.mesh_gossip.with(&(direction, kind), |counter| counter.add(1));
    }

    /// `smg_mesh_rejected_total{plane,reason}`; plane datagram or grpc.
    pub fn mesh_rejected(&self, plane: &'static str, reason: &'static str) {
        self.mesh_rejected_times(plane, reason, 1);
    }

    /// The same for several at once.
    pub fn mesh_rejected_times(&self, plane: &'static str, reason: &'static str, times: u64) {
        self.mesh_rejected.with(&(plane, reason), |counter| counter.add(times));
    }

    /// `smg_trace_spans_total{result}`: exported, failed, dropped.
    pub fn trace_spans(&self, result: &'static str, spans: u64) {
        self.trace_spans.with(&result, |counter| counter.add(spans));
    }

    /// `smg_otlp_metric_exports_total{result}`.
    pub fn otlp_export(&self, result: &'static str) {
        self.otlp_exports.with(&result, |counter| counter.add(1));
    }

    fn model(&self, name: &str, record: impl Fn(&Model)) {
        if !self.models.try_with(name, |model| record(model)) {
            self.models.with(OTHER_MODEL, |model| record(model));
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // There is nothing to flush: a pull exporter has no queue.
        let _ = self.provider.shutdown();
    }
}

const METHODS: [http::Method; 9] = [
    http::Method::GET,
    http::Method::POST,
    http::Method::PUT,
    http::Method::PATCH,
    http::Method::DELETE,
    http::Method::HEAD,
    http::Method::OPTIONS,
    http::Method::CONNECT,
    http::Method::TRACE,
];

/// Place in [`METHODS`], or its length for a method that a client made up.
fn method_index(method: &http::Method) -> u8 {
    let index = METHODS.iter().position(|known| known == method).unwrap_or(METHODS.len());
    u8::try_from(index).unwrap_or(u8::MAX)
}

fn method_label(index: u8) -> &'static str {
    const LABELS: [&str; METHODS.len()] =
        ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    LABELS.get(usize::from(index)).copied().unwrap_or("OTHER")
}

/// The status, or `other` for one that no standard names: a worker may answer any three digits. 499, a client that left
/// before its answer began, is ours.
fn status_label(status: u16) -> StringValue {
    let is_known = |status: &http::StatusCode| status.canonical_reason().is_some() || status.as_u16() == 499;
    let known = http::StatusCode::from_u16(status).ok().filter(is_known);
    known.map_or_else(|| "other".into(), |status| status.as_str().to_owned().into())
}

fn counter(meter: &Meter, definition: &Definition) -> Counter<u64> {
    meter.u64_counter(definition.name).with_description(definition.help).build()
}

/// A counter without labels, exposed from the start.
fn plain_counter(meter: &Meter, definition: &Definition) -> BoundCounter<u64> {
    let counter = counter(meter, definition);
    counter.add(0, &[]);
    counter.bind(&[])
}

fn histogram(meter: &Meter, definition: &Definition, buckets: &[f64]) -> Histogram<f64> {
    meter
        .f64_histogram(definition.name)
        .with_description(definition.help)
        .with_unit("s")
        .with_boundaries(buckets.to_vec())
        .build()
}

fn counters_by_one(meter: &Meter, definition: &Definition) -> Family<&'static str, BoundCounter<u64>> {
    let (counter, label) = (counter(meter, definition), definition.labels[0]);
    Family::new(CLOSED_MAX, move |value: &&'static str| counter.bind(&[KeyValue::new(label, *value)]))
}

fn counters_by_two(meter: &Meter, definition: &Definition) -> Family<(&'static str, &'static str), BoundCounter<u64>> {
    let (counter, labels) = (counter(meter, definition), definition.labels);
    Family::new(CLOSED_MAX, move |(one, other): &(&'static str, &'static str)| {
        counter.bind(&[KeyValue::new(labels[0], *one), KeyValue::new(labels[1], *other)])
    })
}

fn http_requests(meter: &Meter) -> Family<(u8, &'static str), BoundCounter<u64>> {
    let counter = counter(meter, &def::HTTP_REQUESTS);
    Family::new(CLOSED_MAX, move |(method, path): &(u8, &'static str)| {
        counter.bind(&[KeyValue::new("method", method_label(*method)), KeyValue::new("path", *path)])
    })
}

fn http_responses(meter: &Meter) -> ByResponse {
    let counter = counter(meter, &def::HTTP_RESPONSES);
    let duration = histogram(meter, &def::HTTP_DURATION, DURATION_BUCKETS);
    Family::new(CLOSED_MAX, move |(path, status, error_code): &(&'static str, u16, &'static str)| {
        let path = KeyValue::new("path", *path);
        let status = KeyValue::new("status_code", status_label(*status));
        let error_code = KeyValue::new("error_code", *error_code);
        (counter.bind(&[path.clone(), status, error_code]), duration.bind(&[path]))
    })
}

fn models(meter: &Meter) -> Family<String, Arc<Model>> {
    let requests = counter(meter, &def::ROUTER_REQUESTS);
    let duration = histogram(meter, &def::ROUTER_DURATION, DURATION_BUCKETS);
    let ttft = histogram(meter, &def::ROUTER_TTFT, TTFT_BUCKETS);
    let tpot = histogram(meter, &def::ROUTER_TPOT, TPOT_BUCKETS);
    let by_endpoint = |histogram: &Histogram<f64>, model: &String| {
        let (histogram, model) = (histogram.clone(), KeyValue::new("model", model.clone()));
        Family::new(CLOSED_MAX, move |endpoint: &&'static str| {
            histogram.bind(&[model.clone(), KeyValue::new("endpoint", *endpoint)])
        })
    };
    let models = Family::new(MODELS_MAX + 1, move |model: &String| {
        let (counter, label) = (requests.clone(), KeyValue::new("model", model.clone()));
        let requests = Family::new(CLOSED_MAX, move |(endpoint, streaming): &(&'static str, bool)| {
            let streaming = if *streaming { "true" } else { "false" };
            let (endpoint, streaming) = (KeyValue::new("endpoint", *endpoint), KeyValue::new("streaming", streaming));
            counter.bind(&[label.clone(), endpoint, streaming])
        });
        let [duration, ttft, tpot] = [&duration, &ttft, &tpot].map(|histogram| by_endpoint(histogram, model));
        Arc::new(Model { requests, duration, ttft, tpot })
    });
    // Takes its place now, so that there is one when all others are taken.
    models.with(OTHER_MODEL, |_| ());
    models
}

fn gauge(meter: &Meter, definition: &Definition, observe: impl Fn(&dyn AsyncInstrument<i64>) + Send + Sync + 'static) {
    let builder = meter.i64_observable_gauge(definition.name).with_description(definition.help);
    let _registered = builder.with_callback(observe).build();
}

fn observe_process(
    meter: &Meter,
    connections: &Arc<AtomicI64>,
    shutdown: &Arc<AtomicBool>,
    queue_depth: &Arc<AtomicI64>,
) {
    let (connections, shutdown, queue_depth) = (connections.clone(), shutdown.clone(), queue_depth.clone());
    gauge(meter, &def::QUEUE_DEPTH, move |gauge| gauge.observe(queue_depth.load(Ordering::Relaxed), &[]));
    gauge(meter, &def::HTTP_CONNECTIONS, move |gauge| gauge.observe(connections.load(Ordering::Relaxed), &[]));
    gauge(meter, &def::SHUTDOWN, move |gauge| gauge.observe(shutdown.load(Ordering::Relaxed).into(), &[]));
}

fn observe_workers(meter: &Meter, source: &Source<Vec<WorkerSample>>) {
    let each = |source: &Source<Vec<WorkerSample>>, value: fn(&WorkerSample) -> i64| {
        let source = source.clone();
        move |gauge: &dyn AsyncInstrument<i64>| {
            for worker in source.load().iter().flat_map(|source| source()) {
                gauge.observe(value(&worker), &[KeyValue::new("worker", worker.id.as_str().to_owned())]);
            }
        }
    };
    let all = source.clone();
    gauge(meter, &def::WORKER_POOL, move |gauge| {
        if let Some(source) = &*all.load() {
            gauge.observe(i64::try_from(source().len()).unwrap_or(i64::MAX), &[]);
        }
    });
    let active = each(source, |worker| i64::try_from(worker.requests_active).unwrap_or(i64::MAX));
    gauge(meter, &def::WORKER_ACTIVE, active);
    gauge(meter, &def::WORKER_HEALTH, each(source, |worker| worker.ready.into()));
    gauge(meter, &def::WORKER_CB_STATE, each(source, |worker| worker.breaker.into()));
    let source = source.clone();
    let transitions = meter.u64_observable_counter(def::WORKER_CB_TRANSITIONS.name);
    let transitions = transitions.with_description(def::WORKER_CB_TRANSITIONS.help).with_callback(move |counter| {
        for worker in source.load().iter().flat_map(|source| source()) {
            for (from, to, count) in worker.breaker_transitions {
                let worker = KeyValue::new("worker", worker.id.as_str().to_owned());
                let (from, to) = (KeyValue::new("from", from), KeyValue::new("to", to));
                counter.observe(count, &[worker, from, to]);
            }
        }
    });
    let _registered = transitions.build();
}

#[cfg(test)]
mod tests;
