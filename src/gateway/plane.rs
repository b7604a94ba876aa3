//! The data plane: threads, listeners, and the way out.
//!
//! Each core has a thread with a runtime of its own, a listener of its own on the shared port (`SO_REUSEPORT`) and its
//! own connections to workers. A request stays on the core whose listener accepted its connection. What cores share is
//! read-only: the configuration and the routing view, which is swapped whole.
//!
//! Draining goes through four phases. *Settling*, min(grace/2, 5 s): probes answer 503 and everything else is served,
//! with `Connection: close`, so that load balancers and clients move away before anything is refused. *Refusing*, at
//! most 1 s: requests on connections that are still open get 503. *Closing*: listeners are closed, idle connections
//! close, requests in flight run on. *Stopped*, as soon as no connection is left or when the grace is over.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until},
};

use crate::{
    config::Config,
    gateway::{
        core::{Core, Gauge, Phase, Shared},
        handshake,
        listener::{self, Shedding},
        probes::Probes,
        service,
        tls::Tls,
        view::RoutingView,
    },
    telemetry::metrics::Metrics,
};

pub use crate::gateway::core::Reports;

/// Longest settle window: what load balancers need to notice a failing readiness probe.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// How long stragglers are told 503 before their connections close.
const REFUSE_MAX: Duration = Duration::from_secs(1);

/// How often draining looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// How often a core looks for slow and idle connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Why the data plane could not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address cannot be listened on. Choose another `--port` or `--host`, or end what has it.
    #[error("cannot listen on {addr} (--host, --port)")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The probes' address cannot be listened on. Choose another `--health-check-port`, or end what has it.
    #[error("cannot listen on {addr} (--health-check-port)")]
    ListenProbes {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No thread, or no runtime in it: the machine is out of something.
    #[error("cannot start a data plane thread")]
    Thread(#[source] io::Error),
    /// The machine gives no randomness for TLS.
    #[error("cannot make a key for session tickets")]
    Tls(#[source] rustls::Error),
}

/// The running data plane. Dropping it ends it at once.
#[derive(Debug)]
pub struct Plane {
    addr: SocketAddr,
    probes: Option<SocketAddr>,
    phase: watch::Sender<Phase>,
    gauges: Vec<Arc<Gauge>>,
    epoch: Instant,
    /// Each core's thread holds a sender: closed when all have ended.
    ended: mpsc::Receiver<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Plane {
    /// Binds every listener and starts a thread per core; serving has begun when it returns.
    ///
    /// What the request path comes by is told to `reports`, whose limits say how many requests per second are admitted.
    ///
    /// `control` answers what is none of the hot routes; it runs on the core of its connection, so its handlers must
    /// not block, and it finds the client's address as `ConnectInfo<SocketAddr>`. Its fallbacks are replaced.
    ///
    /// `tls` says whether clients use TLS, and with which certificate.
    ///
    /// # Errors
    ///
    /// [`BindError`]; nothing is left running.
    pub fn start(
        config: Arc<Config>,
        view: Arc<ArcSwap<RoutingView>>,
        metrics: Arc<Metrics>,
        reports: Reports,
        control: axum::Router,
        tls: &Tls,
    ) -> Result<Self, BindError> {
        let acceptor = tls.clients.as_ref().map(handshake::acceptor).transpose().map_err(BindError::Tls)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let addr = config.bind.addr;
        let listen_error = |source| BindError::Listen { addr, source };
        let listeners = listener::bind(addr, cores).map_err(listen_error)?;
        let addr = listeners[0].local_addr().map_err(listen_error)?;
        let control = service::prepare(control);
        let shared = Arc::new(Shared::new(config, view, metrics, reports, control, acceptor));
        let (phase, _) = watch::channel(Phase::Serving);
        let (alive, ended) = mpsc::channel(1);
        let (gauges, threads) = (Vec::new(), Vec::new());
        let mut plane = Self { addr, probes: None, phase, gauges, epoch: Instant::now(), ended, threads };
        let (ready, started) = std::sync::mpsc::channel();
        plane.start_probes(&shared, &alive, &ready)?;
        for (index, listener) in listeners.into_iter().enumerate() {
            let gauge = Arc::new(Gauge::default());
            plane.gauges.push(gauge.clone());
            let (shared, epoch, phase) = (shared.clone(), plane.epoch, plane.phase.subscribe());
            let (alive, ready) = (alive.clone(), ready.clone());
            let body = move || {
                let core = || Rc::new(Core::new(shared, gauge, epoch, Pcg64Mcg::from_rng(&mut rand::rng())));
                run_core(core, listener, phase, &ready);
                drop(alive);
            };
            let thread = std::thread::Builder::new().name(format!("smg-plane-{index}")).spawn(body);
            plane.threads.push(thread.map_err(BindError::Thread)?);
        }
        drop(ready);
        for started in started.iter().take(plane.threads.len()) {
            started.map_err(BindError::Thread)?;
        }
        Ok(plane)
    }

    /// The probes' thread, where they have a port of their own.
    fn start_probes(
        &mut self,
        shared: &Shared,
        alive: &mpsc::Sender<()>,
        ready: &std::sync::mpsc::Sender<io::Result<()>>,
    ) -> Result<(), BindError> {
        let Some(addr) = shared.config.bind.probes else { return Ok(()) };
        let listen_error = |source| BindError::ListenProbes { addr, source };
        let listener = listener::bind(addr, 1).map_err(listen_error)?.remove(0);
        self.probes = Some(listener.local_addr().map_err(listen_error)?);
        let (alive, ready) = (alive.clone(), ready.clone());
        let (config, view, metrics) = (shared.config.clone(), shared.view.clone(), shared.metrics.clone());
        let probes = Probes { config, view, metrics, phase: self.phase.subscribe() };
        let body = move || {
            probes.run(listener, &ready);
            drop(alive);
        };
        let thread = std::thread::Builder::new().name("smg-probes".into()).spawn(body);
        self.threads.push(thread.map_err(BindError::Thread)?);
        Ok(())
    }

    /// Where probes are answered too, if they are.
    #[must_use]
    pub fn probes(&self) -> Option<SocketAddr> {
        self.probes
    }

    /// Where it listens; the port is the real one also when 0 was asked for.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Requests in flight, response bodies included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.gauges.iter().map(|gauge| gauge.in_flight.load(Ordering::Relaxed)).sum()
    }

    /// Open client connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.gauges.iter().map(|gauge| gauge.connections.load(Ordering::Relaxed)).sum()
    }

    /// Drains and ends the data plane within `grace`, as the module says. Returns as soon as the last connection is
    /// closed; what is still in flight when the grace is over is cut off.
    ///
    /// The settle window is left out when nobody is there to notice: no connection is open and none came within the
    /// length of the window before.
    pub async fn drain(mut self, grace: Duration) {
        let began = Instant::now();
        let deadline = began + grace;
        let settle = (grace / 2).min(SETTLE_MAX);
        self.enter(Phase::Settling);
        if self.has_clients(began, settle) {
            sleep_until((began + settle).into()).await;
        }
        self.enter(Phase::Refusing);
        let refuse = REFUSE_MAX.min(deadline.saturating_duration_since(Instant::now()) / 2);
        self.until_no_connection(Instant::now() + refuse).await;
        self.enter(Phase::Closing);
        self.until_no_connection(deadline).await;
        if self.in_flight() > 0 {
            tracing::warn!(in_flight = self.in_flight(), "requests cut off: the grace period is over");
        }
        self.enter(Phase::Stopped);
        while self.ended.recv().await.is_some() {}
    }

    fn enter(&self, phase: Phase) {
        tracing::info!(?phase, connections = self.connections(), in_flight = self.in_flight(), "data plane draining");
        self.phase.send_replace(phase);
    }

    fn has_clients(&self, now: Instant, recent: Duration) -> bool {
        let last = self.gauges.iter().map(|gauge| gauge.accepted_ms.load(Ordering::Relaxed)).max().unwrap_or(0);
        let is_recent = last > 0 && now < self.epoch + Duration::from_millis(last) + recent;
        is_recent || self.connections() > 0
    }

    async fn until_no_connection(&self, deadline: Instant) {
        let mut poll = interval(DRAIN_POLL);
        while self.connections() > 0 && Instant::now() < deadline {
            poll.tick().await;
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Stopped);
    }
}

/// A core's thread: reports whether it could start, then runs to the end.
fn run_core(
    core: impl FnOnce() -> Rc<Core>,
    listener: std::net::TcpListener,
    phase: watch::Receiver<Phase>,
    ready: &std::sync::mpsc::Sender<io::Result<()>>,
) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        match TcpListener::from_std(listener) {
            Ok(listener) => {
                if ready.send(Ok(())).is_ok() {
                    serve(&core(), listener, phase).await;
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
    // Names being resolved hold threads of their own; nobody waits for the answers.
    runtime.shutdown_background();
}

async fn serve(core: &Rc<Core>, listener: TcpListener, mut phase: watch::Receiver<Phase>) {
    let mut listener = Some(listener);
    let mut shedding = Shedding::new();
    let mut sweep = interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepting = async {
            match &listener {
                Some(listener) => listener::accept(core, listener, &mut shedding).await,
                None => std::future::pending().await,
            }
        };
        let in_use = core.is_in_use();
        tokio::select! {
            () = accepting => {}
            () = core.used.notified(), if !in_use => {}
            _ = sweep.tick(), if in_use => core.sweep(Instant::now()),
            changed = phase.changed() => {
                let phase = if changed.is_ok() { *phase.borrow_and_update() } else { Phase::Stopped };
                if phase >= Phase::Closing && let Some(listener) = listener.take() {
                    listener::accept_rest(core, &listener);
                }
                core.set_phase(phase);
                if phase == Phase::Stopped {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
