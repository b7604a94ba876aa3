//! The two planes of one node, against a peer whose stream plane the test holds.
#![allow(clippy::unwrap_used)]

use smg_transport::grpc::StreamConfig;
use tokio::runtime::Handle;

use super::*;
use crate::mesh::driver::{handle::Leadership, rights::RightsView};

fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn hello() -> Hello {
    Hello { cluster: "smg".to_owned(), node: "peer".to_owned(), boot_epoch_ms: 1 }
}

async fn net(metrics: &Arc<Metrics>) -> Net {
    let config = Mesh {
        voters: None,
        without_quorum: crate::mesh::quota::local::WithoutQuorum::Closed,
        enabled: true,
        node: "node1".parse().unwrap(),
        node_is_derived: false,
        bind: local(),
        advertise_host: None,
        advertise_port: None,
        peers: Vec::new(),
        cluster: "smg".to_owned(),
        zone: String::new(),
        probe_interval: Duration::from_secs(1),
        gossip_interval: Duration::from_millis(100),
        sync_interval: Duration::from_secs(1),
        suspicion_multiplier: 1.0,
        tls: None,
        data_dir: None,
    };
    let outlets = Outlets {
        podium: Podium {
            shown: watch::channel(Leadership::default()).0,
            rights: watch::channel(RightsView::default()).0,
            votes: None,
        },
        shared: mpsc::channel(1).0,
        pods: watch::channel(Vec::new()).1,
        traces: None,
        runtimes: Runtimes { datagrams: Handle::current(), streams: Handle::current() },
    };
    Net::bind(&config, &config.node, 1, metrics, None, None, outlets).await.unwrap()
}

/// Drives the node until `done`, and takes what the peer hears meanwhile.
async fn drive(net: &mut Net, peer: &mut StreamEvents, mut done: impl FnMut(&mut Net, Option<StreamEvent>) -> bool) {
    let mut stores = Stores::new("node1".parse().unwrap(), 1);
    let all = async {
        loop {
            let now = Instant::now();
            net.settle(now, &mut stores);
            let due = net.poll_timeout().unwrap_or(now + Duration::from_secs(1));
            let heard = tokio::select! {
                input = net.next_input() => {
                    net.handle(Instant::now(), 1, &mut stores, input);
                    None
                }
                event = peer.next() => event,
                () = tokio::time::sleep_until(due.into()) => None,
            };
            if done(net, heard) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.unwrap();
}

#[tokio::test]
async fn a_malformed_replication_frame_ends_its_pipe_at_once() {
    let metrics = Metrics::new();
    let mut net = net(&metrics).await;
    let (peer, mut events) = Streams::bind(StreamConfig::new(local(), hello())).unwrap();
    let pipe = peer.dial(net.transport.local_addr());
    drive(&mut net, &mut events, |net, event| {
        if matches!(event, Some(StreamEvent::Opened { .. })) {
            peer.try_send(pipe, Lane::Sync, Bytes::from_static(b"no frame")).unwrap();
            peer.try_send(pipe, Lane::Sync, Bytes::from_static(b"nor this")).unwrap();
        }
        let is_refused = metrics.encode().contains("reason=");
        if is_refused {
            // Its end has not been heard of yet.
            assert_eq!(
                (net.open.len(), net.replicator.poll_timeout()),
                (1, None),
                "replication has let go of the pipe"
            );
        }
        is_refused
    })
    .await;
    drive(&mut net, &mut events, |net, _| net.open.is_empty()).await;
    let text = metrics.encode();
    let refused: Vec<&str> = text.lines().filter(|line| line.contains("reason=")).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].ends_with(r#"{plane="grpc",reason="sync_malformed"} 1"#), "{refused:?}");
    net.stop().await;
}

#[tokio::test]
async fn a_restarted_peer_is_dialed_at_once() {
    let metrics = Metrics::new();
    let mut net = net(&metrics).await;
    let (peer, mut events) = Streams::bind(StreamConfig::new(local(), hello())).unwrap();
    let address = peer.local_addr();
    let now = Instant::now();
    // Joining chooses the peers anew.
    drive(&mut net, &mut events, |net, _| *net.joined.borrow()).await;
    net.pipes.want(now, &BTreeSet::from([address]));
    drive(&mut net, &mut events, |net, _| net.pipes.open(now, address).is_some()).await;
    let first = net.pipes.open(now, address);
    // Its next process is heard of before the old connection shows its end.
    net.pipes.revive(Instant::now(), address, 2);
    let start = Instant::now();
    drive(&mut net, &mut events, |net, _| net.pipes.open(now, address).is_some_and(|pipe| Some(pipe) != first)).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    net.stop().await;
}
