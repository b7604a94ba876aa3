//! Datagrams over QUIC (RFC 9221): UDP with mutual TLS 1.3, so that every datagram has an identity.
//!
//! - **Connections** are made by the first datagram to an address, which waits with up to [`QUEUE_MAX`] others while
//!   hands are shaken. The newest authenticated connection with an address carries what is sent there; a connection that
//!   answers nothing for [`SILENCE_MAX`] is replaced, as after a restart of the peer, and carries on what it can until then.
//!   Of two that were made within [`TOGETHER_MAX`], as when both sides dial, both sides choose the same. At most [`PEERS_MAX`] addresses
//!   are held, the least used one goes first and its connections with it; of one address there are at most four, and an
//!   identity has eight addresses for each name that its certificate lists. A connection without traffic ends after
//!   [`IDLE_MAX`].
//! - **Strangers.** Beyond [`UNPROVEN_MAX`] handshakes under way an address must prove that it can receive (Retry, RFC
//!   9000 §8.1.2), beyond [`HANDSHAKES_MAX`], or [`HANDSHAKES_PER_ADDR_MAX`] of its own, it is ignored. What is refused comes as [`Incoming::Rejected`], plain and
//!   replayed packets included. An address that refused us, or that we refused, is left alone for [`QuicConfig::refused_for`];
//!   a peer that the owner excludes at its address ([`Transport::exclude`]) is not let in there for as long, and is told so
//!   at the end of its handshake: before that nobody knows who it is, for an address may be borrowed.
//! - **MTU.** UDP payloads have at most [`UDP_BYTES`], so datagrams of [`DATAGRAM_BYTES_MAX`] always fit.
//! - **Waking.** Acknowledgements and other timers of QUIC wait for each other, and nothing waits for a congestion window;
//!   `pace.rs` says why. A datagram goes out, and comes in, without a thread but the owner's waking.
//! - **Not used:** 0-RTT, resumption, migration, streams. Names are not sent in clear.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls_pki_types::CertificateDer;
use smg_certs::Material;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};

use crate::{
    Incoming, PeerIdentity, Received, SendError, Transport,
    shares::Shares,
    tls::{self, ALPN_DATAGRAMS},
    udp::{self, DATAGRAM_BYTES_MAX, canonical},
};

mod pace;
mod peers;
mod watch;

use pace::{Pace, Steady};
use peers::{EXCLUDED, Peers, Sending};
use watch::{Ids, Tally, VERSION, Watched};

/// Size of UDP payloads in bytes: a full datagram and what QUIC adds (RFC 9000 §17.3, RFC 9221 §4).
pub const UDP_BYTES: u16 = 1242;

/// Datagrams that wait for one handshake; more push out the oldest.
pub const QUEUE_MAX: usize = 16;

/// Addresses that are remembered.
pub const PEERS_MAX: usize = 2048;

/// A connection without traffic ends after this.
pub const IDLE_MAX: Duration = Duration::from_secs(30);

/// A connection on which a datagram brought no sign of life for so long is given up.
pub const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Connections between the same two that are made within this time, about a long round trip, were dialed by both at once. One
/// that is made later is of a peer that has started anew, and the old one may be dead.
pub const TOGETHER_MAX: Duration = Duration::from_millis(150);

/// Of two such connections the chosen one is given up for the other after so long without an answer, where something comes on
/// the other: a peer may start anew within that time too.
pub const TWIN_SILENCE_MAX: Duration = Duration::from_millis(250);

/// Handshakes of strangers under way, beyond which an address must prove itself.
pub const UNPROVEN_MAX: usize = 16;

/// Handshakes of strangers under way at most.
pub const HANDSHAKES_MAX: usize = 128;

/// Handshakes under way with one address that has proven itself, for IPv6 with one /64: so nobody takes the places of all
/// who has few addresses. More are ignored, and tried again by the other side.
pub const HANDSHAKES_PER_ADDR_MAX: usize = 16;

/// Time for one handshake.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(3);

/// An address that was refused is left alone for this long, unless configured otherwise.
pub const REFUSED_FOR: Duration = Duration::from_secs(5);

/// Refusals and the like that wait for the reader; what finds no room is lost.
const NEWS_MAX: usize = 4096;

/// New connections that wait for the reader; further ones are read later.
const NEW_MAX: usize = 64;

/// Bytes that one connection keeps for sending and for its reader, each; what finds no room pushes out the oldest.
const BUFFER_BYTES: usize = 256 * 1024;

/// What the datagrams are protected by, and its times.
#[derive(Clone, Debug)]
pub struct QuicConfig {
    /// What to show to peers, and whom to believe.
    pub material: Arc<Material>,
    /// How often the peer of a connection is checked again; default [`RECHECK_INTERVAL`](tls::RECHECK_INTERVAL).
    pub recheck_interval: Duration,
    /// How long an address that was refused is left alone; default [`REFUSED_FOR`].
    pub refused_for: Duration,
    /// Where hands are shaken, so that the cryptography of strangers holds up nobody; default the runtime of the transport.
    pub handshakes: Option<Handle>,
}

impl QuicConfig {
    /// The defaults, for this material.
    #[must_use]
    pub fn new(material: Arc<Material>) -> Self {
        Self { material, recheck_interval: tls::RECHECK_INTERVAL, refused_for: REFUSED_FOR, handshakes: None }
    }
}

/// Datagrams over QUIC. See the [module](self) for what it promises. Must be used within a tokio runtime.
pub struct QuicTransport {
    shared: Arc<Shared>,
    inbox: Mutex<Inbox>,
}

/// What there is to read. Whoever polls the transport reads the connections itself: a task for each that handed over
/// what it read would be one more that has to wake for each datagram, and the runtime then wakes another thread as well.
struct Inbox {
    news: mpsc::Receiver<Incoming>,
    new: mpsc::Receiver<Reader>,
    /// A read under way for each connection, until it ends.
    reads: FuturesUnordered<BoxFuture<'static, Option<(Reader, Bytes)>>>,
}

/// A connection that is read.
struct Reader {
    at: SocketAddr,
    connection: Connection,
    identity: PeerIdentity,
}

struct Shared {
    endpoint: Endpoint,
    client: quinn::ClientConfig,
    config: QuicConfig,
    handshakes: Handle,
    local_addr: SocketAddr,
    peers: Mutex<Peers>,
    news: mpsc::Sender<Incoming>,
    readers: mpsc::Sender<Reader>,
    tally: Arc<Tally>,
    /// For handshakes of strangers.
    places: Arc<Semaphore>,
}

impl QuicTransport {
    /// Binds a socket; must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound (in use, not local, family not supported). Nothing is left open.
    pub fn bind(addr: SocketAddr, config: QuicConfig) -> io::Result<Self> {
        let material = &config.material;
        let server = QuicServerConfig::try_from(material.server_config(&[ALPN_DATAGRAMS])).map_err(io::Error::other)?;
        let client = QuicClientConfig::try_from(material.client_config(&[ALPN_DATAGRAMS])).map_err(io::Error::other)?;
        let transport = Arc::new(transport_config());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(transport.clone()).migration(false).max_incoming(4 * HANDSHAKES_MAX);
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        client.transport_config(transport);

        let socket = udp::socket(addr)?;
        socket.bind(&addr.into())?;
        let ids = Ids::new();
        let tally = Arc::new(Tally::new(ids));
        let socket = Arc::new(Watched::new(socket.into(), tally.clone())?);
        let pace = Arc::new(Pace::new(Handle::current()));
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config(ids), Some(server), socket, pace.clone())?;
        let handshakes = config.handshakes.clone().unwrap_or_else(Handle::current);
        pace.shake_hands_on(handshakes.clone());
        let (news, told) = mpsc::channel(NEWS_MAX);
        let (readers, new) = mpsc::channel(NEW_MAX);
        let local_addr = endpoint.local_addr()?;
        let peers = Mutex::new(Peers::new());
        let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let shared =
            Arc::new(Shared { endpoint, client, config, handshakes, local_addr, peers, news, readers, tally, places });
        shared.handshakes.spawn(accept(shared.clone()));
        let inbox = Inbox { news: told, new, reads: FuturesUnordered::new() };
        Ok(Self { shared, inbox: Mutex::new(inbox) })
    }
}

/// The fixed bit is never greased (RFC 9287), so that plain datagrams can be told.
fn endpoint_config(ids: Ids) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.cid_generator(move || Box::new(ids.generator())).supported_versions(vec![VERSION]).grease_quic_bit(false);
    config
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_MAX).expect("30 s fit")))
        .initial_mtu(UDP_BYTES)
        .min_mtu(UDP_BYTES)
        .mtu_discovery_config(None)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(BUFFER_BYTES))
        .datagram_send_buffer_size(BUFFER_BYTES)
        .congestion_controller_factory(Arc::new(Steady))
        .ack_frequency_config(Some(pace::acknowledgements()))
        // Peers are near: the first retransmission of a handshake must not wait the 1 s of the default.
        .initial_rtt(Duration::from_millis(100));
    config
}

impl Transport for QuicTransport {
    fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr
    }

    fn max_datagram_bytes(&self, _peer: SocketAddr) -> usize {
        DATAGRAM_BYTES_MAX
    }

    fn try_send(&self, peer: SocketAddr, payload: &[u8]) -> Result<(), SendError> {
        if payload.len() > DATAGRAM_BYTES_MAX {
            return Err(SendError::TooLarge { len: payload.len(), max: DATAGRAM_BYTES_MAX });
        }
        self.shared.send(canonical(peer), Bytes::copy_from_slice(payload))
    }

    fn exclude(&self, peer: SocketAddr, identity: &PeerIdentity) {
        let until = self.shared.pause();
        self.shared.peers().exclude(Instant::now(), canonical(peer), identity, until);
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Incoming>> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Poll::Ready(incoming) = inbox.poll(cx) {
            return Poll::Ready(Ok(incoming));
        }
        match self.shared.tally.poll_next(cx.waker()) {
            Some(Ok((reason, from, times))) => Poll::Ready(Ok(Incoming::Rejected { from, reason, times })),
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => Poll::Pending,
        }
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.shared.endpoint.close(VarInt::from_u32(0), b"");
        self.shared.peers().clear();
    }
}

impl fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicTransport").field("local_addr", &self.shared.local_addr).finish_non_exhaustive()
    }
}

impl Inbox {
    /// The next thing from any connection.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        if let Poll::Ready(Some(news)) = self.news.poll_recv(cx) {
            return Poll::Ready(news);
        }
        while let Poll::Ready(Some(reader)) = self.new.poll_recv(cx) {
            self.reads.push(Box::pin(reader.read()));
        }
        while let Poll::Ready(Some(read)) = self.reads.poll_next_unpin(cx) {
            let Some((reader, payload)) = read else { continue };
            let received = Received { from: reader.at, identity: Some(reader.identity.clone()), payload };
            self.reads.push(Box::pin(reader.read()));
            return Poll::Ready(Incoming::Datagram(received));
        }
        Poll::Pending
    }
}

impl Reader {
    /// The next datagram; none when the connection has ended. What still waits when it is closed on this side, as when its
    /// peer is trusted no more, is not read.
    async fn read(self) -> Option<(Self, Bytes)> {
        let payload = self.connection.read_datagram().await.ok()?;
        let is_over = matches!(self.connection.close_reason(), Some(ConnectionError::LocallyClosed));
        (!is_over).then_some((self, payload))
    }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(self: &Arc<Self>, to: SocketAddr, payload: Bytes) -> Result<(), SendError> {
        let now = Instant::now();
        let mut peers = self.peers();
        match peers.send(now, to, payload) {
            Sending::Done(outcome) => outcome,
            Sending::Dial(payload) => {
                let dialing = self.endpoint.connect_with(self.client.clone(), to, UNSENT_NAME).map_err(unreachable)?;
                peers.dialing(now, to, payload);
                self.handshakes.spawn(dial(self.clone(), to, dialing));
                Ok(())
            }
        }
    }

    /// When an address that is refused now may be tried again.
    fn pause(&self) -> Instant {
        Instant::now() + self.config.refused_for
    }

    /// Hands something to the reader; lost when it does not read.
    fn tell(&self, incoming: Incoming) {
        let _ = self.news.try_send(incoming);
    }

    fn reject(&self, from: SocketAddr, reason: &'static str) {
        tracing::debug!(target: "smg::mesh::transport", addr = %from, reason, "datagram peer refused");
        self.tell(Incoming::Rejected { from, reason, times: 1 });
    }
}

async fn accept(shared: Arc<Shared>) {
    let endpoint = shared.endpoint.clone();
    let (places, shares) = (shared.places.clone(), Shares::new(HANDSHAKES_PER_ADDR_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        let under_way = HANDSHAKES_MAX - places.available_permits();
        if under_way > UNPROVEN_MAX && incoming.may_retry() {
            // Only an address that is proven already may not be asked.
            let _ = incoming.retry();
            continue;
        }
        let from = canonical(incoming.remote_address());
        // What is not proven may be borrowed, and takes nothing from its owner.
        let share = incoming.remote_address_validated().then(|| shares.take(from.ip()));
        if matches!(share, Some(None)) {
            incoming.ignore();
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            let shaken = match incoming.accept() {
                Ok(connecting) => shake(connecting).await,
                Err(error) => Err(error),
            };
            drop((place, share));
            match shaken {
                Ok(connection) => serve(&shared, from, connection).await,
                Err(error) => {
                    if let Some(reason) = refusal(&error) {
                        shared.reject(from, reason);
                    }
                }
            }
        });
    }
}

async fn dial(shared: Arc<Shared>, to: SocketAddr, connecting: quinn::Connecting) {
    match shake(connecting).await {
        Ok(connection) => serve(&shared, to, connection).await,
        Err(error) => {
            let reason = refusal(&error);
            let refused_until = reason.map(|_| shared.pause());
            if shared.peers().undialed(Instant::now(), to, refused_until) {
                shared.tell(Incoming::Unreachable(to));
            }
            if let Some(reason) = reason {
                shared.reject(to, reason);
            }
        }
    }
}

async fn shake(connecting: quinn::Connecting) -> Result<Connection, ConnectionError> {
    tokio::time::timeout(HANDSHAKE_MAX, connecting).await.unwrap_or(Err(ConnectionError::TimedOut))
}

/// Has a connection read until it ends.
async fn serve(shared: &Shared, at: SocketAddr, connection: Connection) {
    let chain = chain(&connection);
    let Some(identity) = tls::identity(&shared.config.material, &chain) else {
        connection.close(VarInt::from_u32(1), b"");
        return shared.reject(at, "bad_certificate");
    };
    if !shared.peers().opened(Instant::now(), at, &connection, &identity) {
        connection.close(EXCLUDED, b"");
        return shared.reject(at, "excluded");
    }
    let error = tokio::select! {
        error = ended(shared, at, &connection, &identity) => error,
        reason = tls::until_distrusted(&shared.config.material, &chain, &identity, shared.config.recheck_interval) => {
            connection.close(VarInt::from_u32(1), b"");
            shared.reject(at, reason);
            ConnectionError::LocallyClosed
        }
    };
    shared.peers().closed(at, &connection);
    // The far end refuses our certificate only after we have taken the connection for made.
    if let Some(reason) = refusal(&error) {
        shared.peers().refused(Instant::now(), at, &identity, shared.pause());
        shared.reject(at, reason);
    } else if let ConnectionError::ApplicationClosed(_) | ConnectionError::Reset = error {
        shared.tell(Incoming::Unreachable(at));
    }
}

/// Hands a connection to the reader and waits for its end.
async fn ended(shared: &Shared, at: SocketAddr, connection: &Connection, identity: &PeerIdentity) -> ConnectionError {
    let reader = Reader { at, connection: connection.clone(), identity: identity.clone() };
    // Without a reader the transport is gone, and its connections end.
    let _ = shared.readers.send(reader).await;
    connection.closed().await
}

fn chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    identity.map(|chain| *chain).unwrap_or_default()
}

/// Why a handshake failed, or a connection ended, on either side's word; none for what the network did, and for a peer that
/// is about to go: it ends connections in order, and turns new ones away (RFC 9000 §20.1, CONNECTION_REFUSED) until it is gone.
fn refusal(error: &ConnectionError) -> Option<&'static str> {
    match error {
        ConnectionError::TransportError(error) => Some(refused_here(u64::from(error.code), &error.reason)),
        ConnectionError::ApplicationClosed(close) if close.error_code == EXCLUDED => Some("refused_by_peer"),
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            NO_ALPN => Some("no_alpn"),
            0x100..=0x1ff => Some("refused_by_peer"),
            _ => None,
        },
        ConnectionError::VersionMismatch => Some("quic_version"),
        _ => None,
    }
}

/// RFC 9001 §4.8: 0x100 and the number of the TLS alert (RFC 8446 §6) that we sent.
fn refused_here(code: u64, text: &str) -> &'static str {
    match code {
        0x12a | 0x12b | 0x12e => "bad_certificate",
        // One alert for both; the library's own words tell them apart.
        0x12d if text.contains("not valid yet") => "not_yet_valid",
        0x12d => "expired",
        0x131 => "not_allowed",
        0x130 | 0x133 => "unknown_issuer",
        0x146 => "tls_version",
        0x174 => "no_certificate",
        NO_ALPN => "no_alpn",
        _ => "tls",
    }
}

/// The alert no_application_protocol as an error of QUIC.
const NO_ALPN: u64 = 0x178;

/// Required by the library, never sent.
const UNSENT_NAME: &str = "0.0.0.0";

fn unreachable(error: quinn::ConnectError) -> SendError {
    SendError::Unreachable(io::Error::other(error))
}

#[cfg(test)]
mod tests;
