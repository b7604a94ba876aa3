//! Cross-origin requests of browsers (Fetch standard §3.2), off until an origin is allowed.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use crate::gateway::body::Body;

/// Whether `origin` may read responses.
fn is_allowed(origin: &HeaderValue, allowed: &[String]) -> bool {
    allowed.iter().any(|entry| entry == "*" || entry.as_bytes() == origin.as_bytes())
}

/// The answer to a preflight; none when the request is no preflight or no origin is allowed at all.
#[must_use]
pub fn preflight(method: &Method, client: &HeaderMap, allowed: &[String]) -> Option<Response<Body>> {
    let is_preflight = *method == Method::OPTIONS && client.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if allowed.is_empty() || !is_preflight {
        return None;
    }
    let mut response = Response::new(Body::full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    if client.get(header::ORIGIN).is_some_and(|origin| is_allowed(origin, allowed)) {
        let headers = response.headers_mut();
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, OPTIONS"),
        );
        if let Some(names) = client.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    Some(response)
}

/// Adds to a response what lets the browser of `origin` read it. What a worker said about origins is replaced: the
/// gateway decides.
pub fn decorate(headers: &mut HeaderMap, origin: Option<&HeaderValue>, allowed: &[String]) {
    if allowed.is_empty() {
        return;
    }
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    let Some(origin) = origin.filter(|origin| is_allowed(origin, allowed)) else { return };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("authorization"));
        headers
    }

    #[test]
    fn origins() {
        for (case, allowed, origin, expected) in [
            ("off", &[][..], "https://a", None),
            ("listed", &["https://a".to_owned()], "https://a", Some("https://a")),
            ("not listed", &["https://a".to_owned()], "https://b", None),
            ("any", &["*".to_owned()], "https://b", Some("https://b")),
        ] {
            let client = client(origin);
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("worker's"));
            decorate(&mut headers, client.get(header::ORIGIN), allowed);
            let found = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).and_then(|value| value.to_str().ok());
            assert_eq!(found, expected.or(allowed.is_empty().then_some("worker's")), "{case}");
            let answer = preflight(&Method::OPTIONS, &client, allowed);
            assert_eq!(answer.is_some(), !allowed.is_empty(), "{case}");
            let allows = answer.is_some_and(|it| it.headers().contains_key(header::ACCESS_CONTROL_ALLOW_HEADERS));
            assert_eq!(allows, expected.is_some(), "{case}");
            assert!(preflight(&Method::GET, &client, allowed).is_none(), "{case}");
        }
    }
}
