//! What else may come to the port, and what must not fit.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{super::accept::UNOPENED_PER_ADDR_MAX, *};

#[tokio::test]
async fn garbage_is_dropped_and_hurts_nobody() {
    let mut a = Node::with("a", |config| config.hello_timeout = Duration::from_millis(100));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let cases: [(&str, Vec<u8>); 7] = [
        ("nothing", vec![]),
        ("zeros", vec![0; 100_000]),
        ("http/1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("tls", [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3].repeat(20)),
        ("preface alone", preface.to_vec()),
        ("preface and garbage", [&preface[..], &[0xff; 5000]].concat()),
        ("half a preface", preface[..10].to_vec()),
    ];
    for (ended, (case, bytes)) in cases.iter().enumerate() {
        let mut stranger = TcpStream::connect(a.addr()).await.unwrap();
        let _ = stranger.write_all(bytes).await;
        let mut answer = Vec::new();
        // Ends, by a close or a reset, within the greeting's time.
        let _ = tokio::time::timeout(DEADLINE, stranger.read_to_end(&mut answer)).await.expect(case);
        // The count follows the close by as much as it takes to drop the connection.
        within(async {
            while a.streams.stats().connections_unopened <= ended as u64 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let mut b = Node::new("b");
    b.streams.dial(a.addr());
    b.opened().await;
    a.opened().await;
}

#[tokio::test]
async fn connections_are_bounded_and_places_come_back() {
    let mut a = Node::with("a", |config| {
        config.inbound_pipes_max = 2;
        config.hello_timeout = Duration::from_secs(30);
    });
    let first = TcpStream::connect(a.addr()).await.unwrap();
    let _second = TcpStream::connect(a.addr()).await.unwrap();
    let mut b = Node::new("b");
    let refused = b.streams.dial(a.addr());
    assert_eq!(b.closed(refused).await, Some("lost"));
    assert_eq!(a.streams.stats().connections_refused, 1);
    drop(first);
    within(async {
        loop {
            b.streams.dial(a.addr());
            if matches!(b.next().await, StreamEvent::Opened { .. }) {
                break;
            }
        }
    })
    .await;
    a.opened().await;
}

#[tokio::test]
async fn one_address_cannot_take_the_places_of_all() {
    let mut a = Node::with("a", |config| config.hello_timeout = Duration::from_secs(30));
    let mut silent = Vec::new();
    for _ in 0..UNOPENED_PER_ADDR_MAX {
        silent.push(TcpStream::connect(a.addr()).await.unwrap());
    }
    let mut b = Node::new("b");
    let refused = b.streams.dial(a.addr());
    assert_eq!(b.closed(refused).await, Some("lost"));
    assert_eq!(a.streams.stats().connections_refused, 1);
    let elsewhere = "127.0.0.2:0".parse().unwrap();
    let mut c = Node::with("c", |config| config.bind = elsewhere);
    c.streams.dial(a.addr());
    c.opened().await;
    a.opened().await;
    // Pipes that opened count no longer.
    silent.truncate(1);
    for _ in 1..UNOPENED_PER_ADDR_MAX + 8 {
        within(async {
            loop {
                b.streams.dial(a.addr());
                if matches!(b.next().await, StreamEvent::Opened { .. }) {
                    break;
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_taken_port_and_a_bad_name_are_errors() {
    let a = Node::new("a");
    let taken = Streams::bind(StreamConfig { bind: a.addr(), ..config("b") }).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    let nameless = Streams::bind(config("")).unwrap_err();
    assert_eq!(nameless.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn frames_above_the_limit_are_refused_where_they_are_sent() {
    let (mut a, dialed, mut b, accepted) = connected().await;
    let (len, max) = (FRAME_BYTES_MAX + 1, FRAME_BYTES_MAX);
    let refused = a.streams.try_send(dialed, Lane::Sync, vec![0; len].into());
    assert_eq!(refused, Err(PipeSendError::TooLarge { len, max }));
    a.send(dialed, Lane::Sync, Bytes::from_static(b"still open")).await;
    assert_eq!(b.frame(accepted).await.1, "still open");
}

#[tokio::test]
async fn unknown_pipes_are_ignored() {
    let a = Node::new("a");
    let unknown = PipeId(99);
    assert_eq!(a.streams.try_send(unknown, Lane::Sync, Bytes::new()), Err(PipeSendError::Closed));
    assert!(!a.streams.has_room(unknown));
    a.streams.close(unknown, "test");
}
