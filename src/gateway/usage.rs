//! What a worker's answer says of tokens, read while it passes.
//!
//! A JSON answer ends with its `usage`; an event stream has it in a late event, where the client or the engine asks for
//! it. Nothing is parsed but that object: within JSON text a quote is always escaped, so `"usage"` with both its quotes
//! is a key, or a whole string that no `{` follows. The routes' spellings are those of OpenAI (`prompt_tokens`), of
//! Responses and Messages (`input_tokens`).

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use memchr::{memchr, memmem, memrchr};
use serde::Deserialize;

/// The longest end of an event that is kept until the rest of it comes, in bytes; of a longer one nothing is read.
const CARRY_BYTES_MAX: usize = 8 << 10;

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Usage {
    /// Of the prompt.
    pub(crate) prompt: u64,
    /// Of those, the ones that a cache had.
    pub(crate) cached: u64,
    /// Of the answer.
    pub(crate) completion: u64,
}

#[derive(Deserialize)]
struct Told {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Option<u64>,
    #[serde(alias = "output_tokens")]
    completion_tokens: Option<u64>,
    #[serde(alias = "input_tokens_details")]
    prompt_tokens_details: Option<Details>,
    cache_read_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

const KEY: &[u8] = b"\"usage\"";

/// Made once: most events have no usage, and every event of every stream is asked.
static KEY_FINDER: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(KEY));
static DATA_FINDER: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("data:"));

/// The last usage in a text; none when it has none that can be read.
pub(crate) fn find(text: &[u8]) -> Option<Usage> {
    let at = memmem::rfind(text, KEY)?;
    let rest = text[at + KEY.len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    // What follows the object is not ours to read.
    let told = serde_json::Deserializer::from_slice(rest).into_iter::<Option<Told>>().next()?.ok()??;
    let cached = told.prompt_tokens_details.and_then(|details| details.cached_tokens).or(told.cache_read_input_tokens);
    Some(Usage {
        prompt: told.prompt_tokens.unwrap_or(0),
        cached: cached.unwrap_or(0),
        completion: told.completion_tokens.unwrap_or(0),
    })
}

/// Reads along with an event stream.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    usage: Usage,
    is_told: bool,
    /// Events with data.
    events: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    /// The beginning of a line whose end has not come.
    carry: Vec<u8>,
    /// The line is too long: skipped up to its end.
    is_skipping: bool,
}

impl Tally {
    /// The next bytes.
    pub(crate) fn on_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
        let mut bytes = bytes;
        if self.is_skipping || !self.carry.is_empty() {
            let Some(end) = memchr(b'\n', bytes) else { return self.keep(bytes) };
            let (line, rest) = bytes.split_at(end + 1);
            self.keep(line);
            let line = std::mem::take(&mut self.carry);
            self.on_lines(&line);
            self.is_skipping = false;
            bytes = rest;
        }
        let whole = memrchr(b'\n', bytes).map_or(0, |end| end + 1);
        self.on_lines(&bytes[..whole]);
        self.keep(&bytes[whole..]);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.is_skipping |= self.carry.len() + bytes.len() > CARRY_BYTES_MAX;
        if self.is_skipping {
            self.carry = Vec::new();
        } else {
            self.carry.extend_from_slice(bytes);
        }
    }

    fn on_lines(&mut self, lines: &[u8]) {
        self.events += DATA_FINDER.find_iter(lines).filter(|&at| at == 0 || lines[at - 1] == b'\n').count() as u64;
        // Forward first: that search is vectorised, the one from the end is not.
        if KEY_FINDER.find(lines).is_some()
            && let Some(usage) = find(lines)
        {
            // Messages tells the prompt in its first event and the answer in its last.
            let Usage { prompt, cached, completion } = &mut self.usage;
            *prompt = usage.prompt.max(*prompt);
            *cached = usage.cached.max(*cached);
            *completion = usage.completion.max(*completion);
            self.is_told = true;
        }
    }

    /// What was told; none when nothing was.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.is_told.then_some(self.usage)
    }

    /// Time per output token after the first; none for fewer than two.
    pub(crate) fn per_token(&self) -> Option<Duration> {
        let told = self.usage().map(|usage| usage.completion).filter(|&tokens| tokens > 0);
        let after_first = told.unwrap_or(self.events).checked_sub(1).filter(|&tokens| tokens > 0)?;
        let span = self.last?.saturating_duration_since(self.first?);
        Some(span.div_f64(after_first as f64))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn usage(prompt: u64, cached: u64, completion: u64) -> Usage {
        Usage { prompt, cached, completion }
    }

    #[test]
    fn usage_is_found_in_answers_of_every_kind() {
        for (case, text, expected) in [
            (
                "chat",
                r#"{"choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}"}}],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}"#,
                Some(usage(5, 4, 2)),
            ),
            (
                "responses",
                r#"{"usage" : {"input_tokens":5,"output_tokens":2,"input_tokens_details":{"cached_tokens":1}}}"#,
                Some(usage(5, 1, 2)),
            ),
            (
                "messages",
                r#"{"usage":{"input_tokens":5,"output_tokens":2,"cache_read_input_tokens":3}}"#,
                Some(usage(5, 3, 2)),
            ),
            ("embeddings", r#"{"usage":{"prompt_tokens":5,"total_tokens":5}}"#, Some(usage(5, 0, 0))),
            ("null details", r#"{"usage":{"prompt_tokens":5,"prompt_tokens_details":null}}"#, Some(usage(5, 0, 0))),
            ("null", r#"{"usage":null}"#, None),
            ("a string of that name", r#"{"role":"usage"}"#, None),
            ("only in the text", r#"{"content":"\"usage\":{\"prompt_tokens\":9}"}"#, None),
            ("cut", r#"{"usage":{"prompt_tokens":5"#, None),
            ("negative", r#"{"usage":{"prompt_tokens":-5}}"#, None),
            ("nothing", "", None),
        ] {
            assert_eq!(find(text.as_bytes()), expected, "{case}");
        }
    }

    #[test]
    fn streams_are_tallied_wherever_they_are_cut() {
        let text = "event: x\ndata: {\"usage\":null,\"t\":\"data: \"}\n\ndata: {\"delta\":1}\r\n\r\n: ping\n\n\
                    data: {\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
        for size in 1..=text.len() {
            let (mut tally, start) = (Tally::default(), Instant::now());
            for bytes in text.as_bytes().chunks(size) {
                tally.on_bytes(bytes, start);
            }
            assert_eq!((tally.usage(), tally.events), (Some(usage(5, 0, 3)), 4), "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_too_long_is_skipped_and_costs_no_memory() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        for _ in 0..100 {
            tally.on_bytes(&[b'x'; 1000], now);
            assert!(tally.carry.len() <= CARRY_BYTES_MAX);
        }
        tally.on_bytes(b"\"usage\":{\"prompt_tokens\":1}\ndata: {\"usage\":{\"prompt_tokens\":2}}\n\n", now);
        assert_eq!(tally.usage(), Some(usage(2, 0, 0)));
    }

    #[test]
    fn time_per_token_is_of_those_after_the_first() {
        let start = Instant::now();
        for (case, pieces, expected) in [
            ("nothing", &[][..], None),
            ("one event", &["data: 1\n\n"], None),
            ("three events", &["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"], Some(SECOND)),
            (
                "told",
                &["data: 1\n\n", "data: 2\n\n", "data: {\"usage\":{\"completion_tokens\":5}}\n\n"],
                Some(SECOND / 2),
            ),
            ("two turns of one prompt", &["data: 1\n\ndata: 2\n\n", "data: 3\n\n"], Some(SECOND / 2)),
        ] {
            let mut tally = Tally::default();
            for (second, piece) in (0..).zip(pieces) {
                tally.on_bytes(piece.as_bytes(), start + SECOND * second);
            }
            assert_eq!(tally.per_token(), expected, "{case}");
        }
    }
}
