//! PEM files: reading them within bounds, and saying what is wrong with one by its name.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use rustls_pki_types::{
    CertificateDer,
    pem::{self, PemObject as _},
};

use crate::certificate::{Certificate, MalformedCertificate};

/// Largest file that is read, in bytes: a bundle of every public authority has a quarter of it.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a file of certificates or a key cannot be used. Trying again helps when the file was just being written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The operating system refuses: no such file, no permission.
    #[error("cannot read {}: put the file there, readable to this user, or name another", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// The file is larger than [`FILE_BYTES_MAX`].
    #[error("{} has more than {FILE_BYTES_MAX} bytes: keep only the certificates and the key that are needed", .0.display())]
    TooLarge(PathBuf),
    /// A section begins and does not end, or holds no base64: the file is damaged or half written.
    #[error("{} is damaged or half written: write it again, whole", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: pem::Error,
    },
    /// No `BEGIN CERTIFICATE` in the file.
    #[error("{} holds no certificate: it needs PEM sections that begin with -----BEGIN CERTIFICATE-----", .0.display())]
    NoCertificate(PathBuf),
    /// A section is no X.509 certificate.
    #[error("certificate {number} in {} is malformed: replace it", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Which section, from 1.
        number: usize,
        /// What is wrong.
        #[source]
        source: MalformedCertificate,
    },
    /// No private key in the file.
    #[error("{} holds no private key: it needs a PEM section in PKCS#8, SEC1 or PKCS#1", .0.display())]
    NoKey(PathBuf),
    /// The private key is encrypted, and nobody is there to be asked for the password.
    #[error("the private key in {path} is encrypted: decrypt it with `openssl pkey -in {path} -out FILE`", path = .0.display())]
    EncryptedKey(PathBuf),
    /// It is unclear which private key is meant.
    #[error("{} holds several private keys: keep the one that belongs to the certificate", .0.display())]
    SeveralKeys(PathBuf),
    /// The private key is of a kind that TLS cannot use here.
    #[error(
        "the private key in {} is malformed or of an unknown kind: use ECDSA P-256, P-384 or P-521, Ed25519, or RSA \
         with 2048 to 8192 bits",
        .0.display()
    )]
    UnusableKey(PathBuf),
}

/// The certificates of a PEM file, in its order, at least one.
///
/// # Errors
/// When the file cannot be read or is too large, and when a section of it is damaged or no certificate.
pub fn read_certificates(path: &Path) -> Result<Vec<Certificate>, LoadError> {
    certificates_in(path, &read(path)?)
}

pub(crate) fn certificates_in(path: &Path, bytes: &[u8]) -> Result<Vec<Certificate>, LoadError> {
    let mut certificates = Vec::new();
    for section in CertificateDer::pem_slice_iter(bytes) {
        let der = section.map_err(|source| LoadError::Pem { path: path.into(), source })?;
        let number = certificates.len() + 1;
        let parsed = Certificate::from_der(der);
        certificates.push(parsed.map_err(|source| LoadError::Certificate { path: path.into(), number, source })?);
    }
    if certificates.is_empty() { Err(LoadError::NoCertificate(path.into())) } else { Ok(certificates) }
}

/// The bytes of a file of at most [`FILE_BYTES_MAX`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let refused = |source| LoadError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(refused)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(refused)?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(LoadError::TooLarge(path.into())) } else { Ok(bytes) }
}
