//! A request on its way to a worker: read, route, send, and try again where that is safe.
//!
//! Retries happen before the client got anything: after a connection that could not be made, or that ended before the
//! response's head, or whose first byte of a stream took too long. The next attempt goes to another worker while there is one. A pooled connection that turns out
//! stale is no failure: the same worker is asked again at once, on a fresh one.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Response, header, response::Parts};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rand::Rng;
use tokio::time::{sleep, timeout_at};

use crate::gateway::{
    backoff,
    body::Body,
    breaker::{Outcome, Permit},
    choice,
    core::Core,
    error::GatewayError,
    finish::Finish,
    headers,
    limits::unleased::{Passed, Queue},
    placement,
    policy::{Chosen, Facts},
    pool,
    prefix::{self, Prompt},
    relay::{Lease, Relay},
    scan,
    service::Inbound,
    session::Held,
    steering,
    stored::{self, Learner},
    tenure::Tenure,
    upstream::{ExchangeError, Reply, RequestHead},
    usage,
    view::{Lookup, Route},
    worker::{InFlight, Worker},
};

/// A complete answer up to this size is read before the client gets its head, so that a short one can be a 502.
const READ_AHEAD_BYTES_MAX: usize = 1 << 20;

/// Bytes set aside at once for a body of a size that its client announced; a larger one gets more as it comes.
const BODY_SET_ASIDE_BYTES_MAX: usize = 256 << 10;

/// Where the request's deadline found it.
#[derive(Clone, Copy)]
enum Stage {
    Body,
    Queue,
    Worker,
}

/// What goes to a worker, whichever it is.
struct Outbound {
    body: Bytes,
    is_stream: bool,
    deadline: Instant,
    /// The `traceparent` of the attempt, and whether it continues a context of the client's.
    context: RefCell<Option<(HeaderValue, bool)>>,
}

/// Why an attempt ended before the response's head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Failure {
    Connect,
    Reset,
    /// Nothing within `--ttft-timeout-secs`.
    FirstByte,
    /// This machine has nothing left for a connection; the worker has no part in it.
    Local,
}

impl Failure {
    fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::FirstByte => "ttft",
            Self::Local => "local",
        }
    }

    fn error(self) -> GatewayError {
        match self {
            Self::Connect => GatewayError::WorkerUnreachable,
            Self::Reset => GatewayError::WorkerReset,
            Self::FirstByte => GatewayError::FirstByteTimeout,
            Self::Local => GatewayError::Overloaded,
        }
    }
}

/// Which worker is to answer.
pub(crate) enum Wanted {
    /// One of the model that the body names.
    Model(Incoming),
    /// Any ready one, whatever its models.
    AnyWorker,
    /// The one that has the response that the path names.
    Stored(Incoming),
}

/// Serves a request that a worker answers.
pub(crate) async fn serve(
    inbound: &Inbound,
    wanted: Wanted,
    finish: &mut Finish,
) -> Result<Response<Body>, GatewayError> {
    let deadline = inbound.started + inbound.core.config().requests.timeout;
    let stage = Cell::new(Stage::Body);
    let served = match timeout_at(deadline.into(), route(inbound, wanted, deadline, &stage, finish)).await {
        Ok(served) => served,
        Err(_) => match stage.get() {
            Stage::Body => Err(GatewayError::BodyTimeout),
            Stage::Queue => Err(GatewayError::QueueTimeout),
            Stage::Worker => {
                inbound.core.metrics.worker_error("timeout");
                Err(GatewayError::WorkerTimeout)
            }
        },
    };
    if served.is_err() {
        finish.end_tenure();
    }
    if let (Err(error), Stage::Queue | Stage::Worker) = (&served, stage.get()) {
        inbound.core.metrics.router_error(error.code());
    }
    served
}

async fn route(
    inbound: &Inbound,
    wanted: Wanted,
    deadline: Instant,
    stage: &Cell<Stage>,
    finish: &mut Finish,
) -> Result<Response<Body>, GatewayError> {
    let is_bounded = matches!(wanted, Wanted::Model(_));
    let refers_to = if matches!(wanted, Wanted::Stored(_)) {
        Some(stored::id_of(inbound.parts.uri.path()).ok_or(GatewayError::ResponseNotFound)?)
    } else {
        None
    };
    let body = match wanted {
        Wanted::Model(body) => read_request(inbound, body).await?,
        Wanted::Stored(body) => read_body(inbound, body).await?,
        Wanted::AnyWorker => Bytes::new(),
    };
    let found = if is_bounded { scan::scan(&body)? } else { scan::Scan::default() };
    stage.set(Stage::Queue);
    let model = found.model.as_deref();
    let mut way = look_up(inbound, model, inbound.started)?;
    if is_bounded {
        take_slots(inbound, model, finish)?;
    }
    let tenure = finish.tenure().cloned();
    if is_bounded {
        let passed = unless_lost(tenure.as_deref(), take_token(inbound, model)).await?;
        if let Some(left) = passed.left {
            finish.on_admitted(left);
        }
        if passed.has_waited {
            way = look_up(inbound, model, Instant::now())?;
        }
    }
    if let Some(admission) = inbound.core.shared().admission.as_ref().filter(|_| is_bounded) {
        let slot = unless_lost(tenure.as_deref(), admission.enter()).await?;
        if slot.has_waited() {
            way = look_up(inbound, model, Instant::now())?;
        }
        finish.hold(slot);
    }
    stage.set(Stage::Worker);
    if let Some(id) = refers_to.filter(|_| !way.is_steered) {
        way = Way { route: only(&way.route, stored::owner(inbound, id).await?), is_steered: true };
    } else if let Some(id) = found.previous_response_id.as_deref().filter(|id| !way.is_steered && stored::is_id(id))
        && let Ok(worker) = unless_lost(tenure.as_deref(), stored::owner(inbound, id)).await
    {
        way = Way { route: only(&way.route, worker), is_steered: true };
    }
    let route = &way.route;
    inbound.core.metrics.router_request(&route.label, inbound.path, found.stream);
    finish.on_model(route.label.clone(), found.stream);
    let prompt = route.affinity.as_ref().map(|affinity| prefix::prompt(&affinity.key, &body, &found));
    let user = match found.user {
        Some(Cow::Owned(user)) => Some(Bytes::from(user)),
        Some(Cow::Borrowed(user)) => Some(body.slice_ref(user.as_bytes())),
        None => None,
    };
    let is_stream = found.stream;
    let said = Said { user, prompt };
    let outbound = Outbound { body, is_stream, deadline, context: RefCell::default() };
    unless_lost(tenure.as_deref(), attempts(inbound, &way, &said, &outbound, finish)).await
}

/// Waits no longer than a request has its slots.
async fn unless_lost<T>(
    tenure: Option<&Tenure>,
    wanted: impl Future<Output = Result<T, GatewayError>>,
) -> Result<T, GatewayError> {
    let Some(tenure) = tenure else { return wanted.await };
    tokio::select! {
        biased;
        () = tenure.lost() => Err(GatewayError::SlotLost),
        found = wanted => found,
    }
}

/// Takes a slot of each bound on requests in flight that selects the request, until its response was sent. One that waits in
/// this gateway's queue has them as well.
fn take_slots(inbound: &Inbound, model: Option<&str>, finish: &mut Finish) -> Result<(), GatewayError> {
    match inbound.core.shared().limits.bounds.admit(&inbound.parts.headers, model, Instant::now) {
        Ok(held) if held.is_empty() => {}
        Ok(held) => finish.hold_tenure(Rc::new(Tenure::new(held))),
        Err(concurrent) => {
            inbound.core.metrics.rate_limit("rejected", "concurrency_exceeded");
            return Err(GatewayError::ConcurrencyLimited { concurrent });
        }
    }
    Ok(())
}

/// What policies may look at, beside the headers.
struct Said {
    user: Option<Bytes>,
    prompt: Option<Prompt>,
}

/// A route like another, to one worker.
fn only(route: &Route, worker: Arc<Worker>) -> Arc<Route> {
    Arc::new(Route::new(route.label.clone(), route.policy, vec![worker]))
}

/// Takes one of this second's requests. What is wrong with a request was said before, and costs none.
async fn take_token(inbound: &Inbound, model: Option<&str>) -> Result<Passed, GatewayError> {
    let shared = inbound.core.shared();
    let limits = &shared.config.limits;
    let queue = Queue { size: limits.queue_max, timeout: limits.queue_timeout };
    let taken = shared.limits.take(&inbound.parts.headers, model, queue, &shared.metrics).await;
    taken.map_err(GatewayError::RateLimited)
}

/// Where a request may go.
struct Way {
    route: Arc<Route>,
    /// The client named the worker, or a response that only one worker has.
    is_steered: bool,
}

/// The workers for the model, as they are now, or the one that the client names.
fn look_up(inbound: &Inbound, model: Option<&str>, now: Instant) -> Result<Way, GatewayError> {
    let view = inbound.core.shared().view.load();
    let route = match view.lookup(model, now) {
        Lookup::Route(route) => route,
        Lookup::UnknownModel => return Err(GatewayError::model_not_found(model.unwrap_or(""))),
    };
    let target = steering::target(&inbound.parts.headers, &view, &route)?;
    Ok(Way { is_steered: target.is_some(), route: target.unwrap_or(route) })
}

/// Reads a body that must be there and be JSON.
async fn read_request(inbound: &Inbound, body: Incoming) -> Result<Bytes, GatewayError> {
    if !headers::is_json(&inbound.parts.headers) {
        return Err(GatewayError::ContentType);
    }
    let read = read_body(inbound, body).await?;
    if read.is_empty() { Err(scan::ScanError::Eof.into()) } else { Ok(read) }
}

/// Reads the whole body; one that came in one piece is not copied, and any other once.
async fn read_body(inbound: &Inbound, mut body: Incoming) -> Result<Bytes, GatewayError> {
    let bytes_max = inbound.core.config().requests.payload_bytes_max;
    let too_large = || GatewayError::PayloadTooLarge { bytes_max };
    let announced = body.size_hint();
    if announced.lower() > bytes_max as u64 {
        return Err(too_large());
    }
    // What a client announces is not yet sent: no more than this is set aside for its word.
    let expected = usize::try_from(announced.lower()).unwrap_or(usize::MAX).min(BODY_SET_ASIDE_BYTES_MAX);
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| GatewayError::BodyBroken)?.into_data() else { continue };
        if first.len() + whole.len() + data.len() > bytes_max {
            return Err(too_large());
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                whole.reserve(expected.max(first.len() + data.len()));
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

async fn attempts(
    inbound: &Inbound,
    way: &Way,
    said: &Said,
    outbound: &Outbound,
    finish: &mut Finish,
) -> Result<Response<Body>, GatewayError> {
    let (core, Way { route, is_steered }) = (&inbound.core, way);
    let is_explained = steering::is_explained(&inbound.parts.headers);
    let routing_key = steering::routing_key(&inbound.parts.headers)?.or(said.user.as_deref());
    let held = if *is_steered { None } else { Held::of(core, route, routing_key) };
    let held_by = held.and_then(|held| held.worker());
    let facts = Facts { routing_key, held_by, prompt: said.prompt.as_ref(), tick: placement::tick(inbound.started) };
    core.earn_retries(inbound.started);
    let mut tried: Vec<Arc<Worker>> = Vec::new();
    let mut retries = 0;
    let mut last = None;
    loop {
        let random = core.rng.borrow_mut().next_u64();
        let now = Instant::now();
        let found = choice::choose(route, facts, &tried, random, now).or_else(|| {
            // Every worker had its turn: the one that failed longest ago is as good as any.
            tried.clear();
            choice::choose(route, facts, &tried, random, now)
        });
        let Some((mut chosen, permit)) = found else { return Err(refusal(route, last, now)) };
        placement::note(core, route, facts, &mut chosen);
        let worker = &chosen.worker;
        if !is_steered {
            core.metrics.worker_selected(route.policy);
        }
        if is_explained {
            finish.on_route(explain(core, way, facts, &chosen, retries));
        }
        let failure = match begin_traced(inbound, worker, permit, outbound, finish, retries).await {
            Ok(begun) => {
                if let Some(held) = held {
                    held.on_answer(core, worker, begun.parts.status);
                }
                return answer(inbound, outbound, begun, finish).await;
            }
            Err(failure) => failure,
        };
        core.metrics.worker_error(failure.label());
        if failure == Failure::Connect {
            core.shared().suspicions.suspect(&worker.id);
        }
        tracing::debug!(worker = %worker.id, reason = failure.label(), "attempt failed");
        let retry = &core.config().retry;
        tried.push(chosen.worker);
        let has_another = choice::has_another(route, &tried, Instant::now());
        // A worker that is too slow would only be asked once more, and no other helps where this machine has no more.
        let is_hopeless = failure == Failure::FirstByte && !has_another || failure == Failure::Local;
        if is_hopeless || retries >= retry.retries_max || !core.try_retry(Instant::now()) {
            return Err(failure.error());
        }
        retries += 1;
        last = Some(failure);
        core.metrics.worker_retry();
        let is_at_once = failure == Failure::FirstByte || retries == 1 && failure == Failure::Connect;
        if !(is_at_once && has_another) {
            let random = core.rng.borrow_mut().next_u64();
            let wait = backoff::wait(retry, retries, random);
            if Instant::now() + wait >= outbound.deadline {
                return Err(failure.error());
            }
            sleep(wait).await;
        }
    }
}

/// What the client is told of the choice.
fn explain(core: &Core, way: &Way, facts: Facts<'_>, chosen: &Chosen, retries: u32) -> HeaderValue {
    let (policy, mesh) = (way.route.policy, &core.config().mesh);
    let branch = match chosen.verdict {
        Some(verdict) => verdict.branch.as_str(),
        None => steering::branch(policy, facts, way.is_steered),
    };
    steering::explanation(policy, branch, &chosen.worker.id, chosen.verdict, retries, mesh)
}

/// The answer when no worker can be chosen: what the last attempt ran into, if there was one.
fn refusal(route: &Route, last: Option<Failure>, now: Instant) -> GatewayError {
    match (last, choice::retry_after(route, now)) {
        (Some(failure), _) => failure.error(),
        (None, Some(after)) => GatewayError::BreakersOpen { after },
        (None, None) => GatewayError::NoAvailableWorkers,
    }
}

/// A worker's response that has begun.
struct Begun {
    parts: Parts,
    reply: Reply,
    lease: Lease,
    /// Read ahead where the time to it is bounded.
    first: Option<Frame<Bytes>>,
}

/// [`begin`], told to the spans of the request where there are any.
async fn begin_traced(
    inbound: &Inbound,
    worker: &Arc<Worker>,
    permit: Permit,
    outbound: &Outbound,
    finish: &mut Finish,
    retries: u32,
) -> Result<Begun, Failure> {
    if let Some(trace) = finish.trace() {
        let traceparent = trace.begin_attempt(worker.id.as_str(), worker.authority.as_str(), retries);
        outbound.context.replace(traceparent.map(|traceparent| (traceparent, trace.has_client_context())));
    }
    let begun = begin(inbound, worker, permit, outbound).await;
    if let Some(trace) = finish.trace() {
        match &begun {
            Ok(begun) => trace.on_attempt_answered(begun.parts.status.as_u16()),
            Err(failure) => trace.on_attempt_failed(failure.label()),
        }
    }
    begun
}

/// Sends the request to one worker, up to the head of its response; of a stream whose first byte is awaited
/// (`--ttft-timeout-secs`) up to that byte.
async fn begin(inbound: &Inbound, worker: &Arc<Worker>, permit: Permit, outbound: &Outbound) -> Result<Begun, Failure> {
    let Some(ttft) = inbound.core.config().requests.ttft_timeout.filter(|_| outbound.is_stream) else {
        return attempt(inbound, worker, permit, outbound.deadline, outbound).await;
    };
    let due = outbound.deadline.min(Instant::now() + ttft);
    let begun = async {
        let mut begun = attempt(inbound, worker, permit, due, outbound).await?;
        let frame = if begun.parts.status.is_success() { begun.reply.frame().await } else { None };
        begun.first = frame.transpose().map_err(|error| {
            tracing::debug!(worker = %worker.id, %error, "no first byte");
            begun.lease.in_flight.settle(Outcome::Failure, Instant::now());
            Failure::Reset
        })?;
        begun.lease.in_flight.give_until(outbound.deadline);
        Ok(begun)
    };
    timeout_at(due.into(), begun).await.unwrap_or(Err(Failure::FirstByte))
}

/// Sends the request to one worker, up to the head of its response.
async fn attempt(
    inbound: &Inbound,
    worker: &Arc<Worker>,
    permit: Permit,
    due: Instant,
    outbound: &Outbound,
) -> Result<Begun, Failure> {
    let core = &inbound.core;
    let mut in_flight = worker.begin_permitted(permit, due);
    if let Some(wire) = core.pool.checkout(worker, inbound.started) {
        match wire.exchange(head(inbound, worker, outbound), outbound.body.clone()).await {
            Ok((parts, reply)) => return Ok(begun(core, in_flight, parts, reply)),
            Err(ExchangeError::Unanswered(error)) => {
                tracing::trace!(worker = %worker.id, %error, "pooled connection was stale");
            }
            Err(error) => return Err(unanswered(&mut in_flight, &error)),
        }
    }
    let wire = match core.pool.connect(worker).await {
        Ok(wire) => wire,
        Err(error) => {
            tracing::debug!(worker = %worker.id, %error, "no connection");
            if pool::is_of_this_machine(&error) {
                in_flight.settle(Outcome::Neutral, Instant::now());
                return Err(Failure::Local);
            }
            in_flight.settle(Outcome::Failure, Instant::now());
            return Err(Failure::Connect);
        }
    };
    match wire.exchange(head(inbound, worker, outbound), outbound.body.clone()).await {
        Ok((parts, reply)) => Ok(begun(core, in_flight, parts, reply)),
        Err(error) => Err(unanswered(&mut in_flight, &error)),
    }
}

fn unanswered(in_flight: &mut InFlight, error: &ExchangeError) -> Failure {
    tracing::debug!(worker = %in_flight.worker().id, %error, "no response");
    in_flight.settle(Outcome::Failure, Instant::now());
    Failure::Reset
}

fn begun(core: &Rc<Core>, in_flight: InFlight, parts: Parts, reply: Reply) -> Begun {
    Begun { parts, reply, lease: Lease { core: core.clone(), in_flight }, first: None }
}

/// The head of the client's request as the worker gets it.
fn head(inbound: &Inbound, worker: &Worker, outbound: &Outbound) -> RequestHead {
    let parts = &inbound.parts;
    // A client's HEAD asks the worker for a GET: some do not know HEAD, and the body is left out on the way to the client.
    let method = if parts.method == Method::HEAD { &Method::GET } else { &parts.method };
    let mut head = RequestHead::new(method, &worker.path_prefix, parts.uri.path_and_query());
    let context = outbound.context.borrow();
    let added = headers::Added {
        request_id: (&inbound.request_id.0, &inbound.request_id.1),
        keeps_authorization: inbound.core.config().auth.api_keys.is_empty(),
        context: context.as_ref().map(|(traceparent, is_clients)| (traceparent, *is_clients)),
    };
    headers::to_worker(&parts.headers, worker, added, |name, value| head.header(name, value));
    head
}

/// The worker's response as the client gets it. Of a request that is no stream the body is read first, so that a
/// short one is a 502; a long one is relayed, and aborted when it comes short.
async fn answer(
    inbound: &Inbound,
    outbound: &Outbound,
    begun: Begun,
    finish: &mut Finish,
) -> Result<Response<Body>, GatewayError> {
    let Begun { mut parts, mut reply, mut lease, first: mut prelude } = begun;
    lease.on_status(parts.status);
    headers::from_worker(&mut parts.headers);
    let content_type = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let is_sse = content_type.starts_with(b"text/event-stream");
    let learner = learner(inbound, &parts, &lease);
    let is_long = reply.exact_len().is_some_and(|len| len > READ_AHEAD_BYTES_MAX as u64);
    let is_empty = prelude.is_none() && reply.is_end();
    if is_empty || !(outbound.is_stream && parts.status.is_success() || is_sse || is_long) {
        let (read, is_whole) = read_ahead(&mut lease, &mut reply).await?;
        if is_whole {
            if let Some(learner) = learner {
                learner.on_whole(&read);
            }
            lease.give_back(&mut reply);
            if let Some(usage) = usage::find(&read).filter(|_| parts.status.is_success()) {
                finish.on_usage(usage);
            }
            return Ok(Response::from_parts(parts, Body::full(read)));
        }
        prelude = (!read.is_empty()).then(|| Frame::data(read));
    }
    if is_sse {
        // One that breaks off ends with an event more, and visibly.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let connection = inbound.connection.clone();
    let mut relay = Relay::new(reply, prelude, lease, connection, outbound.deadline, is_sse);
    if let Some(learner) = learner.filter(|_| is_sse) {
        relay.teach(learner);
    }
    Ok(Response::from_parts(parts, Body::relay(relay)))
}

/// Who reads the id in this answer, when it has one that clients come back for.
fn learner(inbound: &Inbound, parts: &Parts, lease: &Lease) -> Option<Learner> {
    let is_response = inbound.path == "/v1/responses" && parts.status.is_success();
    let sessions = &inbound.core.shared().sessions;
    is_response.then(|| Learner::new(sessions.clone(), lease.in_flight.worker().id.clone()))
}

/// Reads until the body ends, true, or is too long to be held back, false.
async fn read_ahead(lease: &mut Lease, reply: &mut Reply) -> Result<(Bytes, bool), GatewayError> {
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    let mut is_whole = reply.is_end();
    while !is_whole {
        let Some(frame) = reply.frame().await else {
            is_whole = true;
            break;
        };
        let frame = frame.map_err(|_| {
            lease.on_break("truncated");
            GatewayError::WorkerTruncated
        })?;
        // Trailers of an answer that is not streamed are dropped: its length is known to the client beforehand.
        let Ok(data) = frame.into_data() else { continue };
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&data);
        }
        is_whole = reply.is_end();
        if first.len() + whole.len() > READ_AHEAD_BYTES_MAX {
            break;
        }
    }
    Ok((if whole.is_empty() { first } else { whole.freeze() }, is_whole))
}
