//! The parser's own refusals, in the shape that every other error has.
//!
//! The HTTP/1.1 parser answers a head that it cannot read by itself, with a bare 400, 431 or 414, and no request ever
//! reaches the gateway. Such an answer is recognised where it is written, and another one goes out in its place. It
//! cannot be mistaken: it has a status line and at most the three headers below, while each of the gateway's answers,
//! relayed ones included, carries a request id.

use bytes::Bytes;
use http::HeaderValue;

use crate::gateway::error::GatewayError;

/// Longest answer of the parser in bytes.
const ANSWER_BYTES_MAX: usize = 256;

/// All that the parser's answers say.
const HEADERS: [&str; 3] = ["connection", "content-length", "date"];

/// The parser's answer, where these bytes are one.
pub(crate) fn of_parser(written: &[u8]) -> Option<GatewayError> {
    // First of all what tells nearly every other answer apart.
    let status = written.strip_prefix(b"HTTP/1.1 4")?.first_chunk::<2>()?;
    let error = match status {
        b"00" => GatewayError::Head,
        b"31" | b"14" => GatewayError::HeadTooLarge,
        _ => return None,
    };
    let text = std::str::from_utf8(written.get(..ANSWER_BYTES_MAX.min(written.len()))?).ok()?;
    let head = text.strip_suffix("\r\n\r\n").filter(|_| text.len() == written.len())?;
    let mut names = head.split("\r\n").skip(1).map(|line| line.split_once(':').unwrap_or_default().0);
    names.all(|name| HEADERS.iter().any(|known| known.eq_ignore_ascii_case(name))).then_some(error)
}

/// The whole answer, head and body; `date` is a line of the one that it replaces.
pub(crate) fn answer(error: &GatewayError, replaced: &[u8], request_id: (&str, &HeaderValue)) -> Bytes {
    let (status, body) = (error.status(), error.json());
    let reason = status.canonical_reason().unwrap_or_default();
    let mut answer = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    let mut line = |name: &str, value: &[u8]| {
        answer.extend_from_slice(name.as_bytes());
        answer.extend_from_slice(b": ");
        answer.extend_from_slice(value);
        answer.extend_from_slice(b"\r\n");
    };
    for (name, value) in error.response().headers() {
        line(name.as_str(), value.as_bytes());
    }
    line(request_id.0, request_id.1.as_bytes());
    line("content-length", body.len().to_string().as_bytes());
    if let Some(date) = date(replaced) {
        line("date", date);
    }
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(body.as_bytes());
    answer.into()
}

fn date(replaced: &[u8]) -> Option<&[u8]> {
    let mut lines = replaced.split(|&byte| byte == b'\n');
    lines.find_map(|line| line.strip_prefix(b"date: ")).map(<[u8]>::trim_ascii_end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const DATE: &str = "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

    #[test]
    fn the_parsers_answers_and_no_others() {
        for (case, written, expected) in [
            ("400", "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\nDATE\r\n\r\n", Some(400)),
            ("431", "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nDATE\r\n\r\n", Some(431)),
            ("414", "HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\nDATE\r\n\r\n", Some(431)),
            ("200", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nDATE\r\n\r\n", None),
            ("404", "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nDATE\r\n\r\n", None),
            (
                "with a request id",
                "HTTP/1.1 400 Bad Request\r\nx-request-id: 1\r\ncontent-length: 0\r\nDATE\r\n\r\n",
                None,
            ),
            ("with a body", "HTTP/1.1 400 Bad Request\r\ncontent-length: 1\r\nDATE\r\n\r\nx", None),
            ("cut off", "HTTP/1.1 400 Bad Request\r\ncontent-len", None),
            ("nothing", "", None),
        ] {
            let written = written.replace("DATE", DATE.trim_end());
            let found = of_parser(written.as_bytes()).map(|error| error.status().as_u16());
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn an_answer_is_a_whole_message() {
        let id = HeaderValue::from_static("abc");
        let answer =
            answer(&GatewayError::HeadTooLarge, format!("HTTP/1.1 431 x\r\n{DATE}\r\n").as_bytes(), ("x-id", &id));
        let text = std::str::from_utf8(&answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        for line in ["x-smg-error-code: head_too_large", "connection: close", "x-id: abc", DATE.trim_end()] {
            assert!(head.lines().any(|found| found == line), "{line} in {head}");
        }
        assert!(head.lines().any(|line| line == format!("content-length: {}", body.len())), "{head}");
        assert_eq!(body, GatewayError::HeadTooLarge.json());
    }
}
