//! Clients over TLS: both protocols, and certificates that are replaced while they are served.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use smg_certs::{Authority, NodeRequest};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Gateway, Network, Process, eventually, s, worker};

/// The authority that a test trusts, and the files that a process is shown.
pub(crate) struct Pki {
    authority: Authority,
    pub(crate) dir: tempfile::TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let authority = Authority::create("smg", 30, OffsetDateTime::now_utc()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), authority.bundle_pem()).unwrap();
        Self { authority, dir }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Writes `NAME.crt` and `NAME.key`, valid for that many days, for a DNS name and an address.
    pub(crate) fn issue(&self, name: &str, ip: std::net::Ipv4Addr, days: u32) {
        let request = NodeRequest {
            cluster: "smg".into(),
            node: name.into(),
            ip_addresses: vec![ip.into()],
            days: Some(days),
            ..NodeRequest::default()
        };
        let issued = self.authority.issue(&request, OffsetDateTime::now_utc()).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), issued.chain_pem).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), issued.key_pem).unwrap();
    }

    /// A connection to a gateway's public port, and the certificate that it showed.
    pub(crate) async fn connect(&self, gateway: &Gateway, alpn: &[u8]) -> (TlsStream<TcpStream>, Vec<u8>) {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.bundle_pem().as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect((gateway.ip, 8000)).await.unwrap();
        let name = ServerName::try_from(gateway.ip.to_string()).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.alpn_protocol(), Some(alpn));
        let shown = session.peer_certificates().unwrap()[0].to_vec();
        (stream, shown)
    }
}

fn chat() -> Request<Full<Bytes>> {
    Request::post("https://gateway/v1/chat/completions")
        .header("host", "gateway")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(br#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#)))
        .unwrap()
}

fn start(network: Network, pki: &Pki, worker_url: &str) -> Gateway {
    let ip = network.ip(1).to_string();
    let (crt, key) = (pki.path("gateway.crt"), pki.path("gateway.key"));
    let args = ["--host", &ip, "--port", "8000", "--prometheus-host", &ip, "--prometheus-port", "29000"];
    let tls = ["--worker-urls", worker_url, "--tls-cert-path", &crt, "--tls-key-path", &key];
    Gateway::attach(Process::start("gateway", args.into_iter().chain(tls), &[]), "gateway".into(), network.ip(1))
}

/// Seconds of the certificate in use, by role; 0 while there is none.
pub(crate) fn expiry(metrics: &str, role: &str) -> u64 {
    let name = format!("smg_tls_cert_expiry_timestamp_seconds{{role=\"{role}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
    value.unwrap_or_default() as u64
}

pub(crate) fn reload_failures(metrics: &str, role: &str) -> u64 {
    let name = format!("smg_tls_reload_failures_total{{role=\"{role}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn clients_come_by_tls_and_see_certificates_change() {
    let (network, pki) = (Network::new(), Pki::new());
    pki.issue("gateway", network.ip(1), 5);
    let (_worker, url) = worker(network, 2, "m", &[]);
    let gateway = start(network, &pki, &url);
    eventually(s(15), "the worker is ready", async || {
        gateway.metrics().await.contains("smg_worker_health") && TcpStream::connect((gateway.ip, 8000)).await.is_ok()
    })
    .await;

    let (stream, first) = pki.connect(&gateway, b"http/1.1").await;
    let (mut http1, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    eventually(s(15), "a request over HTTP/1.1 is answered", async || {
        let response = http1.send_request(chat()).await.unwrap();
        let status = response.status();
        response.into_body().collect().await.unwrap();
        http1.ready().await.unwrap();
        status == StatusCode::OK
    })
    .await;
    let (stream, _) = pki.connect(&gateway, b"h2").await;
    let (mut http2, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(http2.send_request(chat()).await.unwrap().status(), StatusCode::OK);
    assert!(gateway.get("/liveness").await.is_none(), "without TLS nobody is served");

    let metrics = gateway.metrics().await;
    let until = expiry(&metrics, "server");
    assert!(until > 0 && reload_failures(&metrics, "server") == 0, "{metrics}");
    std::fs::write(pki.path("gateway.crt"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    eventually(s(20), "the half written certificate is counted", async || {
        reload_failures(&gateway.metrics().await, "server") > 0
    })
    .await;
    assert_eq!(expiry(&gateway.metrics().await, "server"), until);
    assert_eq!(pki.connect(&gateway, b"h2").await.1, first, "the old one stays in use");

    pki.issue("gateway", network.ip(1), 9);
    eventually(s(20), "the new one is in use", async || expiry(&gateway.metrics().await, "server") > until).await;
    assert_ne!(pki.connect(&gateway, b"h2").await.1, first);
    assert_eq!(http1.send_request(chat()).await.unwrap().status(), StatusCode::OK, "old connections go on");
    assert_eq!(http2.send_request(chat()).await.unwrap().status(), StatusCode::OK, "old connections go on");
    assert!(gateway.process.log().contains("certificate files not replaced"), "{}", gateway.process.log());
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_does_not_start() {
    let (network, pki) = (Network::new(), Pki::new());
    for name in ["gateway", "other"] {
        pki.issue(name, network.ip(1), 5);
    }
    let refused = async |parts: &[&str]| {
        let mut gateway = start(network, &pki, "http://127.0.0.1:1");
        assert!(!gateway.process.exit(s(10)).await.success());
        let log = gateway.process.log();
        assert!(parts.iter().all(|part| log.contains(part)), "{parts:?}: {log}");
    };
    std::fs::copy(Path::new(&pki.path("other.key")), pki.path("gateway.key")).unwrap();
    refused(&["--tls-cert-path", "does not belong", "gateway.key"]).await;
    std::fs::remove_file(pki.path("gateway.crt")).unwrap();
    refused(&["--tls-cert-path", "cannot read", "gateway.crt"]).await;
}
