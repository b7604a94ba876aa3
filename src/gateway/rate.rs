//! The rate limit as operators say it and the mesh replicates it: `{"limit_per_second":n,"burst":b}`, 0 for no limit; with
//! `"key"`, `"model"` or both it is one for the requests that they select.

use serde::{Deserialize, Serialize};

use crate::{
    config::{RATE_MAX, RateLimit},
    gateway::selector::{KeyId, Selector},
    mesh::{
        quota::share::LimitId,
        stores::{MODEL_BYTES_MAX, PolicySpec},
    },
};

/// What the limit of all requests is called among the limits that the cluster shares.
pub const ID: LimitId = 1;

/// What the entry's policy is called.
const NAME: &str = "rate_limit";

/// Both the body of `POST /ha/rate-limit` and what is stored; the selectors are in the name of what is stored.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Body {
    limit_per_second: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

/// Reads the body: for which requests, and how many; none is no limit. Without a `burst` it is as large as the limit.
///
/// # Errors
/// What to change: not such a JSON object, or a field out of range.
pub fn read(body: &[u8]) -> Result<(Selector, Option<RateLimit>), String> {
    let body: Body = serde_json::from_slice(body)
        .map_err(|error| format!("the body is to be like {{\"limit_per_second\":100,\"burst\":200}}: {error}"))?;
    let key = body
        .key
        .as_deref()
        .map(|key| KeyId::parse(key).ok_or("`key`: not 16 hexadecimal digits: the first of SHA-256 of the key"));
    let is_bad = |model: &String| model.is_empty() || model.len() > MODEL_BYTES_MAX || model.contains(char::is_control);
    if body.model.as_ref().is_some_and(is_bad) {
        return Err(format!("`model`: empty, longer than {MODEL_BYTES_MAX} bytes, or with control characters"));
    }
    let selector = Selector { key: key.transpose()?, model: body.model.map(Into::into) };
    Ok((selector, limit(body.limit_per_second, body.burst)?))
}

fn limit(per_second: u64, burst: Option<u64>) -> Result<Option<RateLimit>, String> {
    let in_range = |field: &str, number: u64| {
        u32::try_from(number)
            .ok()
            .filter(|number| *number <= RATE_MAX)
            .ok_or_else(|| format!("`{field}`: {number} is more than {RATE_MAX}"))
    };
    let per_second = in_range("limit_per_second", per_second)?;
    let burst = burst.map_or(Ok(per_second), |burst| in_range("burst", burst))?;
    match (per_second, burst) {
        (0, _) => Ok(None),
        (_, 0) => Err("`burst`: 0 would refuse every request: give at least 1, or a limit of 0 for none".into()),
        (per_second, burst) => Ok(Some(RateLimit { per_second, burst })),
    }
}

/// The entry that says so to every gateway.
#[must_use]
pub fn to_spec(limit: Option<RateLimit>) -> PolicySpec {
    let config = match limit {
        Some(limit) => serde_json::json!({ "limit_per_second": limit.per_second, "burst": limit.burst }),
        None => serde_json::json!({ "limit_per_second": 0 }),
    };
    PolicySpec { policy: NAME.into(), config_json: config.to_string() }
}

/// What an entry says; an error is one that this version does not understand, which has no effect.
///
/// # Errors
/// Why it makes no sense.
pub fn of_spec(spec: &PolicySpec) -> Result<Option<RateLimit>, String> {
    if spec.policy == NAME {
        read(spec.config_json.as_bytes()).map(|(_, limit)| limit)
    } else {
        Err(format!("not a {NAME}"))
    }
}

/// The limits of some requests that entries say, in the order of their names; what makes no sense has no effect.
#[must_use]
pub fn scoped(entries: &[(String, PolicySpec)]) -> Vec<(Selector, RateLimit)> {
    let limit = |(name, spec): &(String, PolicySpec)| {
        let limit = of_spec(spec).inspect_err(|error| tracing::debug!(%error, "rate limit of a newer version ignored"));
        Some((Selector::of_name(name).filter(|selector| !selector.is_all())?, limit.ok()??))
    };
    entries.iter().filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_say() {
        let limit = |per_second, burst| Ok(Some(RateLimit { per_second, burst }));
        for (case, body, expected) in [
            ("both", r#"{"limit_per_second":5,"burst":9}"#, limit(5, 9)),
            ("burst like the limit", r#"{"limit_per_second":5}"#, limit(5, 5)),
            ("largest", r#"{"limit_per_second":10000000}"#, limit(RATE_MAX, RATE_MAX)),
            ("none", r#"{"limit_per_second":0}"#, Ok(None)),
            ("none, with a burst", r#"{"limit_per_second":0,"burst":3}"#, Ok(None)),
            ("too large", r#"{"limit_per_second":10000001}"#, Err("limit_per_second")),
            ("too large a burst", r#"{"limit_per_second":1,"burst":99999999999}"#, Err("burst")),
            ("no room", r#"{"limit_per_second":1,"burst":0}"#, Err("burst")),
            ("negative", r#"{"limit_per_second":-1}"#, Err("-1")),
            ("a fraction", r#"{"limit_per_second":1.5}"#, Err("1.5")),
            ("nothing", "{}", Err("limit_per_second")),
            ("another field", r#"{"limit_per_second":1,"brust":1}"#, Err("brust")),
            ("no JSON", "5", Err("5")),
            ("a short key", r#"{"limit_per_second":1,"key":"abc"}"#, Err("`key`")),
            ("a key itself", r#"{"limit_per_second":1,"key":"sk-0123456789abc"}"#, Err("SHA-256")),
            ("an empty key", r#"{"limit_per_second":1,"key":""}"#, Err("`key`")),
            ("an empty model", r#"{"limit_per_second":1,"model":""}"#, Err("`model`")),
            ("neither", r#"{"limit_per_second":1,"key":null,"model":null}"#, limit(1, 1)),
            ("a bad model", "{\"limit_per_second\":1,\"model\":\"a\\u0000\"}", Err("`model`")),
        ] {
            match (read(body.as_bytes()), expected) {
                (Err(found), Err(part)) => assert!(found.contains(part), "{case}: {found}"),
                (found, expected) => {
                    let found = found.map(|(selector, limit)| {
                        assert_eq!(selector, Selector::default(), "{case}");
                        limit
                    });
                    assert_eq!(found.as_ref().ok(), expected.as_ref().ok(), "{case}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn entries_read_back() {
        for limit in [None, Some(RateLimit { per_second: 1, burst: 1 }), Some(RateLimit { per_second: 7, burst: 20 })] {
            assert_eq!(of_spec(&to_spec(limit)), Ok(limit));
        }
        let other = PolicySpec { policy: "random".into(), config_json: "{}".into() };
        assert!(of_spec(&other).is_err());
    }
}
