//! Bytes from peer to peer. This crate does not know what the bytes mean.
//!
//! Two planes share one port number: [`Transport`] carries datagrams (small, unordered, may be lost), [`grpc`] carries
//! frames on ordered pipes. Implementations of the datagram plane pass one conformance suite,
//! [`mod@conformance`].

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use smg_certs::NodeNames;

pub mod conformance;
pub mod grpc;
pub mod quic;
mod shares;
pub mod sim;
pub mod tls;
pub mod udp;

/// The names that a transport has verified for the far end of a datagram or pipe: those of its certificate.
///
/// Transports that authenticate nobody (`udp`) give none.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PeerIdentity(pub Arc<NodeNames>);

impl PeerIdentity {
    /// Whether the far end may speak for this node of this cluster.
    #[must_use]
    pub fn allows(&self, cluster: &str, node: &str) -> bool {
        self.0.allow(cluster, node)
    }
}

/// A datagram that arrived.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Received {
    /// The address it came from.
    pub from: SocketAddr,
    /// Who the transport says sent it; none where the transport authenticates nobody.
    pub identity: Option<PeerIdentity>,
    /// The bytes, whole: a datagram is never cut.
    pub payload: Bytes,
}

/// Why a datagram was not sent. Datagrams are never queued by a transport beyond the socket's own buffer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The datagram exceeds [`Transport::max_datagram_bytes`]; nothing was sent. Send it over a pipe.
    #[error("datagram of {len} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Size of the refused datagram in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The socket's buffer is full; this datagram is lost, as if by the network.
    #[error("send buffer is full")]
    Full,
    /// The host answered that nobody listens there (ICMP unreachable) or the route is gone; the datagram is lost.
    #[error("peer is unreachable")]
    Unreachable(#[source] io::Error),
    /// The peer refused our certificate, or we refused its, some seconds ago; nothing is sent to it for now.
    #[error("peer was refused lately")]
    Refused,
    /// The socket failed; the transport may work again later.
    #[error("datagram socket failed")]
    Io(#[source] io::Error),
}

/// What a transport reports besides datagrams.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Incoming {
    /// A datagram arrived.
    Datagram(Received),
    /// An earlier datagram to this address found nobody (ICMP port unreachable, connection refused). A hint, never a proof.
    Unreachable(SocketAddr),
    /// Somebody was refused before it could send anything, or refuses us.
    Rejected {
        /// Where it is; the last one where there were several.
        from: SocketAddr,
        /// Why: one of a closed set, for metrics.
        reason: &'static str,
        /// How often since it was said last, at least 1.
        times: u64,
    },
}

/// Datagrams between peers: unordered, lossy, whole or not at all.
///
/// Sending never waits and receiving is polled, so the trait is object-safe and one task can own it.
pub trait Transport: fmt::Debug + Send + Sync {
    /// The bound local address.
    fn local_addr(&self) -> SocketAddr;

    /// Largest datagram in bytes that may be sent to `peer` now; at least 1200.
    fn max_datagram_bytes(&self, peer: SocketAddr) -> usize;

    /// Hands one datagram to the network without waiting.
    ///
    /// # Errors
    /// See [`SendError`]; in every case the datagram is gone and the transport remains usable.
    fn try_send(&self, peer: SocketAddr, payload: &[u8]) -> Result<(), SendError>;

    /// Cuts the peer of this identity at this address off for some seconds, since what it said on an authenticated connection
    /// is not for it to say: its connections are closed and it is told why, nothing is sent to it, and it is not let in.
    /// Another peer that is connected from the same address keeps its connections. Transports that authenticate nobody do
    /// nothing, since addresses prove nothing there.
    fn exclude(&self, _peer: SocketAddr, _identity: &PeerIdentity) {}

    /// Gives the next datagram or hint, or registers the task to be woken; only the last task that polled is woken.
    ///
    /// Under a flood there is always a next one: the caller bounds how many it takes in a row.
    ///
    /// # Errors
    /// Only when the socket itself is broken for good.
    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Incoming>>;
}

impl dyn Transport + '_ {
    /// Waits for the next datagram or hint.
    ///
    /// # Errors
    /// Only when the socket itself is broken for good.
    pub async fn recv(&self) -> io::Result<Incoming> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }
}
