//! What `/ha/status` and `/ha/workers` say, read with leave to say less or more: gateways of other releases answer too.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use super::{
    BaseUrl,
    client::{Client, Timed},
};

/// The body of `/ha/status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) node_name: String,
    pub(super) nodes: Vec<Node>,
    pub(super) stores: BTreeMap<String, Store>,
    pub(super) leader: Option<String>,
    pub(super) term: u64,
    pub(super) quorum: bool,
    pub(super) voters: Vec<String>,
    pub(super) limits: Option<Limits>,
    pub(super) cache: Option<Cache>,
    pub(super) gateway: Gateway,
}

impl Status {
    /// The root of each store that has one.
    pub(super) fn roots(&self) -> BTreeMap<&str, &str> {
        self.stores.iter().filter_map(|(name, store)| Some((name.as_str(), store.root.as_deref()?))).collect()
    }
}

/// One node in it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) status: String,
    pub(super) address: String,
    pub(super) zone: String,
    pub(super) sees: Option<Sees>,
    pub(super) lag_seconds: Option<f64>,
    pub(super) probe_detours: Option<u32>,
}

/// Probes in a row without an answer by datagram that no loss below 30 % explains (0.51^10 = 0.1 %).
const DETOURS_MAX: u32 = 10;

impl Node {
    /// For how many probes in a row datagrams between it and who answers have been lost; none when some come through, and
    /// when it is DOWN.
    pub(super) fn datagrams_lost(&self) -> Option<u32> {
        self.probe_detours.filter(|count| *count >= DETOURS_MAX && self.status != "DOWN")
    }
}

/// What a node holds the others for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sees {
    pub(super) not_alive: BTreeMap<String, String>,
}

/// The limit of all requests.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    pub(super) rights: String,
    pub(super) limit_per_second: u64,
    pub(super) burst: u64,
    pub(super) concurrent: u64,
}

/// Tokens of prompts, and those that a cache had.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cache {
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
}

/// One store in it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Store {
    pub(super) entry_count: u64,
    pub(super) last_sync: Option<String>,
    pub(super) root: Option<String>,
}

/// The process that answered.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Gateway {
    pub(super) version: String,
    pub(super) time: String,
    pub(super) cluster: String,
    pub(super) transport: String,
    pub(super) descriptors_max: Option<u64>,
}

/// One worker of `/ha/workers`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Worker {
    pub(super) id: String,
    pub(super) url: String,
    pub(super) models: Vec<String>,
    pub(super) state: String,
    pub(super) load: Option<u64>,
    pub(super) observers: BTreeMap<String, Observer>,
}

/// What one gateway sees of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Observer {
    pub(super) breaker: String,
}

/// The answers of one gateway, as they came and as they were read.
pub(super) struct Picture {
    pub(super) url: BaseUrl,
    pub(super) raw: Value,
    pub(super) status: Status,
    pub(super) workers: Vec<Worker>,
}

/// `/ha/status` of one gateway.
pub(super) fn read_status(timed: &Timed) -> anyhow::Result<Status> {
    Status::deserialize(&timed.body).context("read /ha/status")
}

/// Asks one gateway after another until one answers.
pub(super) async fn of_first(client: &Client, urls: &[BaseUrl]) -> anyhow::Result<Picture> {
    let mut failure = None;
    for url in urls {
        match of(client, url).await {
            Ok(picture) => return Ok(picture),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.context("no --url")?)
}

async fn of(client: &Client, url: &BaseUrl) -> anyhow::Result<Picture> {
    let timed = client.get(url, "/ha/status").await?;
    let status = read_status(&timed)?;
    let workers = client.get(url, "/ha/workers").await?.body["workers"].take();
    let read = Vec::<Worker>::deserialize(&workers).context("read /ha/workers")?;
    let raw = serde_json::json!({ "status": timed.body, "workers": workers });
    Ok(Picture { url: url.clone(), raw, status, workers: read })
}
