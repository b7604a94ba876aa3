//! The TLS that the gateway uses besides the mesh's: what clients are shown, and how workers are believed.

use std::sync::Arc;

use smg_certs::{ClientFiles, ClientMaterial, MaterialError, ServerMaterial};
use time::OffsetDateTime;

use crate::{
    config::Config,
    gateway::byte_stream::ALPN_HTTP1,
    rotation::{self, Files, Reading},
    telemetry::metrics::Metrics,
};

/// The label of the clients' side in the metrics of certificates.
const SERVER: &str = "server";

/// The label of the workers' side.
const WORKER: &str = "worker";

/// Certificates and keys in use, which follow their files.
#[derive(Clone, Debug)]
pub struct Tls {
    /// What clients are shown; none: they connect without TLS.
    pub clients: Option<Arc<ServerMaterial>>,
    /// What workers with `https` URLs are shown, and whom the gateway believes to be one.
    pub workers: Arc<ClientMaterial>,
}

/// Why the gateway cannot start with TLS. Nothing is bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The certificate for clients, or its key, cannot be used; the message says which file and what to change.
    #[error("the files of --tls-cert-path and --tls-key-path cannot be used")]
    Clients(#[source] MaterialError),
    /// The same for what workers are believed by or shown.
    #[error("the files of --worker-ca-path, --worker-client-cert-path and --worker-client-key-path cannot be used")]
    Workers(#[source] MaterialError),
}

impl Default for Tls {
    /// No TLS with clients, and with workers what this machine trusts.
    fn default() -> Self {
        let workers = workers_of(ClientFiles::default()).expect("no file is read");
        Self { clients: None, workers }
    }
}

/// Reads the files and keeps what they hold fresh as long as it is used. Must be called within a runtime.
///
/// # Errors
/// When a file cannot be used now.
pub fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Tls, TlsError> {
    Ok(Tls { clients: clients(config, metrics)?, workers: workers(config, metrics)? })
}

fn clients(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<Arc<ServerMaterial>>, TlsError> {
    let Some(files) = &config.bind.tls else { return Ok(None) };
    let material = ServerMaterial::open(files.clone(), OffsetDateTime::now_utc()).map_err(TlsError::Clients)?;
    rotation::show(metrics, SERVER, Some(material.not_after()));
    let used = Arc::downgrade(&material);
    tokio::spawn(rotation::keep_fresh(SERVER, Files::Certificates, metrics.clone(), move |now| {
        let material = used.upgrade()?;
        Some(material.reload(now).map(|is_new| Reading { is_new, not_after: Some(material.not_after()) }))
    }));
    Ok(Some(material))
}

fn workers(config: &Config, metrics: &Arc<Metrics>) -> Result<Arc<ClientMaterial>, TlsError> {
    let material = workers_of(config.workers.tls.clone()).map_err(TlsError::Workers)?;
    if !material.has_files() {
        return Ok(material);
    }
    rotation::show(metrics, WORKER, material.not_after());
    let used = Arc::downgrade(&material);
    tokio::spawn(rotation::keep_fresh(WORKER, Files::Certificates, metrics.clone(), move |now| {
        let material = used.upgrade()?;
        Some(material.reload(now).map(|is_new| Reading { is_new, not_after: material.not_after() }))
    }));
    Ok(material)
}

fn workers_of(files: ClientFiles) -> Result<Arc<ClientMaterial>, MaterialError> {
    ClientMaterial::open(files, &[ALPN_HTTP1], OffsetDateTime::now_utc())
}
