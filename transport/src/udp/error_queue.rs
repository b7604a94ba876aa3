//! The error queue of a UDP socket: which datagram an ICMP error was about (`ip(7)`, `IP_RECVERR`).

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{self, ControlMessageOwned, MsgFlags, SockaddrStorage, sockopt},
};

/// Error numbers that [`super`] tells apart.
pub(super) mod codes {
    use nix::errno::Errno;

    pub(in super::super) const EAFNOSUPPORT: i32 = Errno::EAFNOSUPPORT as i32;
    pub(in super::super) const EBADF: i32 = Errno::EBADF as i32;
    pub(in super::super) const EMSGSIZE: i32 = Errno::EMSGSIZE as i32;
    pub(in super::super) const ENOBUFS: i32 = Errno::ENOBUFS as i32;
    pub(in super::super) const ENOTSOCK: i32 = Errno::ENOTSOCK as i32;
}

/// Makes the kernel keep ICMP errors for the socket. Its length is bounded by the receive buffer; more are dropped.
pub(super) fn enable(socket: &impl AsFd, bound: SocketAddr) -> io::Result<()> {
    if bound.is_ipv6() {
        socket::setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    }
    // A dual-stack socket hears of its IPv4 datagrams by the IPv4 option.
    socket::setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    Ok(())
}

/// Takes one entry: the peer that is unreachable, or none where the entry says something else (a path MTU).
///
/// # Errors
/// `WouldBlock` when the queue is empty.
pub(super) fn read(socket: &impl AsRawFd) -> io::Result<Option<SocketAddr>> {
    // The entry's data is the start of our own datagram: not wanted, so no room for it.
    let mut data: [IoSliceMut<'_>; 0] = [];
    let mut control = nix::cmsg_space!([u8; 128]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let entry = socket::recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut data, Some(&mut control), flags)?;
    let is_unreachable = entry.cmsgs()?.any(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            means_unreachable(error.ee_errno)
        }
        _ => false,
    });
    Ok(entry.address.filter(|_| is_unreachable).and_then(|address| std_addr(&address)))
}

fn means_unreachable(errno: u32) -> bool {
    let Ok(errno) = i32::try_from(errno) else { return false };
    matches!(
        Errno::from_raw(errno),
        Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENOPROTOOPT | Errno::EHOSTDOWN
    )
}

fn std_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|addr| SocketAddr::from(SocketAddrV4::from(*addr)));
    v4.or_else(|| address.as_sockaddr_in6().map(|addr| SocketAddr::from(SocketAddrV6::from(*addr))))
}
