//! Request bodies of clients: whatever they hold, the scan ends, agrees with a full parser, and names what is there.

use serde_json::Value;
use smg::gateway::{
    prefix::{
        self, HashKey,
        chain::{BLOCK_BYTES, KEY_BYTES},
    },
    scan::{self, ScanError},
};

pub(super) fn run(body: &[u8]) {
    let full = serde_json::from_slice::<Value>(body);
    match scan::scan(body) {
        Ok(found) => {
            assert!(found.model.as_ref().is_none_or(|model| model.len() <= body.len()), "no longer than its body");
            let prompt = prefix::prompt(&HashKey::new([7; KEY_BYTES]), body, &found);
            assert!(prompt.blocks.len() * BLOCK_BYTES <= 2 * body.len(), "a prompt is about as long as its text");
            assert!(prompt.session_blocks <= prompt.blocks.len() && prompt.earlier_blocks <= prompt.blocks.len());
            for range in [found.messages, found.prompt].into_iter().flatten() {
                serde_json::from_slice::<&serde_json::value::RawValue>(&body[range]).expect("a member's value is JSON");
            }
            // The parser also refuses lone surrogates and numbers beyond its types.
            if let Ok(full) = full {
                assert_eq!(found.model.as_deref(), full["model"].as_str(), "the model that a worker reads");
                assert_eq!(found.stream, full["stream"] == true, "what a worker reads");
            }
        }
        Err(ScanError::ModelNotText | ScanError::NotObject | ScanError::Depth(_)) => {}
        Err(error) => assert!(full.is_err(), "{error} in what a full parser takes"),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi \u00e9\ud83d\ude00"}]}"#,
        r#"{"\u006dodel":"a\u002fb\n","prompt":["p",1.5e-3,null,{"x":[[]]}],"user":"u","stream":false}"#,
        " {\r\n\t\"temperature\" : -0.0E+2 , \"model\":null } ",
        r#"{"model":5}"#,
        r#"{"tools":[{"type":"function"}],"system":"s","input":[{"role":"user","content":[{"type":"input_text","text":"t"}]}]}"#,
        r#"{"messages":[{"role":"user","content":"\ud83dx"},{"content":null,"role":"assistant","tool_calls":[1]}],"text":["a"]}"#,
        "[1]",
    ]
    .map(|body| body.as_bytes().to_vec())
    .into()
}
