//! The admin API of workers: `GET` and `POST /workers`, `GET`, `PATCH` and `DELETE /workers/{id or URL-encoded URL}`, and
//! what asks all of them ([`fanout`]): `POST /flush_cache`, `GET /get_loads`.
//!
//! Writes go to the mesh; every gateway then takes up or lets go of the worker by itself (see [`registry`](crate::gateway::registry)). Reads join the mesh's newest view with what this gateway
//! sees, so a write is visible to the next read at the same gateway. A write is answered when this gateway's routing
//! table shows it: no request that begins afterwards is sent to a removed worker, and after 201 the next one succeeds.
//!
//! `PATCH` takes any of `models` (or `model_id`), `api_key`, `zone` and `draining`. What is absent stays, null means
//! what a new worker has. A worker with `draining` gets no new requests and stays registered until that is taken back,
//! or until it is removed. Two gateways that change one worker at the same time do not mix: the later entry wins whole.
//! A change that is made while another gateway removes the worker wins over the removal, as a `POST` would.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequestParts, Path, RawQuery, State, rejection::BytesRejection},
    http::{HeaderValue, Method, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};

use crate::{
    config::{Auth, address},
    gateway::{admin::auth::require_admin, error::GatewayError, registry::Registry},
    mesh::{
        driver::handle::MeshHandle,
        stores::{WorkerId, WorkerSpec},
    },
};

pub mod auth;

pub mod body;

pub mod fanout;

pub mod listing;

/// Longest body of an admin request in bytes: 256 model names of 256 bytes and a key fit.
pub const BODY_BYTES_MAX: usize = 128 * 1024;

/// Longest `?wait=` in seconds.
pub const WAIT_SECS_MAX: u64 = 600;

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The mesh, also where it has one node only.
    pub mesh: MeshHandle,
    /// What this gateway sees of the workers.
    pub registry: Registry,
    /// Who may.
    pub auth: Arc<Auth>,
}

/// The routes under `/workers`, and those that ask all workers. Every one needs the admin key; see [`require_admin`].
///
/// The caller's address is taken from the request extension `ConnectInfo<SocketAddr>`, which the listener inserts.
pub fn router(admin: Admin) -> Router {
    let guard = middleware::from_fn_with_state(admin.auth.clone(), require_admin);
    Router::new()
        .route("/workers", get(list).post(add))
        // The rest of the path, because a URL that was not encoded has slashes in it.
        .route("/workers/{*worker}", get(show).patch(change).delete(remove))
        .route("/flush_cache", post(flush_cache))
        .route("/get_loads", get(get_loads))
        .route_layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .route_layer(guard)
        .with_state(admin)
}

async fn list(State(admin): State<Admin>) -> Response {
    Json(listing::all(&admin.mesh.view(), &admin.registry.roster())).into_response()
}

/// The rest of the path as a name, percent-decoded; one that is not UTF-8 is refused in the API's own shape.
#[derive(Clone, Debug)]
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = GatewayError;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &S) -> Result<Self, GatewayError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(rejection) => Err(GatewayError::InvalidRequest(rejection.body_text())),
        }
    }
}

async fn show(State(admin): State<Admin>, Named(key): Named) -> Result<Response, GatewayError> {
    let (view, roster) = (admin.mesh.view(), admin.registry.roster());
    let shown_here = roster.entries.iter().chain(&roster.leaving).map(|entry| &entry.view.id);
    let known = view.workers.iter().map(|worker| &worker.id).chain(shown_here);
    let found = worker_id(&key, known).and_then(|id| listing::one(&view, &roster, &id));
    Ok(Json(found.ok_or(GatewayError::WorkerNotFound)?).into_response())
}

async fn add(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, GatewayError> {
    let body = read_body(body)?;
    let wait = wait_of(query.as_deref().unwrap_or_default())?;
    let spec = body::read(&body)?;
    let id = admin.mesh.put_worker(spec.clone()).await.map_err(|_| GatewayError::Draining)?;
    tracing::info!(worker = %id, "worker registered");
    admin.registry.settled().await;
    let is_ready = wait > Duration::ZERO && admin.registry.wait_ready(&id, wait).await;
    let status = if is_ready { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    Ok(added(&admin, status, &id, &spec))
}

/// The body of a write, or why there is none.
pub(crate) fn read_body(body: Result<Bytes, BytesRejection>) -> Result<Bytes, GatewayError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => GatewayError::PayloadTooLarge { bytes_max: BODY_BYTES_MAX },
        _ => GatewayError::BodyBroken,
    })
}

fn added(admin: &Admin, status: StatusCode, id: &WorkerId, spec: &WorkerSpec) -> Response {
    // It may have been removed again by somebody else in the meantime; then what was asked for is shown.
    let shown = listing::one(&admin.mesh.view(), &admin.registry.roster(), id);
    let shown = shown.unwrap_or_else(|| listing::requested(id, spec));
    let mut response = (status, Json(shown)).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/workers/{id}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

async fn change(
    State(admin): State<Admin>,
    Named(key): Named,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, GatewayError> {
    let patch = body::read_patch(&read_body(body)?)?;
    let id = registered(&admin, &key)?;
    if !admin.mesh.patch_worker(id.clone(), patch).await.map_err(|_| GatewayError::Draining)? {
        return Err(GatewayError::WorkerNotFound);
    }
    tracing::info!(worker = %id, "worker changed by the API");
    admin.registry.settled().await;
    // It may have been removed by somebody else in the meantime.
    let shown = listing::one(&admin.mesh.view(), &admin.registry.roster(), &id);
    Ok(Json(shown.ok_or(GatewayError::WorkerNotFound)?).into_response())
}

/// The id of the registered worker that a path names; it may be gone by the time that something is done with it.
fn registered(admin: &Admin, key: &str) -> Result<WorkerId, GatewayError> {
    let view = admin.mesh.view();
    worker_id(key, view.workers.iter().map(|worker| &worker.id)).ok_or(GatewayError::WorkerNotFound)
}

async fn remove(State(admin): State<Admin>, Named(key): Named) -> Result<Response, GatewayError> {
    let id = registered(&admin, &key)?;
    if !admin.mesh.remove_worker(id.clone()).await.map_err(|_| GatewayError::Draining)? {
        return Err(GatewayError::WorkerNotFound);
    }
    tracing::info!(worker = %id, "worker removed by the API");
    // Nothing that begins after the answer goes there.
    admin.registry.settled().await;
    Ok((StatusCode::ACCEPTED, Json(serde_json::json!({ "id": id.as_str(), "state": "draining" }))).into_response())
}

/// The second path is vLLM's.
async fn flush_cache(State(admin): State<Admin>) -> Response {
    let question = fanout::Question { method: Method::POST, paths: &["/flush_cache", "/reset_prefix_cache"] };
    let roster = admin.registry.roster();
    let answer = fanout::ask_all(&roster, question).await;
    // Also where a worker did not answer: what it still has is found out anew.
    for entry in &roster.entries {
        // When the mesh has stopped, this gateway is about to.
        let _ = admin.mesh.lose_cache(entry.view.id.clone()).await;
    }
    answer
}

/// The second path is that of older SGLang.
async fn get_loads(State(admin): State<Admin>) -> Response {
    let question = fanout::Question { method: Method::GET, paths: &["/get_loads", "/get_load"] };
    fanout::ask_all(&admin.registry.roster(), question).await
}

/// The id that a path names: the id itself, or the worker's URL, encoded or not, in any spelling. None for ids that
/// `known` does not hold.
pub(crate) fn worker_id<'a>(key: &str, mut known: impl Iterator<Item = &'a WorkerId>) -> Option<WorkerId> {
    match address::canonical(key) {
        Ok(url) => Some(WorkerId::of_url(&url)),
        Err(_) => known.find(|id| id.as_str() == key).cloned(),
    }
}

fn wait_of(query: &str) -> Result<Duration, GatewayError> {
    let mut wait = Duration::ZERO;
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if name != "wait" {
            return Err(GatewayError::InvalidRequest(format!("unknown query parameter `{}`", shortened(&name))));
        }
        let secs = value.parse().ok().filter(|secs| *secs <= WAIT_SECS_MAX);
        let secs = secs.ok_or_else(|| {
            GatewayError::InvalidRequest(format!("`wait` is a number of seconds, 0 to {WAIT_SECS_MAX}"))
        })?;
        wait = Duration::from_secs(secs);
    }
    Ok(wait)
}

/// The beginning of a text that a client sent, for naming it in an answer.
pub(crate) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    text.chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
