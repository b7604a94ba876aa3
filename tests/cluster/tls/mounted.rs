//! Identities mounted as Kubernetes mounts a secret: `tls.crt` and the others are links into `..data`, itself a link to a
//! directory, and a new secret is a new directory to which `..data` is moved by one rename.

use std::os::unix::fs::symlink;

use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use smg_certs::{Authority, IdentityFiles, Issued, Material, NodeRequest};
use time::{Duration, OffsetDateTime};
use tokio_rustls::TlsConnector;

use super::*;

/// Files are read every 5 s; the rest is for a machine that is busy.
const TAKEN_WITHIN: std::time::Duration = s(10);

/// Three nodes of a mesh, each with a volume of its own.
struct Mounted {
    network: Network,
    dir: tempfile::TempDir,
    nodes: Vec<Gateway>,
    /// Secrets written so far; each is a directory of its own.
    round: i64,
}

impl Mounted {
    async fn start(of: &Authority) -> Self {
        let (network, dir) = (Network::new(), tempfile::tempdir().unwrap());
        let mut mounted = Self { network, dir, nodes: Vec::new(), round: 0 };
        mounted.update(of, of, of.bundle_pem());
        for n in 1..=3 {
            let node = start(network, mounted.dir.path(), n, &[1, 2, 3], &format!("node{n}"));
            mounted.nodes.push(node);
        }
        joined(&mounted.nodes.iter().collect::<Vec<_>>(), 3, s(15)).await;
        mounted
    }

    /// A certificate of this round, whose end tells it from those of others.
    fn issue(&self, of: &Authority, n: u8) -> Issued {
        let request =
            NodeRequest { cluster: "smg".into(), node: format!("node{n}"), days: Some(5), ..NodeRequest::default() };
        of.issue(&request, OffsetDateTime::now_utc() - Duration::hours(self.round)).unwrap()
    }

    /// Moves `..data` of every node to a new directory, with a certificate of one authority and a key of one of another:
    /// the same, unless they are not to fit.
    fn update(&mut self, of: &Authority, key_of: &Authority, trusted: &str) -> Vec<String> {
        self.round += 1;
        let mut leaves = Vec::new();
        for n in 1..=3 {
            let issued = self.issue(of, n);
            let key = if std::ptr::eq(of, key_of) { issued.key_pem } else { self.issue(key_of, n).key_pem };
            let volume = self.dir.path().join(format!("node{n}"));
            let secret = format!("..2026_{}", self.round);
            std::fs::create_dir_all(volume.join(&secret)).unwrap();
            let files = IdentityFiles::in_dir(&volume.join(&secret));
            std::fs::write(&files.certificate, &issued.chain_pem).unwrap();
            std::fs::write(&files.key, key).unwrap();
            std::fs::write(&files.authorities, trusted).unwrap();
            symlink(&secret, volume.join("..data_tmp")).unwrap();
            std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
            if self.round == 1 {
                for name in ["tls.crt", "tls.key", "ca.crt"] {
                    symlink(format!("..data/{name}"), volume.join(name)).unwrap();
                }
            } else {
                std::fs::remove_dir_all(volume.join(format!("..2026_{}", self.round - 1))).unwrap();
            }
            leaves.push(issued.chain_pem);
        }
        leaves
    }

    /// The certificate that node `n` shows to a client of the mesh now.
    async fn shown_by(&self, n: u8, client: &Arc<Material>) -> Option<CertificateDer<'static>> {
        let stream = tokio::net::TcpStream::connect((self.network.ip(n), 39527)).await.ok()?;
        let connector = TlsConnector::from(Arc::new(client.client_config(&[b"h2"])));
        let stream = connector.connect(ServerName::try_from("nobody").unwrap(), stream).await.ok()?;
        stream.get_ref().1.peer_certificates()?.first().map(|leaf| leaf.clone().into_owned())
    }

    async fn is_whole(&self, what: &str) {
        for node in &self.nodes {
            lists_all(node, 3, is_strict(), what).await;
        }
    }

    /// Waits until every node shows its new certificate, and looks whether all are still there.
    async fn show(&self, what: &str, leaves: &[String], client: &Arc<Material>) {
        for (n, leaf) in (1..=3).zip(leaves) {
            let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
            let shown = async || self.shown_by(n, client).await.as_ref() == Some(&leaf);
            let took = eventually(TAKEN_WITHIN, &format!("node{n} shows {what}"), shown).await;
            eprintln!("node{n} shows {what} after {took:?}");
        }
        self.is_whole(what).await;
    }
}

#[tokio::test]
async fn a_secret_that_is_mounted_anew_is_taken_while_the_cluster_runs() {
    let then = OffsetDateTime::now_utc() - Duration::days(30);
    let (old, new) = (Authority::create("smg", 90, then).unwrap(), Authority::create("smg", 90, then).unwrap());
    let both = format!("{}{}", old.bundle_pem(), new.bundle_pem());
    let client = {
        let dir = tempfile::tempdir().unwrap();
        let request =
            NodeRequest { cluster: "smg".into(), node: "node9".into(), days: Some(5), ..NodeRequest::default() };
        let issued = old.issue(&request, OffsetDateTime::now_utc()).unwrap();
        let files = IdentityFiles::in_dir(dir.path());
        std::fs::write(&files.certificate, issued.chain_pem).unwrap();
        std::fs::write(&files.key, issued.key_pem).unwrap();
        std::fs::write(&files.authorities, &both).unwrap();
        Material::open(files, OffsetDateTime::now_utc()).unwrap()
    };
    let mut cluster = Mounted::start(&old).await;
    let mut suspected = Vec::new();
    for node in &cluster.nodes {
        suspected.push(total(&node.metrics().await, "smg_mesh_suspicions_total"));
    }

    let leaves = cluster.update(&old, &old, old.bundle_pem());
    cluster.show("new leaf and key", &leaves, &client).await;
    cluster.update(&new, &old, &both);
    for node in &cluster.nodes {
        let failed = async || total(&node.metrics().await, "smg_tls_reload_failures_total") > 0.0;
        eventually(TAKEN_WITHIN, &format!("{} counts the key of another certificate", node.name), failed).await;
        let log = node.process.log();
        assert!(log.contains("certificate files not replaced; the old stay in use"), "{log}");
    }
    cluster.show("the old, since the new are no pair", &leaves, &client).await;
    let leaves = cluster.update(&old, &old, &both);
    cluster.show("a leaf beside both authorities", &leaves, &client).await;
    let leaves = cluster.update(&new, &new, &both);
    cluster.show("a leaf of the new authority", &leaves, &client).await;
    let leaves = cluster.update(&new, &new, new.bundle_pem());
    cluster.show("a leaf beside the new authority alone", &leaves, &client).await;
    for (node, before) in cluster.nodes.iter().zip(suspected) {
        called_down(node, &[], "after all secrets");
        let after = total(&node.metrics().await, "smg_mesh_suspicions_total");
        assert!(after == before || !is_strict(), "{}: {before} suspicions before, {after} after", node.name);
    }
}
