//! Mutual TLS under both planes: one identity, and one name for each reason to refuse a peer.

use std::{
    io,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use smg_certs::{CheckedPeer, Material};

use crate::PeerIdentity;

/// ALPN of the datagram plane.
pub const ALPN_DATAGRAMS: &[u8] = b"smg-mesh/1";

/// ALPN of the stream plane: gRPC is HTTP/2.
pub const ALPN_STREAMS: &[u8] = b"h2";

/// A living connection's peer is checked again this often, unless configured otherwise, against the clock and the
/// authorities of the moment.
pub const RECHECK_INTERVAL: Duration = Duration::from_secs(20);

/// Why a peer was refused, or refused us: a closed set, for metrics and logs.
#[must_use]
pub fn refusal(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "unknown_issuer",
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_yet_valid",
            CertificateError::ApplicationVerificationFailure => "not_allowed",
            _ => "bad_certificate",
        },
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "tls_version",
        Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => "no_alpn",
        Error::InvalidMessage(_) => "plaintext",
        Error::AlertReceived(_) => "refused_by_peer",
        _ => "tls",
    }
}

/// The same for what a TLS stream gives; ends of the connection below are `tls_closed`.
pub(crate) fn io_refusal(error: &io::Error) -> &'static str {
    verdict(error).unwrap_or("tls_closed")
}

/// The same, where the error is a verdict of TLS at all.
pub(crate) fn verdict(error: &io::Error) -> Option<&'static str> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(refusal)
}

/// Whom a verified chain speaks for; none when its certificate cannot be read.
pub(crate) fn identity(material: &Material, chain: &[CertificateDer<'_>]) -> Option<PeerIdentity> {
    material.peer_names(chain).ok().map(|names| PeerIdentity(Arc::new(names)))
}

/// Connections are checked at multiples of their interval from here on, so that the process wakes once for all of them.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time until the next check, at most the interval.
fn until_check(interval: Duration) -> Duration {
    let into = START.elapsed().as_nanos() % interval.as_nanos().max(1);
    interval.saturating_sub(Duration::from_nanos(u64::try_from(into).unwrap_or(0)))
}

/// Waits until the peer's chain is no longer good for all that its connection speaks for since hands were shaken, and says
/// why.
pub(crate) async fn until_distrusted(
    material: &Material,
    chain: &[CertificateDer<'static>],
    identity: &PeerIdentity,
    recheck: Duration,
) -> &'static str {
    let mut checked: Option<CheckedPeer> = None;
    loop {
        tokio::time::sleep(until_check(recheck)).await;
        let now = UnixTime::now();
        if checked.as_ref().is_some_and(|checked| material.holds(checked, now)) {
            continue;
        }
        match material.check_peer(chain, now) {
            // One of several names that is let in no more ends it too.
            Ok(found) if !found.names.covers(&identity.0) => return "not_allowed",
            Ok(found) => checked = Some(found),
            Err(error) => return refusal(&error),
        }
    }
}

/// The name that the libraries want; never sent.
pub(crate) fn unsent_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED).into())
}

#[cfg(test)]
pub(crate) mod pki;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustls_pki_types::pem::PemObject as _;
    use time::OffsetDateTime;

    use super::{pki::Pki, *};

    /// The list may change between the handshake and the first check: what counts is whom the connection speaks for since.
    #[tokio::test]
    async fn a_name_that_the_connection_has_and_the_certificate_has_no_more_ends_it() {
        let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
        let files = pki.write(dir.path(), "n2", OffsetDateTime::now_utc());
        let chain = [CertificateDer::from_pem_file(&files.certificate).unwrap()];
        let (material, recheck) = (pki.material("n1"), Duration::from_millis(1));
        let identity = |node: &str| PeerIdentity(Arc::new(pki.material(node).names()));
        assert_eq!(until_distrusted(&material, &chain, &identity("n3"), recheck).await, "not_allowed");
        let own = identity("n2");
        let good = until_distrusted(&material, &chain, &own, recheck);
        tokio::time::timeout(Duration::from_millis(50), good).await.expect_err("it is as it was");
    }
}
