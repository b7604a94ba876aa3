//! A connection to a worker, and one exchange over it: the request goes out, the response comes back.
//!
//! Nothing drives a connection but whoever awaits its response: no task of its own, no queue between, and no buffer
//! while nothing comes. What is read lies on the stack and is copied once, into as many bytes as there are.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::response::Parts;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    head::{self, RequestHead, invalid},
    reply::Reply,
};
use crate::gateway::byte_stream::ByteStream;

/// Longest read from a worker.
pub(super) const READ_BYTES_MAX: usize = 32 << 10;

/// Most interim responses (1xx) before a final one.
const INTERIM_MAX: usize = 16;

/// A connection to a worker.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: ByteStream,
    /// The part of a request that was not written yet; a worker may answer before it has all of it.
    unsent: Unsent,
}

#[derive(Debug, Default)]
struct Unsent {
    head: Bytes,
    body: Bytes,
    /// All is written, but may be held by TLS.
    is_flushing: bool,
}

impl Unsent {
    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.body.is_empty()
    }

    fn advance(&mut self, written: usize) {
        let of_head = written.min(self.head.len());
        self.head.advance(of_head);
        self.body.advance(written - of_head);
    }
}

impl Wire {
    pub(super) fn new(stream: ByteStream) -> Self {
        Self { stream, unsent: Unsent::default() }
    }

    /// Whether an idle connection can serve a request, as far as is known here: it may have been closed all the same. A
    /// worker that speaks unasked cannot be understood any more.
    pub(crate) fn is_usable(&mut self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream).poll_read(&mut cx, &mut ReadBuf::uninit(&mut byte)).is_pending()
    }

    /// Sends a request and waits for the head of its final response.
    ///
    /// # Errors
    /// When the connection fails or ends before, or what comes is no response: `InvalidData` then.
    pub(crate) async fn exchange(mut self, head: RequestHead, body: Bytes) -> io::Result<(Parts, Reply)> {
        self.unsent = Unsent { head: head.end(body.len()).into(), body, is_flushing: true };
        let (mut read, mut interim) = (Bytes::new(), 0);
        loop {
            let more = poll_fn(|cx| self.poll_exchange(cx)).await?;
            read = if read.is_empty() { more } else { joined(&read, &more) };
            while let Some(found) = head::parse(&read)? {
                let rest = read.split_off(found.len);
                if found.parts.status.is_informational() {
                    interim += 1;
                    if interim > INTERIM_MAX || found.parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
                        return Err(invalid("an interim response"));
                    }
                    read = rest;
                    continue;
                }
                return Ok((found.parts, Reply::new(self, found.framing, rest, found.is_kept)));
            }
        }
    }

    /// Writes what is left of the request and reads some of what comes back, which is never nothing.
    fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let sent = self.poll_send(cx);
        match self.poll_receive(cx, |read| Ok(Bytes::copy_from_slice(read))) {
            // A worker that refuses a long request may close before it has all of it: its answer counts.
            Poll::Pending => match sent {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Pending,
            },
            Poll::Ready(Ok(read)) if read.is_empty() => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            polled => polled,
        }
    }

    /// Writes what is left of the request, as far as there is room for it.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, unsent } = self;
        while !unsent.is_empty() {
            let parts = [IoSlice::new(&unsent.head), IoSlice::new(&unsent.body)];
            let parts = if unsent.head.is_empty() { &parts[1..] } else { &parts[..] };
            match ready!(Pin::new(&mut *stream).poll_write_vectored(cx, parts))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => unsent.advance(written),
            }
        }
        if unsent.is_flushing {
            ready!(Pin::new(stream).poll_flush(cx))?;
            unsent.is_flushing = false;
            // The body is as large as what the client sent: not held for as long as the answer takes.
            *unsent = Unsent::default();
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the whole request was written.
    pub(super) fn has_sent(&self) -> bool {
        self.unsent.is_empty() && !self.unsent.is_flushing
    }

    /// Reads once, and gives what `take` makes of it; of nothing at the end of the connection.
    pub(super) fn poll_receive<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let mut scratch = [MaybeUninit::uninit(); READ_BYTES_MAX];
        let mut read = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        Poll::Ready(take(read.filled()))
    }
}

/// Both, behind one another.
fn joined(first: &[u8], second: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(first.len() + second.len());
    whole.extend_from_slice(first);
    whole.extend_from_slice(second);
    whole.freeze()
}
