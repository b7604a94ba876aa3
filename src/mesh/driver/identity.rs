//! The certificate that this node shows on both planes, and its rotation while the node runs.

use std::{sync::Arc, time::Duration};

use smg_certs::{Material, MaterialError};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    config::{Mesh, MeshTls},
    mesh::node::NodeName,
    telemetry::metrics::Metrics,
};

/// The files are read again this often. A kubelet takes about a minute to bring a new secret; this adds little to it.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Files that stay bad are logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The label of the mesh in the metrics of certificates.
const ROLE: &str = "mesh";

/// Why the mesh cannot start with TLS. Nothing is bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The files cannot be used; the message says which and what to change.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The certificate does not name this node.
    #[error(
        "the certificate of --mesh-tls-cert names {names}, not node {node} of cluster {cluster}: set --mesh-server-name \
         to what it names, or issue one with `smg certs issue --node {node} --cluster {cluster}`"
    )]
    OtherNode {
        /// This node.
        node: NodeName,
        /// Its cluster.
        cluster: String,
        /// What the certificate names.
        names: String,
    },
}

/// Reads the identity of this node, when the mesh uses TLS, and keeps it fresh as long as the process runs.
///
/// # Errors
/// When the files cannot be used now, or are those of another node.
pub(super) fn open(config: &Mesh, node: &NodeName, metrics: &Arc<Metrics>) -> Result<Option<Arc<Material>>, TlsError> {
    let Some(MeshTls { files, allowed }) = &config.tls else { return Ok(None) };
    let material = Material::open_for(files.clone(), allowed.clone(), OffsetDateTime::now_utc())?;
    if !material.names().allow(&config.cluster, node.as_str()) {
        let (node, cluster) = (node.clone(), config.cluster.clone());
        return Err(TlsError::OtherNode { node, cluster, names: listed(&material) });
    }
    metrics.tls_expiry(ROLE, material.not_after().unix_timestamp());
    tokio::spawn(keep_fresh(Arc::downgrade(&material), config.cluster.clone(), node.clone(), metrics.clone()));
    Ok(Some(material))
}

/// Reads the files again and again, until nobody uses them any more.
async fn keep_fresh(material: std::sync::Weak<Material>, cluster: String, node: NodeName, metrics: Arc<Metrics>) {
    let mut logged: Option<Instant> = None;
    loop {
        tokio::time::sleep(RELOAD_INTERVAL).await;
        let Some(material) = material.upgrade() else { return };
        let names_us = |names: &smg_certs::NodeNames| names.allow(&cluster, node.as_str());
        match material.reload_if(OffsetDateTime::now_utc(), &names_us) {
            Ok(false) => logged = None,
            Ok(true) => {
                logged = None;
                let until = smg_certs::rfc3339(material.not_after());
                info!(until = %until, "mesh certificate replaced");
            }
            Err(error) => {
                metrics.tls_reload_failed(ROLE);
                if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                    logged = Some(Instant::now());
                    let error = anyhow::Error::new(error);
                    warn!(error = %format!("{error:#}"), "mesh certificate not replaced; the old one stays in use");
                }
            }
        }
        metrics.tls_expiry(ROLE, material.not_after().unix_timestamp());
    }
}

fn listed(material: &Material) -> String {
    let names: Vec<String> = material.names().listed().into_iter().map(|name| name.node).collect();
    if names.is_empty() { "no node".to_owned() } else { names.join(", ") }
}
