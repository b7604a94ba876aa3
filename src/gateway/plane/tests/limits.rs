//! The bound on requests in flight, and its queue; the bound on requests per second.

use futures_util::FutureExt;

use super::*;

fn start_bounded(queue_max: usize, queue_timeout_ms: u64, workers: &[Arc<Worker>]) -> Plane {
    let mut config = config();
    let queue_timeout = Duration::from_millis(queue_timeout_ms);
    config.limits =
        Limits { concurrent_requests_max: Some(1), queue_max, queue_timeout, cluster_concurrent_max: None, rate: None };
    start_with(config, axum::Router::new(), workers)
}

/// The next request at the worker, on this connection or, when it comes from another core, on a new one.
async fn next_request(upstream: &Upstream, mut wire: Wire) -> (String, Wire) {
    tokio::select! {
        message = wire.message() => (message.text(), wire),
        mut new = upstream.accept() => (new.message().await.text(), new),
    }
}

#[tokio::test]
async fn the_next_goes_when_the_response_of_the_one_before_has_ended() {
    let upstream = Upstream::new().await;
    let plane = start_bounded(1, 60_000, &[upstream.worker()]);
    let [mut first, mut second, mut third] =
        [Wire::connect(&plane).await, Wire::connect(&plane).await, Wire::connect(&plane).await];
    first.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n")).await;
    first.until("data: 1\n\n").await;
    second.send(post(CHAT)).await;
    eventually(|| plane.in_flight() == 2).await;
    // Wrong ones are told so without waiting, and so are those that find the queue full.
    assert_eq!(third.ask(post("{")).await.status(), 400);
    assert_eq!(third.ask(post(r#"{"model":"none"}"#)).await.status(), 404);
    let full = third.ask(post(CHAT)).await;
    assert_eq!((full.status(), full.error_code().as_str()), (429, "queue_full"));
    assert_eq!(full.header("retry-after"), Some("1"));
    // Probes and what is no serving route are not bounded.
    assert_eq!(third.ask(get("/liveness")).await.status(), 200);

    worker.send(chunk("data: 2\n\n")).await;
    first.until("data: 2\n\n").await;
    assert!(upstream.0.accept().now_or_never().is_none(), "the second one is not under way yet");
    worker.send("0\r\n\r\n").await;
    let (text, mut worker) = next_request(&upstream, worker).await;
    assert_eq!(text, CHAT);
    worker.answer("{}").await;
    assert_eq!(second.message().await.status(), 200);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_makes_room_and_reaches_no_worker() {
    let upstream = Upstream::new().await;
    let plane = start_bounded(1, 60_000, &[upstream.worker()]);
    let mut first = Wire::connect(&plane).await;
    first.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    let mut leaving = Wire::connect(&plane).await;
    leaving.send(post(r#"{"model":"m","n":"left"}"#)).await;
    eventually(|| plane.in_flight() == 2).await;
    drop(leaving);
    eventually(|| plane.in_flight() == 1).await;
    let mut next = Wire::connect(&plane).await;
    next.send(post(r#"{"model":"m","n":"next"}"#)).await;
    eventually(|| plane.in_flight() == 2).await;
    worker.answer("{}").await;
    assert_eq!(first.message().await.status(), 200);
    let (text, mut worker) = next_request(&upstream, worker).await;
    assert_eq!(text, r#"{"model":"m","n":"next"}"#);
    worker.answer("{}").await;
    assert_eq!(next.message().await.status(), 200);
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_408() {
    let upstream = Upstream::new().await;
    let plane = start_bounded(1, 100, &[upstream.worker()]);
    let mut first = Wire::connect(&plane).await;
    first.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    let mut second = Wire::connect(&plane).await;
    let late = second.ask(post(CHAT)).await;
    assert_eq!((late.status(), late.error_code().as_str()), (408, "queue_timeout"));
    worker.answer("{}").await;
    assert_eq!(first.message().await.status(), 200);
    // The slot is free again.
    second.send(post(CHAT)).await;
    let (text, mut worker) = next_request(&upstream, worker).await;
    assert_eq!(text, CHAT);
    worker.answer("{}").await;
    assert_eq!(second.message().await.status(), 200);
}

#[tokio::test]
async fn more_requests_than_the_rate_allows_are_429() {
    let upstream = Upstream::new().await;
    let mut config = config();
    config.limits.rate = Some(RateLimit { per_second: 1, burst: 2 });
    config.auth.api_keys = vec!["key".into()];
    let plane = start_with(config, axum::Router::new(), &[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    let post = |body: &str| post_with("Authorization: Bearer key\r\n", body);
    // What is wrong costs no token.
    for (request, status) in [(super::post(CHAT), 401), (post("{"), 400), (post(r#"{"model":"none"}"#), 404)] {
        assert_eq!(client.ask(request).await.status(), status);
    }
    client.send(post(CHAT)).await;
    let mut worker = upstream.accept().await;
    for round in 0..2 {
        if round > 0 {
            client.send(post(CHAT)).await;
        }
        worker.message().await;
        worker.answer("{}").await;
        let answer = client.message().await;
        assert_eq!((answer.status(), answer.header("x-ratelimit-limit")), (200, Some("1")));
        assert!(matches!(answer.header("x-ratelimit-remaining"), Some("0" | "1")), "{answer:?}");
        assert!(matches!(answer.header("x-ratelimit-reset"), Some("1" | "2")), "{answer:?}");
    }
    let refused = loop {
        // A slow machine may have gained a token meanwhile.
        client.send(post(CHAT)).await;
        tokio::select! {
            answer = client.message() => break answer,
            _ = worker.message() => {
                worker.answer("{}").await;
                assert_eq!(client.message().await.status(), 200);
            }
        }
    };
    assert_eq!((refused.status(), refused.error_code().as_str()), (429, "rate_limit_exceeded"));
    for (name, expected) in [("retry-after", "1"), ("x-ratelimit-limit", "1"), ("x-ratelimit-remaining", "0")] {
        assert_eq!(refused.header(name), Some(expected), "{name}");
    }
    assert!(matches!(refused.header("x-ratelimit-reset"), Some("1" | "2")), "{refused:?}");
    // Probes and what is no serving route are not bounded.
    assert_eq!(client.ask(get("/liveness")).await.status(), 200);
    let models = client.ask(get("/v1/models")).await;
    assert_eq!((models.status(), models.header("x-ratelimit-limit")), (200, None));
}
