//! A client for single requests to gateways, each on a connection of its own.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use smg_certs::{ClientFiles, ClientMaterial};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::BaseUrl;

/// For connecting, and for one whole exchange.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// The most that is read of an answer, in bytes: some ten thousand workers seen by each of a hundred nodes.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Asks gateways.
pub(super) struct Client {
    tls: Option<Arc<ClientMaterial>>,
}

/// An answer and the times, by this machine's clock, between which it was given.
pub(super) struct Timed {
    pub(super) body: Value,
    pub(super) asked_ms: i64,
    pub(super) answered_ms: i64,
}

/// A response whose body is still coming, on its connection.
pub(super) struct Open {
    pub(super) body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl Client {
    /// Reads the authorities when one of the gateways speaks https.
    pub(super) fn new(urls: &[BaseUrl], ca: Option<&PathBuf>) -> anyhow::Result<Self> {
        if !urls.iter().any(|url| url.is_tls) {
            return Ok(Self { tls: None });
        }
        let files = ClientFiles { authorities: ca.cloned(), pair: None };
        let material = ClientMaterial::open(files, &[b"http/1.1"], OffsetDateTime::now_utc());
        Ok(Self { tls: Some(material.context("read the authorities of --ca")?) })
    }

    /// The status and JSON body of an answer.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &BaseUrl,
        path: &str,
        key: Option<&str>,
    ) -> anyhow::Result<(u16, Value)> {
        let exchange = async {
            let (response, _connection) = self.open(method, url, path, key).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow!(error));
            let body = body.context("read the answer")?.to_bytes();
            Ok((head.status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null)))
        };
        let within = tokio::time::timeout(TIMEOUT, exchange).await;
        within.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", TIMEOUT.as_secs())))
    }

    /// The JSON body of a GET that is answered 200.
    pub(super) async fn get(&self, url: &BaseUrl, path: &str) -> anyhow::Result<Timed> {
        let asked_ms = super::unix_ms();
        let (status, body) =
            self.send(Method::GET, url, path, None).await.with_context(|| format!("ask {url}{path}"))?;
        let answered_ms = super::unix_ms();
        match (status, body.get("error").and_then(Value::as_str)) {
            (200, _) if body.is_object() => Ok(Timed { body, asked_ms, answered_ms }),
            (_, Some(error)) => bail!("{url}{path} answered {status}: {}", super::plain(error)),
            _ => bail!("{url}{path} answered {status}; is it an smg gateway, and the right port?"),
        }
    }

    /// A GET whose body never ends by itself.
    pub(super) async fn follow(&self, url: &BaseUrl, path: &str) -> anyhow::Result<Open> {
        let (response, connection) = tokio::time::timeout(TIMEOUT, self.open(Method::GET, url, path, None))
            .await
            .map_err(|_| anyhow!("no answer within {} s", TIMEOUT.as_secs()))
            .flatten()
            .with_context(|| format!("ask {url}{path}"))?;
        if response.status() != 200 {
            bail!("{url}{path} answered {}", response.status().as_u16());
        }
        Ok(Open { body: response.into_body(), _connection: connection })
    }

    async fn open(
        &self,
        method: Method,
        url: &BaseUrl,
        path: &str,
        key: Option<&str>,
    ) -> anyhow::Result<(Response<Incoming>, AbortOnDropHandle<()>)> {
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await.context("connect")?;
        stream.set_nodelay(true).context("connect")?;
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, url.authority());
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Empty::<Bytes>::new()).context("write the request")?;
        if !url.is_tls {
            return exchange(stream, request).await;
        }
        let material = self.tls.as_ref().context("https without authorities")?;
        let name = ServerName::try_from(url.host.clone()).context("the host in --url")?;
        let connector = TlsConnector::from(material.client_config());
        exchange(connector.connect(name, stream).await.context("TLS (see --ca)")?, request).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> anyhow::Result<(Response<Incoming>, AbortOnDropHandle<()>)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its error is the error of the request or of its body.
        let _ = connection.await;
    }));
    Ok((sender.send_request(request).await.context("send the request")?, task))
}
