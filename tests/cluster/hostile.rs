//! A peer that speaks the protocol of pipes and sends what no node would: refused, counted, and nobody else notices.
//!
//! Without TLS anybody may open a pipe; with it, any member may. What cannot even make a pipe is in `tls::strangers`.

use std::{future::poll_fn, net::SocketAddr, path::PathBuf};

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use serde_json::json;
use smg::mesh::{
    crdt::{
        delta::{Body, Cover, KeyState, Live},
        dot::{Actor, ActorId, COUNTER_MAX, Dot},
    },
    hlc::Timestamp,
    replication::frame::{Ack, Frame, Kind},
    stores::{Namespace, PolicySpec},
    wire::{replication as wire, state},
};
use smg_proto::{replication as pb, stream};
use smg_transport::grpc::{Hello, Lane, PipeId, StreamConfig, StreamEvent, StreamEvents, Streams};

use crate::{
    harness::{Gateway, Network, all_alive, eventually, joined, s},
    tls::count,
};

/// Milliseconds at the beginning of the year 2100.
const YEAR_2100_MS: u64 = 4_102_444_800_000;

/// A stranger's end of the stream plane.
struct Peer {
    streams: Streams,
    events: StreamEvents,
    target: SocketAddr,
}

impl Peer {
    fn new(network: Network, n: u8, name: &str) -> Self {
        let hello = Hello { cluster: "smg".into(), node: name.into(), boot_epoch_ms: 1 << 40 };
        let (streams, events) = Streams::bind(StreamConfig::new((network.ip(n), 0).into(), hello)).unwrap();
        Self { streams, events, target: (network.ip(1), 39527).into() }
    }

    async fn open(&mut self) -> PipeId {
        let pipe = self.streams.dial(self.target);
        loop {
            match self.events.next().await.unwrap() {
                StreamEvent::Opened { pipe: opened, .. } if opened == pipe => return pipe,
                StreamEvent::Closed { pipe: closed, error, .. } if closed == pipe => panic!("not opened: {error:?}"),
                _ => {}
            }
        }
    }

    /// Sends frames over a pipe of their own, and waits until the far end closes it.
    async fn send_until_closed(&mut self, frames: &[Bytes]) {
        let pipe = self.open().await;
        for frame in frames {
            self.streams.try_send(pipe, Lane::Sync, frame.clone()).unwrap();
        }
        while !matches!(self.events.next().await.unwrap(), StreamEvent::Closed { pipe: closed, .. } if closed == pipe) {
        }
    }
}

/// A policy written by the stranger.
fn body(counter: u64, ms: u64, covers: u64) -> Body {
    let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
    let payload = state::encode_policy(&policy).unwrap();
    let actor = ActorId(0);
    let live = vec![Live { dot: Dot { actor, counter }, stamp: Timestamp::new(ms, 0), payload: payload[..].into() }];
    Body {
        actors: vec![Actor { node: "evil".parse().unwrap(), boot_epoch_ms: 1 << 40 }],
        context: vec![(actor, covers)],
        keys: vec![KeyState { key: b"stolen"[..].into(), live, records: Vec::new(), guard: Vec::new() }],
        covers: vec![Cover { actor, from: 0, to: covers }],
        ..Body::default()
    }
}

fn delta(seq: u64, body: Body) -> Bytes {
    wire::encode(&Frame { seq, kind: Kind::Body(Namespace::Policies, body) })
}

/// What is sent, and under which reason it is counted.
fn attacks() -> Vec<(&'static str, &'static str, Bytes)> {
    let chunk = pb::Chunk { body: vec![7; 1000].into(), checksum: 1, ..pb::Chunk::default() };
    let chunk = pb::Frame { seq: 0, kind: Some(pb::frame::Kind::Chunk(chunk)) }.encode_to_vec();
    let mut floor = body(1, 5, 1);
    floor.actors.push(Actor::floor_of(&"node1".parse().unwrap()));
    floor.context.push((ActorId(1), COUNTER_MAX));
    let mut forged = body(1, 5, 1);
    forged.actors[0] = Actor { node: "node1".parse().unwrap(), boot_epoch_ms: 0 };
    vec![
        ("garbage", "sync_malformed", Bytes::from(vec![0xff; 5000])),
        ("nothing", "sync_malformed", Bytes::new()),
        ("a checksum that is wrong", "sync_checksum", chunk.into()),
        ("a counter that nobody reaches", "sync_malformed", delta(0, body(COUNTER_MAX + 1, 5, COUNTER_MAX + 1))),
        ("the largest counter there is", "sync_malformed", delta(0, body(u64::MAX, 5, u64::MAX))),
        ("a dot beyond its context", "sync_contradiction", delta(0, body(9, 5, 1))),
        ("a floor that kills all that node1 wrote", "sync_contradiction", delta(0, floor)),
        ("a dot of a floor", "sync_contradiction", delta(0, forged)),
        ("a frame that comes later", "sync_sequence", delta(5, body(1, 5, 1))),
        (
            "an ack where none belongs",
            "sync_direction",
            wire::encode(&Frame { seq: 0, kind: Kind::Ack(Ack::default()) }),
        ),
    ]
}

/// Resident memory of a gateway in KiB.
fn resident_kib(gateway: &Gateway) -> u64 {
    let path = PathBuf::from(format!("/proc/{}/status", gateway.process.child.id()));
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn cluster(network: Network) -> Vec<Gateway> {
    let nodes: Vec<Gateway> = [1, 2, 3].iter().map(|&n| Gateway::start(network, n, &[1, 2, 3], &[])).collect();
    joined(&nodes.iter().collect::<Vec<_>>(), 3, s(15)).await;
    nodes
}

async fn put_policy(gateway: &Gateway, model: &str, policy: &str) {
    let url = gateway.url(&format!("/ha/policies/{model}"));
    let answer = gateway.http.put(url).json(&json!({"policy": policy, "config": {}})).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

async fn shows(gateway: &Gateway, model: &str, policy: &str) -> bool {
    matches!(gateway.get(&format!("/ha/policies/{model}")).await, Some((200, shown)) if shown["policy"] == policy)
}

#[tokio::test]
async fn frames_that_no_node_would_send_are_refused_and_counted_and_cost_nothing() {
    let network = Network::new();
    let nodes = cluster(network).await;
    put_policy(&nodes[1], "m", "round_robin").await;
    eventually(s(5), "the policy is everywhere", async || shows(&nodes[0], "m", "round_robin").await).await;
    let mut peer = Peer::new(network, 9, "evil");
    for (case, reason, frame) in attacks() {
        let before = count(&nodes[0].metrics().await, "grpc", reason);
        peer.send_until_closed(&[frame]).await;
        eventually(s(10), case, async || count(&nodes[0].metrics().await, "grpc", reason) == before + 1).await;
        assert_eq!(nodes[0].get("/ha/policies/stolen").await.unwrap().0, 404, "{case}: nothing of it was applied");
    }
    let warm = resident_kib(&nodes[0]);
    let junk: Vec<Bytes> = attacks().into_iter().map(|(.., frame)| frame).collect();
    for round in 0..300 {
        peer.send_until_closed(&[junk[round % junk.len()].clone()]).await;
    }
    let grown = resident_kib(&nodes[0]).saturating_sub(warm);
    assert!(grown <= 8 << 10, "300 refused pipes cost {grown} KiB");
    for node in &nodes {
        assert_eq!(node.statuses().await, all_alive(3), "{}", node.name);
        assert!(node.metrics().await.contains("smg_mesh_suspicions_total{source=\"own_probe\"} 0"), "{}", node.name);
    }
    put_policy(&nodes[0], "m", "random").await;
    for node in &nodes[1..] {
        eventually(s(5), "writes travel as before", async || shows(node, "m", "random").await).await;
        assert_eq!(count(&node.metrics().await, "grpc", "sync_malformed"), 0, "nothing of it was passed on");
    }
}

#[tokio::test]
async fn a_length_of_4_gib_reserves_no_memory() {
    let network = Network::new();
    let nodes = cluster(network).await;
    let before = resident_kib(&nodes[0]);
    let greeting = stream::Hello { version: 1, cluster: "smg".into(), node: "evil".into(), boot_epoch_ms: 1 << 40 };
    let frame = stream::Frame { lane: stream::Lane::Hello.into(), payload: greeting.encode_to_vec().into() };
    let mut call = vec![0];
    let frame = frame.encode_to_vec();
    call.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
    call.extend(frame);
    // Not compressed, 4 GiB less one byte; then a little of it.
    call.extend([0, 0xff, 0xff, 0xff, 0xff]);
    call.extend([0x0a; 1000]);
    let call = Bytes::from(call);
    let attempt = async || {
        let tcp = tokio::net::TcpStream::connect((network.ip(1), 39527)).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::post(format!("http://{}/smg.stream.v1.Peer/Open", network.ip(1)))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(call.clone()))
            .unwrap();
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        let answer = sender.send_request(request).await;
        drop((answer, sender));
        connection.abort();
    };
    eventually(s(20), "node1 counts it", async || {
        attempt().await;
        count(&nodes[0].metrics().await, "grpc", "frame_too_large") >= 20
    })
    .await;
    let grown = resident_kib(&nodes[0]).saturating_sub(before);
    assert!(grown <= 32 << 10, "{grown} KiB");
    for node in &nodes {
        assert_eq!(node.statuses().await, all_alive(3), "{}", node.name);
    }
}

#[tokio::test]
async fn a_stamp_of_the_year_2100_locks_no_key() {
    let network = Network::new();
    let nodes = cluster(network).await;
    let mut peer = Peer::new(network, 9, "evil");
    let pipe = peer.open().await;
    peer.streams.try_send(pipe, Lane::Sync, delta(0, body(1, YEAR_2100_MS, 1))).unwrap();
    for node in &nodes {
        eventually(s(10), "a good frame with a bad clock is merged", async || shows(node, "stolen", "random").await)
            .await;
    }
    for (node, policy) in [(0, "least_load"), (1, "round_robin"), (2, "power_of_two"), (0, "random")] {
        put_policy(&nodes[node], "stolen", policy).await;
        for node in &nodes {
            eventually(s(5), "the last word counts", async || shows(node, "stolen", policy).await).await;
        }
    }
}
