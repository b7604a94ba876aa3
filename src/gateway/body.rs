//! Response bodies of the gateway: its own texts, relayed answers of workers, and those of the control routes.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::gateway::{finish::Finish, relay::Relay};

/// The body of a response to a client.
pub struct Body {
    kind: Kind,
    /// Dropped with the body: the request has ended.
    finish: Option<Finish>,
}

enum Kind {
    /// Complete in memory; none once it was handed out, or when it is empty.
    Full(Option<Bytes>),
    /// As it comes from a worker.
    Relay(Box<Relay>),
    /// From a control route.
    Control(axum::body::Body),
}

/// A body that cannot be completed: the connection (h1) or stream (h2) is aborted, so that the client can tell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The worker's response broke off or took too long.
    #[error("the worker's response broke off")]
    Relay,
    /// A control route failed to produce its body.
    #[error("control route body")]
    Control(#[source] axum::Error),
}

impl Body {
    /// A body that is all there.
    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        Self { kind: Kind::Full((!bytes.is_empty()).then_some(bytes)), finish: None }
    }

    pub(crate) fn relay(relay: Relay) -> Self {
        Self { kind: Kind::Relay(Box::new(relay)), finish: None }
    }

    pub(crate) fn control(body: axum::body::Body) -> Self {
        Self { kind: Kind::Control(body), finish: None }
    }

    /// Keeps the record of the request until the body has been sent or given up.
    pub(crate) fn attach(&mut self, finish: Finish) {
        self.finish = Some(finish);
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let is_sent = self.is_end_stream();
        if let Some(finish) = self.finish.as_mut().filter(|_| !is_sent) {
            finish.on_abandoned();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { kind, finish } = &mut *self;
        match kind {
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Relay(relay) => relay.poll_frame(cx, finish.as_mut()),
            Kind::Control(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Control),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Relay(relay) => relay.is_end_stream(),
            Kind::Control(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Relay(relay) => relay.size_hint(),
            Kind::Control(body) => body.size_hint(),
        }
    }
}
