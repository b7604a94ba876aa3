//! Stored responses (`/v1/responses/{id}` and what is below it): which worker has one, and reaching it.
//!
//! A response is stored by the worker that made it, and nobody else has it. The gateway that relays the answer of a
//! `POST /v1/responses` reads the id in it ([`Learner`]) and tells the cluster which worker that is (a hash of the id in the
//! namespace `sessions`, for 4 h after its last use), so a request with that id reaches its worker through any gateway.
//! One that names an unknown id, because it is older or its gateway died at once, asks every ready worker first: at most
//! [`ASKED_AT_ONCE_MAX`] at a time and [`LOCATE_TIMEOUT`] in all. What is found is remembered like the rest.
//!
//! A `POST /v1/responses` that continues another one (`previous_response_id`) goes to the worker of that one likewise.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode, header, uri::PathAndQuery};
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    gateway::{
        error::GatewayError, headers, service::Inbound, upstream::RequestHead, view::RoutingView, worker::Worker,
    },
    mesh::{
        driver::sessions::Sessions,
        stores::{SessionKey, WorkerId},
    },
};

/// Workers asked for an unknown id at one time at most.
pub(crate) const ASKED_AT_ONCE_MAX: usize = 16;

/// For one worker's word at most.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// For finding the worker of an unknown id at most; the request's own deadline holds too.
const LOCATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest id in bytes; longer ones are unknown.
const ID_BYTES_MAX: usize = 256;

/// The beginning of an event stream that is looked at for the id, in bytes; a longer first event is not learned from.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Whether a text may be the id of a response: what is safe as one segment of a path.
#[must_use]
pub(crate) fn is_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'~');
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(is_plain) && id != "." && id != ".."
}

/// The id in the path of a stored response.
#[must_use]
pub(crate) fn id_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v1/responses/")?;
    let id = rest.split_once('/').map_or(rest, |(id, _)| id);
    is_id(id).then_some(id)
}

/// The worker that has the response, also while it is not ready: no other can answer.
///
/// # Errors
/// When no worker has it; 503 when some could not be asked, or when there is none to ask.
pub(crate) async fn owner(inbound: &Inbound, id: &str) -> Result<Arc<Worker>, GatewayError> {
    let shared = inbound.core.shared();
    let view = shared.view.load_full();
    let key = SessionKey::of_response(id);
    let known = shared.sessions.get(key);
    if let Some(known) = known
        && let Some(worker) = registered(&view, known.worker)
    {
        shared.sessions.hold(key, &worker.id, Some(known));
        return Ok(worker.clone());
    }
    if view.is_joining || view.any.ready.is_empty() {
        return Err(GatewayError::NoAvailableWorkers);
    }
    let worker = locate(inbound, id, &view.any.ready).await?;
    shared.sessions.hold(key, &worker.id, known);
    Ok(worker)
}

fn registered(view: &RoutingView, number: u64) -> Option<&Arc<Worker>> {
    view.registered.iter().map(|registered| &registered.worker).find(|worker| worker.id_number() == number)
}

/// What a worker says of an id.
enum Word {
    Mine(Arc<Worker>),
    NotMine,
    /// Nothing, or nothing that tells.
    Silence,
}

async fn locate(inbound: &Inbound, id: &str, ready: &[Arc<Worker>]) -> Result<Arc<Worker>, GatewayError> {
    let deadline = Instant::now() + LOCATE_TIMEOUT;
    let asked = stream::iter(ready.iter().cloned()).map(|worker| ask(inbound, worker, id));
    let mut words = std::pin::pin!(asked.buffer_unordered(ASKED_AT_ONCE_MAX));
    let mut is_certain = true;
    loop {
        match timeout_at(deadline, words.next()).await {
            Ok(Some(Word::Mine(worker))) => return Ok(worker),
            Ok(Some(Word::NotMine)) => {}
            Ok(Some(Word::Silence)) => is_certain = false,
            Ok(None) if is_certain => return Err(GatewayError::ResponseNotFound),
            Ok(None) | Err(_) => return Err(GatewayError::NoAvailableWorkers),
        }
    }
}

async fn ask(inbound: &Inbound, worker: Arc<Worker>, id: &str) -> Word {
    match timeout(ASK_TIMEOUT, status(inbound, &worker, id)).await {
        Ok(Some(status)) if status.is_success() => Word::Mine(worker),
        Ok(Some(status)) if SAYS_NO.contains(&status) => Word::NotMine,
        Ok(_) | Err(_) => Word::Silence,
    }
}

/// The ways of saying that there is no such thing here.
const SAYS_NO: [StatusCode; 4] =
    [StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];

/// The status of a `GET` of the id, on a connection of its own: the body is of no interest and is not read.
async fn status(inbound: &Inbound, worker: &Worker, id: &str) -> Option<StatusCode> {
    let wire = inbound.core.pool.connect(worker).await.ok()?;
    let path = PathAndQuery::try_from(format!("/v1/responses/{id}")).ok()?;
    let mut head = RequestHead::new(&Method::GET, &worker.path_prefix, Some(&path));
    let added = headers::Added {
        request_id: (&inbound.request_id.0, &inbound.request_id.1),
        keeps_authorization: inbound.core.config().auth.api_keys.is_empty(),
        context: None,
    };
    headers::to_worker(&inbound.parts.headers, worker, added, |name, value| {
        if ![header::CONTENT_TYPE, header::CONTENT_ENCODING, header::RANGE].contains(name) {
            head.header(name, value);
        }
    });
    Some(wire.exchange(head, Bytes::new()).await.ok()?.0.status)
}

/// Reads the id in the answer of a `POST /v1/responses` while it passes, and tells the cluster who has it.
pub(crate) struct Learner {
    sessions: Sessions,
    worker: WorkerId,
    head: Vec<u8>,
}

/// An answer, or an event of a stream.
#[derive(Deserialize)]
struct Answer {
    id: Option<String>,
    response: Option<Named>,
    store: Option<bool>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
    store: Option<bool>,
}

impl Learner {
    pub(crate) fn new(sessions: Sessions, worker: WorkerId) -> Self {
        Self { sessions, worker, head: Vec::new() }
    }

    /// A whole answer; `false` when it names no response. One that says that it is not stored is not remembered.
    pub(crate) fn on_whole(&self, body: &[u8]) -> bool {
        let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return false };
        let (id, store) = match answer.response {
            Some(response) => (Some(response.id), response.store),
            None => (answer.id, answer.store),
        };
        let Some(id) = id.filter(|id| is_id(id)) else { return false };
        if store != Some(false) {
            let key = SessionKey::of_response(&id);
            self.sessions.hold(key, &self.worker, self.sessions.get(key));
        }
        true
    }

    /// The next bytes of an event stream; `false` when no more are of interest. A copy of what is not yet a whole line is
    /// kept, at most [`HEAD_BYTES_MAX`] in all; the stream itself waits for nothing.
    pub(crate) fn on_bytes(&mut self, bytes: &[u8]) -> bool {
        let room = HEAD_BYTES_MAX.saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let mut start = 0;
        while let Some(length) = memchr::memchr(b'\n', &self.head[start..]) {
            let line = &self.head[start..start + length];
            start += length + 1;
            if line.strip_prefix(b"data:").is_some_and(|data| self.on_whole(data)) {
                return false;
            }
        }
        self.head.drain(..start);
        bytes.len() <= room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(sessions: &Sessions, id: &str) -> bool {
        sessions.get(SessionKey::of_response(id)).is_some()
    }

    #[test]
    fn ids_are_one_plain_segment() {
        for (path, expected) in [
            ("/v1/responses/resp_1", Some("resp_1")),
            ("/v1/responses/resp_1/cancel", Some("resp_1")),
            ("/v1/responses/", None),
            ("/v1/responses/..", None),
            ("/v1/responses/%2e%2e", None),
            ("/v1/responses/a b", None),
            ("/v1/responses", None),
        ] {
            assert_eq!(id_of(path), expected, "{path}");
        }
        assert!(is_id(&"x".repeat(ID_BYTES_MAX)) && !is_id(&"x".repeat(ID_BYTES_MAX + 1)));
    }

    #[test]
    fn ids_are_read_wherever_the_bytes_are_cut() {
        let events =
            b"event: response.created\r\ndata: {\"type\":\"response.created\",\"response\":{\"object\":\"response\",\
                      \"id\":\"resp_a\"}}\r\n\r\ndata: {\"response\":{\"id\":\"resp_b\"}}\n\n";
        for cut in 0..events.len() {
            let sessions = Sessions::default();
            let mut learner = Learner::new(sessions.clone(), WorkerId::of_url("http://w"));
            let _ = learner.on_bytes(&events[..cut]) && learner.on_bytes(&events[cut..]);
            assert!(known(&sessions, "resp_a") && !known(&sessions, "resp_b"), "cut at {cut}");
        }
    }

    #[test]
    fn answers_without_an_id_teach_nothing_and_cost_a_bounded_copy() {
        for (case, bytes, goes_on) in [
            ("no event yet", "event: x\n".to_owned(), true),
            ("no id", "data: {\"type\":\"ping\"}\n".into(), true),
            ("no json", "data: [DONE]\n".into(), true),
            ("an id that is none", "data: {\"response\":{\"id\":\"a/b\"}}\n".into(), true),
            ("an event without end", format!("data: {}", "x".repeat(HEAD_BYTES_MAX)), false),
        ] {
            let mut learner = Learner::new(Sessions::default(), WorkerId::of_url("http://w"));
            assert_eq!(learner.on_bytes(bytes.as_bytes()), goes_on, "{case}");
            assert!(learner.head.len() <= HEAD_BYTES_MAX, "{case}");
        }
        let sessions = Sessions::default();
        let learner = Learner::new(sessions.clone(), WorkerId::of_url("http://w"));
        assert!(learner.on_whole(br#"{"id":"resp_c","object":"response"}"#) && known(&sessions, "resp_c"));
        assert!(!learner.on_whole(br#"{"error":{}}"#));
        assert!(learner.on_whole(br#"{"id":"resp_d","store":false}"#) && !known(&sessions, "resp_d"));
        assert!(learner.on_whole(br#"{"id":"resp_e","store":true}"#) && known(&sessions, "resp_e"));
    }
}
