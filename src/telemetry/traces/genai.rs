//! The `gen_ai.*` attributes, all of them, by the semantic conventions for generative AI (in development as of 1.37).
//!
//! Of contents (messages, prompts, answers) there are none, on purpose.

use opentelemetry::KeyValue;

/// What is asked for. Every route speaks a protocol of OpenAI's or one like it, which is what the provider means here.
#[must_use]
pub fn request(route: &'static str, model: &str, is_stream: bool) -> [KeyValue; 4] {
    [
        KeyValue::new("gen_ai.operation.name", operation(route)),
        KeyValue::new("gen_ai.provider.name", "openai"),
        KeyValue::new("gen_ai.request.model", model.to_owned()),
        KeyValue::new("gen_ai.request.stream", is_stream),
    ]
}

/// What it cost, as the worker reports it.
#[must_use]
pub fn usage(prompt: u64, cached: u64, completion: u64) -> [KeyValue; 3] {
    let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    [
        KeyValue::new("gen_ai.usage.input_tokens", tokens(prompt)),
        KeyValue::new("gen_ai.usage.cache_read.input_tokens", tokens(cached)),
        KeyValue::new("gen_ai.usage.output_tokens", tokens(completion)),
    ]
}

fn operation(route: &str) -> &'static str {
    match route {
        "/v1/completions" | "/generate" => "text_completion",
        "/v1/embeddings" => "embeddings",
        "/v1/rerank" | "/rerank" => "rerank",
        "/v1/classify" => "classify",
        _ => "chat",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_operations() {
        for (route, expected) in [
            ("/v1/chat/completions", "chat"),
            ("/v1/responses", "chat"),
            ("/v1/messages", "chat"),
            ("/v1/completions", "text_completion"),
            ("/v1/embeddings", "embeddings"),
        ] {
            assert_eq!(operation(route), expected, "{route}");
        }
    }
}
