//! What to look for in Kubernetes, and the spelling of selectors.

use std::{collections::BTreeMap, fmt, time::Duration};

/// Searches of the Kubernetes API; the default is none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Kubernetes {
    /// Pods that are workers; none without `--service-discovery`.
    pub workers: Option<WorkerPods>,
    /// Pods that are gateways of this mesh; none without `--router-selector`.
    pub routers: Option<PodSearch>,
    /// Between two complete lists, 1 s to an hour, default 60 s.
    pub relist: Duration,
}

/// Pods by namespace and labels.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodSearch {
    /// None: all namespaces.
    pub namespace: Option<String>,
    /// Labels that a pod must have, at least one.
    pub labels: BTreeMap<String, String>,
}

impl PodSearch {
    /// The labels as the API takes them: `a=b,c=d`, the same for the same labels in any order.
    #[must_use]
    pub fn selector(&self) -> String {
        self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }

    /// A hash of namespace and labels: equal searches have equal ones on every gateway.
    #[must_use]
    pub fn number(&self) -> u64 {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        xxhash_rust::xxh3::xxh3_64(format!("{namespace}\n{}", self.selector()).as_bytes())
    }
}

/// Pods that are workers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerPods {
    /// Which pods.
    pub search: PodSearch,
    /// Where a pod takes requests.
    pub port: PodPort,
    /// `http` or `https`.
    pub scheme: &'static str,
}

/// A port of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PodPort {
    /// The same on every pod.
    Number(u16),
    /// The container port of this name.
    Name(String),
}

impl fmt::Display for PodPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(port) => write!(f, "{port}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A port number, or the name of a container port (RFC 6335 §5.1: up to 15 letters, digits and hyphens, one letter at
/// least).
///
/// # Errors
/// What is wrong with it.
pub fn pod_port(text: &str) -> Result<PodPort, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse() {
            Ok(port) if port > 0 => Ok(PodPort::Number(port)),
            _ => Err("a port is a number from 1 to 65535".into()),
        };
    }
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = text.len() <= 15
        && text.bytes().all(is_inner)
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_name { Ok(PodPort::Name(text.into())) } else { Err("neither a port number nor the name of one".into()) }
}

/// A namespace: a DNS label (RFC 1123 §2.1), at most 63 bytes.
///
/// # Errors
/// What is wrong with it.
pub fn namespace(text: &str) -> Result<String, String> {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label =
        (1..=63).contains(&text.len()) && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-');
    if is_label { Ok(text.into()) } else { Err("not the name of a namespace".into()) }
}

/// One requirement on labels, `key=value`. A key may have a DNS prefix, `example.com/app`.
///
/// # Errors
/// What is wrong with it.
pub fn label_requirement(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is spelled `key=value`")?;
    let value = value.strip_prefix('=').unwrap_or(value);
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_prefix = |prefix: &str| {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        (1..=253).contains(&prefix.len()) && prefix.bytes().all(is_inner)
    };
    if name.is_empty() || !is_word(name) || !prefix.is_none_or(is_prefix) {
        return Err(format!("`{key}` is no key of a label"));
    }
    if !is_word(value) {
        return Err(format!("`{value}` is no value of a label"));
    }
    Ok((key.into(), value.into()))
}

/// At most 63 letters, digits, `-`, `_` and `.`, the first and last a letter or digit.
fn is_word(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63 && text.bytes().all(is_inner) && is_end(text.bytes().next()) && is_end(text.bytes().next_back())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn labels_are_checked_as_kubernetes_does() {
        for (text, expected) in [
            ("app=vllm", Some(("app", "vllm"))),
            ("app==vllm", Some(("app", "vllm"))),
            ("app=", Some(("app", ""))),
            ("example.com/app=A_b.c-1", Some(("example.com/app", "A_b.c-1"))),
            ("app", None),
            ("=vllm", None),
            ("app=a b", None),
            ("app=-a", None),
            ("app!=a", None),
            ("/app=a", None),
            ("Example/app=a", None),
        ] {
            let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
            assert_eq!(label_requirement(text).ok(), expected, "{text}");
        }
        assert!(label_requirement(&format!("a={}", "v".repeat(64))).is_err());
    }

    #[test]
    fn ports_are_numbers_or_names() {
        for (text, expected) in [
            ("80", Some(PodPort::Number(80))),
            ("0", None),
            ("65536", None),
            ("http", Some(PodPort::Name("http".into()))),
            ("http-2", Some(PodPort::Name("http-2".into()))),
            ("-http", None),
            ("HTTP", None),
            ("a-name-beyond-15", None),
            ("", None),
        ] {
            assert_eq!(pod_port(text).ok(), expected, "{text}");
        }
        assert_eq!((namespace("smg").is_ok(), namespace("Smg").is_ok(), namespace("").is_ok()), (true, false, false));
    }

    #[test]
    fn equal_searches_have_equal_numbers() {
        let search = |namespace: Option<&str>, labels: &[&str]| PodSearch {
            namespace: namespace.map(str::to_owned),
            labels: labels.iter().map(|text| label_requirement(text).unwrap()).collect(),
        };
        let one = search(Some("ns"), &["b=2", "a=1"]);
        assert_eq!((one.selector().as_str(), one.number()), ("a=1,b=2", search(Some("ns"), &["a=1", "b=2"]).number()));
        for other in [search(None, &["a=1", "b=2"]), search(Some("ns"), &["a=1"])] {
            assert_ne!(one.number(), other.number());
        }
    }
}
