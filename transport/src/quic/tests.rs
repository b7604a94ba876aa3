//! QUIC between sockets of this host: the conformance suite, and who is refused.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::net::UdpSocket;

use super::*;
use crate::{
    conformance::Fixture,
    tls::pki::{Pki, Renewable},
};

mod exclusion;
mod paths;
mod waking;

/// Transports of nodes `n0`, `n1`, … of one cluster.
struct Nodes {
    pki: Pki,
    next: AtomicU32,
    identities: Mutex<HashMap<SocketAddr, PeerIdentity>>,
}

impl Nodes {
    fn new() -> Self {
        Self { pki: Pki::new(), next: AtomicU32::new(0), identities: Mutex::default() }
    }
}

impl Fixture for Nodes {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn Transport>> {
        let material = self.pki.material(&format!("n{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let identity = PeerIdentity(Arc::new(material.names()));
        let transport = QuicTransport::bind(addr, QuicConfig::new(material))?;
        self.identities.lock().unwrap().insert(transport.local_addr(), identity);
        Ok(Arc::new(transport))
    }

    fn identity(&self, addr: SocketAddr) -> Option<PeerIdentity> {
        self.identities.lock().unwrap().get(&addr).cloned()
    }
}

crate::conformance!(conforms, Nodes::new());

fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn next(transport: &dyn Transport) -> Incoming {
    tokio::time::timeout(Duration::from_secs(10), transport.recv()).await.expect("nothing came").unwrap()
}

#[tokio::test]
async fn datagrams_before_the_handshake_arrive_with_the_name_of_their_sender() {
    let pki = Pki::new();
    let a = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    let b = QuicTransport::bind(local(), QuicConfig::new(pki.material("n2"))).unwrap();
    for round in 0..3_u8 {
        a.try_send(b.local_addr(), &[round]).unwrap();
    }
    for round in 0..3_u8 {
        let Incoming::Datagram(received) = next(&b).await else { panic!("a refusal") };
        assert_eq!(received.payload[..], [round]);
        let identity = received.identity.unwrap();
        assert!(identity.allows("smg", "n1"));
        assert!(!identity.allows("smg", "n2") && !identity.allows("other", "n1"));
    }
}

#[tokio::test]
async fn another_authority_is_refused_by_both_and_left_alone() {
    let a = QuicTransport::bind(local(), QuicConfig::new(Pki::new().material("n1"))).unwrap();
    let b = QuicTransport::bind(local(), QuicConfig::new(Pki::new().material("n2"))).unwrap();
    a.try_send(b.local_addr(), b"hello").unwrap();
    loop {
        match next(&a).await {
            Incoming::Rejected { from, reason, .. } => {
                assert_eq!((from, reason), (b.local_addr(), "unknown_issuer"));
                break;
            }
            Incoming::Unreachable(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let Incoming::Rejected { reason, .. } = next(&b).await else { panic!("no refusal") };
    assert_eq!(reason, "refused_by_peer");
    assert!(matches!(a.try_send(b.local_addr(), b"again"), Err(SendError::Refused)));
}

#[tokio::test]
async fn bad_clients_are_refused_by_reason() {
    let pki = Pki::new();
    let server = QuicTransport::bind(local(), QuicConfig::new(pki.exclusive("n1", &["n2"]))).unwrap();
    for (expected, crypto) in pki.refused_clients(ALPN_DATAGRAMS) {
        let mut endpoint = Endpoint::client(local()).unwrap();
        let crypto = QuicClientConfig::try_from(crypto).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let _ = endpoint.connect(server.local_addr(), UNSENT_NAME).unwrap().await;
        let Incoming::Rejected { reason, .. } = next(&server).await else { panic!("{expected}: no refusal") };
        assert_eq!(reason, expected);
    }
}

/// Counts refusals by their reason until `times` of one have been said; datagrams in between are an error.
async fn refused(transport: &QuicTransport, wanted: &str, times: u64) {
    let mut seen = 0;
    while seen < times {
        match next(transport).await {
            Incoming::Rejected { reason, times, .. } if reason == wanted => seen += times,
            Incoming::Rejected { .. } | Incoming::Unreachable(_) => {}
            Incoming::Datagram(received) => panic!("{wanted}: {received:?}"),
        }
    }
    assert_eq!(seen, times, "{wanted}");
}

#[tokio::test]
async fn packets_of_no_connection_are_counted_and_do_no_harm() {
    let pki = Pki::new();
    let server = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    let stranger = UdpSocket::bind(local()).await.unwrap();
    let mut other_version = vec![0xc0, 0, 0, 0, 2];
    other_version.resize(1200, 0);
    for (expected, packet) in [
        ("plaintext", b"\x08\x01\x12\x03smg\x1a\x02n1".to_vec()),
        ("plaintext", vec![0x40; 5]),
        ("unknown_connection", vec![0x41; 64]),
        ("quic_version", other_version),
    ] {
        stranger.send_to(&packet, server.local_addr()).await.unwrap();
        refused(&server, expected, 1).await;
    }
    let peer = QuicTransport::bind(local(), QuicConfig::new(pki.material("n2"))).unwrap();
    peer.try_send(server.local_addr(), b"still here").unwrap();
    assert!(matches!(next(&server).await, Incoming::Datagram(_)));
}

/// Forwards packets between whoever spoke first and `to`, and keeps those of the former.
async fn tap(relay: Arc<UdpSocket>, to: SocketAddr, tape: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut client = None;
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = relay.recv_from(&mut buffer).await.unwrap();
        let at = if from == to { client } else { Some(to) };
        if from != to {
            client = Some(from);
            tape.lock().unwrap().push(buffer[..len].to_vec());
        }
        let Some(at) = at else { continue };
        relay.send_to(&buffer[..len], at).await.unwrap();
    }
}

#[tokio::test]
async fn a_replayed_recording_is_counted_and_delivers_nothing() {
    let pki = Pki::new();
    let a = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    let b = QuicTransport::bind(local(), QuicConfig::new(pki.material("n2"))).unwrap();
    let relay = Arc::new(UdpSocket::bind(local()).await.unwrap());
    let tape = Arc::new(Mutex::new(Vec::new()));
    let tapping = tokio::spawn(tap(relay.clone(), b.local_addr(), tape.clone()));
    for round in 0..20_u8 {
        a.try_send(relay.local_addr().unwrap(), &[round]).unwrap();
        let Incoming::Datagram(received) = next(&b).await else { panic!("a refusal") };
        assert_eq!(received.payload[..], [round]);
    }
    let recorded = tape.lock().unwrap().clone();
    assert!(recorded.len() >= 20, "{} packets", recorded.len());
    let elsewhere = UdpSocket::bind(local()).await.unwrap();
    for from in [&*relay, &elsewhere] {
        for packet in &recorded {
            from.send_to(packet, b.local_addr()).await.unwrap();
        }
        refused(&b, "replayed", recorded.len().try_into().unwrap()).await;
    }
    a.try_send(relay.local_addr().unwrap(), b"still here").unwrap();
    assert!(matches!(next(&b).await, Incoming::Datagram(_)));
    tapping.abort();
}

#[tokio::test]
async fn a_living_connection_ends_when_its_authority_goes() {
    let (old, new) = (Pki::new(), Pki::new());
    let renewed = Renewable::new(&old, "n2");
    let a = QuicTransport::bind(local(), QuicConfig::new(old.material("n1"))).unwrap();
    let recheck_interval = Duration::from_millis(10);
    let config = QuicConfig { recheck_interval, ..QuicConfig::new(renewed.material.clone()) };
    let b = QuicTransport::bind(local(), config).unwrap();
    a.try_send(b.local_addr(), b"hello").unwrap();
    assert!(matches!(next(&b).await, Incoming::Datagram(_)));
    renewed.change_to(&new, "n2");
    let Incoming::Rejected { reason, .. } = next(&b).await else { panic!("not distrusted") };
    assert_eq!(reason, "unknown_issuer");
    assert_eq!(next(&a).await, Incoming::Unreachable(b.local_addr()));
    a.try_send(b.local_addr(), b"again").unwrap();
    refused(&a, "unknown_issuer", 1).await;
}

#[tokio::test]
async fn an_excluded_node_tries_once_in_its_pause() {
    let pki = Pki::new();
    let server = QuicTransport::bind(local(), QuicConfig::new(pki.exclusive("n1", &["n1"]))).unwrap();
    let refused_for = Duration::from_millis(200);
    let config = QuicConfig { refused_for, ..QuicConfig::new(pki.material("n9")) };
    let excluded = QuicTransport::bind(local(), config).unwrap();
    let (started, mut attempts) = (Instant::now(), 0);
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    while attempts < 5 {
        tokio::select! {
            incoming = next(&server) => {
                let Incoming::Rejected { reason, times, .. } = incoming else { panic!("{incoming:?}") };
                assert_eq!(reason, "not_allowed");
                attempts += times;
            }
            _ = tick.tick() => drop(excluded.try_send(server.local_addr(), b"let me in")),
        }
    }
    let least = refused_for * u32::try_from(attempts - 1).unwrap();
    assert!(started.elapsed() >= least, "{attempts} attempts in {:?}", started.elapsed());
}

#[tokio::test]
async fn addresses_and_connections_are_bounded_and_the_least_used_end() {
    let pki = Pki::new();
    let owner = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    owner.shared.peers().max = 3;
    let mut peers = Vec::new();
    for n in 2..=5 {
        let peer = QuicTransport::bind(local(), QuicConfig::new(pki.material(&format!("n{n}")))).unwrap();
        owner.try_send(peer.local_addr(), b"hello").unwrap();
        assert!(matches!(next(&peer).await, Incoming::Datagram(_)), "n{n}");
        peers.push(peer);
    }
    assert_eq!(owner.shared.peers().len(), 3);
    assert_eq!(next(&peers[0]).await, Incoming::Unreachable(owner.local_addr()), "the first was used least recently");
    owner.try_send(peers[0].local_addr(), b"again").unwrap();
    assert!(matches!(next(&peers[0]).await, Incoming::Datagram(_)), "it is dialed anew");

    // One address that opens connection after connection, as no transport of ours would.
    let mut endpoint = Endpoint::client(local()).unwrap();
    let crypto = QuicClientConfig::try_from(pki.material("n9").client_config(&[ALPN_DATAGRAMS])).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let from = endpoint.local_addr().unwrap();
    let mut connections = Vec::new();
    for n in 0..peers::PER_PEER_MAX + 2 {
        let connection = endpoint.connect(owner.local_addr(), UNSENT_NAME).unwrap().await.unwrap();
        connection.send_datagram(Bytes::from_static(b"me again")).unwrap();
        assert!(matches!(next(&owner).await, Incoming::Datagram(_)));
        connections.push(connection);
        assert_eq!(owner.shared.peers().served(from), (n + 1).min(peers::PER_PEER_MAX), "after {n}");
    }
    for (n, connection) in connections.iter().enumerate() {
        if n < 2 {
            connection.closed().await;
        } else {
            assert!(connection.close_reason().is_none(), "connection {n}");
        }
    }
}

#[tokio::test]
async fn an_identity_with_many_addresses_pushes_out_itself_alone() {
    let pki = Pki::new();
    let owner = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    owner.shared.peers().max = peers::ADDRESSES_PER_NAME_MAX + 2;
    let honest = QuicTransport::bind(local(), QuicConfig::new(pki.material("n2"))).unwrap();
    honest.try_send(owner.local_addr(), b"hello").unwrap();
    assert!(matches!(next(&owner).await, Incoming::Datagram(_)));
    let crypto = QuicClientConfig::try_from(pki.material("n9").client_config(&[ALPN_DATAGRAMS])).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut crowd = Vec::new();
    for n in 0..2 * peers::ADDRESSES_PER_NAME_MAX {
        let endpoint = Endpoint::client(local()).unwrap();
        let connecting = endpoint.connect_with(config.clone(), owner.local_addr(), UNSENT_NAME).unwrap();
        let connection = connecting.await.unwrap();
        connection.send_datagram(Bytes::from_static(b"me again")).unwrap();
        assert!(matches!(next(&owner).await, Incoming::Datagram(_)), "{n}");
        crowd.push((endpoint, connection));
    }
    let (early, late) = crowd.split_at(peers::ADDRESSES_PER_NAME_MAX);
    for (_, connection) in early {
        connection.closed().await;
    }
    for (_, connection) in late {
        assert!(connection.close_reason().is_none());
    }
    assert_eq!(owner.shared.peers().served(honest.local_addr()), 1);
    owner.try_send(honest.local_addr(), b"still there").unwrap();
    assert!(matches!(next(&honest).await, Incoming::Datagram(_)), "on the connection that it made");

    // Addresses that are only left alone for a while go before those with a connection.
    let until = owner.shared.pause();
    let identity = PeerIdentity(Arc::new(pki.material("n9").names()));
    for port in 1..=100 {
        owner.shared.peers().refused(Instant::now(), (Ipv4Addr::LOCALHOST, port).into(), &identity, until);
    }
    assert_eq!(owner.shared.peers().len(), peers::ADDRESSES_PER_NAME_MAX + 2);
    assert_eq!(owner.shared.peers().served(honest.local_addr()), 1);
}

#[tokio::test]
async fn beyond_a_number_of_handshakes_addresses_must_prove_themselves() {
    let pki = Pki::new();
    let server = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    // First packets of clients, caught by somebody who never answers them.
    let catcher = UdpSocket::bind(local()).await.unwrap();
    let crypto = QuicClientConfig::try_from(pki.material("n2").client_config(&[ALPN_DATAGRAMS])).unwrap();
    let mut endpoint = Endpoint::client(local()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let (mut answered, mut retried, mut attempts, mut known) = (0, 0, Vec::new(), HashSet::new());
    for _ in 0..UNPROVEN_MAX + 16 {
        let connecting = endpoint.connect(catcher.local_addr().unwrap(), UNSENT_NAME).unwrap();
        let mut packet = [0; 2048];
        let len = loop {
            let len = catcher.recv(&mut packet).await.unwrap();
            // Length and bytes of the id that the client gave the connection (RFC 9000 §17.2); repetitions have it too.
            if known.insert(packet[5..=5 + usize::from(packet[5])].to_vec()) {
                break len;
            }
        };
        let client = UdpSocket::bind(local()).await.unwrap();
        client.send_to(&packet[..len], server.local_addr()).await.unwrap();
        let mut answer = [0; 2048];
        let len = tokio::time::timeout(HANDSHAKE_MAX, client.recv(&mut answer)).await.expect("no answer").unwrap();
        assert!(len > 0 && answer[0] & 0x80 != 0, "a long header");
        // RFC 9000 §17.2: type 3 is Retry.
        if answer[0] & 0x30 == 0x30 {
            retried += 1;
        } else {
            answered += 1;
        }
        attempts.push((connecting, client));
    }
    // One that began early may have run out of time meanwhile and left its place.
    assert!(answered >= UNPROVEN_MAX && retried > 0, "{answered} answered, {retried} retried");
}

#[tokio::test]
async fn a_restarted_peer_is_found_again_at_its_address() {
    let pki = Pki::new();
    let a = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    let b = QuicTransport::bind(local(), QuicConfig::new(pki.material("n2"))).unwrap();
    let addr = b.local_addr();
    a.try_send(addr, b"first").unwrap();
    assert!(matches!(next(&b).await, Incoming::Datagram(_)));
    let endpoint = b.shared.endpoint.clone();
    drop(b);
    tokio::time::timeout(Duration::from_secs(10), endpoint.wait_idle()).await.unwrap();
    drop(endpoint);
    let again = pki.material("n2");
    let b = loop {
        // The old socket goes with the last task that uses it.
        match QuicTransport::bind(addr, QuicConfig::new(again.clone())) {
            Ok(transport) => break transport,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let arrived = async {
        loop {
            let _ = a.try_send(addr, b"second");
            if tokio::time::timeout(Duration::from_millis(100), (&b as &dyn Transport).recv()).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(15), arrived).await.expect("the new process hears nothing");
}
