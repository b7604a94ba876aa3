//! One client connection: its protocol, the watch over slow heads and idle peers, and its end.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::{Service, service_fn},
};
use tokio::net::TcpStream;

use crate::gateway::{
    body::Body,
    byte_stream::ByteStream,
    client_io::Io,
    core::{Core, Phase},
    error::GatewayError,
    service,
    tenure::Tenure,
};

/// A request head must be complete this long after its first byte, a first one after the connection was accepted.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection without a request is closed after this: longer than load balancers keep theirs.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// A response past its deadline has this long to break by itself, with an error event, before its connection is closed.
pub(crate) const OVERDUE_GRACE: Duration = Duration::from_secs(1);

/// Largest request head in bytes; beyond it the answer is 431.
pub(crate) const HEAD_BYTES_MAX: usize = 64 << 10;

/// Streams that one HTTP/2 connection may have open.
const H2_STREAMS_MAX: u32 = 256;

/// Streams of one HTTP/2 connection that may be reset before they were accepted (rapid reset, CVE-2023-44487).
const H2_PENDING_RESETS_MAX: usize = 20;

/// Most bytes that one HTTP/2 stream buffers towards the client.
const H2_SEND_BUFFER_BYTES_MAX: usize = 64 << 10;

/// How the head that is awaited comes along.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum HeadWatch {
    InTime,
    /// It took too long, and is to be refused.
    Overdue,
    Refused,
}

/// What the core and the requests of a connection know of it.
pub(crate) struct Connection {
    /// The client's address.
    pub(crate) peer: SocketAddr,
    /// Requests being served.
    busy: Cell<u32>,
    ended: Cell<u64>,
    /// Part of a head was read, or none ever came: the head timeout runs from `since`, else the idle timeout.
    awaits_head: Cell<bool>,
    since: Cell<Instant>,
    /// Part of a head was read that is not complete.
    has_begun: Cell<bool>,
    head: Cell<HeadWatch>,
    is_h2: Cell<bool>,
    /// It idled for too long, and ends unless a request is there already.
    is_leaving: Cell<bool>,
    is_given_up: Cell<bool>,
    /// The last write found the socket's buffer full.
    is_blocked: Cell<bool>,
    /// When each relayed response must have been taken by the client.
    deadlines: RefCell<Vec<Instant>>,
    /// The slots of requests in flight, where these are bounded: as many as are being served, and some that have ended.
    tenures: RefCell<Vec<Weak<Tenure>>>,
    /// A body that waits until what it wrote has left.
    flushing: RefCell<Option<Waker>>,
    has_yielded: Cell<bool>,
    /// Wakes the task of the connection.
    waker: RefCell<Option<Waker>>,
}

impl Connection {
    pub(crate) fn new(peer: SocketAddr, now: Instant) -> Self {
        Self {
            peer,
            busy: Cell::new(0),
            ended: Cell::new(0),
            awaits_head: Cell::new(true),
            since: Cell::new(now),
            has_begun: Cell::new(false),
            head: Cell::new(HeadWatch::InTime),
            is_h2: Cell::new(false),
            is_leaving: Cell::new(false),
            is_given_up: Cell::new(false),
            is_blocked: Cell::new(false),
            deadlines: RefCell::default(),
            tenures: RefCell::default(),
            flushing: RefCell::default(),
            has_yielded: Cell::new(false),
            waker: RefCell::default(),
        }
    }

    pub(crate) fn request_began(&self) {
        self.busy.set(self.busy.get() + 1);
        self.awaits_head.set(false);
        self.has_begun.set(false);
        self.is_leaving.set(false);
    }

    pub(crate) fn request_ended(&self, now: Instant) {
        self.busy.set(self.busy.get() - 1);
        self.ended.set(self.ended.get() + 1);
        self.since.set(now);
    }

    /// Requests whose response was sent or given up.
    pub(crate) fn requests_ended(&self) -> u64 {
        self.ended.get()
    }

    /// Lets the connection's task look at the core's phase, and at whether it was given up.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Notes that a response is relayed, which must be over by `deadline`.
    pub(crate) fn relay_began(&self, deadline: Instant) {
        self.deadlines.borrow_mut().push(deadline);
    }

    /// Notes the end of the relayed response of that deadline.
    pub(crate) fn relay_ended(&self, deadline: Instant) {
        let mut deadlines = self.deadlines.borrow_mut();
        if let Some(index) = deadlines.iter().position(|&other| other == deadline) {
            deadlines.swap_remove(index);
        }
    }

    /// Notes that a request has slots, which it may lose.
    pub(crate) fn watch(&self, tenure: &Rc<Tenure>) {
        let mut tenures = self.tenures.borrow_mut();
        if tenures.len() > 2 * self.busy.get() as usize {
            tenures.retain(|tenure| tenure.strong_count() > 0);
        }
        tenures.push(Rc::downgrade(tenure));
    }

    /// Gives the connection up when its client let a timeout pass. Called about once a second.
    ///
    /// A response whose client does not read is not asked for its next frame, so its own look at the deadline never
    /// comes: here it is noticed, within [`OVERDUE_GRACE`]. So it is with the end of its slots, which is a time ahead of the
    /// end of their lease.
    pub(crate) fn check(&self, now: Instant) {
        let timeout = if self.awaits_head.get() { HEAD_TIMEOUT } else { IDLE_TIMEOUT };
        let is_idle = self.busy.get() == 0 && now.saturating_duration_since(self.since.get()) >= timeout;
        let is_overdue = self.deadlines.borrow().iter().any(|&deadline| deadline + OVERDUE_GRACE <= now);
        let has_lost = self.tenures.borrow().iter().filter_map(Weak::upgrade).any(|tenure| tenure.is_overdue(now));
        if is_idle && self.has_begun.get() && self.head.get() == HeadWatch::InTime {
            // Told first; whoever does not take the answer either is given up next time.
            self.head.set(HeadWatch::Overdue);
            self.wake();
        } else if is_idle && !self.has_begun.get() && !self.is_leaving.replace(true) {
            // A request may have come since events were last looked at, or be on its way: see `is_leaving`.
            self.wake();
        } else if is_idle || is_overdue || has_lost {
            self.give_up();
        }
    }

    /// Whether the connection idled for too long and is to end, unless the kernel holds a request: closing it would reset a
    /// client that did nothing wrong, most likely where this process had no processor for a while and idled for that reason.
    /// Who sends only what is no request is given up a second later. Without a request, HTTP/1.1 ends as if the client had
    /// closed it, and HTTP/2 with a GOAWAY (RFC 9113 §6.8).
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.get()
    }

    /// Has the connection closed as soon as its task runs.
    pub(crate) fn give_up(&self) {
        self.is_given_up.set(true);
        self.wake();
    }

    #[cfg(test)]
    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.get()
    }

    /// Whether the head that is being read is to be refused now, for it took too long.
    pub(crate) fn take_overdue_head(&self) -> bool {
        let is_overdue = self.head.get() == HeadWatch::Overdue;
        if is_overdue {
            self.head.set(HeadWatch::Refused);
        }
        is_overdue
    }

    /// Why the head is refused, where the parser does not know.
    pub(crate) fn refusal(&self) -> Option<GatewayError> {
        (self.head.get() == HeadWatch::Refused).then_some(GatewayError::HeadTimeout)
    }

    /// Ready once the connection had a chance to write what it holds: a turn of its task, with room in the socket.
    pub(crate) fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_yielded.replace(true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.is_blocked.get() {
            self.flushing.replace(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        self.has_yielded.set(false);
        Poll::Ready(())
    }

    /// Bytes came in.
    pub(crate) fn on_read(&self) {
        if self.busy.get() == 0 && !self.is_h2.get() {
            self.has_begun.set(true);
            self.is_leaving.set(false);
        }
        if self.busy.get() == 0 && !self.awaits_head.get() && !self.is_h2.get() {
            self.awaits_head.set(true);
            self.since.set(Instant::now());
        }
    }

    /// Bytes went out, or there was no room for them.
    pub(crate) fn on_write(&self, is_blocked: bool) {
        self.is_blocked.set(is_blocked);
        if !is_blocked && let Some(waker) = self.flushing.take() {
            waker.wake();
        }
    }
}

/// Serves a connection to its end. Errors end it and nothing else.
pub(crate) async fn run(core: Rc<Core>, connection: Rc<Connection>, stream: TcpStream) {
    let mut serving = pin!(serve(core, connection.clone(), stream));
    std::future::poll_fn(|cx| {
        if connection.waker.borrow().is_none() {
            connection.waker.replace(Some(cx.waker().clone()));
        }
        if connection.is_given_up.get() { Poll::Ready(()) } else { serving.as_mut().poll(cx) }
    })
    .await;
}

/// What a handshake and HTTP/2 need is large and of few connections, so it is not part of each one's task.
async fn serve(core: Rc<Core>, connection: Rc<Connection>, stream: TcpStream) {
    let Some(stream) = Box::pin(secure(&core, &connection, stream)).await else { return };
    let Ok((io, is_h2)) = Io::open(stream, core.clone(), connection.clone()).await else { return };
    let ended = match is_h2 {
        true => Box::pin(serve_http2(core, &connection, io)).await,
        false => serve_http1(core, &connection, io).await,
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %connection.peer, %error, "connection ended");
    }
}

/// Shakes hands where clients use TLS.
async fn secure(core: &Core, connection: &Rc<Connection>, stream: TcpStream) -> Option<ByteStream> {
    let Some(acceptor) = &core.shared().acceptor else { return Some(ByteStream::Plain(stream)) };
    let failed = |reason| core.metrics.tls_handshake_failed(reason);
    let shaken = core.handshakes.accept(acceptor, stream, connection, failed).await;
    shaken
        .inspect_err(|reason| {
            failed(reason);
            tracing::debug!(peer = %connection.peer, reason, "no TLS with a client");
        })
        .ok()
}

async fn serve_http1(core: Rc<Core>, connection: &Rc<Connection>, io: Io) -> hyper::Result<()> {
    let mut builder = http1::Builder::new();
    // Slow heads and idle clients are watched by the core, once a second for all connections.
    builder.header_read_timeout(None).max_header_size(HEAD_BYTES_MAX);
    let mut serving = pin!(builder.serve_connection(io, answer_with(&core, connection)));
    let mut is_closing = false;
    std::future::poll_fn(|cx| {
        if !is_closing && core.phase() >= Phase::Closing {
            is_closing = true;
            serving.as_mut().graceful_shutdown();
        }
        serving.as_mut().poll(cx)
    })
    .await
}

async fn serve_http2(core: Rc<Core>, connection: &Rc<Connection>, io: Io) -> hyper::Result<()> {
    connection.is_h2.set(true);
    connection.awaits_head.set(false);
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
        .max_send_buf_size(H2_SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    let mut serving = pin!(builder.serve_connection(io, answer_with(&core, connection)));
    let mut is_closing = false;
    std::future::poll_fn(|cx| {
        if !is_closing && (core.phase() >= Phase::Settling || connection.is_leaving()) {
            is_closing = true;
            serving.as_mut().graceful_shutdown();
        }
        serving.as_mut().poll(cx)
    })
    .await
}

/// The service of one connection. An answer is made in memory of its own, which is free again when its body begins: the
/// connection would keep it for as long as it is open, and clients hold more connections and streams than they ask.
fn answer_with(
    core: &Rc<Core>,
    connection: &Rc<Connection>,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: 'static> + use<> {
    let (core, connection) = (core.clone(), connection.clone());
    service_fn(move |request| {
        let served = Box::pin(service::serve(core.clone(), connection.clone(), request));
        async move { Ok::<_, Infallible>(served.await) }
    })
}

/// Runs HTTP/2 streams as tasks of this core.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn who_is_given_up_when() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        type Act = fn(&Connection, Instant);
        let silent: Act = |_, _| {};
        let busy: Act = |connection, _| connection.request_began();
        let h2: Act = |connection, now| {
            connection.is_h2.set(true);
            connection.request_began();
            connection.request_ended(now);
            connection.on_read();
        };
        let idle: Act = |connection, now| {
            connection.request_began();
            connection.request_ended(now);
        };
        let half_a_head: Act = |connection, now| {
            connection.request_began();
            connection.request_ended(now);
            connection.on_read();
        };
        for (case, act, after, expected) in [
            ("no head yet", silent, HEAD_TIMEOUT - second, false),
            ("no head in time", silent, HEAD_TIMEOUT, true),
            ("idle between requests", idle, HEAD_TIMEOUT, false),
            ("idle too long", idle, IDLE_TIMEOUT, true),
            ("HTTP/2 without a request for as long", h2, IDLE_TIMEOUT, true),
            ("a later head comes slowly", half_a_head, HEAD_TIMEOUT - second, false),
            ("a later head does not come", half_a_head, HEAD_TIMEOUT + second, true),
            ("a request runs", busy, IDLE_TIMEOUT * 10, false),
        ] {
            let connection = Connection::new("127.0.0.1:1".parse().unwrap(), start);
            act(&connection, start);
            connection.check(start + after);
            if connection.has_begun.get() && expected {
                assert!(!connection.is_given_up.get(), "{case}: it is told first");
                assert!(connection.take_overdue_head() && !connection.take_overdue_head(), "{case}: once");
                assert_eq!(connection.refusal(), Some(GatewayError::HeadTimeout), "{case}");
                connection.check(start + after + second);
            } else if expected {
                assert!(
                    !connection.is_given_up.get() && connection.is_leaving(),
                    "{case}: the socket is looked at first"
                );
                connection.check(start + after + second);
            }
            assert_eq!(connection.is_given_up.get(), expected, "{case}");
        }
    }

    #[test]
    fn who_is_leaving_stays_for_a_request() {
        let start = Instant::now();
        let later = start + IDLE_TIMEOUT;
        type Act = fn(&Connection);
        let acts: [(&str, Act); 2] =
            [("bytes of a head", Connection::on_read), ("a request, as by HTTP/2", Connection::request_began)];
        for (case, act) in acts {
            let connection = Connection::new("127.0.0.1:1".parse().unwrap(), start);
            connection.request_began();
            connection.request_ended(start);
            connection.check(later);
            assert!(connection.is_leaving(), "{case}");
            act(&connection);
            connection.check(later + Duration::from_secs(1));
            assert!(!connection.is_leaving() && !connection.is_given_up(), "{case}");
        }
    }
}
