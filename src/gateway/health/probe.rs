//! One look at one worker over HTTP, on a connection of its own.
//!
//! A fresh connection for each look is the point: a kept one says nothing about whether new ones are accepted.

use std::{future::Future, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, header, uri::PathAndQuery};
use serde::Deserialize;

use crate::gateway::{
    upstream::{self, Reply, RequestHead},
    worker::Worker,
};

/// Longest `/v1/models` answer in bytes; a longer one counts as none.
pub const MODELS_BYTES_MAX: usize = 1 << 20;

/// Models of one worker at most; further ones are left out.
pub const MODELS_MAX: usize = 256;

/// Longest model name in bytes; longer ones are left out.
pub const MODEL_BYTES_MAX: usize = 256;

/// For the `/v1/models` answer at most, so that a worker that hangs there is not held back from being ready.
pub const MODELS_TIMEOUT_MAX: Duration = Duration::from_secs(2);

const USER_AGENT: &str = concat!("smg/", env!("CARGO_PKG_VERSION"));

/// What to find out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Question {
    /// Whether it is healthy. Otherwise that is taken for granted.
    pub health: bool,
    /// Which models it lists, when it is healthy.
    pub models: bool,
}

/// What was found out.
#[derive(Debug)]
pub struct Answer {
    /// Why it is not healthy, if so.
    pub health: Result<(), ProbeError>,
    /// The models that it lists, sorted; none when not asked or not answered.
    pub models: Option<Vec<String>>,
}

/// Why a probe failed. The next one may succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// No connection: refused, unreachable, or the name is not known.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// No TLS: the worker's certificate is not trusted or not for its host, it wants one of the gateway, or it speaks no
    /// TLS. Nothing was asked.
    #[error("no tls: {0}")]
    Tls(#[source] rustls::Error),
    /// The connection broke, or what came is not HTTP.
    #[error("http failed")]
    Http(#[source] io::Error),
    /// The path of the check is no URL path.
    #[error("invalid request")]
    Request(#[from] http::Error),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// An answer other than 2xx.
    #[error("status {0}")]
    Status(StatusCode),
    /// The answer is too long or broke off.
    #[error("unusable body")]
    Body,
    /// The answer is not JSON in the shape of a model list.
    #[error("not a model list")]
    Models(#[from] serde_json::Error),
}

impl ProbeError {
    fn connect(error: io::Error) -> Self {
        tls_error(&error).map_or(Self::Connect(error), Self::Tls)
    }

    /// Under TLS 1.3 a worker says after the handshake that it wants a certificate (RFC 8446 §4.4.2.4).
    fn http(error: io::Error) -> Self {
        tls_error(&error).map_or(Self::Http(error), Self::Tls)
    }
}

fn tls_error(error: &io::Error) -> Option<rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}

/// Something that looks at workers.
pub trait Probe: Send + Sync + 'static {
    /// Looks at a worker once; takes bounded time.
    fn probe(&self, worker: Arc<Worker>, question: Question) -> impl Future<Output = Answer> + Send;
}

/// Looks at workers over HTTP/1.1.
#[derive(Clone, Debug)]
pub struct HttpProbe {
    /// Path of the health check.
    pub endpoint: Arc<str>,
    /// For one request, connecting included.
    pub timeout: Duration,
}

impl Probe for HttpProbe {
    async fn probe(&self, worker: Arc<Worker>, question: Question) -> Answer {
        if question.health
            && let Err(error) = self.within(self.timeout, check(&worker, &self.endpoint)).await
        {
            return Answer { health: Err(error), models: None };
        }
        if !question.models {
            return Answer { health: Ok(()), models: None };
        }
        let models = match self.within(self.timeout.min(MODELS_TIMEOUT_MAX), list_models(&worker)).await {
            Ok(models) => Some(models),
            Err(error) => {
                tracing::debug!(worker = %worker.id, %error, "worker lists no models");
                None
            }
        };
        Answer { health: Ok(()), models }
    }
}

impl HttpProbe {
    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, ProbeError>>,
    ) -> Result<T, ProbeError> {
        tokio::time::timeout(limit, work).await.unwrap_or(Err(ProbeError::Timeout))
    }
}

async fn check(worker: &Worker, endpoint: &str) -> Result<(), ProbeError> {
    exchange(worker, Method::GET, endpoint, 0).await.map(drop)
}

async fn list_models(worker: &Worker) -> Result<Vec<String>, ProbeError> {
    Ok(read_models(&exchange(worker, Method::GET, "/v1/models", MODELS_BYTES_MAX).await?)?)
}

/// Sends a request without a body and gives that of a 2xx answer; with `body_bytes_max` 0 it is not read. Takes as long
/// as the worker does.
///
/// # Errors
/// When there is no such answer, whatever the reason.
pub(crate) async fn exchange(
    worker: &Worker,
    method: Method,
    path: &str,
    body_bytes_max: usize,
) -> Result<Bytes, ProbeError> {
    let path = PathAndQuery::try_from(path).map_err(http::Error::from)?;
    let wire = upstream::connect_once(worker).await.map_err(ProbeError::connect)?;
    let mut head = RequestHead::new(&method, &worker.path_prefix, Some(&path));
    head.header(&header::HOST, &worker.host);
    head.header(&header::USER_AGENT, &HeaderValue::from_static(USER_AGENT));
    head.header(&header::CONNECTION, &HeaderValue::from_static("close"));
    if let Some(authorization) = &worker.authorization {
        head.header(&header::AUTHORIZATION, authorization);
    }
    let (parts, reply) = wire.exchange(head, Bytes::new()).await.map_err(|error| ProbeError::http(error.into()))?;
    if !parts.status.is_success() {
        return Err(ProbeError::Status(parts.status));
    }
    if body_bytes_max == 0 {
        return Ok(Bytes::new());
    }
    collect(reply, body_bytes_max).await
}

/// A whole body of at most so many bytes.
async fn collect(mut reply: Reply, bytes_max: usize) -> Result<Bytes, ProbeError> {
    let mut body = BytesMut::new();
    while let Some(frame) = reply.frame().await {
        let Ok(data) = frame.map_err(|_| ProbeError::Body)?.into_data() else { continue };
        if body.len() + data.len() > bytes_max {
            return Err(ProbeError::Body);
        }
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

fn read_models(body: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let list: List = serde_json::from_slice(body)?;
    let named = list.data.into_iter().map(|model| model.id);
    let mut models: Vec<_> = named.filter(|id| (1..=MODEL_BYTES_MAX).contains(&id.len())).take(MODELS_MAX).collect();
    models.sort();
    models.dedup();
    Ok(models)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::gateway::worker::tests::spec;

    const BOTH: Question = Question { health: true, models: true };

    /// A worker that gives these answers by path, and the requests that it got.
    async fn probe(question: Question, health: &'static str, models: String) -> (Answer, Vec<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        let serve = async {
            let mut requests = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let n = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..n]).to_lowercase();
                let answer = if request.starts_with("get /base/v1/models ") { &*models } else { health };
                requests.push(request);
                // A client that has seen enough may be gone.
                let _ = stream.write_all(answer.as_bytes()).await;
                let last = requests.len() == usize::from(question.health) + usize::from(question.models);
                if last || !health.contains(" 200 ") {
                    return requests;
                }
            }
        };
        let spec = crate::mesh::stores::WorkerSpec { api_key: Some("sesame".into()), ..spec(&url) };
        let worker = Arc::new(Worker::of_spec(&spec, None).unwrap());
        let probe = HttpProbe { endpoint: "/health".into(), timeout: Duration::from_secs(5) };
        tokio::join!(probe.probe(worker, question), serve)
    }

    fn answer(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_healthy_worker_is_asked_with_its_key() {
        let list = r#"{"object":"list","data":[{"id":"b","x":1},{"id":"a"},{"id":"b"},{"id":""}]}"#;
        let (answer, requests) = probe(BOTH, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", answer(list)).await;
        answer.health.unwrap();
        assert_eq!(answer.models.unwrap(), ["a", "b"]);
        assert!(requests[0].starts_with("get /base/health http/1.1\r\nhost: 127.0.0.1:"), "{}", requests[0]);
        for request in requests {
            assert!(request.contains("\r\nauthorization: bearer sesame\r\n"), "{request}");
        }
    }

    #[tokio::test]
    async fn an_endless_health_body_is_not_read() {
        let endless = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nx";
        let (answer, _) = probe(Question { health: true, models: false }, endless, String::new()).await;
        answer.health.unwrap();
    }

    #[tokio::test]
    async fn a_bad_answer_is_not_healthy() {
        for (case, bytes, expected) in [
            ("unavailable", "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "status 503 Service Unavailable"),
            ("redirect", "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "status 302 Found"),
            ("not http", "SSH-2.0-x\r\n\r\n", "http failed"),
            ("closed at once", "", "http failed"),
        ] {
            let (answer, _) = probe(BOTH, bytes, String::new()).await;
            assert_eq!(answer.health.unwrap_err().to_string(), expected, "{case}");
            assert_eq!(answer.models, None, "{case}");
        }
    }

    #[tokio::test]
    async fn a_bad_model_list_leaves_the_models_unknown() {
        let long = answer(&format!(r#"{{"data":[{{"id":"a"}}],"x":"{}"}}"#, "y".repeat(MODELS_BYTES_MAX)));
        for (case, models) in [
            ("not json", answer("hello")),
            ("other json", answer("[]")),
            ("not found", "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".into()),
            ("short body", "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}".into()),
            ("too long", long),
        ] {
            let (answer, _) = probe(BOTH, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", models).await;
            answer.health.unwrap();
            assert_eq!(answer.models, None, "{case}");
        }
    }

    #[test]
    fn a_model_list_is_bounded() {
        let data: Vec<_> = (0..1_000).map(|i| serde_json::json!({ "id": format!("m{i}") })).collect();
        let body = serde_json::json!({ "data": data }).to_string();
        assert_eq!(read_models(body.as_bytes()).unwrap().len(), MODELS_MAX);
        let body =
            serde_json::json!({ "data": [{ "id": "x".repeat(MODEL_BYTES_MAX + 1) }, { "id": "a" }] }).to_string();
        assert_eq!(read_models(body.as_bytes()).unwrap(), ["a"]);
    }

    #[tokio::test]
    async fn a_refused_connection_is_not_healthy() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let worker = Arc::new(Worker::of_spec(&spec(&url), None).unwrap());
        let probe = HttpProbe { endpoint: "/health".into(), timeout: Duration::from_secs(5) };
        assert!(matches!(probe.probe(worker, BOTH).await.health, Err(ProbeError::Connect(_))));
    }
}
