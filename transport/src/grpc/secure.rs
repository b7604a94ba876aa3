//! The bytes under a connection: TCP as it is, or mutual TLS over it.

use std::{io, sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use smg_certs::Material;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::PipeError;
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
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Security {
    pub(super) fn new(material: Option<&Arc<Material>>, handshake_timeout: Duration) -> Self {
        let mutual = material.map(|material| Mutual {
            material: material.clone(),
            acceptor: TlsAcceptor::from(Arc::new(material.server_config(&[ALPN_STREAMS]))),
            connector: TlsConnector::from(Arc::new(material.client_config(&[ALPN_STREAMS]))),
        });
        Self { mutual, handshake_timeout }
    }

    /// Shakes hands over a connection that somebody opened.
    pub(super) async fn accept(&self, stream: TcpStream) -> Result<Secured, PipeError> {
        let Some(mutual) = &self.mutual else { return Ok(Secured::plain(stream)) };
        let shaken = tokio::time::timeout(self.handshake_timeout, mutual.acceptor.accept(stream));
        Secured::mutual(shaken.await.map_err(|_| PipeError::HelloTimeout)?.map(TlsStream::Server))
    }

    /// Shakes hands over a connection that we opened.
    pub(super) async fn connect(&self, stream: TcpStream) -> Result<Secured, PipeError> {
        let Some(mutual) = &self.mutual else { return Ok(Secured::plain(stream)) };
        let shaking = mutual.connector.connect(tls::unsent_name(), stream);
        let shaken = tokio::time::timeout(self.handshake_timeout, shaking);
        Secured::mutual(shaken.await.map_err(|_| PipeError::HelloTimeout)?.map(TlsStream::Client))
    }

    /// Waits until the peer's certificate is no longer good: for ever without TLS.
    pub(super) async fn until_distrusted(&self, chain: &[CertificateDer<'static>]) -> PipeError {
        match &self.mutual {
            Some(mutual) => PipeError::Refused(tls::until_distrusted(&mutual.material, chain).await),
            None => std::future::pending().await,
        }
    }
}

impl Secured {
    fn plain(stream: TcpStream) -> Self {
        Self { stream: Box::new(stream), identity: None, chain: Vec::new() }
    }

    fn mutual(shaken: io::Result<TlsStream<TcpStream>>) -> Result<Self, PipeError> {
        let stream = shaken.map_err(|error| PipeError::Refused(tls::io_refusal(&error)))?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN_STREAMS) {
            return Err(PipeError::Refused("no_alpn"));
        }
        let chain: Vec<_> = session.peer_certificates().unwrap_or_default().to_vec();
        let identity = tls::identity(&chain).ok_or(PipeError::Refused("bad_certificate"))?;
        Ok(Self { stream: Box::new(stream), identity: Some(identity), chain })
    }
}
