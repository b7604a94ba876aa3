//! A connection to a worker, and one exchange over it: the request goes out, the response comes back.
//!
//! Nothing drives a connection but whoever awaits its response: no task of its own, no queue between, and no buffer
//! while nothing comes. What is read lies on the stack and is copied once, into as many bytes as there are.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::response::Parts;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop::unconstrained,
};

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
    /// Why the rest of it cannot be written.
    failed: Option<io::Error>,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The connection failed or ended before any of it: one that had idled was stale.
    #[error("no response: {0}")]
    Unanswered(#[source] io::Error),
    /// What came is none, or not the whole head of one.
    #[error("no response that can be understood: {0}")]
    Broken(#[source] io::Error),
}

impl From<ExchangeError> for io::Error {
    fn from(error: ExchangeError) -> Self {
        let (ExchangeError::Unanswered(error) | ExchangeError::Broken(error)) = error;
        error
    }
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
        Self { stream, unsent: Unsent::default(), failed: None }
    }

    /// Whether an idle connection can serve a request, as far as is known here: it may have been closed all the same. A
    /// worker that speaks unasked cannot be understood any more.
    pub(crate) fn is_usable(&mut self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let (mut stream, mut read) = (Pin::new(&mut self.stream), ReadBuf::uninit(&mut byte));
        // Out of the task's budget, which would say that nothing has come once it is spent.
        let look = pin!(unconstrained(poll_fn(|cx| stream.as_mut().poll_read(cx, &mut read))));
        look.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Sends a request and waits for the head of its final response.
    ///
    /// # Errors
    /// When the connection fails or ends before, or what comes is no response.
    pub(crate) async fn exchange(mut self, head: RequestHead, body: Bytes) -> Result<(Parts, Reply), ExchangeError> {
        self.unsent = Unsent { head: head.end(body.len()).into(), body, is_flushing: true };
        let (mut read, mut interim) = (Bytes::new(), 0);
        loop {
            let more = poll_fn(|cx| self.poll_exchange(cx)).await.map_err(|error| {
                let is_unanswered = read.is_empty() && interim == 0;
                if is_unanswered { ExchangeError::Unanswered(error) } else { ExchangeError::Broken(error) }
            })?;
            read = if read.is_empty() { more } else { joined(&read, &more) };
            while let Some(found) = head::parse(&read).map_err(ExchangeError::Broken)? {
                let rest = read.split_off(found.len);
                if found.parts.status.is_informational() {
                    interim += 1;
                    if interim > INTERIM_MAX || found.parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
                        return Err(ExchangeError::Broken(invalid("an interim response")));
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
        self.poll_send(cx);
        match self.poll_receive(cx, |read| Ok(Bytes::copy_from_slice(read))) {
            // A worker that refuses a long request may close before it has all of it: its answer counts, and is here or
            // the end of the connection is, which the runtime may learn of later than the write.
            Poll::Pending => match self.failed.take_if(|error| !is_end(error)) {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            },
            Poll::Ready(Ok(read)) if read.is_empty() => Poll::Ready(Err(self.end())),
            polled => polled,
        }
    }

    /// Writes what is left of the request, as far as there is room for it.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(sent) = self.poll_write(cx) {
            // The body is as large as what the client sent: not held for as long as the answer takes.
            self.unsent = Unsent::default();
            if let Err(error) = sent {
                self.failed = Some(error);
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, unsent, .. } = self;
        while !unsent.is_empty() {
            let parts = [IoSlice::new(&unsent.head), IoSlice::new(&unsent.body)];
            let parts = if unsent.head.is_empty() { &parts[1..] } else { &parts[..] };
            match ready!(Pin::new(&mut *stream).poll_write_vectored(cx, parts))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => unsent.advance(written),
            }
        }
        if unsent.is_flushing { Pin::new(stream).poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    /// What the end of the connection is when there should have been more.
    pub(super) fn end(&mut self) -> io::Error {
        self.failed.take().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Whether the rest of the request could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether nothing is left to be written.
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

/// Whether it says that the worker has closed the connection: what it sent before can still be read.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

/// Both, behind one another.
fn joined(first: &[u8], second: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(first.len() + second.len());
    whole.extend_from_slice(first);
    whole.extend_from_slice(second);
    whole.freeze()
}
