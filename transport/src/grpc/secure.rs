//! The bytes under a connection: TCP as it is, or mutual TLS over it.

use std::{sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use smg_certs::Material;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{LINGER, PipeError, StreamConfig};
use crate::{
    PeerIdentity,
    tls::{self, ALPN_STREAMS},
};

/// TCP, or TLS over it.
pub(super) type ByteStream = Box<dyn Duplex>;

/// Both directions of a byte stream.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A byte stream and who is at its far end.
pub(super) struct Secured {
    pub(super) stream: ByteStream,
    /// None without TLS.
    pub(super) identity: Option<PeerIdentity>,
    /// The peer's certificate and its intermediates; empty without TLS.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// How the plane protects its connections.
pub(super) struct Security {
    mutual: Option<Mutual>,
    handshake_timeout: Duration,
}

struct Mutual {
    material: Arc<Material>,
    recheck_interval: Duration,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Security {
    pub(super) fn new(config: &StreamConfig) -> Self {
        let mutual = config.tls.as_ref().map(|material| Mutual {
            material: material.clone(),
            recheck_interval: config.recheck_interval,
            acceptor: TlsAcceptor::from(Arc::new(material.server_config(&[ALPN_STREAMS]))),
            connector: TlsConnector::from(Arc::new(material.client_config(&[ALPN_STREAMS]))),
        });
        Self { mutual, handshake_timeout: config.hello_timeout }
    }

    /// Shakes hands over a connection that somebody opened.
    pub(super) async fn accept(&self, stream: TcpStream) -> Result<Secured, PipeError> {
        let Some(mutual) = &self.mutual else { return Ok(Secured::plain(stream)) };
        let shaking = mutual.acceptor.accept(stream).into_fallible();
        let shaken =
            tokio::time::timeout(self.handshake_timeout, shaking).await.map_err(|_| PipeError::HelloTimeout)?;
        match shaken {
            Ok(stream) => mutual.secured(TlsStream::Server(stream)),
            Err((error, stream)) => {
                let refused = PipeError::Refused(tls::io_refusal(&error));
                let _ = tokio::time::timeout(LINGER, linger(stream)).await;
                Err(refused)
            }
        }
    }

    /// Shakes hands over a connection that we opened.
    pub(super) async fn connect(&self, stream: TcpStream) -> Result<Secured, PipeError> {
        let Some(mutual) = &self.mutual else { return Ok(Secured::plain(stream)) };
        let shaking = mutual.connector.connect(tls::unsent_name(), stream);
        let shaken =
            tokio::time::timeout(self.handshake_timeout, shaking).await.map_err(|_| PipeError::HelloTimeout)?;
        mutual.secured(TlsStream::Client(shaken.map_err(|error| PipeError::Refused(tls::io_refusal(&error)))?))
    }

    /// Waits until the peer's certificate is no longer good for its identity: for ever without TLS.
    pub(super) async fn until_distrusted(
        &self,
        chain: &[CertificateDer<'static>],
        identity: Option<&PeerIdentity>,
    ) -> PipeError {
        let (Some(mutual), Some(identity)) = (&self.mutual, identity) else { return std::future::pending().await };
        let distrusted = tls::until_distrusted(&mutual.material, chain, identity, mutual.recheck_interval);
        PipeError::Refused(distrusted.await)
    }
}

impl Secured {
    fn plain(stream: TcpStream) -> Self {
        Self { stream: Box::new(stream), identity: None, chain: Vec::new() }
    }
}

impl Mutual {
    fn secured(&self, stream: TlsStream<TcpStream>) -> Result<Secured, PipeError> {
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN_STREAMS) {
            return Err(PipeError::Refused("no_alpn"));
        }
        let chain: Vec<_> = session.peer_certificates().unwrap_or_default().to_vec();
        let identity = tls::identity(&self.material, &chain).ok_or(PipeError::Refused("bad_certificate"))?;
        Ok(Secured { stream: Box::new(stream), identity: Some(identity), chain })
    }
}

/// Lets a refused peer read why. A client of TLS 1.3 speaks before it can know; closing with that unread would reset
/// the connection, and the alert might be lost.
async fn linger(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut discarded = [0; 4096];
    while stream.read(&mut discarded).await.is_ok_and(|len| len > 0) {}
}
