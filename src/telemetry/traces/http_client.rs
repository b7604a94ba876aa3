//! OTLP over HTTP: each batch on a connection of its own, which is one every few seconds.

use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use rustls_pki_types::ServerName;
use smg_certs::{ClientFiles, ClientMaterial};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// The most that is read of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Sends batches; believes the authorities of this machine.
#[derive(Default)]
pub(in crate::telemetry) struct OtlpClient {
    tls: OnceLock<Arc<ClientMaterial>>,
}

impl std::fmt::Debug for OtlpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OtlpClient")
    }
}

#[async_trait::async_trait]
impl HttpClient for OtlpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.send(request).await.map_err(|error| format!("{error:#}").into())
    }
}

impl OtlpClient {
    async fn send(&self, request: Request<Bytes>) -> anyhow::Result<Response<Bytes>> {
        let uri = request.uri().clone();
        let host = uri.host().context("the endpoint has no host")?.trim_start_matches('[').trim_end_matches(']');
        let is_tls = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await.context("connect")?;
        if !is_tls {
            return exchange(stream, request).await;
        }
        let material = match self.tls.get() {
            Some(material) => material,
            None => {
                let read = ClientMaterial::open(ClientFiles::default(), &[b"http/1.1"], OffsetDateTime::now_utc())?;
                self.tls.get_or_init(|| read)
            }
        };
        let connector = TlsConnector::from(material.client_config());
        let name = ServerName::try_from(host.to_owned()).context("the host of the endpoint")?;
        exchange(connector.connect(name, stream).await.context("TLS")?, request).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Bytes>,
) -> anyhow::Result<Response<Bytes>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _task = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = request.map(Full::new);
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    request.headers_mut().insert(header::HOST, HeaderValue::try_from(authority)?);
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or(Uri::from_static("/"), Uri::from);
    let (head, body) = sender.send_request(request).await.context("send")?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow::anyhow!(error))?;
    Ok(Response::from_parts(head, body.to_bytes()))
}
