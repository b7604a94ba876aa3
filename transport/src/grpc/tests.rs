//! Two stream planes over real sockets: greeting, frames, backpressure, ends.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use super::*;

mod exchange;
mod failures;
mod strangers;
mod tls;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// One plane, with the events that were seen while another was looked for.
struct Node {
    streams: Streams,
    events: StreamEvents,
    skipped: VecDeque<StreamEvent>,
}

impl Node {
    fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    fn with(name: &str, change: impl FnOnce(&mut StreamConfig)) -> Self {
        let mut config = config(name);
        change(&mut config);
        let (streams, events) = Streams::bind(config).unwrap();
        Self { streams, events, skipped: VecDeque::new() }
    }

    fn addr(&self) -> SocketAddr {
        self.streams.local_addr()
    }

    async fn next(&mut self) -> StreamEvent {
        if let Some(event) = self.skipped.pop_front() {
            return event;
        }
        self.fresh().await
    }

    async fn fresh(&mut self) -> StreamEvent {
        within(self.events.next()).await.expect("the plane is shut down")
    }

    /// The next event that `pick` takes; others are kept.
    async fn find<T>(&mut self, pick: impl Fn(&StreamEvent) -> Option<T>) -> T {
        if let Some(at) = self.skipped.iter().position(|event| pick(event).is_some()) {
            return pick(&self.skipped.remove(at).unwrap()).unwrap();
        }
        loop {
            let event = self.fresh().await;
            if let Some(found) = pick(&event) {
                return found;
            }
            self.skipped.push_back(event);
        }
    }

    async fn opened(&mut self) -> PipeId {
        self.find(|event| match event {
            StreamEvent::Opened { pipe, .. } => Some(*pipe),
            _ => None,
        })
        .await
    }

    async fn frame(&mut self, of: PipeId) -> (Lane, Bytes) {
        self.find(|event| match event {
            StreamEvent::Frame { pipe, lane, payload } if *pipe == of => Some((*lane, payload.clone())),
            _ => None,
        })
        .await
    }

    /// The reason with which a pipe closed; none when in order.
    async fn closed(&mut self, of: PipeId) -> Option<&'static str> {
        self.find(|event| match event {
            StreamEvent::Closed { pipe, error, .. } if *pipe == of => Some(error.as_ref().map(PipeError::reason)),
            _ => None,
        })
        .await
    }

    /// Sends, waiting for room as often as needed.
    async fn send(&mut self, to: PipeId, lane: Lane, payload: Bytes) {
        while let Err(error) = self.streams.try_send(to, lane, payload.clone()) {
            assert_eq!(error, PipeSendError::Full);
            self.find(|event| matches!(event, StreamEvent::Writable { pipe } if *pipe == to).then_some(())).await;
        }
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("took too long")
}

fn hello(name: &str) -> Hello {
    Hello { cluster: "smg".into(), node: name.into(), boot_epoch_ms: 7 }
}

fn config(name: &str) -> StreamConfig {
    StreamConfig::new("127.0.0.1:0".parse().unwrap(), hello(name))
}

/// Two planes with a pipe between them, as each names it.
async fn connected() -> (Node, PipeId, Node, PipeId) {
    let (mut a, mut b) = (Node::new("a"), Node::new("b"));
    let dialed = a.streams.dial(b.addr());
    assert_eq!(a.opened().await, dialed);
    let accepted = b.opened().await;
    (a, dialed, b, accepted)
}
