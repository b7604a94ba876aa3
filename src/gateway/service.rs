//! One request from head to answer: what every route has in common.

use std::{
    convert::Infallible,
    rc::Rc,
    time::{Duration, Instant},
};

use axum::extract::{ConnectInfo, MatchedPath, Request as ControlRequest};
use http::{HeaderName, HeaderValue, Request, Response, Version, header, request::Parts};
use http_body::Body as _;
use hyper::body::Incoming;
use tower::ServiceExt;

use crate::gateway::{
    body::Body,
    connection::Connection,
    core::{Core, Phase},
    cors,
    error::{ErrorCode, GatewayError},
    finish::Finish,
    headers, keys,
    proxy::{self, Wanted},
    public,
    routes::{self, Target},
    steering,
    timed::Timed,
};

/// A request as the handlers see it.
pub(crate) struct Inbound {
    pub(crate) core: Rc<Core>,
    pub(crate) connection: Rc<Connection>,
    pub(crate) parts: Parts,
    pub(crate) request_id: (HeaderName, HeaderValue),
    pub(crate) path: &'static str,
    pub(crate) started: Instant,
}

/// Answers a request. The answer's body keeps the record of the request until it is sent.
pub(crate) async fn serve(core: Rc<Core>, connection: Rc<Connection>, request: Request<Incoming>) -> Response<Body> {
    let started = Instant::now();
    let mut finish = Finish::begin(&core, &connection, started);
    let (parts, body) = request.into_parts();
    let names = &core.config().requests.request_id_headers;
    let request_id = headers::request_id(&parts.headers, names, &mut *core.rng.borrow_mut());
    let version = parts.version;
    let origins = &core.config().requests.cors_allowed_origins;
    let origin = if origins.is_empty() { None } else { parts.headers.get(header::ORIGIN).cloned() };

    let inbound =
        Inbound { core: core.clone(), connection, parts, request_id: request_id.clone(), path: "unmatched", started };
    let answer = dispatch(inbound, body, &mut finish).await;
    let mut response = match answer {
        Ok(response) => {
            // A control route's error is a response by the time that it comes here.
            let code = response.extensions().get::<ErrorCode>().map_or("", |code| code.0);
            finish.on_response(response.status(), code);
            response
        }
        Err(error) => {
            finish.on_response(error.status(), error.code());
            error.response()
        }
    };
    let told = response.headers_mut();
    told.insert(request_id.0, request_id.1);
    if let Some(route) = finish.take_route() {
        told.insert(steering::ROUTE_HEADER, route);
    }
    if let Some(left) = finish.left() {
        headers::rate_limit(told, left.limit, left.remaining, left.reset);
    }
    cors::decorate(told, origin.as_ref(), origins);
    if version == Version::HTTP_2 {
        told.remove(header::CONNECTION);
    } else if core.phase() >= Phase::Settling {
        told.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.body_mut().attach(finish);
    response
}

async fn dispatch(mut inbound: Inbound, body: Incoming, finish: &mut Finish) -> Result<Response<Body>, GatewayError> {
    let core = inbound.core.clone();
    let Parts { method, uri, headers, .. } = &inbound.parts;
    let found = routes::find(method, uri.path());
    let (Ok((_, path)) | Err((_, path))) = found;
    inbound.path = path;
    if let (Some(traces), Ok((target, _))) = (&core.shared().traces, &found)
        && !matches!(target, Target::Liveness | Target::Readiness | Target::Health)
    {
        finish.follow(traces.begin(&inbound.parts, core.shared().acceptor.is_some()));
    }
    if !matches!(found, Ok((Target::Control, _))) {
        finish.on_path(method, path);
    }
    if let Some(response) = cors::preflight(method, headers, &core.config().requests.cors_allowed_origins) {
        return Ok(response);
    }
    let hosts = headers.get_all(header::HOST).iter().take(2).count();
    if hosts > 1 || hosts == 0 && inbound.parts.version == Version::HTTP_11 {
        return Err(GatewayError::Host);
    }
    let (target, _) = found.map_err(|(error, _)| error)?;
    match target {
        Target::Liveness => Ok(public::liveness()),
        Target::Readiness => Ok(public::readiness(&core.shared().view.load(), core.phase())),
        Target::Health => Ok(public::health(core.phase())),
        _ if core.phase() >= Phase::Refusing => {
            if target == Target::Control {
                finish.on_path(method, path);
            }
            Err(GatewayError::Draining)
        }
        Target::Serving | Target::Stored(_) => {
            let api_keys = &core.config().auth.api_keys;
            if !api_keys.is_empty() && !keys::has_one_of(headers, api_keys) {
                return Err(GatewayError::ApiKey);
            }
            let wanted = if target == Target::Serving { Wanted::Model(body) } else { Wanted::Stored(body) };
            proxy::serve(&inbound, wanted, finish).await
        }
        Target::AnyWorker => proxy::serve(&inbound, Wanted::AnyWorker, finish).await,
        Target::Models => Ok(public::models(&core.shared().view.load())),
        Target::Control => control(inbound, body, finish).await,
    }
}

/// Longest wait for the body of a control request, which is small, unless `--request-timeout-secs` is shorter.
const CONTROL_BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Hands the request to the control router, on this core. Its template comes back in the response's extensions.
async fn control(inbound: Inbound, body: Incoming, finish: &mut Finish) -> Result<Response<Body>, GatewayError> {
    let method = inbound.parts.method.clone();
    let timeout = inbound.core.config().requests.timeout.min(CONTROL_BODY_TIMEOUT);
    let body = if body.is_end_stream() { axum::body::Body::empty() } else { Timed::body(body, timeout) };
    let mut request = ControlRequest::from_parts(inbound.parts, body);
    request.extensions_mut().insert(ConnectInfo(inbound.connection.peer));
    let router = inbound.core.shared().control.clone();
    let answered: Result<_, Infallible> = router.oneshot(request).await;
    let response = answered.unwrap_or_else(|never| match never {});
    let template = response.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    finish.on_path(&method, template.map_or("unmatched", |template| inbound.core.shared().intern(template)));
    Ok(response.map(Body::control))
}

/// Makes the router tell the template of the route that answered, and refuse what it does not know.
pub(crate) fn prepare(control: axum::Router) -> axum::Router {
    control
        .fallback(async || GatewayError::RouteNotFound)
        .method_not_allowed_fallback(async || GatewayError::MethodNotAllowed { allow: None })
        .layer(axum::middleware::from_fn(async |request: ControlRequest, next: axum::middleware::Next| {
            let template = request.extensions().get::<MatchedPath>().cloned();
            let mut response = next.run(request).await;
            if let Some(template) = template {
                response.extensions_mut().insert(template);
            }
            response
        }))
}
