//! Probes on a port of their own.

use std::sync::{Mutex, atomic::AtomicUsize};

use super::*;

fn start_with_probes(control: axum::Router, workers: &[Arc<Worker>]) -> Plane {
    let mut config = config();
    config.bind.probes = Some("127.0.0.1:0".parse().unwrap());
    start_with(config, control, workers)
}

async fn connect(plane: &Plane) -> Wire {
    Wire::new(TcpStream::connect(plane.probes().unwrap()).await.unwrap())
}

#[tokio::test]
async fn probes_and_nothing_else_are_there() {
    let upstream = Upstream::new().await;
    let plane = start_with_probes(axum::Router::new(), &[upstream.worker()]);
    let mut client = connect(&plane).await;
    for (path, body) in [
        ("/liveness", r#"{"status":"alive"}"#),
        ("/readiness", r#"{"status":"ready","healthy_workers":1,"total_workers":1}"#),
        ("/health", r#"{"status":"healthy"}"#),
    ] {
        let answer = client.ask(get(path)).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, body), "{path}");
        assert_eq!(answer.header("x-request-id").map(str::len), Some(32), "{path}");
    }
    for (request, status, code) in [
        (get("/v1/models"), 404, "not_found"),
        (get("/workers"), 404, "not_found"),
        (get("/health").replace("GET", "POST"), 405, "method_not_allowed"),
        (post(CHAT), 404, "not_found"),
    ] {
        let answer = connect(&plane).await.ask(request).await;
        assert_eq!((answer.status(), answer.error_code().as_str()), (status, code));
    }
}

/// What a kubelet relies on: the answer does not queue up behind requests.
#[tokio::test]
async fn probes_are_answered_while_every_core_is_stuck() {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let (gate, stuck) = (Arc::new(Mutex::new(gate)), Arc::new(AtomicUsize::new(0)));
    let count = stuck.clone();
    let handler = async move || {
        count.fetch_add(1, Ordering::Relaxed);
        // Until the other end is dropped.
        let _ = gate.lock().unwrap().recv();
    };
    let plane = start_with_probes(axum::Router::new().route("/stick", axum::routing::get(handler)), &[]);
    let mut clients = Vec::new();
    // The kernel chooses the core of a connection, so this goes on until none is left.
    while stuck.load(Ordering::Relaxed) < plane.gauges.len() {
        let mut client = Wire::connect(&plane).await;
        client.send(get("/stick")).await;
        clients.push(client);
        assert!(clients.len() < 10_000, "a core gets no connection");
    }
    let mut client = connect(&plane).await;
    for (path, status) in [("/liveness", 200), ("/health", 200), ("/readiness", 503)] {
        assert_eq!(client.ask(get(path)).await.status(), status, "{path}");
    }
    drop(open);
}

#[tokio::test]
async fn probes_say_that_it_drains_until_it_has_ended() {
    let upstream = Upstream::new().await;
    let plane = start_with_probes(axum::Router::new(), &[upstream.worker()]);
    let addr = plane.probes().unwrap();
    let mut request = Wire::connect(&plane).await;
    request.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    let mut client = connect(&plane).await;
    let drained = tokio::spawn(plane.drain(Duration::from_secs(60)));
    within(async { while client.ask(get("/health")).await.status() == 200 {} }).await;
    let ready = client.ask(get("/readiness")).await;
    assert_eq!((ready.status(), ready.text().as_str()), (503, r#"{"status":"not ready","reason":"draining"}"#));
    assert_eq!(client.ask(get("/liveness")).await.status(), 200);
    worker.answer("{}").await;
    assert_eq!(request.message().await.status(), 200);
    drop(request);
    within(drained).await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err(), "it ends with the data plane");
}

#[tokio::test]
async fn a_probe_port_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config();
    config.bind.probes = Some(taken.local_addr().unwrap());
    let error = start_on(config, Arc::default(), Metrics::new(), axum::Router::new()).unwrap_err();
    assert!(matches!(error, BindError::ListenProbes { .. }));
    assert!(error.to_string().contains("--health-check-port"), "{error}");
}
