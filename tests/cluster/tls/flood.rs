//! Strangers without a certificate who shake hands as fast as they can: what they cost, and that the detector stays what
//! it is. `SMG_HANDSHAKES` is how many a second (default 200, half of them on each plane), `SMG_HANDSHAKE_SECS` how long.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use smg_certs::{Authority, IdentityFiles, Material, NodeRequest};
use smg_transport::{
    Transport,
    quic::{QuicConfig, QuicTransport},
};
use time::OffsetDateTime;

use super::{strangers::shake_stream, *};

/// Longest time from a `kill -9` to DOWN everywhere during the flood: the goal of a quiet machine is 4 s for a silent
/// crash, and here strangers, three nodes and other tests share the processors.
const DOWN_WITHIN: std::time::Duration = s(8);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// An identity that the cluster does not trust, although it trusts the cluster.
fn foreign(trusted: &str) -> Arc<Material> {
    let (dir, now) = (tempfile::tempdir().unwrap(), OffsetDateTime::now_utc());
    let other = Authority::create("smg", 5, now).unwrap();
    let request = NodeRequest { cluster: "smg".into(), node: "node2".into(), days: Some(5), ..NodeRequest::default() };
    let issued = other.issue(&request, now).unwrap();
    let files = IdentityFiles::in_dir(dir.path());
    std::fs::write(&files.certificate, issued.chain_pem).unwrap();
    std::fs::write(&files.key, issued.key_pem).unwrap();
    std::fs::write(&files.authorities, format!("{trusted}{}", other.bundle_pem())).unwrap();
    Material::open(files, now).unwrap()
}

/// Strangers come to node1 by turns on both planes, until told to end.
async fn flood(from: SocketAddr, target: SocketAddr, material: Arc<Material>, rate: u64, begun: Arc<AtomicU64>) {
    let mut config = material.client_config(&[b"h2"]);
    config.client_auth_cert_resolver = Arc::new(Anonymous);
    let config = Arc::new(config);
    let mut tick = tokio::time::interval(s(1) / u32::try_from(rate).unwrap());
    loop {
        tick.tick().await;
        if begun.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            tokio::spawn(shake_stream(config.clone(), target));
        } else {
            // A new transport is a new stranger: one that was refused would wait 5 s.
            let stranger = QuicTransport::bind(from, QuicConfig::new(material.clone())).unwrap();
            let _ = stranger.try_send(target, b"hello");
            tokio::spawn(async move {
                let _ = tokio::time::timeout(s(1), (&stranger as &dyn Transport).recv()).await;
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_leaves_the_detector_what_it_is() {
    let (rate, secs) = (setting("SMG_HANDSHAKES", 200), setting("SMG_HANDSHAKE_SECS", 5));
    let dir = tempfile::tempdir().unwrap();
    certs(dir.path(), "ca --out ca");
    for n in 1..=3 {
        certs(dir.path(), &format!("issue --ca ca --node node{n} --out node{n}"));
    }
    let trusted = std::fs::read_to_string(dir.path().join("ca/ca.crt")).unwrap();
    let network = Network::new();
    let mut nodes: Vec<Gateway> =
        [1, 2, 3].iter().map(|&n| start(network, dir.path(), n, &[1, 2, 3], &format!("node{n}"))).collect();
    joined(&nodes.iter().collect::<Vec<_>>(), 3, s(15)).await;

    let begun = Arc::new(AtomicU64::new(0));
    let (from, target) = ((network.ip(9), 0).into(), (network.ip(1), 39527).into());
    let strangers = tokio::spawn(flood(from, target, foreign(&trusted), rate, begun.clone()));
    let (since, mut tick) = (Instant::now(), tokio::time::interval(std::time::Duration::from_millis(100)));
    while since.elapsed() < s(secs) {
        for node in &nodes {
            assert_eq!(node.statuses().await, all_alive(3), "{} after {:?}", node.name, since.elapsed());
        }
        tick.tick().await;
    }
    nodes[2].process.kill();
    for node in &nodes[..2] {
        let took = eventually(DOWN_WITHIN, &format!("{} sees that node3 is gone", node.name), async || {
            node.statuses().await == ["node1=ALIVE", "node2=ALIVE", "node3=DOWN"]
        })
        .await;
        eprintln!("{}: node3 is DOWN after {took:?}", node.name);
    }
    strangers.abort();
    let (span, begun) = (since.elapsed(), begun.load(Ordering::Relaxed));
    let metrics = nodes[0].metrics().await;
    let refused = count(&metrics, "grpc", "no_certificate");
    eprintln!(
        "{begun} handshakes in {span:?}: {refused} refused on grpc, {} on datagrams; {} suspicions, {} false",
        count(&metrics, "datagram", "unknown_issuer"),
        total(&metrics, "smg_mesh_suspicions_total"),
        total(&metrics, "smg_mesh_false_suspicions_total"),
    );
    assert!(refused > 0 && begun > rate, "{begun} begun, {refused} refused");
}
