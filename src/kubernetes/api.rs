//! The Kubernetes API, as far as pods need it: complete lists, a watch from there, and the zone of a node.
//!
//! The `kube` crate finds the server and its authority, and keeps the token fresh: `KUBECONFIG` or `~/.kube/config`, else
//! the service account of the pod. What is asked is `core/v1` alone, which every version of Kubernetes has; answers are
//! read here, so that each is bounded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::client::Body;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::{
    inventory::Change,
    pod::{Page, Pod, RawMeta, RawPod, ZONE_LABEL},
};
use crate::config::kubernetes::PodSearch;

/// For a whole list, all pages of it.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// For the zone of one node.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pods on one page of a list; half as many, down to one, where a page proves too large for the server or for us.
const PAGE_PODS: usize = 500;

/// Pods of a list at most; a longer one is an error.
const PODS_MAX: usize = 10_000;

/// Longest page of a list in bytes.
const PAGE_BYTES_MAX: usize = 32 << 20;

/// Longest text of a failure that is looked at.
const STATUS_BYTES_MAX: usize = 64 << 10;

/// Longest event of a watch in bytes; etcd stores no object above 1.5 MiB.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Why the API gave nothing. What is known stays as it is; asking again may help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// No connection, or it broke.
    #[error("cannot reach the Kubernetes API")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not answer in time.
    #[error("the Kubernetes API did not answer in time")]
    Timeout,
    /// Status 401 or 403: the service account may not.
    #[error("the Kubernetes API answers {0}: a role must allow the service account to list and watch pods")]
    Forbidden(u16),
    /// Status or event 410: what was asked for is too old; a new list helps.
    #[error("the Kubernetes API has forgotten this version")]
    Gone,
    /// Another status or event that is none.
    #[error("the Kubernetes API answers {0}")]
    Refused(u16),
    /// The answer cannot be read.
    #[error("the Kubernetes API answers what cannot be read: {0}")]
    Malformed(String),
    /// The answer is longer than it may be.
    #[error("the Kubernetes API answers more than can be taken in")]
    TooLong,
}

impl ApiError {
    /// The label `result` of the metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Forbidden(_) => "forbidden",
            Self::Gone => "gone",
            Self::Refused(_) => "refused",
            Self::Malformed(_) => "malformed",
            Self::TooLong => "too_long",
        }
    }
}

/// A complete list.
#[derive(Debug)]
pub struct Listed {
    /// All pods that match, in no order.
    pub pods: Vec<Pod>,
    /// Where a watch goes on from.
    pub version: String,
}

/// A client of the API; cheap to clone.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
    list_timeout: Duration,
    /// Pods on one page, what was small enough last; shared by clones.
    page_pods: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// A client for the server that the environment names. Does not connect yet.
    ///
    /// # Errors
    /// When neither a kubeconfig nor a service account is there, or what they name cannot be used.
    pub async fn open() -> anyhow::Result<Self> {
        let mut config = kube::Config::infer().await?;
        config.connect_timeout = Some(Duration::from_secs(5));
        // The searches have a back-off of their own.
        config.default_retry = false;
        Ok(Self { client: kube::Client::try_from(config)?, list_timeout: LIST_TIMEOUT, page_pods: page_pods() })
    }

    /// A client for the server at this URL, which it waits less for.
    #[cfg(test)]
    pub(super) fn at(url: &str) -> Self {
        let mut config = kube::Config::new(url.parse().expect("a URL"));
        config.default_retry = false;
        let client = kube::Client::try_from(config).expect("a client without certificates");
        Self { client, list_timeout: Duration::from_secs(1), page_pods: page_pods() }
    }

    /// The same, which waits as long as that of [`open`](Self::open).
    #[cfg(test)]
    pub(super) fn patient(self) -> Self {
        Self { list_timeout: LIST_TIMEOUT, ..self }
    }

    /// Every pod that matches, as it is now.
    ///
    /// # Errors
    /// When any part of the list is missing.
    pub async fn list(&self, search: &PodSearch) -> Result<Listed, ApiError> {
        let (deadline, mut pods, mut from) = (Instant::now() + self.list_timeout, Vec::new(), String::new());
        loop {
            let limit = self.page_pods.load(Relaxed);
            let mut query = vec![("labelSelector", search.selector()), ("limit", limit.to_string())];
            if !from.is_empty() {
                query.push(("continue", from.clone()));
            }
            let body = timeout_at(deadline, self.get(&path(search, &query), PAGE_BYTES_MAX)).await;
            let page: Page = match body.map_err(|_| ApiError::Timeout)? {
                Err(ApiError::TooLong) if limit > 1 => {
                    self.page_pods.store(limit / 2, Relaxed);
                    continue;
                }
                body => read(&body?)?,
            };
            pods.extend(page.items.into_iter().filter_map(RawPod::into_pod));
            if page.metadata.r#continue.is_empty() {
                return Ok(Listed { pods, version: page.metadata.resource_version });
            }
            if pods.len() >= PODS_MAX {
                return Err(ApiError::TooLong);
            }
            from = page.metadata.r#continue;
        }
    }

    /// What changes from `version` on, for about `lasting`.
    ///
    /// # Errors
    /// When the watch does not begin within the time for a list.
    pub async fn watch(&self, search: &PodSearch, version: &str, lasting: Duration) -> Result<Watch, ApiError> {
        let query = [
            ("labelSelector", search.selector()),
            ("watch", "true".into()),
            ("allowWatchBookmarks", "true".into()),
            ("resourceVersion", version.into()),
            ("timeoutSeconds", lasting.as_secs().max(1).to_string()),
        ];
        let begun = timeout_at(Instant::now() + self.list_timeout, self.send(&path(search, &query))).await;
        let body = begun.map_err(|_| ApiError::Timeout)??;
        Ok(Watch { body, waiting: BytesMut::new(), version: version.into() })
    }

    /// The zone of a node; empty when it has none.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn zone_of_node(&self, node: &str) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Node {
            metadata: RawMeta,
        }
        let name: String = url::form_urlencoded::byte_serialize(node.as_bytes()).collect();
        let path = format!("/api/v1/nodes/{name}");
        let body = timeout_at(Instant::now() + NODE_TIMEOUT, self.get(&path, EVENT_BYTES_MAX)).await;
        let node: Node = read(&body.map_err(|_| ApiError::Timeout)??)?;
        Ok(node.metadata.labels.get(ZONE_LABEL).cloned().unwrap_or_default())
    }

    async fn get(&self, path: &str, bytes_max: usize) -> Result<Bytes, ApiError> {
        let body = Limited::new(self.send(path).await?, bytes_max);
        let collected = body.collect().await.map_err(|error| match error.is::<LengthLimitError>() {
            true => ApiError::TooLong,
            false => ApiError::Unreachable(error),
        });
        Ok(collected?.to_bytes())
    }

    async fn send(&self, path: &str) -> Result<Body, ApiError> {
        let request = http::Request::get(path).header(http::header::ACCEPT, "application/json").body(Body::empty());
        let request = request.map_err(|error| ApiError::Malformed(error.to_string()))?;
        let answer = self.client.send(request).await.map_err(|error| ApiError::Unreachable(error.into()))?;
        match answer.status().as_u16() {
            200 => Ok(answer.into_body()),
            413 => Err(ApiError::TooLong),
            500 if is_too_large(answer.into_body()).await => Err(ApiError::TooLong),
            status => Err(status_error(status)),
        }
    }
}

fn page_pods() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(PAGE_PODS))
}

/// A watch that has begun.
#[derive(Debug)]
pub struct Watch {
    body: Body,
    waiting: BytesMut,
    version: String,
}

/// One line of a watch.
#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Box<serde_json::value::RawValue>,
}

impl Watch {
    /// The next change; none when the server has ended the watch, as it does after a while.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// When the watch breaks or says what cannot be read: it has to be begun anew, from a list.
    pub async fn next(&mut self) -> Result<Option<Change>, ApiError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.waiting) {
                let line = self.waiting.split_to(end + 1);
                match self.on_line(&line)? {
                    Some(change) => return Ok(Some(change)),
                    None => continue,
                }
            }
            if self.waiting.len() > EVENT_BYTES_MAX {
                return Err(ApiError::TooLong);
            }
            match self.body.frame().await {
                // What is left of a line is no event; the version before it is where to go on.
                None => return Ok(None),
                Some(Err(error)) => return Err(ApiError::Unreachable(error.into())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.waiting.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// Where the next watch goes on from.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    fn on_line(&mut self, line: &[u8]) -> Result<Option<Change>, ApiError> {
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let event: Event = read(line)?;
        if event.r#type == "ERROR" {
            #[derive(Deserialize)]
            struct Status {
                code: u16,
            }
            return Err(status_error(read::<Status>(event.object.get().as_bytes())?.code));
        }
        let object: RawPod = read(event.object.get().as_bytes())?;
        if !object.metadata.resource_version.is_empty() {
            self.version.clone_from(&object.metadata.resource_version);
        }
        let change = match &*event.r#type {
            "BOOKMARK" => return Ok(None),
            "ADDED" | "MODIFIED" => Change::Put,
            "DELETED" => Change::Gone,
            other => return Err(ApiError::Malformed(format!("event of type {}", shown(other)))),
        };
        let pod = object.into_pod().ok_or_else(|| ApiError::Malformed("a pod without name or UID".into()))?;
        Ok(Some(change(pod)))
    }
}

/// Whether a status says that etcd had more to answer than one message takes: `grpc: received message larger than max`,
/// `rpc error: … trying to send message larger than max`, `etcdserver: request is too large`.
async fn is_too_large(body: Body) -> bool {
    let status = Limited::new(body, STATUS_BYTES_MAX).collect().await;
    let text = status.map(|collected| String::from_utf8_lossy(&collected.to_bytes()).to_ascii_lowercase());
    text.is_ok_and(|text| text.contains("larger than max") || text.contains("too large"))
}

fn path(search: &PodSearch, query: &[(&str, String)]) -> String {
    let mut pairs = url::form_urlencoded::Serializer::new(String::new());
    pairs.extend_pairs(query);
    let query = pairs.finish();
    match &search.namespace {
        Some(namespace) => format!("/api/v1/namespaces/{namespace}/pods?{query}"),
        None => format!("/api/v1/pods?{query}"),
    }
}

fn status_error(status: u16) -> ApiError {
    match status {
        401 | 403 => ApiError::Forbidden(status),
        410 => ApiError::Gone,
        status => ApiError::Refused(status),
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::Malformed(shown(&error.to_string())))
}

/// The beginning of a text of the server's, for a log.
fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}
