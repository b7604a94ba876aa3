//! `POST /flush_cache` and `GET /get_loads`: one question to every registered worker, all answers in one.
//!
//! Workers that are not ready are asked as well: an operator who flushes wants to know which ones did not. At most
//! [`ASKED_AT_ONCE_MAX`] are asked at a time, each for [`WORKER_TIMEOUT`], all together for [`FANOUT_TIMEOUT`]; the answer
//! lists every worker, sorted by id, those that were not reached in time included. It is 200 when every worker
//! succeeded (also when there is none), 206 when some did not, and 502 when none did.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::gateway::{
    error::{ERROR_CODE_HEADER, ErrorCode, GatewayError},
    health::probe::{self, ProbeError},
    registry::roster::{Entry, Roster},
};

/// Workers asked at one time at most.
pub const ASKED_AT_ONCE_MAX: usize = 32;

/// For one worker's answer at most, connecting included.
pub const WORKER_TIMEOUT: Duration = Duration::from_secs(5);

/// For all answers at most: with 32 at a time that asks 192 workers that hang.
pub const FANOUT_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest answer of one worker in bytes; a longer one counts as a failure.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What to ask.
#[derive(Clone, Debug)]
pub struct Question {
    /// How.
    pub method: Method,
    /// Where; a worker that does not know a path (404) is asked at the next.
    pub paths: &'static [&'static str],
}

/// What one worker said.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Its id.
    pub id: String,
    /// Base URL.
    pub url: String,
    /// Whether it answered with 2xx.
    pub ok: bool,
    /// Requests in flight from this gateway.
    pub requests_active: usize,
    /// Its answer: JSON as it came, anything else as text. None without a complete 2xx.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Value>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Asks every registered worker.
pub async fn ask_all(roster: &Roster, question: Question) -> Response {
    let deadline = Instant::now() + FANOUT_TIMEOUT;
    let asked = roster.entries.iter().cloned().map(|entry| ask(entry, question.clone(), deadline));
    respond(&stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect::<Vec<_>>().await)
}

async fn ask(entry: Entry, question: Question, deadline: Instant) -> Outcome {
    let until = deadline.min(Instant::now() + WORKER_TIMEOUT);
    let said = timeout_at(until, put_question(&entry, &question)).await.unwrap_or(Err(ProbeError::Timeout));
    if let Err(error) = &said {
        tracing::debug!(worker = %entry.view.id, %error, "worker did not do what all were asked to");
    }
    let (answer, error) = match said {
        Ok(bytes) => (Some(value(&bytes)), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Outcome {
        id: entry.view.id.to_string(),
        url: entry.view.spec.url.clone(),
        ok: error.is_none(),
        requests_active: entry.worker.in_flight(),
        answer,
        error,
    }
}

async fn put_question(entry: &Entry, question: &Question) -> Result<Bytes, ProbeError> {
    let mut last = ProbeError::Status(StatusCode::NOT_FOUND);
    for path in question.paths {
        match probe::exchange(&entry.worker, question.method.clone(), path, ANSWER_BYTES_MAX).await {
            Err(error @ ProbeError::Status(StatusCode::NOT_FOUND)) => last = error,
            said => return said,
        }
    }
    Err(last)
}

fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(bytes)))
}

fn respond(outcomes: &[Outcome]) -> Response {
    let failed = outcomes.iter().filter(|outcome| !outcome.ok).count();
    let status = match (failed, outcomes.len() - failed) {
        (0, _) => StatusCode::OK,
        (_, 0) => StatusCode::BAD_GATEWAY,
        _ => StatusCode::PARTIAL_CONTENT,
    };
    let mut body = json!({ "workers": outcomes, "succeeded": outcomes.len() - failed, "failed": failed });
    if status != StatusCode::BAD_GATEWAY {
        return (status, Json(body)).into_response();
    }
    let error = GatewayError::WorkersFailed;
    body["error"] = error.object();
    let mut response = (error.status(), Json(body)).into_response();
    response.headers_mut().insert(ERROR_CODE_HEADER, HeaderValue::from_static(error.code()));
    response.extensions_mut().insert(ErrorCode(error.code()));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn the_status_says_how_many_succeeded() {
        let outcome = |ok: bool| Outcome {
            id: "w".into(),
            url: "http://w".into(),
            ok,
            requests_active: 0,
            answer: ok.then(|| json!(1)),
            error: (!ok).then(|| "no".into()),
        };
        for (case, outcomes, status, code) in [
            ("no worker", vec![], 200, None),
            ("all", vec![true, true], 200, None),
            ("some", vec![true, false], 206, None),
            ("none", vec![false, false], 502, Some("workers_failed")),
        ] {
            let response = respond(&outcomes.iter().copied().map(outcome).collect::<Vec<_>>());
            assert_eq!(response.status().as_u16(), status, "{case}");
            assert_eq!(response.headers().get(ERROR_CODE_HEADER).map(|code| code.to_str().unwrap()), code, "{case}");
            let bytes = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            let body: Value = serde_json::from_slice(&bytes).unwrap();
            let succeeded = outcomes.iter().filter(|ok| **ok).count();
            assert_eq!(body["workers"].as_array().unwrap().len(), outcomes.len(), "{case}");
            assert_eq!(body["succeeded"], json!(succeeded), "{case}");
            assert_eq!(body["error"]["code"].as_str(), code, "{case}");
        }
    }

    #[test]
    fn answers_are_shown_as_they_came() {
        assert_eq!(value(br#"{"a":[1]}"#), json!({"a": [1]}));
        assert_eq!(value(b"Cache flushed.\n"), json!("Cache flushed.\n"));
        assert_eq!(value(b""), json!(""));
    }
}
