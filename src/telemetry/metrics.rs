//! Every metric of the program, with its unit and labels.

use std::{sync::Arc, time::Duration};

use crate::{
    config::PolicyKind,
    mesh::{node::NodeName, stores::WorkerId},
};

/// One live worker at the time of a scrape.
#[derive(Clone, Debug)]
pub struct WorkerSample {
    /// Label `worker`.
    pub id: WorkerId,
    /// Requests in flight from this gateway.
    pub requests_active: u64,
    /// Whether this gateway sees it ready.
    pub ready: bool,
}

/// The mesh at the time of a scrape.
#[derive(Clone, Debug, Default)]
pub struct MeshSample {
    /// Other known nodes, and whether each is ALIVE.
    pub peers: Vec<(NodeName, bool)>,
}

/// Handle to every instrument; recording never blocks and never fails.
#[derive(Debug)]
pub struct Metrics {}

impl Metrics {
    /// Builds the provider, the Prometheus exporter and every instrument.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {})
    }

    /// The exposition text of a scrape.
    #[must_use]
    pub fn encode(&self) -> String {
        String::new()
    }

    /// `smg_http_requests_total{method,path}`; `path` is the route template, `unmatched` otherwise.
    pub fn http_request(&self, _method: &http::Method, _path: &'static str) {}
    /// `smg_http_responses_total{path,status_code,error_code}` and `smg_http_request_duration_seconds`; `error_code` is empty on success.
    pub fn http_response(
        &self,
        _path: &'static str,
        _status: http::StatusCode,
        _error_code: &'static str,
        _elapsed: Duration,
    ) {
    }
    /// `smg_http_connections_active` up.
    pub fn http_connection_opened(&self) {}
    /// `smg_http_connections_active` down.
    pub fn http_connection_closed(&self) {}
    /// `smg_shutdown_in_progress` 0 or 1.
    pub fn shutdown_in_progress(&self, _on: bool) {}
    /// `smg_router_requests_total{model,endpoint,streaming}`; `model` is a known model or `other`.
    pub fn router_request(&self, _model: &str, _endpoint: &'static str, _streaming: bool) {}
    /// `smg_router_request_duration_seconds{model,endpoint}`.
    pub fn router_duration(&self, _model: &str, _endpoint: &'static str, _elapsed: Duration) {}
    /// `smg_router_ttft_seconds{model,endpoint}`: to the first body byte of a stream.
    pub fn router_ttft(&self, _model: &str, _endpoint: &'static str, _elapsed: Duration) {}
    /// `smg_router_request_errors_total{error_type}`.
    pub fn router_error(&self, _error_type: &'static str) {}
    /// `smg_worker_selection_total{policy}`.
    pub fn worker_selected(&self, _policy: PolicyKind) {}
    /// `smg_worker_errors_total{error_type}`: connect, reset, timeout, truncated, status.
    pub fn worker_error(&self, _error_type: &'static str) {}
    /// `smg_worker_retries_total`.
    pub fn worker_retry(&self) {}
    /// `smg_worker_health_checks_total{result}`: success, failure.
    pub fn worker_health_check(&self, _success: bool) {}
    /// Source of `smg_worker_pool_size`, `smg_worker_requests_active{worker}`, `smg_worker_health{worker}`; called at each scrape.
    pub fn watch_workers(&self, _source: impl Fn() -> Vec<WorkerSample> + Send + Sync + 'static) {}
    /// Source of `smg_mesh_peers_total`, `smg_mesh_peer_status{peer}`; called at each scrape.
    pub fn watch_mesh(&self, _source: impl Fn() -> MeshSample + Send + Sync + 'static) {}
    /// `smg_mesh_sync_operations_total{type}`: delta_sent, delta_received, snapshot_sent, snapshot_received, digest.
    pub fn mesh_sync_operation(&self, _kind: &'static str) {}
    /// `smg_mesh_sync_latency_seconds`: from sending a frame to its ack.
    pub fn mesh_sync_latency(&self, _elapsed: Duration) {}
    /// `smg_mesh_gossip_messages_total{direction,kind}`; direction sent or received, kind ping, ack, ping_req, ….
    pub fn mesh_gossip_message(&self, _direction: &'static str, _kind: &'static str) {}
    /// `smg_mesh_rejected_total{plane,reason}`; plane datagram or grpc.
    pub fn mesh_rejected(&self, _plane: &'static str, _reason: &'static str) {}
}
