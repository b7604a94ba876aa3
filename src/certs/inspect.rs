//! `smg certs inspect`: what is in a file or directory, and what is wrong with it.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::bail;
use smg_certs::{Certificate, PrivateKey, check_chain, read_certificates};
use time::OffsetDateTime;

use super::{render, say};
use crate::{config, mesh::node::NodeName};

/// Flags of `smg certs inspect`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A PEM file of certificates, or a directory: of a node (tls.crt, tls.key, ca.crt) or of an authority (ca.crt,
    /// ca.key)
    #[arg(value_name = "FILE|DIR")]
    pub path: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Check too that the certificate names this node
    #[arg(long, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// Label of the cluster of --node
    #[arg(long, default_value = "smg", requires = "node", value_parser = config::label)]
    pub cluster: String,
}

/// What was found.
pub(super) struct Report {
    pub(super) path: PathBuf,
    pub(super) found: Vec<Found>,
    pub(super) key: Option<KeyFound>,
    /// Whether the certificate verifies against `ca.crt`; none where there is nothing to check.
    pub(super) is_chain_good: Option<bool>,
    /// What is wrong and what to change, a sentence each. Empty means that all is well.
    pub(super) problems: Vec<String>,
    /// What works and should be changed all the same, a sentence each.
    pub(super) warnings: Vec<String>,
}

/// A certificate and where it is.
pub(super) struct Found {
    pub(super) file: PathBuf,
    /// Its place in the file, from 1.
    pub(super) number: usize,
    pub(super) certificate: Certificate,
}

/// A private key and where it is.
pub(super) struct KeyFound {
    pub(super) file: PathBuf,
    pub(super) key_type: String,
    /// Whether it belongs to the certificate beside it; none without that.
    pub(super) belongs: Option<bool>,
}

pub(super) fn run(args: &Args, now: OffsetDateTime) -> anyhow::Result<()> {
    let report = report(args, now);
    say(&if args.json { render::json(&report, now) } else { render::text(&report, now) })?;
    match report.problems.len() {
        0 => Ok(()),
        1 => bail!("{}: 1 problem", args.path.display()),
        count => bail!("{}: {count} problems", args.path.display()),
    }
}

fn report(args: &Args, now: OffsetDateTime) -> Report {
    let mut report = Report {
        path: args.path.clone(),
        found: Vec::new(),
        key: None,
        is_chain_good: None,
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let path = &args.path;
    let is_authority = path.join("ca.key").exists() && !path.join("tls.crt").exists();
    let subject = if !path.is_dir() {
        report.read(path)
    } else if is_authority {
        report.authority(path)
    } else {
        report.node(path, now)
    };
    for found in &report.found {
        if let Err(error) = found.certificate.check_validity(now) {
            report.problems.push(format!("certificate {} in {}: {error}", found.number, found.file.display()));
        }
    }
    if let (Some(node), Some(subject)) = (&args.node, subject.first())
        && !subject.node_names().allow(&args.cluster, node.as_str())
    {
        report.problems.push(format!(
            "the certificate does not name node {node} of cluster {0}: issue one with the SAN spiffe://{0}/mesh/{node}, \
             or with a DNS name {node} or {node}.ANYTHING and no mesh URI of another cluster",
            args.cluster
        ));
    }
    report
}

impl Report {
    /// A node's directory: all of it must be there, and fit.
    fn node(&mut self, dir: &Path, now: OffsetDateTime) -> Vec<Certificate> {
        let chain = self.read(&dir.join("tls.crt"));
        self.read_key(&dir.join("tls.key"), &chain, "tls.crt");
        let authorities = self.read(&dir.join("ca.crt"));
        if let Some(leaf) = chain.first() {
            if leaf.node_names().listed().is_empty() {
                self.problems.push(format!(
                    "{} names no node: issue it with the SAN spiffe://CLUSTER/mesh/NODE or the DNS name NODE",
                    dir.join("tls.crt").display()
                ));
            }
            if !authorities.is_empty() {
                self.check_chain(&chain, &authorities, now);
            }
        }
        chain
    }

    fn authority(&mut self, dir: &Path) -> Vec<Certificate> {
        let mut bundle = self.read(&dir.join("ca.crt"));
        // Beside the authority whose key it is there may be others, before it too.
        if let Ok(key) = PrivateKey::read(&dir.join("ca.key"))
            && let Some(own) = bundle.iter().position(|certificate| key.belongs_to(certificate))
        {
            bundle.swap(0, own);
        }
        self.read_key(&dir.join("ca.key"), &bundle, "ca.crt");
        if let Some(own) = bundle.first().filter(|own| !own.is_authority) {
            self.problems.push(format!("`{}` is no certificate authority: make one with smg certs ca", own.subject));
        }
        bundle
    }

    /// Certificates of a file, noted in the report; none when it cannot be used, which is noted too.
    fn read(&mut self, file: &Path) -> Vec<Certificate> {
        let certificates = match read_certificates(file) {
            Ok(certificates) => certificates,
            Err(error) => {
                self.problems.push(chain_of(&error));
                return Vec::new();
            }
        };
        self.found.extend(certificates.iter().cloned().enumerate().map(|(index, certificate)| Found {
            file: file.to_owned(),
            number: index + 1,
            certificate,
        }));
        certificates
    }

    fn read_key(&mut self, file: &Path, certificates: &[Certificate], beside: &str) {
        let key = match PrivateKey::read(file) {
            Ok(key) => key,
            Err(error) => return self.problems.push(chain_of(&error)),
        };
        let belongs = certificates.first().map(|certificate| key.belongs_to(certificate));
        if belongs == Some(false) {
            self.problems.push(format!(
                "{} does not belong to the certificate in {beside}: take both from one issue",
                file.display()
            ));
        }
        self.warnings.extend(open_to_others(file));
        self.key = Some(KeyFound { file: file.to_owned(), key_type: key.key_type(), belongs });
    }

    /// Trust apart from the certificate's own dates, which are reported by themselves: at the instant nearest to now
    /// at which they allow its use.
    fn check_chain(&mut self, chain: &[Certificate], authorities: &[Certificate], now: OffsetDateTime) {
        let leaf = &chain[0];
        let outcome = check_chain(chain, authorities, now.min(leaf.not_after).max(leaf.not_before));
        self.is_chain_good = Some(outcome.is_ok());
        self.problems.extend(outcome.err().map(|error| chain_of(&error)));
    }
}

/// What to say of a key that not its owner and group alone may read. The group may: a Kubernetes secret with `fsGroup` is
/// read by it.
fn open_to_others(file: &Path) -> Option<String> {
    let mode = file.metadata().ok()?.mode() & 0o777;
    (mode & 0o004 != 0).then(|| {
        let file = file.display();
        format!(
            "every user of this machine can read {file} (mode {mode:04o}): chmod 600, or defaultMode 0440 of a secret"
        )
    })
}

/// An error with its sources in one line.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
