//! What counts against a worker, and what its breaker does to the choice.

use super::*;
use crate::gateway::breaker::State;

/// Longer than any test.
const LONG_MS: u64 = 3_600_000;

fn addr_of(upstream: &Upstream) -> SocketAddr {
    upstream.0.local_addr().unwrap()
}

/// SPEC §1 row 8.
#[tokio::test]
async fn what_a_worker_answers_counts_like_this() {
    const SHORT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{";
    let status = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
    let event = chunk("data: 1\n\n");
    for (case, request, answer, expected) in [
        ("good", CHAT, ok("{}"), State::Closed),
        ("good stream", STREAM, format!("{STREAM_HEAD}{event}0\r\n\r\n"), State::Closed),
        ("bad request", CHAT, status("400 Bad Request"), State::Closed),
        ("not found", CHAT, status("404 Not Found"), State::Closed),
        ("too many requests", CHAT, status("429 Too Many Requests"), State::Closed),
        ("overloaded", CHAT, status("503 Service Unavailable"), State::Closed),
        ("internal error", CHAT, status("500 Internal Server Error"), State::Open),
        ("bad gateway", STREAM, status("502 Bad Gateway"), State::Open),
        ("gateway timeout", CHAT, status("504 Gateway Timeout"), State::Open),
        ("reset before the head", CHAT, String::new(), State::Open),
        ("short body", CHAT, SHORT.to_owned(), State::Open),
        ("broken stream", STREAM, format!("{STREAM_HEAD}{event}"), State::Open),
    ] {
        let upstream = Upstream::new().await;
        let worker = fragile_worker(addr_of(&upstream), LONG_MS);
        let mut config = config();
        config.retry.retries_max = 0;
        let plane = start_with(config, axum::Router::new(), std::slice::from_ref(&worker));
        let mut client = Wire::connect(&plane).await;
        client.send(post_with("Connection: close\r\n", request)).await;
        let mut wire = upstream.accept().await;
        wire.message().await;
        wire.send(answer).await;
        drop(wire);
        client.rest().await;
        eventually(|| plane.in_flight() == 0).await;
        assert_eq!(worker.breaker.state(Instant::now()), expected, "{case}");
    }
}

#[tokio::test]
async fn no_connection_counts_and_a_client_that_leaves_does_not() {
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let worker = fragile_worker(nowhere, LONG_MS);
    let plane = start(std::slice::from_ref(&worker));
    let response = Wire::connect(&plane).await.ask(post(CHAT)).await;
    assert_eq!((response.status(), response.error_code().as_str()), (502, "worker_unreachable"));
    assert_eq!(worker.breaker.state(Instant::now()), State::Open);

    for answer in ["", STREAM_HEAD] {
        let upstream = Upstream::new().await;
        let worker = fragile_worker(addr_of(&upstream), LONG_MS);
        let plane = start(std::slice::from_ref(&worker));
        let mut client = Wire::connect(&plane).await;
        client.send(post(STREAM)).await;
        let mut wire = upstream.accept().await;
        wire.message().await;
        wire.send(answer).await;
        if !answer.is_empty() {
            client.until("\r\n\r\n").await;
        }
        drop(client);
        wire.ends().await;
        eventually(|| plane.in_flight() == 0).await;
        assert_eq!(worker.breaker.state(Instant::now()), State::Closed, "{answer:?}");
    }
}

#[tokio::test]
async fn a_worker_that_hangs_until_the_deadline_counts() {
    for (case, answer) in [("no head", ""), ("no end", STREAM_HEAD)] {
        let upstream = Upstream::new().await;
        let worker = fragile_worker(addr_of(&upstream), LONG_MS);
        let mut config = config();
        config.requests.timeout = Duration::from_millis(150);
        let plane = start_with(config, axum::Router::new(), std::slice::from_ref(&worker));
        let mut client = Wire::connect(&plane).await;
        client.send(post(STREAM)).await;
        let mut wire = upstream.accept().await;
        wire.message().await;
        wire.send(answer).await;
        wire.ends().await;
        eventually(|| plane.in_flight() == 0 && worker.in_flight() == 0).await;
        assert_eq!(worker.breaker.state(Instant::now()), State::Open, "{case}");
    }
}

#[tokio::test]
async fn an_open_breaker_sends_requests_elsewhere_and_then_a_trial() {
    let (one, other) = (Upstream::new().await, Upstream::new().await);
    let workers = [fragile_worker(addr_of(&one), 300), worker(addr_of(&other))];
    let plane = start(&workers);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut failing = one.accept().await;
    failing.message().await;
    failing.send("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.message().await.status(), 500);
    // The other one gets its own turns and those of the open one, until that one's time is over.
    client.send(post(CHAT)).await;
    let mut working = other.accept().await;
    working.message().await;
    working.answer("{}").await;
    assert_eq!(client.message().await.status(), 200);
    eventually(|| workers[0].breaker.state(Instant::now()) == State::HalfOpen).await;
    // Round robin gives one of the next two turns to the worker on trial.
    for _ in 0..2 {
        client.send(post(CHAT)).await;
        let asked = tokio::select! {
            message = failing.message() => (message, &mut failing),
            message = working.message() => (message, &mut working),
        };
        assert_eq!(asked.0.text(), CHAT);
        asked.1.answer("{}").await;
        assert_eq!(client.message().await.status(), 200);
    }
    assert_eq!(workers[0].breaker.state(Instant::now()), State::Closed);
}

#[tokio::test]
async fn with_every_breaker_open_the_client_is_told_when_to_come_again() {
    let upstream = Upstream::new().await;
    let worker = fragile_worker(addr_of(&upstream), 20_000);
    let plane = start(std::slice::from_ref(&worker));
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT)).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    wire.send("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.message().await.status(), 500);
    let refused = client.ask(post(CHAT)).await;
    assert_eq!((refused.status(), refused.error_code().as_str()), (503, "no_available_workers"));
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((10..=20).contains(&after), "{after}");
}
