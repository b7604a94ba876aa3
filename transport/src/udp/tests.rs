//! UDP sockets of this host: sizes, unreachable peers, both address families.
#![allow(clippy::unwrap_used)]

use std::{net::UdpSocket as StdSocket, time::Duration};

use super::*;

crate::conformance!(conforms, UdpTransport::bind);

async fn next(transport: &dyn Transport) -> Incoming {
    tokio::time::timeout(Duration::from_secs(5), transport.recv()).await.expect("nothing arrived").unwrap()
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// An address at which a process listened until just now.
fn dead_peer(bind: &str) -> SocketAddr {
    StdSocket::bind(bind).unwrap().local_addr().unwrap()
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_dead_peer_is_named_on_every_kind_of_socket() {
    for (case, bind, peer) in
        [("v4", "127.0.0.1:0", "127.0.0.1:0"), ("v6", "[::1]:0", "[::1]:0"), ("dual stack", "[::]:0", "127.0.0.1:0")]
    {
        let transport = UdpTransport::bind(bind.parse().unwrap()).unwrap();
        let dead = dead_peer(peer);
        transport.try_send(dead, b"are you there").unwrap();
        assert_eq!(next(&transport).await, Incoming::Unreachable(dead), "{case}");
    }
}

#[tokio::test]
async fn errors_of_one_peer_never_cost_another_its_datagrams() {
    let transport = UdpTransport::bind(loopback()).unwrap();
    let living = UdpTransport::bind(loopback()).unwrap();
    let dead = dead_peer("127.0.0.1:0");
    for round in 0..100_u8 {
        transport.try_send(dead, b"lost").unwrap();
        transport.try_send(living.local_addr(), &[round]).unwrap();
        let Incoming::Datagram(received) = next(&living).await else { panic!("the living peer got a hint") };
        assert_eq!(received.payload[..], [round]);
    }
}

#[tokio::test]
async fn dual_stack_names_ipv4_peers_by_their_ipv4_address() {
    let dual = UdpTransport::bind("[::]:0".parse().unwrap()).unwrap();
    let peer = UdpTransport::bind(loopback()).unwrap();
    let dual_addr = SocketAddr::new([127, 0, 0, 1].into(), dual.local_addr().port());
    peer.try_send(dual_addr, b"ping").unwrap();
    let Incoming::Datagram(ping) = next(&dual).await else { panic!("a hint") };
    assert_eq!(ping.from, peer.local_addr());
    dual.try_send(ping.from, b"ack").unwrap();
    let Incoming::Datagram(ack) = next(&peer).await else { panic!("a hint") };
    assert_eq!((ack.from, &ack.payload[..]), (dual_addr, &b"ack"[..]));
}

#[tokio::test]
async fn oversize_datagrams_of_strangers_are_dropped_not_cut() {
    let transport = UdpTransport::bind(loopback()).unwrap();
    let stranger = StdSocket::bind(loopback()).unwrap();
    for len in [DATAGRAM_BYTES_MAX + 1, 9000, 60_000] {
        stranger.send_to(&vec![7; len], transport.local_addr()).unwrap();
    }
    stranger.send_to(b"last", transport.local_addr()).unwrap();
    for _ in 0..3 {
        let Incoming::Rejected { reason, .. } = next(&transport).await else { panic!("an oversize datagram") };
        assert_eq!(reason, "oversize");
    }
    let Incoming::Datagram(received) = next(&transport).await else { panic!("a hint") };
    assert_eq!(&received.payload[..], b"last");
}

#[tokio::test]
async fn a_taken_port_is_an_error() {
    let first = UdpTransport::bind(loopback()).unwrap();
    assert_eq!(UdpTransport::bind(first.local_addr()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn a_peer_of_the_other_family_is_unreachable() {
    let transport = UdpTransport::bind(loopback()).unwrap();
    let error = transport.try_send("[::1]:9".parse().unwrap(), b"ping").unwrap_err();
    assert!(matches!(error, SendError::Unreachable(_)), "{error:?}");
}
