//! What passes, and how.

use super::*;

#[tokio::test]
async fn bodies_pass_byte_for_byte() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    let big = format!("{{\"model\":\"m\",\"pad\":\"{}\"}}", "é".repeat(200_000));
    let odd = " {\"z\":1e400,\"model\" : \"m\",\n\"n\":18446744073709551616,\"n\":-0.0,\"a\":\"\\u00e9\\/\"} ";
    let mut worker = None;
    for body in [CHAT, odd, &big] {
        client.send(post(body)).await;
        if worker.is_none() {
            worker = Some(upstream.accept().await);
        }
        let worker = worker.as_mut().unwrap();
        assert_eq!(worker.message().await.text(), body);
        worker.answer("{\"n\":1.0}").await;
        assert_eq!(client.message().await.text(), "{\"n\":1.0}");
    }
}

#[tokio::test]
async fn heads_pass_by_the_rules() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    let headers = "X-Custom: 1\r\nX-SMG-Explain: 1\r\nConnection: X-Named\r\nX-Named: 1\r\nX-Request-Id: r1\r\n\
                   Authorization: Bearer k\r\nExpect: 100-continue\r\n";
    client.send(post_with(headers, CHAT)).await;
    let mut worker = upstream.accept().await;
    let request = worker.message().await;
    assert!(request.head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{}", request.head);
    for (name, expected) in [
        ("host", Some(upstream.0.local_addr().unwrap().to_string())),
        ("x-custom", Some("1".into())),
        ("authorization", Some("Bearer k".into())),
        ("x-request-id", Some("r1".into())),
        ("x-smg-explain", None),
        ("x-named", None),
        ("connection", None),
        ("expect", None),
    ] {
        assert_eq!(request.header(name), expected.as_deref(), "{name}");
    }
    let answer = "HTTP/1.1 201 Created\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nConnection: keep-alive, x-mine\r\n\
                  Keep-Alive: timeout=5\r\nX-Mine: 1\r\nContent-Length: 2\r\n\r\nhi";
    worker.send(answer).await;
    client.until("100 Continue\r\n\r\n").await;
    let response = client.message().await;
    assert_eq!((response.status(), response.text().as_str()), (201, "hi"));
    assert_eq!(response.head.to_ascii_lowercase().matches("set-cookie").count(), 2);
    assert_eq!(response.header("x-request-id"), Some("r1"));
    assert_eq!(response.header("x-mine").or(response.header("keep-alive")), None);
}

#[tokio::test]
async fn a_stream_passes_chunk_by_chunk() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD).await;
    client.until("\r\n\r\n").await;
    for data in ["data: 1\n\n", "data: 2\n\n"] {
        // The next chunk is not sent before this one has arrived.
        worker.send(chunk(data)).await;
        client.until(&chunk(data)).await;
    }
    worker.send("0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
    // Both connections serve on.
    client.send(post(CHAT)).await;
    worker.message().await;
    worker.answer("{}").await;
    assert_eq!(client.message().await.text(), "{}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(CHAT) + &get("/liveness") + &post(CHAT)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.answer("1").await;
    assert_eq!(client.message().await.text(), "1");
    assert_eq!(client.message().await.text(), r#"{"status":"alive"}"#);
    worker.message().await;
    worker.answer("3").await;
    assert_eq!(client.message().await.text(), "3");
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(plane.addr()).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/v1/chat/completions", plane.addr()))
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(bytes::Bytes::from(CHAT)))
        .unwrap();
    let (response, ()) = tokio::join!(within(sender.send_request(request)), async {
        let mut worker = upstream.accept().await;
        assert_eq!(worker.message().await.text(), CHAT);
        worker.answer("{\"h\":2}").await;
    });
    let response = response.unwrap();
    assert!(response.headers().contains_key("x-request-id"));
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, "{\"h\":2}");
    connection.abort();
}

#[tokio::test]
async fn a_slow_reader_slows_its_worker() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD).await;
    let data = chunk(&"x".repeat(1 << 20));
    let mut mebibytes = 0;
    // The kernel's buffers grow to some MiB at each hop; anything like 256 would have to be a buffer of ours.
    while mebibytes < 256 {
        let write = worker.stream.write_all(data.as_bytes());
        if tokio::time::timeout(Duration::from_millis(500), write).await.is_err() {
            break;
        }
        mebibytes += 1;
    }
    assert!(mebibytes < 64, "{mebibytes} MiB were taken from the worker");
}

#[tokio::test]
async fn chunks_that_come_together_leave_together_and_what_follows_is_kept_in_order() {
    for (case, end, expected) in
        [("a whole stream", "0\r\n\r\n", "\r\n0\r\n\r\n"), ("a stream that breaks off", "5\r\nhal", "\"error\"")]
    {
        let upstream = Upstream::new().await;
        let plane = start(&[upstream.worker()]);
        let mut client = Wire::connect(&plane).await;
        client.send(post(STREAM)).await;
        let mut worker = upstream.accept().await;
        worker.message().await;
        let events = ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"];
        worker.send(format!("{STREAM_HEAD}{}{end}", events.map(chunk).concat())).await;
        drop(worker);
        client.until("\r\n\r\n").await;
        let body = client.until(expected).await;
        assert!(body.contains(&events.concat()), "{case}: {body:?}");
    }
}
