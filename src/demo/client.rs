//! A client for one request on a connection of its own.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// Connect, answer and all of it together must be done by then.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The most that is read of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// `GET path`.
pub(super) async fn get(addr: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    send(addr, Method::GET, path, Bytes::new()).await
}

/// `POST path` with a JSON body.
pub(super) async fn post(addr: SocketAddr, path: &str, body: Bytes) -> anyhow::Result<Answer> {
    send(addr, Method::POST, path, body).await
}

async fn send(addr: SocketAddr, method: Method, path: &str, body: Bytes) -> anyhow::Result<Answer> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, addr.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    tokio::time::timeout(TIMEOUT, exchange(addr, request)).await.context("no answer within 10 s")?
}

async fn exchange(addr: SocketAddr, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
    let stream = TcpStream::connect(addr).await.context("connect")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let (head, body) = sender.send_request(request).await.context("send request")?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow::anyhow!(error));
    Ok(Answer { status: head.status, headers: head.headers, body: body.context("read answer")?.to_bytes() })
}
