//! Workers, and peers, that are pods of a Kubernetes cluster.
//!
//! Each gateway searches for itself and tells the cluster what it finds; what several tell of one pod is one entry
//! ([`mesh::stores::Finding`](crate::mesh::stores::Finding)). A loop lists the pods and watches them from there, an inventory decides
//! what that means. Requests never wait for any of it, and a gateway that cannot reach the API server takes nothing away.
//!
//! | of the pod | what becomes of the worker |
//! |---|---|
//! | Ready | registered, with the zone of its node |
//! | not Ready any more | gets nothing from the gateways that see that; stays registered |
//! | being deleted, ended, another label | removed, as by `DELETE /workers`: what is in flight runs on |
//! | missing from lists | the same, once two complete lists lack it; an empty list counts after 60 s |
//!
//! Invariant: an operator's word on a worker (`PATCH`, `DELETE`) holds as long as its pod is found, whatever else is.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use tokio::sync::watch;
use tracing::warn;

use self::{
    api::Api,
    follow::{Audience, Follower},
    inventory::{Change, Held, Inventory},
    pod::Pod,
};
use crate::{config::kubernetes::Kubernetes, mesh::driver::handle::MeshHandle, telemetry::metrics::Metrics};

pub mod api;
pub mod inventory;
pub mod pod;

mod follow;

#[cfg(test)]
pub(crate) mod fake;

/// The searches of one gateway, before they begin.
#[derive(Debug)]
pub struct Searches {
    config: Kubernetes,
    api: Option<Api>,
    metrics: Arc<Metrics>,
}

impl Searches {
    /// Finds the API server where something is to be searched. Does not connect yet: an API server that is down keeps no
    /// gateway from starting.
    ///
    /// # Errors
    /// When there is neither a kubeconfig nor a service account.
    pub async fn open(config: &Kubernetes, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        let flag = match config {
            Kubernetes { workers: Some(_), .. } => "--service-discovery",
            Kubernetes { routers: Some(_), .. } => "--router-selector",
            _ => return Ok(Self { config: config.clone(), api: None, metrics: metrics.clone() }),
        };
        let api =
            Api::open().await.map_err(|error| error.context(format!("{flag}: find the Kubernetes API server")))?;
        Ok(Self { config: config.clone(), api: Some(api), metrics: metrics.clone() })
    }

    /// Begins to search for workers on the current runtime; gives those that get no requests from here because their pods
    /// are not Ready. The search ends with the mesh.
    #[must_use]
    pub fn find_workers(&self, mesh: &MeshHandle) -> watch::Receiver<Held> {
        let (held, watched) = watch::channel(Held::default());
        if let (Some(api), Some(pods)) = (&self.api, &self.config.workers) {
            let search = pods.search.clone();
            let audience = Workers { inventory: Inventory::new(pods.clone()), mesh: mesh.clone(), held };
            let follower = Follower::new(api.clone(), search, self.config.relist, self.metrics.clone(), audience);
            tokio::spawn(follower.run());
        }
        watched
    }

    /// Begins to search for gateways on the current runtime. They are joined through at `port`. That there are others, found
    /// or not, is for `--mesh-peer-urls` to say.
    #[must_use]
    pub fn find_routers(&self, port: u16) -> watch::Receiver<Vec<SocketAddr>> {
        let (found, watched) = watch::channel(Vec::new());
        if let (Some(api), Some(search)) = (&self.api, &self.config.routers) {
            let audience = Routers { port, pods: BTreeMap::new(), found };
            let follower =
                Follower::new(api.clone(), search.clone(), self.config.relist, self.metrics.clone(), audience);
            tokio::spawn(follower.run());
        }
        watched
    }
}

/// Tells the mesh whom it may join through.
struct Routers {
    port: u16,
    pods: BTreeMap<String, IpAddr>,
    found: watch::Sender<Vec<SocketAddr>>,
}

impl Routers {
    fn put(&mut self, pod: &Pod) {
        // Ready or not: a node becomes ready by joining.
        match pod.ip.filter(|_| !pod.is_ending) {
            Some(ip) => drop(self.pods.insert(pod.name.clone(), ip)),
            None => drop(self.pods.remove(&pod.name)),
        }
    }
}

impl Audience for Routers {
    const KIND: &'static str = "router";
    const WANTS_ZONES: bool = false;

    fn handle_list(&mut self, pods: &[Pod]) -> bool {
        self.pods.clear();
        pods.iter().for_each(|pod| self.put(pod));
        false
    }

    fn handle_change(&mut self, change: &Change) {
        match change {
            Change::Put(pod) => self.put(pod),
            Change::Gone(pod) => drop(self.pods.remove(&pod.name)),
        }
    }

    async fn flush(&mut self) -> Option<usize> {
        let addresses = self.pods.values().map(|ip| SocketAddr::new(*ip, self.port)).collect();
        self.found.send(addresses).ok()?;
        Some(self.pods.len())
    }
}

/// Tells the mesh which workers there are.
struct Workers {
    inventory: Inventory,
    mesh: MeshHandle,
    held: watch::Sender<Held>,
}

impl Workers {
    fn show_held(&self) {
        let held = self.inventory.held(Instant::now());
        self.held.send_if_modified(|known| {
            let is_news = **known != held;
            *known = Arc::new(held);
            is_news
        });
    }
}

impl Audience for Workers {
    const KIND: &'static str = "worker";
    const WANTS_ZONES: bool = true;

    fn handle_list(&mut self, pods: &[Pod]) -> bool {
        self.inventory.handle_list(Instant::now(), pods)
    }

    fn handle_change(&mut self, change: &Change) {
        self.inventory.handle_change(change);
    }

    fn handle_failure(&mut self) {
        self.inventory.handle_failure(Instant::now());
        self.show_held();
    }

    async fn flush(&mut self) -> Option<usize> {
        // What is held first: a pod that comes and is not Ready gets no request in between.
        self.show_held();
        while let Some(pod) = self.inventory.poll_portless() {
            warn!(pod, port = %self.inventory.port(), "pod has no port of this name, it is no worker");
        }
        while let Some(finding) = self.inventory.poll_finding() {
            self.mesh.find(finding).await.ok()?;
        }
        Some(self.inventory.ready_len())
    }
}

#[cfg(test)]
mod tests;
