//! Refuses request heads whose framing can be read in two ways, before the HTTP parser sees them.
//!
//! The parser follows RFC 9112 §6.3 where that leaves a choice: `Transfer-Encoding` beside `Content-Length` wins, equal
//! lengths are one, `gzip, chunked` is chunked. Another proxy on the way may have chosen otherwise, which is what request
//! smuggling lives on, so such heads are refused. The parser does not tell what it saw; so the lines of a head are looked
//! at on their way to it, and where one is refused the parser gets [`SPOILER`] instead of the rest: it answers 400 and
//! closes the connection.
//!
//! This is no second parser: it knows line ends, two names, and where the next head begins. A body that spans several
//! reads is not followed. After it looking goes on when the answer is finished, which is before the next head unless the
//! client pipelines; a pipelined head behind such a body is left to the parser's rules, which are unambiguous by
//! themselves.

/// Ends a head in a way that no head may end: a NUL, and the empty line that makes the parser look.
pub const SPOILER: &[u8] = b"\0\r\n\r\n";

/// What is kept of a line that is split between two reads. A line of ours that is as long, by blanks or leading zeros, is
/// refused: its end would be missing where a read ends within it.
const LINE_BYTES_MAX: usize = 64;

/// The state between two reads of one connection.
#[derive(Debug)]
pub struct HeadGuard {
    state: State,
    /// Heads that were complete so far.
    heads: u64,
}

#[derive(Debug)]
enum State {
    /// Within a head, or before its first byte.
    Head(Head),
    /// So many bytes of a body are left. Never at the end of a read.
    Body(u64),
    /// Until the request of the last head has ended.
    Blind,
    /// The parser hangs up.
    Refused,
}

#[derive(Debug, Default)]
struct Head {
    /// Beginning of a line that is not complete yet.
    line: Vec<u8>,
    has_request_line: bool,
    content_length: Option<u64>,
    is_chunked: bool,
}

enum Line {
    Fine,
    Last,
    Refused,
}

impl Default for HeadGuard {
    fn default() -> Self {
        Self { state: State::Head(Head::default()), heads: 0 }
    }
}

impl HeadGuard {
    /// Before the first byte of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the next bytes may belong to a head, after so many requests have `ended`.
    pub fn is_due(&mut self, ended: u64) -> bool {
        if matches!(self.state, State::Blind) && ended >= self.heads {
            *self = Self { state: State::Head(Head::default()), heads: ended };
        }
        matches!(self.state, State::Head(_))
    }

    /// Looks at bytes that were read: how many of them may pass. After fewer than all comes the [`SPOILER`].
    pub fn check(&mut self, read: &[u8]) -> usize {
        let mut bytes = read;
        while !bytes.is_empty() {
            match &mut self.state {
                State::Blind | State::Refused => break,
                State::Body(left) => {
                    let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= skipped as u64;
                    if *left == 0 {
                        self.state = State::Head(Head::default());
                    }
                    bytes = &bytes[skipped..];
                }
                State::Head(head) => {
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        head.keep(bytes);
                        break;
                    };
                    match head.on_line(&bytes[..end]) {
                        Line::Fine => {}
                        Line::Last => {
                            self.heads += 1;
                            self.state = match (head.is_chunked, head.content_length) {
                                (true, _) => State::Blind,
                                (false, length) => State::Body(length.unwrap_or(0)),
                            };
                            if matches!(self.state, State::Body(0)) {
                                self.state = State::Head(Head::default());
                            }
                        }
                        Line::Refused => {
                            self.state = State::Refused;
                            return read.len() - bytes.len() + end;
                        }
                    }
                    bytes = &bytes[end + 1..];
                }
            }
        }
        if matches!(self.state, State::Body(_)) {
            self.state = State::Blind;
        }
        read.len()
    }
}

impl Head {
    fn keep(&mut self, part: &[u8]) {
        let room = LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    /// Takes in a line without its `\n`, or the rest of one.
    fn on_line(&mut self, rest: &[u8]) -> Line {
        if self.line.is_empty() {
            return self.on_whole_line(rest);
        }
        self.keep(rest);
        let line = std::mem::take(&mut self.line);
        self.on_whole_line(&line)
    }

    fn on_whole_line(&mut self, line: &[u8]) -> Line {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !self.has_request_line {
            // Empty lines before a request are skipped (RFC 9112 §2.2).
            self.has_request_line = !line.is_empty();
            return Line::Fine;
        }
        match line.first() {
            None => return Line::Last,
            Some(b'c' | b'C' | b't' | b'T') => {}
            Some(_) => return Line::Fine,
        }
        let Some(colon) = memchr::memchr(b':', line) else { return Line::Fine };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is_framed = self.is_chunked || self.content_length.is_some();
        let is_whole = line.len() < LINE_BYTES_MAX;
        let is_good = if name.eq_ignore_ascii_case(b"content-length") {
            self.content_length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            self.content_length.is_some() && !is_framed && is_whole
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_chunked = true;
            value.eq_ignore_ascii_case(b"chunked") && !is_framed && is_whole
        } else {
            true
        };
        if is_good { Line::Fine } else { Line::Refused }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Whether the guard lets pass what comes in these reads; after each the requests of complete heads end.
    fn passes(reads: &[&[u8]]) -> bool {
        let mut guard = HeadGuard::new();
        reads.iter().all(|read| !guard.is_due(guard.heads) || guard.check(read) == read.len())
    }

    fn post(headers: &str, body: &str) -> String {
        format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}")
    }

    const ZEROS: &str = "Content-Length: 000000000000000000000000000000000000000000000000000002\r\n";

    const CASES: [(&str, &str, bool); 16] = [
        ("length", "Content-Length: 2\r\n", true),
        ("chunked", "Transfer-Encoding: chunked\r\n", true),
        ("chunked in capitals", "TRANSFER-ENCODING:Chunked \r\n", true),
        ("line feeds alone", "Content-Length: 2\n", true),
        ("names that begin alike", "Content-Lengths: 1\r\nContent-Length: 2\r\nContent-Length-2: 3\r\n", true),
        ("length and chunked", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", false),
        ("chunked and length", "Transfer-Encoding: chunked\r\nA: b\r\ncontent-length: 2\r\n", false),
        ("two lengths", "Content-Length: 2\r\nContent-Length: 2\r\n", false),
        ("two lengths, line feeds alone", "Content-Length: 2\nContent-Length: 3\n", false),
        ("list of lengths", "Content-Length: 2, 2\r\n", false),
        ("no length", "Content-Length: x\r\n", false),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", false),
        ("another coding", "Transfer-Encoding: gzip, chunked\r\n", false),
        ("identity", "Transfer-Encoding: identity\r\nContent-Length: 2\r\n", false),
        ("empty coding", "Transfer-Encoding:\r\n", false),
        ("a length with more zeros than are kept", ZEROS, false),
    ];

    #[test]
    fn framing_is_read_in_one_way_or_refused() {
        for (case, headers, expected) in CASES {
            let request = post(headers, "{}");
            assert_eq!(passes(&[request.as_bytes()]), expected, "{case}");
            let bytewise: Vec<&[u8]> = request.as_bytes().chunks(1).collect();
            // The body of a chunked request is not followed; here it comes before the request has ended.
            let head = bytewise.len() - 2;
            assert_eq!(passes(&bytewise[..head]), expected, "{case}, byte by byte");
            for before in [GET.to_owned(), post("Content-Length: 3\r\n", "\n\n\n"), format!("\r\n{GET}")] {
                assert_eq!(passes(&[(before.clone() + &request).as_bytes()]), expected, "{case}, pipelined");
                assert_eq!(passes(&[before.as_bytes(), request.as_bytes()]), expected, "{case}, after another");
            }
        }
    }

    #[test]
    fn bodies_are_not_looked_at() {
        let bad = post("Content-Length: 1\r\nContent-Length: 1\r\n", "");
        let framed = post(&format!("Content-Length: {}\r\n", bad.len()), &bad);
        assert!(passes(&[framed.as_bytes()]));
        let mut guard = HeadGuard::new();
        assert_eq!(guard.check(&framed.as_bytes()[..60]), 60);
        assert!(!guard.is_due(0), "the rest of the body comes next");
        assert!(guard.is_due(1), "the request has ended");
        assert_eq!(guard.check(bad.as_bytes()), bad.len() - "\n\r\n".len(), "up to the end of the second length");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_reads(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(1_usize..50, 0..8)) {
            let (mut rest, mut guard) = (bytes, HeadGuard::new());
            for cut in cuts {
                let read: Vec<u8> = rest.drain(..cut.min(rest.len())).collect();
                prop_assert!(guard.check(&read) <= read.len());
                let _ = guard.is_due(guard.heads);
            }
        }

        #[test]
        fn where_reads_end_does_not_matter(case in 0..CASES.len(), cut in 0_usize..200) {
            let (_, headers, expected) = CASES[case];
            let request = post(headers, "");
            let (first, second) = request.as_bytes().split_at(cut.min(request.len()));
            prop_assert_eq!(passes(&[first, second]), expected);
        }
    }
}
