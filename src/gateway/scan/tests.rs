//! The scan against a full parser, on whole, mutated and random text.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json, value::RawValue};

use super::*;

#[test]
fn finds_members() {
    for (case, body, model, stream) in [
        ("plain", r#"{"model":"m","stream":true}"#, Some("m"), true),
        ("order and space", " {\n\"stream\" : false , \"model\"\t:\"a b\" } ", Some("a b"), false),
        ("missing", "{}", None, false),
        ("null", r#"{"model":null,"stream":null}"#, None, false),
        ("nested ones do not count", r#"{"x":{"model":"no","stream":true},"model":"m"}"#, Some("m"), false),
        ("last wins", r#"{"model":"a","model":"b","stream":true,"stream":false}"#, Some("b"), false),
        ("escaped value", r#"{"model":"a\u002fb\n\"\ud83d\ude00"}"#, Some("a/b\n\"😀"), false),
        ("escaped key", r#"{"\u006dodel":"m"}"#, Some("m"), false),
        ("truthy is not true", r#"{"stream":1,"model":""}"#, Some(""), false),
        ("lone surrogate elsewhere", r#"{"x":"\ud800","model":"m"}"#, Some("m"), false),
    ] {
        let found = scan(body.as_bytes()).unwrap();
        assert_eq!((found.model.as_deref(), found.stream), (model, stream), "{case}");
    }
}

#[test]
fn remembers_where_the_prompt_is() {
    let body = r#"{"messages":[{"role":"user","content":"hi"}], "prompt" : "p\n" ,"user":"u"}"#;
    let found = scan(body.as_bytes()).unwrap();
    assert_eq!(&body[found.messages.unwrap()], r#"[{"role":"user","content":"hi"}]"#);
    assert_eq!(&body[found.prompt.unwrap()], r#""p\n""#);
    assert_eq!(found.user.as_deref(), Some("u"));
}

#[test]
fn refuses_what_is_no_json_object() {
    for (case, body, expected) in [
        ("empty", &b""[..], ScanError::Eof),
        ("breaks off", b"{\"a\":", ScanError::Eof),
        ("array", b"[1]", ScanError::NotObject),
        ("trailing comma", b"{\"a\":1,}", ScanError::Syntax(7)),
        ("two values", b"{} {}", ScanError::Syntax(3)),
        ("leading zero", b"{\"a\":01}", ScanError::Syntax(6)),
        ("control character", b"{\"a\":\"\n\"}", ScanError::Syntax(6)),
        ("bad escape", b"{\"a\":\"\\x\"}", ScanError::Syntax(7)),
        ("not utf-8", b"{\"a\":\"\xff\"}", ScanError::Utf8(6)),
        ("model a number", b"{\"model\":5}", ScanError::ModelNotText),
        ("model half a pair", b"{\"model\":\"\\ud800\"}", ScanError::ModelNotText),
        ("byte order mark", b"\xef\xbb\xbf{}", ScanError::Syntax(0)),
    ] {
        assert_eq!(scan(body), Err(expected), "{case}");
    }
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    let max = DEPTH_MAX as usize - 1;
    assert!(scan(nested(max).as_bytes()).is_ok());
    assert!(serde_json::from_str::<Value>(&nested(max)).is_ok());
    assert!(matches!(scan(nested(max + 1).as_bytes()), Err(ScanError::Depth(_))));
    assert!(serde_json::from_str::<Value>(&nested(max + 1)).is_err());
    assert!(matches!(scan(nested(1_000_000).as_bytes()), Err(ScanError::Depth(_))));
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,24}".prop_map(Value::from),
        "[a\"\\\\\n\t\u{1}é😀]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(key(), inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof!["model", "stream", "user", "messages", "prompt", ".{0,6}"]
}

fn agrees(body: &[u8]) -> Result<(), TestCaseError> {
    let ours = scan(body);
    let is_json = serde_json::from_slice::<&RawValue>(body).is_ok();
    match &ours {
        Ok(_) | Err(ScanError::NotObject | ScanError::ModelNotText) => prop_assert!(is_json, "accepted {body:?}"),
        Err(ScanError::Depth(_)) => {}
        Err(error) => prop_assert!(!is_json, "refused {body:?}: {error}"),
    }
    if let Ok(theirs) = serde_json::from_slice::<Value>(body) {
        match ours {
            Ok(scan) => {
                prop_assert_eq!(scan.model.as_deref(), theirs["model"].as_str());
                prop_assert_eq!(scan.stream, theirs["stream"] == true);
                prop_assert_eq!(scan.user.as_deref(), theirs["user"].as_str());
                let at = |range: Option<Range<usize>>| {
                    range.map(|range| serde_json::from_slice::<Value>(&body[range]).unwrap())
                };
                let at = |range| at(range).unwrap_or(Value::Null);
                prop_assert_eq!(&at(scan.messages), &theirs["messages"]);
                prop_assert_eq!(&at(scan.prompt), &theirs["prompt"]);
            }
            Err(ScanError::NotObject) => prop_assert!(!theirs.is_object()),
            Err(ScanError::ModelNotText) => {
                prop_assert!(!theirs["model"].is_string() && !theirs["model"].is_null());
            }
            Err(error) => prop_assert!(false, "refused {body:?}: {error}"),
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn agrees_with_a_full_parser(value in value(), pretty in any::<bool>()) {
        let body = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) };
        agrees(&body.unwrap())?;
    }

    #[test]
    fn agrees_on_mutated_text(value in value(), edits in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..3, any::<u8>()), 1..4)) {
        let mut body = serde_json::to_vec(&json!({"model": "m", "x": value, "stream": true})).unwrap();
        for (index, kind, byte) in edits {
            if body.is_empty() {
                break;
            }
            let at = index.index(body.len());
            match kind {
                0 => body[at] = byte,
                1 => drop(body.remove(at)),
                _ => body.insert(at, byte),
            }
        }
        agrees(&body)?;
    }

    #[test]
    fn agrees_on_json_like_text(text in r#"[\[\]{}",:\\u0-9eE+.\-truefalsnd \n]{0,24}"#) {
        agrees(text.as_bytes())?;
        agrees(format!("{{\"model\":{text}}}").as_bytes())?;
    }

    #[test]
    fn never_panics(body in prop::collection::vec(any::<u8>(), 0..64)) {
        agrees(&body)?;
    }
}
