//! `/v1/messages` as Anthropic spells it, and `/generate` as SGLang does.

use serde_json::{Value, json};

use super::{
    decode::Summary,
    engine::Engine,
    generation::{Shape, push_event},
    openai::finish_reason,
};

/// `/v1/messages`.
#[derive(Debug)]
pub(super) struct Messages;

impl Shape for Messages {
    fn whole(&self, _engine: &Engine, about: &Summary, text: &str) -> Value {
        let mut message = message(about, about.completion_tokens);
        message["content"] = json!([{"type": "text", "text": text}]);
        message["stop_reason"] = Value::from(stop_reason(about));
        message
    }

    fn opening(&mut self, about: &Summary, out: &mut String) {
        let start = json!({"type": "message_start", "message": message(about, 0)});
        push_event(out, Some("message_start"), &start);
        let block = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}});
        push_event(out, Some("content_block_start"), &block);
    }

    fn delta(&mut self, _about: &Summary, token: &str, out: &mut String) {
        let delta = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": token}});
        push_event(out, Some("content_block_delta"), &delta);
    }

    fn closing(&mut self, _engine: &Engine, about: &Summary, _text: &str, out: &mut String) {
        push_event(out, Some("content_block_stop"), &json!({"type": "content_block_stop", "index": 0}));
        let delta = json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason(about), "stop_sequence": null},
            "usage": {"output_tokens": about.completion_tokens},
        });
        push_event(out, Some("message_delta"), &delta);
        push_event(out, Some("message_stop"), &json!({"type": "message_stop"}));
    }
}

fn message(about: &Summary, output_tokens: u32) -> Value {
    json!({
        "id": format!("msg_{:016x}", about.id), "type": "message", "role": "assistant", "model": about.model,
        "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": {
            "input_tokens": about.prompt_tokens - about.cached_tokens, "output_tokens": output_tokens,
            "cache_read_input_tokens": about.cached_tokens, "cache_creation_input_tokens": 0,
        },
    })
}

fn stop_reason(about: &Summary) -> &'static str {
    if about.is_cut_by_length { "max_tokens" } else { "end_turn" }
}

/// `/generate`; each frame of its stream repeats the text so far.
#[derive(Debug, Default)]
pub(super) struct Generate {
    text: String,
    tokens: u32,
}

impl Shape for Generate {
    fn whole(&self, _engine: &Engine, about: &Summary, text: &str) -> Value {
        generated(about, text, about.completion_tokens, &json!({"type": finish_reason(about)}))
    }

    fn opening(&mut self, _about: &Summary, _out: &mut String) {}

    fn delta(&mut self, about: &Summary, token: &str, out: &mut String) {
        self.text.push_str(token);
        self.tokens += 1;
        let is_last = self.tokens == about.completion_tokens;
        let reason = if is_last { json!({"type": finish_reason(about)}) } else { Value::Null };
        push_event(out, None, &generated(about, &self.text, self.tokens, &reason));
    }

    fn closing(&mut self, _engine: &Engine, _about: &Summary, _text: &str, out: &mut String) {
        out.push_str("data: [DONE]\n\n");
    }
}

fn generated(about: &Summary, text: &str, tokens: u32, reason: &Value) -> Value {
    json!({"text": text, "meta_info": {
        "id": format!("{:016x}", about.id), "finish_reason": reason, "prompt_tokens": about.prompt_tokens,
        "completion_tokens": tokens, "cached_tokens": about.cached_tokens,
    }})
}
