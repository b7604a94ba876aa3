//! The dialing side: connects, greets, opens the pipe.

use std::{io, net::SocketAddr, sync::Arc};

use hyper_util::rt::TokioIo;
use smg_proto::stream::{Frame, peer_client::PeerClient};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use super::{
    HTTP2_FRAME_BYTES, Hello, MESSAGE_BYTES_MAX, PipeError, PipeId, Shared, TRACEPARENT, WINDOW_BYTES,
    connection::{Connection, ConnectionIo},
    keepalive,
    pipe::{self, Outbound},
    secure::ByteStream,
};

/// Connects, greets and reads the pipe to its end.
pub(super) async fn dial(
    shared: Arc<Shared>,
    pipe: PipeId,
    to: SocketAddr,
    traceparent: Option<String>,
    closing: CancellationToken,
) {
    // Cuts the connection unless it becomes a pipe.
    let attempt = shared.kill.child_token();
    let cut = attempt.clone().drop_guard();
    let opened = tokio::select! {
        biased;
        () = closing.cancelled() => None,
        () = shared.kill.cancelled() => None,
        opened = open(&shared, pipe, to, traceparent, &attempt) => Some(opened),
    };
    let (connection, hello, inbound) = match opened {
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            tracing::debug!(target: "smg::mesh::transport", addr = %to, reason = error.reason(), %error, "dialing failed");
            return shared.pipes.finish(pipe, Some(error));
        }
        None => return shared.pipes.finish(pipe, None),
    };
    cut.disarm();
    shared.pipes.open(pipe, hello, connection.identity.clone(), None);
    pipe::read(shared, pipe, inbound, connection, closing).await;
}

async fn open(
    shared: &Arc<Shared>,
    pipe: PipeId,
    to: SocketAddr,
    traceparent: Option<String>,
    attempt: &CancellationToken,
) -> Result<(Arc<Connection>, Hello, Streaming<Frame>), PipeError> {
    let config = &shared.config;
    let stream = tokio::time::timeout(config.connect_timeout, connect(config.bind, to))
        .await
        .map_err(|_| PipeError::ConnectTimeout)?
        .map_err(PipeError::Connect)?;
    keepalive::set(&stream, config);
    let (stream, connection) = Connection::new(to, shared.security.connect(stream).await?, attempt);
    let io = ConnectionIo::dialed(stream, Arc::clone(&connection));
    let greeted = tokio::time::timeout(config.hello_timeout, greet(shared, pipe, traceparent, &connection, io));
    let greeted = greeted.await.map_err(|_| PipeError::HelloTimeout)?;
    let (hello, inbound) = greeted.map_err(|error| connection.verdict_or(error))?;
    Ok((connection, hello, inbound))
}

/// Connects from the IP address that we are bound to, so that both planes and both directions show the same one.
async fn connect(bind: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if !bind.ip().is_unspecified() && bind.is_ipv4() == to.is_ipv4() {
        socket.bind(SocketAddr::new(bind.ip(), 0))?;
    }
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

async fn greet(
    shared: &Arc<Shared>,
    pipe: PipeId,
    traceparent: Option<String>,
    connection: &Connection,
    io: ConnectionIo<ByteStream>,
) -> Result<(Hello, Streaming<Frame>), PipeError> {
    let channel = http2(shared, io).await.map_err(|error| PipeError::Lost(Box::new(error)))?;
    let mut client = PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let mut call = tonic::Request::new(Outbound { shared: Arc::clone(shared), pipe });
    if let Some(traceparent) = traceparent.and_then(|text| text.parse().ok()) {
        call.metadata_mut().insert(TRACEPARENT, traceparent);
    }
    let mut inbound = client.open(call).await.map_err(PipeError::from_refusal)?.into_inner();
    let first = inbound.message().await.map_err(PipeError::from_refusal)?;
    let hello = Hello::of_peer(first, &shared.config.hello.cluster, connection.identity.as_ref())?;
    Ok((hello, inbound))
}

/// An HTTP/2 connection over these bytes and no others: it is never made again.
async fn http2(shared: &Shared, io: ConnectionIo<ByteStream>) -> Result<Channel, tonic::transport::Error> {
    let mut io = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_| {
        let io = io.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { io }
    });
    // The authority is a label: the connection exists already.
    Endpoint::from_static("http://peer")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_keep_alive_interval(shared.config.ping_interval)
        .keep_alive_timeout(shared.config.keepalive_timeout)
        .keep_alive_while_idle(true)
        .executor(Tracked(shared.tasks.clone()))
        .connect_with_connector(connector)
        .await
}

/// Runs what the HTTP/2 client spawns in the plane's tracker.
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
