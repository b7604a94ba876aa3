//! Spans of the mesh: a pipe that is dialed, a snapshot on its way, a round in which a peer is brought up to date.
//!
//! Snapshots belong to the trace of the pipe on both sides: its context goes to the far end in the metadata of the call
//! (W3C Trace Context). Rounds go on for as long as a pipe holds, so each begins a trace of its own, with a link to the
//! pipe's. Attributes hold names of nodes and namespaces, counts, bytes and what came of it; never a key, a value or a URL.

use std::{collections::HashMap, net::SocketAddr};

use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{Link, Span as _, SpanContext, SpanKind, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, Span},
};

use super::fail;

/// Makes spans of the mesh; cheap to clone.
#[derive(Clone, Debug)]
pub struct MeshTraces {
    tracer: SdkTracer,
}

/// To which trace a pipe belongs.
#[derive(Clone, Debug)]
pub struct PipeContext(SpanContext);

/// One thing that the mesh does.
#[derive(Debug)]
pub struct MeshSpan(Span);

/// How much a span moved.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Moved {
    /// Frames: chunks of a snapshot, deltas of a round.
    pub frames: u64,
    /// Keys of deltas; those of chunks are not counted.
    pub keys: u64,
    /// Bytes of frames, as they were sent.
    pub bytes: u64,
}

impl MeshTraces {
    /// Makes them by this provider.
    #[must_use]
    pub fn of(provider: &SdkTracerProvider) -> Self {
        Self { tracer: provider.tracer("smg") }
    }

    /// A pipe is dialed.
    #[must_use]
    pub fn connect(&self, addr: SocketAddr) -> MeshSpan {
        let attributes = vec![
            KeyValue::new("network.peer.address", addr.ip().to_string()),
            KeyValue::new("network.peer.port", i64::from(addr.port())),
        ];
        let builder = self.tracer.span_builder("mesh connect").with_kind(SpanKind::Client).with_attributes(attributes);
        MeshSpan(builder.start_with_context(&self.tracer, &Context::new()))
    }

    /// The first chunk of a snapshot of `namespace` was handed out, or came.
    #[must_use]
    pub fn snapshot(&self, pipe: Option<&PipeContext>, peer: &str, namespace: &'static str, is_sent: bool) -> MeshSpan {
        let (name, kind) = match is_sent {
            true => ("mesh snapshot send", SpanKind::Producer),
            false => ("mesh snapshot receive", SpanKind::Consumer),
        };
        let parent = pipe.map_or_else(Context::new, |pipe| Context::new().with_remote_span_context(pipe.0.clone()));
        let attributes =
            vec![KeyValue::new("smg.mesh.peer", peer.to_owned()), KeyValue::new("smg.mesh.namespace", namespace)];
        let builder = self.tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
        MeshSpan(builder.start_with_context(&self.tracer, &parent))
    }

    /// A peer lacks something, and the first of it was handed out.
    #[must_use]
    pub fn sync(&self, pipe: Option<&PipeContext>, peer: &str) -> MeshSpan {
        let builder = self.tracer.span_builder("mesh sync").with_kind(SpanKind::Producer);
        let builder = builder.with_attributes(vec![KeyValue::new("smg.mesh.peer", peer.to_owned())]);
        let links = pipe.map(|pipe| Link::with_context(pipe.0.clone())).into_iter().collect();
        MeshSpan(builder.with_links(links).start_with_context(&self.tracer, &Context::new()))
    }
}

impl PipeContext {
    /// What a peer said of its trace; none where that is no context.
    #[must_use]
    pub fn of_peer(traceparent: &str) -> Option<Self> {
        let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
        let context = context.span().span_context().clone();
        context.is_valid().then_some(Self(context))
    }

    /// For the peer.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let (trace, id, flags) = (self.0.trace_id(), self.0.span_id(), self.0.trace_flags().to_u8());
        format!("00-{trace}-{id}-{flags:02x}")
    }
}

impl MeshSpan {
    /// For what belongs to it.
    #[must_use]
    pub fn context(&self) -> PipeContext {
        PipeContext(self.0.span_context().clone())
    }

    /// The peer said who it is: the pipe is open.
    pub fn end_open(mut self, peer: &str) {
        self.0.set_attribute(KeyValue::new("smg.mesh.peer", peer.to_owned()));
        self.0.end();
    }

    /// There is no pipe.
    pub fn end_failed(mut self, reason: &'static str) {
        fail(&mut self.0, reason);
        self.0.end();
    }

    /// It came to `outcome`; `is_failure`: the pipe was lost meanwhile.
    pub fn end(mut self, moved: Moved, outcome: &'static str, is_failure: bool) {
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.0.set_attributes([
            KeyValue::new("smg.mesh.frames", count(moved.frames)),
            KeyValue::new("smg.mesh.bytes", count(moved.bytes)),
            KeyValue::new("smg.mesh.outcome", outcome),
        ]);
        if moved.keys > 0 {
            self.0.set_attribute(KeyValue::new("smg.mesh.keys", count(moved.keys)));
        }
        if is_failure {
            fail(&mut self.0, outcome);
        }
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_context_survives_the_way_and_nonsense_is_none() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(PipeContext::of_peer(text).unwrap().traceparent(), text);
        for nonsense in ["", "00", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "\u{e9}", &text[3..]] {
            assert!(PipeContext::of_peer(nonsense).is_none(), "{nonsense}");
        }
    }
}
