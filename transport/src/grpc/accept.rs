//! The listening side: accepts connections, checks greetings, opens pipes.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use smg_proto::stream::{
    Frame,
    peer_server::{Peer, PeerServer},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{
    HTTP2_FRAME_BYTES, Hello, LINGER, MESSAGE_BYTES_MAX, PipeError, Shared, TRACEPARENT, WINDOW_BYTES,
    connection::{Connection, ConnectionIo, Held},
    keepalive,
    pipe::{self, Outbound},
    secure::ByteStream,
};
use crate::shares::{Share, Shares};

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;

/// Largest block of HTTP/2 headers that is read, in bytes; ours have some hundred.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// A trace context has 55 bytes in its version 00; later versions may have more (W3C Trace Context §3.2.4).
const TRACEPARENT_BYTES_MAX: usize = 256;

/// Pause after a failed accept, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the listening socket; `::` takes both families.
pub(super) fn listen(addr: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if let IpAddr::V6(ip) = addr.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    // A restarted node takes its port back while old connections are in TIME_WAIT; a live listener still refuses it.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves until the plane closes, then waits for the connections to end.
pub(super) async fn serve(shared: Arc<Shared>, listener: StdListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(target: "smg::mesh::transport", %error, "listener failed");
            return;
        }
    };
    let peer = PeerServer::new(Accepting { shared: Arc::clone(&shared) })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let served = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(1)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(shared.config.ping_interval * 3 / 2))
        .http2_keepalive_timeout(Some(shared.config.keepalive_timeout))
        .serve_with_incoming_shutdown(peer, incoming(Arc::clone(&shared), listener), stopped(&shared));
    if let Err(error) = served.await {
        tracing::error!(target: "smg::mesh::transport", %error, "listener failed");
    }
}

async fn stopped(shared: &Shared) {
    tokio::select! {
        () = shared.closing.cancelled() => {}
        () = shared.kill.cancelled() => {}
    }
}

/// Connections from one address, for IPv6 from one /64, that have not become pipes yet: more are dropped, so that nobody who
/// is let in nowhere can take the places of all.
pub(super) const UNOPENED_PER_ADDR_MAX: usize = 64;

/// Accepted connections, each with its place among those that may be held. Hands are shaken side by side.
fn incoming(shared: Arc<Shared>, listener: TcpListener) -> impl Stream<Item = io::Result<ConnectionIo<ByteStream>>> {
    let places = Arc::new(Semaphore::new(shared.config.inbound_pipes_max));
    let handshakes_max = shared.config.inbound_pipes_max;
    let shares = Shares::new(UNOPENED_PER_ADDR_MAX);
    let admitted =
        stream::unfold((shared, listener, places, shares), |(shared, listener, places, shares)| async move {
            loop {
                match listener.accept().await {
                    Ok((stream, addr)) => {
                        if let Some(admitted) = admit(&shared, &places, &shares, stream, addr) {
                            return Some((secure(shared.clone(), admitted), (shared, listener, places, shares)));
                        }
                    }
                    Err(error) => {
                        tracing::debug!(target: "smg::mesh::transport", %error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    admitted.buffer_unordered(handshakes_max).filter_map(|secured| std::future::ready(secured.map(Ok)))
}

/// A connection that may be held.
struct Admitted {
    stream: TcpStream,
    addr: SocketAddr,
    permit: OwnedSemaphorePermit,
    share: Share,
}

fn admit(
    shared: &Shared,
    places: &Arc<Semaphore>,
    shares: &Shares,
    stream: TcpStream,
    addr: SocketAddr,
) -> Option<Admitted> {
    let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let (Some(share), Ok(permit)) = (shares.take(addr.ip()), Arc::clone(places).try_acquire_owned()) else {
        shared.connections_refused.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "smg::mesh::transport", %addr, reason = "too_many_connections", "connection dropped");
        return None;
    };
    // Fails only where the peer has already gone.
    let _ = stream.set_nodelay(true);
    keepalive::set(&stream, &shared.config);
    Some(Admitted { stream, addr, permit, share })
}

/// The connection once hands are shaken; a refused peer is reported as a pipe that closed.
async fn secure(shared: Arc<Shared>, admitted: Admitted) -> Option<ConnectionIo<ByteStream>> {
    let Admitted { stream, addr, permit, share } = admitted;
    match shared.security.accept(stream).await {
        Ok(secured) => {
            let (stream, connection) = Connection::new(addr, secured, &shared.kill);
            // A refused greeting may linger, so that the refusal is read before the connection is cut.
            let deadline = Instant::now() + shared.config.hello_timeout + LINGER;
            let unopened = Arc::clone(&shared.connections_unopened);
            Some(ConnectionIo::accepted(
                stream,
                connection,
                deadline,
                Held { _place: permit, share: Some(share) },
                unopened,
            ))
        }
        Err(error) => {
            shared.connections_unopened.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(target: "smg::mesh::transport", %addr, reason = error.reason(), "handshake refused");
            if let Some((id, _)) = shared.pipes.begin_accepted(addr) {
                shared.pipes.finish(id, Some(error));
            }
            None
        }
    }
}

/// The gRPC service.
struct Accepting {
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Peer for Accepting {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn open(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::OpenStream>, Status> {
        let shared = &self.shared;
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let Some(connection) = connection.filter(|connection| connection.claim()) else {
            return Err(Status::resource_exhausted("one pipe per connection"));
        };
        let traceparent = traceparent(request.metadata());
        let mut inbound = request.into_inner();
        let greeting = greeting(shared, &connection, &mut inbound).await;

        // From here to the end nothing awaits: a call that is dropped leaves no pipe behind.
        let Some((id, closing)) = shared.pipes.begin_accepted(connection.addr) else {
            shared.connections_refused.fetch_add(1, Ordering::Relaxed);
            return Err(PipeError::TooManyPipes.to_refusal());
        };
        let hello = match greeting {
            _ if shared.closing.is_cancelled() => return Err(refuse(shared, id, PipeError::ShutDown)),
            Err(error) => return Err(refuse(shared, id, error)),
            Ok(hello) => hello,
        };
        connection.set_open();
        shared.pipes.open(id, hello, connection.identity.clone(), traceparent);
        shared.tasks.spawn(pipe::read(Arc::clone(shared), id, inbound, connection, closing));
        let outbound = Outbound { shared: Arc::clone(shared), pipe: id };
        Ok(Response::new(Box::pin(outbound.map(Ok))))
    }
}

/// What the caller says of its trace, where that is short text.
fn traceparent(metadata: &tonic::metadata::MetadataMap) -> Option<String> {
    let text = metadata.get(TRACEPARENT)?.to_str().ok()?;
    (text.len() <= TRACEPARENT_BYTES_MAX).then(|| text.to_owned())
}

async fn greeting(
    shared: &Shared,
    connection: &Connection,
    inbound: &mut Streaming<Frame>,
) -> Result<Hello, PipeError> {
    let first = tokio::time::timeout(shared.config.hello_timeout, inbound.message());
    let frame = first.await.map_err(|_| PipeError::HelloTimeout)?.map_err(PipeError::from_status)?;
    Hello::of_peer(frame, &shared.config.hello.cluster, connection.identity.as_ref())
}

fn refuse(shared: &Shared, id: super::PipeId, error: PipeError) -> Status {
    tracing::debug!(target: "smg::mesh::transport", pipe = id.0, reason = error.reason(), "greeting refused");
    let status = error.to_refusal();
    shared.pipes.finish(id, Some(error));
    status
}
