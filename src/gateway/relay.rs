//! A worker's response body on its way to the client: each frame as it comes, and the truth when it breaks.
//!
//! The client's reading drives the worker's writing: a frame is read from the worker when the client's connection has
//! room for it, so nothing is held but what one read brought and the bounded buffer of the client's connection. What
//! came from the worker together is one frame and leaves together.

use std::{
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};

use crate::gateway::{
    body::BodyError, breaker::Outcome, connection::Connection, core::Core, error::GatewayError, finish::Finish,
    stored::Learner, upstream::Reply, usage::Tally, worker::InFlight,
};

mod clock;

use clock::Clock;

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// A worker in use for one request.
pub(crate) struct Lease {
    pub(crate) core: Rc<Core>,
    pub(crate) in_flight: InFlight,
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
    pub(crate) fn give_back(mut self, reply: &mut Reply) {
        let now = Instant::now();
        self.in_flight.settle(Outcome::Success, now);
        if let Some(wire) = reply.take_wire() {
            self.core.pool.put(self.in_flight.worker(), wire, now);
        }
    }
}

/// A response body that is relayed. Dropping it before its end closes the connection to the worker, which is how a
/// worker learns that the client left.
pub(crate) struct Relay {
    /// None: closed.
    reply: Option<Reply>,
    /// What was read ahead of the relay.
    prelude: Option<Frame<Bytes>>,
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
    /// The error event was handed over; it must leave before the abort.
    Flushing,
    Broken,
    Done,
}

impl Relay {
    /// A body that continues `prelude` with what comes from the worker until `deadline`, or until nothing comes for
    /// `--stream-idle-timeout-secs`.
    pub(crate) fn new(
        reply: Reply,
        prelude: Option<Frame<Bytes>>,
        lease: Lease,
        connection: Rc<Connection>,
        deadline: Instant,
        is_sse: bool,
    ) -> Self {
        connection.relay_began(deadline);
        let clock = Clock::new(deadline, lease.core.config().requests.stream_idle_timeout);
        Self {
            reply: Some(reply),
            prelude,
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
            State::Flushing => self.poll_flushing(cx),
            State::Broken => Poll::Ready(Some(Err(BodyError::Relay))),
            State::Done => Poll::Ready(None),
        }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>, finish: Option<&mut Finish>) -> Polled {
        if let Some(frame) = self.prelude.take() {
            self.on_frame(&frame, finish);
            return Poll::Ready(Some(Ok(frame)));
        }
        if finish.as_ref().is_some_and(|finish| finish.poll_lost(cx).is_ready()) {
            return self.on_lost(finish);
        }
        // First of all: a worker that always has more is no reason to go on.
        if self.clock.poll_due(cx).is_ready() {
            return self.on_break(&GatewayError::WorkerTimeout, "timeout", finish);
        }
        self.poll_reply(cx, finish)
    }

    fn poll_reply(&mut self, cx: &mut Context<'_>, finish: Option<&mut Finish>) -> Polled {
        let Some(reply) = &mut self.reply else { return Poll::Ready(None) };
        match reply.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.clock.on_frame();
                self.on_frame(&frame, finish);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => self.on_break(&GatewayError::WorkerTruncated, "truncated", finish),
            Poll::Ready(None) => {
                self.on_end(finish);
                Poll::Ready(None)
            }
            Poll::Pending if self.clock.poll_idle(cx).is_ready() => {
                self.on_break(&GatewayError::StreamIdle, "idle", finish)
            }
            Poll::Pending => Poll::Pending,
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
        if self.reply.as_ref().is_some_and(Reply::is_end) {
            self.on_end(finish);
        }
    }

    fn on_end(&mut self, finish: Option<&mut Finish>) {
        self.state = State::Done;
        if let (Some(tally), Some(finish)) = (self.tally.take(), finish) {
            finish.on_stream_end(&tally);
        }
        if let (Some(lease), Some(reply)) = (self.lease.take(), &mut self.reply) {
            lease.give_back(reply);
        }
    }

    /// The request may not be in flight any more, through no fault of the worker.
    fn on_lost(&mut self, finish: Option<&mut Finish>) -> Polled {
        if let Some(lease) = &mut self.lease {
            lease.in_flight.settle(Outcome::Neutral, Instant::now());
        }
        self.lease = None;
        self.on_break(&GatewayError::SlotLost, "slot_lost", finish)
    }

    /// The answer will not be complete: an event stream says so in words first, then every stream is aborted.
    fn on_break(&mut self, error: &GatewayError, worker_error: &'static str, finish: Option<&mut Finish>) -> Polled {
        if let Some(mut lease) = self.lease.take() {
            lease.on_break(worker_error);
        }
        // Closes the connection to the worker.
        self.reply = None;
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
        self.state == State::Done
            || self.state == State::Open && self.prelude.is_none() && self.reply.as_ref().is_none_or(Reply::is_end)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let ahead = self.prelude.as_ref().and_then(Frame::data_ref).map_or(0, |bytes| bytes.len() as u64);
        match self.reply.as_ref().and_then(Reply::exact_len).filter(|_| !self.is_sse) {
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
