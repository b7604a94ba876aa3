//! A worker's response body on its way to the client: each frame as it comes, and the truth when it breaks.
//!
//! The client's reading drives the worker's writing: a frame is taken from the worker when the client's connection
//! has room for it, so nothing is held but one batch and the two bounded connection buffers.
//!
//! Frames that came from the worker together leave together: hyper hands them over one by one, with a turn of the
//! connection's task between two, and each would cost a write of its own. After a frame the relay therefore lets the
//! other tasks of its core run, and sends what there is when that brought no further one (`gateway::batch`).

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::gateway::{
    batch::Batch, body::BodyError, breaker::Outcome, connection::Connection, core::Core, error::GatewayError,
    finish::Finish, pool::Sender, stored::Learner, usage::Tally, worker::InFlight,
};

mod clock;

use clock::Clock;

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// A connection to a worker in use for one request.
pub(crate) struct Lease {
    pub(crate) core: Rc<Core>,
    pub(crate) in_flight: InFlight,
    pub(crate) sender: Sender,
}

impl Lease {
    /// The response's head came. Other 5xx than 503 are failures of the worker, whatever follows; 4xx and 503 say that
    /// it lives, and no more (SPEC §1 row 8).
    pub(crate) fn on_status(&mut self, status: StatusCode) {
        if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
            self.core.metrics.worker_error("status");
            self.in_flight.settle(Outcome::Failure, Instant::now());
        } else if status.is_server_error() || status.is_client_error() {
            self.in_flight.settle(Outcome::Neutral, Instant::now());
        }
    }

    /// The response will not come to its end.
    pub(crate) fn on_break(&mut self, worker_error: &'static str) {
        self.core.metrics.worker_error(worker_error);
        self.in_flight.settle(Outcome::Failure, Instant::now());
    }

    /// The response was read to its end: the connection can serve another request.
    pub(crate) fn give_back(mut self) {
        let now = Instant::now();
        self.in_flight.settle(Outcome::Success, now);
        self.core.pool.put(self.in_flight.worker(), self.sender, now);
    }
}

/// A response body that is relayed. Dropping it before its end closes the connection to the worker, which is how a
/// worker learns that the client left.
pub(crate) struct Relay {
    incoming: Incoming,
    /// What was read ahead of the relay.
    prelude: Option<Frame<Bytes>>,
    batch: Batch,
    /// The end of the body, behind what was held when it came.
    trailers: Option<Frame<Bytes>>,
    lease: Option<Lease>,
    connection: Rc<Connection>,
    clock: Clock,
    is_sse: bool,
    /// An event stream is between two events: what follows starts a new one.
    is_between_events: bool,
    is_first: bool,
    /// Who reads along for the id of the response, until it was found.
    learner: Option<Box<Learner>>,
    /// Of an event stream: what it says of tokens.
    tally: Option<Box<Tally>>,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    /// The worker broke off; what it sent before was handed over.
    Cut,
    /// The error event was handed over; it must leave before the abort.
    Flushing,
    Broken,
    Done,
}

impl Relay {
    /// A body that continues `prelude` with what comes from the worker until `deadline`, or until nothing comes for
    /// `--stream-idle-timeout-secs`.
    pub(crate) fn new(
        incoming: Incoming,
        prelude: Option<Frame<Bytes>>,
        lease: Lease,
        connection: Rc<Connection>,
        deadline: Instant,
        is_sse: bool,
    ) -> Self {
        connection.relay_began(deadline);
        let clock = Clock::new(deadline, lease.core.config().requests.stream_idle_timeout);
        Self {
            incoming,
            prelude,
            batch: Batch::default(),
            trailers: None,
            lease: Some(lease),
            connection,
            clock,
            is_sse,
            is_between_events: true,
            is_first: true,
            learner: None,
            tally: is_sse.then(Box::default),
            state: State::Open,
        }
    }

    /// Has somebody read along, from the first byte.
    pub(crate) fn teach(&mut self, mut learner: Learner) {
        let ahead = self.prelude.as_ref().and_then(Frame::data_ref);
        if ahead.is_none_or(|bytes| learner.on_bytes(bytes)) {
            self.learner = Some(Box::new(learner));
        }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>, finish: Option<&mut Finish>) -> Polled {
        match self.state {
            State::Open => self.poll_open(cx, finish),
            State::Cut => self.on_break(&GatewayError::WorkerTruncated, "truncated", finish),
            State::Flushing => self.poll_flushing(cx),
            State::Broken => Poll::Ready(Some(Err(BodyError::Relay))),
            State::Done => Poll::Ready(self.trailers.take().map(Ok)),
        }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>, finish: Option<&mut Finish>) -> Polled {
        if let Some(frame) = self.prelude.take() {
            self.on_frame(&frame, finish);
            return Poll::Ready(Some(Ok(frame)));
        }
        if self.batch.is_empty() && finish.as_ref().is_some_and(|finish| finish.poll_lost(cx).is_ready()) {
            return self.on_lost(finish);
        }
        // First of all: a worker that always has more is no reason to go on.
        // What is held leaves before it, within a few turns.
        if self.batch.is_empty() && self.clock.poll_due(cx).is_ready() {
            return self.on_break(&GatewayError::WorkerTimeout, "timeout", finish);
        }
        self.poll_incoming(cx, finish)
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>, mut finish: Option<&mut Finish>) -> Polled {
        loop {
            let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(_))) => {
                    let Some(held) = self.batch.take() else {
                        return self.on_break(&GatewayError::WorkerTruncated, "truncated", finish);
                    };
                    self.state = State::Cut;
                    return Poll::Ready(Some(Ok(Frame::data(held))));
                }
                Poll::Ready(None) => {
                    self.on_end(finish);
                    return Poll::Ready(self.batch.take().map(|held| Ok(Frame::data(held))));
                }
                Poll::Pending if self.batch.is_empty() && self.clock.poll_idle(cx).is_ready() => {
                    return self.on_break(&GatewayError::StreamIdle, "idle", finish);
                }
                Poll::Pending => return self.batch.poll_settled(cx).map(|held| Some(Ok(Frame::data(held)))),
            };
            self.clock.on_frame();
            self.on_frame(&frame, finish.as_deref_mut());
            match frame.into_data() {
                Ok(data) => self.batch.push(data),
                Err(trailers) => return self.on_trailers(trailers, finish),
            }
            if self.state == State::Done || self.batch.is_full() {
                return Poll::Ready(self.batch.take().map(|held| Ok(Frame::data(held))));
            }
        }
    }

    fn on_frame(&mut self, frame: &Frame<Bytes>, mut finish: Option<&mut Finish>) {
        if let Some(data) = frame.data_ref() {
            self.learner.take_if(|learner| !learner.on_bytes(data));
            if let Some(tally) = &mut self.tally {
                tally.on_bytes(data, Instant::now());
            }
            if self.is_sse {
                self.is_between_events = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
            }
            if std::mem::take(&mut self.is_first)
                && self.is_sse
                && let Some(finish) = finish.as_deref_mut()
            {
                finish.on_first_byte();
            }
        }
        if self.incoming.is_end_stream() {
            self.on_end(finish);
        }
    }

    /// Trailers end the body, behind what is held.
    fn on_trailers(&mut self, trailers: Frame<Bytes>, finish: Option<&mut Finish>) -> Polled {
        if self.state == State::Open {
            self.on_end(finish);
        }
        let Some(held) = self.batch.take() else { return Poll::Ready(Some(Ok(trailers))) };
        self.trailers = Some(trailers);
        Poll::Ready(Some(Ok(Frame::data(held))))
    }

    fn on_end(&mut self, finish: Option<&mut Finish>) {
        self.state = State::Done;
        if let (Some(tally), Some(finish)) = (self.tally.take(), finish) {
            finish.on_stream_end(&tally);
        }
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    /// The request may not be in flight any more, through no fault of the worker.
    fn on_lost(&mut self, finish: Option<&mut Finish>) -> Polled {
        if let Some(lease) = &mut self.lease {
            lease.in_flight.settle(Outcome::Neutral, Instant::now());
        }
        // Closes the connection to the worker.
        self.lease = None;
        self.on_break(&GatewayError::SlotLost, "slot_lost", finish)
    }

    /// The answer will not be complete: an event stream says so in words first, then every stream is aborted.
    fn on_break(&mut self, error: &GatewayError, worker_error: &'static str, finish: Option<&mut Finish>) -> Polled {
        if let Some(mut lease) = self.lease.take() {
            lease.on_break(worker_error);
        }
        if let Some(finish) = finish {
            finish.on_broken(error.code());
        }
        if !self.is_sse {
            self.state = State::Broken;
            return Poll::Ready(Some(Err(BodyError::Relay)));
        }
        self.state = State::Flushing;
        let gap = if self.is_between_events { "" } else { "\n\n" };
        Poll::Ready(Some(Ok(Frame::data(format!("{gap}data: {}\n\n", error.json()).into()))))
    }

    /// Lets the connection write the error event before the abort, which throws away what is not yet written.
    fn poll_flushing(&mut self, cx: &mut Context<'_>) -> Polled {
        if self.connection.poll_flushed(cx).is_pending() {
            return Poll::Pending;
        }
        self.state = State::Broken;
        Poll::Ready(Some(Err(BodyError::Relay)))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.state == State::Done && self.trailers.is_none()
            || self.state == State::Open
                && self.prelude.is_none()
                && self.batch.is_empty()
                && self.incoming.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.size_hint();
        let ahead = self.prelude.as_ref().and_then(Frame::data_ref).map_or(0, |bytes| bytes.len() as u64);
        let ahead = ahead + self.batch.len() as u64;
        match rest.exact() {
            Some(rest) => SizeHint::with_exact(rest + ahead),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.connection.relay_ended(self.clock.due());
    }
}
