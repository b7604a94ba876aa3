//! TLS handshakes with clients: a deadline for each, a bound on those under way, and a reason for each that fails.
//!
//! Whoever reaches the port may begin handshakes. One costs a signature and, until it ends, a few kilobytes. So each core
//! has at most [`HANDSHAKES_MAX`] under way; one more ends the oldest, whose client had the longest time to answer. A
//! flood of handshakes that are never finished so takes the memory of that many, and a client that answers within the
//! time in which the flood fills the table still gets in.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustls::{AlertDescription, Error, PeerIncompatible};
use smg_certs::ServerMaterial;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::gateway::{
    byte_stream::{ALPN_H2, ALPN_HTTP1, ByteStream},
    connection::Connection,
};

/// Handshakes of one core under way.
pub(crate) const HANDSHAKES_MAX: usize = 1024;

/// A handshake is over this long after the connection was accepted, or the connection is closed.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason of a handshake that had to end for a newer one.
const CROWDED: &str = "crowded";

/// The side of the handshake that all cores share.
///
/// # Errors
/// When there is no randomness for the keys of session tickets.
pub(crate) fn acceptor(material: &Arc<ServerMaterial>) -> Result<TlsAcceptor, Error> {
    Ok(TlsAcceptor::from(Arc::new(material.server_config(&[ALPN_H2, ALPN_HTTP1], None)?)))
}

/// The handshakes of one core that are under way, oldest first.
#[derive(Default)]
pub(crate) struct Handshakes {
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Rc<Connection>>>,
}

impl Handshakes {
    /// Shakes hands, unless the connection is given up meanwhile.
    ///
    /// # Errors
    /// The reason, from a closed set. An `evicted` call tells of another handshake that ended for this one.
    pub(crate) async fn accept(
        &self,
        acceptor: &TlsAcceptor,
        stream: TcpStream,
        connection: &Rc<Connection>,
        evicted: impl FnOnce(&'static str),
    ) -> Result<ByteStream, &'static str> {
        let place = self.enter(connection, evicted);
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
        drop(place);
        match shaken {
            Ok(Ok(stream)) => Ok(ByteStream::Tls(Box::new(stream.into()))),
            Ok(Err(error)) => Err(reason(&error)),
            Err(_) => Err("timeout"),
        }
    }

    fn enter(&self, connection: &Rc<Connection>, evicted: impl FnOnce(&'static str)) -> Place<'_> {
        let mut open = self.open.borrow_mut();
        if open.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = open.pop_first()
        {
            oldest.give_up();
            evicted(CROWDED);
        }
        let id = self.next.get();
        self.next.set(id + 1);
        open.insert(id, connection.clone());
        Place { handshakes: self, id }
    }
}

/// A handshake under way.
struct Place<'a> {
    handshakes: &'a Handshakes,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handshakes.open.borrow_mut().remove(&self.id);
    }
}

/// Why a handshake failed: a closed set, for metrics.
fn reason(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(_)) => "plaintext",
        Some(Error::NoApplicationProtocol) => "no_alpn",
        Some(
            Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled)
            | Error::AlertReceived(AlertDescription::ProtocolVersion),
        ) => "tls_version",
        Some(Error::AlertReceived(_)) => "refused_by_client",
        Some(_) => "tls",
        None => "closed",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Instant;

    use super::*;

    #[test]
    fn the_oldest_ends_for_one_too_many() {
        let handshakes = Handshakes::default();
        let connect = || Rc::new(Connection::new("127.0.0.1:1".parse().unwrap(), Instant::now()));
        let first = connect();
        let oldest = handshakes.enter(&first, |_| panic!("there is room"));
        let mut others: Vec<_> =
            (1..HANDSHAKES_MAX).map(|_| handshakes.enter(&connect(), |_| panic!("room"))).collect();
        assert_eq!(handshakes.open.borrow().len(), HANDSHAKES_MAX);
        assert!(!first.is_given_up());

        let mut reasons = Vec::new();
        others.push(handshakes.enter(&connect(), |reason| reasons.push(reason)));
        assert_eq!(reasons, [CROWDED]);
        assert!(first.is_given_up());
        assert_eq!(handshakes.open.borrow().len(), HANDSHAKES_MAX, "the bound holds");
        drop(oldest);
        assert_eq!(handshakes.open.borrow().len(), HANDSHAKES_MAX, "its place went to another");
        drop(others);
        assert_eq!(handshakes.open.borrow().len(), 0);
    }
}
