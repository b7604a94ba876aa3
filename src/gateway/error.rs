//! Every error that the gateway itself answers with, on serving, admin and HA routes, and how it looks to a client.
//!
//! The body is OpenAI's: `{"error":{"type","code","message","param":null}}`. The code is also in `X-SMG-Error-Code`.
//! No message names a worker's address.

use std::time::Duration;

use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::gateway::{body::Body, headers, limiter::Refused, scan::ScanError};

/// The error code of a response, for clients that do not parse bodies.
pub const ERROR_CODE_HEADER: HeaderName = HeaderName::from_static("x-smg-error-code");

/// `false`: repeating the request gives the same answer. Official clients honour it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Longest model name that an error message repeats, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Why the gateway refused or failed a request. In no case did the client get any byte of a worker's response.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// The request names no host, or more than one (RFC 9112 §3.2); no worker saw it.
    #[error("a request has exactly one Host header")]
    Host,
    /// The head cannot be read, or can be read in two ways; no worker saw it. The connection is closed.
    #[error("the request head is malformed or ambiguous")]
    Head,
    /// The head is longer than 64 KiB, or has more than 100 headers; no worker saw it. The connection is closed.
    #[error("the request head is too large")]
    HeadTooLarge,
    /// The head did not come within 10 s; no worker saw it. The connection is closed.
    #[error("the request head did not arrive in time")]
    HeadTimeout,
    /// The body is no JSON object as the routes need it; no worker saw it.
    #[error("{0}")]
    InvalidJson(#[from] ScanError),
    /// The client's body broke off or its framing is wrong; no worker saw it.
    #[error("the request body is incomplete or malformed")]
    BodyBroken,
    /// The client's body did not come within the request timeout; no worker saw it.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The route takes plain JSON alone.
    #[error("the request must have a Content-Type of application/json and no Content-Encoding")]
    ContentType,
    /// The body exceeds `--max-payload-size`.
    #[error("the request body exceeds {bytes_max} bytes")]
    PayloadTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// An admin request makes no sense; the text says why. Nothing was changed.
    #[error("{0}")]
    InvalidRequest(String),
    /// The key is missing or wrong.
    #[error("missing or invalid API key")]
    ApiKey,
    /// The admin key is missing or wrong.
    #[error("a valid admin key is needed: Authorization: Bearer <key>")]
    AdminKey,
    /// No admin key is configured and the client is not on this machine.
    #[error("without --admin-api-key this route answers clients on this machine alone")]
    AdminLocalOnly,
    /// No such route.
    #[error("there is no such route")]
    RouteNotFound,
    /// The route exists for other methods.
    #[error("the method is not allowed here")]
    MethodNotAllowed {
        /// The methods that are, for `Allow`; none when the answer has that header already.
        allow: Option<&'static str>,
    },
    /// No worker has the stored response.
    #[error("there is no such response")]
    ResponseNotFound,
    /// No such worker.
    #[error("there is no such worker")]
    WorkerNotFound,
    /// The model is not served here and has no policy of its own.
    #[error("there is no policy for this model")]
    PolicyNotFound,
    /// No token is left (`--rate-limit-tokens-per-second`, `POST /ha/rate-limit`). The client may come again.
    #[error("too many requests: the limit is {} per second", .0.limit)]
    RateLimited(Refused),
    /// As many requests are in flight as the cluster may have (`--cluster-max-concurrent-requests`, `POST /ha/rate-limit`), or
    /// as this gateway holds slots for. The client may come again.
    #[error("too many requests in flight: the limit is {concurrent}")]
    ConcurrencyLimited {
        /// The limit.
        concurrent: u32,
    },
    /// This gateway was cut off from the leader for so long that the slot of the request is another's now: it was broken.
    /// The client may come again.
    #[error("this gateway lost its right to have this request in flight: it was cut off from the cluster")]
    SlotLost,
    /// As many requests wait as may (`--queue-size`). The client may come again.
    #[error("this gateway is busy and its queue is full")]
    QueueFull,
    /// The request waited as long as it may (`--queue-timeout-secs`); no worker saw it. The client may come again.
    #[error("this gateway is busy: the request has waited too long in its queue")]
    QueueTimeout,
    /// No registered worker serves the model.
    #[error("the model `{0}` does not exist")]
    ModelNotFound(String),
    /// Workers may serve it, none of them is ready. The client may come again.
    #[error("no worker is available for this request")]
    NoAvailableWorkers,
    /// The breakers of all ready workers are open. The client may come again when the first of them lets requests pass.
    #[error("no worker is available for this request: too many requests have failed there")]
    BreakersOpen {
        /// When that is.
        after: Duration,
    },
    /// This gateway is shutting down; another one serves.
    #[error("this gateway is shutting down")]
    Draining,
    /// This gateway is out of descriptors, ports or memory for a connection to a worker. The client may come again.
    #[error("this gateway is overloaded")]
    Overloaded,
    /// As many event streams are open as there may be. The client may come again.
    #[error("too many event streams are open")]
    TooManyStreams,
    /// No connection to a worker, after all retries.
    #[error("the worker could not be reached")]
    WorkerUnreachable,
    /// The worker closed the connection before it answered, after all retries.
    #[error("the worker closed the connection before it answered")]
    WorkerReset,
    /// The worker's answer broke off before the client got any of it.
    #[error("the worker's answer was incomplete")]
    WorkerTruncated,
    /// No worker did what all were asked to do; the body says why each did not.
    #[error("no worker did what was asked")]
    WorkersFailed,
    /// No answer within `--request-timeout-secs`.
    #[error("the worker did not answer in time")]
    WorkerTimeout,
    /// No byte of a stream within `--ttft-timeout-secs`, from none of the workers that were asked.
    #[error("the worker did not begin its answer in time")]
    FirstByteTimeout,
    /// A stream that had begun brought nothing for `--stream-idle-timeout-secs`.
    #[error("the worker's answer has stalled")]
    StreamIdle,
}

struct Shape {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
}

impl GatewayError {
    /// The error for an unknown model; long names are cut.
    #[must_use]
    pub fn model_not_found(model: &str) -> Self {
        let mut end = model.len().min(NAME_BYTES_MAX);
        while !model.is_char_boundary(end) {
            end -= 1;
        }
        Self::ModelNotFound(model[..end].to_owned())
    }

    /// Status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.shape().status
    }

    /// Code, from a closed set: also a metric label.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.shape().code
    }

    fn shape(&self) -> Shape {
        const INVALID: &str = "invalid_request_error";
        let (status, kind, code) = match self {
            Self::Head => (StatusCode::BAD_REQUEST, INVALID, "malformed_request"),
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID, "head_too_large"),
            Self::Host => (StatusCode::BAD_REQUEST, INVALID, "invalid_host"),
            Self::InvalidJson(_) => (StatusCode::BAD_REQUEST, INVALID, "invalid_json"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, INVALID, "incomplete_body"),
            Self::HeadTimeout | Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout"),
            Self::ContentType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type"),
            Self::PayloadTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "payload_too_large"),
            Self::InvalidRequest(_) => (StatusCode::BAD_REQUEST, INVALID, "invalid_request"),
            Self::ApiKey | Self::AdminKey => (StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key"),
            Self::AdminLocalOnly => (StatusCode::FORBIDDEN, "permission_error", "admin_local_only"),
            Self::ResponseNotFound => (StatusCode::NOT_FOUND, INVALID, "response_not_found"),
            Self::WorkerNotFound => (StatusCode::NOT_FOUND, INVALID, "worker_not_found"),
            Self::PolicyNotFound => (StatusCode::NOT_FOUND, INVALID, "policy_not_found"),
            Self::RouteNotFound => (StatusCode::NOT_FOUND, INVALID, "not_found"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed"),
            Self::RateLimited(_) => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded"),
            Self::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "queue_full"),
            Self::QueueTimeout => (StatusCode::REQUEST_TIMEOUT, "rate_limit_error", "queue_timeout"),
            Self::ModelNotFound(_) => (StatusCode::NOT_FOUND, INVALID, "model_not_found"),
            Self::NoAvailableWorkers | Self::BreakersOpen { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", "no_available_workers")
            }
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", "draining"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", "overloaded"),
            Self::TooManyStreams => (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", "too_many_streams"),
            Self::WorkerUnreachable => (StatusCode::BAD_GATEWAY, "server_error", "worker_unreachable"),
            Self::WorkerReset => (StatusCode::BAD_GATEWAY, "server_error", "worker_reset"),
            Self::WorkerTruncated => (StatusCode::BAD_GATEWAY, "server_error", "worker_truncated"),
            Self::ConcurrencyLimited { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "concurrency_limit_exceeded")
            }
            Self::SlotLost => (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error", "slot_lost"),
            Self::WorkersFailed => (StatusCode::BAD_GATEWAY, "server_error", "workers_failed"),
            Self::WorkerTimeout => (StatusCode::GATEWAY_TIMEOUT, "server_error", "worker_timeout"),
            Self::FirstByteTimeout => (StatusCode::GATEWAY_TIMEOUT, "server_error", "ttft_timeout"),
            Self::StreamIdle => (StatusCode::GATEWAY_TIMEOUT, "server_error", "stream_idle_timeout"),
        };
        Shape { status, kind, code }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded
            | Self::NoAvailableWorkers
            | Self::Draining
            | Self::TooManyStreams
            | Self::ConcurrencyLimited { .. }
            | Self::SlotLost
            | Self::QueueFull
            | Self::QueueTimeout => Some(Duration::from_secs(1)),
            Self::BreakersOpen { after } => Some(*after),
            Self::RateLimited(refused) => Some(refused.retry_after),
            _ => None,
        }
    }

    /// A 5xx that comes again when the request does: it has used up a whole deadline.
    fn is_deterministic(&self) -> bool {
        matches!(self, Self::WorkerTimeout)
    }

    /// The JSON body, also the `data:` of a stream that broke.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::json!({ "error": self.object() }).to_string()
    }

    /// What stands under `error` there.
    #[must_use]
    pub fn object(&self) -> serde_json::Value {
        let Shape { kind, code, .. } = self.shape();
        serde_json::json!({"type": kind, "code": code, "message": self.to_string(), "param": null})
    }

    /// Its headers, without those of the body.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(ERROR_CODE_HEADER, HeaderValue::from_static(self.code()));
        if let Some(after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(headers::whole_seconds(after)));
        }
        if self.is_deterministic() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        match self {
            Self::MethodNotAllowed { allow: Some(allow) } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allow));
            }
            Self::ApiKey | Self::AdminKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::ConcurrencyLimited { concurrent } => {
                headers::rate_limit(&mut headers, u64::from(*concurrent), 0, Duration::from_secs(1));
            }
            Self::RateLimited(refused) => {
                headers::rate_limit(&mut headers, refused.limit, 0, refused.reset);
            }
            // The rest of the body is not read, and a request after it would not be understood.
            Self::Draining
            | Self::PayloadTooLarge { .. }
            | Self::BodyBroken
            | Self::BodyTimeout
            | Self::Head
            | Self::HeadTooLarge
            | Self::HeadTimeout => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        headers
    }

    /// The response for the client.
    #[must_use]
    pub fn response(&self) -> Response<Body> {
        self.response_with(Body::full(Bytes::from(self.json())))
    }

    fn response_with<B>(&self, body: B) -> Response<B> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status();
        *response.headers_mut() = self.headers();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// The code of an error that a control route answered with, in the response's extensions: for the record of the
/// request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorCode(pub(crate) &'static str);

impl IntoResponse for GatewayError {
    fn into_response(self) -> axum::response::Response {
        let mut response = self.response_with(axum::body::Body::from(self.json()));
        response.extensions_mut().insert(ErrorCode(self.code()));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_look_like_this() {
        let too_large = GatewayError::PayloadTooLarge { bytes_max: 9 };
        let not_allowed = GatewayError::MethodNotAllowed { allow: Some("POST") };
        let (retry_after, reset) = (Duration::from_millis(200), Duration::from_secs(3));
        let refused = Refused { limit: 5, retry_after, reset, unleased_for: None };
        let limited = GatewayError::ConcurrencyLimited { concurrent: 9 };
        let open = GatewayError::BreakersOpen { after: Duration::from_millis(40_001) };
        let unavailable = "service_unavailable_error";
        for (error, status, kind, code, header) in [
            (GatewayError::Head, 400, "invalid_request_error", "malformed_request", Some("connection: close")),
            (GatewayError::HeadTooLarge, 431, "invalid_request_error", "head_too_large", Some("connection: close")),
            (GatewayError::HeadTimeout, 408, "invalid_request_error", "request_timeout", Some("connection: close")),
            (GatewayError::Overloaded, 503, "service_unavailable_error", "overloaded", Some("retry-after: 1")),
            (GatewayError::Host, 400, "invalid_request_error", "invalid_host", None),
            (GatewayError::InvalidJson(ScanError::Eof), 400, "invalid_request_error", "invalid_json", None),
            (GatewayError::BodyBroken, 400, "invalid_request_error", "incomplete_body", Some("connection: close")),
            (GatewayError::BodyTimeout, 408, "invalid_request_error", "request_timeout", Some("connection: close")),
            (GatewayError::ContentType, 415, "invalid_request_error", "unsupported_media_type", None),
            (too_large, 413, "invalid_request_error", "payload_too_large", Some("connection: close")),
            (GatewayError::ApiKey, 401, "authentication_error", "invalid_api_key", Some("www-authenticate: Bearer")),
            (GatewayError::AdminKey, 401, "authentication_error", "invalid_api_key", Some("www-authenticate: Bearer")),
            (GatewayError::AdminLocalOnly, 403, "permission_error", "admin_local_only", None),
            (GatewayError::InvalidRequest("why".into()), 400, "invalid_request_error", "invalid_request", None),
            (GatewayError::ResponseNotFound, 404, "invalid_request_error", "response_not_found", None),
            (GatewayError::WorkerNotFound, 404, "invalid_request_error", "worker_not_found", None),
            (GatewayError::PolicyNotFound, 404, "invalid_request_error", "policy_not_found", None),
            (GatewayError::RouteNotFound, 404, "invalid_request_error", "not_found", None),
            (not_allowed, 405, "invalid_request_error", "method_not_allowed", Some("allow: POST")),
            (
                GatewayError::RateLimited(refused),
                429,
                "rate_limit_error",
                "rate_limit_exceeded",
                Some("retry-after: 1"),
            ),
            (limited, 429, "rate_limit_error", "concurrency_limit_exceeded", Some("x-ratelimit-limit: 9")),
            (GatewayError::SlotLost, 503, unavailable, "slot_lost", Some("retry-after: 1")),
            (GatewayError::QueueFull, 429, "rate_limit_error", "queue_full", Some("retry-after: 1")),
            (GatewayError::QueueTimeout, 408, "rate_limit_error", "queue_timeout", Some("retry-after: 1")),
            (GatewayError::model_not_found("m"), 404, "invalid_request_error", "model_not_found", None),
            (GatewayError::NoAvailableWorkers, 503, unavailable, "no_available_workers", Some("retry-after: 1")),
            (open, 503, "service_unavailable_error", "no_available_workers", Some("retry-after: 41")),
            (GatewayError::Draining, 503, "service_unavailable_error", "draining", Some("retry-after: 1")),
            (GatewayError::TooManyStreams, 503, unavailable, "too_many_streams", Some("retry-after: 1")),
            (GatewayError::WorkerUnreachable, 502, "server_error", "worker_unreachable", None),
            (GatewayError::WorkerReset, 502, "server_error", "worker_reset", None),
            (GatewayError::WorkerTruncated, 502, "server_error", "worker_truncated", None),
            (GatewayError::WorkersFailed, 502, "server_error", "workers_failed", None),
            (GatewayError::WorkerTimeout, 504, "server_error", "worker_timeout", Some("x-should-retry: false")),
            (GatewayError::FirstByteTimeout, 504, "server_error", "ttft_timeout", None),
            (GatewayError::StreamIdle, 504, "server_error", "stream_idle_timeout", None),
        ] {
            let case = format!("{error:?}");
            let response = error.response();
            assert_eq!(response.status(), status, "{case}");
            assert_eq!(response.headers()[ERROR_CODE_HEADER], code, "{case}");
            if let Some((name, value)) = header.and_then(|header| header.split_once(": ")) {
                assert_eq!(response.headers()[name], value, "{case}");
            }
            let body: serde_json::Value = serde_json::from_str(&error.json()).unwrap_or_default();
            assert_eq!(body["error"]["type"], kind, "{case}");
            assert_eq!(body["error"]["code"], code, "{case}");
            assert_eq!(body["error"]["message"], error.to_string(), "{case}");
            assert!(body["error"].as_object().is_some_and(|error| error.contains_key("param")), "{case}");
        }
    }

    #[test]
    fn who_came_too_often_learns_the_limit() {
        let reset = Duration::from_millis(2001);
        let refused = Refused { limit: 5, retry_after: Duration::from_secs(1), reset, unleased_for: None };
        let response = GatewayError::RateLimited(refused).response();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        for (name, expected) in [
            ("retry-after", "1"),
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "3"),
        ] {
            assert_eq!(header(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn long_model_names_are_cut() {
        let GatewayError::ModelNotFound(name) = GatewayError::model_not_found(&"é".repeat(1000)) else {
            unreachable!("it is that variant");
        };
        assert_eq!(name.len(), NAME_BYTES_MAX);
    }
}
