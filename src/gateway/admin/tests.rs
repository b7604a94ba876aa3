//! The admin routes by `oneshot`, with the mesh's ends of the channels in the test.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use axum::{
    body::Body,
    extract::{ConnectInfo, Request},
    http::Method,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::{
    gateway::{
        error::ERROR_CODE_HEADER,
        health::tests::Script,
        registry::tests::{FakeMesh, eventually, start},
        service::prepare,
        worker::tests::spec,
    },
    mesh::stores::WorkerState,
};

struct Fixture {
    script: Script,
    mesh: FakeMesh,
    registry: Registry,
    router: Router,
}

fn fixture(keys: &[&str]) -> Fixture {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let auth = Auth { api_keys: Vec::new(), admin_api_keys: keys.iter().map(|&k| k.to_owned()).collect() };
    let admin = Admin { mesh: mesh.handle.clone(), registry: registry.clone(), auth: Arc::new(auth) };
    Fixture { script, mesh, registry, router: prepare(router(admin)) }
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Value,
}

impl Fixture {
    async fn send(&self, method: Method, path: &str, body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 5))));
        self.send_request(request).await
    }

    async fn send_request(&self, request: Request) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, headers, body: serde_json::from_slice(&bytes).unwrap() }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_comes_and_goes() {
    let f = fixture(&[]);
    let empty = f.send(Method::GET, "/workers", "").await;
    assert_eq!((empty.status, empty.body), (200, json!({ "workers": [], "total": 0 })));
    let body = r#"{"url":"http://W1:8000/","model_id":"m","api_key":"sesame","zone":"z"}"#;
    let added = f.send(Method::POST, "/workers", body).await;
    let id = WorkerId::of_url("http://w1:8000");
    assert_eq!(added.status, 202);
    assert_eq!(added.headers["location"], format!("/workers/{id}"));
    let shown = |state: &str| {
        json!({
            "id": id.as_str(), "url": "http://w1:8000", "models": ["m"], "state": state, "zone": "z",
            "requests_active": 0, "breaker": "closed", "origin": "api",
        })
    };
    // It had to wait until the table showed the worker; the first look at it took no longer.
    assert_eq!(added.body, shown("ready"));
    assert!(f.registry.wait_ready(&id, Duration::from_secs(1)).await);
    let listed = f.send(Method::GET, "/workers", "").await;
    assert_eq!(listed.body, json!({ "workers": [shown("ready")], "total": 1 }));
    let id_path = format!("/workers/{id}");
    for path in
        [&*id_path, "/workers/http%3A%2F%2Fw1%3A8000", "/workers/http%3A%2F%2FW1%3A8000%2F", "/workers/http://w1:8000"]
    {
        assert_eq!(f.send(Method::GET, path, "").await.body, shown("ready"), "{path}");
    }
    let removed = f.send(Method::DELETE, "/workers/http%3A%2F%2Fw1%3A8000", "").await;
    assert_eq!((removed.status, removed.body), (202, json!({ "id": id.as_str(), "state": "draining" })));
    assert_eq!(f.send(Method::GET, "/workers", "").await.body["total"], 0);
    assert_eq!(f.send(Method::GET, &id_path, "").await.status, 404);
    assert_eq!(f.send(Method::DELETE, &id_path, "").await.body["error"]["code"], "worker_not_found");
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_changed_field_by_field() {
    let f = fixture(&[]);
    let body = r#"{"url":"http://w1","model_id":"m","api_key":"old","zone":"z"}"#;
    let id = WorkerId::of_url("http://w1");
    assert_eq!(f.send(Method::POST, "/workers?wait=1", body).await.status, 201);
    let table = f.registry.routing();
    let is_routed = |model: &str| table.load().models.get(model).is_some_and(|route| !route.ready.is_empty());
    let id_path = format!("/workers/{id}");
    for (case, path, body, models, zone, state) in [
        ("nothing", &*id_path, "{}", json!(["m"]), "z", "ready"),
        ("models", &id_path, r#"{"models":["a","b"]}"#, json!(["a", "b"]), "z", "ready"),
        ("zone, by URL", "/workers/http%3A%2F%2Fw1", r#"{"zone":"y"}"#, json!(["a", "b"]), "y", "ready"),
        ("held back", "/workers/http://W1/", r#"{"draining":true}"#, json!(["a", "b"]), "y", "draining"),
        ("taken back", &id_path, r#"{"draining":false,"zone":null}"#, json!(["a", "b"]), "", "ready"),
    ] {
        let changed = f.send(Method::PATCH, path, body).await;
        assert_eq!((changed.status, &changed.body["id"]), (200, &json!(id.as_str())), "{case}");
        assert_eq!((&changed.body["models"], &changed.body["state"]), (&models, &json!(state)), "{case}");
        assert_eq!(changed.body["zone"], zone, "{case}");
        // The next request at this gateway goes by it.
        let model = models[0].as_str().unwrap();
        assert_eq!(is_routed(model), state == "ready", "{case}");
    }
    assert!(!is_routed("m"));
    let before = f.registry.roster().get(&id).unwrap().worker.clone();
    assert!(!f.send(Method::PATCH, &id_path, r#"{"api_key":"sesame"}"#).await.body.to_string().contains("sesame"));
    let after = f.registry.roster().get(&id).unwrap().worker.clone();
    assert_ne!(before.authorization, after.authorization);
}

#[tokio::test(start_paused = true)]
async fn a_removed_worker_is_shown_draining_while_it_works() {
    let f = fixture(&[]);
    let id = f.mesh.put(spec("http://w"));
    eventually(&f.registry, |roster| roster.is_ready(&id)).await;
    let request = f.registry.roster().get(&id).unwrap().worker.begin();
    f.send(Method::DELETE, &format!("/workers/{id}"), "").await;
    // Before and after the registry has taken it in.
    for _ in 0..2 {
        let listed = f.send(Method::GET, "/workers", "").await.body;
        assert_eq!(
            (&listed["workers"][0]["state"], &listed["workers"][0]["requests_active"]),
            (&json!("draining"), &json!(1))
        );
        assert_eq!(f.send(Method::GET, &format!("/workers/{id}"), "").await.status, 200);
        eventually(&f.registry, |roster| roster.entries.is_empty()).await;
    }
    drop(request);
    assert_eq!(f.send(Method::GET, "/workers", "").await.body["total"], 0);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_with_readiness_or_in_time() {
    let f = fixture(&[]);
    let up = f.send(Method::POST, "/workers?wait=5", r#"{"url":"http://up"}"#).await;
    assert_eq!((up.status, &up.body["state"]), (201, &json!("ready")));
    f.script.set_down(&WorkerId::of_url("http://down"), true);
    let begun = tokio::time::Instant::now();
    let down = f.send(Method::POST, "/workers?wait=5", r#"{"url":"http://down"}"#).await;
    assert_eq!((down.status, &down.body["state"]), (202, &json!("pending")));
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn bad_requests_are_told_what_is_wrong() {
    let f = fixture(&[]);
    let good = r#"{"url":"http://w"}"#;
    for (case, method, path, body, status, code, message) in [
        ("not json", Method::POST, "/workers", "x", 400, "invalid_request", "not JSON"),
        ("unknown field", Method::POST, "/workers", r#"{"url":"http://w","x":1}"#, 400, "invalid_request", "`x`"),
        ("wait is no number", Method::POST, "/workers?wait=x", good, 400, "invalid_request", "`wait`"),
        ("wait too long", Method::POST, "/workers?wait=601", good, 400, "invalid_request", "0 to 600"),
        ("unknown parameter", Method::POST, "/workers?weight=1", good, 400, "invalid_request", "`weight`"),
        ("unknown id", Method::GET, "/workers/w-0", "", 404, "worker_not_found", "no such worker"),
        ("no id", Method::GET, "/workers/%00", "", 404, "worker_not_found", "no such worker"),
        ("patch of nobody", Method::PATCH, "/workers/w-0", "{}", 404, "worker_not_found", "no such worker"),
        ("patch, url of nobody", Method::PATCH, "/workers/http://w", "{}", 404, "worker_not_found", "no such worker"),
        ("patch, unknown field", Method::PATCH, "/workers/w-0", good, 400, "invalid_request", "`url`"),
        ("patch, not json", Method::PATCH, "/workers/w-0", "", 400, "invalid_request", "not JSON"),
        ("method", Method::PUT, "/workers", good, 405, "method_not_allowed", "method"),
    ] {
        let answer = f.send(method, path, body).await;
        assert_eq!(answer.status, status, "{case}");
        let error = &answer.body["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &Value::Null), "{case}");
        assert!(error["message"].as_str().unwrap().contains(message), "{case}: {error}");
        assert_eq!(answer.headers[ERROR_CODE_HEADER], code, "{case}");
    }
    assert_eq!(f.send(Method::GET, "/workers", "").await.body["total"], 0, "nothing was changed");
}

#[tokio::test(start_paused = true)]
async fn strangers_are_turned_away() {
    for (case, keys, client, key, status) in [
        ("loopback without keys", &[][..], [127, 0, 0, 1], None, 200),
        ("afar without keys", &[], [10, 0, 0, 1], None, 403),
        ("key", &["k"], [10, 0, 0, 1], Some("Bearer k"), 200),
        ("loopback needs the key too", &["k"], [127, 0, 0, 1], None, 401),
        ("wrong key", &["k"], [127, 0, 0, 1], Some("Bearer l"), 401),
    ] {
        let f = fixture(keys);
        let mut request = Request::get("/workers").body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from((client, 5))));
        request.headers_mut().extend(key.map(|key| (header::AUTHORIZATION, key.parse().unwrap())));
        assert_eq!(f.send_request(request).await.status, status, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_never_shown() {
    let f = fixture(&[]);
    let body = r#"{"url":"http://w","api_key":"sesame"}"#;
    let added = f.send(Method::POST, "/workers?wait=1", body).await.body.to_string();
    let listed = f.send(Method::GET, "/workers", "").await.body.to_string();
    assert!(!added.contains("sesame") && !listed.contains("sesame"));
    let entry = f.registry.roster().entries[0].clone();
    assert_eq!(entry.state, WorkerState::Ready);
    assert!(!format!("{entry:?}").contains("sesame"));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_long_is_refused() {
    let f = fixture(&[]);
    let answer = f.send(Method::POST, "/workers", &" ".repeat(BODY_BYTES_MAX + 1)).await;
    assert_eq!((answer.status, &answer.body["error"]["code"]), (413, &json!("payload_too_large")));
}
