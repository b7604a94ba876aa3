//! Whether a certificate is good now, and whether an authority vouches for it.

use std::sync::Arc;

use rustls::{
    CertificateError, Error, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::aws_lc_rs,
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use crate::certificate::{Certificate, rfc3339};

/// Why a certificate's own dates forbid its use. Nothing changes that but time or a new certificate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ValidityError {
    /// Its time is over.
    #[error("the certificate of `{subject}` expired at {}: issue a new one", rfc3339(*.not_after))]
    Expired {
        /// Whose it is.
        subject: String,
        /// Its last instant.
        not_after: OffsetDateTime,
    },
    /// Its time has not come.
    #[error("the certificate of `{subject}` is not valid before {}: check the clocks, or issue a new one", rfc3339(*.not_before))]
    NotYet {
        /// Whose it is.
        subject: String,
        /// Its first instant.
        not_before: OffsetDateTime,
    },
}

/// Why no authority vouches for a certificate. Trying again does not help; other files do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// There is no certificate to check.
    #[error("there is no certificate")]
    Empty,
    /// No trusted authority signed it, directly or through the intermediates at hand.
    #[error(
        "no trusted authority signed the certificate of `{subject}`, whose issuer is `{issuer}`: put that authority \
         into ca.crt, or the intermediates between them into tls.crt behind the certificate"
    )]
    UnknownIssuer {
        /// Whose certificate it is.
        subject: String,
        /// Who is said to have signed it.
        issuer: String,
    },
    /// Mesh nodes are clients and servers alike, and this certificate may not be used as one of them.
    #[error(
        "the certificate of `{subject}` may not be used as a TLS {role}: issue it with the extended key usages \
         serverAuth and clientAuth"
    )]
    Purpose {
        /// Whose certificate it is.
        subject: String,
        /// `server` or `client`.
        role: &'static str,
    },
    /// An authority cannot be trusted because its certificate is malformed.
    #[error("the authority `{subject}` cannot be used")]
    Authority {
        /// Whose certificate it is.
        subject: String,
        /// What rustls says.
        #[source]
        source: Error,
    },
    /// The verifier refused for another reason, as an expired intermediate.
    #[error("the chain of `{subject}` is refused as a TLS {role}")]
    Refused {
        /// Whose certificate it is.
        subject: String,
        /// `server` or `client`.
        role: &'static str,
        /// What rustls says.
        #[source]
        source: Error,
    },
}

/// Checks the first certificate, with the others as intermediates, against the authorities: as a server's and as a
/// client's, at an instant, by the verifiers of TLS. Names are not checked; see [`crate::NodeNames`].
///
/// # Errors
/// When no authority vouches for it, when it may not be used as server and client, or when a date forbids it.
pub fn check_chain(chain: &[Certificate], authorities: &[Certificate], now: OffsetDateTime) -> Result<(), ChainError> {
    let [leaf, intermediates @ ..] = chain else { return Err(ChainError::Empty) };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.der().clone())
            .map_err(|source| ChainError::Authority { subject: authority.subject.clone(), source })?;
    }
    let intermediates: Vec<CertificateDer<'_>> = intermediates.iter().map(|it| it.der().clone()).collect();
    let now = unix_time(now);
    as_server(leaf, &intermediates, &roots, now).map_err(|error| chain_error(leaf, "server", error))?;
    as_client(leaf, &intermediates, roots, now).map_err(|error| chain_error(leaf, "client", error))
}

fn as_server(
    leaf: &Certificate,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), Error> {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(leaf.der())?;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
}

fn as_client(
    leaf: &Certificate,
    intermediates: &[CertificateDer<'_>],
    roots: RootCertStore,
    now: UnixTime,
) -> Result<(), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let unknown = |_| Error::InvalidCertificate(CertificateError::UnknownIssuer);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(unknown)?;
    verifier.verify_client_cert(leaf.der(), intermediates, now).map(drop)
}

fn chain_error(leaf: &Certificate, role: &'static str, source: Error) -> ChainError {
    let subject = leaf.subject.clone();
    match source {
        // A bad signature is what another authority of the same name looks like.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            ChainError::UnknownIssuer { subject, issuer: leaf.issuer.clone() }
        }
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => ChainError::Purpose { subject, role },
        source => ChainError::Refused { subject, role, source },
    }
}

/// Instants before 1970 are taken as 1970.
fn unix_time(instant: OffsetDateTime) -> UnixTime {
    let seconds = u64::try_from(instant.unix_timestamp()).unwrap_or_default();
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}
