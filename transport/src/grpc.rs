//! The stream plane: ordered, reliable, flow-controlled pipes over gRPC, on the TCP port of the datagram plane's number.
//!
//! A **pipe** is one call of `smg.stream.v1.Peer/Open` on a TCP connection of its own, so that HTTP/2 flow control and a
//! slow reader of one pipe never hold up another. Each direction begins with a [`Hello`]; a foreign cluster, an unknown
//! version or a malformed greeting closes the pipe with a [`PipeError`] that both sides can count. Then frames flow,
//! each with a [`Lane`]; what they mean is not known here.
//!
//! **Nothing waits, everything is bounded.** [`Streams::try_send`] puts a frame into the pipe's queue of
//! [`OUTBOUND_BYTES_MAX`] or says why not. Inbound, each pipe holds at most [`INBOUND_BYTES_MAX`] and one frame until
//! [`StreamEvents`] is drained; then the pipe is not read any further, its HTTP/2 window ([`WINDOW_BYTES`]) fills and the
//! peer's queue with it. Events are given in turn, one from each pipe that has any. A pipe thus costs its sender at most
//! about 1 MiB (one frame where a frame is larger) queued and 1 MiB in encoding, and its reader about 3 MiB.
//!
//! **Dead peers.** After [`StreamConfig::keepalive_interval`] of silence both kernels ask each other (TCP keepalive, RFC 1122
//! §4.2.3.6), and a pipe whose far end answers nothing within [`StreamConfig::keepalive_timeout`], or takes nothing of what
//! was sent for as long as both together, is closed: after some 20 s with the defaults, also when nothing is being sent, and
//! without waking the program while all is well. A kernel answers for a process that hangs, and a middlebox that ends TCP for
//! a peer that is gone. So the dialing side sends an HTTP/2 ping as well after [`StreamConfig::ping_interval`] of silence, the
//! accepting side after one and a half (so that as a rule one of the two does): 65 and 95 s at most. That is for what nobody
//! else notices; an owner that knows sooner closes the pipe. A peer whose process is killed is noticed at once. A peer that
//! answers pings but reads nothing is alive: its pipe stays.
//!
//! **Strangers.** Whatever else connects is dropped when it is no HTTP/2 or has not greeted in time, and at most
//! [`StreamConfig::inbound_pipes_max`] connections are held, greeted or not: without TLS a stranger who keeps them all
//! busy keeps new peers out. Message lengths are checked before memory is reserved. Refused greetings come as a
//! [`StreamEvent::Closed`] that no `Opened` went before; what never got as far is counted in [`StreamStats`].
//!
//! **TLS.** With [`StreamConfig::tls`] a connection is mutual TLS 1.3 or nothing, the greeting must name a node that the
//! peer's certificate names, and both are checked again while the pipe lives ([`StreamConfig::recheck_interval`]). A
//! refused handshake comes as a [`StreamEvent::Closed`] too, at both ends. Without TLS peers are not authenticated.
//!
//! Every task runs in a tracker that [`Streams::shutdown`] waits for.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use smg_certs::Material;
use tokio::runtime::Handle;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

mod accept;
mod connection;
mod dial;
mod event;
mod hello;
mod keepalive;
mod pipe;
mod pipes;
mod secure;

pub use event::{Lane, PipeError, PipeId, PipeSendError, StreamEvent};
pub use hello::{CLUSTER_BYTES_MAX, Hello, NODE_BYTES_MAX, PROTOCOL_VERSION};
pub use pipes::{INBOUND_BYTES_MAX, OUTBOUND_BYTES_MAX};

use pipes::Pipes;
use secure::Security;

use crate::tls::RECHECK_INTERVAL;

/// Largest payload of a frame, in bytes: 4 MiB.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Largest encoded message: a full frame and the fields around its payload.
const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX + 64;

/// HTTP/2 window of a pipe and of its connection, in bytes: 100 MB/s at a round trip of 20 ms.
pub const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Largest HTTP/2 frame that we let a peer send, in bytes. The default of 16 KiB costs throughput.
const HTTP2_FRAME_BYTES: u32 = 128 * 1024;

/// The metadata that carries the trace context of who dials (W3C Trace Context §3.2).
const TRACEPARENT: &str = "traceparent";

/// How long a closing pipe may take to flush what is queued and to hear the peer's end.
const LINGER: Duration = Duration::from_secs(1);

/// How the stream plane listens, greets and gives up.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Address to listen on; port 0 takes a free one. Unless it is a wildcard, pipes are dialed from its IP address too.
    pub bind: SocketAddr,
    /// What we say of ourselves on every pipe.
    pub hello: Hello,
    /// What to show to peers and whom to believe; none: no TLS. Default none.
    pub tls: Option<Arc<Material>>,
    /// How often the peer of an open pipe is checked again; default [`RECHECK_INTERVAL`]. Means nothing without TLS.
    pub recheck_interval: Duration,
    /// Connections held at one time that others opened; more are dropped at once. Default 1024, one per node of a large
    /// cluster.
    pub inbound_pipes_max: usize,
    /// Time for a TCP connection to a peer to be made; default 3 s, which leaves room for one lost SYN (RFC 6298 §2).
    pub connect_timeout: Duration,
    /// Time from a connection until the peer's greeting has come; default 5 s.
    pub hello_timeout: Duration,
    /// Silence on a connection after which the kernels ask each other, 1 s at least; default 15 s, at which idle pipes to 19
    /// peers cost less than 1 kB/s.
    pub keepalive_interval: Duration,
    /// Time for the answer to a kernel's question, 1 s at least, or to a ping; default 5 s.
    pub keepalive_timeout: Duration,
    /// Silence on a pipe after which its dialing side sends an HTTP/2 ping; default 60 s.
    pub ping_interval: Duration,
}

impl StreamConfig {
    /// The defaults, for this address and greeting.
    #[must_use]
    pub fn new(bind: SocketAddr, hello: Hello) -> Self {
        Self {
            bind,
            hello,
            tls: None,
            recheck_interval: RECHECK_INTERVAL,
            inbound_pipes_max: 1024,
            connect_timeout: Duration::from_secs(3),
            hello_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(60),
        }
    }
}

/// What came to the port without becoming a pipe, since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StreamStats {
    /// Connections dropped because [`StreamConfig::inbound_pipes_max`] were open.
    pub connections_refused: u64,
    /// Connections that ended, or were ended, before a pipe was opened on them: scans, garbage, refused greetings.
    pub connections_unopened: u64,
}

/// The sending half of the stream plane; clones are the same plane.
#[derive(Clone)]
pub struct Streams {
    shared: Arc<Shared>,
}

/// The receiving half of the stream plane. Dropping it cuts every pipe and stops listening.
pub struct StreamEvents {
    shared: Arc<Shared>,
    _kill: DropGuard,
}

/// What every task of one plane holds.
struct Shared {
    config: StreamConfig,
    local_addr: SocketAddr,
    pipes: Pipes,
    security: Security,
    tasks: TaskTracker,
    /// Where all of them run, whoever dials.
    runtime: Handle,
    /// Stops listening and closes every pipe in order.
    closing: CancellationToken,
    /// Cuts every connection.
    kill: CancellationToken,
    connections_refused: AtomicU64,
    connections_unopened: Arc<AtomicU64>,
}

impl Streams {
    /// Starts listening; must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound (`AddrInUse` when it is taken), or our own greeting breaks its limits
    /// (`InvalidInput`). Nothing is left open.
    pub fn bind(config: StreamConfig) -> io::Result<(Self, StreamEvents)> {
        config.hello.check().map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        let listener = accept::listen(config.bind)?;
        let shared = Arc::new(Shared {
            local_addr: listener.local_addr()?,
            pipes: Pipes::new(&config),
            security: Security::new(&config),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            closing: CancellationToken::new(),
            kill: CancellationToken::new(),
            connections_refused: AtomicU64::new(0),
            connections_unopened: Arc::new(AtomicU64::new(0)),
            config,
        });
        shared.tasks.spawn_on(accept::serve(Arc::clone(&shared), listener), &shared.runtime);
        let events = StreamEvents { shared: Arc::clone(&shared), _kill: shared.kill.clone().drop_guard() };
        Ok((Self { shared }, events))
    }

    /// The bound local address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr
    }

    /// Begins a pipe to a peer and returns at once.
    ///
    /// The outcome is an event: [`StreamEvent::Opened`], or [`StreamEvent::Closed`] after at most
    /// [`StreamConfig::connect_timeout`] and [`StreamConfig::hello_timeout`]. The caller bounds how many it dials.
    pub fn dial(&self, to: SocketAddr) -> PipeId {
        self.dial_within(to, None)
    }

    /// As [`Streams::dial`], and tells the far end's owner a trace context: the value of a `traceparent` (W3C Trace Context
    /// §3.2), which goes along in the metadata of the call. What is no header value is left out.
    pub fn dial_within(&self, to: SocketAddr, traceparent: Option<String>) -> PipeId {
        let shared = &self.shared;
        let (pipe, closing) = shared.pipes.begin_dialed(to);
        if shared.closing.is_cancelled() {
            shared.pipes.finish(pipe, Some(PipeError::ShutDown));
        } else {
            let dial = dial::dial(Arc::clone(shared), pipe, to, traceparent, closing);
            shared.tasks.spawn_on(dial, &shared.runtime);
        }
        pipe
    }

    /// Queues one frame without waiting. Order within a pipe is kept across lanes.
    ///
    /// # Errors
    /// See [`PipeSendError`]; the frame is not queued and the pipe is as before.
    pub fn try_send(&self, pipe: PipeId, lane: Lane, payload: Bytes) -> Result<(), PipeSendError> {
        self.shared.pipes.try_send(pipe, lane, payload)
    }

    /// True when the pipe is open and its queue at most half full, so that a frame of up to half of
    /// [`OUTBOUND_BYTES_MAX`], some bytes of overhead included, is taken. After false on an open pipe, [`StreamEvent::Writable`] follows.
    #[must_use]
    pub fn has_room(&self, pipe: PipeId) -> bool {
        self.shared.pipes.has_room(pipe)
    }

    /// Ends a pipe: what is queued is flushed if the peer takes it within a second, what arrives is discarded, then
    /// [`StreamEvent::Closed`] comes without an error. Unknown and closed pipes are ignored. The reason is logged.
    pub fn close(&self, pipe: PipeId, reason: &'static str) {
        tracing::debug!(target: "smg::mesh::transport", pipe = pipe.0, reason, "pipe closed here");
        self.shared.pipes.close(pipe);
    }

    /// What came to the port without becoming a pipe.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        StreamStats {
            connections_refused: self.shared.connections_refused.load(Ordering::Relaxed),
            connections_unopened: self.shared.connections_unopened.load(Ordering::Relaxed),
        }
    }

    /// Stops listening, closes every pipe as [`Streams::close`] does, and waits for every task: at most about 2 s.
    ///
    /// Events still come meanwhile and afterwards, the last of each pipe being its [`StreamEvent::Closed`]; then
    /// [`StreamEvents::next`] gives none.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        shared.closing.cancel();
        shared.pipes.close_all();
        shared.tasks.close();
        if tokio::time::timeout(2 * LINGER, shared.tasks.wait()).await.is_err() {
            shared.kill.cancel();
            shared.tasks.wait().await;
        }
        shared.pipes.shut_down();
    }
}

impl StreamEvents {
    /// Waits for the next event; none once the plane is shut down and everything has been said. Cancel safe.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Gives the next event, or registers the task to be woken.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        self.shared.pipes.poll_event(cx)
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("local_addr", &self.shared.local_addr).finish_non_exhaustive()
    }
}

impl fmt::Debug for StreamEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamEvents").field("local_addr", &self.shared.local_addr).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
