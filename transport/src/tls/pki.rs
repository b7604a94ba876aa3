//! Authorities and material for tests: every node of them, good, too old and too young, and a client without any.
#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};
use smg_certs::{AllowList, Authority, IdentityFiles, Material, NodeRequest};
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
        Material::open(self.write(dir.path(), node, now), now).unwrap()
    }

    /// Material that lets in a few nodes alone.
    pub(crate) fn exclusive(&self, node: &str, allowed: &[&str]) -> Arc<Material> {
        let now = OffsetDateTime::now_utc();
        let dir = tempfile::tempdir().unwrap();
        let named = allowed.iter().chain([&node]).map(|&node| node.to_owned()).collect();
        let list = AllowList { cluster: "smg".into(), own: node.into(), named, files: Vec::new() };
        Material::open_for(self.write(dir.path(), node, now), Some(list), now).unwrap()
    }

    /// Puts what a node needs for 5 days from an instant into a directory.
    pub(crate) fn write(&self, dir: &Path, node: &str, now: OffsetDateTime) -> IdentityFiles {
        let request = NodeRequest { cluster: "smg".into(), node: node.into(), days: Some(5), ..NodeRequest::default() };
        let issued = self.authority.issue(&request, now).unwrap();
        let files = IdentityFiles::in_dir(dir);
        std::fs::write(&files.certificate, issued.chain_pem).unwrap();
        std::fs::write(&files.key, issued.key_pem).unwrap();
        std::fs::write(&files.authorities, self.authority.bundle_pem()).unwrap();
        files
    }

    /// What clients try, and under which reason each is refused by a node that lets in `n2` alone: the table of both
    /// planes.
    pub(crate) fn refused_clients(&self, alpn: &'static [u8]) -> Vec<(&'static str, ClientConfig)> {
        let node = self.material("n2");
        let mut anonymous = node.client_config(&[alpn]);
        anonymous.client_auth_cert_resolver = Arc::new(Anonymous);
        vec![
            ("no_certificate", anonymous),
            ("no_alpn", node.client_config(&[])),
            ("expired", self.material_at("n2", Duration::days(-30)).client_config(&[alpn])),
            ("not_allowed", self.material("n3").client_config(&[alpn])),
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

/// Material that is replaced while it is used.
pub(crate) struct Renewable {
    pub(crate) material: Arc<Material>,
    dir: tempfile::TempDir,
}

impl Renewable {
    pub(crate) fn new(pki: &Pki, node: &str) -> Self {
        let (dir, now) = (tempfile::tempdir().unwrap(), OffsetDateTime::now_utc());
        let material = Material::open(pki.write(dir.path(), node, now), now).unwrap();
        Self { material, dir }
    }

    /// From now on all is of another authority, and the old one is not trusted any more.
    pub(crate) fn change_to(&self, pki: &Pki, node: &str) {
        let now = OffsetDateTime::now_utc();
        pki.write(self.dir.path(), node, now);
        assert!(self.material.reload_if(now, &|_| true).unwrap());
    }
}
