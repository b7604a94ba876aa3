//! Who may use the admin routes.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};

use crate::{
    config::Auth,
    gateway::{error::GatewayError, keys},
};

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
) -> Result<Response, GatewayError> {
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    check(&auth.admin_api_keys, client, request.headers())?;
    Ok(next.run(request).await)
}

fn check(keys: &[String], client: Option<IpAddr>, headers: &HeaderMap) -> Result<(), GatewayError> {
    if !keys.is_empty() {
        return if keys::has_one_of(headers, keys) { Ok(()) } else { Err(GatewayError::AdminKey) };
    }
    let is_lent = [header::FORWARDED, header::ORIGIN].iter().any(|name| headers.contains_key(name))
        || headers.contains_key("x-forwarded-for");
    let is_local = client.is_some_and(|ip| ip.to_canonical().is_loopback());
    if is_local && !is_lent { Ok(()) } else { Err(GatewayError::AdminLocalOnly) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn keys_or_loopback() {
        let keys = ["one".to_owned(), "two".to_owned()];
        let (none, all) = (&keys[..0], &keys[..]);
        for (case, keys, client, header, expected) in [
            ("right key from afar", all, "10.0.0.1", Some(("authorization", "Bearer one")), Ok(())),
            ("second key", all, "10.0.0.1", Some(("authorization", "bearer two")), Ok(())),
            ("wrong key", all, "127.0.0.1", Some(("authorization", "Bearer onE")), Err(GatewayError::AdminKey)),
            ("beginning of a key", all, "127.0.0.1", Some(("authorization", "Bearer on")), Err(GatewayError::AdminKey)),
            (
                "longer than a key",
                all,
                "127.0.0.1",
                Some(("authorization", "Bearer onee")),
                Err(GatewayError::AdminKey),
            ),
            ("empty key", all, "127.0.0.1", Some(("authorization", "Bearer ")), Err(GatewayError::AdminKey)),
            ("other scheme", all, "127.0.0.1", Some(("authorization", "Basic one")), Err(GatewayError::AdminKey)),
            ("no key", all, "127.0.0.1", None, Err(GatewayError::AdminKey)),
            ("loopback", none, "127.0.0.1", None, Ok(())),
            ("loopback range", none, "127.0.0.9", None, Ok(())),
            ("loopback v6", none, "::1", None, Ok(())),
            ("mapped loopback", none, "::ffff:127.0.0.1", None, Ok(())),
            ("afar", none, "10.0.0.1", None, Err(GatewayError::AdminLocalOnly)),
            ("proxied", none, "127.0.0.1", Some(("x-forwarded-for", "10.0.0.1")), Err(GatewayError::AdminLocalOnly)),
            ("proxied, standard", none, "127.0.0.1", Some(("forwarded", "for=x")), Err(GatewayError::AdminLocalOnly)),
            ("browser", none, "127.0.0.1", Some(("origin", "http://evil")), Err(GatewayError::AdminLocalOnly)),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(
                header.map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())),
            );
            assert_eq!(check(keys, Some(client.parse().unwrap()), &headers), expected, "{case}");
        }
        assert_eq!(check(none, None, &HeaderMap::new()), Err(GatewayError::AdminLocalOnly), "address unknown");
    }
}
