//! One certificate, and what a person or a check wants to know of it.

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{ExtendedKeyUsage, GeneralName},
    prelude::FromDer as _,
    time::ASN1Time,
    x509::SubjectPublicKeyInfo,
};

use crate::{chain::ValidityError, names::NodeNames};

/// A parsed certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// Distinguished name of the subject; may be empty.
    pub subject: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// Serial number in hexadecimal, bytes divided by colons.
    pub serial: String,
    /// DNS SANs as they stand; their syntax is not checked.
    pub dns_names: Vec<String>,
    /// URI SANs as they stand.
    pub uris: Vec<String>,
    /// IP SANs.
    pub ip_addresses: Vec<IpAddr>,
    /// First instant at which it is valid.
    pub not_before: OffsetDateTime,
    /// Last instant at which it is valid.
    pub not_after: OffsetDateTime,
    /// Kind and size of its key, as in `ECDSA P-256` and `RSA 2048`.
    pub key_type: String,
    /// Whether it may sign certificates: its basic constraints say CA, and its key usage does not contradict.
    pub is_authority: bool,
    /// What its extended key usage allows; empty when it has none, which allows everything.
    pub uses: Vec<String>,
    der: CertificateDer<'static>,
    public_key: Vec<u8>,
    is_self_issued: bool,
}

/// Why bytes are no certificate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedCertificate(String);

impl Certificate {
    /// Parses DER.
    ///
    /// # Errors
    /// When the bytes are no X.509 certificate, when others follow it, or an extension read here is malformed or stands
    /// twice.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, MalformedCertificate> {
        let malformed = |error: &dyn std::fmt::Display| MalformedCertificate(error.to_string());
        let (rest, x509) = X509Certificate::from_der(&der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes follow the certificate"));
        }
        let names = x509.subject_alternative_name().map_err(|error| malformed(&error))?;
        let constraints = x509.basic_constraints().map_err(|error| malformed(&error))?;
        let usage = x509.key_usage().map_err(|error| malformed(&error))?;
        let extended = x509.extended_key_usage().map_err(|error| malformed(&error))?;
        let mut certificate = Self {
            subject: x509.subject().to_string(),
            issuer: x509.issuer().to_string(),
            serial: x509.raw_serial_as_string(),
            dns_names: Vec::new(),
            uris: Vec::new(),
            ip_addresses: Vec::new(),
            not_before: instant(x509.validity().not_before).map_err(|error| malformed(&error))?,
            not_after: instant(x509.validity().not_after).map_err(|error| malformed(&error))?,
            key_type: key_type(x509.public_key()),
            is_authority: constraints.is_some_and(|it| it.value.ca) && usage.is_none_or(|it| it.value.key_cert_sign()),
            uses: extended.map(|it| uses(it.value)).unwrap_or_default(),
            public_key: x509.public_key().raw.to_vec(),
            is_self_issued: x509.subject().as_raw() == x509.issuer().as_raw(),
            der: CertificateDer::from(Vec::new()),
        };
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            certificate.take_name(name);
        }
        drop(x509);
        certificate.der = der;
        Ok(certificate)
    }

    fn take_name(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => self.ip_addresses.extend(ip_address(bytes)),
            _ => {}
        }
    }

    /// The certificate as it came.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The nodes it names.
    #[must_use]
    pub fn node_names(&self) -> NodeNames {
        NodeNames::new(&self.uris, &self.dns_names)
    }

    /// Whole days until it expires, rounded down; negative when it has.
    #[must_use]
    pub fn days_left(&self, now: OffsetDateTime) -> i64 {
        (self.not_after - now).whole_seconds().div_euclid(Duration::DAY.whole_seconds())
    }

    /// Whether its own dates allow its use at this instant.
    ///
    /// # Errors
    /// When it has expired or is not valid yet.
    pub fn check_validity(&self, now: OffsetDateTime) -> Result<(), ValidityError> {
        if now > self.not_after {
            return Err(ValidityError::Expired { subject: self.subject.clone(), not_after: self.not_after });
        }
        if now < self.not_before {
            return Err(ValidityError::NotYet { subject: self.subject.clone(), not_before: self.not_before });
        }
        Ok(())
    }

    /// Its public key: a SubjectPublicKeyInfo in DER.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Whether subject and issuer are one name, as in a root.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.is_self_issued
    }
}

/// An instant as `2026-11-23T18:00:00Z`.
#[must_use]
pub fn rfc3339(instant: OffsetDateTime) -> String {
    instant.format(&Rfc3339).unwrap_or_else(|_| instant.to_string())
}

fn instant(time: ASN1Time) -> Result<OffsetDateTime, time::error::ComponentRange> {
    OffsetDateTime::from_unix_timestamp(time.timestamp())
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Kind and size of a public key; its OID where it is none of the usual ones.
pub(crate) fn key_type(key: &SubjectPublicKeyInfo<'_>) -> String {
    let algorithm = key.algorithm.algorithm.to_id_string();
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    match (algorithm.as_str(), curve.map(|oid| oid.to_id_string()).as_deref()) {
        ("1.2.840.113549.1.1.1", _) => format!("RSA {}", key.parsed().map(|key| key.key_size()).unwrap_or_default()),
        ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => "ECDSA P-256".into(),
        ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => "ECDSA P-384".into(),
        ("1.2.840.10045.2.1", Some("1.3.132.0.35")) => "ECDSA P-521".into(),
        ("1.3.101.112", _) => "Ed25519".into(),
        _ => algorithm,
    }
}

fn uses(usage: &ExtendedKeyUsage<'_>) -> Vec<String> {
    let known = [
        (usage.server_auth, "server"),
        (usage.client_auth, "client"),
        (usage.any, "any"),
        (usage.code_signing, "code signing"),
        (usage.email_protection, "email"),
        (usage.time_stamping, "time stamping"),
        (usage.ocsp_signing, "OCSP signing"),
    ];
    let known = known.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name.to_owned());
    known.chain(usage.other.iter().map(x509_parser::asn1_rs::Oid::to_id_string)).collect()
}
