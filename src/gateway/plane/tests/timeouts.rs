//! Workers that take too long for the first byte of a stream, or for the next.

use tokio::time::timeout;

use super::*;

fn start_with_ttft(ttft_ms: u64, workers: &[Arc<Worker>]) -> Plane {
    let mut config = config();
    config.requests.ttft_timeout = Some(Duration::from_millis(ttft_ms));
    start_with(config, axum::Router::new(), workers)
}

fn start_with_idle(idle_ms: u64, workers: &[Arc<Worker>]) -> Plane {
    let mut config = config();
    config.requests.stream_idle_timeout = Some(Duration::from_millis(idle_ms));
    start_with(config, axum::Router::new(), workers)
}

#[tokio::test]
async fn a_worker_without_a_first_byte_is_left_for_another() {
    for (case, sent) in [("no head", ""), ("a head alone", STREAM_HEAD)] {
        let (one, other) = (Upstream::new().await, Upstream::new().await);
        let plane = start_with_ttft(50, &[one.worker(), other.worker()]);
        let mut client = Wire::connect(&plane).await;
        client.send(post(STREAM)).await;
        let (mut slow, quick) = tokio::select! {
            wire = one.accept() => (wire, &other),
            wire = other.accept() => (wire, &one),
        };
        slow.message().await;
        slow.send(sent).await;
        let mut worker = quick.accept().await;
        assert_eq!(worker.message().await.text(), STREAM, "{case}");
        slow.ends().await;
        worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n")).await;
        client.until("data: 1\n\n").await;
        // Once it has begun, the time to the first byte bounds nothing any more.
        assert!(timeout(Duration::from_millis(100), client.more()).await.is_err(), "{case}");
        worker.send(chunk("data: 2\n\n") + "0\r\n\r\n").await;
        assert!(client.until("0\r\n\r\n").await.contains("data: 2\n\n"), "{case}");
    }
}

#[tokio::test]
async fn without_another_worker_no_first_byte_is_504() {
    let upstream = Upstream::new().await;
    let worker = fragile_worker(upstream.0.local_addr().unwrap(), 60_000);
    let plane = start_with_ttft(50, std::slice::from_ref(&worker));
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    let response = client.message().await;
    assert_eq!((response.status(), response.error_code().as_str()), (504, "ttft_timeout"));
    wire.ends().await;
    assert_eq!(worker.breaker.state(Instant::now()), crate::gateway::breaker::State::Open, "it is a failure");
}

#[tokio::test]
async fn every_worker_is_asked_once_for_a_first_byte() {
    let upstreams = [Upstream::new().await, Upstream::new().await, Upstream::new().await];
    let mut config = config();
    config.requests.ttft_timeout = Some(Duration::from_millis(50));
    config.retry.budget_percent = 100;
    let plane = start_with(config, axum::Router::new(), &upstreams.each_ref().map(Upstream::worker));
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut asked = Vec::new();
    for upstream in &upstreams {
        let mut wire = upstream.accept().await;
        wire.message().await;
        asked.push(wire);
    }
    let response = client.message().await;
    assert_eq!((response.status(), response.error_code().as_str()), (504, "ttft_timeout"));
    for mut wire in asked {
        wire.ends().await;
    }
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_first_byte_goes_to_another_worker() {
    let (one, other) = (Upstream::new().await, Upstream::new().await);
    let plane = start_with_ttft(10_000, &[one.worker(), other.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let (mut failing, working) = tokio::select! {
        wire = one.accept() => (wire, &other),
        wire = other.accept() => (wire, &one),
    };
    failing.message().await;
    failing.send(STREAM_HEAD).await;
    drop(failing);
    let mut worker = working.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n") + "0\r\n\r\n").await;
    let all = client.until("0\r\n\r\n").await;
    assert!(all.starts_with("HTTP/1.1 200") && all.contains("data: 1\n\n"), "{all}");
}

#[tokio::test]
async fn only_streams_have_a_time_to_the_first_byte() {
    let upstream = Upstream::new().await;
    let plane = start_with_ttft(10, &[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    assert!(timeout(Duration::from_millis(100), client.more()).await.is_err());
    worker.answer("{}").await;
    assert_eq!(client.message().await.text(), "{}");
}

#[tokio::test]
async fn empty_streams_and_refusals_are_answers() {
    let upstream = Upstream::new().await;
    let plane = start_with_ttft(10_000, &[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.answer("{}").await;
    assert_eq!(client.message().await.text(), "{}");
    for answer in [format!("{STREAM_HEAD}0\r\n\r\n"), ok("").replace("200 OK", "400 Bad Request")] {
        client.send(post(STREAM)).await;
        worker.message().await;
        worker.send(&answer).await;
        let told = client.message().await;
        assert_eq!((&told.head[..12], told.header("content-length")), (&answer[..12], Some("0")));
    }
}

#[tokio::test]
async fn a_stream_that_stalls_says_so_and_aborts() {
    for (case, sent) in [("between events", "data: 1\n\n"), ("before the first byte", "")] {
        let upstream = Upstream::new().await;
        let plane = start_with_idle(50, &[upstream.worker()]);
        let mut client = Wire::connect(&plane).await;
        client.send(post(STREAM)).await;
        let mut worker = upstream.accept().await;
        worker.message().await;
        worker.send(STREAM_HEAD).await;
        if !sent.is_empty() {
            worker.send(chunk(sent)).await;
        }
        let all = client.rest().await;
        assert!(all.contains(sent) && all.contains("stream_idle_timeout"), "{case}: {all}");
        assert!(!all.ends_with("0\r\n\r\n"), "{case}: no clean end: {all}");
        worker.ends().await;
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_no_worker_that_stalls() {
    let upstream = Upstream::new().await;
    let plane = start_with_idle(50, &[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD).await;
    let data = chunk(&"x".repeat(1 << 20));
    let mut sent = 0;
    // Fills every buffer on the way, and finds them full for longer than the worker may be silent.
    while let Ok(written) = timeout(Duration::from_millis(200), worker.stream.write_all(data.as_bytes())).await {
        written.unwrap();
        sent += 1;
    }
    assert!(sent > 0);
    // What was cut off in the middle is not known, so the worker hangs up: the client sees all that was sent before.
    drop(worker);
    let all = client.rest().await;
    assert!(all.bytes().filter(|&byte| byte == b'x').count() >= sent << 20);
    assert!(all.contains("worker_truncated") && !all.contains("stream_idle_timeout"));
}
