//! From the end of a span to the collector: a bounded queue, batches, one export at a time.
//!
//! The request path puts a finished span into the queue, or drops and counts it when the queue is full: an exporter that
//! is slow or gone costs it nothing else. A batch leaves when it is full or [`Settings::delay`] old, and has
//! [`Settings::timeout`] to arrive; one that does not is lost and counted.

use std::{
    fmt::Display,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use opentelemetry::Context;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter as _, SpanProcessor},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::http_client::OtlpClient;
use crate::telemetry::metrics::Metrics;

/// Lost batches are logged this often at most.
const LOSS_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Bounds, from the variables of the batch span processor.
#[derive(Clone, Copy, Debug)]
struct Settings {
    /// Spans that wait at most: `OTEL_BSP_MAX_QUEUE_SIZE`, 2048.
    queue_max: usize,
    /// Spans in a batch at most: `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`, 512.
    batch_max: usize,
    /// From a batch's first span to its export: `OTEL_BSP_SCHEDULE_DELAY`, 5 s.
    delay: Duration,
    /// For one export: `OTEL_BSP_EXPORT_TIMEOUT`, 30 s.
    timeout: Duration,
}

impl Settings {
    fn of_environment() -> anyhow::Result<Self> {
        let millis = |name, default| Ok::<_, anyhow::Error>(Duration::from_millis(number(name, default, 3_600_000)?));
        let queue_max = number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1 << 20)?;
        Ok(Self {
            queue_max,
            batch_max: number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1 << 16)?.min(queue_max),
            delay: millis("OTEL_BSP_SCHEDULE_DELAY", 5000)?,
            timeout: millis("OTEL_BSP_EXPORT_TIMEOUT", 30_000)?,
        })
    }
}

/// A variable from 1 to `most`; unset or empty is the default.
pub(in crate::telemetry) fn number<T: Copy + Display + FromStr + From<u8> + PartialOrd>(
    name: &str,
    default: T,
    most: T,
) -> anyhow::Result<T> {
    let Some(text) = std::env::var(name).ok().filter(|text| !text.is_empty()) else { return Ok(default) };
    let found = text.parse::<T>().ok().filter(|found| *found >= T::from(1) && *found <= most);
    found.with_context(|| format!("{name}: write a number from 1 to {most}"))
}

/// What the variables say of the protocol of a signal.
pub(in crate::telemetry) fn protocol(signal: &str) -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    variable(&format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")).or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"))
}

/// The exporter for the endpoint of the flag, else of the variables, else of this host.
pub(super) fn exporter(endpoint: Option<&str>, resource: &Resource) -> anyhow::Result<SpanExporter> {
    let mut exporter = match protocol("TRACES").as_deref() {
        None | Some("grpc") => {
            let builder = SpanExporter::builder().with_tonic().with_protocol(Protocol::Grpc);
            match endpoint {
                Some(endpoint) => builder.with_endpoint(endpoint).build(),
                None => builder.build(),
            }
        }
        Some("http/protobuf") => {
            let builder = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
            let builder = builder.with_http_client(OtlpClient::default());
            match endpoint {
                Some(endpoint) => builder.with_endpoint(http_endpoint(endpoint, "traces")).build(),
                None => builder.build(),
            }
        }
        Some(other) => bail!("OTEL_EXPORTER_OTLP_PROTOCOL {other} is not supported: write grpc or http/protobuf"),
    }
    .context("the OTLP exporter")?;
    exporter.set_resource(resource);
    Ok(exporter)
}

/// With the path of the signal, where none is given.
pub(in crate::telemetry) fn http_endpoint(endpoint: &str, signal: &str) -> String {
    match endpoint.split_once("://").map(|(_, rest)| rest.split_once('/')) {
        Some(None | Some((_, ""))) => format!("{}/v1/{signal}", endpoint.trim_end_matches('/')),
        _ => endpoint.to_owned(),
    }
}

/// The end of the request path.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    metrics: Arc<Metrics>,
}

/// The task that exports.
#[derive(Debug)]
pub(super) struct Exporting {
    ending: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Starts exporting on the current runtime.
pub(super) fn start(exporter: SpanExporter, metrics: Arc<Metrics>) -> anyhow::Result<(Queue, Exporting)> {
    let settings = Settings::of_environment()?;
    let (spans, inbox) = mpsc::channel(settings.queue_max);
    let ending = CancellationToken::new();
    let export = Export { inbox, exporter, settings, metrics: metrics.clone(), warned: None };
    let task = tokio::spawn(export.run(ending.clone()));
    Ok((Queue { spans, metrics }, Exporting { ending, task: Mutex::new(Some(task)) }))
}

impl Exporting {
    /// Hands out what waits, for at most `wait`.
    pub(super) async fn flush(&self, wait: Duration) {
        self.ending.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut task) = task
            && timeout(wait, &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.metrics.trace_spans("dropped", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

struct Export {
    inbox: mpsc::Receiver<SpanData>,
    exporter: SpanExporter,
    settings: Settings,
    metrics: Arc<Metrics>,
    warned: Option<Instant>,
}

impl Export {
    async fn run(mut self, ending: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                is_open = fill(&mut self.inbox, &mut batch, self.settings) => if !is_open { break },
                () = ending.cancelled() => break,
            }
            self.send(std::mem::take(&mut batch)).await;
        }
        self.inbox.close();
        while let Ok(span) = self.inbox.try_recv() {
            batch.push(span);
        }
        while !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(self.settings.batch_max));
            self.send(std::mem::replace(&mut batch, rest)).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let outcome = timeout(self.settings.timeout, self.exporter.export(batch)).await;
        let error = match outcome {
            Ok(Ok(())) => return self.metrics.trace_spans("exported", count),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        self.metrics.trace_spans("failed", count);
        let now = Instant::now();
        if self.warned.is_none_or(|at| now.saturating_duration_since(at) >= LOSS_LOG_INTERVAL) {
            self.warned = Some(now);
            warn!(%error, "spans lost; more within a minute are counted, not logged");
        }
    }
}

/// Fills a batch until it is full or old enough; false when no more will come. Nothing is lost when this is given up.
async fn fill(inbox: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>, settings: Settings) -> bool {
    let Some(first) = inbox.recv().await else { return false };
    batch.push(first);
    let due = tokio::time::Instant::now() + settings.delay;
    while batch.len() < settings.batch_max {
        match timeout_at(due, inbox.recv()).await {
            Ok(Some(span)) => batch.push(span),
            Ok(None) | Err(_) => break,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_path_gets_that_of_the_signal() {
        for (given, expected) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("https://c/otlp", "https://c/otlp"),
        ] {
            assert_eq!(http_endpoint(given, "traces"), expected, "{given}");
        }
    }
}
