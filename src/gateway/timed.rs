//! A request body that must come in time, for handlers that read it by themselves.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

/// A body with a timer.
pub(crate) struct Timed {
    body: Incoming,
    timer: Pin<Box<Sleep>>,
}

/// The body did not come in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request body did not arrive in time")]
pub(crate) struct TooLate;

impl Timed {
    /// The body for a handler; the time begins now.
    pub(crate) fn body(body: Incoming, timeout: Duration) -> axum::body::Body {
        axum::body::Body::new(Self { body, timer: Box::pin(sleep(timeout)) })
    }
}

/// Whether that is what became of a body.
pub(crate) fn is_too_late(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<TooLate>() {
            return true;
        }
        next = error.source();
    }
    false
}

impl Body for Timed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(TooLate.into())));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
