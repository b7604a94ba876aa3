//! Heads of HTTP/1.1 messages: a request's as it is written, a response's as it is read (RFC 9112 §2–§6).

use std::{io, io::Write as _, mem::MaybeUninit};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, response::Parts, uri::PathAndQuery};
use httparse::{ParserConfig, Status};

use super::framing::Framing;

/// Largest head of a response in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;

/// Most header lines of a response.
pub(super) const HEADERS_MAX: usize = 128;

/// Bytes set aside for a head; a longer one grows.
const HEAD_SET_ASIDE_BYTES: usize = 512;

/// The head of a request while it is written.
pub(crate) struct RequestHead(Vec<u8>);

impl RequestHead {
    /// Begins with the request line; `prefix` goes before the path, `/` stands for none.
    pub(crate) fn new(method: &Method, prefix: &str, path: Option<&PathAndQuery>) -> Self {
        let mut bytes = Vec::with_capacity(HEAD_SET_ASIDE_BYTES);
        let path = path.map_or("/", PathAndQuery::as_str);
        for part in [method.as_str(), " ", prefix, path, " HTTP/1.1\r\n"] {
            bytes.extend_from_slice(part.as_bytes());
        }
        Self(bytes)
    }

    /// Adds a line.
    pub(crate) fn header(&mut self, name: &HeaderName, value: &HeaderValue) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// The whole head of a request that has `body_bytes` of a body. None at all is said too where the method is one that
    /// usually has a body (RFC 9110 §8.6).
    pub(super) fn end(mut self, body_bytes: usize) -> Vec<u8> {
        let has_body = body_bytes > 0 || [b"POST ", b"PUT /"].iter().any(|method| self.0.starts_with(*method));
        // Writing to memory does not fail.
        let _ =
            if has_body { write!(self.0, "content-length: {body_bytes}\r\n\r\n") } else { self.0.write_all(b"\r\n") };
        self.0
    }
}

/// The head of a response, and how what follows it is framed.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) parts: Parts,
    pub(super) framing: Framing,
    /// The connection serves on after this response (RFC 9112 §9.3).
    pub(super) is_kept: bool,
    /// Bytes of the head.
    pub(super) len: usize,
}

/// Reads the head of a final response from the front of `read`; interim ones before it are passed over by the caller, who
/// sees them by their status. None: it is not whole yet.
///
/// # Errors
/// `InvalidData` when this is no head of HTTP/1, or one that leaves in doubt where the message ends.
pub(super) fn parse(read: &Bytes) -> io::Result<Option<ResponseHead>> {
    let mut lines = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut found = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut found, read, &mut lines);
    let len = match parsed {
        Ok(Status::Complete(len)) if len <= HEAD_BYTES_MAX => len,
        Ok(Status::Partial) if read.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) => return Err(invalid("a head beyond 64 KiB")),
        Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let mut headers = HeaderMap::with_capacity(found.headers.len());
    for line in found.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| invalid("a header's name"))?;
        let value =
            HeaderValue::from_maybe_shared(read.slice_ref(line.value)).map_err(|_| invalid("a header's value"))?;
        headers.append(name, value);
    }
    let status = found.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| invalid("a status"))?;
    let is_http11 = found.version == Some(1);
    let framing = Framing::of_response(status, &mut headers, is_http11)?;
    let is_kept = is_kept(&headers, is_http11) && framing != Framing::UntilClose;
    let mut parts = http::Response::new(()).into_parts().0;
    (parts.status, parts.headers) = (status, headers);
    Ok(Some(ResponseHead { parts, framing, is_kept, len }))
}

fn is_kept(headers: &HeaderMap, is_http11: bool) -> bool {
    let says = |option: &str| {
        let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(option))
    };
    if is_http11 { !says("close") } else { says("keep-alive") && !says("close") }
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(head: &str) -> io::Result<Option<ResponseHead>> {
        parse(&Bytes::copy_from_slice(head.as_bytes()))
    }

    #[test]
    fn requests() {
        let path: PathAndQuery = "/v1/chat/completions?a=b".parse().unwrap();
        let mut head = RequestHead::new(&Method::POST, "/base", Some(&path));
        head.header(&header::HOST, &HeaderValue::from_static("w:1"));
        head.header(&header::ACCEPT, &HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(
            head.end(12),
            b"POST /base/v1/chat/completions?a=b HTTP/1.1\r\nhost: w:1\r\naccept: \xff\r\ncontent-length: 12\r\n\r\n"
        );
        for (method, expected) in [
            (Method::GET, "GET / HTTP/1.1\r\n\r\n"),
            (Method::DELETE, "DELETE / HTTP/1.1\r\n\r\n"),
            (Method::POST, "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
            (Method::PUT, "PUT / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
        ] {
            assert_eq!(String::from_utf8(RequestHead::new(&method, "", None).end(0)).unwrap(), expected);
        }
    }

    #[test]
    fn responses() {
        use Framing::{Chunked, Length, None as Nothing, UntilClose};
        let chunked = || Chunked(super::super::framing::Chunks::default());
        for (head, framing, is_kept) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Length(5), true),
            ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", Nothing, true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\n", Length(5), false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n", Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", Length(5), true),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Nothing, true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Length(5), false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", Length(5), true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", chunked(), true),
            ("HTTP/1.1 200 OK\r\n\r\n", UntilClose, false),
            ("HTTP/1.1 204 No Content\r\n\r\n", Nothing, true),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Nothing, true),
            ("HTTP/1.1 100 Continue\r\n\r\n", Nothing, true),
        ] {
            let found = read(head).unwrap().unwrap();
            assert_eq!((found.framing, found.is_kept, found.len), (framing, is_kept, head.len()), "{head:?}");
            assert!(found.parts.headers.get_all(header::CONTENT_LENGTH).iter().count() <= 1, "{head:?}");
            assert!(read(&head[..head.len() - 1]).unwrap().is_none(), "{head:?} without its end");
        }
        let found = read("HTTP/1.1 201 Created\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 1\r\n\r\nx")
            .unwrap()
            .unwrap();
        assert_eq!(found.parts.status, 201);
        assert_eq!(found.parts.headers.get_all(header::SET_COOKIE).iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn what_leaves_a_doubt_is_refused() {
        let (many, long) = ("a: b\r\n".repeat(HEADERS_MAX + 1), "x".repeat(HEAD_BYTES_MAX));
        for head in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 099 Low\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX-A : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX-A: \0\r\n\r\n",
            &format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
            &format!("HTTP/1.1 200 OK\r\nX-A: {long}"),
            &format!("HTTP/1.1 200 OK\r\nX-A: {long}\r\n\r\n"),
        ] {
            assert!(read(head).is_err(), "{:?}", &head[..head.len().min(80)]);
        }
    }
}
