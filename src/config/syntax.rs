//! Text forms of flags: mesh peers, labels, origins.

use url::{Host, Url};

/// Port of a mesh peer that names none.
pub const MESH_PORT: u16 = 39527;

/// A mesh peer as `host:port`: an optional scheme (`http`, `https`, `grpc`, `udp`, `quic`) is removed, the port is
/// 39527 where none is given, IPv6 stands in brackets.
///
/// # Errors
///
/// The reason, when the text names no host and port.
pub fn mesh_peer(text: &str) -> Result<String, String> {
    let text = text.trim();
    let rest = match text.split_once("://") {
        None => text,
        Some(("http" | "https" | "grpc" | "udp" | "quic", rest)) => rest,
        Some((scheme, _)) => return Err(format!("`{scheme}` is no scheme of the mesh: write host:port")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (name, port) = split_port(rest)?;
    Ok(format!("{}:{}", host(name)?, port.unwrap_or(MESH_PORT)))
}

/// A host name, or an IP literal with brackets around IPv6. The unspecified address names no host.
///
/// # Errors
///
/// The reason, when the text is neither.
pub fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let shown = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
    if shown.contains(|c: char| !(c.is_ascii_alphanumeric() || "-._:[]%".contains(c))) {
        return Err(format!("`{text}` is no host name"));
    }
    let is_unspecified = match Host::parse(&shown).map_err(|_| format!("`{text}` is no host name"))? {
        Host::Domain(_) => false,
        Host::Ipv4(ip) => ip.is_unspecified(),
        Host::Ipv6(ip) => ip.is_unspecified(),
    };
    if is_unspecified { Err(format!("{bare} is every address and names no host")) } else { Ok(shown) }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    let (name, port) = match text.rfind(']') {
        Some(end) => match &text[end + 1..] {
            "" => (text, None),
            rest => (&text[..=end], Some(rest.strip_prefix(':').ok_or("write [address]:port")?)),
        },
        None if text.matches(':').count() > 1 => return Err("write an IPv6 address in brackets: [::1]:39527".into()),
        None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
    };
    match port.map(str::parse::<u16>) {
        None => Ok((name, None)),
        Some(Ok(port)) if port > 0 => Ok((name, Some(port))),
        Some(_) => Err("a port is a number from 1 to 65535".into()),
    }
}

/// A label of the mesh: 1 to 64 visible ASCII characters.
///
/// # Errors
///
/// The rule, when the text breaks it.
pub fn label(text: &str) -> Result<String, String> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > 64 || !is_plain {
        return Err("a label has 1 to 64 visible ASCII characters".into());
    }
    Ok(text.to_owned())
}

/// A browser origin: `*`, or `http(s)://host[:port]` and nothing after it.
///
/// # Errors
///
/// The rule, when the text breaks it.
pub fn cors_origin(text: &str) -> Result<String, String> {
    if text == "*" || text == "null" {
        return Ok(text.to_owned());
    }
    let rule = || "an origin is `*` or http(s)://host[:port] without a path".to_owned();
    let url = Url::parse(text).map_err(|_| rule())?;
    let origin = url.origin().ascii_serialization();
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !matches!(url.scheme(), "http" | "https") || !is_bare { Err(rule()) } else { Ok(origin) }
}

/// An OTLP endpoint; `http://` is added where there is no scheme.
///
/// # Errors
/// When it is no http or https URL with a host.
pub fn otlp_endpoint(text: &str) -> Result<String, String> {
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&text).map_err(|error| format!("{error}; write http://HOST:PORT"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("write http://HOST:PORT or https://HOST:PORT".to_owned());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mesh_peers_are_host_and_port() {
        for (case, text, expected) in [
            ("as in the manual", "node1:39527", Ok("node1:39527")),
            ("default port", "node1", Ok("node1:39527")),
            ("blanks around", " node1:1 ", Ok("node1:1")),
            ("scheme", "grpc://node1:1", Ok("node1:1")),
            ("scheme and slash", "http://node1:1/", Ok("node1:1")),
            ("stateful set pod", "smg-0.smg-mesh:39527", Ok("smg-0.smg-mesh:39527")),
            ("IPv4", "127.0.0.2:39527", Ok("127.0.0.2:39527")),
            ("IPv6", "[::1]:39527", Ok("[::1]:39527")),
            ("IPv6 without port", "[fd00::1]", Ok("[fd00::1]:39527")),
            ("IPv6 without brackets", "fd00::1", Err("brackets")),
            ("other scheme", "ftp://node1:1", Err("`ftp`")),
            ("path", "node1:1/x", Err("port")),
            ("port 0", "node1:0", Err("1 to 65535")),
            ("port too large", "node1:65536", Err("1 to 65535")),
            ("no host", ":39527", Err("host name")),
            ("every address", "0.0.0.0:39527", Err("every address")),
            ("blank inside", "node 1:1", Err("host name")),
        ] {
            check(case, mesh_peer(text), expected);
        }
    }

    #[test]
    fn origins_have_no_path() {
        for (case, text, expected) in [
            ("any", "*", Ok("*")),
            ("host", "https://chat.example", Ok("https://chat.example")),
            ("trailing slash", "https://chat.example/", Ok("https://chat.example")),
            ("port", "http://localhost:3000", Ok("http://localhost:3000")),
            ("path", "https://chat.example/a", Err("without a path")),
            ("no scheme", "chat.example", Err("without a path")),
        ] {
            check(case, cors_origin(text), expected);
        }
    }

    fn check(case: &str, actual: Result<String, String>, expected: Result<&str, &str>) {
        match (actual, expected) {
            (Ok(actual), Ok(expected)) => assert_eq!(actual, expected, "{case}"),
            (Err(actual), Err(part)) => assert!(actual.contains(part), "{case}: {actual}"),
            (actual, expected) => panic!("{case}: {actual:?} instead of {expected:?}"),
        }
    }
}
