//! Exchanges with a worker that is driven by hand.

#![allow(clippy::unwrap_used)]

use std::{future::Future, time::Duration};

use bytes::Bytes;
use http::{Method, response::Parts};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::gateway::byte_stream::ByteStream;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("nothing happened in time")
}

/// A connection, and the worker's end of it.
async fn connection() -> (Wire, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (Wire::new(ByteStream::Plain(ours.unwrap())), theirs.unwrap().0)
}

fn head() -> RequestHead {
    RequestHead::new(&Method::POST, "", Some(&"/x".parse().unwrap()))
}

/// Sends a small request, of which the worker makes this answer before it closes the connection.
async fn answered(answer: &str) -> io::Result<(Parts, Reply)> {
    let (wire, mut worker) = connection().await;
    worker.write_all(answer.as_bytes()).await.unwrap();
    worker.shutdown().await.unwrap();
    Ok(within(wire.exchange(head(), Bytes::from_static(b"{}"))).await?)
}

/// The body to its end, or what it ends with.
async fn collect(reply: &mut Reply) -> Result<String, io::ErrorKind> {
    let mut body = Vec::new();
    while let Some(frame) = within(reply.frame()).await {
        if let Ok(data) = frame.map_err(|error| error.kind())?.into_data() {
            body.extend_from_slice(&data);
        }
    }
    assert!(reply.is_end() && within(reply.frame()).await.is_none());
    Ok(String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn bodies_by_every_framing() {
    const CUT: Result<&str, io::ErrorKind> = Err(io::ErrorKind::UnexpectedEof);
    for (answer, expected, is_kept) in [
        ("200 OK\r\nContent-Length: 5\r\n\r\nhello", Ok("hello"), true),
        ("200 OK\r\nContent-Length: 5\r\n\r\nhello!", Ok("hello"), false),
        ("200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", Ok("hello"), false),
        ("200 OK\r\nContent-Length: 5\r\n\r\nhell", CUT, false),
        ("200 OK\r\nContent-Length: 0\r\n\r\n", Ok(""), true),
        ("200 OK\r\nContent-Length: 0\r\n\r\nx", Ok(""), false),
        ("204 No Content\r\n\r\n", Ok(""), true),
        ("200 OK\r\n\r\nuntil the end", Ok("until the end"), false),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Ok("hello"), true),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\nA: b\r\n\r\n", Ok("he"), true),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n\r\nHTTP/1.1", Ok("he"), false),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n", CUT, false),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", Err(io::ErrorKind::InvalidData), false),
    ] {
        let (_, mut reply) = answered(&format!("HTTP/1.1 {answer}")).await.unwrap();
        assert_eq!(collect(&mut reply).await.as_deref().map_err(|kind| *kind), expected, "{answer:?}");
        assert_eq!(reply.take_wire().is_some(), is_kept, "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_that_comes_byte_by_byte() {
    let (wire, mut worker) = connection().await;
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n10\r\n, worker and all\r\n0\r\nA: b\r\n\r\n";
    let writes = async {
        worker.set_nodelay(true).unwrap();
        for byte in answer.bytes() {
            worker.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let reads = async {
        let (_, mut reply) = within(wire.exchange(head(), Bytes::new())).await.unwrap();
        (collect(&mut reply).await.unwrap(), reply.take_wire().is_some())
    };
    assert_eq!(tokio::join!(reads, writes).0, ("hello, worker and all".into(), true));
}

#[tokio::test]
async fn interim_responses_are_passed_over() {
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let (parts, mut reply) = answered(&(interim.repeat(16) + last)).await.unwrap();
    assert_eq!((parts.status.as_u16(), collect(&mut reply).await.unwrap().as_str()), (200, "hi"));
    for (case, answer) in [
        ("too many", interim.repeat(17) + last),
        ("another protocol", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_owned() + last),
    ] {
        assert_eq!(answered(&answer).await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{case}");
    }
}

#[tokio::test]
async fn what_is_no_answer() {
    for (answer, expected) in [
        ("", io::ErrorKind::UnexpectedEof),
        ("HTTP/1.1 200 OK\r\nContent-Le", io::ErrorKind::UnexpectedEof),
        ("\0\0\0", io::ErrorKind::InvalidData),
    ] {
        assert_eq!(answered(answer).await.unwrap_err().kind(), expected, "{answer:?}");
    }
}

/// More than the kernel's buffers on the way hold.
fn long_body() -> Bytes {
    vec![b'x'; 32 << 20].into()
}

#[tokio::test]
async fn a_worker_may_refuse_a_request_before_it_has_all_of_it() {
    let (wire, mut worker) = connection().await;
    let refuses = async {
        worker.read_exact(&mut [0; 1000]).await.unwrap();
        worker.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nlong").await.unwrap();
    };
    let asks = within(wire.exchange(head(), long_body()));
    let (answer, ()) = tokio::join!(asks, refuses);
    let (parts, mut reply) = answer.unwrap();
    assert_eq!((parts.status.as_u16(), collect(&mut reply).await.unwrap().as_str()), (413, "long"));
    assert!(reply.take_wire().is_none(), "the rest of the request was not sent");
}

#[tokio::test]
async fn a_refusal_counts_also_when_the_connection_ends_right_behind_it() {
    for _ in 0..50 {
        let (wire, mut worker) = connection().await;
        let refuses = async move {
            worker.read_exact(&mut [0; 1000]).await.unwrap();
            worker.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nlong").await.unwrap();
            worker.shutdown().await.unwrap();
            // Closed with bytes of the request unread: the kernel resets the connection.
            drop(worker);
        };
        let (answer, ()) = tokio::join!(within(wire.exchange(head(), long_body())), refuses);
        assert_eq!(answer.unwrap().0.status.as_u16(), 413);
    }
}

#[tokio::test]
async fn a_connection_that_fails_while_the_request_is_written_ends_no_answer() {
    let (wire, mut worker) = connection().await;
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let breaks = async move {
        worker.read_exact(&mut [0; 1000]).await.unwrap();
        worker.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await.unwrap();
        has_begun.await.unwrap();
        worker.set_zero_linger().unwrap();
    };
    let asks = async {
        let (_, mut reply) = within(wire.exchange(head(), long_body())).await.unwrap();
        begun.send(()).unwrap();
        collect(&mut reply).await
    };
    let (body, ()) = tokio::join!(asks, breaks);
    assert!(body.is_err(), "{body:?}");
}

#[tokio::test]
async fn an_answer_that_began_is_no_sign_of_a_stale_connection() {
    for (answer, is_unanswered) in [("", true), ("HTTP/1.1 200", false), ("HTTP/1.1 103 Early Hints\r\n\r\n", false)] {
        let (wire, mut worker) = connection().await;
        worker.write_all(answer.as_bytes()).await.unwrap();
        worker.shutdown().await.unwrap();
        let error = within(wire.exchange(head(), Bytes::new())).await.unwrap_err();
        assert_eq!(matches!(error, ExchangeError::Unanswered(_)), is_unanswered, "{answer:?}: {error}");
    }
}

#[tokio::test]
async fn a_worker_may_begin_its_answer_before_it_has_all_of_the_request() {
    let (wire, mut worker) = connection().await;
    let body = long_body();
    let works = async {
        worker.read_exact(&mut [0; 1000]).await.unwrap();
        worker.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi").await.unwrap();
        let (mut read, mut rest) = (1000, vec![0; 1 << 16]);
        while read < head().end(body.len()).len() + body.len() {
            read += worker.read(&mut rest).await.unwrap();
        }
        worker.write_all(b"ne").await.unwrap();
    };
    let asks = async {
        let (_, mut reply) = within(wire.exchange(head(), body.clone())).await.unwrap();
        (collect(&mut reply).await.unwrap(), reply.take_wire().is_some())
    };
    assert_eq!(within(async { tokio::join!(asks, works) }).await.0, ("fine".into(), true));
}
