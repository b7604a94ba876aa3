//! Probes on a port of their own (`--health-check-port`), answered by a thread that does nothing else.
//!
//! A kubelet that gets no answer kills the process, so the answer must not wait for requests: neither in the queue of a
//! core's tasks nor, where every core is busy, longer than the kernel takes to schedule a thread that mostly sleeps.
//! `/liveness`, `/readiness` and `/health` say what they say on the main port; nothing else is there. They go on to
//! answer while the gateway drains, until the data plane has ended.

use std::{
    cell::RefCell,
    convert::Infallible,
    io,
    net::TcpListener as StdListener,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{Method, Request, Response};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::watch,
    time::sleep,
};

use crate::{
    config::Config,
    gateway::{
        body::Body,
        connection::HEAD_TIMEOUT,
        core::Phase,
        error::GatewayError,
        headers, public,
        routes::{self, Target},
        view::RoutingView,
    },
    telemetry::metrics::Metrics,
};

/// Connections at a time; a further one is closed at once. Probes come from few, but anybody may connect.
const CONNECTIONS_MAX: usize = 256;

/// Pause after an accept error, as when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Largest request head in bytes: what the parser needs at least.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// What the answers are made of.
pub(crate) struct Probes {
    pub(crate) config: Arc<Config>,
    pub(crate) view: Arc<ArcSwap<RoutingView>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) phase: watch::Receiver<Phase>,
}

impl Probes {
    /// Answers until the data plane has stopped. Tells once through `ready` whether it could begin.
    pub(crate) fn run(self, listener: StdListener, ready: &std::sync::mpsc::Sender<io::Result<()>>) {
        let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    if ready.send(Ok(())).is_ok() {
                        self.serve(&listener).await;
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
    }

    async fn serve(self, listener: &TcpListener) {
        let mut phase = self.phase.clone();
        let server = Rc::new(Server { probes: self, rng: RefCell::new(Pcg64Mcg::from_rng(&mut rand::rng())) });
        tokio::select! {
            // Closed when the plane is gone, which is an end too.
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => {}
            () = accept(&server, listener) => {}
        }
    }
}

struct Server {
    probes: Probes,
    rng: RefCell<Pcg64Mcg>,
}

async fn accept(server: &Rc<Server>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            // Each connection holds the server once.
            Ok((stream, _)) if Rc::strong_count(server) <= CONNECTIONS_MAX => {
                tokio::task::spawn_local(connection(server.clone(), stream));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "no probe connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(server: Rc<Server>, stream: TcpStream) {
    // Without it an answer may only come later.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<_>| {
        let response = server.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_header_size(HEAD_BYTES_MAX);
    // Whatever ends it, the next probe makes a new connection.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

impl Server {
    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let started = Instant::now();
        let Probes { config, view, metrics, phase } = &self.probes;
        let (method, headers) = (request.method(), request.headers());
        let (target, path) = target(method, request.uri().path());
        let phase = *phase.borrow();
        metrics.http_request(method, path);
        let (mut response, error_code) = match target {
            Ok(Target::Liveness) => (public::liveness(), ""),
            Ok(Target::Readiness) => (public::readiness(&view.load(), phase), ""),
            Ok(_) => (public::health(phase), ""),
            Err(error) => (error.response(), error.code()),
        };
        let names = &config.requests.request_id_headers;
        let (name, value) = headers::request_id(headers, names, &mut *self.rng.borrow_mut());
        response.headers_mut().insert(name, value);
        metrics.http_response(path, response.status(), error_code, started.elapsed());
        response
    }
}

/// The probe that is asked for and its path as a label.
fn target(method: &Method, path: &str) -> (Result<Target, GatewayError>, &'static str) {
    match routes::find(method, path) {
        Ok((target @ (Target::Liveness | Target::Readiness | Target::Health), path)) => (Ok(target), path),
        Err((error, path @ ("/liveness" | "/readiness" | "/health"))) => (Err(error), path),
        _ => (Err(GatewayError::RouteNotFound), "unmatched"),
    }
}
