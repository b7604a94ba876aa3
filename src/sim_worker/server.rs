//! The listener and its connections.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Args, engine::Engine, http::handle, stats::Stats};

/// How long requests in flight may go on after shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Pause after a failed accept: out of descriptors, trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// For the TLS handshake of one connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The worker was ended by a `crash` fault.
#[derive(Debug, thiserror::Error)]
#[error("the worker crashed as it was told to")]
pub struct Crashed;

/// A bound worker; requests wait in the kernel's backlog until [`Server::serve`].
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    engine: Arc<Engine>,
    tls: Option<TlsAcceptor>,
}

impl Server {
    pub(super) async fn bind(args: Args) -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::new(args.host, args.port)).await?;
        let addr = listener.local_addr()?;
        let name = args.name.clone().unwrap_or_else(|| addr.to_string());
        Ok(Self { listener, addr, engine: Arc::new(Engine::new(args, name)), tls: None })
    }

    /// The same over TLS, if there is an acceptor.
    #[must_use]
    pub fn secured(self, tls: Option<TlsAcceptor>) -> Self {
        Self { tls, ..self }
    }

    /// Where it listens, the port as bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// A reader of the statistics that outlives [`Server::serve`].
    pub fn stats(&self) -> impl Fn() -> Stats + Send + Sync + 'static {
        let engine = self.engine.clone();
        move || engine.stats()
    }

    /// Serves until `shutdown`; then listens no more, and gives requests in flight 5 s to end.
    ///
    /// # Errors
    /// [`Crashed`] after a `crash` fault: every connection was cut, nothing was drained.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Crashed> {
        let Self { listener, engine, tls, .. } = self;
        let crash = engine.crash.clone();
        // Its end aborts what is left in it, so no connection outlives this call.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = crash.cancelled() => return Err(Crashed),
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(accept(stream, tls.clone(), engine.clone(), shutdown.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        tokio::select! {
            () = crash.cancelled() => Err(Crashed),
            _ = tokio::time::timeout(DRAIN, drained) => Ok(()),
        }
    }
}

async fn accept(stream: TcpStream, tls: Option<TlsAcceptor>, engine: Arc<Engine>, shutdown: CancellationToken) {
    // Fails only when the peer is gone already, and then serving ends at once.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return serve_connection(stream, engine, shutdown).await };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve_connection(stream, engine, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
        Err(_) => tracing::debug!("handshake took too long"),
    }
}

async fn serve_connection<S>(stream: S, engine: Arc<Engine>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| handle(engine.clone(), request));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(None);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}
