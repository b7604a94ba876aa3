//! The whole HTTP surface: every route by every method, and who may.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::mpsc,
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Gateway, Network, eventually, s, worker};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Group {
    Serving,
    Public,
    Admin,
}
use Group::{Admin, Public, Serving};

/// A route, the body that is sent, and what comes of it.
struct Row(Group, Method, &'static str, Value, u16, &'static str);

/// What one gateway with a ready worker for `m1` and no keys answers on loopback. A route is there under every method that
/// has a row; HEAD is where GET is.
fn table() -> Vec<Row> {
    let chat = json!({"model": "m1", "messages": [{"role": "user", "content": "hi"}]});
    let message = json!({"model": "m1", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]});
    let rerank = json!({"model": "m1", "query": "a", "documents": ["b", "c"]});
    let input = json!({"model": "m1", "input": "hi"});
    let (get, post, none) = (Method::GET, Method::POST, Value::Null);
    let mut rows = vec![
        Row(Serving, post.clone(), "/v1/chat/completions", chat, 200, ""),
        Row(Serving, post.clone(), "/v1/completions", json!({"model": "m1", "prompt": "hi"}), 200, ""),
        Row(Serving, post.clone(), "/v1/embeddings", input.clone(), 200, ""),
        Row(Serving, post.clone(), "/v1/responses", input.clone(), 200, ""),
        Row(Serving, post.clone(), "/v1/rerank", rerank.clone(), 200, ""),
        Row(Serving, post.clone(), "/rerank", rerank, 200, ""),
        Row(Serving, post.clone(), "/v1/messages", message, 200, ""),
        Row(Serving, post.clone(), "/generate", json!({"text": "hi"}), 200, ""),
        Row(Serving, post.clone(), "/v1/classify", input, 200, ""),
        Row(Serving, get.clone(), "/v1/responses/resp_0", none.clone(), 404, "response_not_found"),
        Row(Serving, Method::DELETE, "/v1/responses/resp_0", none.clone(), 404, "response_not_found"),
        Row(Serving, post.clone(), "/v1/responses/resp_0/cancel", none.clone(), 404, "response_not_found"),
        Row(Serving, get.clone(), "/v1/responses/resp_0/input_items", none.clone(), 404, "response_not_found"),
        Row(Admin, get.clone(), "/workers", none.clone(), 200, ""),
        Row(Admin, post.clone(), "/workers", json!({}), 400, "invalid_request"),
        Row(Admin, get.clone(), "/workers/w-0", none.clone(), 404, "worker_not_found"),
        Row(Admin, Method::PATCH, "/workers/w-0", json!({}), 404, "worker_not_found"),
        Row(Admin, Method::DELETE, "/workers/w-0", none.clone(), 404, "worker_not_found"),
        Row(Admin, post.clone(), "/flush_cache", none.clone(), 200, ""),
        Row(Admin, get.clone(), "/get_loads", none.clone(), 200, ""),
        Row(Public, get.clone(), "/ha/workers/w-0", none.clone(), 404, "worker_not_found"),
        Row(Public, get.clone(), "/ha/policies/m2", none.clone(), 404, "policy_not_found"),
        Row(Admin, Method::PUT, "/ha/policies/m2", json!({"policy": "random"}), 200, ""),
        Row(Admin, post, "/ha/shutdown", none.clone(), 202, ""),
    ];
    let public = ["/v1/models", "/get_model_info", "/get_server_info", "/health_generate", "/liveness", "/readiness"];
    let ha = ["/health", "/ha/health", "/ha/status", "/ha/workers", "/ha/policies", "/ha/events", "/ha/ui"];
    rows.extend(public.into_iter().chain(ha).map(|path| Row(Public, get.clone(), path, none.clone(), 200, "")));
    rows
}

/// Status, `X-SMG-Error-Code` and `Allow`.
async fn send(gateway: &Gateway, key: &str, method: &Method, path: &str, body: &Value) -> (u16, String, String) {
    let mut request = gateway.http.request(method.clone(), gateway.url(path));
    if !body.is_null() {
        request = request.json(body);
    }
    if !key.is_empty() {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.unwrap();
    let text = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), text("x-smg-error-code"), text("allow"))
}

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

#[tokio::test]
async fn every_route_answers_by_its_methods_and_refuses_the_others() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let mut gateway = Gateway::start(network, 1, &[], &["--worker-urls", &url, "--shutdown-grace-period-secs", "2"]);
    eventually(s(5), "ready", async || gateway.is_ready().await).await;
    let table = table();
    let mut paths: Vec<&str> = table.iter().map(|row| row.2).collect();
    paths.sort_unstable();
    paths.dedup();
    for path in &paths {
        for method in METHODS {
            let like = if method == Method::HEAD { Method::GET } else { method.clone() };
            let is_there = table.iter().any(|row| row.2 == *path && row.1 == like);
            if !is_there {
                let (status, code, allow) = send(&gateway, "", &method, path, &Value::Null).await;
                assert_eq!((status, code.as_str()), (405, "method_not_allowed"), "{method} {path}");
                for row in table.iter().filter(|row| row.2 == *path) {
                    assert!(allow.split([',', ' ']).any(|allowed| allowed == row.1.as_str()), "{path}: {allow}");
                }
            }
        }
    }
    for Row(_, method, path, body, status, code) in table.iter().filter(|row| row.2 != "/ha/shutdown") {
        let (found, said, _) = send(&gateway, "", method, path, body).await;
        assert_eq!((found, said.as_str()), (*status, *code), "{method} {path}");
        if *method == Method::GET {
            let (found, said, _) = send(&gateway, "", &Method::HEAD, path, body).await;
            assert_eq!((found, said.as_str()), (*status, *code), "HEAD {path}");
        }
    }
    for path in ["/", "/v1", "/v1/chat", "/ha", "/metrics", "/v1/responses/", "/v1/responses/resp_0/x", "/worker"] {
        for method in METHODS {
            let (status, code, _) = send(&gateway, "", &method, path, &Value::Null).await;
            assert_eq!((status, code.as_str()), (404, "not_found"), "{method} {path}");
        }
    }
    assert_eq!(send(&gateway, "", &Method::POST, "/ha/shutdown", &Value::Null).await.0, 202);
    assert_eq!(gateway.process.exit(s(8)).await.code(), Some(0));
}

#[tokio::test]
async fn keys_open_their_group_alone_and_can_be_read_from_files() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        format!("@{}", path.display())
    };
    let (api, admin) = (file("api", "serve-1\nserve-2\n"), file("admin", "admin-1\n"));
    let flags = ["--worker-urls", &url, "--api-key", &api, "--admin-api-key", &admin, "--admin-api-key", "admin-2"];
    let gateway = Gateway::start(network, 1, &[], &flags);
    eventually(s(5), "ready", async || gateway.is_ready().await).await;
    for Row(group, method, path, body, status, code) in table().iter().filter(|row| row.2 != "/ha/shutdown") {
        for (key, opens) in [
            ("", None),
            ("serve-1", Some(Serving)),
            ("serve-2", Some(Serving)),
            ("admin-1", Some(Admin)),
            ("admin-2", Some(Admin)),
        ] {
            let (found, said, _) = send(&gateway, key, method, path, body).await;
            let is_open = *group == Public || opens == Some(*group);
            let expected = if is_open { (*status, *code) } else { (401, "invalid_api_key") };
            assert_eq!((found, said.as_str()), expected, "{method} {path} with {key:?}");
        }
    }
    let log = gateway.process.log();
    assert!(!log.contains("serve-1") && !log.contains("admin-2"), "a key was logged");
}

/// A worker that answers one request after the other, and the heads that it got.
fn listening_worker(ip: std::net::Ipv4Addr) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind((ip, 9000)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (heads, received) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            // A client that gives up in between is not this test's.
            let _ = stream.read_exact(&mut body);
            let models = r#"{"object":"list","data":[{"id":"m1"}]}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{models}",
                models.len()
            );
            let _ = stream.write_all(answer.as_bytes());
            if heads.send(head).is_err() {
                return;
            }
        }
    });
    (url, received)
}

#[tokio::test]
async fn a_worker_gets_its_key_and_nothing_of_the_clients() {
    let network = Network::new();
    let (url, heads) = listening_worker(network.ip(100));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, "of-the-worker\n").unwrap();
    let key = format!("@{}", path.display());
    let flags = ["--worker-urls", &url, "--worker-api-key", &key, "--api-key", "of-the-client"];
    let gateway = Gateway::start(network, 1, &[], &flags);
    eventually(s(5), "ready", async || gateway.is_ready().await).await;
    let body = json!({"model": "m1", "messages": []});
    let request = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body).bearer_auth("of-the-client");
    let request = request.header("x-smg-routing-key", "k").header("x-smg-explain", "1").header("x-mine", "kept");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let heads: Vec<String> = heads.try_iter().collect();
    let served = heads.iter().find(|head| head.starts_with("post /v1/chat/completions ")).expect("the request came");
    assert!(heads.iter().all(|head| head.contains("\r\nauthorization: bearer of-the-worker\r\n")), "{heads:?}");
    assert!(served.contains("\r\nx-mine: kept\r\n") && !served.contains("x-smg-"), "{served}");
    assert!(!served.contains("of-the-client"), "{served}");
}
