//! The way out.

use super::*;

#[tokio::test]
async fn drains_in_phases() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let addr = plane.addr();
    let (mut streaming, mut straggler) = (Wire::connect(&plane).await, Wire::connect(&plane).await);
    assert_eq!(straggler.ask(get("/liveness")).await.status(), 200);
    streaming.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD).await;
    streaming.until("\r\n\r\n").await;

    let drained = tokio::spawn(plane.drain(Duration::from_secs(4)));
    // Settling: new connections come in and are served, the probes say no.
    let settling = until_503(addr, "/readiness").await;
    assert_eq!(settling.text(), r#"{"status":"not ready","reason":"draining"}"#);
    assert_eq!(settling.header("connection"), Some("close"));
    let mut served = Wire::new(TcpStream::connect(addr).await.unwrap());
    served.send(post(CHAT)).await;
    let mut second = upstream.accept().await;
    second.message().await;
    second.answer("{}").await;
    let response = served.message().await;
    assert_eq!((response.status(), response.header("connection")), (200, Some("close")));
    served.ends().await;

    // Refusing: also on the connection that was kept alive.
    let refused = until_503(addr, "/v1/models").await;
    assert_eq!(refused.error_code(), "draining");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let refused = straggler.ask(get("/v1/models")).await;
    assert_eq!((refused.status(), refused.header("connection")), (503, Some("close")));
    straggler.ends().await;

    // Closing: nobody gets in, the stream runs on to its end, and then the drain is over.
    within(async { while TcpStream::connect(addr).await.is_ok() {} }).await;
    worker.send(chunk("data: 1\n\n") + "0\r\n\r\n").await;
    assert!(streaming.rest().await.ends_with("data: 1\n\n\r\n0\r\n\r\n"));
    within(drained).await.unwrap();
}

/// Asks on new connections until the answer is 503.
async fn until_503(addr: SocketAddr, path: &str) -> Message {
    within(async {
        loop {
            let response = Wire::new(TcpStream::connect(addr).await.unwrap()).ask(get(path)).await;
            if response.status() == 503 {
                return response;
            }
            assert_eq!(response.status(), 200);
        }
    })
    .await
}

#[tokio::test]
async fn what_outlasts_the_grace_is_cut_off() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    client.send(post(STREAM)).await;
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD).await;
    client.until("\r\n\r\n").await;
    within(plane.drain(Duration::from_millis(300))).await;
    client.ends().await;
    worker.ends().await;
}

#[tokio::test]
async fn nobody_to_notice_means_no_window() {
    let plane = start(&[]);
    let began = Instant::now();
    within(plane.drain(Duration::from_secs(180))).await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn http2_clients_are_told_to_go() {
    let plane = start(&[]);
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(plane.addr()).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, http_body_util::Full<bytes::Bytes>>(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    eventually(|| plane.connections() == 1).await;
    let drained = tokio::spawn(plane.drain(Duration::from_millis(600)));
    // GOAWAY ends the idle connection at once, from the server's side.
    within(connection).await.unwrap().unwrap();
    drop(sender);
    within(drained).await.unwrap();
}

#[tokio::test]
async fn an_http2_stream_runs_on_after_goaway() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let addr = plane.addr();
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{addr}/v1/chat/completions"))
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(bytes::Bytes::from_static(STREAM.as_bytes())))
        .unwrap();
    let asked = tokio::spawn(sender.send_request(request));
    let mut worker = upstream.accept().await;
    worker.message().await;
    worker.send(STREAM_HEAD.to_owned() + &chunk("data: 1\n\n")).await;
    let response = within(asked).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);

    let drained = tokio::spawn(plane.drain(Duration::from_secs(8)));
    until_503(addr, "/readiness").await;
    // Nothing new begins on the connection, what runs does so to its end, and that ends the connection.
    worker.send(chunk("data: 2\n\n") + "0\r\n\r\n").await;
    let body = within(http_body_util::BodyExt::collect(response.into_body())).await.unwrap().to_bytes();
    assert_eq!(body, "data: 1\n\ndata: 2\n\n");
    within(connection).await.unwrap().unwrap();
    within(drained).await.unwrap();
}
