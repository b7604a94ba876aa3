//! A client's socket: which protocol it speaks, what it holds back, and how it is closed.

use std::{
    future::poll_fn,
    io::{self, ErrorKind::UnexpectedEof},
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::gateway::{
    byte_stream::{ByteStream, has_unread},
    connection::Connection,
    core::Core,
    head_guard::{HeadGuard, SPOILER},
    refusal,
};

/// How long a connection that the gateway closes is read on for the sake of its last answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest read while heads are looked at: a request of usual size comes with one.
const HEAD_READ_BYTES_MAX: usize = 32 << 10;

/// What a client that speaks HTTP/2 sends first (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The client's socket, with the sniffed bytes put back in front.
pub(crate) struct Io {
    prefix: [u8; 24],
    at: usize,
    len: usize,
    stream: TokioIo<ByteStream>,
    connection: Rc<Connection>,
    /// None for HTTP/2, whose frames leave no doubt.
    guard: Option<HeadGuard>,
    core: Rc<Core>,
    /// What is still to be written in place of the parser's own answer.
    refusal: Option<Bytes>,
    /// We hung up; how long to go on reading.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Io {
    /// Says whether the client speaks HTTP/2: what it chose under TLS counts (RFC 9113 §3.2), else its first bytes.
    pub(crate) async fn open(
        stream: ByteStream,
        core: Rc<Core>,
        connection: Rc<Connection>,
    ) -> io::Result<(Self, bool)> {
        let (prefix, len) = match &stream {
            ByteStream::Plain(stream) => sniff(stream, &connection).await?,
            ByteStream::Tls(_) => ([0; 24], 0),
        };
        let is_h2 = stream.chose_h2().unwrap_or(prefix == *PREFACE && len == PREFACE.len());
        let guard = (!is_h2).then(HeadGuard::new);
        let stream = TokioIo::new(stream);
        Ok((Self { prefix, at: 0, len, stream, connection, guard, core, refusal: None, lingering: None }, is_h2))
    }

    /// Tells the connection whether the socket had room for what was written.
    fn written<T>(&self, polled: Poll<T>) -> Poll<T> {
        self.connection.on_write(polled.is_pending() || self.stream.inner().has_unsent());
        polled
    }

    /// Gives what was sniffed, and what is there behind it: a parser that gets so few bytes alone makes more room than it
    /// needs, and keeps it as long as the connection is open.
    fn poll_read_prefix(&mut self, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [MaybeUninit::uninit(); HEAD_READ_BYTES_MAX];
        let room = scratch.len().min(buf.remaining());
        let mut read = ReadBuf::uninit(&mut scratch[..room]);
        let len = (self.len - self.at).min(room);
        read.put_slice(&self.prefix[self.at..self.at + len]);
        self.at += len;
        if self.at == self.len
            && let Poll::Ready(Err(error)) = Pin::new(self.stream.inner_mut()).poll_read(cx, &mut read)
        {
            return Poll::Ready(Err(error));
        }
        self.connection.on_read();
        Poll::Ready(hand_over(self.guard.as_mut(), read.filled(), buf))
    }

    /// Reads what may belong to a head, and looks at it.
    fn poll_read_head(&mut self, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [MaybeUninit::uninit(); HEAD_READ_BYTES_MAX];
        let room = scratch.len().min(buf.remaining());
        let mut read = ReadBuf::uninit(&mut scratch[..room]);
        ready!(Pin::new(self.stream.inner_mut()).poll_read(cx, &mut read))?;
        Poll::Ready(hand_over(self.guard.as_mut(), read.filled(), buf))
    }

    /// Whether the parser writes an answer of its own, which another one is written for.
    fn is_refusing(&mut self, written: &[u8]) -> bool {
        if self.refusal.is_none()
            && let Some(error) = refusal::of_parser(written)
        {
            let error = self.connection.refusal().unwrap_or(error);
            self.refusal = Some(self.core.refuse(&error, written));
        }
        self.refusal.is_some()
    }

    /// Writes that answer. The parser writes nothing after its own.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.refusal.as_mut().filter(|rest| !rest.is_empty()) {
            let polled = Pin::new(&mut self.stream).poll_write(cx, rest);
            self.connection.on_write(polled.is_pending());
            match ready!(polled)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => rest.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads on, after we hung up, so that the client can read the last answer: closing a socket that holds unread
    /// bytes, as after a body that was refused, makes the kernel reset the connection, and the answer is lost
    /// (RFC 9112 §9.6).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 4096];
        loop {
            if self.lingering.as_mut().is_none_or(|timeout| timeout.as_mut().poll(cx).is_ready()) {
                return Poll::Ready(());
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(self.stream.inner_mut()).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.at < self.len {
            return self.poll_read_prefix(cx, buf);
        }
        if self.guard.is_some() && self.connection.take_overdue_head() {
            // The parser answers, and the answer is replaced.
            return Poll::Ready(spoil(buf));
        }
        let ended = self.connection.requests_ended();
        let is_head = self.guard.as_mut().is_some_and(|guard| guard.is_due(ended));
        let polled = if is_head { self.poll_read_head(cx, buf) } else { Pin::new(&mut self.stream).poll_read(cx, buf) };
        if polled.is_ready() {
            self.connection.on_read();
        } else if self.guard.is_some() && self.connection.is_leaving() {
            return poll_leave(cx, self.stream.inner().has_unread()).map(Ok);
        }
        polled
    }
}

/// The end of a connection that idled, or another look when the kernel holds something.
fn poll_leave(cx: &Context<'_>, has_unread: bool) -> Poll<()> {
    if has_unread {
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    Poll::Ready(())
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_refusing(buf) {
            return self.poll_refuse(cx).map_ok(|()| buf.len());
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.first().filter(|_| bufs.len() == 1)
            && self.is_refusing(first)
        {
            return self.poll_refuse(cx).map_ok(|()| first.len());
        }
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let had_unsent = self.stream.inner().has_unsent();
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if had_unsent { self.written(polled) } else { polled }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.lingering = Some(Box::pin(sleep(LINGER_TIMEOUT)));
        }
        self.poll_linger(cx).map(Ok)
    }
}

/// Gives the parser what was read, as far as the guard lets it pass.
fn hand_over(guard: Option<&mut HeadGuard>, read: &[u8], mut buf: ReadBufCursor<'_>) -> io::Result<()> {
    let passing = guard.map_or(read.len(), |guard| guard.check(read));
    buf.put_slice(&read[..passing]);
    if passing < read.len() { spoil(buf) } else { Ok(()) }
}

/// Gives the parser the end of a head that it refuses.
fn spoil(mut buf: ReadBufCursor<'_>) -> io::Result<()> {
    if buf.remaining() < SPOILER.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    buf.put_slice(SPOILER);
    Ok(())
}

/// Reads until it is clear whether the client speaks HTTP/2; what was read is returned.
async fn sniff(stream: &TcpStream, connection: &Connection) -> io::Result<([u8; 24], usize)> {
    let mut prefix = [0; 24];
    let mut len = 0;
    while len < prefix.len() && prefix[..len] == PREFACE[..len] {
        poll_fn(|cx| match stream.poll_read_ready(cx) {
            Poll::Pending if connection.is_leaving() => {
                poll_leave(cx, has_unread(stream)).map(|()| Err(UnexpectedEof.into()))
            }
            polled => polled,
        })
        .await?;
        match stream.try_read(&mut prefix[len..]) {
            Ok(0) => return Err(UnexpectedEof.into()),
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok((prefix, len))
}
