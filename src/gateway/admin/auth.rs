//! Who may use the admin routes.

use std::{
    hint::black_box,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};

use crate::{config::Auth, gateway::admin::error::AdminError};

/// Lets a request through that carries one of the admin keys as Bearer. Where no admin key is configured, it must come
/// from this machine itself: from a loopback address, neither through a proxy (`Forwarded`, `X-Forwarded-For`) nor
/// from a page in a browser (`Origin`), since either would lend the address to a stranger.
///
/// # Errors
/// 401 without a valid key, 403 for others than loopback clients when there is no key.
pub async fn require_admin(
    State(auth): State<Arc<Auth>>,
    request: Request,
    next: Next,
) -> Result<Response, AdminError> {
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    check(&auth.admin_api_keys, client, request.headers())?;
    Ok(next.run(request).await)
}

fn check(keys: &[String], client: Option<IpAddr>, headers: &HeaderMap) -> Result<(), AdminError> {
    if !keys.is_empty() {
        return if bearer(headers).is_some_and(|key| is_one_of(key, keys)) { Ok(()) } else { Err(AdminError::Key) };
    }
    let is_lent = [header::FORWARDED, header::ORIGIN].iter().any(|name| headers.contains_key(name))
        || headers.contains_key("x-forwarded-for");
    let is_local = client.is_some_and(|ip| ip.to_canonical().is_loopback());
    if is_local && !is_lent { Ok(()) } else { Err(AdminError::NotLocal) }
}

/// The key that a request carries as `Authorization: Bearer` (RFC 6750 §2.1; the scheme's case does not matter).
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Whether `key` is one of `keys`, in a time that depends on their lengths and number alone.
#[must_use]
pub fn is_one_of(key: &[u8], keys: &[String]) -> bool {
    keys.iter().fold(false, |found, candidate| found | is_equal(key, candidate.as_bytes()))
}

fn is_equal(given: &[u8], expected: &[u8]) -> bool {
    let mut difference = given.len() ^ expected.len();
    for (index, byte) in expected.iter().enumerate() {
        let other = given.get(index).copied().unwrap_or_default();
        // Without `black_box` the compiler may leave the loop at the first difference.
        difference = black_box(difference | usize::from(byte ^ other));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_or_loopback() {
        let keys = ["one".to_owned(), "two".to_owned()];
        let (none, all) = (&keys[..0], &keys[..]);
        for (case, keys, client, header, expected) in [
            ("right key from afar", all, "10.0.0.1", Some(("authorization", "Bearer one")), Ok(())),
            ("second key", all, "10.0.0.1", Some(("authorization", "bearer two")), Ok(())),
            ("wrong key", all, "127.0.0.1", Some(("authorization", "Bearer onE")), Err(AdminError::Key)),
            ("beginning of a key", all, "127.0.0.1", Some(("authorization", "Bearer on")), Err(AdminError::Key)),
            ("longer than a key", all, "127.0.0.1", Some(("authorization", "Bearer onee")), Err(AdminError::Key)),
            ("empty key", all, "127.0.0.1", Some(("authorization", "Bearer ")), Err(AdminError::Key)),
            ("other scheme", all, "127.0.0.1", Some(("authorization", "Basic one")), Err(AdminError::Key)),
            ("no key", all, "127.0.0.1", None, Err(AdminError::Key)),
            ("loopback", none, "127.0.0.1", None, Ok(())),
            ("loopback range", none, "127.0.0.9", None, Ok(())),
            ("loopback v6", none, "::1", None, Ok(())),
            ("mapped loopback", none, "::ffff:127.0.0.1", None, Ok(())),
            ("afar", none, "10.0.0.1", None, Err(AdminError::NotLocal)),
            ("proxied", none, "127.0.0.1", Some(("x-forwarded-for", "10.0.0.1")), Err(AdminError::NotLocal)),
            ("proxied, standard", none, "127.0.0.1", Some(("forwarded", "for=x")), Err(AdminError::NotLocal)),
            ("browser", none, "127.0.0.1", Some(("origin", "http://evil")), Err(AdminError::NotLocal)),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(
                header.map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())),
            );
            assert_eq!(check(keys, Some(client.parse().unwrap()), &headers), expected, "{case}");
        }
        assert_eq!(check(none, None, &HeaderMap::new()), Err(AdminError::NotLocal), "address unknown");
    }

    proptest! {
        #[test]
        fn equal_means_equal(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(is_equal(a.as_bytes(), b.as_bytes()), a == b);
            prop_assert!(is_equal(a.as_bytes(), a.as_bytes()));
        }
    }
}
