//! Two planes that work.

use super::*;

#[tokio::test]
async fn greetings_and_frames_are_exchanged_both_ways() {
    let (mut a, mut b) = (Node::new("a"), Node::new("b"));
    let dialed = a.streams.dial(b.addr());
    let StreamEvent::Opened { pipe, dialed: true, addr, hello: theirs, identity: None, traceparent: None } =
        a.next().await
    else {
        panic!("not opened")
    };
    assert_eq!((pipe, addr, theirs), (dialed, b.addr(), hello("b")));
    let StreamEvent::Opened { pipe: accepted, dialed: false, hello: theirs, .. } = b.next().await else {
        panic!("not opened")
    };
    assert_eq!(theirs, hello("a"));
    for (lane, bytes) in [(Lane::Datagram, 0), (Lane::Sync, 1), (Lane::Datagram, 1201), (Lane::Sync, FRAME_BYTES_MAX)] {
        let payload = Bytes::from(vec![bytes.to_le_bytes()[0]; bytes]);
        a.send(dialed, lane, payload.clone()).await;
        assert_eq!(b.frame(accepted).await, (lane, payload.clone()));
        b.send(accepted, lane, payload.clone()).await;
        assert_eq!(a.frame(dialed).await, (lane, payload));
    }
}

#[tokio::test]
async fn the_trace_of_who_dials_is_told() {
    let (long, longest) = ("x".repeat(257), "x".repeat(256));
    for (case, given, expected) in [
        ("none", None, None),
        ("a context", Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), Some(55)),
        ("the longest", Some(&*longest), Some(256)),
        ("too long", Some(&*long), None),
        ("no header value", Some("a\nb"), None),
    ] {
        let (mut a, mut b) = (Node::new("a"), Node::new("b"));
        a.streams.dial_within(b.addr(), given.map(ToOwned::to_owned));
        let StreamEvent::Opened { traceparent: None, .. } = a.next().await else { panic!("{case}: not opened") };
        let StreamEvent::Opened { traceparent, .. } = b.next().await else { panic!("{case}: not opened") };
        assert_eq!(traceparent.as_ref().map(String::len), expected, "{case}");
        assert!(traceparent.is_none_or(|text| Some(&*text) == given), "{case}");
    }
}

#[tokio::test]
async fn ipv6_and_dual_stack_work() {
    for (case, bind, to) in [("v6", "[::1]:0", "::1"), ("dual stack", "[::]:0", "127.0.0.1")] {
        let mut a = Node::with("a", |config| config.bind = bind.parse().unwrap());
        let mut b = Node::with("b", |config| config.bind = bind.parse().unwrap());
        let to = SocketAddr::new(to.parse().unwrap(), b.addr().port());
        a.streams.dial(to);
        a.opened().await;
        let StreamEvent::Opened { addr, .. } = b.next().await else { panic!("{case}: not opened") };
        assert_eq!(addr.ip(), to.ip(), "{case}");
    }
}

#[tokio::test]
async fn order_is_kept_across_lanes_and_under_pressure() {
    let (mut a, dialed, mut b, accepted) = connected().await;
    const FRAMES: u32 = 3000;
    let sender = async {
        for n in 0..FRAMES {
            let lane = if n % 3 == 0 { Lane::Datagram } else { Lane::Sync };
            let mut payload = n.to_be_bytes().to_vec();
            payload.resize(4 + n as usize % 5000, 0);
            a.send(dialed, lane, payload.into()).await;
        }
        // The plane must outlive the reading.
        a
    };
    let reader = async {
        for n in 0..FRAMES {
            let (lane, payload) = b.frame(accepted).await;
            assert_eq!((lane == Lane::Datagram, &payload[..4]), (n % 3 == 0, &n.to_be_bytes()[..]));
        }
    };
    tokio::join!(sender, reader);
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_sender_and_nobody_else() {
    let (mut a, slow, mut b, accepted) = connected().await;
    // `b` never drains its events: all queues on the way fill, and then it stands still.
    let chunk = Bytes::from(vec![0; 256 * 1024]);
    let mut sent_bytes = 0;
    loop {
        match a.streams.try_send(slow, Lane::Sync, chunk.clone()) {
            Ok(()) => sent_bytes += chunk.len(),
            Err(PipeSendError::Full) => {
                let writable = tokio::time::timeout(Duration::from_millis(500), a.events.next()).await;
                if writable.is_err() {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent_bytes < 32 * 1024 * 1024, "the way to a reader that does not read has no end");
    }
    // Another pipe of the same sender works.
    let mut c = Node::new("c");
    let quick = a.streams.dial(c.addr());
    a.opened().await;
    let at_c = c.opened().await;
    a.send(quick, Lane::Sync, chunk.clone()).await;
    assert_eq!(c.frame(at_c).await.1, chunk);
    // And the slow one goes on when its reader does.
    let mut read_bytes = 0;
    while read_bytes < sent_bytes {
        read_bytes += b.frame(accepted).await.1.len();
    }
    assert_eq!(read_bytes, sent_bytes);
}

#[tokio::test]
async fn a_reader_that_does_not_read_but_lives_keeps_its_pipe() {
    let quick = |config: &mut StreamConfig| {
        config.ping_interval = Duration::from_millis(20);
        config.keepalive_timeout = Duration::from_millis(500);
    };
    let (mut a, mut b) = (Node::with("a", quick), Node::with("b", quick));
    let pipe = a.streams.dial(b.addr());
    a.opened().await;
    let accepted = b.opened().await;
    // Until the way is full, and then for many pings more.
    let stalled = async {
        loop {
            a.send(pipe, Lane::Sync, vec![0; 256 * 1024].into()).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), stalled).await.expect_err("a reader that does not read");
    for _ in 0..4 {
        b.frame(accepted).await;
    }
    a.send(pipe, Lane::Datagram, Bytes::from_static(b"alive")).await;
}

#[tokio::test]
async fn closing_flushes_and_both_sides_end_in_order() {
    for by_dialer in [true, false] {
        let (mut a, dialed, mut b, accepted) = connected().await;
        let (closer, its, other, theirs) =
            if by_dialer { (&mut a, dialed, &mut b, accepted) } else { (&mut b, accepted, &mut a, dialed) };
        for n in 0..10_u8 {
            closer.send(its, Lane::Sync, vec![n; 50_000].into()).await;
        }
        closer.streams.close(its, "done");
        for n in 0..10_u8 {
            assert_eq!(other.frame(theirs).await.1[0], n, "by dialer: {by_dialer}");
        }
        assert_eq!(other.closed(theirs).await, None, "by dialer: {by_dialer}");
        assert_eq!(closer.closed(its).await, None, "by dialer: {by_dialer}");
        assert_eq!(closer.streams.try_send(its, Lane::Sync, Bytes::new()), Err(PipeSendError::Closed));
    }
}

#[tokio::test]
async fn shutdown_closes_pipes_in_order_and_waits_for_every_task() {
    let (mut a, dialed, mut b, accepted) = connected().await;
    a.send(dialed, Lane::Sync, Bytes::from_static(b"goodbye")).await;
    let addr = a.addr();
    within(a.streams.shutdown()).await;
    assert!(a.streams.shared.tasks.is_empty());
    assert_eq!(b.frame(accepted).await.1, "goodbye");
    assert_eq!(b.closed(accepted).await, None);
    assert_eq!(a.closed(dialed).await, None);
    assert!(within(a.events.next()).await.is_none());
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "still listening");
    let late = a.streams.dial(b.addr());
    assert_eq!(a.closed(late).await, Some("shut_down"));
}
