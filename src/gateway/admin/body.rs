//! The bodies of `POST /workers` and `PATCH /workers/{id}`, checked field by field.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use super::shortened;
use crate::{
    config::address,
    gateway::{
        error::GatewayError,
        health::probe::{MODEL_BYTES_MAX, MODELS_MAX},
        worker::bearer,
    },
    mesh::stores::{WorkerOrigin, WorkerPatch, WorkerSpec},
};

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// Longest zone in bytes.
pub const ZONE_BYTES_MAX: usize = 128;

const FIELDS: [&str; 5] = ["url", "model_id", "models", "api_key", "zone"];

const PATCH_FIELDS: [&str; 5] = ["model_id", "models", "api_key", "zone", "draining"];

/// Unknown fields named in an answer at most.
const NAMED_MAX: usize = 8;

#[derive(Deserialize)]
struct Body {
    url: String,
    model_id: Option<String>,
    models: Option<Vec<String>>,
    api_key: Option<String>,
    zone: Option<String>,
}

/// A field that is absent stays as it is; one that is null goes back to what it is for a worker that never had it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Change {
    #[serde(deserialize_with = "present")]
    model_id: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    models: Option<Option<Vec<String>>>,
    #[serde(deserialize_with = "present")]
    api_key: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    zone: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    draining: Option<Option<bool>>,
}

/// Tells null, `Some(None)`, from absence.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(field: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(field).map(Some)
}

/// Reads the body into a worker entry.
///
/// # Errors
/// 400, saying which field is wrong and why; every unknown field is named.
pub fn read(bytes: &[u8]) -> Result<WorkerSpec, GatewayError> {
    let body: Body = parse(bytes, &FIELDS)?;
    let url = address::canonical(&body.url).map_err(|error| bad(format!("`url`: {error}")))?;
    let models = match (body.model_id, body.models) {
        (Some(_), Some(_)) => return Err(both_models()),
        (Some(model), None) => models(vec![model])?,
        (None, names) => models(names.unwrap_or_default())?,
    };
    let (api_key, zone) = (api_key(body.api_key)?, zone(body.zone)?);
    Ok(WorkerSpec { url, models, api_key, zone, origin: WorkerOrigin::Api, draining: false })
}

/// Reads the body into a change of a worker entry, as a JSON Merge Patch (RFC 7396) without a `url`: that is what makes
/// it this worker.
///
/// # Errors
/// As [`read`].
pub fn read_patch(bytes: &[u8]) -> Result<WorkerPatch, GatewayError> {
    let body: Change = parse(bytes, &PATCH_FIELDS)?;
    let model_id = body.model_id.map(|model| model.map(|model| vec![model]));
    let models = match (model_id, body.models) {
        (Some(_), Some(_)) => return Err(both_models()),
        (given, None) | (None, given) => given.map(|names| models(names.unwrap_or_default())),
    };
    Ok(WorkerPatch {
        models: models.transpose()?,
        api_key: body.api_key.map(api_key).transpose()?,
        zone: body.zone.map(zone).transpose()?,
        draining: body.draining.map(Option::unwrap_or_default),
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8], known: &[&str]) -> Result<T, GatewayError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    let Value::Object(fields) = &value else { return Err(bad("the body is a JSON object".into())) };
    let unknown = fields.keys().filter(|field| !known.contains(&field.as_str()));
    let unknown: Vec<_> = unknown.take(NAMED_MAX).map(|field| format!("`{}`", shortened(field))).collect();
    if !unknown.is_empty() {
        return Err(bad(format!("unknown field {}; known are {}", unknown.join(", "), known.join(", "))));
    }
    // The error of a field that has the wrong type would quote its value, which may be the key.
    if fields.get("api_key").is_some_and(|key| !key.is_string() && !key.is_null()) {
        return Err(bad("`api_key` is a string".into()));
    }
    serde_json::from_value(value).map_err(|error| bad(error.to_string()))
}

fn models(names: Vec<String>) -> Result<Vec<String>, GatewayError> {
    if names.len() > MODELS_MAX {
        return Err(bad(format!("`models` has at most {MODELS_MAX} names")));
    }
    let is_name = |name: &String| (1..=MODEL_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    if !names.iter().all(is_name) {
        return Err(bad(format!("a model name has 1 to {MODEL_BYTES_MAX} bytes and no control characters")));
    }
    Ok(unique(names))
}

/// An empty key is none.
fn api_key(key: Option<String>) -> Result<Option<String>, GatewayError> {
    let key = key.filter(|key| !key.is_empty());
    if key.as_ref().is_some_and(|key| key.len() > KEY_BYTES_MAX || bearer(key).is_err()) {
        return Err(bad(format!("`api_key` has at most {KEY_BYTES_MAX} bytes and no control characters")));
    }
    Ok(key)
}

fn zone(zone: Option<String>) -> Result<String, GatewayError> {
    let zone = zone.unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if zone.len() > ZONE_BYTES_MAX || !zone.bytes().all(plain) {
        return Err(bad(format!("`zone` has at most {ZONE_BYTES_MAX} letters, digits, '.', '_' or '-'")));
    }
    Ok(zone)
}

/// Without repetitions, in the order given.
fn unique(models: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(models.len());
    for model in models {
        if !kept.contains(&model) {
            kept.push(model);
        }
    }
    kept
}

fn both_models() -> GatewayError {
    bad("give `model_id` or `models`, not both".into())
}

fn bad(message: String) -> GatewayError {
    GatewayError::InvalidRequest(message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bodies_that_are_accepted() {
        for (case, body, url, models, key, zone) in [
            ("url alone", r#"{"url":"http://W:1/"}"#, "http://w:1", &[][..], None, ""),
            ("model_id", r#"{"url":"http://w:1","model_id":"a"}"#, "http://w:1", &["a"], None, ""),
            ("models", r#"{"url":"http://w:1","models":["b","a","b"]}"#, "http://w:1", &["b", "a"], None, ""),
            ("all", r#"{"url":"http://w","models":[],"api_key":"k","zone":"z-1"}"#, "http://w", &[], Some("k"), "z-1"),
            ("nulls", r#"{"url":"http://w","models":null,"api_key":null,"zone":null}"#, "http://w", &[], None, ""),
        ] {
            let spec = read(body.as_bytes()).unwrap();
            assert_eq!((&*spec.url, spec.api_key.as_deref(), &*spec.zone), (url, key, zone), "{case}");
            assert_eq!(spec.models, models, "{case}");
            assert_eq!((spec.origin, spec.draining), (WorkerOrigin::Api, false), "{case}");
        }
    }

    #[test]
    fn bodies_that_are_refused_say_why() {
        let many = serde_json::json!({ "url": "http://w", "models": vec!["m"; MODELS_MAX + 1] }).to_string();
        let long = serde_json::json!({ "url": "http://w", "api_key": "k".repeat(KEY_BYTES_MAX + 1) }).to_string();
        for (case, body, expected) in [
            ("not json", "hello", "the body is not JSON"),
            ("empty", "", "the body is not JSON"),
            ("array", "[]", "the body is a JSON object"),
            ("no url", "{}", "missing field `url`"),
            ("unknown", r#"{"url":"http://w","prio":1,"cost":2}"#, "unknown field `cost`, `prio`"),
            ("bad url", r#"{"url":"w:8000"}"#, "`url`: a worker URL starts with http:// or https://"),
            ("both", r#"{"url":"http://w","model_id":"a","models":["b"]}"#, "not both"),
            ("empty model", r#"{"url":"http://w","model_id":""}"#, "a model name has"),
            ("control character", r#"{"url":"http://w","model_id":"a\nb"}"#, "a model name has"),
            ("too many models", &many, "`models` has at most"),
            ("wrong type", r#"{"url":"http://w","models":"a"}"#, "invalid type"),
            ("key of a wrong type", r#"{"url":"http://w","api_key":12345}"#, "`api_key` is a string"),
            ("key with a line end", r#"{"url":"http://w","api_key":"a\r\nb: c"}"#, "`api_key` has"),
            ("long key", &long, "`api_key` has"),
            ("zone", r#"{"url":"http://w","zone":"a b"}"#, "`zone` has"),
        ] {
            let error = read(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{case}: {error}");
            assert!(!error.contains("12345"), "{case}: {error}");
        }
    }

    #[test]
    fn a_patch_tells_null_from_absence() {
        let patch = WorkerPatch::default;
        let names = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        for (case, body, expected) in [
            ("nothing", "{}", patch()),
            ("model_id", r#"{"model_id":"a"}"#, WorkerPatch { models: names(&["a"]), ..patch() }),
            ("models", r#"{"models":["b","a","b"]}"#, WorkerPatch { models: names(&["b", "a"]), ..patch() }),
            ("models are asked again", r#"{"models":null}"#, WorkerPatch { models: names(&[]), ..patch() }),
            ("key", r#"{"api_key":"k"}"#, WorkerPatch { api_key: Some(Some("k".into())), ..patch() }),
            ("no key", r#"{"api_key":null}"#, WorkerPatch { api_key: Some(None), ..patch() }),
            ("zone", r#"{"zone":"z"}"#, WorkerPatch { zone: Some("z".into()), ..patch() }),
            ("no zone", r#"{"zone":null}"#, WorkerPatch { zone: Some(String::new()), ..patch() }),
            ("draining", r#"{"draining":true}"#, WorkerPatch { draining: Some(true), ..patch() }),
            ("not draining", r#"{"draining":null}"#, WorkerPatch { draining: Some(false), ..patch() }),
        ] {
            assert_eq!(read_patch(body.as_bytes()).unwrap(), expected, "{case}");
        }
        for (case, body, expected) in [
            ("not json", "hello", "the body is not JSON"),
            ("array", "[]", "the body is a JSON object"),
            ("url", r#"{"url":"http://w"}"#, "unknown field `url`; known are model_id, models"),
            ("both", r#"{"model_id":null,"models":["b"]}"#, "not both"),
            ("empty model", r#"{"models":[""]}"#, "a model name has"),
            ("draining is no number", r#"{"draining":1}"#, "invalid type"),
            ("key of a wrong type", r#"{"api_key":12345}"#, "`api_key` is a string"),
            ("key with a line end", r#"{"api_key":"a\nb"}"#, "`api_key` has"),
            ("zone", r#"{"zone":"a b"}"#, "`zone` has"),
        ] {
            let error = read_patch(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{case}: {error}");
            assert!(!error.contains("12345"), "{case}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (read(&bytes), read_patch(&bytes));
        }
    }
}
