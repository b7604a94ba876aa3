//! Histories with a disk that keeps what was handed to it, and a crash between any two batches.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::mesh::{sim::disk::Disk, stores::PolicySpec};

const NS: Namespace = Namespace::Policies;

/// A node with a disk.
struct Node {
    name: NodeName,
    stores: Stores,
    saver: Saver,
    disk: Disk,
    /// The last boot epoch, which is on the disk before it is used.
    epoch: u64,
}

impl Node {
    fn start(name: &str, disk: Disk, last_epoch: u64) -> Self {
        let name: NodeName = name.parse().unwrap();
        let saved = disk.saved().unwrap();
        let epoch = saved.epoch_floor(&name).max(last_epoch) + 1;
        let mut stores = Stores::new(name.clone(), epoch);
        saved.restore(&mut stores, 0).unwrap();
        let saver = Saver::new(&mut stores);
        Self { name, stores, saver, disk, epoch }
    }

    fn put(&mut self, key: &str, value: &str) {
        let policy = PolicySpec { policy: value.into(), config_json: "{}".into() };
        self.stores.put_policy(1, key, &policy).unwrap();
    }

    /// Saves one batch; `false` when there is none.
    fn save(&mut self) -> bool {
        let Some(batch) = self.saver.poll_batch(&mut self.stores) else { return false };
        self.disk.save(batch);
        self.saver.handle_saved();
        true
    }

    fn save_all(&mut self) {
        while self.save() {}
    }

    fn restart(self) -> Self {
        Self::start(self.name.as_str(), self.disk, self.epoch)
    }

    /// Joins all that another has.
    fn learn(&mut self, other: &Self) {
        let mut whole = Saver::default();
        whole.handle_failed();
        let (mut stores, mut disk) = (other.stores.clone(), Disk::default());
        while let Some(batch) = whole.poll_batch(&mut stores) {
            disk.save(batch);
            whole.handle_saved();
        }
        disk.saved().unwrap().restore(&mut self.stores, 1).unwrap();
    }

    fn state(&self) -> Vec<Vec<u8>> {
        Namespace::ALL.map(|namespace| self.stores.map(namespace).canonical()).into()
    }
}

#[test]
fn a_restart_keeps_what_was_saved_and_what_was_removed() {
    let mut node = Node::start("a", Disk::default(), 0);
    ["k1", "k2", "k3"].iter().for_each(|key| node.put(key, "v"));
    node.save_all();
    assert!(node.disk.keys[NS.index()].len() == 3);
    let before = node.state();
    node = node.restart();
    assert_eq!(node.state(), before);
    node.put("k1", "w");
    node.stores.remove_policy_for_test("k2");
    node.save_all();
    let before = node.state();
    node = node.restart();
    assert_eq!(node.state(), before);
    assert_eq!(node.stores.policies().len(), 2);
    assert!(!node.save(), "what was just read is not written again");
}

#[test]
fn a_removal_that_was_saved_outlives_a_restart_of_who_did_not_know_of_it() {
    let (mut a, mut b) = (Node::start("a", Disk::default(), 0), Node::start("b", Disk::default(), 0));
    a.put("k", "v");
    b.learn(&a);
    assert!(b.stores.remove_policy_for_test("k"));
    [&mut a, &mut b].into_iter().for_each(Node::save_all);
    let (mut a, mut b) = (a.restart(), b.restart());
    assert_eq!((a.stores.policies().len(), b.stores.policies().len()), (1, 0));
    b.learn(&a);
    a.learn(&b);
    assert_eq!((a.stores.policies().len(), b.stores.policies().len()), (0, 0));
}

#[test]
fn each_start_is_a_new_actor_above_all_that_was_saved() {
    let mut node = Node::start("a", Disk::default(), 0);
    for restart in 1..5 {
        let own = node.stores.map(NS).actors().actor(node.stores.map(NS).own()).boot_epoch_ms;
        assert_eq!(own, restart);
        node.put("k", &format!("v{restart}"));
        node.save_all();
        node = node.restart();
    }
    // A floor of the node counts too, and so does a key whose context was not saved.
    let mut saved = node.disk.saved().unwrap();
    saved.namespaces[0].context.push((Actor::floor_of(&node.name), 70));
    assert_eq!(saved.epoch_floor(&node.name), 70);
    saved.namespaces.iter_mut().for_each(|saved| saved.context.clear());
    assert_eq!(saved.epoch_floor(&node.name), 4);
}

#[test]
fn a_write_is_saved_when_its_sweep_is_and_not_before() {
    let mut node = Node::start("a", Disk::default(), 0);
    let idle = node.saver.ticket(&node.stores);
    assert!(node.saver.is_saved(idle));
    let long = "x".repeat(2000);
    for n in 0..300 {
        node.put(&format!("{n:03}"), "p");
        let policy = PolicySpec { policy: "p".into(), config_json: format!("\"{long}\"") };
        node.stores.put_policy(1, &format!("{n:03}"), &policy).unwrap();
    }
    let ticket = node.saver.ticket(&node.stores);
    let mut batches = 0;
    while !node.saver.is_saved(ticket) {
        assert!(node.save());
        batches += 1;
    }
    assert!(batches > 1, "{batches} batches");
    assert!(node.restart().stores.policies().len() == 300);
}

#[test]
fn a_write_during_a_sweep_waits_for_the_next() {
    let mut node = Node::start("a", Disk::default(), 0);
    node.put("k", "v");
    let batch = node.saver.poll_batch(&mut node.stores).unwrap();
    node.put("l", "v");
    let ticket = node.saver.ticket(&node.stores);
    assert!(node.saver.poll_batch(&mut node.stores).is_none(), "one batch is out");
    node.disk.save(batch);
    node.saver.handle_saved();
    assert!(!node.saver.is_saved(ticket));
    node.save_all();
    assert!(node.saver.is_saved(ticket));
}

#[test]
fn after_a_failure_everything_is_saved_again() {
    let mut node = Node::start("a", Disk::default(), 0);
    (0..10).for_each(|n| node.put(&format!("k{n}"), "v"));
    node.save_all();
    node.put("k3", "w");
    let ticket = node.saver.ticket(&node.stores);
    assert!(node.saver.poll_batch(&mut node.stores).is_some());
    node.saver.handle_failed();
    assert!(!node.saver.is_saved(ticket), "it is not known what is on the disk");
    // The file was set aside meanwhile, and holds what nobody knows of.
    node.disk = Disk::default();
    node.disk.keys[NS.index()].insert(b"stale"[..].into(), Vec::new());
    node.save_all();
    assert!(node.saver.is_saved(ticket));
    let before = node.state();
    assert_eq!(node.restart().state(), before);
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, u8),
    Remove(usize, u8),
    Save(usize),
    Fail(usize),
    Learn(usize),
    Restart(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..2_usize, 0..5_u8, 0..10_u8).prop_map(|(node, key, kind)| match kind {
        0..3 => Step::Put(node, key),
        3..5 => Step::Remove(node, key),
        5..7 => Step::Save(node),
        7 => Step::Fail(node),
        8 => Step::Learn(node),
        _ => Step::Restart(node),
    });
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Wherever the crashes fall: what a node has saved is what it has after a restart, and once both have met, they are
    /// equal.
    #[test]
    fn any_history_with_crashes_converges(steps in steps()) {
        let mut nodes = [Node::start("a", Disk::default(), 0), Node::start("b", Disk::default(), 0)];
        let mut value = 0;
        for step in steps {
            match step {
                Step::Put(n, key) => {
                    value += 1;
                    nodes[n].put(&format!("k{key}"), &format!("v{value}"));
                }
                Step::Remove(n, key) => drop(nodes[n].stores.remove_policy_for_test(&format!("k{key}"))),
                Step::Save(n) => drop(nodes[n].save()),
                Step::Fail(n) => {
                    if nodes[n].saver.poll_batch(&mut nodes[n].stores).is_some() {
                        nodes[n].saver.handle_failed();
                    }
                }
                Step::Learn(n) => {
                    let [a, b] = &mut nodes;
                    if n == 0 { a.learn(b) } else { b.learn(a) }
                }
                Step::Restart(n) => {
                    let [a, b] = nodes;
                    nodes = if n == 0 { [a.restart(), b] } else { [a, b.restart()] };
                }
            }
        }
        nodes.iter_mut().for_each(Node::save_all);
        let alone: Vec<_> = nodes.iter().map(Node::state).collect();
        nodes = nodes.map(Node::restart);
        prop_assert_eq!(alone, nodes.iter().map(Node::state).collect::<Vec<_>>());
        let [a, b] = &mut nodes;
        a.learn(b);
        b.learn(a);
        prop_assert_eq!(a.state(), b.state());
        for namespace in Namespace::ALL {
            prop_assert_eq!(a.stores.map(namespace).root(), b.stores.map(namespace).root());
        }
    }
}
