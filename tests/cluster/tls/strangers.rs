//! Everybody who must stay out of a living cluster: each is refused for its own reason on its own plane, and the cluster
//! goes on.

use std::{net::SocketAddr, sync::Mutex};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::{ClientConfig, RootCertStore, version::TLS12};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use smg::mesh::{
    node::NodeStatus,
    swim::message::{Body, Packet, Update},
    wire::membership,
};
use smg_certs::{Authority, IdentityFiles, Material, NodeRequest};
use smg_transport::{
    Transport,
    grpc::{Hello, StreamConfig, Streams},
    quic::{QuicConfig, QuicTransport},
};
use time::{Duration, OffsetDateTime};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;

use super::*;

/// Days since the authority was made, and for which it is still valid.
const AGE_DAYS: i64 = 3600;

pub fn authority() -> Authority {
    Authority::create("smg", 7200, OffsetDateTime::now_utc() - Duration::days(AGE_DAYS)).unwrap()
}

/// Writes a node's identity for 5 days from an instant, with these authorities.
pub fn write(dir: &Path, of: &Authority, node: &str, from: OffsetDateTime, trusted: &str) -> IdentityFiles {
    let request = NodeRequest { cluster: "smg".into(), node: node.into(), days: Some(5), ..NodeRequest::default() };
    let issued = of.issue(&request, from).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    let files = IdentityFiles::in_dir(dir);
    std::fs::write(&files.certificate, issued.chain_pem).unwrap();
    std::fs::write(&files.key, issued.key_pem).unwrap();
    std::fs::write(&files.authorities, trusted).unwrap();
    files
}

/// What a stranger shows, from authority `of`; it trusts the cluster's `trusted` always, so that the cluster must refuse.
pub fn shown(of: &Authority, node: &str, days_from_now: i64, trusted: &Authority) -> Arc<Material> {
    let dir = tempfile::tempdir().unwrap();
    let then = OffsetDateTime::now_utc() + Duration::days(days_from_now);
    let both = format!("{}{}", of.bundle_pem(), trusted.bundle_pem());
    Material::open(write(dir.path(), of, node, then, &both), then).unwrap()
}

/// A packet in the name of node2 that says node3 is DOWN, and more recently than anything node3 could have said.
pub fn slander(network: Network) -> Vec<u8> {
    let addr = SocketAddr::from((network.ip(3), 39527));
    let update = Update {
        name: "node3".parse().unwrap(),
        status: NodeStatus::Down,
        epoch_ms: (1 << 47) + 1,
        incarnation: 1 << 20,
        addr,
        host: addr.to_string(),
        zone: String::new(),
        age: std::time::Duration::ZERO,
        accusers: Vec::new(),
    };
    let body = Body::Gossip { seq: 0 };
    let packet =
        Packet { node: "node2".parse().unwrap(), epoch_ms: 1 << 47, incarnation: 0, body, updates: vec![update] };
    membership::encode("smg", &packet).to_vec()
}

/// Three nodes of one authority, and the address at which strangers try.
struct Cluster {
    network: Network,
    nodes: Vec<Gateway>,
    authority: Authority,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let (network, dir, authority) = (Network::new(), tempfile::tempdir().unwrap(), authority());
        let now = OffsetDateTime::now_utc();
        for n in 1..=3 {
            let name = format!("node{n}");
            write(&dir.path().join(&name), &authority, &name, now, authority.bundle_pem());
        }
        let start = |n: &u8| start(network, dir.path(), *n, &[1, 2, 3], &format!("node{n}"));
        let nodes: Vec<Gateway> = [1, 2, 3].iter().map(start).collect();
        joined(&nodes.iter().collect::<Vec<_>>(), 3, s(15)).await;
        Self { network, nodes, authority, _dir: dir }
    }

    fn target(&self) -> SocketAddr {
        (self.network.ip(1), 39527).into()
    }

    fn stranger(&self) -> SocketAddr {
        (self.network.ip(9), 0).into()
    }

    /// Repeats the attempt until node1 counts it, then looks whether anybody has been harmed.
    async fn refuses(&self, plane: &str, reason: &str, attempt: impl AsyncFn()) {
        assert!(!counted(&self.nodes[0].metrics().await, plane, reason), "{plane} {reason} is counted already");
        let what = format!("node1 counts {plane} {reason}");
        eventually(s(15), &what, async || {
            attempt().await;
            counted(&self.nodes[0].metrics().await, plane, reason)
        })
        .await;
        for node in &self.nodes {
            assert_eq!(node.statuses().await, all_alive(3), "{}: {plane} {reason}", node.name);
        }
    }
}

#[tokio::test]
async fn strangers_are_refused_by_reason_and_the_cluster_is_unharmed() {
    let cluster = Cluster::start().await;
    let (ca, target) = (&cluster.authority, cluster.target());
    let other = authority();
    for (reason, material) in [
        ("unknown_issuer", shown(&other, "node2", 0, ca)),
        ("expired", shown(ca, "node2", -30, ca)),
        ("not_yet_valid", shown(ca, "node2", 30, ca)),
        ("wrong_name", shown(ca, "n9", 0, ca)),
    ] {
        let datagrams = QuicTransport::bind(cluster.stranger(), QuicConfig::new(material.clone())).unwrap();
        let slander = slander(cluster.network);
        let send = async || drop(datagrams.try_send(target, &slander));
        cluster.refuses("datagram", reason, send).await;

        let hello = Hello { cluster: "smg".into(), node: "node2".into(), boot_epoch_ms: 1 << 47 };
        let mut config = StreamConfig::new(cluster.stranger(), hello);
        config.tls = Some(material);
        let (streams, _events) = Streams::bind(config).unwrap();
        cluster
            .refuses("grpc", reason, async || {
                let _ = streams.dial(target);
            })
            .await;
    }
    let plain = UdpSocket::bind(cluster.stranger()).await.unwrap();
    let slander = slander(cluster.network);
    let send = async || drop(plain.send_to(&slander, target).await);
    cluster.refuses("datagram", "plaintext", send).await;
}

/// Shakes hands on the stream plane, and waits for what the node has to say to that.
pub async fn shake_stream(config: Arc<ClientConfig>, target: SocketAddr) {
    let Ok(stream) = TcpStream::connect(target).await else { return };
    let name = ServerName::try_from("nobody").unwrap();
    let Ok(mut stream) = TlsConnector::from(config).connect(name, stream).await else { return };
    // TLS 1.3 tells a client of its refusal after the handshake.
    let _ = tokio::time::timeout(s(1), tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 16])).await;
}

/// Shakes hands on the datagram plane, and waits for the end of it.
async fn shake_datagrams(config: ClientConfig, from: SocketAddr, target: SocketAddr) {
    let mut endpoint = quinn::Endpoint::client(from).unwrap();
    let crypto = QuicClientConfig::try_from(config).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    if let Ok(connection) = endpoint.connect(target, "nobody").unwrap().await {
        let _ = tokio::time::timeout(s(1), connection.closed()).await;
    }
}

/// A client of TLS 1.2 that would take the node's certificate.
fn outdated(trusted: &Authority) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.bundle_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[tokio::test]
async fn handshakes_of_no_peer_are_refused_by_reason_and_the_cluster_is_unharmed() {
    let cluster = Cluster::start().await;
    let (target, from) = (cluster.target(), cluster.stranger());
    let good = shown(&cluster.authority, "node2", 0, &cluster.authority);
    let anonymous = |alpn: &[u8]| {
        let mut config = good.client_config(&[alpn]);
        config.client_auth_cert_resolver = Arc::new(Anonymous);
        config
    };
    for (reason, config) in [
        ("no_certificate", anonymous(b"h2")),
        ("no_alpn", good.client_config(&[])),
        ("tls_version", outdated(&cluster.authority)),
    ] {
        let config = Arc::new(config);
        cluster.refuses("grpc", reason, async || shake_stream(config.clone(), target).await).await;
    }
    // RFC 9001 §4.2: there is no QUIC with TLS 1.2.
    for (reason, config) in [("no_certificate", anonymous(b"smg-mesh/1")), ("no_alpn", good.client_config(&[]))] {
        cluster.refuses("datagram", reason, async || shake_datagrams(config.clone(), from, target).await).await;
    }
}

#[tokio::test]
async fn replayed_packets_of_a_member_are_counted_and_the_cluster_is_unharmed() {
    let cluster = Cluster::start().await;
    let member = shown(&cluster.authority, "node2", 0, &cluster.authority);
    let member = QuicTransport::bind(cluster.stranger(), QuicConfig::new(member)).unwrap();
    let relay = UdpSocket::bind(cluster.stranger()).await.unwrap();
    let tape = Mutex::new(Vec::new());
    let target = cluster.target();
    let tap = async {
        let mut buffer = [0; 2048];
        loop {
            let (len, from) = relay.recv_from(&mut buffer).await.unwrap();
            let to = if from == target { member.local_addr() } else { target };
            if to == target {
                tape.lock().unwrap().push(buffer[..len].to_vec());
            }
            relay.send_to(&buffer[..len], to).await.unwrap();
        }
    };
    // A message of a version to come, so that this second node2 stays unknown: it is counted once it is through.
    let record = cluster.refuses("datagram", "version", async || {
        drop(member.try_send(relay.local_addr().unwrap(), b"\x08\x63\x1a\x05node2"));
    });
    tokio::select! {
        () = tap => {}
        () = record => {}
    }
    let tape = tape.into_inner().unwrap();
    let elsewhere = UdpSocket::bind(cluster.stranger()).await.unwrap();
    let replay = async || {
        for packet in &tape {
            let _ = elsewhere.send_to(packet, target).await;
        }
    };
    cluster.refuses("datagram", "replayed", replay).await;
}
