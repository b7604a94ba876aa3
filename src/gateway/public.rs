//! The routes that the gateway answers by itself: probes and the list of models.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::gateway::{body::Body, core::Phase, view::RoutingView};

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `GET /liveness`: the process answers, draining or not.
pub(crate) fn liveness() -> Response<Body> {
    json(StatusCode::OK, &br#"{"status":"alive"}"#[..])
}

/// `GET /health`: 200 until the gateway drains.
pub(crate) fn health(phase: Phase) -> Response<Body> {
    if phase == Phase::Serving {
        json(StatusCode::OK, &br#"{"status":"healthy"}"#[..])
    } else {
        json(StatusCode::SERVICE_UNAVAILABLE, &br#"{"status":"draining"}"#[..])
    }
}

/// `GET /readiness`: whether requests would be served.
pub(crate) fn readiness(view: &RoutingView, phase: Phase) -> Response<Body> {
    let (healthy, total) = (view.workers_ready, view.workers_total);
    let reason = match (phase, healthy, total) {
        (Phase::Serving, ..) if view.is_joining => "joining the cluster",
        (Phase::Serving, 0, 0) => "no workers",
        (Phase::Serving, 0, _) => "no healthy workers",
        (Phase::Serving, ..) => {
            let body = format!(r#"{{"status":"ready","healthy_workers":{healthy},"total_workers":{total}}}"#);
            return json(StatusCode::OK, body);
        }
        _ => "draining",
    };
    json(StatusCode::SERVICE_UNAVAILABLE, format!(r#"{{"status":"not ready","reason":"{reason}"}}"#))
}

/// `GET /v1/models`: every model that a ready worker names, in OpenAI's shape, sorted.
pub(crate) fn models(view: &RoutingView) -> Response<Body> {
    let ready = view.models.iter().filter(|(_, route)| !route.ready.is_empty());
    let mut names: Vec<&str> = ready.map(|(name, _)| &**name).collect();
    names.sort_unstable();
    let model = |id: &&str| json!({"id": id, "object": "model", "created": 0, "owned_by": "smg"});
    let data: Vec<_> = names.iter().map(model).collect();
    json(StatusCode::OK, json!({"object": "list", "data": data}).to_string())
}
