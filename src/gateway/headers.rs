//! Which headers pass, in both directions, and the request id.
//!
//! Hop-by-hop headers and those that `Connection` names end here (RFC 9110 §7.6.1). Towards a worker `Host`,
//! `Content-Length` and `Authorization` are ours; `X-SMG-*` steers the gateway and goes no further. A client's
//! `Authorization` passes only when the gateway itself checks no keys and the worker has none of its own.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use rand::Rng;

use crate::gateway::worker::Worker;

/// Longest request id in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Tokens per second, or requests in flight.
const RATE_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");

/// Tokens that are left.
const RATE_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

/// Seconds until the whole burst is there again.
const RATE_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Whether a header concerns one connection alone.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::TE
        || *name == header::UPGRADE
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

/// Whether a client's header goes no further than the gateway.
fn is_ours(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == header::CONTENT_LENGTH
        || *name == header::EXPECT
        || *name == header::TRAILER
        || is_hop_by_hop(name)
        || name.as_str().starts_with("x-smg-")
}

/// Header names that `Connection` lists, without `close` and `keep-alive`, which name none.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let tokens = values.flat_map(|value| value.split(',').map(str::trim));
    let names =
        tokens.filter(|token| !token.eq_ignore_ascii_case("close") && !token.eq_ignore_ascii_case("keep-alive"));
    names.filter_map(|token| token.parse().ok()).collect()
}

/// What the gateway adds to the headers of a client.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    /// The header that carries the request id, and the id.
    pub request_id: (&'a HeaderName, &'a HeaderValue),
    /// The client's `Authorization` is none of the gateway's.
    pub keeps_authorization: bool,
    /// Which span the worker continues (W3C Trace Context §3), and whether it belongs to a context of the client's: what
    /// a client says of a context that is not continued goes no further.
    pub context: Option<(&'a HeaderValue, bool)>,
}

/// Gives `each` the headers of the request to `worker`, made from the client's, but for those that frame its body.
pub fn to_worker(
    client: &HeaderMap,
    worker: &Worker,
    added: Added<'_>,
    mut each: impl FnMut(&HeaderName, &HeaderValue),
) {
    let named = named_by_connection(client);
    let keeps_authorization = added.keeps_authorization && worker.authorization.is_none();
    let is_replaced = |name: &HeaderName| {
        name == added.request_id.0
            || *name == header::AUTHORIZATION && !keeps_authorization
            || added.context.is_some_and(|(_, is_clients)| *name == TRACEPARENT || *name == TRACESTATE && !is_clients)
    };
    each(&header::HOST, &worker.host);
    for (name, value) in client {
        if !(is_ours(name) || is_replaced(name) || named.contains(name)) {
            each(name, value);
        }
    }
    each(added.request_id.0, added.request_id.1);
    if let Some(authorization) = &worker.authorization {
        each(&header::AUTHORIZATION, authorization);
    }
    if let Some((traceparent, _)) = added.context {
        each(&TRACEPARENT, traceparent);
    }
}

/// Takes out of a worker's response headers what must not reach the client.
pub fn from_worker(headers: &mut HeaderMap) {
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    let dropped: [HeaderName; 8] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::TE,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
    ];
    // One pass finds whether there is anything to do: usually there is not, and removal hashes each name.
    if headers.keys().any(is_hop_by_hop) {
        for name in dropped {
            headers.remove(name);
        }
    }
}

/// The request id and the header that carries it: the first of `names` that the client sent, else a new one under
/// the first name. What is no visible ASCII or too long is replaced.
pub fn request_id(client: &HeaderMap, names: &[HeaderName], rng: &mut impl Rng) -> (HeaderName, HeaderValue) {
    const DEFAULT: HeaderName = HeaderName::from_static("x-request-id");
    for name in names {
        if let Some(value) = client.get(name) {
            let value = if is_request_id(value.as_bytes()) { value.clone() } else { new_request_id(rng) };
            return (name.clone(), value);
        }
    }
    (names.first().cloned().unwrap_or(DEFAULT), new_request_id(rng))
}

fn is_request_id(value: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic)
}

/// 128 random bits in hexadecimal.
fn new_request_id(rng: &mut impl Rng) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut random = [0; 16];
    rng.fill_bytes(&mut random);
    let mut text = [0; 32];
    for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(random) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
    HeaderValue::from_bytes(&text).expect("hexadecimal digits are a header value")
}

/// Whether the body is declared as plain JSON.
#[must_use]
pub fn is_json(headers: &HeaderMap) -> bool {
    let encoded = headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    let Some(Ok(value)) = headers.get(header::CONTENT_TYPE).map(HeaderValue::to_str) else { return false };
    let essence = value.split_once(';').map_or(value, |(essence, _)| essence).trim();
    let is_json = match essence.as_bytes().split_at_checked("application/".len()) {
        Some((head, rest)) if head.eq_ignore_ascii_case(b"application/") => {
            rest.eq_ignore_ascii_case(b"json")
                || rest.len() > 5 && rest[rest.len() - 5..].eq_ignore_ascii_case(b"+json")
        }
        _ => false,
    };
    is_json && !encoded
}

/// Tells a client of the limit that binds it, in place of what a worker says of one of its own.
pub fn rate_limit(headers: &mut HeaderMap, limit: u64, remaining: u64, reset: Duration) {
    headers.insert(RATE_LIMIT, HeaderValue::from(limit));
    headers.insert(RATE_REMAINING, HeaderValue::from(remaining));
    headers.insert(RATE_RESET, HeaderValue::from(whole_seconds(reset)));
}

/// Seconds, rounded up.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::mesh::stores::WorkerId;

    fn worker(authorization: Option<&'static str>) -> Worker {
        let authority = "10.0.0.1:8000".parse().unwrap();
        Worker::new(
            WorkerId::of_url("http://10.0.0.1:8000"),
            false,
            authority,
            HeaderValue::from_static("10.0.0.1:8000"),
            String::new(),
            authorization.map(HeaderValue::from_static),
        )
    }

    fn map(lines: &[&'static str]) -> HeaderMap {
        let pairs = lines.iter().map(|line| line.split_once(": ").unwrap());
        pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn sent(
        client: &HeaderMap,
        worker: &Worker,
        keeps_authorization: bool,
        context: Option<(&HeaderValue, bool)>,
    ) -> HeaderMap {
        let id = (HeaderName::from_static("x-request-id"), HeaderValue::from_static("id"));
        let added = Added { request_id: (&id.0, &id.1), keeps_authorization, context };
        let mut sent = HeaderMap::new();
        to_worker(client, worker, added, |name, value| {
            sent.append(name.clone(), value.clone());
        });
        sent
    }

    #[test]
    fn contexts_of_traces() {
        let client = map(&["traceparent: theirs", "tracestate: a=b"]);
        let ours = HeaderValue::from_static("ours");
        for (case, context, parent, state) in [
            ("no tracing", None, "theirs", Some("a=b")),
            ("theirs is continued", Some((&ours, true)), "ours", Some("a=b")),
            ("another begins", Some((&ours, false)), "ours", None),
        ] {
            let headers = sent(&client, &worker(None), true, context);
            assert_eq!(headers.get_all("traceparent").iter().collect::<Vec<_>>(), [parent], "{case}");
            assert_eq!(headers.get("tracestate").map(|value| value.to_str().unwrap()), state, "{case}");
        }
    }

    #[test]
    fn request_headers() {
        for (case, line, expected) in [
            ("plain ones pass", "accept: x", Some("x")),
            ("custom ones pass", "x-custom: x", Some("x")),
            ("host", "host: evil", Some("10.0.0.1:8000")),
            ("length is set anew", "content-length: 3", None),
            ("hop by hop", "transfer-encoding: chunked", None),
            ("te", "te: trailers", None),
            ("upgrade", "upgrade: h2c", None),
            ("keep-alive", "keep-alive: 5", None),
            ("proxy", "proxy-authorization: x", None),
            ("expectation", "expect: 100-continue", None),
            ("steering", "x-smg-routing-key: x", None),
            ("named by connection", "x-named: x", None),
            ("id", "x-request-id: other", Some("id")),
        ] {
            let mut client = map(&[line]);
            client.insert(header::CONNECTION, HeaderValue::from_static("close, X-Named"));
            let headers = sent(&client, &worker(None), true, None);
            let name = line.split_once(": ").unwrap().0;
            assert_eq!(headers.get(name).map(|value| value.to_str().unwrap()), expected, "{case}");
            assert!(!headers.contains_key(header::CONNECTION), "{case}");
            assert_eq!(headers["x-request-id"], "id", "{case}");
        }
    }

    #[test]
    fn authorization_of_the_right_party() {
        for (case, own, keeps, expected) in [
            ("gateway open", None, true, Some("client")),
            ("gateway checks keys", None, false, None),
            ("worker has a key", Some("own"), true, Some("own")),
            ("both", Some("own"), false, Some("own")),
        ] {
            let client = map(&["authorization: client"]);
            let headers = sent(&client, &worker(own), keeps, None);
            let values: Vec<_> = headers.get_all(header::AUTHORIZATION).iter().collect();
            assert_eq!(values, expected.iter().collect::<Vec<_>>(), "{case}");
        }
    }

    #[test]
    fn response_headers() {
        let mut headers = map(&[
            "connection: x-named, close",
            "x-named: 1",
            "keep-alive: timeout=5",
            "transfer-encoding: chunked",
            "set-cookie: a",
            "set-cookie: b",
            "content-type: application/json",
        ]);
        headers.append(header::SET_COOKIE, HeaderValue::from_static("b"));
        from_worker(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "set-cookie"]);
        assert!(headers.get_all(header::SET_COOKIE).iter().count() >= 2, "repeated headers survive");
    }

    #[test]
    fn request_ids() {
        let names = [HeaderName::from_static("x-correlation-id"), HeaderName::from_static("x-request-id")];
        let long: &'static str = "x-request-id: ".to_owned().leak();
        let long: &'static str = (long.to_owned() + &"a".repeat(129)).leak();
        for (case, lines, name, kept) in [
            ("none", &[][..], "x-correlation-id", None),
            ("second", &["x-request-id: r"], "x-request-id", Some("r")),
            ("first wins", &["x-request-id: r", "x-correlation-id: c"], "x-correlation-id", Some("c")),
            ("blank inside", &["x-request-id: a b"], "x-request-id", None),
            ("empty", &["x-request-id: "], "x-request-id", None),
            ("too long", &[long], "x-request-id", None),
        ] {
            let (found, value) = request_id(&map(lines), &names, &mut StdRng::seed_from_u64(1));
            assert_eq!(found, name, "{case}");
            match kept {
                Some(kept) => assert_eq!(value, kept, "{case}"),
                None => assert!(value.len() == 32 && is_request_id(value.as_bytes()), "{case}"),
            }
        }
    }

    #[test]
    fn content_types() {
        for (line, expected) in [
            ("content-type: application/json", true),
            ("content-type: Application/JSON; charset=utf-8", true),
            ("content-type: application/vnd.api+json", true),
            ("content-type: text/plain", false),
            ("content-type: application/x-www-form-urlencoded", false),
            ("accept: application/json", false),
        ] {
            assert_eq!(is_json(&map(&[line])), expected, "{line}");
        }
        assert!(!is_json(&map(&["content-type: application/json", "content-encoding: gzip"])));
    }
}
