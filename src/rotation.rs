//! Certificates that are replaced while they are used: who reads the files again, how often, and who is told.
//!
//! Files are compared by content, so that every way of replacing them is noticed, the swap of a directory link (`..data`)
//! included, and nothing else is. What cannot be used leaves the old in use, raises `smg_tls_reload_failures_total` and
//! is logged.

use std::{sync::Arc, time::Duration};

use smg_certs::MaterialError;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::telemetry::metrics::Metrics;

/// The files are read again this often. A kubelet takes about a minute to bring a new secret; this adds little to it.
pub(crate) const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Files that stay bad are logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What the files hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Files {
    /// A certificate and its key, authorities, or all of them.
    Certificates,
    /// The list of nodes that are let in.
    Nodes,
}

/// What came of reading the files again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// They hold something else, which is used from now on.
    pub(crate) is_new: bool,
    /// Last instant at which the certificate in use is valid; none when it is only authorities that are read.
    pub(crate) not_after: Option<OffsetDateTime>,
}

/// Reads the files again and again, until `reload` says that nobody uses them any more. `role` is their label in the
/// metrics and the log.
pub(crate) async fn keep_fresh(
    role: &'static str,
    files: Files,
    metrics: Arc<Metrics>,
    reload: impl Fn(OffsetDateTime) -> Option<Result<Reading, MaterialError>> + Send,
) {
    let mut logged: Option<Instant> = None;
    loop {
        tokio::time::sleep(RELOAD_INTERVAL).await;
        let Some(reading) = reload(OffsetDateTime::now_utc()) else { return };
        match reading {
            Ok(Reading { is_new, not_after }) => {
                logged = None;
                if is_new && files == Files::Certificates {
                    let until = not_after.map(smg_certs::rfc3339);
                    info!(role, until = until.as_deref(), "certificate files replaced");
                } else if is_new {
                    info!(role, "list of allowed nodes replaced");
                }
                show(&metrics, role, not_after);
            }
            Err(error) => {
                metrics.tls_reload_failed(role);
                if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                    logged = Some(Instant::now());
                    let error = format!("{:#}", anyhow::Error::new(error));
                    match files {
                        Files::Certificates => {
                            warn!(role, error = %error, "certificate files not replaced; the old stay in use");
                        }
                        Files::Nodes => {
                            warn!(role, error = %error, "list of allowed nodes not replaced; the old stays in use");
                        }
                    }
                }
            }
        }
    }
}

/// Shows when what is in use expires.
pub(crate) fn show(metrics: &Metrics, role: &'static str, not_after: Option<OffsetDateTime>) {
    match not_after {
        Some(at) => metrics.tls_expiry(role, at.unix_timestamp()),
        None => metrics.tls_without_certificate(role),
    }
}

#[cfg(test)]
mod tests;
