//! A simulated OpenAI worker: deterministic text, timing like an engine's, faults on demand.
//!
//! A request passes four stages, and holds one of `--max-concurrency` slots through all of them:
//! 1. *Fault*: the first armed [`faults::Fault`] that matches its path and whose turn it is decides its fate.
//! 2. *Queue*: it waits for a slot; more than `--queue-size` waiting are refused with 503.
//! 3. *Prefill*: `--ttft-ms` plus (prompt − cached tokens) / `--prefill-tokens-per-second`. Only when
//!    that time has passed does the prompt enter the prefix cache: an interrupted engine has no full blocks either.
//! 4. *Decode*: one token per `--inter-token-delay-ms`. The text is a function of model and prompt alone, so any two
//!    workers answer one prompt with the same bytes.
//!
//! A client that leaves at any stage drops the future of its request: the slot is free at once and
//! [`stats::Stats::aborted_requests`] counts it. Requests do not slow one another down, as they would on a GPU; the
//! bound on concurrency is the only coupling.

mod cache;
mod decode;
mod embedding;
mod engine;
pub mod faults;
mod generation;
mod http;
mod openai;
mod other;
mod prompt;
mod responses;
mod server;
pub mod stats;
mod tls;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

pub use self::server::{Crashed, Server};

/// Flags of `smg sim-worker`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address to listen on.
    #[arg(long, env = "SMG_SIM_WORKER_HOST", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one, printed at start.
    #[arg(long, env = "SMG_SIM_WORKER_PORT", default_value_t = 0)]
    pub port: u16,
    /// Name in the `X-Sim-Worker` response header and in generated ids; the listening address when not given.
    #[arg(long, env = "SMG_SIM_WORKER_NAME")]
    pub name: Option<String>,
    /// Model to serve; repeatable. Requests that name no model get the first one.
    #[arg(long = "model", env = "SMG_SIM_WORKER_MODEL", value_delimiter = ',', default_value = "sim")]
    pub models: Vec<String>,
    /// Time before the first token that does not depend on the prompt, in milliseconds.
    #[arg(long, env = "SMG_SIM_WORKER_TTFT_MS", default_value_t = 0)]
    pub ttft_ms: u64,
    /// Time between two tokens, in milliseconds.
    #[arg(long, env = "SMG_SIM_WORKER_INTER_TOKEN_DELAY_MS", default_value_t = 0)]
    pub inter_token_delay_ms: u64,
    /// Tokens in an answer; a smaller `max_tokens` of the request wins.
    #[arg(long, env = "SMG_SIM_WORKER_TOKENS", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tokens: u32,
    /// Speed of prefill in prompt tokens per second; 0 is instant.
    #[arg(long, env = "SMG_SIM_WORKER_PREFILL_TOKENS_PER_SECOND", default_value_t = 0)]
    pub prefill_tokens_per_second: u64,
    /// Budget of the prefix cache in tokens, least recently used leave first; 0 is no cache.
    #[arg(long, env = "SMG_SIM_WORKER_CACHE_TOKENS", default_value_t = 65_536)]
    pub cache_tokens: u32,
    /// Tokens in a cache block; only whole blocks are cached. A token is 4 bytes of prompt.
    #[arg(long, env = "SMG_SIM_WORKER_CACHE_BLOCK_TOKENS", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub cache_block_tokens: u32,
    /// Requests worked on at a time, further ones wait; 0 is no bound.
    #[arg(long, env = "SMG_SIM_WORKER_MAX_CONCURRENCY", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub max_concurrency: u32,
    /// Requests that may wait for a slot; further ones get 503.
    #[arg(long, env = "SMG_SIM_WORKER_QUEUE_SIZE", default_value_t = 1024)]
    pub queue_size: u32,
    /// Fault to arm at start, as `KIND[:WHEN][@PATH]`; repeatable.
    ///
    /// KIND is crash, hang, reset, truncate, 429, 500 or 503. WHEN is a probability (0.1), every-N or first-N; without
    /// it every request. PATH is one route, or `*` for all; without it the routes that generate.
    #[arg(long = "fault", env = "SMG_SIM_WORKER_FAULT", value_delimiter = ',')]
    pub faults: Vec<faults::Fault>,
    /// Certificate in PEM, its intermediates behind it; with it the worker is reached by https alone.
    #[arg(long, env = "SMG_SIM_WORKER_TLS_CERT_PATH", value_name = "FILE", requires = "tls_key_path")]
    pub tls_cert_path: Option<PathBuf>,
    /// Private key of that certificate in PEM.
    #[arg(long, env = "SMG_SIM_WORKER_TLS_KEY_PATH", value_name = "FILE", requires = "tls_cert_path")]
    pub tls_key_path: Option<PathBuf>,
    /// Authorities in PEM: clients need a certificate that one of them signed.
    #[arg(long, env = "SMG_SIM_WORKER_TLS_CLIENT_CA_PATH", value_name = "FILE", requires = "tls_cert_path")]
    pub tls_client_ca_path: Option<PathBuf>,
    /// Length of embedding vectors, unless the request says `dimensions`.
    #[arg(long, env = "SMG_SIM_WORKER_EMBEDDING_DIMENSIONS", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub embedding_dimensions: u32,
}

impl Default for Args {
    /// The values that the flags have when none is given.
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            name: None,
            models: vec!["sim".to_owned()],
            ttft_ms: 0,
            inter_token_delay_ms: 0,
            tokens: 16,
            prefill_tokens_per_second: 0,
            cache_tokens: 65_536,
            cache_block_tokens: 16,
            max_concurrency: 0,
            queue_size: 1024,
            faults: Vec::new(),
            tls_cert_path: None,
            tls_key_path: None,
            tls_client_ca_path: None,
            embedding_dimensions: 64,
        }
    }
}

/// Listens, prints the address as one line `sim-worker listening on http://…` (or `https`), and serves until `shutdown`.
///
/// # Errors
/// When the address cannot be bound, or when a `crash` fault ended the worker: the process should then exit at once.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    use std::io::Write as _;
    let addr = SocketAddr::new(args.host, args.port);
    let tls = tls::acceptor(&args)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let server = bind(args).await.with_context(|| format!("listen on {addr} (--host, --port)"))?.secured(tls);
    // Whoever reads this line may be gone already; the worker serves all the same.
    let _ = writeln!(std::io::stdout(), "sim-worker listening on {scheme}://{}", server.local_addr());
    server.serve(shutdown).await.context("simulated crash (--fault crash)")
}

/// Binds the listener; [`Server::local_addr`] tells where, [`Server::serve`] does the rest. Without TLS, whatever the
/// flags say: see [`Server::secured`].
///
/// # Errors
/// What the socket says, for instance that the port is taken.
pub async fn bind(args: Args) -> std::io::Result<Server> {
    Server::bind(args).await
}

#[cfg(test)]
mod tests;
