//! Metrics as a collector gets them: by gRPC and by HTTP, and one that is not there.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    metrics::v1::{metric::Data, number_data_point::Value},
};
use prost::Message as _;
use tokio::net::TcpListener;

use crate::harness::{Gateway, Network, Process, eventually, s, worker};

/// What a collector was sent.
#[derive(Clone, Debug, Default)]
struct Collected(Arc<Mutex<Vec<ExportMetricsServiceRequest>>>);

impl Collected {
    /// The newest sum of a counter over its series; none before it came.
    fn sum(&self, name: &str) -> Option<i64> {
        let requests = self.0.lock().unwrap();
        let scopes = requests.iter().rev().flat_map(|it| &it.resource_metrics).flat_map(|it| &it.scope_metrics);
        let metric = scopes.flat_map(|scope| &scope.metrics).find(|metric| metric.name == name)?;
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{name} is a sum") };
        let value = |value: &Option<Value>| match value {
            Some(Value::AsInt(number)) => *number,
            other => panic!("{name} is {other:?}"),
        };
        assert!(sum.is_monotonic);
        Some(sum.data_points.iter().map(|point| value(&point.value)).sum())
    }

    fn resource(&self) -> String {
        format!("{:?}", self.0.lock().unwrap()[0].resource_metrics[0].resource)
    }
}

#[tonic::async_trait]
impl MetricsService for Collected {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// A collector on a port of its own.
async fn collector(is_grpc: bool) -> (Collected, SocketAddr) {
    let (collected, listener) = (Collected::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (addr, service) = (listener.local_addr().unwrap(), collected.clone());
    if is_grpc {
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming));
    } else {
        let take = async |State(collected): State<Collected>, body: axum::body::Bytes| {
            collected.0.lock().unwrap().push(ExportMetricsServiceRequest::decode(body).unwrap());
        };
        let router = Router::new().route("/v1/metrics", post(take)).with_state(service);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    }
    (collected, addr)
}

fn gateway(network: Network, url: &str, more: &[&str], env: &[(&str, String)]) -> Gateway {
    let ip = network.ip(1).to_string();
    let mut args = vec!["--host", &ip, "--port", "8000", "--prometheus-host", &ip, "--prometheus-port", "29000"];
    args.extend(["--mesh-server-name", "node1", "--enable-mesh", "--mesh-host", &ip, "--worker-urls", url]);
    args.extend(more);
    let env = [env, &[("OTEL_METRIC_EXPORT_INTERVAL", "100".to_owned())]].concat();
    Gateway::attach(Process::start("node1", args, &env), "node1".to_owned(), network.ip(1))
}

const SELECTIONS: &str = "smg_worker_selection_total";

#[tokio::test]
async fn metrics_reach_a_collector_by_grpc_and_the_scrape_has_them_too() {
    let (network, (collected, addr)) = (Network::new(), collector(true).await);
    let (_worker, url) = worker(network, 9, "m", &[]);
    let endpoint = format!("http://{addr}");
    let mut gateway = gateway(network, &url, &["--otlp-metrics-endpoint", &endpoint], &[]);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    for _ in 0..3 {
        assert_eq!(gateway.chat("m").await.unwrap().0, 200);
    }
    eventually(s(10), "three choices", async || collected.sum(SELECTIONS) == Some(3)).await;
    let resource = collected.resource();
    assert!(resource.contains("\"smg\"") && resource.contains("\"node1\""), "{resource}");
    let scrape = gateway.metrics().await;
    assert!(scrape.contains("smg_worker_selection_total{policy=\"cache_aware\"} 3"), "{scrape}");
    eventually(s(10), "counted as exported", async || {
        gateway.metrics().await.contains("smg_otlp_metric_exports_total{result=\"exported\"}")
    })
    .await;
    // The last word is said at the end.
    assert_eq!(gateway.chat("m").await.unwrap().0, 200);
    gateway.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(gateway.process.exit(s(20)).await.success());
    assert_eq!(collected.sum(SELECTIONS), Some(4));
}

#[tokio::test]
async fn the_standard_variables_are_enough_and_http_works_too() {
    let (network, (collected, addr)) = (Network::new(), collector(false).await);
    let (_worker, url) = worker(network, 9, "m", &[]);
    let env = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", format!("http://{addr}/v1/metrics")),
    ];
    let gateway = gateway(network, &url, &[], &env);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    assert_eq!(gateway.chat("m").await.unwrap().0, 200);
    eventually(s(10), "one choice", async || collected.sum(SELECTIONS) == Some(1)).await;
}

#[tokio::test]
async fn without_a_collector_requests_go_on_and_failures_are_counted() {
    let network = Network::new();
    let (_worker, url) = worker(network, 9, "m", &[]);
    // Nothing answers there: packets to it come back as refused at once.
    let gateway = gateway(network, &url, &["--otlp-metrics-endpoint", "http://127.0.0.1:9"], &[]);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    for _ in 0..10 {
        assert_eq!(gateway.chat("m").await.unwrap().0, 200);
    }
    eventually(s(10), "counted as failed", async || {
        gateway.metrics().await.contains("smg_otlp_metric_exports_total{result=\"failed\"}")
    })
    .await;
}
