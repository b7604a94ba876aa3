//! Pipes under mutual TLS: who is let in, and under which reason others are not.

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::*;
use crate::tls::{
    ALPN_STREAMS,
    pki::{Pki, Renewable},
};

/// A node that says it is `name` and has the certificate of `certified`.
fn node(pki: &Pki, name: &str, certified: &str) -> Node {
    Node::with(name, |config| config.tls = Some(pki.material(certified)))
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
    let pki = Pki::new();
    let (mut a, mut b) = (node(&pki, "a", "a"), node(&pki, "b", "b"));
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
    let pki = Pki::new();
    let (mut honest, mut thief) = (node(&pki, "a", "a"), node(&pki, "b", "n9"));
    thief.streams.dial(honest.addr());
    assert_eq!(refused(&mut honest).await, "wrong_name");
    assert_eq!(refused(&mut thief).await, "wrong_name", "it is told so");
    honest.streams.dial(thief.addr());
    assert_eq!(refused(&mut honest).await, "wrong_name");
}

#[tokio::test]
async fn another_authority_is_refused_by_name() {
    let (mut a, mut b) = (node(&Pki::new(), "a", "a"), node(&Pki::new(), "b", "b"));
    a.streams.dial(b.addr());
    assert_eq!(refused(&mut a).await, "unknown_issuer");
    assert_eq!(refused(&mut b).await, "refused_by_peer");
}

#[tokio::test]
async fn plain_peers_are_refused_on_both_sides() {
    let pki = Pki::new();
    let (mut a, plain) = (node(&pki, "a", "a"), Node::new("b"));
    plain.streams.dial(a.addr());
    assert_eq!(refused(&mut a).await, "plaintext");
    let mut stranger = TcpStream::connect(a.addr()).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(refused(&mut a).await, "plaintext");
}

#[tokio::test]
async fn bad_clients_are_refused_by_reason() {
    let pki = Pki::new();
    let mut a = Node::with("a", |config| config.tls = Some(pki.exclusive("a", &["n2"])));
    for (expected, config) in pki.refused_clients(ALPN_STREAMS) {
        let stream = TcpStream::connect(a.addr()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let _stream = connector.connect(crate::tls::unsent_name(), stream).await;
        assert_eq!(refused(&mut a).await, expected);
    }
}

#[tokio::test]
async fn the_dialing_side_is_told_that_it_is_refused() {
    let pki = Pki::new();
    let mut a = Node::with("a", |config| config.tls = Some(pki.exclusive("a", &["b"])));
    let mut excluded = node(&pki, "n9", "n9");
    for _ in 0..10 {
        excluded.streams.dial(a.addr());
        assert_eq!(refused(&mut a).await, "not_allowed");
        // Whenever the alert comes: before, amid or after the greeting.
        assert_eq!(refused(&mut excluded).await, "refused_by_peer");
    }
}

#[tokio::test]
async fn a_name_that_is_not_on_the_list_is_refused_beside_one_that_is() {
    let pki = Pki::new();
    let mut a = Node::with("a", |config| config.tls = Some(pki.exclusive("a", &["b"])));
    let two_names = node(&pki, "b.svc", "b.svc");
    two_names.streams.dial(a.addr());
    assert_eq!(refused(&mut a).await, "wrong_name");
}

#[tokio::test]
async fn an_open_pipe_ends_when_its_authority_goes() {
    let (old, new) = (Pki::new(), Pki::new());
    let renewed = Renewable::new(&old, "b");
    let mut a = node(&old, "a", "a");
    let mut b = Node::with("b", |config| {
        config.tls = Some(renewed.material.clone());
        config.recheck_interval = Duration::from_millis(10);
    });
    a.streams.dial(b.addr());
    for node in [&mut a, &mut b] {
        node.opened().await;
    }
    renewed.change_to(&new, "b");
    assert_eq!(refused(&mut b).await, "unknown_issuer");
    assert_eq!(refused(&mut a).await, "lost");
}

/// A ClientHello of RFC 5246 §7.4.1.2 for TLS 1.2: ECDHE-ECDSA with AES-128-GCM, P-256, no supported_versions.
fn client_hello_1_2() -> Vec<u8> {
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..], // supported_groups: secp256r1
        &[0, 11, 0, 2, 1, 0],            // ec_point_formats: uncompressed
        &[0, 13, 0, 4, 0, 2, 4, 3],      // signature_algorithms: ecdsa_secp256r1_sha256
    ]
    .concat();
    let suites_and_compression = [0, 2, 0xc0, 0x2b, 1, 0];
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &suites_and_compression,
        &u16::try_from(extensions.len()).unwrap().to_be_bytes(),
        &extensions,
    ]
    .concat();
    let message = [&[1, 0][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &u16::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let mut a = node(&Pki::new(), "a", "a");
    let mut stream = TcpStream::connect(a.addr()).await.unwrap();
    stream.write_all(&client_hello_1_2()).await.unwrap();
    assert_eq!(refused(&mut a).await, "tls_version");
}
