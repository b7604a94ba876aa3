//! The one task that owns clock, timers, randomness and transport, and drives the pure machines.
//!
//! The loop takes one input (a datagram, an event of the stream plane, a command, resolved seeds, a timer), then every
//! input that is ready without waiting, at most 1024 and for 2 ms, then packets, and only then fires timers: a process that
//! was stalled reads what its peers said meanwhile before it accuses anybody (DESIGN §3 point 9). Then it drains every
//! `poll_*` of every machine until all are quiet.
//!
//! Without `--enable-mesh` the same loop runs with the store alone, so that a single gateway has no second path.

mod absent;
pub mod advertise;
mod alarm;
pub mod data;
mod expire;
pub mod identity;
mod leader;
pub mod links;
pub mod net;
mod picture;
mod pipes;
mod report;
mod resolve;
pub mod rights;
mod story;
mod turns;
mod usage;

pub mod handle;

pub mod sessions;

mod sharing;
mod sights;
mod spans;
mod thread;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, coop::unconstrained},
};
use tracing::info;

use crate::{
    config::Config,
    mesh::{
        driver::{
            alarm::Alarm,
            data::{Data, DataError, Opened},
            handle::{COMMANDS_MAX, Command, Leadership, LimitUsage, MeshHandle, NodeView, Roots, RoutingFacts, View},
            identity::TlsError,
            leader::Podium,
            net::{Input, Net, NetError, Outlets, Runtimes},
            picture::Picture,
            rights::{RightsView, SharedLimits},
            sessions::{Sessions, Table},
            sharing::SHARED_MAX,
            thread::Thread,
            turns::Turns,
        },
        node::NodeName,
        routing::Message,
        stores::{HASH_KEY_BYTES, Namespace, StoreEvent, Stores, WorkerOrigin, WorkerSpec},
    },
    telemetry::{metrics::Metrics, traces::mesh::MeshTraces},
};

/// Inputs handled between two looks at the timers.
const BATCH_MAX: usize = 1024;

/// Once inputs were handled for this long, packets are read and then the timers fire: a sync frame may take a millisecond
/// to join, and a probe is not to wait for many of them.
const BATCH_TIME: Duration = Duration::from_millis(2);

/// A new view is published at most this often, so that a burst of changes costs few of them.
const VIEW_INTERVAL: Duration = Duration::from_millis(10);

/// A view is also no more often made than this many times the time that the last one took: they cost a twentieth of a
/// core at most, whatever they show.
const VIEW_PAUSE: u32 = 20;

/// However large the views are, one is published this often.
const VIEW_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// The time of the last exchange alone is shown no later than this: an idle cluster costs its readers nothing more often.
const SYNC_TIME_INTERVAL: Duration = Duration::from_secs(5);

/// Why the mesh ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The mesh could not start; nothing is bound. See the source for what to change.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The certificate of this node cannot be used; nothing is bound.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// `--mesh-data-dir` cannot be used; nothing is bound.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The thread that writes to `--mesh-data-dir` cannot be started; nothing stays bound.
    #[error("cannot start the thread that writes to --mesh-data-dir")]
    DataThread(#[source] io::Error),
    /// The thread of the mesh cannot be started; nothing stays bound.
    #[error("cannot start the thread of the mesh")]
    Thread(#[source] io::Error),
    /// An older live node has this name. This node left; the cluster is unchanged.
    #[error("a live node named {name} is in the cluster already; choose another --mesh-server-name (or POD_NAME)")]
    NameTaken {
        /// The contested name.
        name: NodeName,
    },
    /// The datagram socket is broken for good. The peers find this node silent; only a new process helps.
    #[error("the mesh socket failed")]
    Socket(#[source] io::Error),
}

/// A started mesh.
#[derive(Debug)]
pub struct Mesh {
    /// For the rest of the program.
    pub handle: MeshHandle,
    /// For the request path.
    pub sessions: Sessions,
    /// Routing hints from peers; those that find no room are lost.
    pub shared: mpsc::Receiver<(NodeName, Message)>,
    /// Ends with the process: an error ends the process too.
    pub task: JoinHandle<Result<(), DriverError>>,
}

struct Driver {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    node: NodeName,
    stores: Stores,
    picture: Picture,
    net: Option<Net>,
    commands: mpsc::Receiver<Command>,
    sessions: Arc<Table>,
    shared: mpsc::Sender<(NodeName, Message)>,
    pods: watch::Receiver<Vec<SocketAddr>>,
    traces: Option<MeshTraces>,
    runtimes: Runtimes,
    alarm: Alarm,
    expire_due: Instant,
    view: watch::Sender<Arc<View>>,
    leadership: watch::Sender<Leadership>,
    rights: watch::Sender<RightsView>,
    /// Kept for a mesh that starts again under another name.
    limits: SharedLimits,
    told: usage::Told,
    view_due: Option<Instant>,
    view_published: Instant,
    /// From one view to the next, at least.
    view_interval: Duration,
    leaving: Vec<oneshot::Sender<()>>,
    data: Option<Data>,
    /// Answers to writes that are not to be told yet: at most as many as there are askers.
    unconfirmed: Vec<Unconfirmed>,
}

/// The answer to a write: due when the view shows it and, with `--mesh-data-dir`, the disk has it.
struct Unconfirmed {
    ticket: u64,
    /// When it is told although the disk has not.
    due: Instant,
    confirm: Box<dyn FnOnce() + Send>,
}

/// Binds the mesh, when it is enabled, and starts its driver on a thread of its own, else on the current runtime. `pods` are nodes to join through, beside
/// those of `--mesh-peer-urls`, as they are found; `traces` is where spans go.
///
/// # Errors
/// When a socket cannot be bound, no address can be advertised or the thread cannot be started.
pub async fn start(
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    pod_ip: Option<IpAddr>,
    pods: watch::Receiver<Vec<SocketAddr>>,
    traces: Option<MeshTraces>,
) -> Result<Mesh, DriverError> {
    let now = Instant::now();
    let (sender, shared) = mpsc::channel(SHARED_MAX);
    let node = config.mesh.node.clone();
    let (leadership, watched_leadership) = watch::channel(Leadership::default());
    let (rights, watched_rights) = watch::channel(RightsView::default());
    let opened = open_data(&config).await?;
    let boot_epoch_ms = opened.as_ref().map_or_else(unix_ms, |opened| opened.boot_epoch_ms);
    let thread = Thread::start(config.mesh.enabled).map_err(DriverError::Thread)?;
    let runtimes = Runtimes { datagrams: thread.handle(), streams: Handle::current() };
    let mut net = None;
    if config.mesh.enabled {
        let tls = identity::open(&config.mesh, &node, &metrics)?;
        let podium = Podium::open(leadership.clone(), rights.clone(), config.mesh.data_dir.clone(), unix_ms()).await?;
        let (shared, runtimes) = (sender.clone(), runtimes.clone());
        let outlets = Outlets { podium, shared, pods: pods.clone(), traces: traces.clone(), runtimes };
        net = Some(Net::bind(&config.mesh, &node, boot_epoch_ms, &metrics, pod_ip, tls, outlets).await?);
    }
    let (mut stores, data) = match opened {
        Some(opened) => {
            let (stores, data) = opened.start(now, metrics.clone()).map_err(DriverError::DataThread)?;
            (stores, Some(data))
        }
        None => (Stores::new(node.clone(), boot_epoch_ms), None),
    };
    seed(&config, &mut stores);
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (view, watched) = watch::channel(Arc::new(View::empty(node.clone(), config.mesh.enabled)));
    let driver = Driver {
        config,
        metrics: metrics.clone(),
        node,
        picture: Picture::of(&stores),
        stores,
        net,
        commands: inbox,
        sessions: Arc::default(),
        shared: sender,
        pods,
        traces,
        runtimes,
        alarm: thread.within(Alarm::new),
        expire_due: now,
        view,
        leadership,
        rights,
        limits: SharedLimits::default(),
        told: usage::Told::new(now),
        view_due: Some(now),
        view_published: now - VIEW_INTERVAL,
        view_interval: VIEW_INTERVAL,
        leaving: Vec::new(),
        data,
        unconfirmed: Vec::new(),
    };
    let sessions = Sessions::new(driver.sessions.clone(), commands.clone());
    let handle = MeshHandle::new(commands, watched, watched_leadership).with_rights(watched_rights);
    let sampled = handle.clone();
    metrics.watch_mesh(move || report::sample(&sampled.view(), &sampled.leadership(), &sampled.rights()));
    Ok(Mesh { handle, sessions, shared, task: thread.run(driver.run(pod_ip)) })
}

/// Opens `--mesh-data-dir`, off the runtime.
async fn open_data(config: &Config) -> Result<Option<Opened>, DriverError> {
    let Some(dir) = config.mesh.data_dir.clone().filter(|_| config.mesh.enabled) else { return Ok(None) };
    let (cluster, node) = (config.mesh.cluster.clone(), config.mesh.node.clone());
    let opened = tokio::task::spawn_blocking(move || data::open(&dir, &cluster, &node, unix_ms())).await;
    Ok(Some(opened.map_err(|panic| DriverError::DataThread(io::Error::other(panic)))??))
}

fn seed(config: &Config, stores: &mut Stores) {
    for url in &config.workers.urls {
        stores.seed_worker(WorkerSpec {
            url: url.clone(),
            models: Vec::new(),
            api_key: None,
            zone: String::new(),
            origin: WorkerOrigin::Seed,
            draining: false,
        });
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Driver {
    async fn run(mut self, pod_ip: Option<IpAddr>) -> Result<(), DriverError> {
        let mut turns = Turns::new();
        loop {
            let now = Instant::now();
            match self.settle(now) {
                Ok(()) => {}
                Err(DriverError::NameTaken { .. }) => {
                    self.rename(pod_ip).await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            // What was sent goes out.
            turns.give().await;
            let deadline = self.deadline();
            let Some(input) = turns.wait(self.next_input(deadline)).await else { return Ok(()) };
            let now = Instant::now();
            self.handle(now, input);
            for _ in 1..BATCH_MAX {
                if now.elapsed() >= BATCH_TIME {
                    break;
                }
                // Outside the runtime's budget, which would end the batch while inputs still wait.
                let Some(input) = unconstrained(self.next_input(None)).now_or_never() else { break };
                let Some(input) = input else { return Ok(()) };
                self.handle(now, input);
            }
            // Packets have come, and are read before any timer fires.
            if turns.give().await {
                let now = Instant::now();
                for _ in 0..BATCH_MAX {
                    let Some(Some(input)) = unconstrained(self.next_packet()).now_or_never() else { break };
                    self.handle(now, input);
                    if now.elapsed() >= BATCH_TIME {
                        break;
                    }
                }
            }
        }
    }

    /// Waits for a packet of the datagram plane.
    async fn next_packet(&mut self) -> Option<Input> {
        match &mut self.net {
            Some(net) => Some(net.next_packet().await),
            None => std::future::pending().await,
        }
    }

    /// Waits for one input; none when every handle is gone.
    async fn next_input(&mut self, deadline: Option<Instant>) -> Option<Input> {
        let net = async {
            match &mut self.net {
                Some(net) => net.next_input().await,
                None => std::future::pending().await,
            }
        };
        let data = async {
            match &mut self.data {
                Some(data) => data.next_outcome().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = self.commands.recv() => command.map(Input::Command),
            input = net => Some(input),
            saving = data => Some(Input::Saved(saving)),
            () = self.alarm.until(deadline) => Some(Input::Timer),
        }
    }

    fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Command(command) => self.on_command(now, command),
            Input::Timer => {}
            Input::Saved(saving) => {
                if let Some(data) = &mut self.data {
                    data.handle_outcome(now, saving);
                }
            }
            input => {
                if let Some(net) = &mut self.net {
                    net.handle(now, unix_ms(), &mut self.stores, input);
                }
            }
        }
    }

    fn on_command(&mut self, now: Instant, command: Command) {
        // An asker that has gone away does not undo what it asked for.
        match command {
            Command::PutWorker(spec, reply) => {
                let id = self.stores.put_worker(unix_ms(), spec);
                self.confirm(now, move || drop(reply.send(id)));
            }
            Command::PatchWorker(id, patch, reply) => {
                let existed = self.stores.patch_worker(unix_ms(), &id, &patch);
                self.confirm(now, move || {
                    let _ = reply.send(existed);
                });
            }
            Command::RemoveWorker(id, reply) => {
                let existed = self.stores.remove_worker(unix_ms(), &id);
                self.confirm(now, move || {
                    let _ = reply.send(existed);
                });
            }
            Command::PutPolicy(model, spec, reply) => {
                let outcome = self.stores.put_policy(unix_ms(), &model, &spec);
                self.confirm(now, move || drop(reply.send(outcome)));
            }
            Command::RemoveRateLimit(name, reply) => {
                let is_removed = self.stores.remove_rate_limit(&name);
                self.confirm(now, move || {
                    let _ = reply.send(is_removed);
                });
            }
            Command::Usage(limits, reply) => {
                let _ = reply.send(limits.into_iter().map(|id| (id, LimitUsage::of(&self.stores, id))).collect());
            }
            Command::ShareLimits(limits) => {
                if let Some(net) = &mut self.net {
                    net.share_limits(now, &limits);
                }
                self.limits = limits;
            }
            Command::Find(finding) => self.stores.note_finding(unix_ms(), finding),
            Command::LoseCache(id) => self.stores.lose_cache(unix_ms(), &id),
            Command::Share(to, frame) => {
                if let Some(net) = &self.net {
                    net.share(to.as_ref(), &frame);
                }
            }
            Command::HoldSession(key, worker) => self.stores.put_session(unix_ms(), key, worker),
            Command::Observe(id, seen) => self.stores.observe_worker(unix_ms(), &id, &seen),
            Command::Leave(reply) => match &mut self.net {
                Some(net) => {
                    self.leaving.push(reply);
                    net.leave(now);
                    self.told.hurry(now);
                    self.touch(now, VIEW_INTERVAL);
                }
                None => {
                    let _ = reply.send(());
                }
            },
        }
    }

    /// Fires due timers and drains every machine until all are quiet; an error when the name is taken or the socket broken.
    fn settle(&mut self, now: Instant) -> Result<(), DriverError> {
        if let Some(net) = &mut self.net {
            let outcome = net.settle(now, &mut self.stores);
            if let Some(error) = outcome.broken {
                return Err(DriverError::Socket(error));
            }
            if outcome.name_taken {
                return Err(DriverError::NameTaken { name: self.node.clone() });
            }
            if outcome.left {
                for reply in self.leaving.drain(..) {
                    let _ = reply.send(());
                }
            }
            if outcome.changed {
                self.touch(now, VIEW_INTERVAL);
            } else if outcome.synced {
                self.touch(now, SYNC_TIME_INTERVAL);
            }
        }
        self.expire(now);
        self.offer_hash_key();
        if let Some(net) = self.net.as_ref().filter(|net| net.synced()) {
            self.told.run(now, unix_ms(), &self.limits.limits, &|limit| net.pooled(limit), &mut self.stores);
        }
        let mut changed = false;
        while let Some(event) = self.stores.poll_event() {
            report::store_event(&event);
            changed |= self.picture.note(&event, &self.stores);
            match event {
                StoreEvent::SessionChanged(key) => self.sessions.set(key, self.stores.session(key)),
                StoreEvent::ManyChanged => self.sessions.replace(self.stores.sessions()),
                StoreEvent::WorkerChanged(_) | StoreEvent::PolicyChanged(_) | StoreEvent::RoutingChanged => {}
            }
        }
        if changed {
            self.touch(now, VIEW_INTERVAL);
        }
        if self.view_due.is_some_and(|at| at <= now) {
            self.publish(now);
        }
        for namespace in Namespace::ALL.into_iter().filter(|_| self.net.is_some()) {
            let map = self.stores.map(namespace);
            self.metrics.mesh_store(namespace, map.len(), map.payload_bytes());
        }
        if let Some(data) = &mut self.data {
            data.settle(now, &mut self.stores);
        }
        if self.view_due.is_none() {
            self.tell_confirmed(now);
        }
        Ok(())
    }

    fn confirm(&mut self, now: Instant, confirm: impl FnOnce() + Send + 'static) {
        let ticket = self.data.as_ref().map_or(0, |data| data.ticket(&self.stores));
        self.unconfirmed.push(Unconfirmed { ticket, due: now + data::ANSWER_WAIT_MAX, confirm: Box::new(confirm) });
    }

    fn tell_confirmed(&mut self, now: Instant) {
        let data = self.data.as_ref();
        let is_due =
            |answer: &mut Unconfirmed| answer.due <= now || data.is_none_or(|data| data.is_settled(answer.ticket));
        self.unconfirmed.extract_if(.., is_due).for_each(|answer| (answer.confirm)());
    }

    /// Draws the key of prefix names, once the cluster's state is here and has none.
    fn offer_hash_key(&mut self) {
        if self.net.as_ref().is_none_or(Net::synced) && self.stores.hash_key().is_none() {
            self.stores.offer_hash_key(unix_ms(), &rand::random::<[u8; HASH_KEY_BYTES]>());
        }
    }

    /// Has a new picture published once the last one is `interval` old.
    fn touch(&mut self, now: Instant, interval: Duration) {
        let due = (self.view_published + interval.max(self.view_interval)).max(now);
        self.view_due = Some(self.view_due.map_or(due, |at| at.min(due)));
    }

    fn publish(&mut self, now: Instant) {
        self.view_due = None;
        self.view_published = now;
        let nodes = self.net.as_ref().map(Net::nodes).unwrap_or_default();
        let (leader, term) = self.net.as_ref().map_or((None, 0), Net::leader);
        let view = View {
            leader,
            term,
            node: self.node.clone(),
            mesh_enabled: self.net.is_some(),
            nodes,
            synced: self.net.as_ref().is_none_or(Net::synced),
            workers: self.picture.workers(&self.stores),
            policies: self.picture.policies(),
            routing: RoutingFacts { hash_key: self.stores.hash_key(), generations: self.stores.generations() },
            rate_limit: self.stores.rate_limit(),
            rate_limits: self.stores.rate_limits(),
            last_sync: self.net.as_ref().and_then(Net::last_sync),
            links: self.net.as_ref().map(Net::links).unwrap_or_default(),
            sights: self.net.as_ref().map(Net::sights).unwrap_or_default(),
            roots: Roots {
                workers: self.stores.map(Namespace::Workers).root(),
                policies: self.stores.map(Namespace::Policies).root(),
            },
        };
        self.view.send_replace(Arc::new(view));
        self.view_interval = (now.elapsed() * VIEW_PAUSE).clamp(VIEW_INTERVAL, VIEW_INTERVAL_MAX);
    }

    fn deadline(&self) -> Option<Instant> {
        let net = self.net.as_ref().and_then(Net::poll_timeout);
        let data = self.data.as_ref().and_then(|data| data.poll_timeout(&self.stores));
        let answer = self.unconfirmed.iter().map(|answer| answer.due).min().filter(|_| self.view_due.is_none());
        [net, self.view_due, Some(self.expire_due), data, answer].into_iter().flatten().min()
    }

    /// The name is taken. One that was derived from the host is made unique and the mesh starts again under it; one
    /// that an operator chose ends the process.
    async fn rename(&mut self, pod_ip: Option<IpAddr>) -> Result<(), DriverError> {
        let taken = DriverError::NameTaken { name: self.node.clone() };
        let Some(net) = self.net.take() else { return Ok(()) };
        net.stop().await;
        // A certificate names the node that it was issued for, and no other; a data directory is that of one node.
        if !self.config.mesh.node_is_derived || self.config.mesh.tls.is_some() || self.data.is_some() {
            return Err(taken);
        }
        let base = &self.config.mesh.node.as_str()[..self.config.mesh.node.as_str().len().min(120)];
        let unique = format!("{base}-{:04x}", rand::random::<u16>());
        self.node = unique.parse().map_err(|_| taken)?;
        info!(node = %self.node, was = %self.config.mesh.node, "node name was taken, made unique");
        let boot_epoch_ms = unix_ms();
        self.stores = self.stores.renamed(boot_epoch_ms, self.node.clone(), boot_epoch_ms);
        seed(&self.config, &mut self.stores);
        self.sessions.replace(self.stores.sessions());
        self.picture = Picture::of(&self.stores);
        // The directory is that of the name that was taken.
        let podium = Podium { shown: self.leadership.clone(), rights: self.rights.clone(), votes: None };
        let outlets = Outlets {
            podium,
            shared: self.shared.clone(),
            pods: self.pods.clone(),
            traces: self.traces.clone(),
            runtimes: self.runtimes.clone(),
        };
        let mut net =
            Net::bind(&self.config.mesh, &self.node, boot_epoch_ms, &self.metrics, pod_ip, None, outlets).await?;
        net.share_limits(Instant::now(), &self.limits);
        self.net = Some(net);
        self.view_due = Some(Instant::now());
        Ok(())
    }
}

impl NodeView {
    /// One line of the HA API.
    fn of(member: &crate::mesh::swim::Member) -> Self {
        Self {
            name: member.name.clone(),
            status: member.status,
            address: member.host.clone(),
            addr: member.addr,
            zone: member.zone.clone(),
        }
    }
}
