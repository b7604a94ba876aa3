//! Where the body of a response ends, and which of the bytes read are the body's (RFC 9112 §6 and §7.1).

use std::{io, mem};

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::head::invalid;
use crate::gateway::headers;

/// Bytes of extensions that a chunk may have; they are passed over.
const EXTENSION_BYTES_MAX: usize = 16 << 10;

/// Digits of a chunk's size: 64 bits, zeros in front included.
const SIZE_DIGITS_MAX: usize = 16;

/// Bytes of trailers that one response may have.
const TRAILER_BYTES_MAX: usize = 16 << 10;

/// Most trailer lines of a response.
const TRAILERS_MAX: usize = 64;

/// What is still to come of a body.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Framing {
    /// Nothing.
    None,
    /// So many bytes, more than none.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// All until the worker closes the connection.
    UntilClose,
}

impl Framing {
    /// Of the response with this head. Leaves one `Content-Length` where there were several that agree.
    ///
    /// # Errors
    /// `InvalidData` when two statements disagree, or a coding is not one that was asked for: whoever believed the other
    /// one would see another message here.
    pub(super) fn of_response(status: StatusCode, headers: &mut HeaderMap, is_http11: bool) -> io::Result<Self> {
        let length = length(headers)?;
        let is_chunked = match headers.get(header::TRANSFER_ENCODING) {
            None => false,
            Some(coding) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => true,
            Some(_) => return Err(invalid("a transfer coding other than chunked")),
        };
        let codings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
        if is_chunked && (!is_http11 || length.is_some() || codings > 1) {
            return Err(invalid("a transfer coding where none may be"));
        }
        let is_bodiless =
            status.is_informational() || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        if is_bodiless && status != StatusCode::NOT_MODIFIED {
            // None may be there (RFC 9110 §8.6).
            headers.remove(header::CONTENT_LENGTH);
        }
        Ok(match length {
            _ if is_bodiless => Self::None,
            _ if is_chunked => Self::Chunked(Chunks::default()),
            Some(0) => Self::None,
            Some(length) => Self::Length(length),
            None => Self::UntilClose,
        })
    }

    /// Bytes that are still to come; none where only the end will tell.
    pub(super) fn exact_len(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }
}

/// What `Content-Length` says. Several lines, or a list in one, count as one when they agree (RFC 9110 §8.6).
fn length(headers: &mut HeaderMap) -> io::Result<Option<u64>> {
    let wrong = || invalid("the length of the content");
    let (mut found, mut count) = (None, 0);
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for digits in value.to_str().map_err(|_| wrong())?.split(',').map(str::trim) {
            let length = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let length = length.ok_or_else(wrong)?;
            if *found.get_or_insert(length) != length {
                return Err(invalid("two lengths of the content"));
            }
            count += 1;
        }
    }
    if let Some(length) = found.filter(|_| count > 1) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(found)
}

/// How far a chunked body was read.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Chunks {
    at: At,
    /// What is left of the chunk, or its size as far as it was read.
    left: u64,
    /// Digits of that size.
    digits: usize,
    extension_bytes: usize,
    /// The lines behind the last chunk, as they came.
    trailers: Vec<u8>,
}

/// Which byte comes next.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum At {
    /// The first digit of a size.
    #[default]
    Size,
    MoreSize,
    /// Blanks or an extension behind a size.
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// The first byte of a line behind the last chunk.
    TrailerStart,
    Trailer,
    EndLf,
    End,
}

impl Chunks {
    /// Takes bytes in and puts those of the body into `body`. Gives how many belong to this response, which are all as long
    /// as it goes on.
    ///
    /// # Errors
    /// `InvalidData` when these are no chunks, or with more extensions or trailers than the bounds allow.
    pub(super) fn decode(&mut self, read: &[u8], body: &mut BytesMut) -> io::Result<usize> {
        let mut rest = read;
        while let [byte, tail @ ..] = rest
            && self.at != At::End
        {
            if self.at == At::Data {
                // What is left fits memory where it is less than what was read.
                let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                body.extend_from_slice(&rest[..len]);
                rest = &rest[len..];
                self.left -= len as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            self.step(*byte)?;
            rest = tail;
        }
        Ok(read.len() - rest.len())
    }

    fn step(&mut self, byte: u8) -> io::Result<()> {
        self.at = match (self.at, byte) {
            (At::Size | At::MoreSize, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                self.digits += 1;
                if self.digits > SIZE_DIGITS_MAX {
                    return Err(invalid("the size of a chunk beyond 64 bits"));
                }
                self.left = self.left << 4 | u64::from(digit);
                At::MoreSize
            }
            (At::MoreSize, b' ' | b'\t' | b';') => At::Extension,
            (At::MoreSize | At::Extension, b'\r') => At::SizeLf,
            (At::Extension, byte) if byte != b'\n' => {
                self.extension_bytes += 1;
                if self.extension_bytes > EXTENSION_BYTES_MAX {
                    return Err(invalid("too many extensions of chunks"));
                }
                At::Extension
            }
            (At::SizeLf, b'\n') if self.left > 0 => At::Data,
            (At::SizeLf, b'\n') => At::TrailerStart,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => {
                (self.digits, self.extension_bytes) = (0, 0);
                At::Size
            }
            (At::TrailerStart, b'\r') => At::EndLf,
            (At::TrailerStart | At::Trailer, byte) => {
                self.trailers.push(byte);
                if self.trailers.len() > TRAILER_BYTES_MAX {
                    return Err(invalid("too many trailers"));
                }
                if byte == b'\n' { At::TrailerStart } else { At::Trailer }
            }
            (At::EndLf, b'\n') => At::End,
            _ => return Err(invalid("a chunk")),
        };
        Ok(())
    }

    /// Whether the body was read to its end; trailers may have come with it.
    pub(super) fn is_at_end(&self) -> bool {
        self.at == At::End
    }

    /// The same, and there are no trailers.
    pub(super) fn is_over(&self) -> bool {
        self.is_at_end() && self.trailers.is_empty()
    }

    /// The trailers of a body that was read to its end; none when it has none.
    ///
    /// # Errors
    /// `InvalidData` when these lines are no headers, or too many.
    pub(super) fn trailers(&mut self) -> io::Result<Option<HeaderMap>> {
        let mut section = mem::take(&mut self.trailers);
        if section.is_empty() {
            return Ok(None);
        }
        section.extend_from_slice(b"\r\n");
        let mut lines = [httparse::EMPTY_HEADER; TRAILERS_MAX];
        let parsed = httparse::parse_headers(&section, &mut lines);
        let Ok(httparse::Status::Complete((_, lines))) = parsed else { return Err(invalid("trailers")) };
        let mut trailers = HeaderMap::with_capacity(lines.len());
        for line in lines {
            let (name, value) = (HeaderName::from_bytes(line.name.as_bytes()), HeaderValue::from_bytes(line.value));
            let (Ok(name), Ok(value)) = (name, value) else { return Err(invalid("trailers")) };
            trailers.append(name, value);
        }
        // What concerns the connection or frames the message is no trailer (RFC 9110 §6.5.1).
        headers::from_worker(&mut trailers);
        trailers.remove(header::CONTENT_LENGTH);
        Ok((!trailers.is_empty()).then_some(trailers))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The body, its trailers, and what was left over, when the bytes come in pieces of `size`.
    fn read(bytes: &[u8], size: usize) -> io::Result<(String, Option<HeaderMap>, usize, bool)> {
        let (mut chunks, mut body, mut used) = (Chunks::default(), BytesMut::new(), 0);
        for piece in bytes.chunks(size) {
            used += chunks.decode(piece, &mut body)?;
        }
        let is_at_end = chunks.is_at_end();
        let trailers = if is_at_end { chunks.trailers()? } else { None };
        Ok((String::from_utf8(body.to_vec()).unwrap(), trailers, bytes.len() - used, is_at_end))
    }

    #[test]
    fn chunks_in_any_pieces() {
        let long = format!("a;{}\r\n0123456789\r\n0\r\n\r\n", "x".repeat(EXTENSION_BYTES_MAX));
        for (bytes, body, left, is_at_end) in [
            ("5\r\nhello\r\n0\r\n\r\n", "hello", 0, true),
            ("5\r\nhello\r\nA \t\r\n0123456789\r\n00\r\n\r\n", "hello0123456789", 0, true),
            ("0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", "hello", 0, true),
            ("5;name=\"v\"\r\nhello\r\n0;x\r\n\r\n", "hello", 0, true),
            ("2\r\n\r\n\r\n0\r\n\r\nHTTP/1.1", "\r\n", 8, true),
            ("5\r\nhel", "hel", 0, false),
            ("5\r\nhello\r\n0\r\n", "hello", 0, false),
            ("", "", 0, false),
            (&long, "0123456789", 0, true),
        ] {
            for size in [1, 2, 3, 7, 1000, 1 << 20] {
                assert_eq!(
                    read(bytes.as_bytes(), size).unwrap(),
                    (body.into(), None, left, is_at_end),
                    "{bytes:.40?} by {size}"
                );
            }
        }
    }

    #[test]
    fn trailers_are_headers() {
        for size in [1, 1000] {
            let lines = "X-Sum: 7\r\nx-b: c\r\nConnection: x-d\r\nX-D: 1\r\nContent-Length: 9\r\n";
            let (_, trailers, ..) = read(format!("1\r\nx\r\n0\r\n{lines}\r\n").as_bytes(), size).unwrap();
            let trailers = trailers.unwrap();
            assert_eq!(
                (trailers.len(), &trailers["x-sum"], &trailers["x-b"]),
                (2, &"7".parse().unwrap(), &"c".parse().unwrap())
            );
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let extension = format!("1;{}\r\nx\r\n", "x".repeat(EXTENSION_BYTES_MAX + 1));
        let trailer = format!("0\r\na: {}\r\n\r\n", "x".repeat(TRAILER_BYTES_MAX));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(TRAILERS_MAX + 1));
        for bytes in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x1\r\n",
            ";\r\n",
            "1\nx",
            "1\rx",
            "1\r\nxy\r\n",
            "1\r\nx\r\r",
            "10000000000000000\r\n",
            "00000000000000001\r\n",
            "1;\n",
            "0\r\n\rx",
            "0\r\nno header\r\n\r\n",
            "0\r\n a: b\r\n\r\n",
            &extension,
            &trailer,
            &trailers,
        ] {
            for size in [1, 1 << 20] {
                assert!(read(bytes.as_bytes(), size).is_err(), "{bytes:.40?} by {size}");
            }
        }
    }
}
