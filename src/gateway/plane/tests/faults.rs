//! Workers that fail, clients that leave.

use super::*;

/// An address where nothing listens.
async fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn start_without_retries(workers: &[Arc<Worker>]) -> Plane {
    let mut config = config();
    config.retry.retries_max = 0;
    start_with(config, axum::Router::new(), workers)
}

fn start_with_timeout(timeout_ms: u64, workers: &[Arc<Worker>]) -> Plane {
    let mut config = config();
    config.requests.timeout = Duration::from_millis(timeout_ms);
    start_with(config, axum::Router::new(), workers)
}

#[tokio::test]
async fn a_refused_connection_goes_to_another_worker() {
    let upstream = Upstream::new().await;
    let plane = start(&[worker(closed().await), upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    assert_eq!(worker.message().await.text(), CHAT);
    worker.answer("{}").await;
    assert_eq!(client.message().await.status(), 200);
}

#[tokio::test]
async fn a_reset_before_the_head_goes_to_another_worker() {
    let (first, second) = (Upstream::new().await, Upstream::new().await);
    let plane = start(&[first.worker(), second.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let (failing, working) = tokio::select! {
        wire = first.accept() => (wire, &second),
        wire = second.accept() => (wire, &first),
    };
    let mut failing = failing;
    failing.message().await;
    drop(failing);
    let mut worker = working.accept().await;
    assert_eq!(worker.message().await.text(), CHAT);
    worker.answer("{}").await;
    assert_eq!(client.message().await.status(), 200);
}

#[tokio::test]
async fn retries_end() {
    let plane = start(&[worker(closed().await)]);
    let response = Wire::connect(&plane).await.ask(post(CHAT)).await;
    assert_eq!((response.status(), response.error_code().as_str()), (502, "worker_unreachable"));
    assert!(!response.text().contains("127.0.0.1"), "no address leaks");

    let upstream = Upstream::new().await;
    let plane = start_without_retries(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    upstream.accept().await.message().await;
    let response = client.message().await;
    assert_eq!((response.status(), response.error_code().as_str()), (502, "worker_reset"));
}

#[tokio::test]
async fn a_stale_connection_is_no_error() {
    let upstream = Upstream::new().await;
    let plane = start_without_retries(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut first = upstream.accept().await;
    first.message().await;
    first.answer("1").await;
    assert_eq!(client.message().await.text(), "1");
    // The worker takes the second request from the same connection and hangs up on it.
    client.send(post(CHAT)).await;
    first.message().await;
    drop(first);
    let mut second = upstream.accept().await;
    assert_eq!(second.message().await.text(), CHAT);
    second.answer("2").await;
    assert_eq!(client.message().await.text(), "2");
}

#[tokio::test]
async fn an_answer_that_cannot_be_understood_is_no_stale_connection() {
    let upstream = Upstream::new().await;
    let plane = start_without_retries(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.answer("1").await;
    assert_eq!(client.message().await.text(), "1");
    client.send(post(CHAT)).await;
    worker.message().await;
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let response = client.message().await;
    assert_eq!((response.status(), response.error_code().as_str()), (502, "worker_reset"));
    assert!(futures_util::FutureExt::now_or_never(upstream.0.accept()).is_none(), "it was not asked again");
}

#[tokio::test]
async fn an_event_stream_of_a_known_length_breaks_as_visibly() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 20\r\n\r\ndata: 1\n\n").await;
    client.until("data: 1\n\n").await;
    drop(worker);
    let rest = client.rest().await;
    assert!(rest.contains("worker_truncated") && !rest.ends_with("0\r\n\r\n"), "{rest:?}");
}

#[tokio::test]
async fn a_broken_event_stream_says_so_and_aborts() {
    for (case, sent, gap) in [("between events", "data: 1\n\n", ""), ("within one", "data: 1", "\n\n")] {
        let upstream = Upstream::new().await;
        let plane = start(&[upstream.worker()]);
        let mut client = Wire::connect(&plane).await;
        client.send(post(STREAM)).await;
        let mut worker = upstream.accept().await;
        worker.message().await;
        worker.send(STREAM_HEAD.to_owned() + &chunk(sent)).await;
        client.until(&chunk(sent)).await;
        drop(worker);
        let rest = client.rest().await;
        assert!(rest.contains(&format!("\r\n{gap}data: {{\"error\":")), "{case}: {rest:?}");
        assert!(rest.contains("worker_truncated"), "{case}: {rest:?}");
        assert!(!rest.contains("\r\n0\r\n"), "{case}: no clean end: {rest:?}");
    }
}

#[tokio::test]
async fn a_short_answer_is_502() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"hal\r\n",
    ] {
        let mut client = Wire::connect(&plane).await;
        client.send(post(CHAT)).await;
        let mut worker = upstream.accept().await;
        worker.message().await;
        worker.send(answer).await;
        drop(worker);
        let response = client.message().await;
        assert_eq!((response.status(), response.error_code().as_str()), (502, "worker_truncated"));
    }
}

#[tokio::test]
async fn a_long_answer_that_comes_short_is_aborted() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    for head in ["Content-Length: 4000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n300000\r\n"] {
        let mut client = Wire::connect(&plane).await;
        client.send(post(CHAT)).await;
        let mut worker = upstream.accept().await;
        worker.message().await;
        worker.send(format!("HTTP/1.1 200 OK\r\n{head}{}", "x".repeat(1_500_000))).await;
        client.until("\r\n\r\n").await;
        drop(worker);
        let rest = client.rest().await;
        assert!(rest.len() < 2_000_000 && !rest.ends_with("0\r\n\r\n"), "{head:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_workers_request() {
    for (case, is_streaming) in [("before the head", false), ("during the stream", true)] {
        let upstream = Upstream::new().await;
        let plane = start(&[upstream.worker()]);
        let mut client = Wire::connect(&plane).await;
        client.send(post(STREAM)).await;
        let mut worker = upstream.accept().await;
        worker.message().await;
        if is_streaming {
            worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n")).await;
            client.until("data: 1\n\n").await;
        }
        drop(client);
        let left = Instant::now();
        worker.ends().await;
        assert!(left.elapsed() < Duration::from_millis(100), "{case}: {:?}", left.elapsed());
        eventually(|| plane.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_silent_worker_is_504() {
    let upstream = Upstream::new().await;
    let plane = start_with_timeout(100, &[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    let response = client.message().await;
    assert_eq!((response.status(), response.error_code().as_str()), (504, "worker_timeout"));
    assert_eq!(response.header("x-should-retry"), Some("false"));
    worker.ends().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_deadline() {
    let upstream = Upstream::new().await;
    let plane = start_with_timeout(300, &[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n")).await;
    let all = client.rest().await;
    assert!(all.contains("data: 1") && all.contains("worker_timeout") && !all.ends_with("0\r\n\r\n"), "{all}");
    worker.ends().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_recorded_as_such() {
    let upstream = Upstream::new().await;
    let metrics = Metrics::new();
    let view = Arc::new(ArcSwap::from_pointee(view(&[upstream.worker()])));
    let plane = start_on(config(), view, metrics.clone(), axum::Router::new()).unwrap();
    let count = |status: &str, code: &str| {
        let path = "path=\"/v1/chat/completions\"";
        let labels = format!("{{error_code=\"{code}\",{path},status_code=\"{status}\"}} ");
        metrics.encode().lines().find_map(|line| line.split_once(&labels)?.1.parse::<u64>().ok()).unwrap_or(0)
    };
    // Before the answer.
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    drop(client);
    worker.ends().await;
    eventually(|| count("499", "client_closed") == 1).await;
    // Within it.
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n")).await;
    client.until("data: 1").await;
    drop(client);
    worker.ends().await;
    eventually(|| count("200", "client_closed") == 1).await;
    // Not at all; and the answer to a HEAD ends with its head.
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n") + "0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
    client.send("HEAD /liveness HTTP/1.1\r\nHost: g\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    eventually(|| count("200", "") == 1).await;
    eventually(|| metrics.encode().contains("error_code=\"\",path=\"/liveness\",status_code=\"200\"} 1")).await;
    assert_eq!((count("200", "client_closed"), plane.in_flight()), (1, 0));
}

#[tokio::test]
async fn a_broken_http2_stream_says_so_and_is_reset() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(plane.addr()).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/v1/chat/completions", plane.addr()))
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(bytes::Bytes::from(STREAM)))
        .unwrap();
    let (response, mut worker) = tokio::join!(within(sender.send_request(request)), async {
        let mut worker = upstream.accept().await;
        worker.message().await;
        worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n")).await;
        worker
    });
    let mut body = response.unwrap().into_body();
    let mut next = async || within(http_body_util::BodyExt::frame(&mut body)).await.unwrap();
    assert_eq!(next().await.unwrap().into_data().unwrap(), "data: 1\n\n");
    worker.send("broken").await;
    drop(worker);
    let told = next().await.unwrap().into_data().unwrap();
    assert!(told.starts_with(b"data: {\"error\":"), "{told:?}");
    assert!(next().await.is_err(), "the stream is reset");
    connection.abort();
}

#[tokio::test]
async fn a_client_that_never_reads_frees_its_worker_after_the_deadline() {
    let upstream = Upstream::new().await;
    let plane = start_with_timeout(300, &[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD).await;
    let data = chunk(&"x".repeat(1 << 20));
    // Fills every buffer on the way; the write fails once the gateway hangs up on the worker.
    within(async { while worker.stream.write_all(data.as_bytes()).await.is_ok() {} }).await;
    within(async {
        while plane.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
