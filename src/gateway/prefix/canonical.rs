//! The text of a prompt, in the order in which a chat template would put it, read out of the body as it lies there.
//!
//! Tools, then system text or instructions, then the messages, each with its role; on routes without messages `input`,
//! `prompt`, `text` or `query`. A part begins with a byte that JSON text cannot hold unescaped, so that no two prompts
//! run together. Strings count with their escapes undone. What is no text (tool definitions, tool calls, images, token
//! ids) counts as the bytes that the client sent: one client writes the same value the same way each time, and where
//! two do not, they miss one another's cache and nothing worse.
//!
//! Nothing is allocated but the names; the text goes by in slices of the body.

use std::{borrow::Cow, ops::Range};

use crate::gateway::{
    prefix::chain::{Chain, HashKey, Prompt},
    scan::{Cursor, Raw, Scan, escaped},
};

/// Begins a part; what part it is follows.
const PART: u8 = 0x1e;

/// Ends the name of a part.
const NAME_END: u8 = 0x1f;

/// The prompt of a body that [`scan`](crate::gateway::scan::scan) has accepted. No names when it has no text.
#[must_use]
pub fn prompt(key: &HashKey, body: &[u8], found: &Scan<'_>) -> Prompt {
    let Ok(text) = std::str::from_utf8(body) else { return Prompt::default() };
    let mut walk = Walk { text, chain: Chain::new(key) };
    let parts = &found.parts;
    walk.raw(b"tools", parts.tools.as_ref());
    for system in [&parts.system, &parts.instructions].into_iter().flatten() {
        walk.begin(b"system");
        walk.content(system.clone());
    }
    for messages in [&found.messages, &parts.input].into_iter().flatten() {
        walk.messages(messages);
    }
    for whole in [&found.prompt, &parts.text, &parts.query].into_iter().flatten() {
        walk.begin(b"");
        walk.content(whole.clone());
    }
    walk.raw(b"", parts.input_ids.as_ref());
    walk.chain.finish()
}

struct Walk<'a, 'k> {
    text: &'a str,
    chain: Chain<'k>,
}

/// Members of a message that have a place of their own.
#[derive(Default)]
struct Message {
    role: Option<Raw>,
    content: Option<Range<usize>>,
    /// The others, from the first to the last.
    others: Option<Range<usize>>,
}

impl<'a> Walk<'a, '_> {
    fn begin(&mut self, name: &[u8]) {
        self.chain.push(&[PART]);
        self.chain.push(name);
        self.chain.push(&[NAME_END]);
    }

    /// A value as it stands.
    fn raw(&mut self, name: &[u8], value: Option<&Range<usize>>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.begin(name);
            self.chain.push(&self.text.as_bytes()[value.clone()]);
        }
    }

    fn cursor(&self, at: usize) -> Cursor<'a> {
        Cursor { text: self.text, bytes: self.text.as_bytes(), at }
    }

    /// A list of messages, or one text that stands for what a user says.
    fn messages(&mut self, list: &Range<usize>) {
        if self.text.as_bytes().get(list.start) != Some(&b'[') {
            self.begin(b"user");
            self.content(list.clone());
            self.chain.mark_session();
            return;
        }
        let mut cursor = self.cursor(list.start + 1);
        while !self.chain.is_full()
            && let Some(first) = next_item(&mut cursor)
        {
            if first != b'{' {
                // Texts to embed, or token ids.
                let Some(item) = skip(&mut cursor) else { return };
                self.begin(b"");
                self.content(item);
                continue;
            }
            let Some(message) = message(&mut cursor) else { return };
            self.message(&message);
        }
    }

    fn message(&mut self, message: &Message) {
        let role = message.role.as_ref().and_then(|role| role.decode(self.text)).unwrap_or(Cow::Borrowed(""));
        if role == "assistant" {
            self.chain.mark_answer();
        }
        self.begin(role.as_bytes());
        if let Some(content) = &message.content {
            self.content(content.clone());
        }
        if let Some(others) = &message.others {
            self.chain.push(&self.text.as_bytes()[others.clone()]);
        }
        if role == "user" {
            self.chain.mark_session();
        }
    }

    /// A text, or a list of parts of which the `text` counts.
    fn content(&mut self, value: Range<usize>) {
        let mut cursor = self.cursor(value.start);
        match cursor.peek() {
            Some(b'"') => {
                if let Ok(raw) = cursor.string() {
                    self.string(&raw);
                }
            }
            Some(b'[') => {
                cursor.at += 1;
                while !self.chain.is_full()
                    && let Some(first) = next_item(&mut cursor)
                {
                    let start = cursor.at;
                    let text = if first == b'{' { part_text(&mut cursor) } else { None };
                    match text {
                        Some(text) => self.string(&text),
                        None => {
                            cursor.at = start;
                            let Some(item) = skip(&mut cursor) else { return };
                            self.chain.push(&self.text.as_bytes()[item]);
                        }
                    }
                }
            }
            _ => self.chain.push(&self.text.as_bytes()[value]),
        }
    }

    /// A string with its escapes undone; a lone surrogate counts as it is written.
    fn string(&mut self, raw: &Raw) {
        let mut rest = &self.text[raw.range.clone()];
        if raw.is_escaped {
            while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
                self.chain.push(&rest.as_bytes()[..at]);
                match escaped(&rest[at + 1..]) {
                    Some((char, after)) => {
                        self.chain.push(char.encode_utf8(&mut [0; 4]).as_bytes());
                        rest = after;
                    }
                    None => {
                        self.chain.push(b"\\u");
                        rest = &rest[at + 2..];
                    }
                }
            }
        }
        self.chain.push(rest.as_bytes());
    }
}

/// Moves to the next item of a list and gives its first byte; none at the end. Begins behind the opening bracket or
/// behind an item.
fn next_item(cursor: &mut Cursor<'_>) -> Option<u8> {
    cursor.skip_space();
    if cursor.peek() == Some(b',') {
        cursor.at += 1;
        cursor.skip_space();
    }
    cursor.peek().filter(|&byte| byte != b']' && byte != b'}')
}

fn skip(cursor: &mut Cursor<'_>) -> Option<Range<usize>> {
    let start = cursor.at;
    cursor.skip_value(1).ok()?;
    Some(start..cursor.at)
}

/// Reads the name and moves to the value of the next member; none at the end of the object, behind it.
fn next_member(cursor: &mut Cursor<'_>) -> Option<Raw> {
    if next_item(cursor).is_none() {
        cursor.at += 1;
        return None;
    }
    let name = cursor.string().ok()?;
    cursor.skip_space();
    cursor.expect(b':').ok()?;
    cursor.skip_space();
    Some(name)
}

/// Reads one message; the last of a name wins, as in the scan.
fn message(cursor: &mut Cursor<'_>) -> Option<Message> {
    let mut message = Message::default();
    cursor.at += 1;
    while let Some(name) = next_member(cursor) {
        let start = cursor.at;
        match &cursor.text[name.range.clone()] {
            "role" if cursor.peek() == Some(b'"') => message.role = Some(cursor.string().ok()?),
            "content" => message.content = Some(skip(cursor)?),
            _ => {
                cursor.skip_value(1).ok()?;
                let from = message.others.map_or(name.range.start.min(start), |others| others.start);
                message.others = Some(from..cursor.at);
            }
        }
    }
    Some(message)
}

/// The `text` of a part of some content, when it is a string; the cursor is behind the part then.
fn part_text(cursor: &mut Cursor<'_>) -> Option<Raw> {
    let mut text = None;
    cursor.at += 1;
    while let Some(name) = next_member(cursor) {
        let is_text = &cursor.text[name.range] == "text" && cursor.peek() == Some(b'"');
        if is_text {
            text = Some(cursor.string().ok()?);
        } else {
            cursor.skip_value(1).ok()?;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::gateway::{
        prefix::chain::{BLOCK_BYTES, tests::key},
        scan::scan,
    };

    fn of(body: &str) -> Prompt {
        prompt(&key(7), body.as_bytes(), &scan(body.as_bytes()).unwrap())
    }

    fn text(n: usize) -> String {
        (0..n).map(|i| char::from(b'a' + (i * 7 % 26) as u8)).collect()
    }

    #[test]
    fn what_means_the_same_has_the_same_names() {
        let long = text(2 * BLOCK_BYTES);
        let plain = format!(r#"{{"messages":[{{"role":"user","content":"{long}é\n\"x\""}}]}}"#);
        let expected = of(&plain);
        assert_eq!(expected.blocks.len(), 2);
        for (case, body) in [
            (
                "space",
                format!(" {{ \"messages\" : [ {{ \"role\" : \"user\" , \"content\" : \"{long}é\\n\\\"x\\\"\" }} ] }} "),
            ),
            ("order", format!(r#"{{"messages":[{{"content":"{long}é\n\"x\"","role":"user"}}],"stream":true}}"#)),
            ("escapes", format!(r#"{{"messages":[{{"role":"us\u0065r","content":"{long}\u00e9\u000a\u0022x\""}}]}}"#)),
            (
                "parts",
                format!(
                    r#"{{"messages":[{{"role":"user","content":[{{"type":"text","text":"{long}é"}},{{"text":"\n\"x\""}}]}}]}}"#
                ),
            ),
            (
                "input of responses",
                format!(
                    r#"{{"input":[{{"role":"user","content":[{{"type":"input_text","text":"{long}é\n\"x\""}}]}}]}}"#
                ),
            ),
            ("input as one text", format!(r#"{{"input":"{long}é\n\"x\""}}"#)),
            (
                "what is no prompt",
                format!(
                    r#"{{"temperature":1,"user":"u","model":"m","messages":[{{"role":"user","content":"{long}é\n\"x\""}}]}}"#
                ),
            ),
        ] {
            assert_eq!(of(&body), expected, "{case}");
        }
    }

    #[test]
    fn what_differs_has_other_names() {
        let long = text(2 * BLOCK_BYTES);
        let bodies = [
            json!({"messages": [{"role": "user", "content": long}]}),
            json!({"messages": [{"role": "system", "content": long}]}),
            json!({"messages": [{"role": "user", "content": ""}, {"role": "user", "content": long}]}),
            json!({"messages": [{"role": "user", "content": long}], "tools": [{"type": "function"}]}),
            json!({"messages": [{"role": "user", "content": long}], "system": "s"}),
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": long}}]}]}),
            json!({"prompt": long}),
            json!({"prompt": "", "text": long}),
            json!({"input_ids": [1, 2, 3], "text": long}),
            json!({"input": [long, "second"]}),
            json!({"query": format!("{long}."), "documents": ["d"]}),
        ];
        let names: Vec<_> = bodies.iter().map(|body| of(&body.to_string())).collect();
        for (i, one) in names.iter().enumerate() {
            assert!(!one.blocks.is_empty(), "{}", bodies[i]);
            for (j, two) in names.iter().enumerate().filter(|(j, _)| *j != i) {
                assert_ne!((one.home(), &one.blocks, one.tail), (two.home(), &two.blocks, two.tail), "{i} {j}");
            }
        }
    }

    #[test]
    fn no_text_no_names() {
        for body in ["{}", r#"{"messages":null}"#, r#"{"messages":[]}"#, r#"{"model":"m","stream":true}"#] {
            let found = of(body);
            assert!(found.blocks.is_empty() && !found.is_follow_up, "{body}");
        }
    }

    /// A conversation as it grows: turn `n` has `n` questions and `n - 1` answers.
    fn turn(n: usize) -> Prompt {
        let mut messages = vec![json!({"role": "system", "content": text(700)})];
        for i in 0..n {
            messages.push(json!({"role": "user", "content": format!("question {i} {}", text(300))}));
            if i + 1 < n {
                messages.push(json!({"role": "assistant", "content": format!("answer {i} {}", text(200))}));
            }
        }
        of(&json!({ "messages": messages }).to_string())
    }

    #[test]
    fn turns_share_session_and_prefix() {
        let turns: Vec<_> = (1..=5).map(turn).collect();
        for pair in turns.windows(2) {
            assert_eq!(pair[0].session, pair[1].session);
            assert_eq!(pair[0].home(), pair[1].home());
            assert_eq!(pair[0].session_blocks, pair[1].session_blocks);
            assert!(pair[1].blocks.starts_with(&pair[0].blocks) && pair[1].blocks.len() > pair[0].blocks.len());
        }
        let follows: Vec<_> = turns.iter().map(|turn| turn.is_follow_up).collect();
        assert_eq!(follows, [false, true, true, true, true]);
        let earlier: Vec<_> = turns.iter().map(|turn| turn.earlier_blocks).collect();
        let before: Vec<_> = turns.iter().map(|turn| turn.blocks.len()).collect();
        assert_eq!((earlier[0], &earlier[1..]), (0, &before[..4]), "what the request before had");
        let other = of(&json!({"messages": [
            {"role": "system", "content": text(700)}, {"role": "user", "content": "another"}]})
        .to_string());
        assert_ne!(other.session, turns[0].session);
        assert_eq!(other.blocks[..2], turns[0].blocks[..2]);
    }

    #[test]
    fn tool_calls_count_and_do_not_shift_the_session() {
        let call = |name: &str| {
            of(&json!({"messages": [
                {"role": "user", "content": text(400)},
                {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": name}}]},
                {"role": "tool", "tool_call_id": "1", "content": text(400)},
            ]})
            .to_string())
        };
        let (one, two) = (call("one"), call("two"));
        assert_eq!(one.session, two.session);
        assert_eq!(one.blocks[0], two.blocks[0]);
        assert_ne!(one.blocks[2], two.blocks[2]);
        assert!(one.is_follow_up);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("role|content|text|[a-z\"]{0,3}", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_body_is_walked(
            member in "messages|tools|system|instructions|input|prompt|text|query|input_ids", value in any_json(),
        ) {
            let body = json!({ member: value });
            // Printed another way it has the same names wherever only texts are in it.
            let (plain, pretty) = (of(&body.to_string()), of(&serde_json::to_string_pretty(&body).unwrap()));
            prop_assert_eq!(plain.session.is_some(), pretty.session.is_some());
            prop_assert_eq!(plain.is_follow_up, pretty.is_follow_up);
        }
    }
}
