//! The HA API: handlers for `/ha/*` that read a snapshot and answer.
//!
//! Reading is public; `POST /ha/shutdown`, `PUT /ha/policies/{model}` and everything of `/ha/rate-limit` need the admin key. Without the mesh every
//! route answers 503 `{"error":"mesh not enabled"}`.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State, rejection::BytesRejection},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Auth, PolicyKind},
    gateway::{
        admin::{BODY_BYTES_MAX, Named, auth::require_admin, read_body, worker_id},
        error::GatewayError,
        limits::SCOPED_MAX,
        rate::{self, Terms},
        registry::Registry,
    },
    mesh::{
        driver::handle::{MeshHandle, Stopped, View},
        stores::is_limit,
    },
    telemetry::metrics::Metrics,
};

pub mod events;

pub mod policies;

pub mod rate_limit;

pub mod status;

pub mod workers;

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct Ha {
    /// The mesh.
    pub mesh: MeshHandle,
    /// What this gateway sees of the workers.
    pub registry: Registry,
    /// Who may shut down.
    pub auth: Arc<Auth>,
    /// Policy of models that have none of their own.
    pub policy: PolicyKind,
    /// What it was told at its start.
    pub about: status::About,
    /// What it has counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled by `POST /ha/shutdown`, and by whoever else ends the process; while it is, this node is draining.
    pub shutdown: CancellationToken,
}

/// The routes under `/ha`.
///
/// The caller's address is taken from the request extension `ConnectInfo<SocketAddr>`, which the listener inserts.
pub fn router(ha: Ha) -> Router {
    let guard = middleware::from_fn_with_state(ha.auth.clone(), require_admin);
    let admin = Router::new()
        .route("/ha/shutdown", post(shutdown))
        .route("/ha/policies/{*model}", put(put_policy))
        .route("/ha/rate-limit", get(show_rate_limit).post(set_rate_limit))
        .route("/ha/rate-limit/stats", get(rate_limit_stats))
        .route_layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .route_layer(guard);
    Router::new()
        .route("/ha/health", get(health))
        .route("/ha/status", get(cluster))
        .route("/ha/workers", get(list_workers))
        .route("/ha/workers/{*worker}", get(show_worker))
        .route("/ha/events", get(follow))
        .route("/ha/ui", get(page))
        .route("/ha/policies", get(list_policies))
        // The rest of the path, because model names have slashes in them.
        .route("/ha/policies/{*model}", get(show_policy))
        .merge(admin)
        .route_layer(middleware::from_fn_with_state(ha.clone(), require_mesh))
        .with_state(ha)
}

async fn require_mesh(State(ha): State<Ha>, request: Request, next: Next) -> Response {
    if ha.mesh.view().mesh_enabled {
        return next.run(request).await;
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "mesh not enabled" }))).into_response()
}

async fn health(State(ha): State<Ha>) -> (StatusCode, Json<Value>) {
    let (is_healthy, body) = status::health(&ha.mesh.view(), ha.shutdown.is_cancelled());
    (if is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

async fn cluster(State(ha): State<Ha>) -> Json<status::Status> {
    Json(picture(&ha, &ha.mesh.view()))
}

/// The cluster as this gateway sees it at this moment.
fn picture(ha: &Ha, view: &View) -> status::Status {
    status::cluster(&status::Sources {
        view,
        leadership: ha.mesh.leadership(),
        rights: ha.mesh.rights(),
        routing: &ha.registry.routing().load(),
        in_force: limits(ha).shown().in_force,
        about: &ha.about,
        metrics: &ha.metrics,
    })
}

async fn list_workers(State(ha): State<Ha>) -> Json<Value> {
    Json(json!({ "workers": workers::all(&ha.mesh.view(), &ha.registry.roster()) }))
}

async fn show_worker(State(ha): State<Ha>, Named(key): Named) -> Result<Json<workers::Shown>, GatewayError> {
    let view = ha.mesh.view();
    let id = worker_id(&key, view.workers.iter().map(|worker| &worker.id)).ok_or(GatewayError::WorkerNotFound)?;
    workers::one(&view, &ha.registry.roster(), &id).map(Json).ok_or(GatewayError::WorkerNotFound)
}

async fn follow(State(ha): State<Ha>) -> Response {
    match events::subscribe(&ha.mesh, &|view| picture(&ha, view), ha.shutdown.clone()) {
        Some(events) => events.into_response(),
        None => GatewayError::TooManyStreams.into_response(),
    }
}

/// The page reads the routes above and nothing else; the policy has browsers hold it to that.
async fn page() -> impl IntoResponse {
    const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                          frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, include_str!("ha/ui.html"))
}

async fn list_policies(State(ha): State<Ha>) -> Json<Value> {
    Json(json!({ "policies": policies::all(&ha.mesh.view(), ha.policy, &ha.registry.routing().load()) }))
}

async fn show_policy(State(ha): State<Ha>, Named(model): Named) -> Result<Json<policies::Shown>, GatewayError> {
    let routing = ha.registry.routing();
    policies::one(&ha.mesh.view(), ha.policy, &model, &routing.load()).map(Json).ok_or(GatewayError::PolicyNotFound)
}

async fn put_policy(
    State(ha): State<Ha>,
    Named(model): Named,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<policies::Shown>, GatewayError> {
    let spec = policies::read(&read_body(body)?).map_err(GatewayError::InvalidRequest)?;
    if is_limit(&model) {
        return Err(GatewayError::PolicyNotFound);
    }
    match ha.mesh.put_policy(model.clone(), spec.clone()).await {
        Ok(Ok(())) => {
            ha.registry.settled().await;
            Ok(Json(policies::shown(&model, &spec)))
        }
        Ok(Err(error)) => Err(GatewayError::InvalidRequest(error.to_string())),
        Err(Stopped) => Err(GatewayError::Draining),
    }
}

/// What answers about limits are made from.
fn limits(ha: &Ha) -> rate_limit::Sources {
    rate_limit::Sources {
        view: ha.mesh.view(),
        rights: ha.mesh.rights(),
        without_quorum: ha.about.without_quorum,
        limits: ha.registry.limits(),
        now: Instant::now(),
    }
}

async fn show_rate_limit(State(ha): State<Ha>) -> Json<rate_limit::Shown> {
    Json(limits(&ha).shown())
}

async fn rate_limit_stats(State(ha): State<Ha>) -> Result<Json<rate_limit::Stats>, GatewayError> {
    let sources = limits(&ha);
    let usage = ha.mesh.usage(sources.ids()).await.map_err(|Stopped| GatewayError::Draining)?;
    Ok(Json(sources.stats(&usage)))
}

async fn set_rate_limit(
    State(ha): State<Ha>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<rate_limit::Shown>, GatewayError> {
    let (selector, said) = rate::read(&read_body(body)?).map_err(GatewayError::InvalidRequest)?;
    let known = rate::scoped(&ha.mesh.view().rate_limits);
    let is_known = selector.is_all() || known.iter().any(|(known, _)| *known == selector);
    let sets = said.or(Terms::default()) != Terms::default();
    if sets && !is_known && known.len() >= SCOPED_MAX {
        let problem = format!("{SCOPED_MAX} limits for keys and models are set: remove one, by a limit of 0");
        return Err(GatewayError::InvalidRequest(problem));
    }
    for (name, spec) in rate::entries(&selector, said) {
        let outcome = match spec {
            Some(spec) => ha.mesh.put_policy(name, spec).await,
            None => ha.mesh.remove_rate_limit(name).await.map(|_| Ok(())),
        };
        outcome
            .map_err(|Stopped| GatewayError::Draining)?
            .map_err(|error| GatewayError::InvalidRequest(error.to_string()))?;
    }
    ha.registry.settled().await;
    Ok(show_rate_limit(State(ha)).await)
}

async fn shutdown(State(ha): State<Ha>) -> (StatusCode, Json<Value>) {
    tracing::info!("shutdown asked for by the API");
    ha.shutdown.cancel();
    (StatusCode::ACCEPTED, Json(json!({ "status": "shutting_down", "node_name": ha.mesh.view().node.as_str() })))
}

#[cfg(test)]
mod tests;
