//! What must hold in every run, watched at every change.
//!
//! *Order*: a record is never replaced by one that is ordered before it, forgotten ones included. *Truth*: nobody holds a
//! node in an epoch and incarnation that it never showed itself. *Self-liveness*: no process takes itself for SUSPECTED or
//! DOWN, and its own record never goes back. *No resurrection*: a node that is dead for good does not come back. *News*: who
//! has heard of a record holds it or a later one. *Calm*: while the network is well nobody is called DOWN who was silent for
//! less than the shortest verdict takes. *Names*: of two processes of one name the older stays, and none yields to a dead
//! one. *Bounds*: tables and bursts stay within theirs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Cluster;
use crate::mesh::{
    node::{NodeName, NodeStatus},
    swim::{ChangeReason, Event, Member, MemberChange, member::Key, message::Update},
    wire::membership,
};

/// How long news of a node may still be under way after its death, where nothing is cut or stalled for longer.
const NEWS_TIME: Duration = Duration::from_secs(30);

/// No verdict takes less silence: a probe of 600 ms, 1 s to refute, 600 ms of verification; less 10 % for drifting clocks.
const VERDICT_TIME_MIN: Duration = Duration::from_millis(1980);

/// The network must have been well for so long before a verdict is called false.
const CALM_TIME: Duration = Duration::from_secs(5);

/// Greatest loss of a network that is well (DESIGN §3: no false death up to here).
const CALM_LOSS_MAX: f64 = 0.1;

/// How long an answer of a process that has just died may be under way.
const LAST_WORDS_TIME: Duration = Duration::from_secs(2);

/// What the checkers saw.
#[derive(Debug, Default)]
pub struct Checker {
    /// What must not happen; at most 100 are kept.
    pub violations: Vec<String>,
    /// Verdicts DOWN of one node over another that ran, was not stalled, and was not cut off.
    pub false_downs: u64,
    /// Verdicts DOWN over dead, stalled or cut off nodes.
    pub true_downs: u64,
    /// Suspicions by a node's own probes.
    pub suspicions: u64,
    /// Refutations.
    pub refutations: u64,
    /// Epochs raised above what an earlier process left.
    pub epochs_raised: u64,
    /// Processes that gave their name up to an older one.
    pub names_taken: u64,
    /// Members forgotten.
    pub forgotten: u64,
    /// Leaves that ended.
    pub left: u64,
    /// Whether false deaths are violations, not only counted, and whether every packet heard is held against the records.
    pub is_strict: bool,
    /// When the network was not well last.
    stormy_at: Option<Instant>,
    /// The greatest record that each process held of each other, with its number of the process.
    records: BTreeMap<(usize, NodeName), (u64, Key)>,
    /// The greatest epoch and incarnation that any process of a name has shown.
    issued: BTreeMap<NodeName, (u64, u64)>,
    /// The first excess that each process showed of its bounds.
    exceeded: BTreeMap<(usize, u64), &'static str>,
}

impl Checker {
    pub(super) fn violate(&mut self, text: String) {
        if self.violations.len() < 100 {
            self.violations.push(text);
        }
    }
}

/// Looks at the machine `by` after an input that made it send `burst` packets.
pub(super) fn look(cluster: &mut Cluster, by: usize, burst: usize) {
    let (now, network) = (cluster.now, &cluster.network);
    if network.is_cut() || network.loss > CALM_LOSS_MAX {
        cluster.checker.stormy_at = Some(now);
    }
    let node = &mut cluster.nodes[by];
    let Some(swim) = &node.swim else { return };
    let Some(me) = swim.member(&node.name) else { return };
    let shown = (me.boot_epoch_ms, me.incarnation);
    let checker = &mut cluster.checker;
    if matches!(me.status, NodeStatus::Suspected | NodeStatus::Down) {
        checker.violate(format!("{} takes itself for {}", node.name, me.status));
    }
    if shown < node.issued {
        checker.violate(format!("{} went from {:?} back to {shown:?}", node.name, node.issued));
    }
    if shown != node.issued || node.unseen {
        node.issued = shown;
        node.unseen = false;
        let issued = checker.issued.entry(node.name.clone()).or_default();
        *issued = shown.max(*issued);
    }
    if let Some(excess) = swim.excess(burst)
        && checker.exceeded.insert((by, node.lives), excess).is_none()
    {
        checker.violate(format!("{} has more {excess} than their bound: {:?}, burst {burst}", node.name, swim.sizes()));
    }
}

/// After it has heard `payload` node `by` holds of each node at least what that says of it (SWIM §4.2), but that a verdict
/// of others may count as a suspicion of who was heard after it, or until a last round of its own that is planned.
pub(super) fn heard(cluster: &mut Cluster, by: usize, payload: &[u8]) {
    let node = &cluster.nodes[by];
    // Who has lost its name hears no more.
    let strict = cluster.checker.is_strict;
    let Some(swim) = node.swim.as_ref().filter(|swim| strict && !swim.is_over()) else { return };
    let Ok(packet) = membership::decode("smg", payload) else { return };
    let now = cluster.local_now(by);
    let behind = packet.updates.iter().filter(|update| update.name != node.name && packet.node != node.name);
    let behind = behind.filter_map(|update| Some((update, swim.member(&update.name)?)));
    let is_doubted = |update: &Update, member: &Member| {
        let suspected = Update { status: NodeStatus::Suspected, ..update.clone() }.key();
        let is_open = || member.was_heard_since(now, update.age) || swim.is_looked_into(&update.name);
        update.status == NodeStatus::Down && member.key() == suspected && is_open()
    };
    let behind = behind.filter(|(update, member)| member.key() < update.key() && !is_doubted(update, member));
    let texts: Vec<_> = behind
        .map(|(update, member)| {
            let (observer, key, told, name) = (&node.name, member.key(), update.key(), &update.name);
            format!("{observer} holds {key:?} of {name}, though it heard {told:?}")
        })
        .collect();
    texts.into_iter().for_each(|text| cluster.checker.violate(text));
}

/// Looks at one event of node `by`.
pub(super) fn watch(cluster: &mut Cluster, by: usize, event: &Event) {
    match event {
        Event::Suspected { local: true, .. } => cluster.checker.suspicions += 1,
        Event::Refuted { .. } => cluster.checker.refutations += 1,
        Event::EpochRaised { .. } => cluster.checker.epochs_raised += 1,
        Event::Forgotten { .. } => cluster.checker.forgotten += 1,
        Event::Left => cluster.checker.left += 1,
        Event::NameTaken { boot_epoch_ms, .. } => name_taken(cluster, by, *boot_epoch_ms),
        Event::MemberChanged(change) => {
            record(cluster, by, &change.name);
            no_resurrection(cluster, by, &change.name, change.from, change.to);
            if change.to == NodeStatus::Down && change.from.is_some() {
                verdict(cluster, by, change);
            }
        }
        _ => {}
    }
}

/// A record is never replaced by one that is ordered before it, as long as the process lives, and is the node's own.
fn record(cluster: &mut Cluster, by: usize, name: &NodeName) {
    let node = &cluster.nodes[by];
    let Some(swim) = &node.swim else { return };
    let (life, Some(key)) = (node.lives, swim.member(name).map(Member::key)) else { return };
    let observer = node.name.clone();
    let checker = &mut cluster.checker;
    let last = checker.records.insert((by, name.clone()), (life, key));
    if let Some((_, last)) = last.filter(|(last_life, last)| *last_life == life && *last > key) {
        checker.violate(format!("{observer} replaced {last:?} of {name} by {key:?}"));
    }
    // Scripts invent nodes; the adversary does not.
    let issued = checker.issued.get(name).copied().unwrap_or_default();
    if checker.is_strict && (key.0, key.1) > issued {
        checker.violate(format!("{observer} holds {key:?} of {name}, which showed no more than {issued:?}"));
    }
}

/// A dead node does not come back by itself. Where news may be under way for minutes, in long stalls and partitions, it
/// may: by a later record that it showed itself, which is what order and truth say.
fn no_resurrection(cluster: &mut Cluster, by: usize, name: &NodeName, from: Option<NodeStatus>, to: NodeStatus) {
    let gone = from.is_some_and(|from| matches!(from, NodeStatus::Down | NodeStatus::Leaving));
    let mut bearers = cluster.nodes.iter().filter(|node| node.name == *name);
    let dead = bearers.all(|node| node.died_at.is_some_and(|at| cluster.now.duration_since(at) > NEWS_TIME));
    let on_time = !cluster.checker.is_strict;
    if gone && dead && on_time && matches!(to, NodeStatus::Alive | NodeStatus::Suspected) {
        let observer = cluster.nodes[by].name.clone();
        cluster.checker.violate(format!("{name} came back at {observer} though it is dead"));
    }
}

fn verdict(cluster: &mut Cluster, by: usize, change: &MemberChange) {
    let now = cluster.now;
    let mut bearers = cluster.nodes.iter().filter(|node| node.name == change.name);
    let runs = bearers.find(|node| node.swim.as_ref().is_some_and(|swim| swim.epoch_ms() == change.epoch_ms));
    let stalled = runs.and_then(|node| node.stalled);
    let healthy = runs.is_some() && stalled.is_none_or(|(_, until)| until + Duration::from_secs(1) <= now);
    if healthy && !cluster.network.is_cut() {
        cluster.checker.false_downs += 1;
    } else {
        cluster.checker.true_downs += 1;
    }
    // Silence that lasts, or was so long that the verdict was on its way when it ended.
    let silence = stalled.map_or(Duration::ZERO, |(from, until)| match until + NEWS_TIME {
        end if end < now => Duration::ZERO,
        _ => until.min(now).duration_since(from),
    });
    let calm = cluster.checker.stormy_at.is_none_or(|at| now.duration_since(at) > CALM_TIME);
    let judged = change.reason == ChangeReason::Verified && runs.is_some();
    if cluster.checker.is_strict && judged && calm && silence < VERDICT_TIME_MIN {
        let observer = cluster.nodes[by].name.clone();
        let text = format!("{observer} called {} DOWN, which was silent for {silence:?} at most", change.name);
        cluster.checker.violate(text);
    }
}

/// Process `by` gave its name up to one that started at `boot_ms`.
fn name_taken(cluster: &mut Cluster, by: usize, boot_ms: u64) {
    cluster.checker.names_taken += 1;
    let (now, node) = (cluster.now, &cluster.nodes[by]);
    let others = cluster.nodes.iter().enumerate().filter(|(at, other)| *at != by && other.name == node.name);
    let mut lately =
        others.filter(|(_, other)| other.died_at.is_none_or(|at| now.duration_since(at) <= LAST_WORDS_TIME));
    let older = lately.any(|(_, other)| other.boot_ms == boot_ms && boot_ms <= node.boot_ms);
    if !older {
        let name = node.name.clone();
        cluster.checker.violate(format!("{name} gave its name up, but no older process of that name lives"));
    }
}
