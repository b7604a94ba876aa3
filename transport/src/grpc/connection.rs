//! One TCP connection under one pipe: can be cut, and gives up on strangers.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{
    PipeError,
    secure::{ByteStream, Secured},
};
use crate::{PeerIdentity, shares::Share, tls};

/// What is known of a connection; shared by its I/O, its call and its pipe.
#[derive(Debug)]
pub(super) struct Connection {
    /// The remote address.
    pub(super) addr: SocketAddr,
    /// Who the peer is by its certificate; none without TLS.
    pub(super) identity: Option<PeerIdentity>,
    /// The peer's certificate and its intermediates; empty without TLS.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Cuts the connection.
    pub(super) kill: CancellationToken,
    /// Cancelled when the connection is gone.
    pub(super) gone: CancellationToken,
    /// Why the peer refused our certificate: it does so when the connection is made already in our eyes.
    refusal: OnceLock<&'static str>,
    /// A call was made; a connection carries one.
    is_called: AtomicBool,
    /// The pipe is open: the deadline for strangers no longer applies.
    is_open: AtomicBool,
}

/// The bytes of a connection. `S` is TCP, or TLS over it.
pub(super) struct ConnectionIo<S> {
    stream: S,
    connection: Arc<Connection>,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    stranger: Option<Stranger>,
}

/// What a connection that somebody else opened is held by until its pipe is open.
struct Stranger {
    deadline: Pin<Box<Sleep>>,
    /// Counts the connection if it ends without a pipe.
    unopened: Arc<AtomicU64>,
    held: Held,
}

/// What an accepted connection takes of what is bounded.
pub(super) struct Held {
    /// Its place among the connections that may be held; kept to the end.
    pub(super) _place: OwnedSemaphorePermit,
    /// Its part in what its address may have unopened.
    pub(super) share: Option<Share>,
}

impl Connection {
    pub(super) fn new(addr: SocketAddr, secured: Secured, plane: &CancellationToken) -> (ByteStream, Arc<Self>) {
        let connection = Arc::new(Self {
            addr,
            identity: secured.identity,
            chain: secured.chain,
            kill: plane.child_token(),
            gone: CancellationToken::new(),
            refusal: OnceLock::new(),
            is_called: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
        });
        (secured.stream, connection)
    }

    /// True for the first call on this connection.
    pub(super) fn claim(&self) -> bool {
        !self.is_called.swap(true, Ordering::Relaxed)
    }

    /// What ended the connection: TLS' own verdict where there was one, else this error.
    pub(super) fn verdict_or(&self, error: PipeError) -> PipeError {
        match (self.refusal.get(), error) {
            (Some(reason), PipeError::Lost(_)) => PipeError::Refused(reason),
            (_, error) => error,
        }
    }

    pub(super) fn set_open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }
}

impl<S> ConnectionIo<S> {
    /// A connection that we opened.
    pub(super) fn dialed(stream: S, connection: Arc<Connection>) -> Self {
        let killed = Box::pin(connection.kill.clone().cancelled_owned());
        Self { stream, connection, killed, stranger: None }
    }

    /// A connection that somebody opened, cut at the deadline unless its pipe is open by then.
    pub(super) fn accepted(
        stream: S,
        connection: Arc<Connection>,
        deadline: Instant,
        held: Held,
        unopened: Arc<AtomicU64>,
    ) -> Self {
        let deadline = Box::pin(tokio::time::sleep_until(deadline));
        let mut io = Self::dialed(stream, connection);
        io.stranger = Some(Stranger { deadline, unopened, held });
        io
    }

    /// Says whether the connection is to be cut, and wakes the task when it is. Writing asks too: HTTP/2 need not read
    /// while what it must write is stuck.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.killed.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Some(stranger) = &mut self.stranger {
            if self.connection.is_open.load(Ordering::Relaxed) {
                stranger.held.share = None;
            } else if stranger.deadline.as_mut().poll(cx).is_ready() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }
}

impl<S> Drop for ConnectionIo<S> {
    fn drop(&mut self) {
        self.connection.gone.cancel();
        if let Some(stranger) = &self.stranger
            && !self.connection.is_open.load(Ordering::Relaxed)
        {
            stranger.unopened.fetch_add(1, Ordering::Relaxed);
            let addr = self.connection.addr;
            tracing::debug!(target: "smg::mesh::transport", %addr, "connection ended without a pipe");
        }
    }
}

impl<S> Connected for ConnectionIo<S> {
    type ConnectInfo = Arc<Connection>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.connection)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ConnectionIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read
            && let Some(reason) = tls::verdict(error)
        {
            // Set once; later errors only repeat it.
            let _ = self.connection.refusal.set(reason);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ConnectionIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.kill.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
