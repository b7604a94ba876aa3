//! Errors of the admin and HA APIs, in OpenAI's shape.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Header that repeats the error code for proxies and logs.
pub const CODE_HEADER: &str = "x-smg-error-code";

/// Why an admin or HA request was refused. Nothing was changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The request makes no sense; the text says why.
    #[error("{0}")]
    BadRequest(String),
    /// The body is longer than [`BODY_BYTES_MAX`](super::BODY_BYTES_MAX).
    #[error("the body is too long")]
    TooLong,
    /// No valid admin key.
    #[error("a valid admin key is needed: Authorization: Bearer <key>")]
    Key,
    /// No admin key is configured and the client is not on this machine.
    #[error("without --admin-api-key this route answers clients on this machine alone")]
    NotLocal,
    /// No such worker.
    #[error("no such worker")]
    WorkerNotFound,
    /// No such policy.
    #[error("no policy for this model")]
    PolicyNotFound,
    /// No such route.
    #[error("no such route")]
    RouteNotFound,
    /// The route is there, the method is not.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// As many event streams are open as there may be.
    #[error("too many event streams are open")]
    TooManyStreams,
    /// The mesh driver has stopped: this process is about to end. Another gateway can take the request.
    #[error("this gateway is shutting down")]
    Stopping,
}

impl AdminError {
    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, REQUEST, "invalid_request"),
            Self::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "payload_too_large"),
            Self::Key => (StatusCode::UNAUTHORIZED, REQUEST, "invalid_api_key"),
            Self::NotLocal => (StatusCode::FORBIDDEN, "permission_error", "admin_local_only"),
            Self::WorkerNotFound => (StatusCode::NOT_FOUND, REQUEST, "worker_not_found"),
            Self::PolicyNotFound => (StatusCode::NOT_FOUND, REQUEST, "policy_not_found"),
            Self::RouteNotFound => (StatusCode::NOT_FOUND, REQUEST, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed"),
            Self::TooManyStreams => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "too_many_streams"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "shutting_down"),
        }
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let (status, kind, code) = self.parts();
        let body = json!({ "error": { "type": kind, "code": code, "message": self.to_string(), "param": null } });
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CODE_HEADER, HeaderValue::from_static(code));
        match self {
            Self::Key => drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::Stopping => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"))),
            _ => {}
        }
        response
    }
}
