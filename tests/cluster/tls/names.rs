//! Names that cannot be borrowed: whoever sends a packet as a node that its certificate does not name is cut off, on both
//! planes, whichever side dialed, and tries again at most once in 5 s. Greetings are in the tests of strangers.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use smg_transport::{
    Incoming, Transport,
    grpc::{Hello, Lane, PipeError, StreamConfig, StreamEvent, Streams},
    quic::{QuicConfig, QuicTransport},
};
use time::OffsetDateTime;

use super::{
    strangers::{authority, shown, slander, write},
    *,
};

/// An excluded node tries, and is tried, once in this time at most.
const PAUSE: std::time::Duration = s(5);

fn is_rare(attempts: u32, span: std::time::Duration) -> bool {
    span >= PAUSE * attempts.saturating_sub(1)
}

/// Answers whatever it is asked by a lie, and counts how often it is told that it is refused.
async fn lie(datagrams: QuicTransport, lie: Vec<u8>, told: Arc<AtomicU32>) {
    loop {
        match (&datagrams as &dyn Transport).recv().await.unwrap() {
            Incoming::Datagram(asked) => drop(datagrams.try_send(asked.from, &lie)),
            Incoming::Rejected { reason: "refused_by_peer", .. } => drop(told.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_seed_that_answers_in_another_name_is_cut_off_and_left_alone() {
    let (network, dir, ca) = (Network::new(), tempfile::tempdir().unwrap(), authority());
    let now = OffsetDateTime::now_utc();
    for n in 1..=2 {
        write(&dir.path().join(format!("node{n}")), &ca, &format!("node{n}"), now, ca.bundle_pem());
    }
    let (started, told) = (Instant::now(), Arc::<AtomicU32>::default());
    let at = SocketAddr::from((network.ip(9), 39527));
    let liar = QuicTransport::bind(at, QuicConfig::new(shown(&ca, "n9", 0, &ca))).unwrap();
    let liar = tokio::spawn(lie(liar, slander(network), told.clone()));
    // Only node1 knows the liar's address: what the liar is told comes from it alone.
    let nodes = [(1, vec![1, 2, 9]), (2, vec![1, 2])]
        .map(|(n, peers): (u8, Vec<u8>)| start(network, dir.path(), n, &peers, &format!("node{n}")));
    joined(&[&nodes[0], &nodes[1]], 2, s(15)).await;
    eventually(s(40), "node1 has tried three times", async || told.load(Ordering::Relaxed) >= 3).await;
    let (refusals, span) = (told.load(Ordering::Relaxed), started.elapsed());
    assert!(is_rare(refusals, span), "{refusals} in {span:?}");
    assert!(counted(&nodes[0].metrics().await, "datagram", "wrong_name"));
    liar.abort();
    for node in &nodes {
        assert_eq!(node.statuses().await, all_alive(2), "{}", node.name);
    }
}

#[tokio::test]
async fn a_node_of_two_names_stays_out_when_only_the_other_is_on_the_list() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["ca --out ca", "issue --ca ca --node node4 --dns node9 --out node4"] {
        certs(dir.path(), line);
    }
    let network = Network::new();
    let on_list = |n: u8| {
        certs(dir.path(), &format!("issue --ca ca --node node{n} --out node{n}"));
        let files = dir.path().join(format!("node{n}")).display().to_string();
        let list = ["--mesh-tls-dir", &files, "--mesh-allowed-nodes", "node1,node2,node9"];
        Gateway::start(network, n, &[1, 2], &list)
    };
    let nodes = [on_list(1), on_list(2)];
    joined(&[&nodes[0], &nodes[1]], 2, s(15)).await;

    // It passes every handshake as node9, and speaks as node4.
    let started = Instant::now();
    let excluded = start(network, dir.path(), 4, &[1], "node4");
    let told = async || count(&excluded.metrics().await, "datagram", "refused_by_peer");
    eventually(s(40), "node4 is told three times", async || told().await >= 3).await;
    let (refusals, span) = (told().await, started.elapsed());
    assert!(is_rare(refusals, span), "{refusals} in {span:?}");
    assert!(counted(&nodes[0].metrics().await, "datagram", "wrong_name"));
    for node in &nodes {
        assert_eq!(node.statuses().await, all_alive(2), "{}", node.name);
    }
    assert!(excluded.statuses().await.iter().all(|node| node.starts_with("node4")));
}

#[tokio::test]
async fn a_packet_in_another_name_ends_the_pipe_that_brought_it() {
    let (network, dir, ca) = (Network::new(), tempfile::tempdir().unwrap(), authority());
    write(&dir.path().join("node1"), &ca, "node1", OffsetDateTime::now_utc(), ca.bundle_pem());
    let node = start(network, dir.path(), 1, &[], "node1");
    joined(&[&node], 1, s(15)).await;
    // The greeting is in its own name, the packet is not.
    let hello = Hello { cluster: "smg".into(), node: "n9".into(), boot_epoch_ms: 1 << 47 };
    let mut config = StreamConfig::new((network.ip(9), 0).into(), hello);
    config.tls = Some(shown(&ca, "n9", 0, &ca));
    let (streams, mut events) = Streams::bind(config).unwrap();
    let pipe = streams.dial((network.ip(1), 39527).into());
    let opened = tokio::time::timeout(s(10), events.next()).await.unwrap();
    assert!(matches!(opened, Some(StreamEvent::Opened { .. })), "{opened:?}");
    streams.try_send(pipe, Lane::Datagram, Bytes::from(slander(network))).unwrap();
    loop {
        match tokio::time::timeout(s(10), events.next()).await.unwrap() {
            Some(StreamEvent::Closed { error, .. }) => {
                break assert!(matches!(error, None | Some(PipeError::Lost(_))), "{error:?}");
            }
            Some(_) => {}
            None => panic!("no end"),
        }
    }
    assert_eq!(count(&node.metrics().await, "grpc", "wrong_name"), 1);
    assert_eq!(node.statuses().await, all_alive(1));
}
