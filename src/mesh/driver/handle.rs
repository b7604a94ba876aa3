//! What the rest of the program holds of the mesh: a snapshot to read, commands to send.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::mesh::{
    driver::{
        links::Link,
        rights::{RightsView, SharedLimits},
    },
    election::Leader,
    node::{NodeName, NodeStatus},
    quota::{Tokens, Usage, share::LimitId},
    routing::{Message, Sight},
    stores::{
        Finding, PolicySpec, SessionKey, Stores, WorkerId, WorkerObservation, WorkerPatch, WorkerSpec, WorkerView,
    },
    wire::{self, state::ValueError},
};

/// Commands waiting for the driver at most; senders wait for room beyond that.
pub const COMMANDS_MAX: usize = 1024;

/// A model and its policy.
pub type PolicyEntry = (Arc<str>, Arc<PolicySpec>);

/// An immutable picture of the cluster as this node sees it. Readers never wait for the mesh.
#[derive(Clone, Debug)]
pub struct View {
    /// This node's name.
    pub node: NodeName,
    /// Whether `--enable-mesh` is on.
    pub mesh_enabled: bool,
    /// This node and every node it knows, sorted by name.
    pub nodes: Vec<NodeView>,
    /// Whether this node knows what the cluster knows: a peer has sent all it had, there is no peer to ask, or none has
    /// answered within 2 s of the start. Until then its workers may be of the past, and it routes no request.
    pub synced: bool,
    /// Every live worker entry, sorted by id.
    pub workers: Arc<Vec<Arc<WorkerView>>>,
    /// Policies set through the API, sorted by model.
    pub policies: Arc<Vec<PolicyEntry>>,
    /// What routing by prompt must agree on.
    pub routing: RoutingFacts,
    /// Who leads, when this picture was made; [`Leadership`] says until when.
    pub leader: Option<NodeName>,
    /// The newest term of a leader that this node knows; 0 before the first election.
    pub term: u64,
    /// The rate limit set through the API.
    pub rate_limit: Option<PolicySpec>,
    /// The rate limits that were set for some requests, by name.
    pub rate_limits: Vec<(String, PolicySpec)>,
    /// The ways to the peers that this node sends its state to; none before something was measured there.
    pub links: Arc<BTreeMap<NodeName, Link>>,
    /// What the peers hold the members for, by their own word; nothing of those that this node does not hear.
    pub sights: Arc<BTreeMap<NodeName, Sight>>,
    /// When this node's state was last known equal to, or changed by, a peer's; none before the first exchange.
    pub last_sync: Option<SystemTime>,
    /// By which nodes tell that they hold the same.
    pub roots: Roots,
}

/// A 64-bit root over all that a namespace holds: nodes with equal roots hold the same, whatever the order in which they
/// came by it. 0 when it holds nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Roots {
    /// Workers, with what each gateway sees of them.
    pub workers: u64,
    /// Policies and the rate limit set through the API.
    pub policies: u64,
}

/// Who leads, as this node knows it. It changes more often than the [`View`], and is read at the moment it is needed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Leadership {
    /// Who leads and until when that is known; of this node itself the end of its lease.
    pub leader: Option<Leader>,
    /// The newest term known here; 0 before the first election.
    pub term: u64,
    /// The voters; empty before they are known.
    pub voters: Vec<NodeName>,
    /// Whether a quorum of the voters was there when this was written.
    pub has_quorum: bool,
}

impl Leadership {
    /// Who leads at `now`.
    #[must_use]
    pub fn leader_at(&self, now: Instant) -> Option<&NodeName> {
        self.leader.as_ref().filter(|leader| now < leader.until).map(|leader| &leader.name)
    }
}

/// What gateways must agree on to compare prompts.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct RoutingFacts {
    /// The key of prefix names, [`HASH_KEY_BYTES`](crate::mesh::stores::HASH_KEY_BYTES); none before the cluster has one.
    pub hash_key: Option<Bytes>,
    /// How often each worker has lost its cache, by [`WorkerId::number`].
    pub generations: BTreeMap<u64, u32>,
}

impl fmt::Debug for RoutingFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash_key = self.hash_key.as_ref().map(|_| "…");
        f.debug_struct("RoutingFacts").field("hash_key", &hash_key).field("generations", &self.generations).finish()
    }
}

/// One node in a [`View`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Its status.
    pub status: NodeStatus,
    /// Advertised mesh address for people, `host:port`.
    pub address: String,
    /// Advertised mesh address for the network.
    pub addr: SocketAddr,
    /// Availability zone; empty when unknown.
    pub zone: String,
}

/// What each node used of a limit, and holds of its bucket; a second old at most where all is well.
#[derive(Clone, Debug, Default)]
pub struct LimitUsage {
    /// Requests.
    pub requests: BTreeMap<NodeName, Usage>,
    /// Tokens.
    pub tokens: BTreeMap<NodeName, Tokens>,
}

impl LimitUsage {
    pub(super) fn of(stores: &Stores, limit: LimitId) -> Self {
        Self { requests: stores.usage(limit), tokens: stores.tokens(limit) }
    }
}

/// That of each limit.
pub type UsageByLimit = BTreeMap<LimitId, LimitUsage>;

/// A request to the driver.
#[derive(Debug)]
pub enum Command {
    /// Register or replace a worker.
    PutWorker(WorkerSpec, oneshot::Sender<WorkerId>),
    /// Change a worker's entry; answers whether there is one.
    PatchWorker(WorkerId, WorkerPatch, oneshot::Sender<bool>),
    /// Remove a worker everywhere; answers whether there was one.
    RemoveWorker(WorkerId, oneshot::Sender<bool>),
    /// News of a search for workers.
    Find(Finding),
    /// Set the policy of a model; refused when a name is too long.
    PutPolicy(String, PolicySpec, oneshot::Sender<Result<(), ValueError>>),
    /// Remove a rate limit that is set for some requests; answers whether there was one.
    RemoveRateLimit(String, oneshot::Sender<bool>),
    /// What each node used of these limits.
    Usage(Vec<LimitId>, oneshot::Sender<UsageByLimit>),
    /// Tell the others what this gateway sees of a worker.
    Observe(WorkerId, WorkerObservation),
    /// A worker holds a session.
    HoldSession(SessionKey, u64),
    /// A worker has lost its cache.
    LoseCache(WorkerId),
    /// The limits that the cluster shares, all of them.
    ShareLimits(SharedLimits),
    /// Send a routing frame to one peer, or to all.
    Share(Option<NodeName>, Bytes),
    /// Announce LEAVING, wait for a quorum of acks (bounded), then stop.
    Leave(oneshot::Sender<()>),
}

impl View {
    /// What is known before the driver has spoken.
    pub(super) fn empty(node: NodeName, mesh_enabled: bool) -> Self {
        Self {
            node,
            mesh_enabled,
            nodes: Vec::new(),
            synced: false,
            workers: Arc::default(),
            policies: Arc::default(),
            routing: RoutingFacts::default(),
            leader: None,
            term: 0,
            rate_limit: None,
            rate_limits: Vec::new(),
            last_sync: None,
            links: Arc::default(),
            sights: Arc::default(),
            roots: Roots::default(),
        }
    }
}

/// Handle to the mesh driver; cheap to clone.
#[derive(Clone, Debug)]
pub struct MeshHandle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
    leadership: watch::Receiver<Leadership>,
    rights: watch::Receiver<RightsView>,
}

/// The driver has stopped; the process is about to exit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the mesh driver has stopped")]
pub struct Stopped;

impl MeshHandle {
    /// A handle over the driver's ends of the channels.
    #[must_use]
    pub fn new(
        commands: mpsc::Sender<Command>,
        view: watch::Receiver<Arc<View>>,
        leadership: watch::Receiver<Leadership>,
    ) -> Self {
        Self { commands, view, leadership, rights: watch::channel(RightsView::default()).1 }
    }

    /// The same handle with news of rights, which are nothing otherwise.
    #[must_use]
    pub fn with_rights(self, rights: watch::Receiver<RightsView>) -> Self {
        Self { rights, ..self }
    }

    /// What this node holds of the limits that the cluster shares, and lends.
    #[must_use]
    pub fn rights(&self) -> RightsView {
        self.rights.borrow().clone()
    }

    /// A receiver that is woken when any of that changes.
    #[must_use]
    pub fn watch_rights(&self) -> watch::Receiver<RightsView> {
        self.rights.clone()
    }

    /// Tells the mesh which limits the cluster shares, and where this node spends what it holds of them.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn share_limits(&self, limits: SharedLimits) -> Result<(), Stopped> {
        self.commands.send(Command::ShareLimits(limits)).await.map_err(|_| Stopped)
    }

    /// Who leads, and what is known of the voters.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.borrow().clone()
    }

    /// A receiver that is woken when any of that changes, with each heartbeat of the leader at the latest.
    #[must_use]
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// The newest picture of the cluster.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// A receiver that is woken when the picture changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Registers or replaces a worker, here and everywhere. When it answers, [`view`](Self::view) shows it.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn put_worker(&self, spec: WorkerSpec) -> Result<WorkerId, Stopped> {
        self.ask(|reply| Command::PutWorker(spec, reply)).await
    }

    /// Changes a worker's entry, here and everywhere; `false` when there is none. When it answers, [`view`](Self::view)
    /// shows it.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn patch_worker(&self, id: WorkerId, patch: WorkerPatch) -> Result<bool, Stopped> {
        self.ask(|reply| Command::PatchWorker(id, patch, reply)).await
    }

    /// Removes a worker everywhere; `false` when there was none. When it answers, [`view`](Self::view) is without it.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn remove_worker(&self, id: WorkerId) -> Result<bool, Stopped> {
        self.ask(|reply| Command::RemoveWorker(id, reply)).await
    }

    /// Gives the cluster news of a search for workers.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn find(&self, finding: Finding) -> Result<(), Stopped> {
        self.commands.send(Command::Find(finding)).await.map_err(|_| Stopped)
    }

    /// What each node used of these limits.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn usage(&self, limits: Vec<LimitId>) -> Result<UsageByLimit, Stopped> {
        self.ask(|reply| Command::Usage(limits, reply)).await
    }

    /// Removes a rate limit that is set for some requests, here and everywhere; `false` when there was none. When it
    /// answers, [`view`](Self::view) is without it.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn remove_rate_limit(&self, name: String) -> Result<bool, Stopped> {
        self.ask(|reply| Command::RemoveRateLimit(name, reply)).await
    }

    /// Sets the policy of a model, here and everywhere; `*` is the default of all that have none of their
    /// own, [`RATE_LIMIT`](crate::mesh::stores::RATE_LIMIT) the rate limit. When it answers, [`view`](Self::view) shows it.
    ///
    /// # Errors
    /// When the driver has stopped; inside, when a name is longer than it may be and nothing was written.
    pub async fn put_policy(&self, model: String, spec: PolicySpec) -> Result<Result<(), ValueError>, Stopped> {
        self.ask(|reply| Command::PutPolicy(model, spec, reply)).await
    }

    /// Tells the cluster what this gateway sees of a worker.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn observe(&self, id: WorkerId, seen: WorkerObservation) -> Result<(), Stopped> {
        self.commands.send(Command::Observe(id, seen)).await.map_err(|_| Stopped)
    }

    /// Tells the cluster that a worker has lost its cache: what was seen of it before does not count any more.
    ///
    /// # Errors
    /// When the driver has stopped.
    pub async fn lose_cache(&self, id: WorkerId) -> Result<(), Stopped> {
        self.commands.send(Command::LoseCache(id)).await.map_err(|_| Stopped)
    }

    /// Sends a routing hint to one peer, or to all that a pipe leads to; gives its size in bytes, or none when the driver
    /// has no room for it: then it is lost, as it may be.
    #[must_use]
    pub fn share(&self, to: Option<NodeName>, message: &Message) -> Option<usize> {
        let frame = wire::routing::encode(message);
        let bytes = frame.len();
        self.commands.try_send(Command::Share(to, frame)).is_ok().then_some(bytes)
    }

    /// Announces LEAVING and waits, at most `wait`, until the mesh has let this node go.
    pub async fn leave(&self, wait: Duration) {
        let left = self.ask(Command::Leave);
        // Either outcome ends the mesh's part of the shutdown: silence beyond `wait` is found by the peers' probes.
        let _ = tokio::time::timeout(wait, left).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}
