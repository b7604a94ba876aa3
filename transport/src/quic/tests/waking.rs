//! What QUIC sends by itself: little, once a connection is no longer young.

use super::*;

/// Rounds of a datagram and its answer, further apart than QUIC would wait with an acknowledgement (RFC 9000 §13.2.1, 25 ms).
const ROUNDS: u64 = 20;

fn packets(transport: &QuicTransport, peer: SocketAddr) -> u64 {
    transport.shared.peers().packets_sent(peer)
}

#[tokio::test]
async fn datagrams_that_are_answered_cost_no_packet_more() {
    let pki = Pki::new();
    let a = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
    let b = QuicTransport::bind(local(), QuicConfig::new(pki.material("n2"))).unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(60));
    let (start, mut since) = (Instant::now(), None);
    let mut rounds = 0;
    while rounds < ROUNDS {
        tick.tick().await;
        a.try_send(b.local_addr(), b"are you there?").unwrap();
        assert!(matches!(next(&b).await, Incoming::Datagram(_)));
        b.try_send(a.local_addr(), b"yes").unwrap();
        assert!(matches!(next(&a).await, Incoming::Datagram(_)));
        if since.is_some() {
            rounds += 1;
        } else if start.elapsed() >= pace::YOUNG + pace::TICK {
            since = Some((Instant::now(), packets(&a, b.local_addr()) + packets(&b, a.local_addr())));
        }
    }
    let (at, before) = since.unwrap();
    let sent = packets(&a, b.local_addr()) + packets(&b, a.local_addr()) - before;
    // At each tick one side may have something to say, and on the way to it.
    let ticks = u64::try_from(at.elapsed().as_nanos() / pace::TICK.as_nanos()).unwrap() + 1;
    assert!(sent >= 2 * ROUNDS, "{sent} packets carried {} datagrams", 2 * ROUNDS);
    assert!(sent <= 2 * ROUNDS + 3 * ticks, "{sent} packets for {} datagrams in {:?}", 2 * ROUNDS, at.elapsed());
}

#[test]
fn a_burst_to_a_silent_peer_waits_for_no_window() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pki = Pki::new();
    let material = pki.material("n2");
    let (bound, address) = std::sync::mpsc::channel();
    let (over, ended) = std::sync::mpsc::channel::<()>();
    let peer = std::thread::spawn(move || {
        let runtime = runtime();
        let b = runtime.block_on(async {
            let b = QuicTransport::bind(local(), QuicConfig::new(material)).unwrap();
            bound.send(b.local_addr()).unwrap();
            assert!(matches!(next(&b).await, Incoming::Datagram(_)));
            b
        });
        // From here on nobody acknowledges anything there.
        let _ = ended.recv();
        drop((b, runtime));
    });
    let peer_addr = address.recv().unwrap();
    runtime().block_on(async {
        let a = QuicTransport::bind(local(), QuicConfig::new(pki.material("n1"))).unwrap();
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        // Until one has arrived, the peer falls silent, and what was sent by then is out.
        a.try_send(peer_addr, b"hello").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while packets(&a, peer_addr) == 0 {
            tick.tick().await;
            assert!(Instant::now() < deadline, "no connection");
        }
        // Several times what a new connection may have under way by RFC 9002 §7.2.
        let burst = 60_000 / DATAGRAM_BYTES_MAX;
        let before = packets(&a, peer_addr);
        for _ in 0..burst {
            a.try_send(peer_addr, &[7; DATAGRAM_BYTES_MAX]).unwrap();
        }
        while packets(&a, peer_addr) < before + u64::try_from(burst).unwrap() {
            tick.tick().await;
            assert!(Instant::now() < deadline, "{} of {burst} have left", packets(&a, peer_addr) - before);
        }
    });
    drop(over);
    peer.join().unwrap();
}
