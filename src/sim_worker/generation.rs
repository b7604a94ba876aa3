//! The routes that generate text: one life of a request, with a [`Shape`] for each API.

use std::io;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt as _, Either, StreamBody};
use hyper::body::Frame;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{
    decode::{Decoding, Summary},
    engine::{Engine, Ticket},
    http::{ApiError, Body, ok},
    openai::{Chat, Completion},
    other::{Generate, Messages},
    prompt,
    responses::Responses,
};

/// How one API spells an answer, whole or as server-sent events.
pub(super) trait Shape: Send {
    /// The whole answer.
    fn whole(&self, engine: &Engine, about: &Summary, text: &str) -> Value;
    /// Frames before the first token.
    fn opening(&mut self, about: &Summary, out: &mut String);
    /// The frame of one token.
    fn delta(&mut self, about: &Summary, token: &str, out: &mut String);
    /// Frames after the last token.
    fn closing(&mut self, engine: &Engine, about: &Summary, text: &str, out: &mut String);
}

/// The fields that the APIs have between them; others are ignored.
#[derive(Debug, Deserialize)]
struct Asked<'a> {
    model: Option<String>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    sampling_params: Option<SamplingParams>,
    #[serde(borrow)]
    messages: Option<Vec<prompt::Message<'a>>>,
    #[serde(borrow)]
    system: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
struct SamplingParams {
    max_new_tokens: Option<u32>,
}

/// Answers a request to a generating route.
pub(super) async fn generate(ticket: Ticket, path: &str, body: &[u8]) -> Response<Body> {
    let planned = serde_json::from_slice::<Asked<'_>>(body)
        .map_err(|error| ApiError::bad_request(&format!("request body: {error}")))
        .and_then(|asked| Ok((ticket.engine.model(asked.model.as_deref())?, prompt_of(path, &asked)?, asked)));
    let (model, prompt, asked) = match planned {
        Ok(planned) => planned,
        Err(error) => {
            ticket.refuse();
            return error.respond();
        }
    };
    let tokens_max = asked
        .max_completion_tokens
        .or(asked.max_tokens)
        .or(asked.max_output_tokens)
        .or(asked.sampling_params.as_ref().and_then(|params| params.max_new_tokens));
    let includes_usage = asked.stream_options.as_ref().is_some_and(|options| options.include_usage);
    let mut decoding = match Decoding::start(ticket, model, &prompt, tokens_max).await {
        Ok(decoding) => decoding,
        Err(error) => return error.respond(),
    };
    let shape = shape_of(path, includes_usage, decoding.engine());
    if asked.stream {
        return stream(decoding, shape);
    }
    let text = decoding.all().await;
    let answer = shape.whole(decoding.engine(), decoding.about(), &text);
    decoding.complete();
    ok(&answer)
}

fn prompt_of(path: &str, asked: &Asked<'_>) -> Result<String, ApiError> {
    let missing = |field: &str| ApiError::bad_request(&format!("`{field}` is missing"));
    let only_text = |field: &str, value: Option<&RawValue>| {
        let texts = prompt::texts(value.ok_or_else(|| missing(field))?);
        match texts.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(ApiError::bad_request(&format!("this worker takes one `{field}` a request"))),
        }
    };
    match path {
        "/v1/completions" => only_text("prompt", asked.prompt),
        "/generate" => only_text("text", asked.text),
        "/v1/responses" => {
            let input = asked.input.ok_or_else(|| missing("input"))?;
            if let Ok(messages) = serde_json::from_str::<Vec<prompt::Message<'_>>>(input.get()) {
                return Ok(prompt::of_chat(&messages));
            }
            let mut prompt = String::new();
            prompt::push_content(&mut prompt, input);
            Ok(prompt)
        }
        _ => {
            let mut prompt = String::new();
            if let Some(system) = asked.system {
                prompt.push_str("system: ");
                prompt::push_content(&mut prompt, system);
                prompt.push('\n');
            }
            let messages = asked.messages.as_ref().ok_or_else(|| missing("messages"))?;
            if messages.is_empty() {
                return Err(ApiError::bad_request("`messages` is empty"));
            }
            Ok(prompt + &prompt::of_chat(messages))
        }
    }
}

fn shape_of(path: &str, includes_usage: bool, engine: &Engine) -> Box<dyn Shape> {
    match path {
        "/v1/completions" => Box::new(Completion { includes_usage }),
        "/v1/responses" => Box::new(Responses::new(engine)),
        "/v1/messages" => Box::new(Messages),
        "/generate" => Box::new(Generate::default()),
        _ => Box::new(Chat { includes_usage }),
    }
}

/// Where a stream is.
enum Stage {
    Opening,
    Tokens,
}

struct Streaming {
    decoding: Decoding,
    shape: Box<dyn Shape>,
    text: String,
}

/// The answer as server-sent events: one HTTP chunk a token.
fn stream(decoding: Decoding, shape: Box<dyn Shape>) -> Response<Body> {
    let streaming = Streaming { decoding, shape, text: String::new() };
    let frames = futures_util::stream::unfold(Some((streaming, Stage::Opening)), |state| async {
        let (streaming, stage) = state?;
        let (frame, next) = next_frame(streaming, stage).await;
        Some((frame.map(|text| Frame::data(Bytes::from(text))), next))
    });
    let mut response = Response::new(Either::Right(StreamBody::new(frames).boxed_unsync()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

type Step = (io::Result<String>, Option<(Streaming, Stage)>);

/// One frame and what remains; the request is settled when nothing remains.
async fn next_frame(mut state: Streaming, stage: Stage) -> Step {
    let mut out = String::with_capacity(256);
    let Streaming { decoding, shape, text } = &mut state;
    match stage {
        Stage::Opening => {
            shape.opening(decoding.about(), &mut out);
            // An API without an opening frame goes straight to its first token: an empty chunk would end the body.
            if !out.is_empty() {
                return (Ok(out), Some((state, Stage::Tokens)));
            }
            Box::pin(next_frame(state, Stage::Tokens)).await
        }
        Stage::Tokens => match decoding.next().await {
            Ok(Some(token)) => {
                text.push_str(token);
                shape.delta(decoding.about(), token, &mut out);
                (Ok(out), Some((state, Stage::Tokens)))
            }
            Ok(None) => {
                shape.closing(decoding.engine(), decoding.about(), text, &mut out);
                // Handing the last frame over is all that this side can see of the end.
                state.decoding.complete();
                (Ok(out), None)
            }
            Err(cut) => {
                state.decoding.refuse();
                (Err(io::Error::other(cut)), None)
            }
        },
    }
}

/// Appends `data: {value}` and an empty line, with an `event:` line before it when there is a name for it.
pub(super) fn push_event(out: &mut String, event: Option<&str>, value: &Value) {
    use std::fmt::Write as _;
    // Writing to a string does not fail.
    let _ = match event {
        Some(event) => write!(out, "event: {event}\ndata: {value}\n\n"),
        None => write!(out, "data: {value}\n\n"),
    };
}
