//! TLS of the simulated worker: read once at the start.

use std::sync::Arc;

use anyhow::Context as _;
use smg_certs::{PairFiles, ServerMaterial};
use time::OffsetDateTime;
use tokio_rustls::TlsAcceptor;

use super::Args;

/// What the flags ask for; none: plain HTTP.
///
/// # Errors
/// When a file cannot be used; the message names the flags and the file.
pub(super) fn acceptor(args: &Args) -> anyhow::Result<Option<TlsAcceptor>> {
    let (Some(certificate), Some(key)) = (args.tls_cert_path.clone(), args.tls_key_path.clone()) else {
        return Ok(None);
    };
    let material = ServerMaterial::open(PairFiles { certificate, key }, OffsetDateTime::now_utc())
        .context("use the files of --tls-cert-path and --tls-key-path")?;
    let clients = args.tls_client_ca_path.as_deref().map(smg_certs::clients_of).transpose();
    let clients = clients.context("use the file of --tls-client-ca-path")?;
    let config = material.server_config(&[b"http/1.1"], clients).context("make a key for session tickets")?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
