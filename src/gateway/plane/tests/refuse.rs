//! What the gateway answers by itself.

use super::*;

#[tokio::test]
async fn bad_requests() {
    let upstream = Upstream::new().await;
    let mut config = config();
    config.requests.payload_bytes_max = 100;
    let plane = start_with(config, axum::Router::new(), &[upstream.worker()]);
    let long = format!("{{\"pad\":\"{}\"}}", "x".repeat(100));
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk(&long)
    );
    let plain = post(CHAT).replace("application/json", "text/plain");
    for (case, request, status, code) in [
        ("not json", post("{"), 400, "invalid_json"),
        ("no object", post("[]"), 400, "invalid_json"),
        ("empty", post(""), 400, "invalid_json"),
        ("too long", post(&long), 413, "payload_too_large"),
        ("too long in chunks", chunked, 413, "payload_too_large"),
        ("content type", plain, 415, "unsupported_media_type"),
        ("compressed", post_with("Content-Encoding: gzip\r\n", CHAT), 415, "unsupported_media_type"),
        ("model", post("{\"model\":\"other\"}"), 404, "model_not_found"),
        ("method", get("/v1/chat/completions"), 405, "method_not_allowed"),
        ("route", get("/nowhere"), 404, "not_found"),
    ] {
        let response = Wire::connect(&plane).await.ask(request).await;
        assert_eq!((response.status(), response.error_code().as_str()), (status, code), "{case}");
        assert_eq!(response.header("x-request-id").map(str::len), Some(32), "{case}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come() {
    let mut config = config();
    config.requests.timeout = Duration::from_millis(50);
    let plane = start_with(config, axum::Router::new(), &[]);
    let mut client = Wire::connect(&plane).await;
    let partial = post(CHAT).replace("Content-Length: 13", "Content-Length: 14");
    let response = client.ask(partial).await;
    assert_eq!((response.status(), response.error_code().as_str()), (408, "request_timeout"));
    client.ends().await;
}

#[tokio::test]
async fn a_refused_body_does_not_cost_the_answer() {
    let plane = start(&[]);
    let mut client = Wire::connect(&plane).await;
    let body = vec![b' '; 4 << 20];
    let head = format!("{}x", post("")).replace("Content-Length: 0", &format!("Content-Length: {}", body.len()));
    client.send(head).await;
    client.send(body).await;
    let response = client.message().await;
    assert_eq!((response.status(), response.error_code().as_str()), (413, "payload_too_large"));
    assert_eq!(response.header("connection"), Some("close"));
    client.ends().await;
}

#[tokio::test]
async fn heads_beyond_the_limit() {
    let plane = start(&[]);
    let mut client = Wire::connect(&plane).await;
    client.send(post_with(&format!("X-Big: {}\r\n", "x".repeat(100_000)), CHAT)).await;
    assert_eq!(client.message().await.status(), 431);
    client.ends().await;
}

#[tokio::test]
async fn heads_that_can_be_read_in_two_ways() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n";
    let body = format!("{}0\r\n\r\n", chunk(CHAT));
    for (case, headers, body) in [
        ("length and chunked", "Content-Length: 13\r\nTransfer-Encoding: chunked\r\n", &*body),
        ("chunked and length", "Transfer-Encoding: chunked\r\nContent-Length: 13\r\n", &body),
        ("two lengths", "Content-Length: 13\r\nContent-Length: 13\r\n", CHAT),
        ("two different lengths", "Content-Length: 13\r\nContent-Length: 1\r\n", CHAT),
        ("another coding", "Transfer-Encoding: gzip, chunked\r\n", &body),
        ("folded line", "X-A: b\r\n c\r\nContent-Length: 13\r\n", CHAT),
        ("NUL", "X-A: b\0c\r\nContent-Length: 13\r\n", CHAT),
    ] {
        for before in ["", "GET /liveness HTTP/1.1\r\nHost: g\r\n\r\n"] {
            let mut client = Wire::connect(&plane).await;
            if !before.is_empty() {
                assert_eq!(client.ask(before).await.status(), 200);
            }
            client.send(format!("{head}{headers}\r\n{body}")).await;
            assert_eq!(client.message().await.status(), 400, "{case}");
            client.ends().await;
        }
    }
    let mut client = Wire::connect(&plane).await;
    for host in ["", "Host: a\r\nHost: b\r\n"] {
        let response = client.ask(format!("GET /liveness HTTP/1.1\r\n{host}\r\n")).await;
        assert_eq!((response.status(), response.error_code().as_str()), (400, "invalid_host"));
    }
    assert_eq!(client.ask("GET /liveness HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await.status(), 200);
    // A request in pieces, and one behind a body that came in pieces, still pass.
    for _ in 0..2 {
        client.send(&post(CHAT)[..60]).await;
        client.send(&post(CHAT)[60..]).await;
        let mut worker = upstream.accept().await;
        assert_eq!(worker.message().await.text(), CHAT);
        worker.send(ok("{}").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(client.message().await.text(), "{}");
    }
}

#[tokio::test]
async fn no_worker() {
    let plane = start(&[]);
    let mut client = Wire::connect(&plane).await;
    let response = client.ask(post(CHAT)).await;
    assert_eq!((response.status(), response.error_code().as_str()), (503, "no_available_workers"));
    assert_eq!(response.header("retry-after"), Some("1"));
    let ready = client.ask(get("/readiness")).await;
    assert_eq!((ready.status(), ready.text().as_str()), (503, r#"{"status":"not ready","reason":"no workers"}"#));
    assert_eq!(client.ask(get("/get_model_info")).await.status(), 503);
    assert_eq!(client.ask(get("/health")).await.status(), 200);
    let models: serde_json::Value = serde_json::from_slice(&client.ask(get("/v1/models")).await.body).unwrap();
    assert_eq!(models["data"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn public_routes() {
    let upstream = Upstream::new().await;
    let plane = start(&[upstream.worker()]);
    let mut client = Wire::connect(&plane).await;
    let ready = client.ask(get("/readiness")).await;
    assert_eq!(ready.text(), r#"{"status":"ready","healthy_workers":1,"total_workers":1}"#);
    let models: serde_json::Value = serde_json::from_slice(&client.ask(get("/v1/models")).await.body).unwrap();
    let model = serde_json::json!({"id": "m", "object": "model", "created": 0, "owned_by": "smg"});
    assert_eq!(models, serde_json::json!({"object": "list", "data": [model]}));
    client.send(get("/get_server_info?a=1")).await;
    let mut worker = upstream.accept().await;
    assert!(worker.message().await.head.starts_with("GET /get_server_info?a=1 HTTP/1.1\r\n"));
    worker.answer("{\"v\":1}").await;
    assert_eq!(client.message().await.text(), "{\"v\":1}");
}

#[tokio::test]
async fn keys_are_checked_and_not_forwarded() {
    let upstream = Upstream::new().await;
    let mut config = config();
    config.auth.api_keys = vec!["one".into(), "two".into()];
    let plane = start_with(config, axum::Router::new(), &[upstream.worker()]);
    for header in ["", "Authorization: Bearer three\r\n"] {
        let response = Wire::connect(&plane).await.ask(post_with(header, CHAT)).await;
        assert_eq!((response.status(), response.error_code().as_str()), (401, "invalid_api_key"));
    }
    let mut client = Wire::connect(&plane).await;
    client.send(post_with("Authorization: Bearer two\r\n", CHAT)).await;
    let mut worker = upstream.accept().await;
    assert_eq!(worker.message().await.header("authorization"), None);
    worker.answer("{}").await;
    assert_eq!(client.message().await.status(), 200);
    assert_eq!(client.ask(get("/readiness")).await.status(), 200, "probes need no key");
}

#[tokio::test]
async fn control_routes() {
    use axum::{extract::ConnectInfo, routing::post};
    let echo = async |ConnectInfo(peer): ConnectInfo<SocketAddr>, body: String| format!("{} {body}", peer.ip());
    let control = axum::Router::new().route("/workers/{id}", post(echo));
    let plane = start_with(config(), control, &[]);
    let mut client = Wire::connect(&plane).await;
    let response = client.ask("POST /workers/1 HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!((response.status(), response.text().as_str()), (200, "127.0.0.1 hi"));
    assert!(response.header("x-request-id").is_some());
    let wrong = client.ask(get("/workers/1")).await;
    assert_eq!((wrong.status(), wrong.error_code().as_str()), (405, "method_not_allowed"));
    assert_eq!(wrong.header("allow"), Some("POST"));
}

#[tokio::test]
async fn browsers() {
    let mut config = config();
    config.requests.cors_allowed_origins = vec!["https://a".into()];
    let plane = start_with(config, axum::Router::new(), &[]);
    let mut client = Wire::connect(&plane).await;
    let preflight = "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: g\r\nOrigin: https://a\r\n\
                     Access-Control-Request-Method: POST\r\n\r\n";
    let response = client.ask(preflight).await;
    assert_eq!(response.status(), 204);
    assert_eq!(response.header("access-control-allow-origin"), Some("https://a"));
    let response = client.ask(post_with("Origin: https://a\r\n", CHAT)).await;
    assert_eq!(response.header("access-control-allow-origin"), Some("https://a"), "errors are readable too");
}

#[tokio::test]
async fn a_port_that_is_taken() {
    let plane = start(&[]);
    let mut config = config();
    config.bind.addr = plane.addr();
    let error = Plane::start(
        Arc::new(config),
        Arc::default(),
        Metrics::new(),
        Reports::default(),
        axum::Router::new(),
        &Tls::default(),
    )
    .unwrap_err();
    assert!(matches!(error, BindError::Listen { .. }));
    assert!(error.to_string().contains("--port"), "{error}");
}
