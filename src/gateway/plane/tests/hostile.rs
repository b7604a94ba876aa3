//! Clients that mean harm, by raw sockets: each gets its answer or none, and no worker ever sees a request of theirs.

use axum::{extract::rejection::BytesRejection, routing};
use futures_util::FutureExt;

use super::*;
use crate::gateway::{admin::read_body, error::GatewayError};

#[tokio::test]
async fn chunks_that_are_none() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let smuggled = "GET /get_server_info HTTP/1.1\r\nHost: g\r\n\r\n";
    for (case, body) in [
        ("no size", "xyz\r\n".to_owned()),
        ("negative", format!("-1\r\n{smuggled}")),
        ("in hexadecimal with a prefix", format!("0xd\r\n{CHAT}\r\n0\r\n\r\n")),
        ("beyond 64 bits", format!("10000000000000000d\r\n{CHAT}\r\n0\r\n\r\n")),
        ("longer than it says", format!("5\r\n{CHAT}\r\n0\r\n\r\n{smuggled}")),
        ("no line end behind the size", format!("d{CHAT}0\r\n\r\n")),
        ("trailers that are a request", format!("{}0\r\n{smuggled}", chunk(CHAT))),
    ] {
        let mut client = Wire::connect(&plane).await;
        client.send(format!("{head}{body}")).await;
        let response = client.message().await;
        assert_eq!((response.status(), response.error_code().as_str()), (400, "incomplete_body"), "{case}");
        client.ends().await;
        assert!(upstream.0.accept().now_or_never().is_none(), "{case}: nothing reaches the worker");
    }
}

#[tokio::test]
async fn refused_heads_are_counted() {
    let metrics = Metrics::new();
    let view = Arc::new(ArcSwap::from_pointee(view(&[])));
    let plane = start_on(config(), view, metrics.clone(), axum::Router::new()).unwrap();
    for request in ["GET / HTTP/1.1\r\nHost: \0\r\n\r\n", "\0\r\n\r\n", "GET  / HTTP/9.9\r\n\r\n"] {
        let mut client = Wire::connect(&plane).await;
        assert_eq!(client.ask(request).await.error_code(), "malformed_request");
        client.ends().await;
    }
    let text = metrics.encode();
    for line in [
        r#"requests_total{method="OTHER",path="unmatched"} 3"#,
        r#"responses_total{error_code="malformed_request",path="unmatched",status_code="400"} 3"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

/// Takes as long as a head may take: 10 s.
#[tokio::test]
async fn a_head_that_comes_too_slowly_is_told() {
    let plane = start(&[]);
    let (mut silent, mut slow, mut later) =
        (Wire::connect(&plane).await, Wire::connect(&plane).await, Wire::connect(&plane).await);
    assert_eq!(later.ask(get("/liveness")).await.status(), 200);
    slow.send("GET /liveness HTTP/1.1\r\nHost: g\r\nX-A").await;
    later.send("GET /liv").await;
    for client in [&mut slow, &mut later] {
        let read = client.stream.read_buf(&mut client.buffer);
        tokio::time::timeout(4 * PATIENCE, read).await.unwrap().unwrap();
        let response = client.message().await;
        assert_eq!((response.status(), response.error_code().as_str()), (408, "request_timeout"));
        client.ends().await;
    }
    silent.ends().await;
}

#[tokio::test]
async fn the_body_of_a_control_request_that_does_not_come() {
    let mut config = config();
    config.requests.timeout = Duration::from_millis(50);
    let read = async |body: Result<bytes::Bytes, BytesRejection>| -> Result<String, GatewayError> {
        read_body(body).map(|body| body.len().to_string())
    };
    let plane = start_with(config, axum::Router::new().route("/read", routing::post(read)), &[]);
    let mut client = Wire::connect(&plane).await;
    let head = "POST /read HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(client.ask(format!("{head}12345")).await.text(), "5");
    let response = client.ask(format!("{head}1234")).await;
    assert_eq!((response.status(), response.error_code().as_str()), (408, "request_timeout"));
    client.ends().await;
}

/// CVE-2023-44487: streams that are reset as soon as they are opened.
#[tokio::test]
async fn http2_streams_that_are_reset_at_once() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    // GET http://g/get_server_info, by HPACK's static table and two literals.
    let mut request = vec![0x82, 0x86, 0x01, 1, b'g', 0x04, 16];
    request.extend(b"/get_server_info");
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    flood.extend(frame(4, 0, 0, &[]));
    for n in 0..1000 {
        flood.extend(frame(1, 5, 2 * n + 1, &request));
        flood.extend(frame(3, 0, 2 * n + 1, &8_u32.to_be_bytes()));
    }
    // It is cut off in the middle.
    let _ = client.stream.write_all(&flood).await;
    within(async { while client.more().await {} }).await;
    let last = client.buffer.windows(9).rposition(|head| head[3] == 7 && head[5..9] == [0; 4]);
    let goaway = &client.buffer[last.unwrap()..];
    assert_eq!(goaway[13..17], 11_u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
    eventually(|| plane.in_flight() == 0).await;
    let mut accepted = 0;
    while upstream.0.accept().now_or_never().is_some() {
        accepted += 1;
    }
    assert!(accepted < 100, "{accepted} requests of 1000 reached the worker");
    assert_eq!(Wire::connect(&plane).await.ask(get("/liveness")).await.status(), 200);
}
