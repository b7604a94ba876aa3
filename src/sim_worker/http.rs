//! Routes of the worker, its errors, and faults applied to whole requests.

use std::{io, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Either, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, body::Incoming};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    embedding,
    engine::{Engine, Ticket},
    faults::{Fault, Kind},
    generation, responses,
};

/// A whole answer, or a stream that may break.
pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;

/// The largest request body that is read, in bytes; more gets 413.
const BODY_BYTES_MAX: usize = 512 << 20;

/// Seconds since 1970 in every `created` field: fixed, so that answers are the same bytes every time.
pub(super) const CREATED: u64 = 1_700_000_000;

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("connection reset by a simulated fault")]
pub(super) struct Reset;

/// Answers one request.
pub(super) async fn handle(engine: Arc<Engine>, request: Request<Incoming>) -> Result<Response<Body>, Reset> {
    let (head, body) = request.into_parts();
    let (method, path) = (head.method, head.uri.path());
    // The body is read before anything else: only then does hyper watch the connection for a client that leaves.
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Ok(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "request body too large").respond());
        }
        Err(_) => return Err(Reset),
    };
    if let Some(control) = path.strip_prefix("/sim/") {
        return Ok(handle_control(&engine, &method, control, &body));
    }
    let generates = method == Method::POST && GENERATING.contains(&path);
    let ticket = generates.then(|| engine.begin());
    let mut truncates = false;
    if let Some(kind) = engine.fate(path, generates) {
        if kind == Kind::Truncate {
            truncates = true;
        } else {
            return suffer(kind, &engine, ticket).await;
        }
    }
    let mut response = match ticket {
        Some(mut ticket) => {
            ticket.truncates = truncates;
            generate(ticket, path, &body).await
        }
        None => answer(&engine, &method, path),
    };
    if truncates {
        response = cut(response);
    }
    if let Ok(name) = HeaderValue::from_str(&engine.name) {
        response.headers_mut().insert("x-sim-worker", name);
    }
    Ok(response)
}

/// Routes whose requests hold a slot, count in the statistics, and meet faults that name no path.
const GENERATING: [&str; 9] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
    "/rerank",
    "/v1/classify",
    "/generate",
];

async fn generate(ticket: Ticket, path: &str, body: &[u8]) -> Response<Body> {
    match path {
        "/v1/embeddings" => embedding::embed(ticket, body).await,
        "/v1/rerank" | "/rerank" => embedding::rerank(ticket, body).await,
        "/v1/classify" => embedding::classify(ticket, body).await,
        _ => generation::generate(ticket, path, body).await,
    }
}

fn answer(engine: &Engine, method: &Method, path: &str) -> Response<Body> {
    let get_or_post = method == Method::GET || method == Method::POST;
    match path {
        "/health" | "/health_generate" if method == Method::GET => ok(&json!({"status": "ok"})),
        "/v1/models" if method == Method::GET => ok(&models(engine)),
        "/get_model_info" if method == Method::GET => {
            let model = engine.args.models.first();
            ok(&json!({"model_path": model, "tokenizer_path": model, "is_generation": true}))
        }
        "/get_server_info" if method == Method::GET => ok(&server_info(engine)),
        "/get_loads" if method == Method::GET => {
            let stats = engine.stats();
            ok(&json!([{"dp_rank": 0, "num_reqs": stats.active + stats.waiting, "num_waiting_reqs": stats.waiting,
                        "num_tokens": stats.cache_tokens}]))
        }
        "/flush_cache" if get_or_post => {
            engine.flush_cache();
            ok(&json!({"success": true, "message": "Cache flushed."}))
        }
        _ => match path.strip_prefix("/v1/responses/") {
            Some(rest) => responses::answer_stored(engine, method, rest),
            None => ApiError::new(StatusCode::NOT_FOUND, "not_found", &format!("no route {method} {path}")).respond(),
        },
    }
}

fn models(engine: &Engine) -> Value {
    let model = |id: &String| json!({"id": id, "object": "model", "created": CREATED, "owned_by": "smg-sim"});
    json!({"object": "list", "data": engine.args.models.iter().map(model).collect::<Vec<_>>()})
}

fn server_info(engine: &Engine) -> Value {
    let (args, stats) = (&engine.args, engine.stats());
    json!({
        "name": engine.name, "version": env!("CARGO_PKG_VERSION"), "model_path": args.models.first(),
        "max_running_requests": args.max_concurrency, "max_total_num_tokens": args.cache_tokens,
        "page_size": args.cache_block_tokens, "num_running_reqs": stats.active, "num_waiting_reqs": stats.waiting,
    })
}

/// Body of `POST /sim/faults` and answer of `GET /sim/faults`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Faults {
    faults: Vec<String>,
}

fn handle_control(engine: &Engine, method: &Method, control: &str, body: &[u8]) -> Response<Body> {
    match (method, control) {
        (&Method::GET, "stats") => ok(&engine.stats()),
        (&Method::GET, "faults") => ok(&Faults { faults: engine.plan().spelled() }),
        (&Method::POST, "faults") => {
            let parsed = serde_json::from_slice::<Faults>(body).map_err(|error| error.to_string()).and_then(|wanted| {
                wanted.faults.iter().map(|f| f.parse::<Fault>().map_err(|error| error.to_string())).collect()
            });
            match parsed {
                Ok(faults) => {
                    engine.arm(faults);
                    ok(&Faults { faults: engine.plan().spelled() })
                }
                Err(error) => ApiError::bad_request(&error).respond(),
            }
        }
        _ => ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such route under /sim").respond(),
    }
}

async fn suffer(kind: Kind, engine: &Engine, ticket: Option<Ticket>) -> Result<Response<Body>, Reset> {
    if kind == Kind::Hang {
        // The ticket stays here: when the client leaves, it counts as aborted.
        return std::future::pending().await;
    }
    if let Some(ticket) = ticket {
        ticket.refuse();
    }
    let error = match kind {
        Kind::TooManyRequests => {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", "simulated rate limit")
        }
        Kind::ServiceUnavailable => ApiError::overloaded("simulated overload"),
        Kind::InternalServerError => {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "simulated internal error")
        }
        Kind::Crash => {
            engine.crash.cancel();
            return Err(Reset);
        }
        Kind::Reset | Kind::Hang | Kind::Truncate => return Err(Reset),
    };
    Ok(error.respond())
}

/// Announces the whole length, sends half, closes. A stream is cut by its own generation.
fn cut(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    let body = match body {
        Either::Left(whole) => {
            let length = http_body::Body::size_hint(&whole).lower();
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            let frames = async move {
                let bytes = whole.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                Ok(Frame::data(bytes.slice(..bytes.len() / 2)))
            };
            let broken = async {
                // The server gives up what it has not written yet: its turn comes first.
                tokio::task::yield_now().await;
                Err(io::Error::other("cut by a simulated fault"))
            };
            let stream =
                futures_util::StreamExt::chain(futures_util::stream::once(frames), futures_util::stream::once(broken));
            Either::Right(StreamBody::new(stream).boxed_unsync())
        }
        stream @ Either::Right(_) => stream,
    };
    Response::from_parts(head, body)
}

/// 200 with JSON.
pub(super) fn ok(value: &impl Serialize) -> Response<Body> {
    respond(StatusCode::OK, value)
}

fn respond(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // What is serialised here are values of this module's own making; none of them can fail.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Either::Left(Full::from(bytes)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error answer in OpenAI's shape.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: &str) -> Self {
        Self { status, code, message: message.to_owned() }
    }

    pub(super) fn bad_request(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub(super) fn model_not_found(model: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "model_not_found", &format!("the model `{model}` does not exist"))
    }

    pub(super) fn overloaded(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
    }

    pub(super) fn respond(&self) -> Response<Body> {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::NOT_FOUND => "not_found_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let body = json!({"error": {"type": kind, "code": self.code, "message": self.message, "param": null}});
        let mut response = respond(self.status, &body);
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
