//! Prompts and the text that answers them: a tokenizer of 4 bytes a token, and words drawn from a hash.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of prompt that count as one token.
pub(super) const TOKEN_BYTES: usize = 4;

/// Tokens of `text`, the last one possibly shorter; at least 1.
pub(super) fn tokens(text: &str) -> u32 {
    u32::try_from(text.len().div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX).max(1)
}

/// One message of a chat.
#[derive(Debug, Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// The chat as one prompt: each message as `role: content` and a line feed, then `assistant: `.
pub(super) fn of_chat(messages: &[Message<'_>]) -> String {
    let mut prompt = String::with_capacity(messages.iter().map(|m| m.content.map_or(0, |c| c.get().len()) + 16).sum());
    for message in messages {
        prompt.push_str(&message.role);
        prompt.push_str(": ");
        if let Some(content) = message.content {
            push_content(&mut prompt, content);
        }
        prompt.push('\n');
    }
    prompt.push_str("assistant: ");
    prompt
}

/// The text of a `content` or `input` field: a string, or a list of parts whose `text` counts; anything else as it is.
pub(super) fn push_content(prompt: &mut String, content: &RawValue) {
    #[derive(Deserialize)]
    struct Part<'a> {
        #[serde(borrow)]
        text: Option<Cow<'a, str>>,
    }
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    let raw = content.get();
    if raw.starts_with('"')
        && let Ok(Text(text)) = serde_json::from_str(raw)
    {
        prompt.push_str(&text);
    } else if raw.starts_with('[')
        && let Ok(parts) = serde_json::from_str::<Vec<Part<'_>>>(raw)
    {
        for part in parts {
            prompt.push_str(part.text.as_deref().unwrap_or_default());
        }
    } else {
        prompt.push_str(raw);
    }
}

/// The texts of an `input` or `prompt` field: one string, several, or token ids (kept as their digits).
pub(super) fn texts(input: &RawValue) -> Vec<String> {
    let raw = input.get();
    if let Ok(text) = serde_json::from_str::<String>(raw) {
        return vec![text];
    }
    match serde_json::from_str::<Vec<&RawValue>>(raw) {
        Ok(items) if items.iter().all(|item| item.get().starts_with(['"', '['])) && !items.is_empty() => items
            .iter()
            .map(|item| serde_json::from_str::<String>(item.get()).unwrap_or_else(|_| item.get().to_owned()))
            .collect(),
        _ => vec![raw.to_owned()],
    }
}

/// The seed of everything said about `text` by `model`.
pub(super) fn seed(model: &str, text: &str) -> u64 {
    xxh3_64_with_seed(text.as_bytes(), xxh3_64_with_seed(model.as_bytes(), 0))
}

/// SplitMix64 (Steele, Lea and Flood 2014, figure 17): an endless sequence from one seed.
#[derive(Clone, Debug)]
pub(super) struct Draws(pub(super) u64);

impl Draws {
    /// The next 64 bits.
    pub(super) fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number in [0, 1), from the upper 53 bits.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit the mantissa")]
    pub(super) fn next_unit(&mut self) -> f64 {
        (self.next_bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Token `index` of an answer: a word, with a space before it unless it is the first. Needs no JSON escaping.
pub(super) fn token(draws: &mut Draws, index: u32) -> &'static str {
    // The low 5 bits choose one of 32 words.
    let word = WORDS[(draws.next_bits() & 31) as usize];
    if index == 0 { &word[1..] } else { word }
}

const WORDS: [&str; 32] = [
    " a", " and", " answer", " block", " cache", " cluster", " each", " every", " fast", " from", " gateway", " has",
    " in", " is", " mesh", " model", " node", " of", " one", " prefix", " request", " routes", " some", " stream",
    " that", " the", " to", " token", " two", " with", " worker", " zone",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn inputs_become_texts() {
        for (case, json, expected) in [
            ("string", r#""a\"b""#, vec!["a\"b"]),
            ("strings", r#"["a","b"]"#, vec!["a", "b"]),
            ("token ids", "[1,2,3]", vec!["[1,2,3]"]),
            ("lists of token ids", "[[1],[2,3]]", vec!["[1]", "[2,3]"]),
            ("empty list", "[]", vec!["[]"]),
        ] {
            let raw: Box<RawValue> = serde_json::from_str(json).unwrap();
            assert_eq!(texts(&raw), expected, "{case}");
        }
    }

    #[test]
    fn chats_become_prompts() {
        for (case, json, expected) in [
            ("string", r#"[{"role":"user","content":"hi\n"}]"#, "user: hi\n\nassistant: "),
            (
                "parts",
                r#"[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url"}]}]"#,
                "user: x\nassistant: ",
            ),
            ("null", r#"[{"role":"assistant","content":null}]"#, "assistant: \nassistant: "),
            ("extra keys", r#"[{"role":"user","name":"n","content":"hi"}]"#, "user: hi\nassistant: "),
        ] {
            let messages: Vec<Message<'_>> = serde_json::from_str(json).unwrap();
            assert_eq!(of_chat(&messages), expected, "{case}");
        }
    }

    #[test]
    fn tokens_are_four_bytes() {
        for (text, expected) in [("", 1), ("abcd", 1), ("abcde", 2)] {
            assert_eq!(tokens(text), expected, "{text}");
        }
    }
}
