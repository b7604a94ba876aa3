//! The certificate that this node shows on both planes, and its rotation while the node runs.

use std::sync::Arc;

use smg_certs::{Material, MaterialError, NodeNames};
use time::OffsetDateTime;

use crate::{
    config::{Mesh, MeshTls},
    mesh::node::NodeName,
    rotation::{self, Files, Reading},
    telemetry::metrics::Metrics,
};

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
    rotation::show(metrics, ROLE, Some(material.not_after()));
    let (used, cluster, node) = (Arc::downgrade(&material), config.cluster.clone(), node.clone());
    if allowed.is_some() {
        let used = used.clone();
        tokio::spawn(rotation::keep_fresh(ROLE, Files::Nodes, metrics.clone(), move |_| {
            let material = used.upgrade()?;
            Some(material.reload_list().map(|is_new| Reading { is_new, not_after: Some(material.not_after()) }))
        }));
    }
    tokio::spawn(rotation::keep_fresh(ROLE, Files::Certificates, metrics.clone(), move |now| {
        let material = used.upgrade()?;
        let names_us = |names: &NodeNames| names.allow(&cluster, node.as_str());
        let read = material.reload_if(now, &names_us);
        Some(read.map(|is_new| Reading { is_new, not_after: Some(material.not_after()) }))
    }));
    Ok(Some(material))
}

fn listed(material: &Material) -> String {
    let names: Vec<String> = material.names().listed().into_iter().map(|name| name.node).collect();
    if names.is_empty() { "no node".to_owned() } else { names.join(", ") }
}
