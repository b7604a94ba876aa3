//! Datagrams over plain UDP: one unconnected socket for all peers, no authentication.
//!
//! - **MTU.** At most [`DATAGRAM_BYTES_MAX`] each way. The kernel's default path-MTU mode is kept: IPv4 datagrams leave
//!   with DF set while they fit the path MTU it has learnt, and are fragmented by this host alone where a path is
//!   narrower still. Forcing DF would turn such a path into a black hole; clearing it would let routers fragment.
//! - **Ordering, loss.** As UDP gives them: none promised. A full buffer at either end drops.
//! - **Hints.** An unconnected socket hears of ICMP errors only through its error queue (`ip(7)`, `IP_RECVERR`). On
//!   Linux it is read and gives [`Incoming::Unreachable`]; elsewhere there are no hints.
//! - **Waking.** The socket is watched for what comes in alone. Watched for room as well, as the runtime's own sockets are, it
//!   would wake the process after each datagram that has left it.
//! - **Addresses.** A socket bound to `::` takes both families; IPv4 peers appear under their IPv4 address. From a
//!   wildcard address the kernel picks the source by its route, which on a host with several need not be the one asked.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{Interest, Ready, unix::AsyncFd};
use tokio_util::sync::ReusableBoxFuture;

use crate::{Incoming, Received, SendError, Transport};

#[cfg(target_os = "linux")]
mod error_queue;

/// Largest datagram sent or accepted, in bytes.
///
/// The IPv6 minimum MTU of 1280 (RFC 8200 §5) less 40 bytes of IPv6 and 8 of UDP header leaves 1232; 1200 is the base
/// size that RFC 8899 §5.1.2 names for UDP and leaves room for a tunnel's header, so that it passes every path whole.
pub const DATAGRAM_BYTES_MAX: usize = 1200;

/// Size asked for the socket's receive and send buffer each, in bytes.
///
/// About 800 full datagrams: a burst from every node of a large cluster while the reader is busy for some
/// milliseconds. The kernel doubles it for bookkeeping and caps it at `net.core.rmem_max` and `wmem_max` without an error.
pub const SOCKET_BUFFER_BYTES: usize = 1024 * 1024;

/// Attempts of one send; more than one only while errors of earlier datagrams come out instead of a verdict.
const SEND_ATTEMPTS_MAX: usize = 4;

/// Failed readings in one poll before the task yields.
const POLL_ROUNDS_MAX: usize = 32;

/// Datagrams over one UDP socket. See the [module](self) for what it promises.
pub struct UdpTransport {
    socket: Arc<AsyncFd<UdpSocket>>,
    local_addr: SocketAddr,
    receive: Mutex<Receive>,
}

/// What the polling side keeps between two polls.
struct Receive {
    /// One byte more than is accepted, so that a datagram which was cut can be told.
    buffer: Box<[u8; DATAGRAM_BYTES_MAX + 1]>,
    /// Resolves when the socket may have a datagram or an error. `poll_recv_ready` would not wake for errors alone.
    readiness: ReusableBoxFuture<'static, io::Result<Ready>>,
    /// Turns with each result, so that neither datagrams nor hints starve the other.
    hints_first: bool,
}

impl UdpTransport {
    /// Binds a socket; must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound (in use, not local, family not supported). Nothing is left open.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = socket(addr)?;
        #[cfg(target_os = "linux")]
        error_queue::enable(&socket, addr)?;
        socket.bind(&addr.into())?;

        let socket = Arc::new(watch(socket.into(), Interest::READABLE | Interest::ERROR)?);
        let local_addr = UdpSocket::local_addr(socket.get_ref())?;
        let receive = Mutex::new(Receive {
            buffer: Box::new([0; DATAGRAM_BYTES_MAX + 1]),
            readiness: ReusableBoxFuture::new(readiness(Arc::clone(&socket))),
            hints_first: false,
        });
        Ok(Self { socket, local_addr, receive })
    }

    fn receive(&self) -> MutexGuard<'_, Receive> {
        self.receive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address as this socket's family spells it.
    fn socket_addr(&self, peer: SocketAddr) -> SocketAddr {
        match (self.local_addr, peer) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            _ => peer,
        }
    }

    fn next(&self, receive: &mut Receive) -> io::Result<Option<Incoming>> {
        for hints in [receive.hints_first, !receive.hints_first] {
            let found = if hints { self.next_hint()? } else { self.next_datagram(&mut receive.buffer)? };
            if found.is_some() {
                receive.hints_first = !hints;
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn next_datagram(&self, buffer: &mut [u8; DATAGRAM_BYTES_MAX + 1]) -> io::Result<Option<Incoming>> {
        for _ in 0..POLL_ROUNDS_MAX {
            match self.socket.try_io(Interest::READABLE, |socket| socket.recv_from(buffer.as_mut_slice())) {
                Ok((len, from)) if len > DATAGRAM_BYTES_MAX => {
                    return Ok(Some(Incoming::Rejected { from: canonical(from), reason: "oversize", times: 1 }));
                }
                Ok((len, from)) => {
                    let payload = Bytes::copy_from_slice(&buffer[..len]);
                    let received = Received { from: canonical(from), identity: None, payload };
                    return Ok(Some(Incoming::Datagram(received)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if is_fatal(&error) => return Err(error),
                // The fate of an earlier datagram; the error queue tells of which.
                Err(_) => {}
            }
        }
        Ok(None)
    }

    #[cfg(target_os = "linux")]
    fn next_hint(&self) -> io::Result<Option<Incoming>> {
        for _ in 0..POLL_ROUNDS_MAX {
            match self.socket.try_io(Interest::ERROR, error_queue::read) {
                Ok(Some(peer)) => return Ok(Some(Incoming::Unreachable(canonical(peer)))),
                Ok(None) => {}
                Err(error) if is_fatal(&error) => return Err(error),
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "one signature on every system")]
    fn next_hint(&self) -> io::Result<Option<Incoming>> {
        Ok(None)
    }
}

impl Transport for UdpTransport {
    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn max_datagram_bytes(&self, _peer: SocketAddr) -> usize {
        DATAGRAM_BYTES_MAX
    }

    fn try_send(&self, peer: SocketAddr, payload: &[u8]) -> Result<(), SendError> {
        let too_large = SendError::TooLarge { len: payload.len(), max: DATAGRAM_BYTES_MAX };
        if payload.len() > DATAGRAM_BYTES_MAX {
            return Err(too_large);
        }
        let to = self.socket_addr(peer);
        let mut attempt = 1;
        loop {
            let Err(error) = self.socket.get_ref().send_to(payload, to) else { return Ok(()) };
            match error.kind() {
                io::ErrorKind::WouldBlock => return Err(SendError::Full),
                // Most likely left by an earlier datagram to anybody: taking the error cleared it, this one did not leave.
                _ if is_unreachable(&error) && attempt < SEND_ATTEMPTS_MAX => attempt += 1,
                _ if is_unreachable(&error) => return Err(SendError::Unreachable(error)),
                _ if is_no_buffer(&error) => return Err(SendError::Full),
                _ if is_message_size(&error) => return Err(too_large),
                _ => return Err(SendError::Io(error)),
            }
        }
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Incoming>> {
        let mut receive = self.receive();
        for _ in 0..POLL_ROUNDS_MAX {
            if let Some(incoming) = self.next(&mut receive)? {
                return Poll::Ready(Ok(incoming));
            }
            ready!(receive.readiness.poll(cx))?;
            receive.readiness.set(readiness(Arc::clone(&self.socket)));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl fmt::Debug for UdpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpTransport").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// A socket for this address, not bound yet; `::` will take both families.
pub(crate) fn socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if let IpAddr::V6(ip) = addr.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Has the runtime watch a socket for these things alone; must be called within one.
pub(crate) fn watch(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    #[allow(unsafe_code, reason = "the safe ways to watch a socket watch it for room too, or are deprecated")]
    // SAFETY: the socket owns its descriptor and is moved in; it names the same one until it is dropped with the whole.
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(watched?)
}

async fn readiness(socket: Arc<AsyncFd<UdpSocket>>) -> io::Result<Ready> {
    Ok(socket.ready(Interest::READABLE | Interest::ERROR).await?.ready())
}

/// The address as peers and members know it: IPv4 where it is one, without a flow label.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
        SocketAddr::V4(_) => addr,
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
    ) || raw_is(error, &[EAFNOSUPPORT])
}

fn is_no_buffer(error: &io::Error) -> bool {
    raw_is(error, &[ENOBUFS]) || error.kind() == io::ErrorKind::OutOfMemory
}

fn is_message_size(error: &io::Error) -> bool {
    raw_is(error, &[EMSGSIZE])
}

/// True where no later call can succeed: the descriptor is gone or no socket.
pub(crate) fn is_fatal(error: &io::Error) -> bool {
    raw_is(error, &[EBADF, ENOTSOCK])
}

fn raw_is(error: &io::Error, codes: &[i32]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(target_os = "linux")]
use error_queue::codes::{EAFNOSUPPORT, EBADF, EMSGSIZE, ENOBUFS, ENOTSOCK};

#[cfg(not(target_os = "linux"))]
use bsd_codes::{EAFNOSUPPORT, EBADF, EMSGSIZE, ENOBUFS, ENOTSOCK};

/// Error numbers as the BSDs and macOS spell them.
#[cfg(not(target_os = "linux"))]
mod bsd_codes {
    pub(super) const EAFNOSUPPORT: i32 = 47;
    pub(super) const EBADF: i32 = 9;
    pub(super) const EMSGSIZE: i32 = 40;
    pub(super) const ENOBUFS: i32 = 55;
    pub(super) const ENOTSOCK: i32 = 38;
}

#[cfg(test)]
mod tests;
