//! What this gateway tells the others about prompts and loads, and what it makes of what they tell.
//!
//! *Surprises*: placements that the others would not expect (see [`cache_aware`](crate::gateway::policy::cache_aware)),
//! gathered for [`GATHER`], as the name of the session and of what the worker had not seen. *Loads*: requests in
//! flight per worker, every [`LOAD_INTERVAL`] while there are any; what a peer said counts for [`LOAD_TTL`], so a dead
//! peer's load is gone before it is DOWN. *Transfers*: a gateway that has just started asks one peer after the other for
//! what they used last, and meanwhile serves with what hashing gives; one that ends hands over the same unasked.
//!
//! Bounds: [`placer`] holds [`placer::PLACED_MAX`] surprises of the cores and [`outbox`] [`outbox::WAITING_MAX`], of
//! which it sends [`outbox::BYTES_PER_SECOND`] in all, the copies for each peer counted; [`TRANSFERS_MAX`] transfers run
//! at a time, each of [`TRANSFER_NAMES_MAX`] names per model.

use std::{future::pending, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    gateway::{activity::Lookout, placement, policy::below, prefix::index::Holder, view::RoutingView},
    mesh::{
        driver::handle::{MeshHandle, NodeView},
        node::{NodeName, NodeStatus},
        routing::{Message, Placement},
    },
    telemetry::metrics::Metrics,
};

pub mod loads;

pub mod outbox;

pub mod placer;

pub mod transfer;

use self::{
    loads::Loads,
    outbox::Outbox,
    placer::{PLACED_MAX, Placer},
    transfer::Transfer,
};

/// How long the first surprise after a silence waits for more: a follow-up may come through the next gateway at once.
pub const GATHER: Duration = Duration::from_millis(2);

/// Between two batches while there is more to send than one holds.
pub const BATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Between two messages about loads.
pub const LOAD_INTERVAL: Duration = Duration::from_millis(150);

/// How long a peer's word about its loads counts.
pub const LOAD_TTL: Duration = Duration::from_secs(1);

/// Gateways that are brought up to date at a time; further ones ask again.
pub const TRANSFERS_MAX: usize = 4;

/// Names of each model that a starting gateway gets, the latest first.
pub const TRANSFER_NAMES_MAX: usize = 32_768;

/// How long a starting gateway waits for a peer's placements before it asks another: at first, doubled each time. The
/// first question may find no pipe open yet.
const ASK_PATIENCE: Duration = Duration::from_millis(50);

/// How often it asks: about 6 s in all.
const ASKS_MAX: u32 = 7;

/// How often it looks for somebody to ask, and for how long.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
const LOOK_FOR: Duration = Duration::from_secs(10);

/// Holds the task's end in hand: asks it to hand over what this gateway knows.
#[derive(Debug)]
pub struct Sharing {
    /// For the request path.
    pub placer: Placer,
    hand_over: mpsc::Sender<oneshot::Sender<()>>,
}

impl Sharing {
    /// The sharing, and the task behind it for the caller to spawn on the control runtime.
    pub fn start(
        mesh: MeshHandle,
        shared: mpsc::Receiver<(NodeName, Message)>,
        routing: Arc<ArcSwap<RoutingView>>,
        activity: watch::Receiver<bool>,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (placer, placed) = Placer::new();
        let (hand_over, leaving) = mpsc::channel(1);
        let now = Instant::now();
        let task = Task {
            mesh,
            routing,
            lookout: Lookout::new(activity, LOAD_INTERVAL),
            metrics,
            shared,
            placed,
            leaving,
            outbox: Outbox::new(now.into_std()),
            loads: Loads::default(),
            transfers: Vec::new(),
            building: JoinSet::new(),
            ask: Ask { asked: 0, due: Some(now), until: now + LOOK_FOR },
            handed: None,
            flush_due: None,
        };
        (Self { placer, hand_over }, task.run())
    }

    /// Sends the others what this gateway knows and they may not, within `wait`.
    pub async fn hand_over(&self, wait: Duration) {
        let (done, handed) = oneshot::channel();
        let told = async {
            if self.hand_over.send(done).await.is_ok() {
                let _ = handed.await;
            }
        };
        // Whether all of it went out or not: the others find conversations at their homes.
        let _ = tokio::time::timeout(wait, told).await;
    }
}

/// Asking for what others know, after a start.
struct Ask {
    asked: u32,
    /// Who has found nobody to ask by then is the first.
    until: Instant,
    /// None: an answer came, or nobody is asked any more.
    due: Option<Instant>,
}

struct Task {
    mesh: MeshHandle,
    routing: Arc<ArcSwap<RoutingView>>,
    lookout: Lookout,
    metrics: Arc<Metrics>,
    shared: mpsc::Receiver<(NodeName, Message)>,
    placed: mpsc::Receiver<Placement>,
    leaving: mpsc::Receiver<oneshot::Sender<()>>,
    outbox: Outbox,
    loads: Loads,
    transfers: Vec<Transfer>,
    /// Transfers that are being gathered, off the runtime: it takes a walk over every index.
    building: JoinSet<Transfer>,
    ask: Ask,
    handed: Option<oneshot::Sender<()>>,
    /// None while there is nothing to send.
    flush_due: Option<Instant>,
}

impl Task {
    async fn run(mut self) {
        loop {
            tokio::select! {
                message = self.shared.recv() => match message {
                    Some((peer, message)) => self.on_message(peer, message),
                    // The driver has stopped, and the process is about to.
                    None => return,
                },
                // Not while more is gathered: each would wake this task.
                Some(placement) = self.placed.recv(), if self.flush_due.is_none() => {
                    self.queue(placement);
                    self.flush_due = Some(Instant::now() + GATHER);
                }
                Some(done) = self.leaving.recv() => self.on_leaving(done),
                () = at(self.flush_due) => self.flush(),
                () = self.lookout.next(self.loads.has_heard()) => self.tell_loads(),
                Some(built) = self.building.join_next() => {
                    // One that panicked is as lost as one that was not sent.
                    self.transfers.extend(built.ok());
                    self.flush();
                }
                () = at(self.ask.due) => self.ask(),
            }
        }
    }

    fn on_message(&mut self, peer: NodeName, message: Message) {
        let now = Instant::now().into_std();
        match message {
            Message::Loads(loads) => {
                self.loads.heard(now, peer, loads);
                self.show_loads(now);
            }
            Message::Placements(placements) => {
                // Surprises are told at once; what has an age was asked for.
                if placements.iter().any(|placement| placement.age_ms > 0) {
                    self.ask.due = None;
                }
                self.metrics.cache_shared("received", placements.len());
                let view = self.routing.load();
                placements.iter().for_each(|placement| take_in(&view, placement, now));
            }
            // The mesh keeps those for itself.
            Message::Sight(_) => {}
            Message::Ask => {
                let is_known = self.transfers.iter().any(|transfer| transfer.to.as_ref() == Some(&peer));
                // A peer that asks again while its answer is gathered gets two at the worst; what it knows then stays.
                if !is_known && self.transfers.len() + self.building.len() < TRANSFERS_MAX {
                    self.gather(Some(peer));
                }
            }
        }
    }

    fn on_leaving(&mut self, done: oneshot::Sender<()>) {
        self.transfers.clear();
        self.gather(None);
        self.handed = Some(done);
    }

    /// Has what this gateway used last gathered for one peer, or for all.
    fn gather(&mut self, to: Option<NodeName>) {
        let (view, now) = (self.routing.load_full(), Instant::now().into_std());
        self.building.spawn_blocking(move || Transfer::of(&view, to, TRANSFER_NAMES_MAX, now));
    }

    /// Sends what is due: surprises, then a piece of each transfer.
    fn flush(&mut self) {
        for _ in 0..PLACED_MAX {
            let Ok(placement) = self.placed.try_recv() else { break };
            self.queue(placement);
        }
        let peers = self.peers();
        if peers == 0 {
            self.transfers.clear();
            self.outbox.clear();
        }
        for batch in self.outbox.take(Instant::now().into_std(), peers) {
            let sent = batch.len();
            let is_sent = self.mesh.share(None, &Message::Placements(batch)).is_some();
            self.metrics.cache_shared(if is_sent { "sent" } else { "dropped" }, sent);
        }
        for transfer in &mut self.transfers {
            let Some(piece) = transfer.peek() else { continue };
            if self.mesh.share(transfer.to.clone(), &Message::Placements(piece)).is_some() {
                transfer.advance();
            }
        }
        self.transfers.retain(|transfer| !transfer.is_done());
        if self.transfers.is_empty()
            && self.building.is_empty()
            && self.outbox.is_empty()
            && let Some(done) = self.handed.take()
        {
            let _ = done.send(());
        }
        let waits = !self.outbox.is_empty() || !self.transfers.is_empty();
        self.flush_due = waits.then(|| Instant::now() + BATCH_INTERVAL);
    }

    /// Puts a surprise behind those that wait to be sent.
    fn queue(&mut self, placement: Placement) {
        if !self.outbox.push(placement) {
            self.metrics.cache_shared("dropped", 1);
        }
    }

    /// Other gateways that hear this one.
    fn peers(&self) -> usize {
        let view = self.mesh.view();
        view.nodes.iter().filter(|node| node.name != view.node && node.status == NodeStatus::Alive).count()
    }

    fn tell_loads(&mut self) {
        let now = Instant::now().into_std();
        let view = self.routing.load();
        let own = view.registered.iter().map(|registered| &registered.worker);
        let own = own.filter(|worker| worker.in_flight() > 0);
        let own = own.map(|worker| (worker.tag(), u32::try_from(worker.in_flight()).unwrap_or(u32::MAX))).collect();
        let peers = self.peers();
        if let Some(loads) = self.loads.due(now, own)
            && peers > 0
            && let Some(bytes) = self.mesh.share(None, &Message::Loads(loads))
        {
            self.outbox.spend(bytes * peers);
        }
        self.show_loads(now);
    }

    /// Writes the others' loads to the workers.
    fn show_loads(&mut self, now: std::time::Instant) {
        let elsewhere = self.loads.elsewhere(now);
        for registered in &self.routing.load().registered {
            registered.worker.set_elsewhere(elsewhere.get(&registered.worker.tag()).copied().unwrap_or(0));
        }
    }

    /// Whether there are indexes for what peers may tell.
    fn has_room(&self) -> bool {
        let table = self.routing.load();
        !table.models.is_empty() && table.models.values().any(|route| route.index_stats().is_some())
    }

    /// Asks a peer for what it used last.
    fn ask(&mut self) {
        let now = Instant::now();
        let view = self.mesh.view();
        let is_peer = |node: &&NodeView| node.name != view.node && node.status == NodeStatus::Alive;
        let peers: Vec<_> = view.nodes.iter().filter(is_peer).collect();
        if !self.has_room() || peers.is_empty() {
            self.ask.due = (now < self.ask.until).then(|| now + LOOK_INTERVAL);
            return;
        }
        let peer = peers[below(rand::random(), peers.len())];
        // One that is not sent is asked again like one that is not answered.
        let _ = self.mesh.share(Some(peer.name.clone()), &Message::Ask);
        let patience = ASK_PATIENCE * (1 << self.ask.asked);
        self.ask.asked += 1;
        self.ask.due = (self.ask.asked < ASKS_MAX).then(|| now + patience);
    }
}

/// Records what a peer says of a prompt, in each route of its model's name.
fn take_in(view: &RoutingView, placement: &Placement, now: std::time::Instant) {
    let model = &*placement.model;
    let named = view.models.get(model).into_iter();
    let others = [&view.any, &view.wildcard].into_iter().filter(|route| &*route.label == model);
    let holder = Holder { tag: placement.worker, generation: placement.generation };
    let tick = placement::tick(now).wrapping_sub(placement.age_ms / placement::TICK_MS);
    for index in named.chain(others).filter_map(|route| route.affinity.as_ref()?.index.as_deref()) {
        index.record(placement.names.iter().copied(), holder, tick);
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => pending().await,
    }
}
