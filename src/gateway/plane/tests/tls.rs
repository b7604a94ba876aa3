//! Clients over TLS: what they choose, and that nothing else is different for them.

use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use smg_certs::{Authority, NodeRequest, PairFiles, ServerMaterial};
use time::OffsetDateTime;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::gateway::handshake::HANDSHAKE_TIMEOUT;

/// A plane that clients reach by TLS under the name `gateway`, and what they need for that.
struct Secure {
    plane: Plane,
    metrics: Arc<Metrics>,
    roots: RootCertStore,
}

impl Secure {
    fn start(workers: &[Arc<Worker>]) -> Self {
        let authority = Authority::create("smg", 30, OffsetDateTime::now_utc()).unwrap();
        let request = NodeRequest { cluster: "smg".into(), node: "gateway".into(), ..NodeRequest::default() };
        let issued = authority.issue(&request, OffsetDateTime::now_utc()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let files = PairFiles { certificate: dir.path().join("crt"), key: dir.path().join("key") };
        std::fs::write(&files.certificate, issued.chain_pem).unwrap();
        std::fs::write(&files.key, issued.key_pem).unwrap();
        let clients = Some(ServerMaterial::open(files, OffsetDateTime::now_utc()).unwrap());
        let tls = Tls { clients, ..Tls::default() };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.bundle_pem().as_bytes()).unwrap()).unwrap();
        let (view, metrics) = (Arc::new(ArcSwap::from_pointee(view(workers))), Metrics::new());
        let control = axum::Router::new();
        let plane = Plane::start(Arc::new(config()), view, metrics.clone(), Reports::default(), control, &tls).unwrap();
        Self { plane, metrics, roots }
    }

    async fn try_shake(
        &self,
        alpn: &[&[u8]],
        versions: &[&'static SupportedProtocolVersion],
    ) -> io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(self.plane.addr()).await?;
        let name = ServerName::try_from("gateway").unwrap();
        within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }

    async fn connect(&self) -> Wire {
        Wire::over(self.try_shake(&[b"http/1.1"], &[&version::TLS13]).await.unwrap())
    }

    fn counts(&self, reason: &str) -> bool {
        let sample = format!("tls_handshake_failures_total{{reason=\"{reason}\"}} 1");
        self.metrics.encode().lines().any(|line| line.ends_with(&sample))
    }
}

#[tokio::test]
async fn a_client_chooses_version_and_protocol() {
    let secure = Secure::start(&[]);
    for (case, alpn, version, expected) in [
        ("both", &[&b"h2"[..], b"http/1.1"][..], &version::TLS13, Some("h2")),
        ("both the other way round", &[b"http/1.1", b"h2"], &version::TLS13, Some("h2")),
        ("http/1.1", &[b"http/1.1"], &version::TLS13, Some("http/1.1")),
        ("nothing", &[], &version::TLS13, None),
        ("TLS 1.2", &[b"h2"], &version::TLS12, Some("h2")),
    ] {
        let stream = secure.try_shake(alpn, &[version]).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.alpn_protocol(), expected.map(str::as_bytes), "{case}");
        let is_12 = session.protocol_version() == Some(ProtocolVersion::TLSv1_2);
        assert_eq!(is_12, version.version == ProtocolVersion::TLSv1_2, "{case}");
        if expected != Some("h2") {
            assert_eq!(Wire::over(stream).ask(get("/liveness")).await.status(), 200, "{case}");
        }
    }
}

#[tokio::test]
async fn both_protocols_reach_the_worker() {
    let upstream = Upstream::new().await;
    let secure = Secure::start(&[upstream.worker()]);
    let mut client = secure.connect().await;
    client.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    assert_eq!(worker.message().await.text(), CHAT);
    worker.answer("{\"by\":1}").await;
    assert_eq!(client.message().await.text(), "{\"by\":1}");
    assert_eq!(client.ask(get("/liveness")).await.status(), 200, "the connection is kept");

    let stream = secure.try_shake(&[b"h2"], &[&version::TLS13]).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driven = tokio::spawn(connection);
    let request = http::Request::post("https://gateway/v1/chat/completions")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(CHAT)))
        .unwrap();
    let asked = tokio::spawn(sender.send_request(request));
    // The core of this connection may have the first one to the worker in its pool, or none.
    tokio::select! {
        wire = upstream.accept() => worker = wire,
        is_reused = worker.more() => assert!(is_reused),
    }
    assert_eq!(worker.message().await.text(), CHAT);
    worker.answer("{\"by\":2}").await;
    let response = within(asked).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "{\"by\":2}");
    drop((sender, driven));
}

#[tokio::test]
async fn heads_are_guarded_and_large_bodies_flow() {
    let upstream = Upstream::new().await;
    let secure = Secure::start(&[upstream.worker()]);
    let both =
        "POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut smuggler = secure.connect().await;
    assert_eq!(smuggler.ask(both).await.status(), 400);
    smuggler.ends().await;

    let prompt = format!(r#"{{"model":"m","prompt":"{}"}}"#, "p".repeat(300_000));
    let mut client = secure.connect().await;
    client.send(post(&prompt)).await;
    let mut worker = upstream.accept().await;
    assert_eq!(worker.message().await.text(), prompt);
    let answer = "a".repeat(900_000);
    worker.answer(&answer).await;
    assert_eq!(client.message().await.text(), answer);
}

#[tokio::test]
async fn a_broken_stream_says_so_and_does_not_end_cleanly() {
    let upstream = Upstream::new().await;
    let secure = Secure::start(&[upstream.worker()]);
    let mut client = secure.connect().await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    let data = format!("data: {}\n\n", "1".repeat(200_000));
    worker.send(STREAM_HEAD.to_owned() + &chunk(&data)).await;
    drop(worker);
    let rest = client.rest().await;
    assert!(rest.contains("worker_truncated") && !rest.contains("\r\n0\r\n"), "{}", &rest[rest.len() - 300..]);
}

#[tokio::test]
async fn who_fails_to_shake_hands_is_counted_by_reason() {
    let secure = Secure::start(&[]);
    let mut plain = Wire::connect(&secure.plane).await;
    plain.send(get("/liveness")).await;
    let answer = plain.rest_bytes().await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    eventually(|| secure.counts("plaintext")).await;

    secure.try_shake(&[b"smg-mesh/1"], &[&version::TLS13]).await.unwrap_err();
    eventually(|| secure.counts("no_alpn")).await;

    drop(TcpStream::connect(secure.plane.addr()).await.unwrap());
    eventually(|| secure.counts("closed")).await;

    let mut stranger = Secure::start(&[]);
    stranger.roots = secure.roots.clone();
    stranger.try_shake(&[b"h2"], &[&version::TLS13]).await.unwrap_err();
    eventually(|| stranger.counts("refused_by_client")).await;

    let began = Instant::now();
    let mut silent = Wire::connect(&secure.plane).await;
    silent.ends().await;
    assert!(began.elapsed() >= HANDSHAKE_TIMEOUT - Duration::from_secs(1), "too early");
    eventually(|| secure.counts("timeout")).await;
    assert_eq!(secure.connect().await.ask(get("/liveness")).await.status(), 200, "others are served");
}
