//! The body of a worker's response, as it comes.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::Frame;

use super::{framing::Framing, wire::Wire};

/// A body, and the connection that it comes from. Dropped before its end it closes the connection, which is how a worker
/// learns that nobody waits any more. All chunks that one read brings are one frame.
#[derive(Debug)]
pub(crate) struct Reply {
    /// None: taken back.
    wire: Option<Wire>,
    framing: Framing,
    /// Its length was known from the head.
    is_sized: bool,
    /// What came with the head.
    ahead: Bytes,
    /// The connection serves on when this is over.
    is_kept: bool,
}

impl Reply {
    pub(super) fn new(wire: Wire, framing: Framing, ahead: Bytes, is_kept: bool) -> Self {
        // What follows the end was not asked for: nothing behind it can be understood.
        let is_kept = is_kept && (ahead.is_empty() || framing != Framing::None);
        let is_sized = framing.exact_len().is_some();
        Self { wire: Some(wire), framing, is_sized, ahead, is_kept }
    }

    /// Whether nothing is left to be given.
    pub(crate) fn is_end(&self) -> bool {
        self.framing == Framing::None
    }

    /// Bytes that are still to be given; none where the head did not tell.
    pub(crate) fn exact_len(&self) -> Option<u64> {
        self.framing.exact_len().filter(|_| self.is_sized)
    }

    /// The connection, when the response was read to its end and another request can follow.
    pub(crate) fn take_wire(&mut self) -> Option<Wire> {
        let is_kept = self.is_end() && self.is_kept;
        self.wire.take().filter(|wire| is_kept && wire.has_sent() && !wire.has_failed())
    }

    /// The next piece of the body, or its trailers; none at its end.
    pub(crate) async fn frame(&mut self) -> Option<io::Result<Frame<Bytes>>> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// The same. After an error there is nothing more.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = self.poll_next(cx);
        if let Poll::Ready(Some(Err(_))) = polled {
            (self.framing, self.is_kept) = (Framing::None, false);
        }
        polled
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            if let Framing::Chunked(chunks) = &mut self.framing
                && chunks.is_at_end()
            {
                let trailers = chunks.trailers();
                self.framing = Framing::None;
                if let Some(trailers) = trailers.transpose() {
                    return Poll::Ready(Some(trailers.map(Frame::trailers)));
                }
            }
            if self.is_end() {
                return Poll::Ready(None);
            }
            let piece = if self.ahead.is_empty() { ready!(self.poll_piece(cx))? } else { self.take_ahead()? };
            match piece {
                Some(piece) if piece.is_empty() => {}
                Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if self.framing == Framing::UntilClose => self.framing = Framing::None,
                None => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            }
        }
    }

    /// What came with the head, without a copy where it is the body's as it is.
    fn take_ahead(&mut self) -> io::Result<Option<Bytes>> {
        let mut ahead = std::mem::take(&mut self.ahead);
        match &mut self.framing {
            Framing::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX);
                if ahead.len() > len {
                    ahead.truncate(len);
                    self.is_kept = false;
                }
                self.consume(ahead.len());
                Ok(Some(ahead))
            }
            Framing::None | Framing::UntilClose => Ok(Some(ahead)),
            Framing::Chunked(_) => self.take_in(&ahead).map(Some),
        }
    }

    /// Reads once; none at the end of the connection.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let Some(mut wire) = self.wire.take() else { return Poll::Ready(Ok(None)) };
        if !wire.has_sent() {
            wire.poll_send(cx);
        }
        let received =
            wire.poll_receive(cx, |read| if read.is_empty() { Ok(None) } else { self.take_in(read).map(Some) });
        // A connection that failed while the request was written has told so already: its end is none of the answer.
        let polled = match received {
            Poll::Ready(Ok(None)) if wire.has_failed() => Poll::Ready(Err(wire.end())),
            received => received,
        };
        self.wire = Some(wire);
        polled
    }

    /// Takes in what was read, and gives what of it is the body's.
    fn take_in(&mut self, read: &[u8]) -> io::Result<Bytes> {
        match &mut self.framing {
            Framing::None | Framing::UntilClose => Ok(Bytes::copy_from_slice(read)),
            Framing::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                self.is_kept &= len == read.len();
                self.consume(len);
                Ok(Bytes::copy_from_slice(&read[..len]))
            }
            Framing::Chunked(chunks) => {
                let mut body = BytesMut::with_capacity(read.len());
                let used = chunks.decode(read, &mut body)?;
                self.is_kept &= used == read.len();
                if chunks.is_over() {
                    self.framing = Framing::None;
                }
                Ok(body.freeze())
            }
        }
    }

    fn consume(&mut self, bytes: usize) {
        if let Framing::Length(left) = &mut self.framing {
            *left -= bytes as u64;
            if *left == 0 {
                self.framing = Framing::None;
            }
        }
    }
}
