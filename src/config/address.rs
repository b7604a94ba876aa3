//! Worker URLs: one canonical form, so that one worker has one id on every gateway.

use http::{HeaderValue, uri::Authority};
use url::Url;

/// Longest worker URL in bytes, in its canonical form.
pub const URL_BYTES_MAX: usize = 2048;

/// Why a text is no worker URL. Nothing was changed; give another URL.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It is longer than [`URL_BYTES_MAX`].
    #[error("a worker URL has at most {URL_BYTES_MAX} bytes")]
    TooLong,
    /// It is no URL at all.
    #[error("not a URL; a worker URL looks like http://host:port")]
    Malformed,
    /// The scheme is missing, or another than `http` and `https`.
    #[error("a worker URL starts with http:// or https://")]
    Scheme,
    /// There is a user name or a password in it.
    #[error("a worker URL has no user name or password; give an API key instead")]
    Userinfo,
    /// There is a `?` or a `#` in it.
    #[error("a worker URL has no query and no fragment")]
    QueryOrFragment,
    /// Port 0 is nobody's.
    #[error("a worker URL has a port from 1 to 65535")]
    Port,
}

/// The canonical form of a worker URL: scheme and host in lower case, the default port left out, no trailing slash.
///
/// # Errors
/// When the text is no worker URL.
pub fn canonical(text: &str) -> Result<String, AddressError> {
    let url = parse(text)?;
    // The URL standard lets characters into a host that an HTTP authority has not (RFC 3986 §3.2.2).
    authority(&url)?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Where a worker is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Address {
    pub(crate) tls: bool,
    pub(crate) authority: Authority,
    pub(crate) host: HeaderValue,
    pub(crate) path_prefix: String,
}

impl Address {
    pub(crate) fn parse(text: &str) -> Result<Self, AddressError> {
        let url = parse(text)?;
        let authority = authority(&url)?;
        // The default port is left out of `Host`, as every client does (RFC 9110 §7.2 with §4.2.3).
        let host = if url.port().is_some() { authority.as_str() } else { authority.host() };
        let host = HeaderValue::try_from(host).map_err(|_| AddressError::Malformed)?;
        let path_prefix = url.path().trim_end_matches('/').to_owned();
        Ok(Self { tls: url.scheme() == "https", authority, host, path_prefix })
    }
}

/// Host and port as a request and a connection name them.
fn authority(url: &Url) -> Result<Authority, AddressError> {
    let host = url.host_str().ok_or(AddressError::Malformed)?;
    let port = url.port_or_known_default().ok_or(AddressError::Port)?;
    Authority::try_from(format!("{host}:{port}")).map_err(|_| AddressError::Malformed)
}

fn parse(text: &str) -> Result<Url, AddressError> {
    if text.len() > URL_BYTES_MAX {
        return Err(AddressError::TooLong);
    }
    // The URL standard drops tabs and line ends silently and reads `\` as `/`; here they are mistakes.
    if text.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'\\') {
        return Err(AddressError::Malformed);
    }
    let (scheme, rest) = text.split_once("://").ok_or(AddressError::Scheme)?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(AddressError::Scheme);
    }
    // The URL standard skips further slashes and takes the path for the host.
    if rest.starts_with('/') {
        return Err(AddressError::Malformed);
    }
    let url = Url::parse(text).map_err(|_| AddressError::Malformed)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(AddressError::Userinfo);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(AddressError::QueryOrFragment);
    }
    if url.port() == Some(0) {
        return Err(AddressError::Port);
    }
    // Percent-encoding can lengthen what was given.
    if url.as_str().len() > URL_BYTES_MAX {
        return Err(AddressError::TooLong);
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_worker_has_one_form() {
        let long = format!("http://w/{}", "a".repeat(URL_BYTES_MAX));
        for (case, text, expected) in [
            ("plain", "http://w1:8000", Ok("http://w1:8000")),
            ("trailing slash", "http://w1:8000/", Ok("http://w1:8000")),
            ("upper case", "HTTP://Worker:8000", Ok("http://worker:8000")),
            ("path keeps its case", "http://w:8000/Team/a/", Ok("http://w:8000/Team/a")),
            ("default port", "http://w:80", Ok("http://w")),
            ("ipv6", "http://[2001:DB8::1]:8000/", Ok("http://[2001:db8::1]:8000")),
            ("no scheme", "w1:8000", Err(AddressError::Scheme)),
            ("other scheme", "ftp://w1", Err(AddressError::Scheme)),
            ("tls", "HTTPS://w1:8443/", Ok("https://w1:8443")),
            ("default port of tls", "https://w1:443", Ok("https://w1")),
            ("default port of the other", "https://w1:80", Ok("https://w1:80")),
            ("user", "http://u@w1", Err(AddressError::Userinfo)),
            ("password", "http://:p@w1", Err(AddressError::Userinfo)),
            ("query", "http://w1?a=b", Err(AddressError::QueryOrFragment)),
            ("fragment", "http://w1#a", Err(AddressError::QueryOrFragment)),
            ("default port and slash", "http://w:80/", Ok("http://w")),
            ("slashes at the end", "http://w:8000//", Ok("http://w:8000")),
            ("ipv6 in long form", "http://[0:0:0:0:0:0:0:1]:8000", Ok("http://[::1]:8000")),
            ("one slash", "http:/w1:8000", Err(AddressError::Scheme)),
            ("three slashes", "http:///w1", Err(AddressError::Malformed)),
            ("backslashes", "http:\\\\w1", Err(AddressError::Malformed)),
            ("backslash", "http://w1\\a", Err(AddressError::Malformed)),
            ("no host", "http://", Err(AddressError::Malformed)),
            ("space", "http://w 1", Err(AddressError::Malformed)),
            ("line end", "http://w1\n", Err(AddressError::Malformed)),
            ("quote in the host", "http://w%22", Err(AddressError::Malformed)),
            ("port too large", "http://w1:65536", Err(AddressError::Malformed)),
            ("port 0", "http://w1:0", Err(AddressError::Port)),
            ("empty", "", Err(AddressError::Scheme)),
            ("too long", &*long, Err(AddressError::TooLong)),
        ] {
            assert_eq!(canonical(text), expected.map(str::to_owned), "{case}");
        }
    }

    #[test]
    fn an_address_has_all_that_a_request_needs() {
        for (case, url, authority, host, prefix) in [
            ("host and port", "http://w:8000", "w:8000", "w:8000", ""),
            ("default port", "http://w", "w:80", "w", ""),
            ("ipv6", "http://[::1]:8000", "[::1]:8000", "[::1]:8000", ""),
            ("prefix", "http://w:8000/a/b", "w:8000", "w:8000", "/a/b"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.authority.as_str(), authority, "{case}");
            assert_eq!(address.host.to_str().unwrap(), host, "{case}");
            assert_eq!(address.path_prefix, prefix, "{case}");
            assert!(!address.tls, "{case}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_its_own(text in "(http|HTTP)://[a-zA-Z0-9.:%/\\[\\]@_~-]{0,40}") {
            if let Ok(url) = canonical(&text) {
                prop_assert_eq!(canonical(&url), Ok(url.clone()));
                prop_assert!(Address::parse(&url).is_ok());
            }
        }
    }
}
