//! OpenTelemetry traces of client requests (`--enable-trace`): a server span for each, and a client span for each attempt
//! at a worker, by the HTTP semantic conventions (1.23 and later), with `gen_ai.*` attributes from [`genai`]. Spans of the
//! mesh are in [`mesh`].
//!
//! The W3C context of the client (`traceparent`, `tracestate`) is continued, and the attempt's own goes to the worker.
//! Without `--enable-trace` nothing of this exists: the client's headers pass as they came. Attributes hold what a log
//! line would: route, status, worker, model, token counts. Never a prompt, an answer, a key or a query string.
//!
//! The `OTEL_*` variables keep their meaning: endpoint, protocol (`grpc`, the default, or `http/protobuf`), headers and
//! timeout of the exporter, sampler, span limits, resource attributes, and `OTEL_BSP_*` for the queue.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, Method, request::Parts};
use opentelemetry::{
    Context, Key, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, Span},
};

use super::metrics::Metrics;

mod export;
pub mod genai;
mod http_client;
pub mod mesh;

pub(super) use export::{http_endpoint, number, protocol};
pub(super) use http_client::OtlpClient;

/// Makes spans; cheap to clone.
#[derive(Clone, Debug)]
pub struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    exporting: Arc<export::Exporting>,
}

/// The spans of one client request. Dropping it ends them.
#[derive(Debug)]
pub struct Trace {
    tracer: SdkTracer,
    server: Span,
    /// Of the attempts: the server span.
    parent: Context,
    attempt: Option<Span>,
    method: Method,
    has_client_context: bool,
}

impl Traces {
    /// Starts exporting on the current runtime. `endpoint` goes before the variables; `node` names this process.
    ///
    /// # Errors
    /// When the endpoint or a variable cannot be used. A collector that is not there is no error, now or later.
    pub fn start(endpoint: Option<&str>, node: &str, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let resource = resource(node);
        let exporter = export::exporter(endpoint, &resource).context("--enable-trace")?;
        let (queue, exporting) = export::start(exporter, metrics)?;
        let provider = SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
        Ok(Self { tracer: provider.tracer("smg"), provider, exporting: Arc::new(exporting) })
    }

    /// Begins the server span of a request.
    #[must_use]
    pub fn begin(&self, parts: &Parts, is_tls: bool) -> Trace {
        let client = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(&parts.headers));
        let method = parts.method.clone();
        let version = match parts.version {
            http::Version::HTTP_2 => "2",
            http::Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        let attributes = vec![
            KeyValue::new("http.request.method", method_label(&method)),
            KeyValue::new("url.scheme", if is_tls { "https" } else { "http" }),
            KeyValue::new("url.path", parts.uri.path().to_owned()),
            KeyValue::new("network.protocol.version", version),
        ];
        let builder = self.tracer.span_builder(method_label(&method)).with_kind(SpanKind::Server);
        let server = builder.with_attributes(attributes).start_with_context(&self.tracer, &client);
        let parent = Context::new().with_remote_span_context(server.span_context().clone());
        let has_client_context = client.span().span_context().is_valid();
        Trace { tracer: self.tracer.clone(), server, parent, attempt: None, method, has_client_context }
    }

    /// For the mesh.
    #[must_use]
    pub fn of_mesh(&self) -> mesh::MeshTraces {
        mesh::MeshTraces::of(&self.provider)
    }

    /// Hands out what waits, for at most `wait`; the rest is lost.
    pub async fn flush(&self, wait: Duration) {
        self.exporting.flush(wait).await;
    }
}

impl Trace {
    /// The route is known.
    pub fn on_route(&mut self, route: &'static str) {
        self.server.update_name(format!("{} {route}", method_label(&self.method)));
        self.server.set_attribute(KeyValue::new("http.route", route));
    }

    /// The model is known.
    pub fn on_model(&mut self, route: &'static str, model: &str, is_stream: bool) {
        self.server.set_attributes(genai::request(route, model, is_stream));
    }

    /// Tokens are known.
    pub fn on_usage(&mut self, prompt: u64, cached: u64, completion: u64) {
        self.server.set_attributes(genai::usage(prompt, cached, completion));
    }

    /// The first byte of a stream goes to the client.
    pub fn on_first_byte(&mut self) {
        self.server.add_event("first_byte", Vec::new());
    }

    /// Begins an attempt at a worker; gives its `traceparent`.
    pub fn begin_attempt(&mut self, worker: &str, host: &str, resends: u32) -> Option<HeaderValue> {
        let mut attributes = vec![
            KeyValue::new("http.request.method", method_label(&self.method)),
            KeyValue::new("server.address", host.to_owned()),
            KeyValue::new("smg.worker.id", worker.to_owned()),
        ];
        if resends > 0 {
            attributes.push(KeyValue::new("http.request.resend_count", i64::from(resends)));
        }
        let builder = self.tracer.span_builder(method_label(&self.method)).with_kind(SpanKind::Client);
        let span = builder.with_attributes(attributes).start_with_context(&self.tracer, &self.parent);
        let context = span.span_context();
        let (trace, id, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
        self.attempt = Some(span);
        HeaderValue::try_from(format!("00-{trace}-{id}-{flags:02x}")).ok()
    }

    /// Whether the client sent a context that is continued; what it sent of one that is not must not go further.
    #[must_use]
    pub fn has_client_context(&self) -> bool {
        self.has_client_context
    }

    /// The attempt came to nothing.
    pub fn on_attempt_failed(&mut self, reason: &'static str) {
        if let Some(mut span) = self.attempt.take() {
            fail(&mut span, reason);
            span.end();
        }
    }

    /// The worker answers; the attempt ends with the request.
    pub fn on_attempt_answered(&mut self, status: u16) {
        if let Some(span) = &mut self.attempt {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
            if status >= 400 {
                fail(span, status.to_string());
            }
        }
    }

    /// The request has ended; `error_code` is empty on success.
    pub fn end(&mut self, status: u16, error_code: &'static str) {
        self.server.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 || status < 400 && !error_code.is_empty() {
            fail(&mut self.server, if error_code.is_empty() { status.to_string() } else { error_code.to_owned() });
        } else if !error_code.is_empty() {
            // What a client did wrong is no failure of the server.
            self.server.set_attribute(KeyValue::new("error.type", error_code));
        }
        if let Some(mut span) = self.attempt.take() {
            if !error_code.is_empty() {
                fail(&mut span, error_code);
            }
            span.end();
        }
        self.server.end();
    }
}

fn fail(span: &mut Span, reason: impl Into<opentelemetry::StringValue>) {
    span.set_attribute(KeyValue::new("error.type", reason.into()));
    span.set_status(Status::error(""));
}

/// The method, or what the conventions say of one that is made up.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

pub(super) fn resource(node: &str) -> Resource {
    let found = Resource::builder().build();
    let name = found.get(&Key::new("service.name")).map(|name| name.to_string());
    let is_named = name.is_some_and(|name| !name.starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let builder = builder.with_attribute(KeyValue::new("service.instance.id", node.to_owned()));
    if is_named { builder.build() } else { builder.with_service_name("smg").build() }
}

/// Reads the context out of a request.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_clients_make_up_name_no_span() {
        for (method, expected) in [(Method::GET, "GET"), (Method::TRACE, "TRACE")] {
            assert_eq!(method_label(&method), expected);
        }
        assert!(Method::from_bytes(b"BREW").is_ok_and(|method| method_label(&method) == "_OTHER"));
    }
}
