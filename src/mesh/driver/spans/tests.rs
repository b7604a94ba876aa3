//! How many spans there are, and what came of each.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use opentelemetry::trace::Status;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanProcessor},
};

use super::*;
use crate::telemetry::traces::mesh::MeshTraces;

#[derive(Clone, Debug, Default)]
struct Ended(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Ended {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Ended {
    /// Names, outcomes and whether it counts as a failure, of what has ended since the last call.
    fn take(&self) -> Vec<(String, String, bool)> {
        let spans = std::mem::take(&mut *self.0.lock().unwrap());
        let outcome = |span: &SpanData| {
            let found = span.attributes.iter().find(|it| it.key.as_str() == "smg.mesh.outcome");
            found.map(|it| it.value.to_string()).unwrap_or_default()
        };
        let tell =
            |span: SpanData| (span.name.to_string(), outcome(&span), matches!(span.status, Status::Error { .. }));
        spans.into_iter().map(tell).collect()
    }
}

const PIPE: replication::PipeId = replication::PipeId(1);
const SEC: Duration = Duration::from_secs(1);

fn peer() -> NodeName {
    "n2".parse().unwrap()
}

fn chunk(is_sent: bool, is_last: bool) -> SyncEvent {
    let (pipe, namespace, peer, chunk_bytes) = (PIPE, Namespace::Workers, peer(), 9);
    match is_sent {
        true => SyncEvent::SnapshotSent { pipe, namespace, peer, chunk_bytes, is_last },
        false => SyncEvent::SnapshotReceived { pipe, namespace, peer, chunk_bytes, is_last },
    }
}

fn delta(keys: usize) -> SyncEvent {
    SyncEvent::DeltaSent { pipe: PIPE, peer: peer(), keys, delta_bytes: 5 }
}

/// Spans of one open pipe that we dialed.
fn open() -> (Spans, Ended, Instant, SdkTracerProvider) {
    let ended = Ended::default();
    let provider = SdkTracerProvider::builder().with_span_processor(ended.clone()).build();
    let mut spans = Spans::new(MeshTraces::of(&provider));
    let connecting = spans.connect("10.0.0.1:1".parse().unwrap());
    spans.dialing(PipeId(1), connecting);
    spans.opened(PipeId(1), "n2", None);
    assert_eq!(ended.take(), [("mesh connect".to_owned(), String::new(), false)]);
    (spans, ended, Instant::now(), provider)
}

fn told(name: &str, outcome: &str, is_failure: bool) -> Vec<(String, String, bool)> {
    vec![(format!("mesh {name}"), outcome.to_owned(), is_failure)]
}

#[test]
fn a_snapshot_is_one_span_whatever_comes_of_it() {
    let in_sync = SyncEvent::InSync { pipe: PIPE, peer: peer() };
    for (case, is_sent, last, expected) in [
        ("sent whole", true, Some(chunk(true, true)), told("snapshot send", "complete", false)),
        ("received whole", false, Some(chunk(false, true)), told("snapshot receive", "complete", false)),
        ("the peer had it by then", true, Some(in_sync), told("snapshot send", "needless", false)),
        ("the pipe ends", true, None, told("snapshot send", "pipe_closed", true)),
        ("the pipe ends there", false, None, told("snapshot receive", "pipe_closed", true)),
    ] {
        let (mut spans, ended, now, _provider) = open();
        for n in 0..3 {
            spans.note(now + n * SEC, &chunk(is_sent, false));
        }
        spans.expire(now + 61 * SEC);
        assert_eq!(ended.take(), [], "{case}: it goes on");
        match last {
            Some(event) => spans.note(now + 4 * SEC, &event),
            None => spans.closed(PipeId(1), Some("lost")),
        }
        assert_eq!(ended.take(), expected, "{case}");
        spans.closed(PipeId(1), None);
        assert_eq!((ended.take(), spans.pipes.len()), (Vec::new(), 0), "{case}: nothing is left");
    }
}

#[test]
fn a_snapshot_of_which_nothing_more_comes_was_given_up() {
    let (mut spans, ended, now, _provider) = open();
    spans.note(now, &chunk(false, false));
    spans.expire(now + IDLE_MAX - SEC);
    assert_eq!(ended.take(), []);
    spans.expire(now + IDLE_MAX);
    assert_eq!(ended.take(), told("snapshot receive", "given_up", false));
}

#[test]
fn rounds_are_one_a_second_at_most_and_end() {
    let (mut spans, ended, start, _provider) = open();
    let mut rounds = 0;
    // Ten writes a second for ten seconds, each acked at once.
    for tick in 0..100 {
        let now = start + tick * SEC / 10;
        spans.note(now, &delta(1));
        spans.note(now, &SyncEvent::InSync { pipe: PIPE, peer: peer() });
        rounds += ended.take().len();
    }
    assert_eq!(rounds, 10);
    let (mut spans, ended, start, _provider) = open();
    for tick in 0..100 {
        spans.note(start + tick * SEC / 10, &delta(1));
    }
    spans.expire(start + SYNC_MAX);
    assert_eq!(ended.take(), told("sync", "goes_on", false), "a peer that is never in sync");
    spans.note(start + SYNC_MAX, &delta(0));
    spans.closed(PipeId(1), None);
    assert_eq!(ended.take(), [], "asking for the clock is no round");
}

#[test]
fn a_pipe_that_does_not_open_is_a_failure() {
    let (mut spans, ended, ..) = open();
    let connecting = spans.connect("10.0.0.1:1".parse().unwrap());
    spans.dialing(PipeId(2), connecting);
    spans.closed(PipeId(2), Some("connect_timeout"));
    assert_eq!(ended.take(), told("connect", "", true));
}
