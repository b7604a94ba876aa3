//! What a listener for clients shows them: a certificate and its key, replaced as a whole while connections use them.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, Error, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use time::OffsetDateTime;

use crate::{
    calling::roots_of,
    files::read_certificates,
    identity::{IdentityError, Pair},
    material::MaterialError,
};

/// Where a certificate and its private key are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PairFiles {
    /// The certificate, then its intermediates, in PEM.
    pub certificate: PathBuf,
    /// The private key in PEM: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// A verifier of clients whose certificates one of these authorities signed.
///
/// # Errors
/// When the file cannot be read or is damaged, or an authority in it cannot be used.
pub fn clients_of(authorities: &Path) -> Result<Arc<dyn ClientCertVerifier>, MaterialError> {
    let refused = |source| MaterialError::Tls { certificate: authorities.into(), source };
    let roots = roots_of(&read_certificates(authorities).map_err(IdentityError::from)?).map_err(refused)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(aws_lc_rs::default_provider()));
    verifier.build().map_err(|_| refused(Error::InvalidCertificate(CertificateError::UnknownIssuer)))
}

/// Certificate and key of a listener that anybody may connect to.
pub struct ServerMaterial {
    files: PairFiles,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Current>,
}

struct Current {
    pair: Pair,
    certified: Arc<CertifiedKey>,
}

impl ServerMaterial {
    /// Reads the files, which must be a pair that is good at this instant.
    ///
    /// # Errors
    /// When a file cannot be used, the two are no pair, or the certificate has expired or is not valid yet. Who signed it
    /// is the clients' business and not looked at.
    pub fn open(files: PairFiles, now: OffsetDateTime) -> Result<Arc<Self>, MaterialError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = ArcSwap::from_pointee(Current::load(&files, &provider, now)?);
        Ok(Arc::new(Self { files, provider, current }))
    }

    /// Reads the files again; true when what they hold is new and is used from now on, for new connections.
    ///
    /// # Errors
    /// As [`ServerMaterial::open`]. Nothing has changed then; try again later.
    pub fn reload(&self, now: OffsetDateTime) -> Result<bool, MaterialError> {
        let new = Current::load(&self.files, &self.provider, now)?;
        let is_new = new.pair != self.current.load().pair;
        if is_new {
            self.current.store(Arc::new(new));
        }
        Ok(is_new)
    }

    /// Last instant at which the certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.current.load().pair.certificate().not_after
    }

    /// For listening: TLS 1.2 or 1.3, no early data, and the protocols offered in this order. With a verifier clients
    /// need a certificate that it accepts; without one they are asked for none.
    ///
    /// Sessions are resumed by tickets alone (RFC 8446 §2.2), so the listener keeps nothing per client; the keys of the
    /// tickets change every 6 h and live in memory.
    ///
    /// # Errors
    /// When there is no randomness for the first ticket key.
    pub fn server_config(
        self: &Arc<Self>,
        alpn: &[&[u8]],
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("aws-lc-rs has suites of both versions")
            .with_client_cert_verifier(clients.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
            .with_cert_resolver(Arc::new(Live(self.clone())));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(config)
    }
}

impl Current {
    fn load(files: &PairFiles, provider: &CryptoProvider, now: OffsetDateTime) -> Result<Self, MaterialError> {
        let pair = Pair::load(&files.certificate, &files.key)?;
        pair.certificate().check_validity(now).map_err(IdentityError::from)?;
        let certified = pair
            .certified(provider)
            .map_err(|source| MaterialError::Tls { certificate: files.certificate.clone(), source })?;
        Ok(Self { pair, certified })
    }
}

impl fmt::Debug for ServerMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerMaterial").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Shows what is current at that moment, whatever name the client asks for.
#[derive(Debug)]
struct Live(Arc<ServerMaterial>);

impl ResolvesServerCert for Live {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current.load().certified.clone())
    }
}
