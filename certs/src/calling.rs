//! What a client of other services shows them, and whom it believes: replaced as a whole while connections use it.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use time::OffsetDateTime;

use crate::{
    certificate::Certificate,
    files::read_certificates,
    identity::{IdentityError, Pair},
    material::MaterialError,
    serving::PairFiles,
};

/// What a client is given; nothing at all is the usual case.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientFiles {
    /// The certificates of the only authorities that are trusted; none: those that this machine trusts.
    pub authorities: Option<PathBuf>,
    /// What is shown to services that ask for a client certificate; none: nothing is.
    pub pair: Option<PairFiles>,
}

/// Whom a client believes, and what it shows.
///
/// A service must have a certificate for the host name or the address by which it is called, from a trusted authority
/// and good at that instant: the rules of WebPKI, as [`rustls`] has them.
pub struct ClientMaterial {
    files: ClientFiles,
    alpn: Vec<Vec<u8>>,
    current: ArcSwap<Current>,
}

/// What belongs together: never seen half old and half new.
struct Current {
    authorities: Option<Vec<Certificate>>,
    roots: Option<RootCertStore>,
    pair: Option<Pair>,
    certified: Option<Arc<CertifiedKey>>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl ClientMaterial {
    /// Reads the files, as far as there are any. `alpn` is what the client speaks.
    ///
    /// # Errors
    /// When a file cannot be used, certificate and key are no pair, or the certificate has expired or is not valid yet.
    pub fn open(files: ClientFiles, alpn: &[&[u8]], now: OffsetDateTime) -> Result<Arc<Self>, MaterialError> {
        let current = ArcSwap::from_pointee(Current::load(&files, now)?);
        let alpn = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(Self { files, alpn, current }))
    }

    /// Whether there is anything to read again.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.files != ClientFiles::default()
    }

    /// Reads the files again; true when what they hold is new and is used from now on, for new connections.
    ///
    /// # Errors
    /// As [`ClientMaterial::open`]. Nothing has changed then; try again later.
    pub fn reload(&self, now: OffsetDateTime) -> Result<bool, MaterialError> {
        let new = Current::load(&self.files, now)?;
        let current = self.current.load();
        let is_new = new.pair != current.pair || new.authorities != current.authorities;
        if is_new {
            self.current.store(Arc::new(new));
        }
        Ok(is_new)
    }

    /// Last instant at which the own certificate is valid; none when none is shown.
    #[must_use]
    pub fn not_after(&self) -> Option<OffsetDateTime> {
        self.current.load().pair.as_ref().map(|pair| pair.certificate().not_after)
    }

    /// For connecting: TLS 1.2 or 1.3, the host name sent and checked. It is another one after each replacement and
    /// the same until then, so that sessions are never resumed with what is no longer trusted.
    ///
    /// Where this machine's authorities are meant they are read at the first call, and stay as they are until the
    /// process ends.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        let current = self.current.load();
        current.config.get_or_init(|| Arc::new(current.configure(&self.alpn))).clone()
    }
}

impl Current {
    fn load(files: &ClientFiles, now: OffsetDateTime) -> Result<Self, MaterialError> {
        let authorities = files.authorities.as_deref().map(read_certificates).transpose();
        let authorities = authorities.map_err(IdentityError::from)?;
        let tls = |certificate: &PathBuf, source| MaterialError::Tls { certificate: certificate.clone(), source };
        let roots = match (&files.authorities, &authorities) {
            (Some(file), Some(authorities)) => Some(roots_of(authorities).map_err(|source| tls(file, source))?),
            _ => None,
        };
        let (mut pair, mut certified) = (None, None);
        if let Some(files) = &files.pair {
            let loaded = Pair::load(&files.certificate, &files.key)?;
            loaded.certificate().check_validity(now).map_err(IdentityError::from)?;
            let provider = aws_lc_rs::default_provider();
            certified = Some(loaded.certified(&provider).map_err(|source| tls(&files.certificate, source))?);
            pair = Some(loaded);
        }
        Ok(Self { authorities, roots, pair, certified, config: OnceLock::new() })
    }

    fn configure(&self, alpn: &[Vec<u8>]) -> ClientConfig {
        let roots = self.roots.clone().unwrap_or_else(|| system_roots().clone());
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("aws-lc-rs has suites of both versions")
            .with_root_certificates(roots);
        let mut config = match &self.certified {
            Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.to_vec();
        config
    }
}

pub(crate) fn roots_of(authorities: &[Certificate]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.der().clone())?;
    }
    Ok(roots)
}

/// The authorities that this machine trusts: `SSL_CERT_FILE`, `SSL_CERT_DIR`, or where the distribution keeps them. What
/// cannot be read is left out; with none at all no service is believed.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    })
}

impl fmt::Debug for ClientMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientMaterial").field("files", &self.files).finish_non_exhaustive()
    }
}
