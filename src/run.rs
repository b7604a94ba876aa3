//! One gateway from start to end: what binds when, and the order of draining.
//!
//! Everything that can fail for a reason of the operator's fails before the first client is served: certificates, metrics
//! port, mesh port, advertised address, public port. The end begins with SIGTERM, SIGINT or `POST /ha/shutdown`, all the same
//! path: LEAVING is broadcast while the data plane drains (SPEC §1 rows 5 to 7). A second signal exits at once.

use std::{net::IpAddr, process, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Config,
    footprint,
    gateway::{
        admin::{self, Admin},
        plane::{Plane, Reports},
        registry::{self, Registry},
        sharing::{Sharing, placer::Placer},
        tls,
    },
    ha::{self, Ha},
    kubernetes::Searches,
    mesh::driver::{self, handle::MeshHandle},
    telemetry::{metrics::Metrics, push, server, traces::Traces},
};

/// How long leaving may wait for a quorum of peers to take note.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// How long the last spans may take to the collector, and the last metrics.
const FLUSH_WAIT: Duration = Duration::from_secs(3);

/// How long handing over what is known of prompts may take before that.
const HAND_OVER_WAIT: Duration = Duration::from_secs(1);

/// Runs a gateway until it is told to end, and drains it.
///
/// # Errors
/// When something cannot be bound, or the mesh ends because another node has this one's name.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let mut signals = Signals::new()?;
    raise_descriptor_limit();
    let (metrics, push) = push::metrics(config.telemetry.push.as_ref(), config.mesh.node.as_str())?;
    let shutdown = CancellationToken::new();
    let ended = CancellationToken::new();

    let tls = tls::open(&config, &metrics)?;
    let searches = Searches::open(&config.kubernetes, &metrics).await?;
    let metrics_listener = server::bind(&config.telemetry).await?;
    let pod_ip = std::env::var("POD_IP").ok().and_then(|ip| ip.parse::<IpAddr>().ok());
    let peers = searches.find_routers(config.mesh.bind.port());
    let traces = traces(&config, &metrics)?;
    let of_mesh = traces.as_ref().map(Traces::of_mesh);
    let mut mesh = driver::start(config.clone(), metrics.clone(), pod_ip, peers, of_mesh).await?;
    let settings = registry::Settings::of(&config, &tls, searches.find_workers(&mesh.handle));
    let (registry, keeper) = Registry::start(mesh.handle.clone(), settings, metrics.clone());
    tokio::spawn(keeper);
    tokio::spawn(serve_metrics(metrics_listener, metrics.clone(), ended.clone()));
    let (sharing, shared) =
        Sharing::start(mesh.handle.clone(), mesh.shared, registry.routing(), registry.activity(), metrics.clone());
    tokio::spawn(shared);
    let routes = control_routes(&config, &mesh.handle, &registry, &metrics, &shutdown);
    let (suspicions, sessions) = (registry.suspicions(), mesh.sessions.clone());
    // Without a mesh there is nobody to tell.
    let placer = if config.mesh.enabled { sharing.placer.clone() } else { Placer::default() };
    let reports = Reports { suspicions, sessions, placer, limits: registry.limits(), traces: traces.clone() };
    let plane = Plane::start(config.clone(), registry.routing(), metrics.clone(), reports, routes, &tls)?;
    tokio::spawn(footprint::shrink_once_started());
    info!(addr = %plane.addr(), version = env!("CARGO_PKG_VERSION"), "gateway listening");
    if let Some(addr) = plane.probes() {
        info!(%addr, "probes listening");
    }

    tokio::select! {
        () = signals.next() => info!("signal received, draining"),
        () = shutdown.cancelled() => info!("shutdown requested, draining"),
        ended = &mut mesh.task => ended.context("the mesh driver panicked")??,
    }
    metrics.shutdown_in_progress(true);
    shutdown.cancel();
    let drained = async {
        let leave = async {
            sharing.hand_over(HAND_OVER_WAIT).await;
            mesh.handle.leave(LEAVE_WAIT).await;
        };
        tokio::join!(plane.drain(config.requests.shutdown_grace), leave);
    };
    tokio::select! {
        () = drained => info!("drained"),
        () = signals.next() => {
            warn!("second signal, ending at once");
            process::exit(1);
        }
    }
    if let Some(traces) = traces {
        traces.flush(FLUSH_WAIT).await;
    }
    if let Some(push) = push {
        push.flush(FLUSH_WAIT).await;
    }
    ended.cancel();
    Ok(())
}

/// Tracing, where it is on.
fn traces(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Traces>> {
    let Some(traces) = &config.telemetry.traces else { return Ok(None) };
    Traces::start(traces.endpoint.as_deref(), config.mesh.node.as_str(), metrics.clone()).map(Some)
}

fn control_routes(
    config: &Config,
    mesh: &MeshHandle,
    registry: &Registry,
    metrics: &Arc<Metrics>,
    shutdown: &CancellationToken,
) -> axum::Router {
    let (mesh, registry, auth) = (mesh.clone(), registry.clone(), Arc::new(config.auth.clone()));
    let admin = Admin { mesh: mesh.clone(), registry: registry.clone(), auth: auth.clone() };
    let about = ha::status::About::of(&config.mesh);
    let ha =
        Ha { mesh, registry, auth, policy: config.policy, about, metrics: metrics.clone(), shutdown: shutdown.clone() };
    admin::router(admin).merge(ha::router(ha))
}

/// A token that the first SIGTERM or SIGINT cancels, for subcommands with an end of their own.
///
/// # Errors
/// When the process cannot listen for signals. Must be called within a runtime.
pub fn ended_by_signal() -> anyhow::Result<CancellationToken> {
    let mut signals = Signals::new()?;
    let ended = CancellationToken::new();
    let cancelled = ended.clone();
    tokio::spawn(async move {
        signals.next().await;
        cancelled.cancel();
    });
    Ok(ended)
}

async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>, ended: CancellationToken) {
    if let Err(error) = server::serve(listener, metrics, ended.cancelled_owned()).await {
        warn!(%error, "metrics listener ended");
    }
}

/// Connections cost descriptors: the soft limit is raised to the hard one.
fn raise_descriptor_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => info!(limit, "file descriptor limit"),
        Err(error) => warn!(%error, "cannot raise the limit on file descriptors"),
    }
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
