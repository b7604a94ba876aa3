//! The metrics listener: `GET /metrics` for Prometheus, on an address of its own.
//!
//! It is apart from the public port so that what clients can reach tells them nothing, and so that a scrape still
//! works when the public port is full or draining.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::metrics::Metrics;
use crate::config;

/// Media type of the Prometheus text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why there is no metrics listener. Nothing is bound.
#[derive(Debug, thiserror::Error)]
#[error("--prometheus-port: cannot listen on {addr}: choose another port, or another --prometheus-host")]
pub struct BindError {
    /// The address that was tried.
    pub addr: SocketAddr,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Binds the metrics listener. When the default port is taken a free one is used and logged; a port that the operator
/// gave is used or refused.
///
/// # Errors
///
/// When the address cannot be bound, and, for the default port, no free one either.
pub async fn bind(config: &config::Telemetry) -> Result<TcpListener, BindError> {
    let addr = config.prometheus_addr;
    let listener = match TcpListener::bind(addr).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !config.prometheus_port_explicit => {
            let free = SocketAddr::new(addr.ip(), 0);
            let listener = TcpListener::bind(free).await.map_err(|source| BindError { addr: free, source })?;
            let chosen = listener.local_addr().map_err(|source| BindError { addr: free, source })?;
            warn!(%addr, %chosen, "default metrics port taken, using a free one; --prometheus-port sets it");
            listener
        }
        bound => bound.map_err(|source| BindError { addr, source })?,
    };
    if let Ok(addr) = listener.local_addr() {
        info!(%addr, "metrics listener ready");
    }
    Ok(listener)
}

/// Serves `GET /metrics` until `shutdown` completes; scrapes that run then are finished.
///
/// # Errors
///
/// When the listener fails for good. Scrapes end; the rest of the program is not concerned.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let routes = Router::new().route("/metrics", get(scrape)).with_state(metrics);
    axum::serve(listener, routes).with_graceful_shutdown(shutdown).await
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, TEXT_FORMAT)], metrics.encode())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use super::*;

    fn telemetry(port: u16, is_explicit: bool) -> config::Telemetry {
        config::Telemetry {
            prometheus_addr: (Ipv4Addr::LOCALHOST, port).into(),
            prometheus_port_explicit: is_explicit,
            log_level: "info".into(),
            log_json: false,
            log_dir: None,
            traces: None,
            push: None,
        }
    }

    #[tokio::test]
    async fn scrapes_are_answered_in_the_text_format() {
        let metrics = Metrics::new();
        metrics.worker_retry();
        let listener = bind(&telemetry(0, true)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, metrics, async move { stopped.await.unwrap_or_default() }));
        let response = reqwest::get(format!("http://{addr}/metrics")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_TYPE], TEXT_FORMAT);
        assert!(response.text().await.unwrap().contains("smg_worker_retries_total 1\n"));
        let elsewhere = reqwest::get(format!("http://{addr}/other")).await.unwrap();
        assert_eq!(elsewhere.status(), 404);
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_taken_default_port_is_replaced_and_a_given_one_refused() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = holder.local_addr().unwrap().port();
        let replaced = bind(&telemetry(port, false)).await.unwrap();
        assert_ne!(replaced.local_addr().unwrap().port(), port);
        let error = bind(&telemetry(port, true)).await.unwrap_err();
        assert!(error.to_string().starts_with("--prometheus-port: "), "{error}");
    }
}
