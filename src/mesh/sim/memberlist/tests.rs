//! The model keeps to the rules that it is made of.

use std::time::Duration;

use super::{Cluster, Status};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_healthy_cluster_suspects_nobody() {
    let mut cluster = Cluster::new(1, 20);
    cluster.run_for(secs(60));
    assert_eq!((cluster.suspicions, cluster.false_downs), (0, 0));
}

#[test]
fn lifeguard_iv_b_a_crash_is_known_after_a_probe_and_the_time_to_refute() {
    for (count, least, most) in [(3, 4, 12), (5, 4, 16), (100, 8, 25)] {
        for seed in 1..=5 {
            let mut cluster = Cluster::new(seed, count);
            cluster.run_for(secs(5));
            cluster.crash(1);
            let took = cluster.run_until(secs(60), |cluster| cluster.all_dead(1)).expect("dead within a minute");
            assert!(took > secs(least) && took < secs(most), "n={count} seed={seed}: {took:?}");
            assert_eq!(cluster.false_downs, 0);
        }
    }
}

#[test]
fn swim_4_2_a_stalled_node_refutes_when_it_runs_again() {
    let mut cluster = Cluster::new(1, 5);
    cluster.run_for(secs(5));
    cluster.stall(1, secs(3));
    cluster.run_for(secs(20));
    assert!(cluster.suspicions > 0);
    assert!((0..5).all(|by| cluster.status(by, 1) == Status::Alive));
    assert_eq!(cluster.false_downs, 0);
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = |seed| {
        let mut cluster = Cluster::new(seed, 10);
        cluster.network.loss = 0.3;
        cluster.run_for(secs(60));
        (cluster.suspicions, cluster.network.faults.lost, cluster.false_downs)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
