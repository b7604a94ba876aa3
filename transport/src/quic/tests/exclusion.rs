//! Peers that the owner excludes: cut off at their address and told so, and nobody else with them.

use super::*;

fn bind(material: Arc<Material>, refused_for: Duration) -> QuicTransport {
    QuicTransport::bind(local(), QuicConfig { refused_for, ..QuicConfig::new(material) }).unwrap()
}

fn identity(material: &Material) -> PeerIdentity {
    PeerIdentity(Arc::new(material.names()))
}

/// Everything that comes until this reason, which is told of this address.
async fn until_rejected(transport: &QuicTransport, from: SocketAddr, wanted: &str) {
    loop {
        if let Incoming::Rejected { from: told, reason, .. } = next(transport).await
            && reason == wanted
        {
            return assert_eq!(told, from, "{wanted}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_the_owner_excludes_is_cut_off_for_its_pause_whoever_dialed() {
    let pki = Pki::new();
    for case in ["the excluded dialed", "the owner dialed"] {
        let refused_for = Duration::from_secs(3);
        let n2 = pki.material("n2");
        let (owner, other) = (bind(pki.material("n1"), refused_for), bind(n2.clone(), refused_for));
        let (a, b) = (owner.local_addr(), other.local_addr());
        let (first, second) = if case == "the owner dialed" { (&owner, &other) } else { (&other, &owner) };
        first.try_send(second.local_addr(), b"hello").unwrap();
        assert!(matches!(next(second).await, Incoming::Datagram(_)), "{case}");
        second.try_send(first.local_addr(), b"well").unwrap();
        assert!(matches!(next(first).await, Incoming::Datagram(_)), "{case}");

        let since = Instant::now();
        owner.exclude(b, &identity(&n2));
        assert!(matches!(owner.try_send(b, b"no"), Err(SendError::Refused)), "{case}");
        until_rejected(&other, a, "refused_by_peer").await;
        assert!(matches!(other.try_send(a, b"again"), Err(SendError::Refused)), "{case}");
        // Somebody who does not keep to the pause is not let in during it.
        let mut stubborn = 0;
        while since.elapsed() < refused_for {
            if let Err(SendError::Refused) = other.try_send(a, b"let me in") {
                other.shared.peers().clear();
                continue;
            }
            tokio::select! {
                _ = next(&other) => {}
                incoming = next(&owner) => match incoming {
                    Incoming::Datagram(_) => {
                        assert!(since.elapsed() >= refused_for, "{case}: let in after {:?}", since.elapsed());
                    }
                    Incoming::Rejected { from, reason: "excluded", .. } => stubborn += u32::from(from == b),
                    _ => {}
                },
            }
        }
        assert!(stubborn > 0, "{case}");
        while let Err(SendError::Refused) = owner.try_send(b, b"well then") {
            tokio::task::yield_now().await;
        }
        while !matches!(next(&other).await, Incoming::Datagram(_)) {}
    }
}

/// How many connections were begun by packets that a tap has recorded: an Initial (RFC 9000 §17.2.2) repeats the id that its
/// sender gave the connection.
fn begun(tape: &[Vec<u8>]) -> usize {
    let initials = tape.iter().filter(|packet| packet[0] & 0xf0 == 0xc0);
    let ids = initials.map(|packet| {
        let source = 6 + usize::from(packet[5]);
        packet[source..=source + usize::from(packet[source])].to_vec()
    });
    ids.collect::<HashSet<_>>().len()
}

#[tokio::test]
async fn an_excluded_peer_that_was_not_told_tries_once_in_the_pause() {
    let (pki, refused_for) = (Pki::new(), Duration::from_secs(3));
    let n2 = pki.material("n2");
    // The other's pause outlasts the test, so that its end has no part in the count.
    let (owner, other) = (bind(pki.material("n1"), refused_for), bind(n2.clone(), Duration::from_secs(60)));
    let relay = Arc::new(UdpSocket::bind(local()).await.unwrap());
    let (tape, at) = (Arc::new(Mutex::new(Vec::new())), relay.local_addr().unwrap());
    let tapping = tokio::spawn(tap(relay, owner.local_addr(), tape.clone()));
    other.try_send(at, b"hello").unwrap();
    assert!(matches!(next(&owner).await, Incoming::Datagram(_)));
    assert_eq!(begun(&tape.lock().unwrap()), 1);

    let since = Instant::now();
    owner.exclude(at, &identity(&n2));
    until_rejected(&other, at, "refused_by_peer").await;
    // As if it had been restarted, or the word had been lost.
    other.shared.peers().clear();
    let (mut is_told, mut tick) = (false, tokio::time::interval(Duration::from_millis(2)));
    while since.elapsed() < refused_for {
        tokio::select! {
            incoming = next(&other) => is_told |= matches!(incoming, Incoming::Rejected { reason: "refused_by_peer", .. }),
            _ = tick.tick() => drop(other.try_send(at, b"let me in")),
        }
    }
    assert!(is_told, "the second time");
    assert_eq!(begun(&tape.lock().unwrap()), 2);
    tapping.abort();
}

/// Takes what comes until a datagram, which is this one.
async fn until_datagram(transport: &QuicTransport, wanted: &[u8]) {
    loop {
        if let Incoming::Datagram(received) = next(transport).await {
            return assert_eq!(received.payload[..], *wanted);
        }
    }
}

fn is_exclusion(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == EXCLUDED)
}

/// Opens a connection of this identity at the address of a socket that several may share by turns.
async fn connect(from: &Endpoint, material: &Arc<Material>, to: SocketAddr) -> Connection {
    let crypto = QuicClientConfig::try_from(material.client_config(&[ALPN_DATAGRAMS])).unwrap();
    from.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), to, UNSENT_NAME).unwrap().await.unwrap()
}

#[tokio::test]
async fn who_borrows_an_address_is_excluded_alone() {
    let (pki, refused_for) = (Pki::new(), Duration::from_secs(60));
    let (honest, liar) = (pki.material("n2"), pki.material("n9"));
    let owner = bind(pki.material("n1"), refused_for);
    // One address for both, as if the liar were on the way to the honest.
    let endpoint = Endpoint::client(local()).unwrap();
    let (at, to) = (endpoint.local_addr().unwrap(), owner.local_addr());
    let first = connect(&endpoint, &honest, to).await;
    first.send_datagram(Bytes::from_static(b"I am n2")).unwrap();
    until_datagram(&owner, b"I am n2").await;
    let lie = connect(&endpoint, &liar, to).await;
    lie.send_datagram(Bytes::from_static(b"so am I")).unwrap();
    until_datagram(&owner, b"so am I").await;

    owner.exclude(at, &identity(&liar));
    assert!(is_exclusion(&lie.closed().await), "the liar's connection");
    owner.try_send(at, b"still there?").unwrap();
    assert_eq!(first.read_datagram().await.unwrap()[..], *b"still there?");
    let second = connect(&endpoint, &honest, to).await;
    second.send_datagram(Bytes::from_static(b"of course")).unwrap();
    until_datagram(&owner, b"of course").await;
    assert!(is_exclusion(&connect(&endpoint, &liar, to).await.closed().await), "the liar's next one");
    // It refuses the owner in turn, and has no say for the honest.
    let refusing = connect(&endpoint, &pki.material("n8"), to).await;
    refusing.send_datagram(Bytes::from_static(b"go away")).unwrap();
    until_datagram(&owner, b"go away").await;
    refusing.close(EXCLUDED, b"");
    until_rejected(&owner, at, "refused_by_peer").await;
    owner.try_send(at, b"and now?").unwrap();
    assert_eq!(second.read_datagram().await.unwrap()[..], *b"and now?");

    owner.exclude(at, &identity(&honest));
    assert!(is_exclusion(&first.closed().await), "the honest, once it is meant");
    assert!(is_exclusion(&second.closed().await), "and its other connection");
    assert!(matches!(owner.try_send(at, b"no"), Err(SendError::Refused)));
}
