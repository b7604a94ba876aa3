//! Pipes under mutual TLS: who is let in, and under which reason others are not.

use smg_certs::{Authority, IdentityFiles, NodeRequest};
use time::OffsetDateTime;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::*;

fn material(authority: &Authority, node: &str) -> Arc<Material> {
    let now = OffsetDateTime::now_utc();
    let dir = tempfile::tempdir().unwrap();
    let request = NodeRequest { cluster: "smg".into(), node: node.into(), ..NodeRequest::default() };
    let issued = authority.issue(&request, now).unwrap();
    let files = IdentityFiles::in_dir(dir.path());
    std::fs::write(&files.certificate, issued.chain_pem).unwrap();
    std::fs::write(&files.key, issued.key_pem).unwrap();
    std::fs::write(&files.authorities, authority.bundle_pem()).unwrap();
    Material::open(files, now).unwrap()
}

fn authority() -> Authority {
    Authority::create("smg", 30, OffsetDateTime::now_utc()).unwrap()
}

/// A node that says it is `name` and has the certificate of `certified`.
fn node(authority: &Authority, name: &str, certified: &str) -> Node {
    Node::with(name, |config| config.tls = Some(material(authority, certified)))
}

/// The reason of the next pipe that closes.
async fn refused(node: &mut Node) -> &'static str {
    node.find(|event| match event {
        StreamEvent::Closed { error, .. } => Some(error.as_ref().map_or("in order", PipeError::reason)),
        StreamEvent::Opened { .. } => Some("opened"),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn frames_flow_between_certified_nodes() {
    let ca = authority();
    let (mut a, mut b) = (node(&ca, "a", "a"), node(&ca, "b", "b"));
    let dialed = a.streams.dial(b.addr());
    for (node, name) in [(&mut a, "b"), (&mut b, "a")] {
        let StreamEvent::Opened { hello, identity, .. } = node.next().await else { panic!("not opened") };
        assert_eq!(hello.node, name);
        assert!(identity.unwrap().allows("smg", name));
    }
    let payload = Bytes::from(vec![7; 3 * 1024 * 1024]);
    a.send(dialed, Lane::Sync, payload.clone()).await;
    let received = b
        .find(|event| match event {
            StreamEvent::Frame { payload, .. } => Some(payload.clone()),
            _ => None,
        })
        .await;
    assert_eq!(received, payload);
}

#[tokio::test]
async fn a_borrowed_name_is_refused_in_both_directions() {
    let ca = authority();
    let (mut honest, mut thief) = (node(&ca, "a", "a"), node(&ca, "b", "n9"));
    thief.streams.dial(honest.addr());
    assert_eq!(refused(&mut honest).await, "wrong_name");
    assert_eq!(refused(&mut thief).await, "wrong_name", "it is told so");
    honest.streams.dial(thief.addr());
    assert_eq!(refused(&mut honest).await, "wrong_name");
}

#[tokio::test]
async fn another_authority_is_refused_by_name() {
    let (mut a, mut b) = (node(&authority(), "a", "a"), node(&authority(), "b", "b"));
    a.streams.dial(b.addr());
    assert_eq!(refused(&mut a).await, "unknown_issuer");
    assert_eq!(refused(&mut b).await, "refused_by_peer");
}

#[tokio::test]
async fn plain_peers_are_refused_on_both_sides() {
    let ca = authority();
    let (mut a, plain) = (node(&ca, "a", "a"), Node::new("b"));
    plain.streams.dial(a.addr());
    assert_eq!(refused(&mut a).await, "plaintext");
    let mut stranger = TcpStream::connect(a.addr()).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(refused(&mut a).await, "plaintext");
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
async fn a_client_without_certificate_or_alpn_is_refused() {
    let ca = authority();
    let mut a = node(&ca, "a", "a");
    let mut anonymous = material(&ca, "b").client_config(&[b"h2"]);
    anonymous.client_auth_cert_resolver = Arc::new(Anonymous);
    let without_alpn = material(&ca, "b").client_config(&[]);
    for (config, expected) in [(anonymous, "no_certificate"), (without_alpn, "no_alpn")] {
        let stream = TcpStream::connect(a.addr()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let _stream = connector.connect(crate::tls::unsent_name(), stream).await;
        assert_eq!(refused(&mut a).await, expected);
    }
}
