//! The TLS that the gateway uses besides the mesh's: what clients are shown.

use std::sync::Arc;

use smg_certs::{MaterialError, ServerMaterial};
use time::OffsetDateTime;

use crate::{
    config::Config,
    rotation::{self, Reading},
    telemetry::metrics::Metrics,
};

/// The label of the clients' side in the metrics of certificates.
const SERVER: &str = "server";

/// Certificates and keys in use, which follow their files.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// What clients are shown; none: they connect without TLS.
    pub clients: Option<Arc<ServerMaterial>>,
}

/// Why the gateway cannot start with TLS. Nothing is bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The certificate for clients, or its key, cannot be used; the message says which file and what to change.
    #[error("the files of --tls-cert-path and --tls-key-path cannot be used")]
    Clients(#[source] MaterialError),
}

/// Reads the files and keeps what they hold fresh as long as it is used. Must be called within a runtime.
///
/// # Errors
/// When a file cannot be used now.
pub fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Tls, TlsError> {
    Ok(Tls { clients: clients(config, metrics)? })
}

fn clients(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<Arc<ServerMaterial>>, TlsError> {
    let Some(files) = &config.bind.tls else { return Ok(None) };
    let material = ServerMaterial::open(files.clone(), OffsetDateTime::now_utc()).map_err(TlsError::Clients)?;
    rotation::show(metrics, SERVER, Some(material.not_after()));
    let used = Arc::downgrade(&material);
    tokio::spawn(rotation::keep_fresh(SERVER, metrics.clone(), move |now| {
        let material = used.upgrade()?;
        Some(material.reload(now).map(|is_new| Reading { is_new, not_after: Some(material.not_after()) }))
    }));
    Ok(Some(material))
}
