//! The identity that a running node uses now, and the TLS configurations that follow it when its files change.
//!
//! Rotation reads the files again and compares contents. That finds every way in which files are replaced, the swap of
//! a directory link (`..data`) included, and costs three small reads; neither times nor inodes can mislead it.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;

use crate::{
    allow_list::{AllowList, AllowListError},
    certificate::{Certificate, MalformedCertificate},
    identity::{Identity, IdentityError, IdentityFiles},
    names::{AllowedNodes, NodeNames},
};

/// Certificate, key and authorities of a node, replaced as a whole while connections use them.
pub struct Material {
    files: IdentityFiles,
    list: Option<AllowList>,
    allowed: ArcSwapOption<AllowedNodes>,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Current>,
    /// How often the identity or the list was replaced; counted after the fact.
    replaced: AtomicU64,
}

/// That a peer's chain was found good, and how long that is known without looking at it again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckedPeer {
    /// The nodes that the chain may speak for.
    pub names: NodeNames,
    replaced: u64,
    /// When it was checked. A clock that is set back before this knows nothing.
    from: UnixTime,
    /// The first end of a certificate of the chain that was to come.
    until: UnixTime,
}

/// What belongs together: never seen half old and half new.
struct Current {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    roots: RootCertStore,
    clients: Arc<dyn ClientCertVerifier>,
}

/// Why files are no material for TLS. What was in use before stays in use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaterialError {
    /// The files are no identity that a peer would accept now. The message names the file or the certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The new certificate names other nodes than the owner.
    #[error("the certificate in {} names another node: put that of this node there", .certificate.display())]
    OtherNode {
        /// Where it is.
        certificate: PathBuf,
    },
    /// The list of nodes that are let in cannot be read, or lacks this node.
    #[error(transparent)]
    AllowList(#[from] AllowListError),
    /// The TLS library refuses the key or an authority.
    #[error("the certificates in {} or the key cannot be used for TLS", .certificate.display())]
    Tls {
        /// Where they are.
        certificate: PathBuf,
        /// What it says.
        #[source]
        source: Error,
    },
}

impl Material {
    /// Reads the files, which must be a pair that is good at this instant.
    ///
    /// # Errors
    /// When a peer that trusts the same authorities would refuse it.
    pub fn open(files: IdentityFiles, now: OffsetDateTime) -> Result<Arc<Self>, MaterialError> {
        Self::open_for(files, None, now)
    }

    /// The same, where besides being trusted a peer must be on a list of nodes; none: every node is let in.
    ///
    /// # Errors
    /// As [`Material::open`], and when the list cannot be used.
    pub fn open_for(
        files: IdentityFiles,
        list: Option<AllowList>,
        now: OffsetDateTime,
    ) -> Result<Arc<Self>, MaterialError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = ArcSwap::from_pointee(Current::load(&files, &provider, now)?);
        let allowed = ArcSwapOption::from_pointee(list.as_ref().map(AllowList::read).transpose()?);
        Ok(Arc::new(Self { files, list, allowed, provider, current, replaced: AtomicU64::new(0) }))
    }

    /// Reads the list of nodes again; true when it is another and is used from now on. It does not wait for the identity:
    /// a node is put out also while a new certificate is bad.
    ///
    /// # Errors
    /// When the list cannot be used. Nothing has changed then; try again later.
    pub fn reload_list(&self) -> Result<bool, MaterialError> {
        let Some(list) = &self.list else { return Ok(false) };
        let new = list.read()?;
        let is_new = self.allowed.load().as_deref() != Some(&new);
        if is_new {
            self.allowed.store(Some(Arc::new(new)));
            self.replaced.fetch_add(1, Ordering::Release);
        }
        Ok(is_new)
    }

    /// Reads the files again; true when what they hold is new and is used from now on. `is_ours` says whether the names
    /// of a certificate are those that its owner needs.
    ///
    /// # Errors
    /// When the files are half written, no pair, expired, not valid yet, not trusted or another's. Nothing has changed
    /// then; try again later.
    pub fn reload_if(&self, now: OffsetDateTime, is_ours: &dyn Fn(&NodeNames) -> bool) -> Result<bool, MaterialError> {
        let new = Current::load(&self.files, &self.provider, now)?;
        if !is_ours(&new.identity.certificate().node_names()) {
            return Err(MaterialError::OtherNode { certificate: self.files.certificate.clone() });
        }
        let is_new = !new.identity.is_same(&self.current.load().identity);
        if is_new {
            self.current.store(Arc::new(new));
            self.replaced.fetch_add(1, Ordering::Release);
        }
        Ok(is_new)
    }

    /// Last instant at which the own certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.current.load().identity.certificate().not_after
    }

    /// The nodes that the own certificate may speak for.
    #[must_use]
    pub fn names(&self) -> NodeNames {
        self.current.load().identity.certificate().node_names()
    }

    /// Checks that a peer's chain, its own certificate first, is trusted at this instant and names a node that is let in.
    /// Connections outlive certificates and authorities; ask again when [`Material::holds`] says no.
    ///
    /// # Errors
    /// As in a handshake: unknown issuer, expired, not yet valid, wrong purpose; `ApplicationVerificationFailure` for a
    /// node that is not on the list.
    pub fn check_peer(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<CheckedPeer, Error> {
        let [leaf, intermediates @ ..] = chain else { return Err(Error::NoCertificatesPresented) };
        // Read first: what is replaced meanwhile makes the answer old, not wrong.
        let replaced = self.replaced.load(Ordering::Acquire);
        self.current.load().clients.verify_client_cert(leaf, intermediates, now)?;
        self.admit(leaf)?;
        let malformed = |_| Error::from(CertificateError::BadEncoding);
        let mut until = UnixTime::since_unix_epoch(Duration::MAX);
        for certificate in chain {
            // One that is not needed may be unreadable; then nothing is known for longer than now.
            let certificate = Certificate::from_der(certificate.clone().into_owned());
            let secs =
                certificate.map_or(now.as_secs(), |it| u64::try_from(it.not_after.unix_timestamp()).unwrap_or(0));
            if secs >= now.as_secs() {
                until = until.min(UnixTime::since_unix_epoch(Duration::from_secs(secs)));
            }
        }
        Ok(CheckedPeer { names: self.peer_names(chain).map_err(malformed)?, replaced, from: now, until })
    }

    /// Whether what was found is still known to be so: identity and list are the same, and no certificate has ended. This
    /// costs no signature. An instant before the check knows nothing.
    #[must_use]
    pub fn holds(&self, checked: &CheckedPeer, now: UnixTime) -> bool {
        self.replaced.load(Ordering::Acquire) == checked.replaced && (checked.from..=checked.until).contains(&now)
    }

    /// The nodes that a peer's chain may speak for: those of its first certificate that are let in. Trust is not
    /// checked here.
    ///
    /// # Errors
    /// When that certificate is malformed.
    pub fn peer_names(&self, chain: &[CertificateDer<'_>]) -> Result<NodeNames, MalformedCertificate> {
        let Some(leaf) = chain.first() else { return Ok(NodeNames::default()) };
        let names = Certificate::from_der(leaf.clone().into_owned())?.node_names();
        Ok(match self.allowed.load().as_deref() {
            Some(allowed) => names.only(allowed),
            None => names,
        })
    }

    fn admit(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.list.is_none() {
            return Ok(());
        }
        match self.peer_names(std::slice::from_ref(leaf)) {
            Ok(names) if !names.is_empty() => Ok(()),
            Ok(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Err(_) => Err(CertificateError::BadEncoding.into()),
        }
    }

    /// For listening: TLS 1.3 alone, a client certificate required, nothing resumed.
    #[must_use]
    pub fn server_config(self: &Arc<Self>, alpn: &[&[u8]]) -> ServerConfig {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("aws-lc-rs has suites of TLS 1.3")
            .with_client_cert_verifier(Arc::new(Live(self.clone())))
            .with_cert_resolver(Arc::new(Live(self.clone())));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config
    }

    /// For connecting: TLS 1.3 alone, the own certificate shown, nothing resumed. No server name is sent, since the
    /// first message of a handshake can be read by all; whose the certificate is must be checked by [`Material::peer_names`].
    #[must_use]
    pub fn client_config(self: &Arc<Self>, alpn: &[&[u8]]) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("aws-lc-rs has suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Live(self.clone())))
            .with_client_cert_resolver(Arc::new(Live(self.clone())));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config
    }
}

impl Current {
    fn load(files: &IdentityFiles, provider: &Arc<CryptoProvider>, now: OffsetDateTime) -> Result<Self, MaterialError> {
        let identity = Identity::load(files)?;
        identity.check(now)?;
        Self::new(identity, provider)
            .map_err(|source| MaterialError::Tls { certificate: files.certificate.clone(), source })
    }

    fn new(identity: Identity, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let certified = identity.pair().certified(provider)?;
        let mut roots = RootCertStore::empty();
        for authority in identity.authorities() {
            roots.add(authority.der().clone())?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider.clone())
            .build()
            .map_err(|_| Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        Ok(Self { identity, certified, roots, clients })
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Resolves and verifies by what is current at that moment.
#[derive(Debug)]
struct Live(Arc<Material>);

impl Live {
    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.0.provider.signature_verification_algorithms.supported_schemes()
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        self.0.current.load().certified.clone()
    }
}

impl ResolvesServerCert for Live {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ServerCertVerifier for Live {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.0.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(leaf)?;
        let current = self.0.current.load();
        verify_server_cert_signed_by_trust_anchor(&parsed, &current.roots, intermediates, now, algorithms)?;
        self.0.admit(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Live {
    /// No hints: every client here has one certificate, and names of authorities are nobody's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.current.load().clients.verify_client_cert(leaf, intermediates, now)?;
        self.0.admit(leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
