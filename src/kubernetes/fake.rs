//! A Kubernetes API server for tests: pods and nodes, lists in pages, watches, and the ways in which they fail.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// How it answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// As it should.
    Works,
    /// Watches begin and say nothing; lists work.
    DropsEvents,
    /// Watches say 410 at once; lists work.
    Forgets,
    /// 403.
    Forbids,
    /// 500.
    Breaks,
    /// What is no JSON.
    Babbles,
    /// Nothing, ever.
    Hangs,
    /// Lists without pods, watches without events: what it stored is lost.
    Empties,
}

/// How it says that a page is too large.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TooLarge {
    /// By a status 500 that passes on what etcd's client said.
    Message,
    /// By a status 413, as a proxy does.
    Status,
    /// Not at all: more bytes than are taken in.
    Bytes,
}

/// What it knows.
#[derive(Debug)]
pub struct Stored {
    pub mode: Mode,
    pub pods: BTreeMap<String, Value>,
    pub zones: BTreeMap<String, String>,
    /// Pods on one page at most.
    pub page_pods: usize,
    /// A longer page is too large: this is how it says so, with the pods that are not.
    pub too_large: Option<(TooLarge, usize)>,
    /// Nodes are not answered for.
    pub are_nodes_mute: bool,
    /// Complete lists that were answered well.
    pub lists: usize,
    pub selectors: Vec<String>,
    version: u64,
    events: Vec<(u64, Value)>,
}

/// A running server; ends with the runtime.
#[derive(Clone, Debug)]
pub struct Server {
    pub addr: SocketAddr,
    stored: Arc<Mutex<Stored>>,
    version: Arc<watch::Sender<u64>>,
}

impl Server {
    /// Starts it on a free port of this address.
    pub async fn start(ip: std::net::Ipv4Addr) -> Self {
        let listener = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
        let stored = Stored {
            mode: Mode::Works,
            pods: BTreeMap::new(),
            zones: BTreeMap::new(),
            page_pods: usize::MAX,
            too_large: None,
            are_nodes_mute: false,
            lists: 0,
            selectors: Vec::new(),
            version: 1,
            events: Vec::new(),
        };
        let server = Self {
            addr: listener.local_addr().unwrap(),
            stored: Arc::new(Mutex::new(stored)),
            version: Arc::new(watch::channel(1).0),
        };
        let router = Router::new()
            .route("/api/v1/pods", get(pods))
            .route("/api/v1/namespaces/{namespace}/pods", get(pods))
            .route("/api/v1/nodes/{node}", get(node))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> String {
        let cluster = format!("clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]", self.addr);
        let context = "contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: t}}]";
        format!("apiVersion: v1\nkind: Config\ncurrent-context: c\n{cluster}\n{context}\n")
    }

    pub fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap()
    }

    /// Watches that are under way go on as they began.
    pub fn set_mode(&self, mode: Mode) {
        self.stored().mode = mode;
    }

    /// A pod is new or has changed.
    pub fn put(&self, pod: &Value) {
        self.change("MODIFIED", pod);
    }

    /// A pod is gone.
    pub fn delete(&self, name: &str) {
        let pod = self.stored().pods.get(name).cloned();
        self.change("DELETED", &pod.unwrap());
    }

    fn change(&self, kind: &str, pod: &Value) {
        let mut stored = self.stored();
        stored.version += 1;
        let mut pod = pod.clone();
        pod["metadata"]["resourceVersion"] = json!(stored.version.to_string());
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        match kind {
            "DELETED" => drop(stored.pods.remove(&name)),
            _ => drop(stored.pods.insert(name, pod.clone())),
        }
        let version = stored.version;
        if stored.mode != Mode::DropsEvents {
            stored.events.push((version, json!({"type": kind, "object": pod})));
        }
        drop(stored);
        self.version.send_replace(version);
    }
}

/// A Ready pod.
pub fn pod(name: &str, ip: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "labels": {"app": "w"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 9000}]}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

async fn pods(State(server): State<Server>, Query(query): Query<HashMap<String, String>>) -> Response {
    let is_watch = query.contains_key("watch");
    let mode = server.stored().mode;
    server.stored().selectors.extend(query.get("labelSelector").cloned());
    match mode {
        Mode::Forbids => status(403),
        Mode::Breaks => status(500),
        Mode::Babbles => "{\"kind\": \"PodList\", \"items\": [{{{\n".into_response(),
        Mode::Hangs => std::future::pending().await,
        _ if is_watch => watch_pods(&server, mode, query["resourceVersion"].parse().unwrap()),
        _ => list_pods(&server, mode, &query),
    }
}

fn list_pods(server: &Server, mode: Mode, query: &HashMap<String, String>) -> Response {
    let mut stored = server.stored();
    let from: usize = query.get("continue").map_or(0, |from| from.parse().unwrap());
    let limit: usize = query["limit"].parse().unwrap();
    match stored.too_large {
        Some((kind, fits)) if limit > fits => return too_large(kind),
        _ => {}
    }
    let limit = limit.min(stored.page_pods);
    let all: Vec<Value> = if mode == Mode::Empties { Vec::new() } else { stored.pods.values().cloned().collect() };
    let items: Vec<Value> = all.iter().skip(from).take(limit).cloned().collect();
    let end = from + items.len();
    let more = if end < all.len() { json!(end.to_string()) } else { json!("") };
    stored.lists += usize::from(end >= all.len());
    let metadata = json!({"resourceVersion": stored.version.to_string(), "continue": more});
    Json(json!({"kind": "PodList", "metadata": metadata, "items": items})).into_response()
}

fn too_large(kind: TooLarge) -> Response {
    let message =
        "rpc error: code = ResourceExhausted desc = grpc: received message larger than max (2516583 vs. 2097152)";
    match kind {
        TooLarge::Message => {
            let body = json!({"kind": "Status", "status": "Failure", "code": 500, "message": message});
            (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
        }
        TooLarge::Status => status(413),
        TooLarge::Bytes => vec![b' '; (32 << 20) + 1].into_response(),
    }
}

fn watch_pods(server: &Server, mode: Mode, from: u64) -> Response {
    if mode == Mode::Forgets {
        let object = json!({"kind": "Status", "code": 410, "reason": "Expired"});
        return format!("{}\n", json!({"type": "ERROR", "object": object})).into_response();
    }
    let is_mute = matches!(mode, Mode::DropsEvents | Mode::Empties);
    let (server, news) = (server.clone(), server.version.subscribe());
    let events = futures_util::stream::unfold(
        (server, news, from),
        move |(server, mut news, from): (Server, watch::Receiver<u64>, u64)| async move {
            loop {
                let due: Vec<_> =
                    server.stored().events.iter().filter(|(at, _)| *at > from && !is_mute).cloned().collect();
                if let Some((last, _)) = due.last() {
                    let last = *last;
                    let lines: String = due.iter().map(|(_, event)| format!("{event}\n")).collect();
                    return Some((Ok::<_, Infallible>(Bytes::from(lines)), (server, news, last)));
                }
                news.changed().await.ok()?;
            }
        },
    );
    Body::from_stream(events).into_response()
}

async fn node(State(server): State<Server>, Path(node): Path<String>) -> Response {
    if server.stored().are_nodes_mute {
        return std::future::pending().await;
    }
    let stored = server.stored();
    match (stored.mode, stored.zones.get(&node)) {
        (Mode::Works, Some(zone)) => {
            let labels = json!({"topology.kubernetes.io/zone": zone});
            Json(json!({"metadata": {"name": node, "labels": labels}})).into_response()
        }
        (Mode::Works, None) => status(404),
        _ => status(403),
    }
}

fn status(code: u16) -> Response {
    let body = json!({"kind": "Status", "status": "Failure", "code": code});
    (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
}
