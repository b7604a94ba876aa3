//! What must hold in every run, watched at every change.

use std::{collections::BTreeMap, time::Duration};

use super::Cluster;
use crate::mesh::{
    node::{NodeName, NodeStatus},
    swim::{Event, Member, member::Key},
};

/// How long news of a node may still be under way after its death.
const NEWS_TIME: Duration = Duration::from_secs(30);

/// What the checkers saw.
#[derive(Debug, Default)]
pub struct Checker {
    /// What must not happen: a record that went back, a dead node that came back. At most 100 are kept.
    pub violations: Vec<String>,
    /// Verdicts DOWN of one node over another that ran, was not stalled, and was not cut off.
    pub false_downs: u64,
    /// Verdicts DOWN over dead, stalled or cut off nodes.
    pub true_downs: u64,
    /// Suspicions by a node's own probes.
    pub suspicions: u64,
    /// Refutations.
    pub refutations: u64,
    /// The greatest record that each node held of each other.
    records: BTreeMap<(usize, NodeName), (u64, Key)>,
}

impl Checker {
    fn violate(&mut self, text: String) {
        if self.violations.len() < 100 {
            self.violations.push(text);
        }
    }
}

/// Looks at one event of node `by`.
pub(super) fn watch(cluster: &mut Cluster, by: usize, event: &Event) {
    match event {
        Event::Suspected { local: true, .. } => cluster.checker.suspicions += 1,
        Event::Refuted { .. } => cluster.checker.refutations += 1,
        Event::MemberChanged(change) => {
            order_of_records(cluster, by, &change.name);
            no_resurrection(cluster, by, &change.name, change.from, change.to);
            if change.to == NodeStatus::Down && change.from.is_some() {
                verdict(cluster, &change.name, change.epoch_ms);
            }
        }
        _ => {}
    }
}

/// A record is never replaced by one that is ordered before it, as long as the process lives.
fn order_of_records(cluster: &mut Cluster, by: usize, name: &NodeName) {
    let Some(swim) = &cluster.nodes[by].swim else { return };
    let (life, Some(key)) = (swim.epoch_ms(), swim.member(name).map(Member::key)) else { return };
    let last = cluster.checker.records.insert((by, name.clone()), (life, key));
    if let Some((_, last)) = last.filter(|(last_life, last)| *last_life == life && *last > key) {
        let observer = cluster.nodes[by].name.clone();
        cluster.checker.violate(format!("{observer} replaced {last:?} of {name} by {key:?}"));
    }
}

/// A dead node does not come back by itself.
fn no_resurrection(cluster: &mut Cluster, by: usize, name: &NodeName, from: Option<NodeStatus>, to: NodeStatus) {
    let gone = from.is_some_and(|from| matches!(from, NodeStatus::Down | NodeStatus::Leaving));
    let mut bearers = cluster.nodes.iter().filter(|node| node.name == *name);
    let dead = bearers.all(|node| node.died_at.is_some_and(|at| cluster.now.duration_since(at) > NEWS_TIME));
    if gone && dead && matches!(to, NodeStatus::Alive | NodeStatus::Suspected) {
        let observer = cluster.nodes[by].name.clone();
        cluster.checker.violate(format!("{name} came back at {observer} though it is dead"));
    }
}

fn verdict(cluster: &mut Cluster, name: &NodeName, epoch_ms: u64) {
    let now = cluster.now;
    let healthy = cluster.nodes.iter().any(|node| {
        let stalled = node.stalled_until.is_some_and(|until| until + Duration::from_secs(1) > now);
        node.name == *name && !stalled && node.swim.as_ref().is_some_and(|swim| swim.epoch_ms() == epoch_ms)
    });
    if healthy && !cluster.network.is_cut() {
        cluster.checker.false_downs += 1;
    } else {
        cluster.checker.true_downs += 1;
    }
}
