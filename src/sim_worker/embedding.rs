//! Embeddings, reranking and classification: numbers drawn from a hash of the input.

use base64::Engine as _;
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    engine::Ticket,
    http::{ApiError, Body, ok},
    prompt::{self, Draws},
};

/// The longest vector that a request may ask for.
const DIMENSIONS_MAX: u32 = 8192;

/// Labels of `/v1/classify`.
const LABELS: [&str; 3] = ["negative", "neutral", "positive"];

#[derive(Debug, Deserialize)]
struct EmbeddingRequest<'a> {
    model: Option<String>,
    #[serde(borrow)]
    input: &'a RawValue,
    #[serde(default)]
    encoding_format: Encoding,
    dimensions: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    /// Little-endian 32-bit floats.
    Base64,
}

/// `/v1/embeddings`: a unit vector for each input.
pub(super) async fn embed(mut ticket: Ticket, body: &[u8]) -> Response<Body> {
    let answered = try_embed(&mut ticket, body).await;
    settle(ticket, answered)
}

async fn try_embed(ticket: &mut Ticket, body: &[u8]) -> Result<Value, ApiError> {
    let asked: EmbeddingRequest<'_> = parse(body)?;
    let model = ticket.engine.model(asked.model.as_deref())?;
    let dimensions = asked.dimensions.unwrap_or(ticket.engine.args.embedding_dimensions);
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        return Err(ApiError::bad_request(&format!("`dimensions` must be 1 to {DIMENSIONS_MAX}")));
    }
    let texts = prompt::texts(asked.input);
    let tokens = prefill(ticket, texts.iter().map(String::as_str)).await?;
    let data: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let embedding = encode(&unit_vector(prompt::seed(&model, text), dimensions), asked.encoding_format);
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(json!({"object": "list", "model": model, "data": data, "usage": usage}))
}

#[derive(Debug, Deserialize)]
struct RerankRequest {
    model: Option<String>,
    query: String,
    documents: Vec<Value>,
    top_n: Option<usize>,
    #[serde(default)]
    return_documents: bool,
}

/// `/v1/rerank` and `/rerank`: documents by falling relevance, a number in [0, 1).
pub(super) async fn rerank(mut ticket: Ticket, body: &[u8]) -> Response<Body> {
    let answered = try_rerank(&mut ticket, body).await;
    settle(ticket, answered)
}

async fn try_rerank(ticket: &mut Ticket, body: &[u8]) -> Result<Value, ApiError> {
    let asked: RerankRequest = parse(body)?;
    let model = ticket.engine.model(asked.model.as_deref())?;
    let texts: Vec<_> = asked.documents.iter().map(text_of).collect();
    let tokens = prefill(ticket, texts.iter().map(String::as_str).chain([asked.query.as_str()])).await?;
    let mut scored: Vec<_> =
        texts.iter().map(|text| Draws(prompt::seed(&asked.query, text)).next_unit()).zip(0_usize..).collect();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored.truncate(asked.top_n.unwrap_or(usize::MAX));
    let results: Vec<_> = scored
        .into_iter()
        .map(|(score, index)| {
            let mut result = json!({"index": index, "relevance_score": score});
            if asked.return_documents {
                result["document"] = json!({"text": texts[index]});
            }
            result
        })
        .collect();
    let id = format!("rerank-{:016x}", prompt::seed(&model, &asked.query));
    Ok(json!({"id": id, "model": model, "results": results, "usage": {"total_tokens": tokens}}))
}

#[derive(Debug, Deserialize)]
struct ClassifyRequest<'a> {
    model: Option<String>,
    #[serde(borrow)]
    input: &'a RawValue,
}

/// `/v1/classify`: probabilities of three labels for each input.
pub(super) async fn classify(mut ticket: Ticket, body: &[u8]) -> Response<Body> {
    let answered = try_classify(&mut ticket, body).await;
    settle(ticket, answered)
}

async fn try_classify(ticket: &mut Ticket, body: &[u8]) -> Result<Value, ApiError> {
    let asked: ClassifyRequest<'_> = parse(body)?;
    let model = ticket.engine.model(asked.model.as_deref())?;
    let texts = prompt::texts(asked.input);
    let tokens = prefill(ticket, texts.iter().map(String::as_str)).await?;
    let data: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let mut draws = Draws(prompt::seed(&model, text));
            let weights = LABELS.map(|_| draws.next_unit() + f64::MIN_POSITIVE);
            let sum: f64 = weights.iter().sum();
            let best = (0..LABELS.len()).max_by(|a, b| weights[*a].total_cmp(&weights[*b])).unwrap_or(0);
            let probs = weights.map(|weight| weight / sum);
            json!({"index": index, "label": LABELS[best], "probs": probs, "num_classes": LABELS.len()})
        })
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0});
    Ok(json!({"object": "list", "model": model, "data": data, "usage": usage}))
}

fn parse<'a, R: Deserialize<'a>>(body: &'a [u8]) -> Result<R, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(&format!("request body: {error}")))
}

fn settle(ticket: Ticket, answered: Result<Value, ApiError>) -> Response<Body> {
    match answered {
        Ok(value) => {
            ticket.complete();
            ok(&value)
        }
        Err(error) => {
            ticket.refuse();
            error.respond()
        }
    }
}

async fn prefill(ticket: &mut Ticket, texts: impl Iterator<Item = &str>) -> Result<u32, ApiError> {
    let tokens = texts.map(prompt::tokens).fold(0, u32::saturating_add);
    ticket.prefill(tokens, &[]).await?;
    Ok(tokens)
}

fn text_of(document: &Value) -> String {
    let text = document.as_str().or_else(|| document.get("text").and_then(Value::as_str));
    text.map_or_else(|| document.to_string(), str::to_owned)
}

#[expect(clippy::cast_possible_truncation, reason = "32-bit floats are what embeddings are made of")]
fn unit_vector(seed: u64, dimensions: u32) -> Vec<f32> {
    let mut draws = Draws(seed);
    let values: Vec<f64> = (0..dimensions).map(|_| draws.next_unit() * 2.0 - 1.0).collect();
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    values.into_iter().map(|v| (v / norm) as f32).collect()
}

fn encode(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
            Value::from(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn vectors_are_unit_and_depend_on_the_input_alone() {
        for dimensions in [1, 3, 64, 1024] {
            let vector = unit_vector(7, dimensions);
            let norm: f32 = vector.iter().map(|v| v * v).sum();
            assert!((norm - 1.0).abs() < 1e-3, "{dimensions}: {norm}");
            assert_eq!(vector, unit_vector(7, dimensions));
            assert!(dimensions == 1 || vector != unit_vector(8, dimensions));
        }
    }

    #[test]
    fn base64_holds_the_same_floats() {
        let vector = unit_vector(1, 5);
        let encoded = encode(&vector, Encoding::Base64);
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_str().unwrap()).unwrap();
        let decoded: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(decoded, vector);
    }
}
