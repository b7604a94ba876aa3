//! `/v1/responses`, and the responses kept for being asked for by id.

use std::{
    collections::{HashMap, VecDeque},
    sync::PoisonError,
};

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    decode::Summary,
    engine::Engine,
    generation::{Shape, push_event},
    http::{ApiError, Body, CREATED, ok},
};

/// Responses kept; the oldest leaves when one more comes.
const STORED_MAX: usize = 1024;

/// The newest responses of this worker.
#[derive(Debug, Default)]
pub(super) struct Stored {
    by_id: HashMap<String, Value>,
    order: VecDeque<String>,
}

impl Stored {
    fn keep(&mut self, id: String, response: Value) {
        while self.order.len() >= STORED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.by_id.insert(id, response);
    }

    fn forget(&mut self, id: &str) -> bool {
        self.order.retain(|kept| kept != id);
        self.by_id.remove(id).is_some()
    }
}

/// Answers `GET` and `DELETE /v1/responses/{id}` and `POST /v1/responses/{id}/cancel`.
pub(super) fn answer_stored(engine: &Engine, method: &Method, rest: &str) -> Response<Body> {
    let (id, wants_cancel) = match rest.strip_suffix("/cancel") {
        Some(id) => (id, true),
        None => (rest, false),
    };
    let mut stored = engine.responses.lock().unwrap_or_else(PoisonError::into_inner);
    let found = match (method, wants_cancel) {
        // An answer is complete before it can be asked for, so there is nothing left to cancel.
        (&Method::GET, false) | (&Method::POST, true) => stored.by_id.get(id).cloned(),
        (&Method::DELETE, false) => stored.forget(id).then(|| json!({"id": id, "object": "response", "deleted": true})),
        _ => None,
    };
    match found {
        Some(value) => ok(&value),
        None => {
            ApiError::new(StatusCode::NOT_FOUND, "response_not_found", &format!("no response `{id}` here")).respond()
        }
    }
}

/// `/v1/responses`. Ids are unlike those of any other worker, so that asking the wrong one shows.
#[derive(Debug)]
pub(super) struct Responses {
    id: String,
    sequence: u64,
}

impl Responses {
    pub(super) fn new(engine: &Engine) -> Self {
        let id = xxh3_64_with_seed(engine.name.as_bytes(), engine.next_serial());
        Self { id: format!("resp_{id:016x}"), sequence: 0 }
    }

    fn push(&mut self, out: &mut String, event: &str, mut value: Value) {
        value["type"] = Value::from(event);
        value["sequence_number"] = Value::from(self.sequence);
        self.sequence += 1;
        push_event(out, Some(event), &value);
    }

    fn response(&self, about: &Summary, text: Option<&str>) -> Value {
        let (status, output, usage) = match text {
            Some(text) => ("completed", json!([self.item(text)]), usage(about)),
            None => ("in_progress", json!([]), Value::Null),
        };
        json!({
            "id": self.id, "object": "response", "created_at": CREATED, "status": status, "model": about.model,
            "output": output, "usage": usage, "error": null, "incomplete_details": null, "instructions": null,
            "metadata": {}, "parallel_tool_calls": true, "tool_choice": "auto", "tools": [],
            "temperature": 1.0, "top_p": 1.0,
        })
    }

    fn item(&self, text: &str) -> Value {
        self.item_with("completed", &json!([part(text)]))
    }

    fn item_with(&self, status: &str, content: &Value) -> Value {
        json!({"type": "message", "id": self.item_id(), "status": status, "role": "assistant", "content": content})
    }

    fn item_id(&self) -> String {
        self.id.replacen("resp_", "msg_", 1)
    }

    fn keep(&self, engine: &Engine, response: Value) {
        engine.responses.lock().unwrap_or_else(PoisonError::into_inner).keep(self.id.clone(), response);
    }
}

impl Shape for Responses {
    fn whole(&self, engine: &Engine, about: &Summary, text: &str) -> Value {
        let response = self.response(about, Some(text));
        self.keep(engine, response.clone());
        response
    }

    fn opening(&mut self, about: &Summary, out: &mut String) {
        let started = self.response(about, None);
        self.push(out, "response.created", json!({"response": started}));
        self.push(out, "response.in_progress", json!({"response": started}));
        let item = self.item_with("in_progress", &json!([]));
        self.push(out, "response.output_item.added", json!({"output_index": 0, "item": item}));
        let place = json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0, "part": part("")});
        self.push(out, "response.content_part.added", place);
    }

    fn delta(&mut self, _about: &Summary, token: &str, out: &mut String) {
        let delta =
            json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0, "delta": token, "logprobs": []});
        self.push(out, "response.output_text.delta", delta);
    }

    fn closing(&mut self, engine: &Engine, about: &Summary, text: &str, out: &mut String) {
        let done =
            json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0, "text": text, "logprobs": []});
        self.push(out, "response.output_text.done", done);
        let place = json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0, "part": part(text)});
        self.push(out, "response.content_part.done", place);
        let item = self.item(text);
        self.push(out, "response.output_item.done", json!({"output_index": 0, "item": item}));
        let response = self.response(about, Some(text));
        self.keep(engine, response.clone());
        self.push(out, "response.completed", json!({"response": response}));
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage(about: &Summary) -> Value {
    json!({
        "input_tokens": about.prompt_tokens, "input_tokens_details": {"cached_tokens": about.cached_tokens},
        "output_tokens": about.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": about.prompt_tokens + about.completion_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_response_leaves() {
        let mut stored = Stored::default();
        for n in 0..=STORED_MAX {
            stored.keep(n.to_string(), Value::Null);
        }
        assert_eq!(stored.by_id.len(), STORED_MAX);
        assert!(!stored.by_id.contains_key("0"));
        assert!(stored.forget("1") && !stored.forget("1"));
        assert_eq!(stored.order.len(), stored.by_id.len());
    }
}
