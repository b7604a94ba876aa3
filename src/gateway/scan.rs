//! A borrowed scan of a request body: checks that it is JSON and finds the few members that routing needs.
//!
//! Nothing is built and nothing is changed: the worker gets the bytes that the client sent. The grammar is RFC 8259,
//! exactly: what passes here is JSON. Two departures, both on purpose: nesting is bounded by [`DEPTH_MAX`], and a
//! lone surrogate escape (`"\ud800"`), which the grammar allows, passes outside the members that we read.
//! Of a member that is there twice the last counts, as most parsers have it.

use std::{borrow::Cow, ops::Range};

/// Deepest nesting of arrays and objects, as in the parsers that workers use.
pub const DEPTH_MAX: u32 = 127;

/// What routing reads of a body.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Scan<'a> {
    /// Member `model`, escapes undone; none when missing or null.
    pub model: Option<Cow<'a, str>>,
    /// Member `stream` is `true`; anything else counts as `false`.
    pub stream: bool,
    /// Member `user`, when it is text.
    pub user: Option<Cow<'a, str>>,
    /// Member `previous_response_id`, when it is text.
    pub previous_response_id: Option<Cow<'a, str>>,
    /// Where the value of `messages` is.
    pub messages: Option<Range<usize>>,
    /// Where the value of `prompt` is.
    pub prompt: Option<Range<usize>>,
    /// Where the values of the other members are that a prompt is made of.
    pub parts: Parts,
}

/// Members that bring text before the messages, or instead of them, on the routes that have them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Parts {
    /// `tools`.
    pub tools: Option<Range<usize>>,
    /// `system` of `/v1/messages`.
    pub system: Option<Range<usize>>,
    /// `instructions` of `/v1/responses`.
    pub instructions: Option<Range<usize>>,
    /// `input` of `/v1/responses` and `/v1/embeddings`.
    pub input: Option<Range<usize>>,
    /// `text` of `/generate`.
    pub text: Option<Range<usize>>,
    /// `input_ids` of `/generate`.
    pub input_ids: Option<Range<usize>>,
    /// `query` of the rerank routes.
    pub query: Option<Range<usize>>,
}

/// Why a body was refused; the byte is counted from 0. Nothing was sent to a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The text breaks off.
    #[error("the body ends inside a JSON value")]
    Eof,
    /// This byte cannot stand here.
    #[error("invalid JSON at byte {0}")]
    Syntax(usize),
    /// The text is not UTF-8 (RFC 8259 §8.1).
    #[error("the body is not UTF-8 at byte {0}")]
    Utf8(usize),
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {DEPTH_MAX} levels at byte {0}")]
    Depth(usize),
    /// The value is JSON but no object.
    #[error("the body must be a JSON object")]
    NotObject,
    /// `model` is neither text nor null.
    #[error("`model` must be a string")]
    ModelNotText,
}

/// Scans a whole body, which must be one JSON object.
///
/// # Errors
///
/// Says what is wrong, and where. Bodies that are refused here would be refused by any strict parser.
pub fn scan(body: &[u8]) -> Result<Scan<'_>, ScanError> {
    let text = std::str::from_utf8(body).map_err(|error| ScanError::Utf8(error.valid_up_to()))?;
    let mut cursor = Cursor { text, bytes: body, at: 0 };
    let mut found = Found::default();
    cursor.skip_space();
    match cursor.peek() {
        Some(b'{') => cursor.top_object(&mut found)?,
        Some(_) => {
            cursor.skip_value(0)?;
            cursor.end()?;
            return Err(ScanError::NotObject);
        }
        None => return Err(ScanError::Eof),
    }
    cursor.end()?;
    found.into_scan(text)
}

/// A string as it stands between its quotes.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) range: Range<usize>,
    pub(super) is_escaped: bool,
}

impl Raw {
    pub(super) fn decode<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        let raw = &text[self.range.clone()];
        if self.is_escaped { unescape(raw).map(Cow::Owned) } else { Some(Cow::Borrowed(raw)) }
    }
}

/// Members found so far; the last one of a name wins.
#[derive(Default)]
struct Found {
    model: Member,
    stream: bool,
    user: Member,
    previous_response_id: Member,
    messages: Option<Range<usize>>,
    prompt: Option<Range<usize>>,
    parts: Parts,
}

#[derive(Clone, Default)]
enum Member {
    #[default]
    Missing,
    Text(Raw),
    Other,
}

impl Found {
    fn note(&mut self, key: &str, value: Range<usize>, string: Option<Raw>, cursor: &Cursor<'_>) {
        let member = |string: Option<Raw>| match string {
            Some(raw) => Member::Text(raw),
            None if &cursor.bytes[value.clone()] == b"null" => Member::Missing,
            None => Member::Other,
        };
        match key {
            "model" => self.model = member(string),
            "user" => self.user = member(string),
            "previous_response_id" => self.previous_response_id = member(string),
            "stream" => self.stream = &cursor.bytes[value] == b"true",
            "messages" => self.messages = Some(value),
            "prompt" => self.prompt = Some(value),
            "tools" => self.parts.tools = Some(value),
            "system" => self.parts.system = Some(value),
            "instructions" => self.parts.instructions = Some(value),
            "input" => self.parts.input = Some(value),
            "text" => self.parts.text = Some(value),
            "input_ids" => self.parts.input_ids = Some(value),
            "query" => self.parts.query = Some(value),
            _ => {}
        }
    }

    fn into_scan(self, text: &str) -> Result<Scan<'_>, ScanError> {
        let model = match self.model {
            Member::Missing => None,
            Member::Text(raw) => Some(raw.decode(text).ok_or(ScanError::ModelNotText)?),
            Member::Other => return Err(ScanError::ModelNotText),
        };
        let text_of = |member: Member| match member {
            Member::Text(raw) => raw.decode(text),
            Member::Missing | Member::Other => None,
        };
        let (user, previous_response_id) = (text_of(self.user), text_of(self.previous_response_id));
        let Self { stream, messages, prompt, parts, .. } = self;
        Ok(Scan { model, stream, user, previous_response_id, messages, prompt, parts })
    }
}

/// A place in a body; the walk over the prompt goes over it a second time.
pub(super) struct Cursor<'a> {
    pub(super) text: &'a str,
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl Cursor<'_> {
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn wrong(&self) -> ScanError {
        if self.at < self.bytes.len() { ScanError::Syntax(self.at) } else { ScanError::Eof }
    }

    pub(super) fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    pub(super) fn expect(&mut self, byte: u8) -> Result<(), ScanError> {
        if self.peek() != Some(byte) {
            return Err(self.wrong());
        }
        self.at += 1;
        Ok(())
    }

    /// Only white space may follow.
    fn end(&mut self) -> Result<(), ScanError> {
        self.skip_space();
        if self.at < self.bytes.len() { Err(ScanError::Syntax(self.at)) } else { Ok(()) }
    }

    fn top_object(&mut self, found: &mut Found) -> Result<(), ScanError> {
        self.expect(b'{')?;
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            let start = self.at;
            let string = if self.peek() == Some(b'"') { Some(self.string()?) } else { None };
            if string.is_none() {
                self.skip_value(1)?;
            }
            if let Some(name) = key.decode(self.text) {
                found.note(&name, start..self.at, string, self);
            }
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.wrong()),
            }
            self.skip_space();
        }
    }

    /// Skips one value that stands `depth` containers deep. Open containers are bits of `objects`, so that hostile
    /// nesting costs neither stack nor heap.
    pub(super) fn skip_value(&mut self, depth: u32) -> Result<(), ScanError> {
        let (mut objects, mut open) = (0_u128, 0_u32);
        loop {
            self.skip_space();
            match self.peek() {
                Some(opening @ (b'{' | b'[')) => {
                    if depth + open >= DEPTH_MAX {
                        return Err(ScanError::Depth(self.at));
                    }
                    self.at += 1;
                    self.skip_space();
                    let is_object = opening == b'{';
                    if self.peek() == Some(if is_object { b'}' } else { b']' }) {
                        self.at += 1;
                    } else {
                        objects = objects << 1 | u128::from(is_object);
                        open += 1;
                        if is_object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            if self.after_value(&mut objects, &mut open)? {
                return Ok(());
            }
        }
    }

    /// After a value: closes what ends here and moves to the next value. Whether the outermost value is complete.
    fn after_value(&mut self, objects: &mut u128, open: &mut u32) -> Result<bool, ScanError> {
        while *open > 0 {
            self.skip_space();
            let is_object = *objects & 1 == 1;
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    if is_object {
                        self.key()?;
                    }
                    return Ok(false);
                }
                Some(b'}') if is_object => self.at += 1,
                Some(b']') if !is_object => self.at += 1,
                _ => return Err(self.wrong()),
            }
            *objects >>= 1;
            *open -= 1;
        }
        Ok(true)
    }

    /// A member's name and colon.
    fn key(&mut self) -> Result<(), ScanError> {
        self.skip_space();
        self.string()?;
        self.skip_space();
        self.expect(b':')
    }

    fn scalar(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.wrong()),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), ScanError> {
        word.iter().try_for_each(|&byte| self.expect(byte))
    }

    /// `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`, RFC 8259 §6.
    fn number(&mut self) -> Result<(), ScanError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), ScanError> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.wrong()) } else { Ok(()) }
    }

    /// A string with its quotes; the range is without them.
    pub(super) fn string(&mut self) -> Result<Raw, ScanError> {
        self.expect(b'"')?;
        let start = self.at;
        let mut is_escaped = false;
        loop {
            self.at += plain_len(&self.bytes[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Raw { range: start..self.at - 1, is_escaped });
                }
                Some(b'\\') => {
                    is_escaped = true;
                    self.escape()?;
                }
                _ => return Err(self.wrong()),
            }
        }
    }

    fn escape(&mut self) -> Result<(), ScanError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.wrong());
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.wrong()),
        }
        Ok(())
    }
}

/// How many bytes from the start are neither quote, backslash nor control character: eight at a time, by the
/// bit tricks of "has less" and "has value" (Anderson, Bit Twiddling Hacks).
fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let zero_byte = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut len = 0;
    let (words, rest) = bytes.as_chunks::<8>();
    for chunk in words {
        let word = u64::from_le_bytes(*chunk);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let special = control | zero_byte(word ^ (ONES * 0x22)) | zero_byte(word ^ (ONES * 0x5c));
        if special != 0 {
            return len + special.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    len + rest.iter().take_while(|&&byte| byte >= 0x20 && byte != b'"' && byte != b'\\').count()
}

/// Undoes the escapes of a string that the scan accepted; none when it has a lone surrogate.
fn unescape(raw: &str) -> Option<String> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let (char, after) = escaped(&rest[at + 1..])?;
        out.push(char);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

/// The character behind a backslash, and what follows it; none for a lone surrogate.
pub(super) fn escaped(text: &str) -> Option<(char, &str)> {
    let mut chars = text.chars();
    let char = match chars.next()? {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => match hex4(&mut chars)? {
            high @ 0xd800..=0xdbff => {
                chars = chars.as_str().strip_prefix("\\u")?.chars();
                let low = hex4(&mut chars).filter(|low| (0xdc00..=0xdfff).contains(low))?;
                char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))?
            }
            unit => char::from_u32(unit)?,
        },
        other => other,
    };
    Some((char, chars.as_str()))
}

fn hex4(chars: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |value, _| Some(value << 4 | chars.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests;
