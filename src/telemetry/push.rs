//! The metrics of a scrape, sent to an OpenTelemetry collector (`--otlp-metrics-endpoint`).
//!
//! A second reader beside that of the scrape, made only where it is asked for: without it a measurement costs what it did.
//! One task collects every `OTEL_METRIC_EXPORT_INTERVAL` (60 s) and sends, one export at a time, each with at most
//! `OTEL_METRIC_EXPORT_TIMEOUT` (30 s) to arrive. Sums are cumulative, so what a collector that is slow or gone has missed,
//! the next export tells; nothing waits for it, and nothing piles up.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use opentelemetry_otlp::{MetricExporter, Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{
        InstrumentKind, ManualReader, Pipeline, Temporality, data::ResourceMetrics, exporter::PushMetricExporter as _,
        reader::MetricReader,
    },
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    metrics::Metrics,
    traces::{self, OtlpClient},
};
use crate::config::MetricsPush;

/// Failures are logged this often at most.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The reader of the export.
#[derive(Clone, Debug, Default)]
struct Reader(Arc<ManualReader>);

impl MetricReader for Reader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, into: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(into)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

/// A running export.
#[derive(Debug)]
pub struct Push {
    ending: CancellationToken,
    task: JoinHandle<()>,
}

/// Every instrument; where the configuration says so with a task on the current runtime that sends them. `node` names this
/// process.
///
/// # Errors
/// When the endpoint or a variable cannot be used. A collector that is not there is no error, now or later.
pub fn metrics(config: Option<&MetricsPush>, node: &str) -> anyhow::Result<(Arc<Metrics>, Option<Push>)> {
    let Some(config) = config else { return Ok((Metrics::new(), None)) };
    let exporter = exporter(config.endpoint.as_deref()).context("--otlp-metrics-endpoint")?;
    let millis = |name, default| traces::number(name, default, 3_600_000).map(Duration::from_millis);
    let interval = millis("OTEL_METRIC_EXPORT_INTERVAL", 60_000)?;
    let timeout = millis("OTEL_METRIC_EXPORT_TIMEOUT", 30_000)?;
    let reader = Reader::default();
    let metrics = Metrics::read_by(reader.clone(), traces::resource(node));
    let ending = CancellationToken::new();
    let export = Export { reader, exporter, interval, timeout, metrics: metrics.clone(), warned: None };
    let task = tokio::spawn(export.run(ending.clone()));
    Ok((metrics, Some(Push { ending, task })))
}

impl Push {
    /// Sends once more, for at most `wait`, and ends.
    pub async fn flush(self, wait: Duration) {
        self.ending.cancel();
        let mut task = self.task;
        if timeout(wait, &mut task).await.is_err() {
            task.abort();
        }
    }
}

/// The exporter for the endpoint of the flag, else of the variables.
fn exporter(endpoint: Option<&str>) -> anyhow::Result<MetricExporter> {
    let exporter = match traces::protocol("METRICS").as_deref() {
        None | Some("grpc") => {
            let builder = MetricExporter::builder().with_tonic().with_protocol(Protocol::Grpc);
            match endpoint {
                Some(endpoint) => builder.with_endpoint(endpoint).build(),
                None => builder.build(),
            }
        }
        Some("http/protobuf") => {
            let builder = MetricExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
            let builder = builder.with_http_client(OtlpClient::default());
            match endpoint {
                Some(endpoint) => builder.with_endpoint(traces::http_endpoint(endpoint, "metrics")).build(),
                None => builder.build(),
            }
        }
        Some(other) => bail!("OTEL_EXPORTER_OTLP_PROTOCOL {other} is not supported: write grpc or http/protobuf"),
    };
    exporter.context("the OTLP exporter")
}

struct Export {
    reader: Reader,
    exporter: MetricExporter,
    interval: Duration,
    timeout: Duration,
    metrics: Arc<Metrics>,
    warned: Option<Instant>,
}

impl Export {
    async fn run(mut self, ending: CancellationToken) {
        let mut collected = ResourceMetrics::default();
        while timeout(self.interval, ending.cancelled()).await.is_err() {
            self.send(&mut collected).await;
        }
        self.send(&mut collected).await;
    }

    async fn send(&mut self, collected: &mut ResourceMetrics) {
        let error = match self.reader.collect(collected) {
            Ok(()) => match timeout(self.timeout, self.exporter.export(collected)).await {
                Ok(Ok(())) => return self.metrics.otlp_export("exported"),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        self.metrics.otlp_export("failed");
        let now = Instant::now();
        if self.warned.is_none_or(|at| now.saturating_duration_since(at) >= FAILURE_LOG_INTERVAL) {
            self.warned = Some(now);
            warn!(%error, "metrics not sent; further failures within a minute are counted, not logged");
        }
    }
}
