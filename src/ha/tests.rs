//! The HA routes by `oneshot`: the manual's shapes, keys and refusals.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use axum::{body::Body, extract::ConnectInfo, http::Method};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::{
    gateway::{
        admin,
        health::tests::Script,
        registry::tests::{FakeMesh, eventually, start},
        service::prepare,
        worker::tests::spec,
    },
    mesh::{
        node::NodeStatus,
        quota,
        stores::{PolicySpec, WorkerId, WorkerSpec, WorkerState},
    },
};

struct Fixture {
    script: Script,
    mesh: FakeMesh,
    ha: Ha,
}

fn fixture() -> Fixture {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let ha = Ha {
        mesh: mesh.handle.clone(),
        registry,
        auth: Arc::new(Auth::default()),
        policy: PolicyKind::PowerOfTwo,
        about: status::About {
            cluster: "east".to_owned(),
            transport: "udp",
            without_quorum: quota::local::WithoutQuorum::Local,
        },
        metrics: Metrics::new(),
        shutdown: CancellationToken::new(),
    };
    Fixture { script, mesh, ha }
}

impl Fixture {
    async fn send(&self, method: Method, path: &str, client: [u8; 4]) -> (u16, Value) {
        self.send_body(method, path, client, "").await
    }

    async fn send_body(&self, method: Method, path: &str, client: [u8; 4], body: &str) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from((client, 5))));
        let response = prepare(router(self.ha.clone())).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(Method::GET, path, [10, 0, 0, 1]).await
    }
}

fn set_status(f: &Fixture, node: usize, status: NodeStatus) {
    f.mesh.edit(|view| view.nodes[node].status = status);
}

#[tokio::test(start_paused = true)]
async fn the_status_has_exactly_the_keys_of_the_manual_and_the_leader() {
    let f = fixture();
    f.mesh.put(spec("http://w"));
    f.mesh.edit(|view| view.roots.workers = 0xff);
    let mut expected = json!({
        "node_name": "node1",
        "node_count": 2,
        "nodes": [
            {"name": "node1", "status": "ALIVE", "address": "node1:39527", "zone": "",
             "sees": {"alive": 1, "not_alive": {"node2": "DOWN"}}, "lag_seconds": null, "probe_detours": null},
            {"name": "node2", "status": "DOWN", "address": "node2:39527", "zone": "", "sees": null, "lag_seconds": null, "probe_detours": null},
        ],
        "stores": {
            "workers": {"entry_count": 1, "last_sync": null, "root": "00000000000000ff"},
            "policies": {"entry_count": 0, "last_sync": null, "root": "0000000000000000"},
            "routing": {"entry_count": 0, "bytes": 0, "bytes_max": 0, "evictions": 0, "last_sync": null},
        },
        "leader": null,
        "term": 0,
        "quorum": false,
        "voters": [],
        "warnings": [],
        "limits": {"without_quorum": "local", "rights": "none", "limit_per_second": 0, "burst": 0, "concurrent": 0},
        "cache": {"prompt_tokens": 0, "cached_tokens": 0},
    });
    set_status(&f, 1, NodeStatus::Down);
    // What the process says of itself differs from run to run.
    let status = async || {
        let (code, mut body) = f.get("/ha/status").await;
        let gateway = body.as_object_mut().unwrap().remove("gateway").unwrap();
        (code, body, gateway)
    };
    let (code, body, gateway) = status().await;
    assert_eq!((code, body), (200, expected.clone()));
    let time = humantime::parse_rfc3339(gateway["time"].as_str().unwrap()).unwrap();
    assert!(time > SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), "{gateway}");
    assert!(gateway["descriptors_max"].as_u64().unwrap() > 0, "{gateway}");
    let told = ["version", "cluster", "transport"].map(|key| gateway[key].as_str().unwrap().to_owned());
    assert_eq!(told, [env!("CARGO_PKG_VERSION"), "east", "udp"]);
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_705_314_600_900);
    f.mesh.edit(|view| view.last_sync = Some(at));
    for store in ["workers", "policies", "routing"] {
        expected["stores"][store]["last_sync"] = json!("2024-01-15T10:30:00Z");
    }
    assert_eq!(status().await.1, expected);
}

#[tokio::test(start_paused = true)]
async fn health_follows_the_own_status() {
    for (case, own, is_draining, code, status, node_status, size) in [
        ("alive", NodeStatus::Alive, false, 200, "healthy", "ALIVE", 2),
        ("suspected", NodeStatus::Suspected, false, 200, "healthy", "SUSPECTED", 1),
        ("starting", NodeStatus::Init, false, 503, "starting", "INIT", 1),
        ("leaving", NodeStatus::Leaving, false, 503, "draining", "LEAVING", 1),
        ("down", NodeStatus::Down, false, 503, "unhealthy", "DOWN", 1),
        ("draining", NodeStatus::Alive, true, 503, "draining", "LEAVING", 2),
    ] {
        let f = fixture();
        set_status(&f, 0, own);
        if is_draining {
            f.ha.shutdown.cancel();
        }
        let body = json!({ "status": status, "node_name": "node1", "node_status": node_status, "cluster_size": size });
        assert_eq!(f.get("/ha/health").await, (code, body), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn workers_show_every_observer() {
    let f = fixture();
    let id = WorkerId::of_url("http://w");
    f.script.set_models(&id, &["m"]);
    f.mesh.put(spec("http://w"));
    f.mesh.observe(&id, "node2", WorkerState::NotReady, &["m"]);
    eventually(&f.ha.registry, |roster| roster.is_ready(&id)).await;
    tokio::task::yield_now().await;
    let worker = json!({
        "id": id.as_str(), "url": "http://w", "models": ["m"], "state": "ready", "in_flight": 0, "load": 0,
        "observers": {
            "node1": {"state": "ready", "models": ["m"], "breaker": "closed"},
            "node2": {"state": "not_ready", "models": ["m"], "breaker": "closed"},
        },
    });
    assert_eq!(f.get("/ha/workers").await, (200, json!({ "workers": [worker.clone()] })));
    assert_eq!(f.get(&format!("/ha/workers/{id}")).await, (200, worker.clone()));
    assert_eq!(f.get("/ha/workers/http%3A%2F%2Fw").await, (200, worker));
    let (status, body) = f.get("/ha/workers/w-0").await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("worker_not_found")));
}

#[tokio::test(start_paused = true)]
async fn policies_list_the_default_and_those_set() {
    let f = fixture();
    let default = json!({ "model": "*", "policy": "power_of_two", "config": {} });
    assert_eq!(f.get("/ha/policies").await, (200, json!({ "policies": [default.clone()] })));
    let spec_of = |config: &str| Arc::new(PolicySpec { policy: "least_load".into(), config_json: config.into() });
    let set = vec![("a/b".into(), spec_of(r#"{"x":1}"#)), ("c".into(), spec_of("junk"))];
    f.mesh.edit(|view| view.policies = Arc::new(set));
    let set = json!({ "model": "a/b", "policy": "least_load", "config": { "x": 1 } });
    let junk = json!({ "model": "c", "policy": "least_load", "config": {} });
    assert_eq!(f.get("/ha/policies").await.1, json!({ "policies": [default.clone(), set.clone(), junk] }));
    assert_eq!(f.get("/ha/policies/a/b").await, (200, set.clone()));
    assert_eq!(f.get("/ha/policies/a%2Fb").await, (200, set));
    assert_eq!(f.get("/ha/policies/*").await, (200, default));
    let (status, body) = f.get("/ha/policies/none").await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("policy_not_found")));
    let id = f.mesh.put(WorkerSpec { models: vec!["served".into()], ..spec("http://w") });
    eventually(&f.ha.registry, |roster| roster.is_ready(&id)).await;
    let served = json!({ "model": "served", "policy": "power_of_two", "config": {} });
    assert_eq!(f.get("/ha/policies/served").await, (200, served));
}

#[tokio::test(start_paused = true)]
async fn shutdown_is_for_operators() {
    let f = fixture();
    let (status, body) = f.send(Method::POST, "/ha/shutdown", [10, 0, 0, 1]).await;
    assert_eq!((status, &body["error"]["code"]), (403, &json!("admin_local_only")));
    assert!(!f.ha.shutdown.is_cancelled());
    assert_eq!(f.send(Method::GET, "/ha/shutdown", [127, 0, 0, 1]).await.0, 405);
    assert!(!f.ha.shutdown.is_cancelled());
    let (status, body) = f.send(Method::POST, "/ha/shutdown", [127, 0, 0, 1]).await;
    assert_eq!((status, body), (202, json!({ "status": "shutting_down", "node_name": "node1" })));
    assert!(f.ha.shutdown.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn the_page_asks_for_nothing_but_routes_of_this_api() {
    let f = fixture();
    let request = Request::get("/ha/ui").body(Body::empty()).unwrap();
    let response = prepare(router(f.ha.clone())).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    assert!(response.headers()["content-security-policy"].to_str().unwrap().contains("connect-src 'self'"));
    let page = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    for word in ["http:", "https:", "//cdn", "src=", "<link", "@import", "innerHTML"] {
        assert!(!page.contains(word), "{word}");
    }
    for path in ["/ha/status", "/ha/workers", "/ha/policies"] {
        assert!(page.contains(&format!("\"{path}\"")), "{path}");
        assert_eq!(f.get(path).await.0, 200, "{path}");
    }
    assert!(page.contains("new EventSource(\"/ha/events\")"));
}

#[tokio::test(start_paused = true)]
async fn operators_read_and_set_the_rate_limit() {
    let f = fixture();
    let local = [127, 0, 0, 1];
    for (method, path) in
        [(Method::GET, "/ha/rate-limit"), (Method::POST, "/ha/rate-limit"), (Method::GET, "/ha/rate-limit/stats")]
    {
        assert_eq!(f.send(method, path, [10, 0, 0, 1]).await.0, 403, "{path}");
    }
    let shown = |limit, burst, source| {
        let limit =
            json!({ "limit_per_second": limit, "burst": burst, "concurrent": 0, "source": source, "scope": "cluster" });
        let mut shown = limit.as_object().unwrap().clone();
        shown.insert("without_quorum".into(), json!("local"));
        shown.insert("limits".into(), json!([]));
        shown
    };
    // What is lent comes a little later.
    let without_rights = |(status, mut body): (u16, Value)| {
        let rights = body.as_object_mut().unwrap().remove("rights");
        assert!(["off", "none", "lent"].map(Value::from).contains(&rights.unwrap()));
        (status, body)
    };
    let first = f.send(Method::GET, "/ha/rate-limit", local).await;
    assert_eq!(first.1["rights"], "off");
    assert_eq!(without_rights(first), (200, shown(0, 0, "flag").into()));
    for (body, expected) in [
        (r#"{"limit_per_second":5,"burst":9}"#, shown(5, 9, "api")),
        (r#"{"limit_per_second":6}"#, shown(6, 6, "api")),
        (r#"{"limit_per_second":0}"#, shown(0, 0, "api")),
        (r#"{"limit_per_second":7,"burst":2}"#, shown(7, 2, "api")),
    ] {
        let set = without_rights(f.send_body(Method::POST, "/ha/rate-limit", local, body).await);
        assert_eq!(set, (200, expected.clone().into()), "{body}");
        let read = without_rights(f.send(Method::GET, "/ha/rate-limit", local).await);
        assert_eq!(read, (200, expected.into()), "{body}");
    }
    let (status, body) = f.send_body(Method::POST, "/ha/rate-limit", local, r#"{"limit_per_second":-5}"#).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_request")));
    let limiter = f.ha.registry.limits().all.clone();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let now = Instant::now();
    assert_eq!(limiter.stats(now).remaining, Some(2), "the mesh lends what there is");
    assert_eq!((0..5).filter(|_| limiter.admit(now).is_ok()).count(), 2);
    let (_, stats) = f.send(Method::GET, "/ha/rate-limit/stats", local).await;
    let figures = ["node_name", "limit_per_second", "burst", "allowed", "rejected"].map(|key| stats[key].clone());
    assert_eq!(figures, [json!("node1"), json!(7), json!(2), json!(2), json!(3)], "{stats}");
    assert!(stats["remaining"].is_u64(), "{stats}");
    // Nothing of it is a policy of a model.
    let (_, policies) = f.get("/ha/policies").await;
    assert_eq!(policies["policies"].as_array().map(Vec::len), Some(1), "{policies}");
    let policy = r#"{"policy":"random"}"#;
    assert_eq!(f.send_body(Method::PUT, "/ha/policies/%00rate-limit", local, policy).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn bounds_on_requests_in_flight_are_set_beside_limits_per_second() {
    let f = fixture();
    let local = [127, 0, 0, 1];
    let said = |shown: &Value| ["limit_per_second", "burst", "concurrent"].map(|field| shown[field].as_u64().unwrap());
    for (case, body, expected) in [
        ("a bound", r#"{"concurrent":7}"#, [0, 0, 7]),
        ("a limit beside it", r#"{"limit_per_second":5}"#, [5, 5, 7]),
        ("another bound", r#"{"concurrent":9}"#, [5, 5, 9]),
        ("no limit", r#"{"limit_per_second":0}"#, [0, 0, 9]),
        ("neither", r#"{"concurrent":0}"#, [0, 0, 0]),
    ] {
        let (status, shown) = f.send_body(Method::POST, "/ha/rate-limit", local, body).await;
        assert_eq!((status, said(&shown)), (200, expected), "{case}: {shown}");
    }
    let of_model = r#"{"concurrent":3,"model":"m"}"#;
    let (_, shown) = f.send_body(Method::POST, "/ha/rate-limit", local, of_model).await;
    let listed =
        json!([{"key": null, "model": "m", "limit_per_second": 0, "burst": 0, "concurrent": 3, "in_force": true}]);
    assert_eq!(shown["limits"], listed, "{shown}");
    let (_, stats) = f.send(Method::GET, "/ha/rate-limit/stats", local).await;
    let of_model = &stats["limits"][0]["in_flight"];
    assert_eq!([&of_model["here"], &of_model["rejected"]], [0, 0], "{stats}");
    assert_eq!(stats["in_flight"], Value::Null, "of all requests there is no bound");
    let (_, shown) = f.send_body(Method::POST, "/ha/rate-limit", local, r#"{"concurrent":0,"model":"m"}"#).await;
    assert_eq!(shown["limits"], json!([]), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn limits_of_keys_and_models_are_set_bounded_and_removed() {
    let f = fixture();
    let local = [127, 0, 0, 1];
    let of_some = r#"{"limit_per_second":3,"burst":1,"key":"BA7816BF8F01CFEA","model":"m"}"#;
    let (_, shown) = f.send_body(Method::POST, "/ha/rate-limit", local, of_some).await;
    let with_key = |in_force: bool| json!({"key": "ba7816bf8f01cfea", "model": "m", "limit_per_second": 3, "burst": 1, "concurrent": 0, "in_force": in_force});
    let limit = with_key(true);
    assert_eq!((&shown["limits"], &shown["limit_per_second"]), (&json!([limit]), &json!(0)), "{shown}");
    for n in 1..=31 {
        let of_model = format!(r#"{{"limit_per_second":1,"model":"m{n}"}}"#);
        let expected = if n <= 30 { 200 } else { 400 };
        assert_eq!(f.send_body(Method::POST, "/ha/rate-limit", local, &of_model).await.0, expected, "{n}");
    }
    let (_, stats) = f.send(Method::GET, "/ha/rate-limit/stats", local).await;
    let of_key = stats["limits"].as_array().unwrap().iter().find(|limit| limit["key"] == "ba7816bf8f01cfea").unwrap();
    assert_eq!([&of_key["allowed"], &of_key["rejected"]], [0, 0], "{of_key}");
    // Another gateway that did not know of all of them set one more: the last by name is listed without effect.
    let (selector, limit_of_all) = rate::read(br#"{"limit_per_second":1,"model":"zz"}"#).unwrap();
    f.ha.mesh.put_policy(selector.name(), rate::to_spec(limit_of_all)).await.unwrap().unwrap();
    f.ha.registry.settled().await;
    let (_, shown) = f.send(Method::GET, "/ha/rate-limit", local).await;
    let (last, others) = shown["limits"].as_array().unwrap().split_last().unwrap();
    assert_eq!((last, others.len()), (&with_key(false), 31), "{shown}");
    assert!(others.iter().all(|limit| limit["in_force"] == true), "{shown}");
    for model in (1..=30).map(|n| format!("m{n}")).chain(["zz".into()]) {
        let off = format!(r#"{{"limit_per_second":0,"model":"{model}"}}"#);
        assert_eq!(f.send_body(Method::POST, "/ha/rate-limit", local, &off).await.0, 200, "{model}");
    }
    let (_, shown) = f.send(Method::GET, "/ha/rate-limit", local).await;
    assert_eq!(shown["limits"], json!([limit]), "the others are gone");
}

#[tokio::test(start_paused = true)]
async fn without_the_mesh_every_route_says_so() {
    let f = fixture();
    f.mesh.edit(|view| view.mesh_enabled = false);
    for path in ["/ha/health", "/ha/status", "/ha/workers", "/ha/workers/w-1", "/ha/policies", "/ha/policies/m"] {
        assert_eq!(f.get(path).await, (503, json!({ "error": "mesh not enabled" })), "{path}");
    }
    assert_eq!(f.get("/ha/x").await.0, 404, "never a route");
    let shutdown = f.send(Method::POST, "/ha/shutdown", [127, 0, 0, 1]).await;
    assert_eq!(shutdown, (503, json!({ "error": "mesh not enabled" })));
    assert!(!f.ha.shutdown.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn unknown_routes_and_methods_are_refused_in_shape() {
    let f = fixture();
    for (method, path, status, code) in [
        (Method::GET, "/ha/nothing", 404, "not_found"),
        (Method::GET, "/ha", 404, "not_found"),
        (Method::GET, "/ha/", 404, "not_found"),
        (Method::GET, "/ha/status/x", 404, "not_found"),
        (Method::GET, "/ha/status/", 404, "not_found"),
        (Method::GET, "/ha/%73tatus", 404, "not_found"),
        (Method::GET, "/ha/workers/", 404, "not_found"),
        (Method::DELETE, "/ha/nothing", 404, "not_found"),
        (Method::GET, "/ha/policies/%ff", 400, "invalid_request"),
        (Method::POST, "/ha/status", 405, "method_not_allowed"),
        (Method::DELETE, "/ha/policies/m", 405, "method_not_allowed"),
    ] {
        let (found, body) = f.send(method, path, [127, 0, 0, 1]).await;
        assert_eq!((found, &body["error"]["code"]), (status, &json!(code)), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn both_apis_fit_into_one_router() {
    let f = fixture();
    f.mesh.edit(|view| view.mesh_enabled = false);
    let admin = admin::Admin { mesh: f.mesh.handle.clone(), registry: f.ha.registry.clone(), auth: f.ha.auth.clone() };
    let both = router(f.ha.clone()).merge(admin::router(admin));
    for (case, path, client, expected) in [
        ("admin", "/workers", [127, 0, 0, 1], 200),
        ("admin, from afar", "/workers", [10, 0, 0, 1], 403),
        ("ha without the mesh", "/ha/status", [10, 0, 0, 1], 503),
        ("neither is asked about other paths", "/other", [10, 0, 0, 1], 404),
    ] {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from((client, 5))));
        assert_eq!(both.clone().oneshot(request).await.unwrap().status(), expected, "{case}");
    }
}
