//! The model in whole clusters. Figures of many seeds come from `cargo bench --bench membership`.

use std::time::Duration;

use super::Cluster;
use crate::mesh::node::NodeStatus::{Alive, Down, Suspected};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_healthy_cluster_suspects_nobody_and_sends_little() {
    let mut cluster = Cluster::settled(1, 20);
    cluster.run_for(secs(60));
    assert_eq!((cluster.suspicions, cluster.false_downs), (0, 0));
    // A ping and an ack per second, and two lists of 20 per half minute.
    let rate = cluster.sent_bytes() / 60 / 20;
    assert!((180..350).contains(&rate), "{rate} B/s per node");
}

#[test]
fn swim_5_a_crash_is_known_after_a_probe_and_the_least_life_of_a_suspicion() {
    for (count, least, most) in [(3, 4, 9), (5, 4, 10), (100, 8, 20)] {
        for seed in 1..=5 {
            let mut cluster = Cluster::settled(seed, count);
            cluster.run_for(secs(5));
            cluster.crash(1);
            let took = cluster.run_until(secs(60), |cluster| cluster.all_see(1, Down)).expect("DOWN within a minute");
            assert!(took > secs(least) && took < secs(most), "n={count} seed={seed}: {took:?}");
            assert_eq!((cluster.false_downs, cluster.true_downs), (0, count as u64 - 1));
        }
    }
}

#[test]
fn swim_4_2_a_stalled_node_refutes_when_it_runs_again() {
    let mut cluster = Cluster::settled(1, 5);
    cluster.run_for(secs(5));
    cluster.stall(1, secs(3));
    let suspected = cluster.run_until(secs(3), |cluster| cluster.status(0, 1) == Some(Suspected));
    assert!(suspected.is_some());
    cluster.run_for(secs(20));
    assert!(cluster.is_converged());
    assert_eq!((cluster.false_downs, cluster.true_downs), (0, 0));
}

#[test]
fn nodes_join_through_one_and_hear_of_each_other() {
    let mut cluster = Cluster::new(1);
    let seed = cluster.add(None);
    for _ in 1..30 {
        cluster.add(Some(seed));
        cluster.run_for(Duration::from_millis(10));
    }
    assert!(!cluster.is_converged());
    assert!(cluster.run_until(secs(10), Cluster::is_converged).is_some());
    let last = cluster.add(Some(7));
    assert!(cluster.run_until(secs(5), |cluster| cluster.all_see(last, Alive)).is_some());
}

#[test]
fn cut_off_nodes_are_declared_dead_and_that_is_not_false() {
    let mut cluster = Cluster::settled(1, 5);
    for other in [0, 2, 3, 4] {
        cluster.network.cut(super::addr(other), super::addr(1));
        cluster.network.cut(super::addr(1), super::addr(other));
    }
    assert!(cluster.run_until(secs(30), |cluster| cluster.status(0, 1) == Some(Down)).is_some());
    assert!(cluster.network.faults.cut > 0);
    assert_eq!(cluster.false_downs, 0);
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = |seed| {
        let mut cluster = Cluster::settled(seed, 10);
        cluster.network.loss = 0.3;
        cluster.stall(2, secs(4));
        cluster.run_for(secs(30));
        assert!(cluster.suspicions > 0);
        (cluster.trace.hash(), cluster.sent_bytes())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
