//! Authorities and material for tests: every node of them, good, too old and too young, and a client without any.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use rustls::{ClientConfig, SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};
use smg_certs::{Authority, IdentityFiles, Material, NodeRequest};
use time::{Duration, OffsetDateTime};

/// One authority of the cluster `smg`, ten years old and valid for ten more.
pub(crate) struct Pki {
    authority: Authority,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let then = OffsetDateTime::now_utc() - Duration::days(3600);
        Self { authority: Authority::create("smg", 7200, then).unwrap() }
    }

    /// Material of a node that is good now.
    pub(crate) fn material(&self, node: &str) -> Arc<Material> {
        self.material_at(node, Duration::ZERO)
    }

    /// Material for 5 days from an instant this far from now, opened by a process whose clock is there.
    pub(crate) fn material_at(&self, node: &str, from_now: Duration) -> Arc<Material> {
        let now = OffsetDateTime::now_utc() + from_now;
        let dir = tempfile::tempdir().unwrap();
        let request = NodeRequest { cluster: "smg".into(), node: node.into(), days: Some(5), ..NodeRequest::default() };
        let issued = self.authority.issue(&request, now).unwrap();
        let files = IdentityFiles::in_dir(dir.path());
        std::fs::write(&files.certificate, issued.chain_pem).unwrap();
        std::fs::write(&files.key, issued.key_pem).unwrap();
        std::fs::write(&files.authorities, self.authority.bundle_pem()).unwrap();
        Material::open(files, now).unwrap()
    }

    /// What clients try, and under which reason each is refused: the table of both planes.
    pub(crate) fn refused_clients(&self, alpn: &'static [u8]) -> Vec<(&'static str, ClientConfig)> {
        let node = self.material("n2");
        let mut anonymous = node.client_config(&[alpn]);
        anonymous.client_auth_cert_resolver = Arc::new(Anonymous);
        vec![
            ("no_certificate", anonymous),
            ("no_alpn", node.client_config(&[])),
            ("expired", self.material_at("n2", Duration::days(-30)).client_config(&[alpn])),
            ("not_yet_valid", self.material_at("n2", Duration::days(30)).client_config(&[alpn])),
        ]
    }
}

/// Shows no certificate.
#[derive(Debug)]
struct Anonymous;

impl ResolvesClientCert for Anonymous {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
