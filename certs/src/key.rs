//! A private key, in any of the three forms that tools write.

use std::{fmt, path::Path};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use x509_parser::{prelude::FromDer as _, x509::SubjectPublicKeyInfo};

use crate::{
    certificate::{Certificate, key_type},
    files::{LoadError, read},
};

/// A private key that TLS can sign with. Its `Debug` shows the kind alone.
pub struct PrivateKey {
    der: PrivateKeyDer<'static>,
    public_key: Vec<u8>,
}

impl PrivateKey {
    /// Reads the one private key of a PEM file: PKCS#8, SEC1 (`EC PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`). Other
    /// sections, certificates among them, are passed over.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or holds no key, several, an encrypted one, or one of another kind.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        Self::in_pem(path, &read(path)?)
    }

    pub(crate) fn in_pem(path: &Path, bytes: &[u8]) -> Result<Self, LoadError> {
        // PKCS#8 says it in the label, the older forms in a header (RFC 1421 §4.6.1.1).
        let marks: [&[u8]; 2] = [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];
        if marks.iter().any(|mark| bytes.windows(mark.len()).any(|window| window == *mark)) {
            return Err(LoadError::EncryptedKey(path.into()));
        }
        let mut sections = PrivateKeyDer::pem_slice_iter(bytes);
        let damaged = |source| LoadError::Pem { path: path.into(), source };
        let Some(der) = sections.next().transpose().map_err(damaged)? else {
            return Err(LoadError::NoKey(path.into()));
        };
        if sections.next().transpose().map_err(damaged)?.is_some() {
            return Err(LoadError::SeveralKeys(path.into()));
        }
        let signer = any_supported_type(&der).ok();
        let public_key = signer.and_then(|signer| Some(signer.public_key()?.to_vec()));
        let public_key = public_key.ok_or_else(|| LoadError::UnusableKey(path.into()))?;
        Ok(Self { der, public_key })
    }

    /// Kind and size, as in `ECDSA P-256`.
    #[must_use]
    pub fn key_type(&self) -> String {
        SubjectPublicKeyInfo::from_der(&self.public_key).map_or_else(|_| "unknown".into(), |(_, key)| key_type(&key))
    }

    /// Whether the certificate is for this key.
    #[must_use]
    pub fn belongs_to(&self, certificate: &Certificate) -> bool {
        self.public_key == certificate.public_key()
    }

    /// The key itself.
    #[must_use]
    pub fn der(&self) -> &PrivateKeyDer<'static> {
        &self.der
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PrivateKey").field(&self.key_type()).finish()
    }
}
