//! `smg cluster`: a cluster in a terminal, read from the `/ha/*` routes of its gateways, and the leaving of one node.
//!
//! Exit code 0 means healthy or done, 1 degraded, not done or not reachable, 2 wrong usage. Whatever comes from a gateway
//! is printed without control characters. Nothing here waits without a bound: an exchange has 5 s,
//! an answer 64 MiB, reconnecting and leaving their flags.

mod client;
mod doctor;
mod leave;
mod picture;
mod status;
mod watch;

use std::{
    fmt,
    io::Write as _,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use url::Url;

use self::client::Client;

/// Flags of `smg cluster`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `smg cluster` can do.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Show nodes by zone, the leader, workers and stores; exit code 1 when the cluster is degraded
    Status(StatusArgs),
    /// Print each change as it happens, until Ctrl-C
    Watch(WatchArgs),
    /// Have one node leave, drain and end, and wait until it has; exit code 1 when it has not in time
    Leave(LeaveArgs),
    /// Check every gateway of the cluster and say what to do; exit code 1 when there is a problem
    Doctor(Box<DoctorArgs>),
}

/// Flags of `smg cluster status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Which gateways to ask.
    #[command(flatten)]
    pub ask: Ask,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Flags of `smg cluster watch`.
#[derive(Clone, Debug, clap::Args)]
pub struct WatchArgs {
    /// Which gateways to ask.
    #[command(flatten)]
    pub ask: Ask,
    /// Print one JSON object per event instead of text
    #[arg(long)]
    pub json: bool,
    /// Attempts in a row to connect again, each to every gateway, before it gives up with exit code 1
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub max_reconnects: u32,
}

/// Flags of `smg cluster leave`.
#[derive(Clone, Debug, clap::Args)]
pub struct LeaveArgs {
    /// The gateway that leaves, http:// or https://
    #[arg(long, env = "SMG_CLUSTER_URL", default_value = "http://127.0.0.1:30000", value_name = "URL")]
    pub url: BaseUrl,
    /// Authorities to believe for https:// in PEM; without it those of this machine
    #[arg(long, env = "SMG_CLUSTER_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The admin key; `@path` reads it from the first line of a file
    #[arg(long, env = "SMG_ADMIN_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub admin_api_key: Option<String>,
    /// How long to wait until the node is gone; 0 returns once it is LEAVING
    #[arg(long, default_value_t = 200, value_name = "SECS", value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub wait_secs: u64,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Flags of `smg cluster doctor`.
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// Which gateways to ask. The others are asked too: at their mesh host, on the port of the first URL.
    #[command(flatten)]
    pub ask: Ask,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Directories with `tls.crt`, `tls.key` and `ca.crt` of nodes, comma separated or repeated, to check
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    pub mesh_tls_dir: Vec<PathBuf>,
    /// Certificate of a node, to check with the two files below
    #[arg(long, value_name = "FILE", requires_all = ["mesh_tls_key", "mesh_tls_ca"])]
    pub mesh_tls_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "mesh_tls_cert")]
    pub mesh_tls_key: Option<PathBuf>,
    /// The authorities that sign the nodes of the mesh
    #[arg(long, alias = "mesh-tls-ca-cert", value_name = "FILE", requires = "mesh_tls_cert")]
    pub mesh_tls_ca: Option<PathBuf>,
}

/// Which gateways to ask, and whom to believe.
#[derive(Clone, Debug, clap::Args)]
pub struct Ask {
    /// Gateways, http:// or https://, comma separated or repeated; the first that answers is asked
    #[arg(long, env = "SMG_CLUSTER_URL", default_value = "http://127.0.0.1:30000", value_name = "URL")]
    #[arg(value_delimiter = ',')]
    pub url: Vec<BaseUrl>,
    /// Authorities to believe for https:// in PEM; without it those of this machine
    #[arg(long, env = "SMG_CLUSTER_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Where a gateway serves its clients: scheme, host and port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BaseUrl {
    /// https.
    pub is_tls: bool,
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("{error}; write http://HOST:PORT"))?;
        let is_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err("write http://HOST:PORT or https://HOST:PORT".to_owned()),
        };
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !is_bare || !url.username().is_empty() || url.password().is_some() {
            return Err("write scheme, host and port alone: http://HOST:PORT".to_owned());
        }
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_or_known_default().unwrap_or_default();
        if port == 0 {
            return Err("port 0 is nobody's".to_owned());
        }
        Ok(Self { is_tls, host, port })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl BaseUrl {
    /// `host:port`, as in a `Host` header.
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Does what the command line asks for and prints it on standard output; the exit code says how it is.
///
/// # Errors
/// When no gateway can be asked, a file cannot be read, or standard output is closed.
pub async fn run(args: Args, ended: tokio_util::sync::CancellationToken) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Status(args) => {
            let client = Client::new(&args.ask.url, args.ask.ca.as_ref())?;
            status::run(&client, &args).await
        }
        Command::Watch(args) => {
            let client = Client::new(&args.ask.url, args.ask.ca.as_ref())?;
            watch::run(&client, &args, ended).await
        }
        Command::Leave(args) => {
            let client = Client::new(std::slice::from_ref(&args.url), args.ca.as_ref())?;
            leave::run(&client, &args).await
        }
        Command::Doctor(args) => {
            let client = Client::new(&args.ask.url, args.ask.ca.as_ref())?;
            doctor::run(&client, &args).await
        }
    }
}

fn exit(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints, and shows it at once also through a pipe.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to standard output")
}

/// What another process said, without what could steer a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Milliseconds since 1970 by this machine's clock.
fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_are_scheme_host_and_port() {
        for (text, expected) in [
            ("http://node1:8000", Ok("http://node1:8000")),
            ("http://node1:8000/", Ok("http://node1:8000")),
            ("https://node1", Ok("https://node1:443")),
            ("http://[::1]:8000", Ok("http://[::1]:8000")),
            ("node1:8000", Err("write http://HOST:PORT")),
            ("node1", Err("write http://HOST:PORT")),
            ("http://node1/ha", Err("alone")),
            ("http://user:secret@node1", Err("alone")),
            ("http://node1:0", Err("port 0")),
        ] {
            match (text.parse::<BaseUrl>(), expected) {
                (Ok(url), Ok(expected)) => assert_eq!(url.to_string(), expected, "{text}"),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{text}: {error}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
