//! The identity of a node: its certificate chain, its key, and the authorities it trusts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{Error, crypto::CryptoProvider, sign::CertifiedKey};
use time::OffsetDateTime;

use crate::{
    certificate::Certificate,
    chain::{ChainError, ValidityError, check_chain},
    files::{LoadError, read_certificates},
    key::PrivateKey,
};

/// Where the three files of an identity are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityFiles {
    /// The node's certificate, then its intermediates.
    pub certificate: PathBuf,
    /// The node's private key.
    pub key: PathBuf,
    /// The certificates of all trusted authorities.
    pub authorities: PathBuf,
}

impl IdentityFiles {
    /// The names that `smg certs issue` and cert-manager give them: `tls.crt`, `tls.key` and `ca.crt` in one directory.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { certificate: dir.join("tls.crt"), key: dir.join("tls.key"), authorities: dir.join("ca.crt") }
    }
}

/// What a node shows to its peers, and whom it believes. Certificate and key belong together.
#[derive(Debug)]
pub struct Identity {
    pair: Pair,
    authorities: Vec<Certificate>,
}

/// A certificate with its intermediates, and the private key of the first.
#[derive(Debug)]
pub(crate) struct Pair {
    chain: Vec<Certificate>,
    key: PrivateKey,
}

/// Why files are no usable identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// One of the files cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Certificate and key are not a pair. Reading again helps when one of them was just being replaced.
    #[error(
        "the private key in {} does not belong to the first certificate in {}: put the node's own certificate first, \
         and take both from one issue", .key.display(), .certificate.display()
    )]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// The dates of the certificate forbid its use.
    #[error(transparent)]
    Validity(#[from] ValidityError),
    /// No trusted authority vouches for the certificate.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

impl Identity {
    /// Reads the files and checks that certificate and key are a pair. Dates and trust are not looked at, since they
    /// change with time: see [`Identity::check`].
    ///
    /// # Errors
    /// When a file cannot be used, or certificate and key are of different pairs. The message names the file.
    pub fn load(files: &IdentityFiles) -> Result<Self, IdentityError> {
        let pair = Pair::load(&files.certificate, &files.key)?;
        let authorities = read_certificates(&files.authorities)?;
        Ok(Self { pair, authorities })
    }

    /// Whether a peer that trusts the same authorities would accept it at this instant.
    ///
    /// # Errors
    /// When the certificate has expired or is not valid yet, or no authority vouches for it.
    pub fn check(&self, now: OffsetDateTime) -> Result<(), IdentityError> {
        self.certificate().check_validity(now)?;
        Ok(check_chain(&self.pair.chain, &self.authorities, now)?)
    }

    /// Whether both hold the same certificates, key and authorities.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.pair == other.pair && self.authorities == other.authorities
    }

    /// The node's own certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        self.pair.certificate()
    }

    /// The node's certificate, then its intermediates.
    #[must_use]
    pub fn chain(&self) -> &[Certificate] {
        &self.pair.chain
    }

    /// The private key of the certificate.
    #[must_use]
    pub fn key(&self) -> &PrivateKey {
        &self.pair.key
    }

    /// The trusted authorities.
    #[must_use]
    pub fn authorities(&self) -> &[Certificate] {
        &self.authorities
    }

    pub(crate) fn pair(&self) -> &Pair {
        &self.pair
    }
}

impl Pair {
    pub(crate) fn load(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let pair = Self { chain: read_certificates(certificate)?, key: PrivateKey::read(key)? };
        if !pair.key.belongs_to(pair.certificate()) {
            return Err(IdentityError::Mismatch { certificate: certificate.into(), key: key.into() });
        }
        Ok(pair)
    }

    /// The first certificate: files that are read have one at least.
    pub(crate) fn certificate(&self) -> &Certificate {
        &self.chain[0]
    }

    /// As TLS shows it.
    pub(crate) fn certified(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
        let chain = self.chain.iter().map(|certificate| certificate.der().clone()).collect();
        let key = provider.key_provider.load_private_key(self.key.der().clone_key())?;
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key.der() == other.key.der()
    }
}
