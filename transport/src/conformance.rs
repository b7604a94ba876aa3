//! What every [`Transport`] keeps, as tests: one line of [`conformance!`](crate::conformance!) runs them for one transport, over IPv4 and IPv6.
//!
//! The suite trusts no delivery: a datagram is sent again until it arrives or [`DEADLINE`] has passed, so it serves
//! transports that lose, duplicate, reorder, or connect on first use.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::{Incoming, PeerIdentity, Received, SendError, Transport};

/// How long a datagram may take to arrive, resends included.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Wait between two sends of one datagram.
const RESEND: Duration = Duration::from_millis(50);

/// Silence after which nothing more is taken to be on its way.
const SILENCE: Duration = Duration::from_millis(100);

/// Most bytes that a transport may hold for a reader that does not read.
pub const BUFFERED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Datagrams in the flood; several times [`BUFFERED_BYTES_MAX`] in bytes.
const FLOOD_DATAGRAMS: u32 = 30_000;

/// Makes the transports under test. Every closure from address to transport is one.
pub trait Fixture {
    /// Binds a transport at an address with port 0. All of one fixture reach each other.
    ///
    /// # Errors
    /// As the transport's own `bind`.
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn Transport>>;

    /// The identity that peers must see on datagrams from this address; none where the transport authenticates nobody.
    fn identity(&self, _addr: SocketAddr) -> Option<PeerIdentity> {
        None
    }
}

impl<F, T> Fixture for F
where
    F: Fn(SocketAddr) -> io::Result<T>,
    T: Transport + 'static,
{
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn Transport>> {
        Ok(Arc::new(self(addr)?))
    }
}

/// Tests that a transport keeps the contract: `conformance!(module_name, fixture)`, where the fixture is evaluated once
/// per test and implements [`crate::conformance::Fixture`].
#[macro_export]
macro_rules! conformance {
    ($name:ident, $fixture:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::conformance!(@family v4, std::net::Ipv4Addr::LOCALHOST, $fixture);
            $crate::conformance!(@family v6, std::net::Ipv6Addr::LOCALHOST, $fixture);
        }
    };
    (@family $family:ident, $ip:expr, $fixture:expr) => {
        mod $family {
            #[allow(unused_imports)]
            use super::*;
            $crate::conformance!(@cases $ip, $fixture,
                datagrams_arrive_whole_in_both_directions
                sizes_up_to_the_limit_pass_and_one_more_is_refused
                nobody_else_gets_a_datagram
                senders_are_named_truly
                an_unreachable_peer_never_breaks_the_socket
                a_flood_is_lost_not_stored
            );
        }
    };
    (@cases $ip:expr, $fixture:expr, $($case:ident)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let fixture = $fixture;
                $crate::conformance::$case(&fixture, $ip.into()).await;
            }
        )*
    };
}

/// Datagrams arrive with the bytes they were sent with, each way.
///
/// # Panics
/// The transport does not conform.
pub async fn datagrams_arrive_whole_in_both_directions(fixture: &impl Fixture, ip: IpAddr) {
    let (a, b) = (bind(fixture, ip), bind(fixture, ip));
    for round in 0..20_u8 {
        let payload: Vec<u8> = (0..usize::from(round) * 50 + 1).map(|at| at.to_le_bytes()[0] ^ round).collect();
        deliver(&*a, &*b, &payload).await;
        deliver(&*b, &*a, &payload).await;
    }
}

/// Empty and largest datagrams pass; one byte more is refused as [`SendError::TooLarge`].
///
/// # Panics
/// The transport does not conform.
pub async fn sizes_up_to_the_limit_pass_and_one_more_is_refused(fixture: &impl Fixture, ip: IpAddr) {
    let (a, b) = (bind(fixture, ip), bind(fixture, ip));
    deliver(&*a, &*b, b"").await;
    let max = a.max_datagram_bytes(b.local_addr());
    assert!(max >= 1200, "a datagram of 1200 bytes must fit, the limit is {max}");
    deliver(&*a, &*b, &vec![1; max]).await;
    // The limit may have grown meanwhile, as by path MTU discovery.
    let over = a.max_datagram_bytes(b.local_addr()) + 1;
    match a.try_send(b.local_addr(), &vec![2; over]) {
        Err(SendError::TooLarge { len, max }) => assert_eq!((len, max), (over, over - 1)),
        other => panic!("{over} bytes gave {other:?}"),
    }
    deliver(&*a, &*b, b"after").await;
    assert!(drain(&*b).await.iter().all(|received| received.payload.len() < over), "an oversize datagram arrived");
}

/// A datagram reaches its address alone.
///
/// # Panics
/// The transport does not conform.
pub async fn nobody_else_gets_a_datagram(fixture: &impl Fixture, ip: IpAddr) {
    let (a, b, other) = (bind(fixture, ip), bind(fixture, ip), bind(fixture, ip));
    for round in 0..10_u8 {
        deliver(&*a, &*b, &[round]).await;
    }
    assert_eq!(drain(&*other).await, []);
    assert_eq!(drain(&*a).await, []);
}

/// The sender's address is the one to answer to, and its identity is as the transport promises.
///
/// # Panics
/// The transport does not conform.
pub async fn senders_are_named_truly(fixture: &impl Fixture, ip: IpAddr) {
    let (a, b, c) = (bind(fixture, ip), bind(fixture, ip), bind(fixture, ip));
    for sender in [&a, &b] {
        let received = deliver(&**sender, &*c, b"who am I").await;
        assert_eq!(received.from, sender.local_addr());
        assert_eq!(received.identity, fixture.identity(sender.local_addr()));
        deliver_to(&*c, received.from, &**sender, b"you").await;
    }
}

/// Sending to nobody neither fails receiving nor costs others their datagrams.
///
/// # Panics
/// The transport does not conform.
pub async fn an_unreachable_peer_never_breaks_the_socket(fixture: &impl Fixture, ip: IpAddr) {
    let (a, b) = (bind(fixture, ip), bind(fixture, ip));
    let gone = {
        let gone = bind(fixture, ip);
        deliver(&*a, &*gone, b"still here").await;
        gone.local_addr()
    };
    for round in 0..10_u8 {
        match a.try_send(gone, b"anybody") {
            Ok(()) | Err(SendError::Full | SendError::Unreachable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        deliver(&*a, &*b, &[round]).await;
        deliver(&*b, &*a, &[round]).await;
    }
}

/// What is sent to a reader that does not read is lost beyond a bound, and it goes on once it reads.
///
/// # Panics
/// The transport does not conform.
pub async fn a_flood_is_lost_not_stored(fixture: &impl Fixture, ip: IpAddr) {
    let (a, b) = (bind(fixture, ip), bind(fixture, ip));
    let payload = vec![3; 1200];
    for _ in 0..FLOOD_DATAGRAMS {
        match a.try_send(b.local_addr(), &payload) {
            Ok(()) | Err(SendError::Full) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    let stored: usize = drain(&*b).await.iter().map(|received| received.payload.len()).sum();
    assert!(stored <= BUFFERED_BYTES_MAX, "{stored} bytes were kept");
    deliver(&*a, &*b, b"after the flood").await;
}

fn bind(fixture: &impl Fixture, ip: IpAddr) -> Arc<dyn Transport> {
    fixture.bind(SocketAddr::new(ip, 0)).expect("the loopback addresses can be bound")
}

async fn deliver(from: &dyn Transport, to: &dyn Transport, payload: &[u8]) -> Received {
    deliver_to(from, to.local_addr(), to, payload).await
}

/// Sends until `to` has it. Other datagrams that arrive meanwhile are duplicates of earlier ones.
async fn deliver_to(from: &dyn Transport, addr: SocketAddr, to: &dyn Transport, payload: &[u8]) -> Received {
    let attempts = async {
        loop {
            match from.try_send(addr, payload) {
                Ok(()) | Err(SendError::Full) => {}
                Err(error) => panic!("{error:?}"),
            }
            let arrival = tokio::time::timeout(RESEND, until(to, payload)).await;
            if let Ok(received) = arrival {
                return received;
            }
        }
    };
    tokio::time::timeout(DEADLINE, attempts).await.expect("the datagram arrives in time")
}

async fn until(to: &dyn Transport, payload: &[u8]) -> Received {
    loop {
        match to.recv().await.expect("the socket works") {
            Incoming::Datagram(received) if received.payload == payload => return received,
            Incoming::Datagram(_) | Incoming::Unreachable(_) | Incoming::Rejected { .. } => {}
        }
    }
}

/// Everything that arrives until there is silence.
async fn drain(to: &dyn Transport) -> Vec<Received> {
    let mut received = Vec::new();
    while let Ok(incoming) = tokio::time::timeout(SILENCE, to.recv()).await {
        match incoming.expect("the socket works") {
            Incoming::Datagram(datagram) => received.push(datagram),
            Incoming::Unreachable(_) | Incoming::Rejected { .. } => {}
        }
    }
    received
}
