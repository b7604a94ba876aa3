//! `smg certs`: a certificate authority and node certificates in one command each, and a look at what is there.
//!
//! The files are those that cert-manager writes, `tls.crt`, `tls.key` and `ca.crt`; an authority keeps
//! `ca.crt` and `ca.key`. What is written is read back and checked as a node would before the command reports success.

mod inspect;
mod render;

use std::{io::Write as _, net::IpAddr, path::PathBuf};

use anyhow::{Context as _, bail};
use smg_certs::{
    AUTHORITY_DAYS_MAX, Authority, Identity, IdentityFiles, NODE_DAYS_MAX, NewFile, NodeRequest, WriteError, rfc3339,
    write_files,
};
use time::OffsetDateTime;

use crate::{config, mesh::node::NodeName};

/// Flags of `smg certs`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `smg certs` can do.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Make a certificate authority: DIR/ca.crt to give to every node, DIR/ca.key to keep
    Ca(CaArgs),
    /// Issue a node's certificate: DIR/tls.crt, DIR/tls.key and DIR/ca.crt, all that the node needs
    ///
    /// The certificate names the node by the URI spiffe://CLUSTER/mesh/NODE and, where the name can be a host's, by the
    /// DNS name NODE. It is good for a TLS server and a client, and begins an hour ago, since clocks differ. ca.crt is
    /// copied from the authority as it stands; it may hold an old and a new authority.
    Issue(IssueArgs),
    /// Show certificates, and check what a node would: dates, key, chain and names; exit code 1 when something is wrong
    Inspect(inspect::Args),
}

/// Flags of `smg certs ca`.
#[derive(Clone, Debug, clap::Args)]
pub struct CaArgs {
    /// Directory to write ca.crt and ca.key into; made with mode 0700 when it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Label of the cluster, shown in the subject
    #[arg(long, default_value = "smg", value_parser = config::label)]
    pub cluster: String,
    /// Days that it is valid, 1 to 7300
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=i64::from(AUTHORITY_DAYS_MAX)))]
    pub days: u32,
    /// Replace files that exist; nodes of the old and of the new authority do not trust one another
    #[arg(long)]
    pub force: bool,
}

/// Flags of `smg certs issue`.
#[derive(Clone, Debug, clap::Args)]
pub struct IssueArgs {
    /// Directory of the authority, with ca.crt and ca.key
    #[arg(long, value_name = "DIR")]
    pub ca: PathBuf,
    /// Name of the node, as in its --mesh-server-name
    #[arg(long, value_name = "NAME")]
    pub node: NodeName,
    /// Label of the cluster, as in its --mesh-cluster
    #[arg(long, default_value = "smg", value_parser = config::label)]
    pub cluster: String,
    /// More DNS names, comma separated or repeated; the node may speak in the mesh under each of them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub dns: Vec<String>,
    /// IP addresses, comma separated or repeated; they mean nothing to the mesh
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub ip: Vec<IpAddr>,
    /// Days that it is valid, 1 to 825 and not beyond the authority's end [default: 365, or to the authority's end]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(NODE_DAYS_MAX)))]
    pub days: Option<u32>,
    /// Directory to write tls.crt, tls.key and ca.crt into; made with mode 0700 when it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace files that exist
    #[arg(long)]
    pub force: bool,
}

/// Does what the command line asks for, and prints it on standard output.
///
/// # Errors
/// When files cannot be read or written or exist already, a value breaks a rule, or `inspect` found something wrong.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let now = OffsetDateTime::now_utc();
    match &args.command {
        Command::Ca(args) => make_authority(args, now),
        Command::Issue(args) => issue(args, now),
        Command::Inspect(args) => inspect::run(args, now),
    }
}

fn make_authority(args: &CaArgs, now: OffsetDateTime) -> anyhow::Result<()> {
    let authority = Authority::create(&args.cluster, args.days, now).context("make an authority")?;
    let files = [
        NewFile { name: "ca.key", text: &authority.key_pem(), is_secret: true },
        NewFile { name: "ca.crt", text: authority.bundle_pem(), is_secret: false },
    ];
    written(write_files(&args.out, &files, args.force))?;
    let authority = Authority::load(&args.out).context("read back what was written")?;
    say(&format!(
        "{}/ca.crt, ca.key: authority of cluster {}, valid to {}\n",
        args.out.display(),
        args.cluster,
        rfc3339(authority.certificate().not_after)
    ))
}

fn issue(args: &IssueArgs, now: OffsetDateTime) -> anyhow::Result<()> {
    let authority = Authority::load(&args.ca).context("load the authority of --ca")?;
    let request = NodeRequest {
        cluster: args.cluster.clone(),
        node: args.node.to_string(),
        dns_names: args.dns.clone(),
        ip_addresses: args.ip.clone(),
        days: args.days,
    };
    let issued = authority.issue(&request, now).with_context(|| format!("issue for node {}", args.node))?;
    let files = [
        NewFile { name: "tls.key", text: &issued.key_pem, is_secret: true },
        NewFile { name: "ca.crt", text: authority.bundle_pem(), is_secret: false },
        NewFile { name: "tls.crt", text: &issued.chain_pem, is_secret: false },
    ];
    written(write_files(&args.out, &files, args.force))?;
    let identity = Identity::load(&IdentityFiles::in_dir(&args.out)).context("read back what was written")?;
    identity.check(now).context("check what was written")?;
    if !identity.certificate().node_names().allow(&args.cluster, args.node.as_str()) {
        bail!("the certificate in {} does not name node {}: issue it again", args.out.display(), args.node);
    }
    say(&format!(
        "{}/tls.crt, tls.key, ca.crt: node {} of cluster {}, valid to {}\n",
        args.out.display(),
        args.node,
        args.cluster,
        rfc3339(identity.certificate().not_after)
    ))
}

fn written(outcome: Result<(), WriteError>) -> anyhow::Result<()> {
    let advice = match &outcome {
        Err(WriteError::Exists(_)) => "nothing is overwritten without --force; give it, or another --out",
        _ => "write to --out",
    };
    outcome.context(advice)
}

fn say(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
}
