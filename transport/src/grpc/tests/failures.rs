//! Peers that die, are somebody else's, or break the protocol.

use futures_util::StreamExt;
use smg_proto::stream::{self as proto, peer_client::PeerClient};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
};
use tonic_prost::prost::Message as _;

use super::*;

#[tokio::test]
async fn dialing_nobody_is_refused() {
    let mut a = Node::new("a");
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pipe = a.streams.dial(gone);
    let StreamEvent::Closed { pipe: of, addr, dialed: true, error: Some(error) } = a.next().await else {
        panic!("not closed")
    };
    assert_eq!((of, addr, error.reason()), (pipe, gone, "refused"));
}

#[tokio::test]
async fn a_host_that_never_answers_ends_in_a_timeout() {
    let mut a = Node::with("a", |config| {
        config.bind = "0.0.0.0:0".parse().unwrap();
        config.connect_timeout = Duration::from_millis(200);
    });
    // A listener whose backlog is full: the kernel drops further SYNs.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let _filler = TcpStream::connect(addr).await.unwrap();
    let pipe = a.streams.dial(addr);
    assert_eq!(a.closed(pipe).await, Some("connect_timeout"));
}

#[tokio::test]
async fn a_listener_that_says_nothing_ends_in_a_timeout() {
    let mut a = Node::with("a", |config| config.hello_timeout = Duration::from_millis(200));
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pipe = a.streams.dial(mute.local_addr().unwrap());
    assert_eq!(a.closed(pipe).await, Some("hello_timeout"));
}

#[tokio::test]
async fn a_foreign_cluster_is_told_to_both_sides() {
    let mut a = Node::new("a");
    let mut b = Node::with("b", |config| config.hello.cluster = "other".into());
    let pipe = a.streams.dial(b.addr());
    assert_eq!(a.closed(pipe).await, Some("foreign_cluster"));
    let StreamEvent::Closed { dialed: false, error: Some(PipeError::ForeignCluster), .. } = b.next().await else {
        panic!("the accepting side heard nothing")
    };
}

#[tokio::test]
async fn a_killed_peer_is_noticed_at_once_by_both_roles() {
    for by_dialer in [true, false] {
        let (a, dialed, b, accepted) = connected().await;
        // Dropping the events cuts every connection, as the kernel does for a killed process.
        let (mut survivor, pipe, killed) = if by_dialer { (b, accepted, a) } else { (a, dialed, b) };
        drop(killed.events);
        assert_eq!(survivor.closed(pipe).await, Some("lost"), "dialer killed: {by_dialer}");
    }
}

#[tokio::test]
async fn a_peer_behind_a_dead_link_is_noticed_by_keepalive() {
    let quick = |config: &mut StreamConfig| {
        config.ping_interval = Duration::from_millis(100);
        config.keepalive_timeout = Duration::from_millis(200);
    };
    let (mut a, mut b) = (Node::with("a", quick), Node::with("b", quick));
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pipe = a.streams.dial(relay.local_addr().unwrap());
    let (mut near, _) = relay.accept().await.unwrap();
    let mut far = TcpStream::connect(b.addr()).await.unwrap();
    let accepted = tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => panic!("the relay ended"),
        accepted = async { a.opened().await; b.opened().await } => accepted,
    };
    // The relay now holds both connections and moves nothing.
    let started = tokio::time::Instant::now();
    assert_eq!(a.closed(pipe).await, Some("lost"));
    assert_eq!(b.closed(accepted).await, Some("lost"));
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Established connections on a local port whose kernel keeps a watch over silence: their timer is that of keepalive (Linux,
/// Documentation/networking/proc_net_tcp.rst, `timer_active` 2).
#[cfg(target_os = "linux")]
fn watched(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_watched = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == "01" && fields[5].starts_with("02:")
    };
    table.lines().skip(1).filter(is_watched).count()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn kernels_watch_over_both_ends_of_a_silent_pipe() {
    let (a, _, b, _) = connected().await;
    let (dialed, mut tick) = (a.addr().port(), tokio::time::interval(Duration::from_millis(10)));
    let table = || std::fs::read_to_string("/proc/net/tcp").unwrap();
    // The far end of what the listener holds is the dialer's own port.
    let to = format!(":{:04X} 01 ", b.addr().port());
    let from = |line: &str| u16::from_str_radix(line.split_whitespace().nth(1)?.split(':').nth(1)?, 16).ok();
    let dialer = table().lines().filter(|line| line.contains(&to)).find_map(from).unwrap();
    assert_ne!(dialer, dialed);
    // Until what was said first is acknowledged, another timer runs.
    within(async {
        while (watched(b.addr().port()), watched(dialer)) != (1, 1) {
            tick.tick().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_dead_link_is_noticed_while_bytes_are_stuck_in_it() {
    for by_shutdown in [false, true] {
        let mut a = Node::with("a", |config| {
            if !by_shutdown {
                config.ping_interval = Duration::from_millis(100);
                config.keepalive_timeout = Duration::from_millis(200);
            }
        });
        let mut b = Node::new("b");
        // A small receive window keeps the sender's socket buffer from growing.
        let relay = TcpSocket::new_v4().unwrap();
        relay.set_recv_buffer_size(4096).unwrap();
        relay.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let relay = relay.listen(8).unwrap();
        let pipe = a.streams.dial(relay.local_addr().unwrap());
        let (mut near, _) = relay.accept().await.unwrap();
        let mut far = TcpStream::connect(b.addr()).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => panic!("the relay ended"),
            () = async { a.opened().await; b.opened().await; } => {}
        }
        // The relay reads nothing: what the kernel does not take stays with HTTP/2.
        while a.streams.try_send(pipe, Lane::Sync, vec![0; 256 * 1024].into()).is_ok() {
            tokio::task::yield_now().await;
        }
        if by_shutdown {
            within(a.streams.shutdown()).await;
            assert_eq!(a.closed(pipe).await, None);
        } else {
            assert_eq!(a.closed(pipe).await, Some("lost"));
        }
    }
}

/// A peer that speaks gRPC, but says what it likes: its frames in, and the call's end out.
async fn rogue(to: SocketAddr, frames: Vec<proto::Frame>) -> tonic::Status {
    let mut client = PeerClient::connect(format!("http://{to}")).await.unwrap();
    let frames = futures_util::stream::iter(frames).chain(futures_util::stream::pending());
    let mut inbound = match within(client.open(frames)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return status,
    };
    loop {
        match within(inbound.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => return tonic::Status::ok(""),
            Err(status) => return status,
        }
    }
}

fn greeting(version: u32) -> proto::Frame {
    let hello = proto::Hello { version, cluster: "smg".into(), node: "rogue".into(), boot_epoch_ms: 1 };
    proto::Frame { lane: proto::Lane::Hello.into(), payload: hello.encode_to_vec().into() }
}

fn frame(lane: i32, bytes: usize) -> proto::Frame {
    proto::Frame { lane, payload: vec![0; bytes].into() }
}

#[tokio::test]
async fn what_breaks_the_protocol_closes_the_pipe_with_a_reason() {
    let sync = i32::from(proto::Lane::Sync);
    for (case, frames, expected) in [
        ("no greeting first", vec![frame(sync, 1)], "bad_hello"),
        ("later version", vec![greeting(9)], "unknown_version"),
        ("second greeting", vec![greeting(1), greeting(1)], "bad_frame"),
        ("unspecified lane", vec![greeting(1), frame(0, 1)], "bad_frame"),
        ("unknown lane", vec![greeting(1), frame(99, 1)], "bad_frame"),
        ("payload above the limit", vec![greeting(1), frame(sync, FRAME_BYTES_MAX + 1)], "frame_too_large"),
        ("message above the limit", vec![greeting(1), frame(sync, FRAME_BYTES_MAX + 1000)], "frame_too_large"),
        ("no greeting at all", vec![], "hello_timeout"),
    ] {
        let mut a = Node::with("a", |config| config.hello_timeout = Duration::from_millis(300));
        let (status, reason) = tokio::join!(
            rogue(a.addr(), frames),
            a.find(|event| match event {
                StreamEvent::Closed { error, .. } => Some(error.as_ref().map(PipeError::reason)),
                _ => None,
            })
        );
        assert_eq!(reason, Some(expected), "{case}");
        assert_ne!(status.code(), tonic::Code::Ok, "{case}");
    }
}
