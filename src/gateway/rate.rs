//! The limits as operators say them and the mesh replicates them: `{"limit_per_second":n,"burst":b,"concurrent":c}`, 0 for no
//! limit; with `"key"`, `"model"` or both they are for the requests that those select. What is not named stays as it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    config::{CONCURRENT_MAX, RATE_MAX, RateLimit},
    gateway::selector::{KeyId, Selector},
    mesh::{
        quota::share::LimitId,
        stores::{MODEL_BYTES_MAX, PolicySpec},
    },
};

/// What the limit of all requests is called among the limits that the cluster shares.
pub const ID: LimitId = 1;

/// What the policy of an entry is called that says how many per second.
const NAME: &str = "rate_limit";

/// And of one that says how many in flight.
const BOUND: &str = "concurrent";

/// What was said of some requests; nothing of what is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Said {
    /// Per second; no limit where that was said.
    pub rate: Option<Option<RateLimit>>,
    /// In flight in the whole cluster, at most [`CONCURRENT_MAX`]; 0: no bound.
    pub concurrent: Option<u32>,
}

impl Said {
    /// What is in force when `earlier` was said before.
    #[must_use]
    pub fn over(self, earlier: Self) -> Self {
        Self { rate: self.rate.or(earlier.rate), concurrent: self.concurrent.or(earlier.concurrent) }
    }

    /// What it comes to where `flags` hold for what nothing was said of.
    #[must_use]
    pub fn or(self, flags: Terms) -> Terms {
        let concurrent = self.concurrent.map_or(flags.concurrent, |concurrent| (concurrent > 0).then_some(concurrent));
        Terms { rate: self.rate.unwrap_or(flags.rate), concurrent }
    }
}

/// What is in force for some requests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Terms {
    /// Per second.
    pub rate: Option<RateLimit>,
    /// In flight in the whole cluster, 1 to [`CONCURRENT_MAX`].
    pub concurrent: Option<u32>,
}

/// Both the body of `POST /ha/rate-limit` and what is stored; the selectors are in the name of what is stored.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

/// Reads the body: for which requests, and how many. Without a `burst` it is as large as the limit.
///
/// # Errors
/// What to change: not such a JSON object, or a field out of range.
pub fn read(body: &[u8]) -> Result<(Selector, Said), String> {
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
    let rate = match (body.limit_per_second, body.burst) {
        (Some(per_second), burst) => Some(limit(per_second, burst)?),
        (None, Some(_)) => return Err("`burst`: goes with `limit_per_second` alone".into()),
        (None, None) => None,
    };
    let concurrent =
        body.concurrent.map(|concurrent| in_range("concurrent", concurrent, CONCURRENT_MAX)).transpose()?;
    if rate.is_none() && concurrent.is_none() {
        return Err("give `limit_per_second`, `concurrent` or both; 0 is no limit".into());
    }
    let selector = Selector { key: key.transpose()?, model: body.model.map(Into::into) };
    Ok((selector, Said { rate, concurrent }))
}

fn in_range(field: &str, number: u64, most: u32) -> Result<u32, String> {
    let found = u32::try_from(number).ok().filter(|number| *number <= most);
    found.ok_or_else(|| format!("`{field}`: {number} is more than {most}"))
}

fn limit(per_second: u64, burst: Option<u64>) -> Result<Option<RateLimit>, String> {
    let per_second = in_range("limit_per_second", per_second, RATE_MAX)?;
    let burst = burst.map_or(Ok(per_second), |burst| in_range("burst", burst, RATE_MAX))?;
    match (per_second, burst) {
        (0, _) => Ok(None),
        (_, 0) => Err("`burst`: 0 would refuse every request: give at least 1, or a limit of 0 for none".into()),
        (per_second, burst) => Ok(Some(RateLimit { per_second, burst })),
    }
}

/// What is to be written so that every gateway knows: by name an entry, or that there is to be none. What was not said is not
/// touched, so that what another gateway is told of it meanwhile stays.
pub fn entries(selector: &Selector, said: Said) -> impl Iterator<Item = (String, Option<PolicySpec>)> {
    let is_all = selector.is_all();
    let rate = said.rate.map(|rate| {
        let of_rate = Said { rate: Some(rate), concurrent: None };
        (selector.name(), (is_all || rate.is_some()).then(|| to_spec(of_rate)))
    });
    let bound = said.concurrent.map(|concurrent| {
        let of_bound = Said { rate: None, concurrent: Some(concurrent) };
        (selector.bound_name(), (is_all || concurrent > 0).then(|| to_spec(of_bound)))
    });
    rate.into_iter().chain(bound)
}

/// The entry that says so to every gateway.
#[must_use]
pub fn to_spec(said: Said) -> PolicySpec {
    let rate = said.rate.map(|rate| rate.unwrap_or(RateLimit { per_second: 0, burst: 0 }));
    let body = Body {
        limit_per_second: rate.map(|rate| rate.per_second.into()),
        burst: rate.filter(|rate| rate.burst > 0).map(|rate| rate.burst.into()),
        concurrent: said.concurrent.map(u64::from),
        ..Body::default()
    };
    let policy = if said.rate.is_some() { NAME } else { BOUND };
    PolicySpec { policy: policy.into(), config_json: serde_json::json!(body).to_string() }
}

/// What an entry says; an error is one that this version does not understand, which has no effect.
///
/// # Errors
/// Why it makes no sense.
pub fn of_spec(spec: &PolicySpec) -> Result<Said, String> {
    if [NAME, BOUND].contains(&spec.policy.as_str()) {
        read(spec.config_json.as_bytes()).map(|(_, said)| said)
    } else {
        Err(format!("not a {NAME}"))
    }
}

/// What entries say by selector, in the order of their names; what makes no sense has no effect.
fn by_selector(entries: &[(String, PolicySpec)]) -> impl Iterator<Item = (Selector, Said)> {
    let mut all: BTreeMap<String, (Selector, Said)> = BTreeMap::new();
    for (name, spec) in entries {
        let Some(selector) = Selector::of_name(name).or_else(|| Selector::of_bound_name(name)) else { continue };
        match of_spec(spec) {
            Ok(said) => {
                let (_, known) = all.entry(selector.name()).or_insert((selector, Said::default()));
                *known = said.over(*known);
            }
            Err(error) => tracing::debug!(%error, "rate limit of a newer version ignored"),
        }
    }
    all.into_values()
}

/// What is said of all requests, by the entry of their rate and among `entries` that of their bound.
#[must_use]
pub fn of_all(rate: Option<&PolicySpec>, entries: &[(String, PolicySpec)]) -> Said {
    let rate = rate.map(|spec| (Selector::default().name(), spec.clone()));
    let bound = Selector::default().bound_name();
    let bound = entries.iter().filter(|(name, _)| *name == bound).cloned();
    let entries: Vec<_> = rate.into_iter().chain(bound).collect();
    by_selector(&entries).next().map(|(_, said)| said).unwrap_or_default()
}

/// The limits of some requests that entries say, in the order of their names; what makes no sense has no effect.
#[must_use]
pub fn scoped(entries: &[(String, PolicySpec)]) -> Vec<(Selector, Terms)> {
    let scoped = by_selector(entries).filter(|(selector, _)| !selector.is_all());
    let terms = scoped.map(|(selector, said)| (selector, said.or(Terms::default())));
    terms.filter(|(_, terms)| *terms != Terms::default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_say() {
        let limit = |per_second, burst| Ok((Some(Some(RateLimit { per_second, burst })), None));
        for (case, body, expected) in [
            ("both", r#"{"limit_per_second":5,"burst":9}"#, limit(5, 9)),
            ("burst like the limit", r#"{"limit_per_second":5}"#, limit(5, 5)),
            ("largest", r#"{"limit_per_second":10000000}"#, limit(RATE_MAX, RATE_MAX)),
            ("none", r#"{"limit_per_second":0}"#, Ok((Some(None), None))),
            ("none, with a burst", r#"{"limit_per_second":0,"burst":3}"#, Ok((Some(None), None))),
            ("too large", r#"{"limit_per_second":10000001}"#, Err("limit_per_second")),
            ("too large a burst", r#"{"limit_per_second":1,"burst":99999999999}"#, Err("burst")),
            ("no room", r#"{"limit_per_second":1,"burst":0}"#, Err("burst")),
            ("negative", r#"{"limit_per_second":-1}"#, Err("-1")),
            ("a fraction", r#"{"limit_per_second":1.5}"#, Err("1.5")),
            ("in flight", r#"{"concurrent":7}"#, Ok((None, Some(7)))),
            ("any number in flight", r#"{"concurrent":0}"#, Ok((None, Some(0)))),
            ("too many in flight", r#"{"concurrent":1000001}"#, Err("`concurrent`")),
            ("a burst alone", r#"{"concurrent":7,"burst":1}"#, Err("`burst`")),
            (
                "both kinds",
                r#"{"limit_per_second":5,"concurrent":7}"#,
                Ok((Some(Some(RateLimit { per_second: 5, burst: 5 })), Some(7))),
            ),
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
                    let found = found.map(|(selector, said)| {
                        assert_eq!(selector, Selector::default(), "{case}");
                        (said.rate, said.concurrent)
                    });
                    assert_eq!(found.as_ref().ok(), expected.as_ref().ok(), "{case}: {found:?}");
                }
            }
        }
    }

    /// Two gateways are told of one part each before they hear of each other.
    #[test]
    fn each_part_is_an_entry_of_its_own() {
        let rate = RateLimit { per_second: 7, burst: 20 };
        let [of_rate, of_bound] =
            [Said { rate: Some(Some(rate)), concurrent: None }, Said { rate: None, concurrent: Some(5) }];
        let both = Terms { rate: Some(rate), concurrent: Some(5) };
        let key = Selector { key: Some(KeyId::of(b"k")), model: Some("m".into()) };
        for selector in [Selector::default(), key] {
            let mut stored = BTreeMap::new();
            for said in [of_bound, of_rate] {
                stored.extend(entries(&selector, said));
            }
            assert_eq!(stored.len(), 2, "{selector:?}: {stored:?}");
            let none = Said { rate: Some(None), concurrent: Some(0) };
            let removes = entries(&selector, none).all(|(name, spec)| stored.contains_key(&name) && spec.is_none());
            assert_eq!(removes, !selector.is_all(), "of all requests 0 counts for more than a flag");
            // What a version without bounds looks at, it understands.
            assert!(!stored[&selector.name()].as_ref().unwrap().config_json.contains("concurrent"));
            let first = stored.remove(&Selector::default().name()).flatten();
            let stored: Vec<_> = stored.into_iter().filter_map(|(name, spec)| Some((name, spec?))).collect();
            let said = of_all(first.as_ref(), &stored).or(Terms::default());
            let expected = if selector.is_all() { (both, vec![]) } else { (Terms::default(), vec![(selector, both)]) };
            assert_eq!((said, scoped(&stored)), expected);
        }
    }

    #[test]
    fn entries_read_back() {
        let rates = [None, Some(None), Some(Some(RateLimit { per_second: 7, burst: 20 }))];
        for (rate, concurrent) in rates.into_iter().flat_map(|rate| [None, Some(0), Some(9)].map(|c| (rate, c))) {
            let said = Said { rate, concurrent };
            assert_eq!(of_spec(&to_spec(said)).ok(), (said != Said::default()).then_some(said), "{said:?}");
        }
        let other = PolicySpec { policy: "random".into(), config_json: "{}".into() };
        assert!(of_spec(&other).is_err());
    }

    #[test]
    fn what_is_not_named_stays_and_flags_hold_for_the_rest() {
        let rate = RateLimit { per_second: 7, burst: 20 };
        let flags = Terms { rate: Some(rate), concurrent: Some(3) };
        for (case, said, expected) in [
            ("nothing", Said::default(), flags),
            ("no limit per second", Said { rate: Some(None), concurrent: None }, Terms { rate: None, ..flags }),
            ("no bound", Said { rate: None, concurrent: Some(0) }, Terms { concurrent: None, ..flags }),
            ("another", Said { rate: None, concurrent: Some(5) }, Terms { concurrent: Some(5), ..flags }),
        ] {
            assert_eq!(said.or(flags), expected, "{case}");
        }
        let before = Said { rate: Some(Some(rate)), concurrent: Some(3) };
        let later = Said { rate: None, concurrent: Some(0) };
        assert_eq!(later.over(before), Said { concurrent: Some(0), ..before });
    }
}
