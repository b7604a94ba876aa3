//! QUIC between sockets of this host: the conformance suite, and who is refused.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, Ordering},
};

use smg_certs::{Authority, IdentityFiles, NodeRequest};
use time::OffsetDateTime;

use super::*;
use crate::conformance::Fixture;

/// One authority, and material of nodes from it.
struct Pki {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Pki {
    fn new() -> Self {
        let authority = Authority::create("smg", 30, OffsetDateTime::now_utc()).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), authority }
    }

    fn write(&self, node: &str) -> IdentityFiles {
        let request = NodeRequest { cluster: "smg".into(), node: node.into(), ..NodeRequest::default() };
        let issued = self.authority.issue(&request, OffsetDateTime::now_utc()).unwrap();
        let files = IdentityFiles::in_dir(self.dir.path());
        std::fs::write(&files.certificate, issued.chain_pem).unwrap();
        std::fs::write(&files.key, issued.key_pem).unwrap();
        std::fs::write(&files.authorities, self.authority.bundle_pem()).unwrap();
        files
    }

    fn material(&self, node: &str) -> Arc<Material> {
        Material::open(self.write(node), OffsetDateTime::now_utc()).unwrap()
    }
}

/// Transports of nodes `n0`, `n1`, … of one cluster.
struct Nodes {
    pki: Pki,
    next: AtomicU32,
    identities: Mutex<HashMap<SocketAddr, PeerIdentity>>,
}

impl Nodes {
    fn new() -> Self {
        Self { pki: Pki::new(), next: AtomicU32::new(0), identities: Mutex::default() }
    }
}

impl Fixture for Nodes {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn Transport>> {
        let material = self.pki.material(&format!("n{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let identity = PeerIdentity(Arc::new(material.names()));
        let transport = QuicTransport::bind(addr, material)?;
        self.identities.lock().unwrap().insert(transport.local_addr(), identity);
        Ok(Arc::new(transport))
    }

    fn identity(&self, addr: SocketAddr) -> Option<PeerIdentity> {
        self.identities.lock().unwrap().get(&addr).cloned()
    }
}

crate::conformance!(conforms, Nodes::new());

fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn next(transport: &dyn Transport) -> Incoming {
    tokio::time::timeout(Duration::from_secs(10), transport.recv()).await.expect("nothing came").unwrap()
}

#[tokio::test]
async fn datagrams_before_the_handshake_arrive_with_the_name_of_their_sender() {
    let pki = Pki::new();
    let a = QuicTransport::bind(local(), pki.material("n1")).unwrap();
    let b = QuicTransport::bind(local(), pki.material("n2")).unwrap();
    for round in 0..3_u8 {
        a.try_send(b.local_addr(), &[round]).unwrap();
    }
    for round in 0..3_u8 {
        let Incoming::Datagram(received) = next(&b).await else { panic!("a refusal") };
        assert_eq!(received.payload[..], [round]);
        let identity = received.identity.unwrap();
        assert!(identity.allows("smg", "n1"));
        assert!(!identity.allows("smg", "n2") && !identity.allows("other", "n1"));
    }
}

#[tokio::test]
async fn another_authority_is_refused_by_both_and_left_alone() {
    let a = QuicTransport::bind(local(), Pki::new().material("n1")).unwrap();
    let b = QuicTransport::bind(local(), Pki::new().material("n2")).unwrap();
    a.try_send(b.local_addr(), b"hello").unwrap();
    loop {
        match next(&a).await {
            Incoming::Rejected { from, reason } => {
                assert_eq!((from, reason), (b.local_addr(), "unknown_issuer"));
                break;
            }
            Incoming::Unreachable(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let Incoming::Rejected { reason, .. } = next(&b).await else { panic!("no refusal") };
    assert_eq!(reason, "refused_by_peer");
    assert!(matches!(a.try_send(b.local_addr(), b"again"), Err(SendError::Refused)));
}

#[tokio::test]
async fn a_client_without_alpn_or_certificate_is_refused() {
    let pki = Pki::new();
    let server = QuicTransport::bind(local(), pki.material("n1")).unwrap();
    let node = pki.material("n2");
    let mut anonymous = node.client_config(&[ALPN_DATAGRAMS]);
    anonymous.client_auth_cert_resolver = Arc::new(Anonymous);
    for (case, crypto, expected) in
        [("no ALPN", node.client_config(&[]), "no_alpn"), ("no certificate", anonymous, "no_certificate")]
    {
        let mut endpoint = Endpoint::client(local()).unwrap();
        let crypto = QuicClientConfig::try_from(crypto).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let _ = endpoint.connect(server.local_addr(), UNSENT_NAME).unwrap().await;
        let Incoming::Rejected { reason, .. } = next(&server).await else { panic!("{case}: no refusal") };
        assert_eq!(reason, expected, "{case}");
    }
}

/// Shows no certificate.
#[derive(Debug)]
struct Anonymous;

impl rustls::client::ResolvesClientCert for Anonymous {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_restarted_peer_is_found_again_at_its_address() {
    let pki = Pki::new();
    let a = QuicTransport::bind(local(), pki.material("n1")).unwrap();
    let b = QuicTransport::bind(local(), pki.material("n2")).unwrap();
    let addr = b.local_addr();
    a.try_send(addr, b"first").unwrap();
    assert!(matches!(next(&b).await, Incoming::Datagram(_)));
    let endpoint = b.shared.endpoint.clone();
    drop(b);
    tokio::time::timeout(Duration::from_secs(10), endpoint.wait_idle()).await.unwrap();
    drop(endpoint);
    let again = pki.material("n2");
    let b = loop {
        // The old socket goes with the last task that uses it.
        match QuicTransport::bind(addr, again.clone()) {
            Ok(transport) => break transport,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let arrived = async {
        loop {
            let _ = a.try_send(addr, b"second");
            if tokio::time::timeout(Duration::from_millis(100), (&b as &dyn Transport).recv()).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(15), arrived).await.expect("the new process hears nothing");
}
