//! Faults on demand, armed by `--fault` or at run time by `POST /sim/faults`.
//!
//! Both spell a fault `KIND[:WHEN][@PATH]`; the body of the POST is `{"faults":["500:every-10","hang:0.1@/health"]}`,
//! replaces all that were armed and starts their counts anew. `GET /sim/faults` answers in the same shape.

use std::{fmt, str::FromStr, sync::atomic::AtomicU64, sync::atomic::Ordering};

use super::prompt::Draws;

/// What happens to the request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The worker closes every connection, listens no more, and its process exits with an error.
    Crash,
    /// No answer, for as long as the client stays.
    Hang,
    /// The connection closes before any byte of the answer.
    Reset,
    /// The connection closes in the middle of the answer.
    Truncate,
    /// 429 with `Retry-After: 1`.
    TooManyRequests,
    /// 500.
    InternalServerError,
    /// 503 with `Retry-After: 1`.
    ServiceUnavailable,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Crash, "crash"),
    (Kind::Hang, "hang"),
    (Kind::Reset, "reset"),
    (Kind::Truncate, "truncate"),
    (Kind::TooManyRequests, "429"),
    (Kind::InternalServerError, "500"),
    (Kind::ServiceUnavailable, "503"),
];

/// Which of the requests that match the path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// All.
    Always,
    /// Each with this probability, above 0 and at most 1; the draws depend on nothing but the count.
    Probability(f64),
    /// The n-th, 2n-th and so on; n is at least 1.
    Every(u64),
    /// The first n; n is at least 1.
    First(u64),
}

/// A fault, as `KIND[:WHEN][@PATH]` spells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// To which requests.
    pub when: When,
    /// On which route; none: on those that generate. `*`: on all but `/sim/…`.
    pub path: Option<String>,
}

/// Why a text is no fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParseFaultError {
    /// The part before `:` and `@` is unknown.
    #[error("unknown fault {0:?}, expected crash, hang, reset, truncate, 429, 500 or 503")]
    Kind(String),
    /// The part after `:` is neither probability nor count.
    #[error(
        "fault condition {0:?} is neither a probability above 0 and at most 1, nor every-N, nor first-N with N ≥ 1"
    )]
    When(String),
    /// The part after `@` does not name a route.
    #[error("fault path {0:?} is neither * nor starts with /")]
    Path(String),
}

impl FromStr for Fault {
    type Err = ParseFaultError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (text, path) = match text.split_once('@') {
            Some((_, path)) if path != "*" && !path.starts_with('/') => {
                return Err(ParseFaultError::Path(path.to_owned()));
            }
            Some((rest, path)) => (rest, Some(path.to_owned())),
            None => (text, None),
        };
        let (kind, when) = match text.split_once(':') {
            Some((kind, when)) => (kind, parse_when(when)?),
            None => (text, When::Always),
        };
        let kind =
            KINDS.iter().find(|(_, name)| *name == kind).ok_or_else(|| ParseFaultError::Kind(kind.to_owned()))?.0;
        Ok(Self { kind, when, path })
    }
}

fn parse_when(text: &str) -> Result<When, ParseFaultError> {
    let count = |n: &str| n.parse::<u64>().ok().filter(|n| *n >= 1);
    let when = if let Some(n) = text.strip_prefix("every-") {
        count(n).map(When::Every)
    } else if let Some(n) = text.strip_prefix("first-") {
        count(n).map(When::First)
    } else {
        text.parse::<f64>().ok().filter(|p| *p > 0.0 && *p <= 1.0).map(When::Probability)
    };
    when.ok_or_else(|| ParseFaultError::When(text.to_owned()))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, name)| name);
        f.write_str(name)?;
        match self.when {
            When::Always => {}
            When::Probability(p) => write!(f, ":{p}")?,
            When::Every(n) => write!(f, ":every-{n}")?,
            When::First(n) => write!(f, ":first-{n}")?,
        }
        self.path.as_ref().map_or(Ok(()), |path| write!(f, "@{path}"))
    }
}

/// The armed faults, each with the count of requests that matched its path.
#[derive(Debug, Default)]
pub(super) struct Plan(Vec<(Fault, AtomicU64)>);

impl Plan {
    /// Arms these, all counts at 0.
    pub(super) fn new(faults: Vec<Fault>) -> Self {
        Self(faults.into_iter().map(|fault| (fault, AtomicU64::new(0))).collect())
    }

    /// The fate of a request, if it has one; the first fault whose turn it is decides, later ones do not count it.
    pub(super) fn decide(&self, path: &str, generates: bool) -> Option<Kind> {
        self.0.iter().find(|(fault, seen)| fault.applies_to(path, generates) && fault.is_due(seen)).map(|(f, _)| f.kind)
    }

    /// What is armed, as it would be spelled.
    pub(super) fn spelled(&self) -> Vec<String> {
        self.0.iter().map(|(fault, _)| fault.to_string()).collect()
    }
}

impl Fault {
    fn applies_to(&self, path: &str, generates: bool) -> bool {
        match self.path.as_deref() {
            None => generates,
            Some("*") => true,
            Some(only) => only == path,
        }
    }

    fn is_due(&self, seen: &AtomicU64) -> bool {
        let count = seen.fetch_add(1, Ordering::Relaxed) + 1;
        match self.when {
            When::Always => true,
            When::Probability(p) => Draws(count).next_unit() < p,
            When::Every(n) => count.is_multiple_of(n),
            When::First(n) => count <= n,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spellings_round_trip() {
        for text in
            ["crash", "hang:0.25", "reset:first-3", "truncate@*", "429:every-2@/v1/embeddings", "500", "503:1@/health"]
        {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for text in ["", "404", "500:", "500:0", "500:1.5", "500:every-0", "500:first-x", "500@health", "hang:NaN"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_condition_picks_its_requests() {
        for (case, text, path, expected) in [
            ("always", "500", "/v1/embeddings", [true; 4]),
            ("first", "500:first-2", "/v1/embeddings", [true, true, false, false]),
            ("every", "500:every-2", "/v1/embeddings", [false, true, false, true]),
            ("certain", "500:1", "/v1/embeddings", [true; 4]),
            ("other path", "500@/health", "/v1/embeddings", [false; 4]),
            ("its path", "500@/health", "/health", [true; 4]),
            ("any path", "500@*", "/v1/models", [true; 4]),
            ("not generating", "500", "/v1/models", [false; 4]),
        ] {
            let plan = Plan::new(vec![text.parse().unwrap()]);
            let fates = [(); 4].map(|()| plan.decide(path, path == "/v1/embeddings").is_some());
            assert_eq!(fates, expected, "{case}");
        }
    }

    #[test]
    fn probabilities_are_met() {
        let plan = Plan::new(vec!["hang:0.2".parse().unwrap()]);
        let hits = (0..10_000).filter(|_| plan.decide("/generate", true).is_some()).count();
        assert!((1_900..2_100).contains(&hits), "{hits}");
    }
}
