//! A certificate authority for the nodes of a mesh.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::DnsName;
use time::{Duration, OffsetDateTime};

use crate::{
    certificate::{Certificate, rfc3339},
    chain::{ChainError, ValidityError, check_chain},
    files::{LoadError, certificates_in, read},
    key::PrivateKey,
    names::{CLUSTER_BYTES_MAX, NODE_BYTES_MAX, is_cluster_label, is_node_name},
};

/// Longest validity of an authority that [`Authority::create`] makes, in days: 20 years.
pub const AUTHORITY_DAYS_MAX: u32 = 7300;

/// Longest validity of a node's certificate, in days.
pub const NODE_DAYS_MAX: u32 = 825;

/// Validity of a node's certificate when none is asked for, in days; shorter where the authority ends sooner.
pub const NODE_DAYS_DEFAULT: u32 = 365;

/// Certificates begin this long ago, since the clock of a peer may be behind.
const BACKDATED: Duration = Duration::HOUR;

/// Longest common name (X.520, `ub-common-name`).
const COMMON_NAME_MAX: usize = 64;

/// An authority with its key.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    /// Everything that its nodes trust: this authority, and others in a time of change.
    bundle: Vec<Certificate>,
    bundle_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a node's certificate shall say.
#[derive(Clone, Debug, Default)]
pub struct NodeRequest {
    /// Label of the cluster: 1 to 64 visible ASCII characters.
    pub cluster: String,
    /// Name of the node: 1 to 128 ASCII letters, digits, `.`, `_` and `-`.
    pub node: String,
    /// DNS names in addition to the node's own. Each is a name under which the node may speak in the mesh, too.
    pub dns_names: Vec<String>,
    /// IP addresses. They mean nothing to the mesh; other clients may want them.
    pub ip_addresses: Vec<IpAddr>,
    /// 1 to [`NODE_DAYS_MAX`]; [`NODE_DAYS_DEFAULT`] when none. The certificate never outlives its authority: its last
    /// day is cut short for that, and more than a day beyond it is refused when it was asked for.
    pub days: Option<u32>,
}

/// A certificate with its key, in PEM.
#[derive(Debug)]
pub struct Issued {
    /// The certificate, then the authority's where that is an intermediate: a root is what peers have already.
    pub chain_pem: String,
    /// The key in PKCS#8. Secret.
    pub key_pem: String,
}

/// Why no certificate was made. Nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// A file of the authority cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The key of the authority belongs to none of its certificates.
    #[error("the key in {} belongs to no certificate in {}: take both from one authority", .key.display(), .certificate.display())]
    Mismatch {
        /// The file of certificates.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// The certificate is none of an authority.
    #[error("`{0}` is no certificate authority: its basic constraints and key usage must allow signing certificates")]
    NotAuthority(String),
    /// The authority's own dates forbid its use.
    #[error(transparent)]
    Validity(#[from] ValidityError),
    /// Not the name of a node.
    #[error("`{0}` is no node name: use 1 to {NODE_BYTES_MAX} letters, digits, '.', '_' or '-'")]
    Node(String),
    /// Not the label of a cluster.
    #[error("`{0}` is no cluster label: use 1 to {CLUSTER_BYTES_MAX} visible ASCII characters")]
    Cluster(String),
    /// Not a DNS name.
    #[error("`{0}` is no DNS name: use labels of 1 to 63 letters, digits, '-' or '_', divided by dots; `*.` may lead")]
    Dns(String),
    /// Too many days, or none.
    #[error("{given} days are out of range: use 1 to {max}")]
    Days {
        /// What was asked for.
        given: u32,
        /// The most there is.
        max: u32,
    },
    /// The certificate would be valid when its authority no longer is.
    #[error("{days} days outlive the authority, which ends at {}: use fewer, or make a new authority", rfc3339(*.authority_ends))]
    OutlivesAuthority {
        /// What was asked for.
        days: u32,
        /// Last instant of the authority.
        authority_ends: OffsetDateTime,
    },
    /// The certificate that was made does not verify, as under an authority whose subject has an attribute twice or
    /// whose name constraints exclude the node.
    #[error("this authority cannot issue for nodes: the certificate it made does not verify")]
    Unverifiable(#[source] ChainError),
    /// The cryptography refuses.
    #[error("the certificate cannot be made")]
    Generate(#[from] rcgen::Error),
}

impl Authority {
    /// Makes a self-signed authority for a cluster, with an ECDSA P-256 key, valid for 1 to [`AUTHORITY_DAYS_MAX`] days
    /// from `now`. It signs certificates of nodes, never of further authorities.
    ///
    /// # Errors
    /// When the label is none or the days are out of range.
    pub fn create(cluster: &str, days: u32, now: OffsetDateTime) -> Result<Self, IssueError> {
        check_days(days, AUTHORITY_DAYS_MAX)?;
        let mut params = params(cluster, "smg mesh CA", now, now + Duration::days(i64::from(days)))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let made = params.self_signed(&key)?;
        let certificate = parsed(made.der().to_vec())?;
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key)?;
        Ok(Self { bundle: vec![certificate.clone()], certificate, bundle_pem: made.pem(), issuer })
    }

    /// Reads `ca.crt` and `ca.key` of a directory. `ca.crt` may hold other authorities besides the one whose key it is,
    /// before or behind it.
    ///
    /// # Errors
    /// When a file cannot be used, or the key belongs to no certificate there.
    pub fn load(dir: &Path) -> Result<Self, IssueError> {
        let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let bytes = read(&certificate_path)?;
        let bundle = certificates_in(&certificate_path, &bytes)?;
        let key = PrivateKey::read(&key_path)?;
        let Some(certificate) = bundle.iter().find(|certificate| key.belongs_to(certificate)).cloned() else {
            return Err(IssueError::Mismatch { certificate: certificate_path, key: key_path });
        };
        let issuer = Issuer::from_ca_cert_der(certificate.der(), KeyPair::try_from(key.der())?)?;
        Ok(Self { certificate, bundle, bundle_pem: String::from_utf8_lossy(&bytes).into_owned(), issuer })
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The certificates that its nodes trust, in PEM: `ca.crt` as it stands.
    #[must_use]
    pub fn bundle_pem(&self) -> &str {
        &self.bundle_pem
    }

    /// Its key in PKCS#8. Secret.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a node's key (ECDSA P-256) and certificate: SANs `spiffe://<cluster>/mesh/<node>`, the name as a DNS name
    /// where it can be one, and what else is asked for; for use as a TLS server and as a client. Valid from an hour ago,
    /// since clocks differ.
    ///
    /// # Errors
    /// When the request breaks a rule, the authority may not sign at this instant, or what it signed does not verify.
    pub fn issue(&self, request: &NodeRequest, now: OffsetDateTime) -> Result<Issued, IssueError> {
        if !self.certificate.is_authority {
            return Err(IssueError::NotAuthority(self.certificate.subject.clone()));
        }
        self.certificate.check_validity(now)?;
        if !is_node_name(&request.node) {
            return Err(IssueError::Node(request.node.clone()));
        }
        let mut params = params(&request.cluster, &request.node, now, self.end_of(request.days, now)?)?;
        params.subject_alt_names = subject_alt_names(request)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let made = params.signed_by(&key, &self.issuer)?;

        let mut chain = vec![parsed(made.der().to_vec())?];
        let mut chain_pem = made.pem();
        if !self.certificate.is_self_issued() {
            chain_pem.push_str(&pem_of(&self.certificate));
            chain.push(self.certificate.clone());
        }
        check_chain(&chain, &self.bundle, now).map_err(IssueError::Unverifiable)?;
        Ok(Issued { chain_pem, key_pem: key.serialize_pem() })
    }

    fn end_of(&self, days: Option<u32>, now: OffsetDateTime) -> Result<OffsetDateTime, IssueError> {
        let authority_ends = self.certificate.not_after;
        let Some(days) = days else {
            return Ok(authority_ends.min(now + Duration::days(i64::from(NODE_DAYS_DEFAULT))));
        };
        check_days(days, NODE_DAYS_MAX)?;
        let end = now + Duration::days(i64::from(days));
        if end - authority_ends >= Duration::DAY {
            return Err(IssueError::OutlivesAuthority { days, authority_ends });
        }
        Ok(end.min(authority_ends))
    }
}

fn check_days(given: u32, max: u32) -> Result<(), IssueError> {
    if (1..=max).contains(&given) { Ok(()) } else { Err(IssueError::Days { given, max }) }
}

/// What authorities and nodes have alike: the subject and the dates, in whole seconds.
fn params(
    cluster: &str,
    common_name: &str,
    now: OffsetDateTime,
    end: OffsetDateTime,
) -> Result<CertificateParams, IssueError> {
    if !is_cluster_label(cluster) {
        return Err(IssueError::Cluster(cluster.to_owned()));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, cluster);
    if common_name.len() <= COMMON_NAME_MAX {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    params.not_before = (now - BACKDATED).truncate_to_second();
    params.not_after = end.truncate_to_second();
    Ok(params)
}

fn subject_alt_names(request: &NodeRequest) -> Result<Vec<SanType>, IssueError> {
    let uri = format!("spiffe://{}/mesh/{}", request.cluster, request.node);
    let mut names = vec![SanType::URI(uri.as_str().try_into()?)];
    let mut dns_names: Vec<&str> = Vec::new();
    // A name such as `10.0.0.1` or `a..b` is fine for a node and none of a host: the URI alone names it then.
    if is_dns_name(&request.node) {
        dns_names.push(&request.node);
    }
    for name in &request.dns_names {
        if !is_dns_name(name.strip_prefix("*.").unwrap_or(name)) {
            return Err(IssueError::Dns(name.clone()));
        }
        if !dns_names.contains(&name.as_str()) {
            dns_names.push(name);
        }
    }
    for name in dns_names {
        names.push(SanType::DnsName(name.try_into()?));
    }
    names.extend(request.ip_addresses.iter().copied().map(SanType::IpAddress));
    Ok(names)
}

fn is_dns_name(text: &str) -> bool {
    text.parse::<IpAddr>().is_err() && DnsName::try_from(text).is_ok()
}

fn parsed(der: Vec<u8>) -> Result<Certificate, IssueError> {
    Certificate::from_der(der.into()).map_err(|_| IssueError::Generate(rcgen::Error::CouldNotParseCertificate))
}

fn pem_of(certificate: &Certificate) -> String {
    let unix_lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.der().to_vec()), unix_lines)
}
