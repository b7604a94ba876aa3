//! Events of replication as spans (`--enable-trace`); without it nothing of this exists.
//!
//! A *snapshot* is a span on each side, from its first chunk to its last, to the moment when the peer turned out to have
//! what it covers, or to the end of the pipe; one of which nothing is heard for [`IDLE_MAX`] has been given up. A *sync* is a
//! span of the node that sends: from the first delta until the peer's vectors and roots equal ours. In a cluster that
//! always writes that may never be, so it ends after [`SYNC_MAX`] at the latest, and the next one begins no earlier than
//! [`SYNC_INTERVAL`] after the last one did: at most one a second for each peer, whatever is written.
//!
//! There are as many spans under way as there are pipes and namespaces.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use smg_transport::grpc::PipeId;

use crate::{
    mesh::{
        node::NodeName,
        replication::{self, SyncEvent},
        stores::Namespace,
    },
    telemetry::traces::mesh::{MeshSpan, MeshTraces, Moved, PipeContext},
};

/// A sync that has not come to an end by then is told as one that goes on.
const SYNC_MAX: Duration = Duration::from_secs(10);

/// From the beginning of one span of a sync to that of the next, at least.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// A snapshot of which nothing moves for as long was given up by its sender.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The spans of all pipes.
#[derive(Debug)]
pub(super) struct Spans {
    traces: MeshTraces,
    pipes: BTreeMap<replication::PipeId, Pipe>,
}

#[derive(Debug, Default)]
struct Pipe {
    connecting: Option<MeshSpan>,
    context: Option<PipeContext>,
    sync: Option<Running>,
    sync_begun: Option<Instant>,
    sent: BTreeMap<Namespace, Running>,
    received: BTreeMap<Namespace, Running>,
}

#[derive(Debug)]
struct Running {
    span: MeshSpan,
    moved: Moved,
    since: Instant,
    heard: Instant,
}

impl Spans {
    pub(super) fn new(traces: MeshTraces) -> Self {
        Self { traces, pipes: BTreeMap::new() }
    }

    /// A pipe is about to be dialed: the span of that, whose context goes to the peer.
    pub(super) fn connect(&self, to: SocketAddr) -> MeshSpan {
        self.traces.connect(to)
    }

    /// It is being dialed.
    pub(super) fn dialing(&mut self, pipe: PipeId, connecting: MeshSpan) {
        let context = Some(connecting.context());
        self.pipes.insert(key(pipe), Pipe { connecting: Some(connecting), context, ..Pipe::default() });
    }

    /// A pipe is open.
    pub(super) fn opened(&mut self, pipe: PipeId, peer: &str, traceparent: Option<&str>) {
        let pipe = self.pipes.entry(key(pipe)).or_default();
        if let Some(connecting) = pipe.connecting.take() {
            connecting.end_open(peer);
        } else {
            pipe.context = traceparent.and_then(PipeContext::of_peer);
        }
    }

    /// A pipe has ended; `reason` is why, where it did not end in order.
    pub(super) fn closed(&mut self, pipe: PipeId, reason: Option<&'static str>) {
        let Some(mut pipe) = self.pipes.remove(&key(pipe)) else { return };
        if let Some(connecting) = pipe.connecting.take() {
            connecting.end_failed(reason.unwrap_or("closed"));
        }
        let snapshots = [std::mem::take(&mut pipe.sent), std::mem::take(&mut pipe.received)];
        for running in snapshots.into_iter().flat_map(BTreeMap::into_values).chain(pipe.sync.take()) {
            running.end("pipe_closed", true);
        }
    }

    /// Takes note of one step.
    pub(super) fn note(&mut self, now: Instant, event: &SyncEvent) {
        match event {
            SyncEvent::SnapshotSent { pipe, namespace, peer, chunk_bytes, is_last } => {
                self.on_chunk(now, *pipe, (peer, *namespace, true), *chunk_bytes, *is_last);
            }
            SyncEvent::SnapshotReceived { pipe, namespace, peer, chunk_bytes, is_last } => {
                self.on_chunk(now, *pipe, (peer, *namespace, false), *chunk_bytes, *is_last);
            }
            // A delta of no key asks for the peer's clock.
            SyncEvent::DeltaSent { pipe, peer, keys, delta_bytes } if *keys > 0 => {
                self.on_delta(now, *pipe, peer, *keys, *delta_bytes);
            }
            SyncEvent::InSync { pipe, .. } => {
                let Some(pipe) = self.pipes.get_mut(pipe) else { return };
                pipe.sync.take().into_iter().for_each(|running| running.end("in_sync", false));
                let needless = std::mem::take(&mut pipe.sent);
                needless.into_values().for_each(|running| running.end("needless", false));
            }
            _ => {}
        }
    }

    /// Ends what takes too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let is_over = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        for pipe in self.pipes.values_mut() {
            if let Some(running) = pipe.sync.take_if(|running| is_over(running.since, SYNC_MAX)) {
                running.end("goes_on", false);
            }
            for snapshots in [&mut pipe.sent, &mut pipe.received] {
                for namespace in Namespace::ALL {
                    if snapshots.get(&namespace).is_some_and(|running| is_over(running.heard, IDLE_MAX))
                        && let Some(running) = snapshots.remove(&namespace)
                    {
                        running.end("given_up", false);
                    }
                }
            }
        }
    }

    fn on_chunk(
        &mut self,
        now: Instant,
        pipe: replication::PipeId,
        (peer, namespace, is_sent): (&NodeName, Namespace, bool),
        bytes: usize,
        is_last: bool,
    ) {
        let Some(pipe) = self.pipes.get_mut(&pipe) else { return };
        let snapshots = if is_sent { &mut pipe.sent } else { &mut pipe.received };
        let running = snapshots.entry(namespace).or_insert_with(|| {
            let span = self.traces.snapshot(pipe.context.as_ref(), peer.as_str(), namespace.as_str(), is_sent);
            Running::new(now, span)
        });
        running.add(now, 0, bytes);
        if is_last && let Some(running) = snapshots.remove(&namespace) {
            running.end("complete", false);
        }
    }

    fn on_delta(&mut self, now: Instant, pipe: replication::PipeId, peer: &NodeName, keys: usize, bytes: usize) {
        let Some(pipe) = self.pipes.get_mut(&pipe) else { return };
        if pipe.sync.is_none() {
            if pipe.sync_begun.is_some_and(|begun| now.saturating_duration_since(begun) < SYNC_INTERVAL) {
                return;
            }
            pipe.sync_begun = Some(now);
        }
        let begin = || Running::new(now, self.traces.sync(pipe.context.as_ref(), peer.as_str()));
        pipe.sync.get_or_insert_with(begin).add(now, keys, bytes);
    }
}

impl Running {
    fn new(now: Instant, span: MeshSpan) -> Self {
        Self { span, moved: Moved::default(), since: now, heard: now }
    }

    fn add(&mut self, now: Instant, keys: usize, bytes: usize) {
        self.heard = now;
        self.moved.frames += 1;
        self.moved.keys += keys as u64;
        self.moved.bytes += bytes as u64;
    }

    fn end(self, outcome: &'static str, is_failure: bool) {
        self.span.end(self.moved, outcome, is_failure);
    }
}

fn key(pipe: PipeId) -> replication::PipeId {
    replication::PipeId(pipe.0)
}

#[cfg(test)]
mod tests;
