//! The record of one client request: counted in at its head, counted out when its response is sent or given up.

use std::{
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use http::{HeaderValue, Method, StatusCode};

use crate::{
    gateway::{
        admission::Slot,
        connection::Connection,
        core::Core,
        limiter::Left,
        tenure::Tenure,
        usage::{Tally, Usage},
    },
    telemetry::traces::Trace,
};

/// Status recorded for a client that left before its answer began, as nginx has it.
const CLIENT_CLOSED: u16 = 499;

/// Error code recorded for a client that left before its answer ended.
const CLIENT_CLOSED_CODE: &str = "client_closed";

/// Ends the record when dropped.
pub(crate) struct Finish {
    core: Rc<Core>,
    connection: Rc<Connection>,
    started: Instant,
    path: &'static str,
    status: StatusCode,
    error_code: &'static str,
    /// The answer to a HEAD has no body, whatever its headers say: nothing of it can be missed.
    is_bodyless: bool,
    /// The model's label, of a request that was routed to workers.
    model: Option<Arc<str>>,
    /// Its place among the requests in flight, where these are bounded.
    slot: Option<Slot>,
    /// Its slots of what the cluster may have in flight, where that is bounded.
    tenure: Option<Rc<Tenure>>,
    /// How the answer came about, where the client wants to know.
    route: Option<HeaderValue>,
    /// What is left of the limit per second that has least, where one selects the request.
    left: Option<Left>,
    /// The spans of the request, where there are any.
    trace: Option<Box<Trace>>,
}

impl Finish {
    /// Counts a request in.
    pub(crate) fn begin(core: &Rc<Core>, connection: &Rc<Connection>, started: Instant) -> Self {
        core.request_began();
        connection.request_began();
        Self {
            core: core.clone(),
            connection: connection.clone(),
            started,
            path: "unmatched",
            status: StatusCode::from_u16(CLIENT_CLOSED).unwrap_or(StatusCode::BAD_REQUEST),
            error_code: CLIENT_CLOSED_CODE,
            is_bodyless: false,
            model: None,
            slot: None,
            tenure: None,
            route: None,
            left: None,
            trace: None,
        }
    }

    /// Has spans made of the request.
    pub(crate) fn follow(&mut self, trace: Trace) {
        self.trace = Some(Box::new(trace));
    }

    /// The spans, where there are any.
    pub(crate) fn trace(&mut self) -> Option<&mut Trace> {
        self.trace.as_deref_mut()
    }

    /// Tells the route template, once it is known.
    pub(crate) fn on_path(&mut self, method: &Method, path: &'static str) {
        self.path = path;
        self.is_bodyless = *method == Method::HEAD;
        self.core.metrics.http_request(method, path);
        if let Some(trace) = &mut self.trace {
            trace.on_route(path);
        }
    }

    /// Tells the model's label, and whether a stream is asked for.
    pub(crate) fn on_model(&mut self, label: Arc<str>, is_stream: bool) {
        if let Some(trace) = &mut self.trace {
            trace.on_model(self.path, &label, is_stream);
        }
        self.model = Some(label);
    }

    /// Keeps the request's place until the response is sent or given up.
    pub(crate) fn hold(&mut self, slot: Slot) {
        self.slot = Some(slot);
    }

    /// Keeps the request's slots until the response is sent or given up.
    pub(crate) fn hold_tenure(&mut self, tenure: Rc<Tenure>) {
        self.connection.watch(&tenure);
        self.tenure = Some(tenure);
    }

    /// The request is refused or has failed: its slots are free, whenever the client reads that.
    pub(crate) fn end_tenure(&mut self) {
        self.tenure = None;
    }

    /// Its slots, where there are any.
    pub(crate) fn tenure(&self) -> Option<&Rc<Tenure>> {
        self.tenure.as_ref()
    }

    /// Ready once the request has lost a slot and must be broken.
    pub(crate) fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.tenure.as_ref().map_or(Poll::Pending, |tenure| tenure.poll_lost(cx))
    }

    /// Tells which worker is asked now, for the client to know.
    pub(crate) fn on_route(&mut self, route: HeaderValue) {
        self.route = Some(route);
    }

    /// What was told last.
    pub(crate) fn take_route(&mut self) -> Option<HeaderValue> {
        self.route.take()
    }

    /// Tells what is left of the limits that admitted the request.
    pub(crate) fn on_admitted(&mut self, left: Left) {
        self.left = Some(left);
    }

    /// What was told.
    pub(crate) fn left(&self) -> Option<Left> {
        self.left
    }

    /// The response begins; the code is empty on success.
    pub(crate) fn on_response(&mut self, status: StatusCode, error_code: &'static str) {
        self.status = status;
        self.error_code = error_code;
    }

    /// The response began and then broke.
    pub(crate) fn on_broken(&mut self, error_code: &'static str) {
        self.error_code = error_code;
        self.core.metrics.router_error(error_code);
    }

    /// The response was given up before its end: nobody reads it any more.
    pub(crate) fn on_abandoned(&mut self) {
        if self.error_code.is_empty() && !self.is_bodyless {
            self.error_code = CLIENT_CLOSED_CODE;
        }
    }

    /// A whole answer told what it cost.
    pub(crate) fn on_usage(&mut self, usage: Usage) {
        self.core.metrics.router_tokens(usage.prompt, usage.cached, usage.completion);
        if let Some(trace) = &mut self.trace {
            trace.on_usage(usage.prompt, usage.cached, usage.completion);
        }
    }

    /// A stream came to its end.
    pub(crate) fn on_stream_end(&mut self, tally: &Tally) {
        if let Some(usage) = tally.usage() {
            self.on_usage(usage);
        }
        if let (Some(model), Some(per_token)) = (&self.model, tally.per_token()) {
            self.core.metrics.router_tpot(model, self.path, per_token);
        }
    }

    /// The first byte of a stream's body.
    pub(crate) fn on_first_byte(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.on_first_byte();
        }
        if let Some(model) = &self.model {
            self.core.metrics.router_ttft(model, self.path, self.started.elapsed());
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.started);
        self.core.metrics.http_response(self.path, self.status, self.error_code, elapsed);
        if let Some(model) = &self.model {
            self.core.metrics.router_duration(model, self.path, elapsed);
        }
        if let Some(trace) = &mut self.trace {
            trace.end(self.status.as_u16(), self.error_code);
        }
        self.connection.request_ended(now);
        self.core.request_ended();
    }
}
