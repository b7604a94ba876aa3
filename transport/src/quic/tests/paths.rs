//! Which connection carries what is sent, where there are several or the way is broken.

use std::sync::atomic::AtomicBool;

use super::*;

fn pair(pki: &Pki) -> [QuicTransport; 2] {
    ["n1", "n2"].map(|node| QuicTransport::bind(local(), QuicConfig::new(pki.material(node))).unwrap())
}

/// Waits until a datagram of these bytes has come; others may come before it.
async fn arrives(at: &QuicTransport, wanted: &[u8]) {
    loop {
        if let Incoming::Datagram(received) = next(at).await
            && received.payload[..] == *wanted
        {
            return;
        }
    }
}

#[tokio::test]
async fn both_sides_use_the_same_of_two_connections_that_both_dialed() {
    for _ in 0..8 {
        let [a, b] = pair(&Pki::new());
        a.try_send(b.local_addr(), b"from a").unwrap();
        b.try_send(a.local_addr(), b"from b").unwrap();
        let secrets = || {
            let secret = |of: &QuicTransport, at: &QuicTransport| of.shared.peers().secret(at.local_addr());
            (secret(&a, &b), secret(&b, &a))
        };
        let served = |of: &QuicTransport, at: &QuicTransport| of.shared.peers().served(at.local_addr());
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        tokio::time::timeout(Duration::from_secs(10), async {
            while (served(&a, &b), served(&b, &a)) != (2, 2) {
                tick.tick().await;
            }
        })
        .await
        .expect("both have dialed before they knew of each other");
        let (by_a, by_b) = secrets();
        assert!(by_a.is_some() && by_a == by_b);
    }
}

#[test]
fn a_peer_that_starts_anew_at_once_is_heard_soon() {
    let many = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let single = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Whether its old or its new connection comes first is by chance.
    for _ in 0..8 {
        let pki = Pki::new();
        let material = pki.material("n2");
        let a = many.block_on(async { QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap() });
        let first = single();
        let b = first.block_on(async { QuicTransport::bind(local(), QuicConfig::new(material.clone())).unwrap() });
        let addr = b.local_addr();
        first.block_on(async {
            a.try_send(addr, b"first").unwrap();
            arrives(&b, b"first").await;
        });
        // As by kill -9: with nothing to run on it says no word at its end.
        drop(first);
        drop(b);
        single().block_on(async {
            let again = QuicTransport::bind(addr, QuicConfig::new(material)).unwrap();
            let (start, mut tick) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
            again.try_send(a.local_addr(), b"here again").unwrap();
            arrives(&a, b"here again").await;
            let mut reads = Box::pin(arrives(&again, b"second"));
            loop {
                let _ = a.try_send(addr, b"second");
                let _ = again.try_send(a.local_addr(), b"still here");
                tokio::select! {
                    () = &mut reads => break,
                    _ = tick.tick() => {}
                }
            }
            assert!(start.elapsed() < SILENCE_MAX - TWIN_SILENCE_MAX, "{:?}", start.elapsed());
        });
    }
}

/// Passes packets on between whoever speaks to it and `to`, but none back to the former once `is_cut`.
async fn relay(front: Arc<UdpSocket>, to: SocketAddr, is_cut: Arc<AtomicBool>) {
    let back = UdpSocket::bind(local()).await.unwrap();
    let (mut there, mut here, mut client) = ([0; 2048], [0; 2048], None);
    loop {
        tokio::select! {
            received = front.recv_from(&mut there) => {
                let (len, from) = received.unwrap();
                client = Some(from);
                back.send_to(&there[..len], to).await.unwrap();
            }
            received = back.recv_from(&mut here) => {
                let (len, _) = received.unwrap();
                if let Some(client) = client.filter(|_| !is_cut.load(Ordering::Relaxed)) {
                    front.send_to(&here[..len], client).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn where_only_the_way_back_is_cut_what_is_sent_still_arrives() {
    let [a, b] = pair(&Pki::new());
    let (front, is_cut) = (Arc::new(UdpSocket::bind(local()).await.unwrap()), Arc::<AtomicBool>::default());
    let through = front.local_addr().unwrap();
    let relaying = tokio::spawn(relay(front, b.local_addr(), is_cut.clone()));
    a.try_send(through, b"hello").unwrap();
    arrives(&b, b"hello").await;
    is_cut.store(true, Ordering::Relaxed);
    // Longer than a connection may be silent, a new one needs to fail, and the old one is silent again.
    let (start, mut tick) = (Instant::now(), tokio::time::interval(Duration::from_millis(100)));
    let mut round = 0_u32;
    while start.elapsed() < SILENCE_MAX * 2 + HANDSHAKE_MAX {
        tick.tick().await;
        round += 1;
        a.try_send(through, &round.to_be_bytes()).unwrap();
        arrives(&b, &round.to_be_bytes()).await;
    }
    relaying.abort();
}

#[tokio::test]
async fn a_socket_that_is_of_no_use_any_more_is_told() {
    let [a, _] = pair(&Pki::new());
    a.shared.tally.fail(&io::Error::from_raw_os_error(9));
    let end = tokio::time::timeout(Duration::from_secs(10), (&a as &dyn Transport).recv()).await.unwrap();
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test]
async fn one_address_takes_no_more_than_its_share_of_handshakes() {
    let pki = Pki::new();
    let server = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    let crypto = QuicClientConfig::try_from(pki.material("n2").client_config(&[ALPN_DATAGRAMS])).unwrap();
    let client = quinn::ClientConfig::new(Arc::new(crypto));
    // Each stalls: a relay lets its first packets through, the proof of its address among them, and then no more.
    let mut stalled = Vec::new();
    for _ in 0..UNPROVEN_MAX + 2 * HANDSHAKES_PER_ADDR_MAX {
        let front = Arc::new(UdpSocket::bind(local()).await.unwrap());
        let through = front.local_addr().unwrap();
        let mut endpoint = Endpoint::client(local()).unwrap();
        endpoint.set_default_client_config(client.clone());
        let relaying = tokio::spawn(initial_packets(front, server.local_addr()));
        stalled.push((endpoint.connect(through, UNSENT_NAME).unwrap(), endpoint, relaying));
    }
    let (start, mut tick) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
    let mut most = 0;
    while start.elapsed() < HANDSHAKE_MAX / 2 {
        tick.tick().await;
        most = most.max(HANDSHAKES_MAX - server.shared.places.available_permits());
    }
    assert!(most > UNPROVEN_MAX, "{most}: some were let in that had proven themselves");
    assert!(most <= UNPROVEN_MAX + HANDSHAKES_PER_ADDR_MAX, "{most} at one time");
    // Another address still gets in.
    let elsewhere = (Ipv4Addr::new(127, 0, 0, 2), 0).into();
    let other = QuicTransport::bind(elsewhere, QuicConfig::new(pki.material("n3"))).unwrap();
    other.try_send(server.local_addr(), b"hello").unwrap();
    arrives(&server, b"hello").await;
}

/// Passes on Initial packets and Retry alone (RFC 9000 §17.2.2, §17.2.5): the handshake begins and never ends.
async fn initial_packets(front: Arc<UdpSocket>, to: SocketAddr) {
    let back = UdpSocket::bind(local()).await.unwrap();
    let (mut there, mut here, mut client) = ([0; 2048], [0; 2048], None);
    let is_first = |packet: &[u8]| packet[0] & 0x80 != 0 && packet[0] & 0x30 == 0;
    let is_retry = |packet: &[u8]| packet[0] & 0xb0 == 0xb0;
    loop {
        tokio::select! {
            received = front.recv_from(&mut there) => {
                let (len, from) = received.unwrap();
                client = Some(from);
                if is_first(&there[..len]) {
                    let _ = back.send_to(&there[..len], to).await;
                }
            }
            received = back.recv_from(&mut here) => {
                let (len, _) = received.unwrap();
                if let Some(client) = client.filter(|_| is_retry(&here[..len])) {
                    let _ = front.send_to(&here[..len], client).await;
                }
            }
        }
    }
}
