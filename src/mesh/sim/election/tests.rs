//! What the design promises of elections, and that the checkers notice when it does not hold.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, time::Duration};

use super::{Cluster, Plan, storm};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn led(plan: Plan, seed: u64) -> Cluster {
    let mut cluster = Cluster::new(plan, seed);
    assert!(cluster.run_until(secs(10), |cluster| cluster.leader().is_some()), "seed {seed}: nobody leads");
    // Long enough for everybody to have heard.
    cluster.run_for(secs(2));
    cluster
}

fn plan(nodes: usize) -> Plan {
    Plan { nodes, ..Plan::default() }
}

#[test]
fn a_healthy_cluster_elects_once() {
    for (nodes, fixed) in [(1, true), (2, true), (3, true), (5, true), (7, true), (2, false), (3, false), (5, false)] {
        for seed in 0..5 {
            let mut cluster = led(Plan { nodes, fixed, ..Plan::default() }, seed);
            cluster.run_for(secs(60));
            assert_eq!((cluster.elections, cluster.violations), (1, 0), "{nodes} nodes, fixed {fixed}, seed {seed}");
            let leader = cluster.leader().unwrap();
            for n in 0..nodes {
                let known = cluster.machine(n).unwrap().leader(cluster.local(n)).map(|leader| leader.name);
                assert_eq!(known.as_ref(), Some(&cluster.nodes[leader].name), "{nodes} nodes, seed {seed}, node {n}");
                let voters = cluster.machine(n).unwrap().voters().map(|voters| voters.names().len());
                assert_eq!(voters, Some(nodes), "{nodes} nodes, fixed {fixed}, seed {seed}, node {n}");
            }
        }
    }
}

#[test]
fn a_dead_leader_is_replaced() {
    for seed in 0..20 {
        let mut cluster = led(plan(3), seed);
        let old = cluster.leader().unwrap();
        cluster.crash(old);
        let limit = cluster.now() + secs(5);
        assert!(cluster.run_until(limit, |cluster| cluster.leader().is_some()), "seed {seed}");
        assert_ne!(cluster.leader(), Some(old), "seed {seed}");
    }
}

#[test]
fn a_leader_that_leaves_hands_over_at_once() {
    for seed in 0..20 {
        let mut cluster = led(plan(3), seed);
        let old = cluster.leader().unwrap();
        let left = cluster.now();
        cluster.leave(old);
        let other = |cluster: &Cluster| cluster.leader().is_some_and(|leader| leader != old);
        assert!(cluster.run_until(left + secs(1), other), "seed {seed}: nobody leads after a second");
    }
}

#[test]
fn a_minority_that_comes_back_causes_no_election() {
    for seed in 0..20 {
        let mut cluster = led(plan(5), seed);
        let leader = cluster.leader().unwrap();
        let minority: BTreeSet<usize> = (0..5).filter(|n| *n != leader).take(2).collect();
        cluster.partition(&minority);
        cluster.run_for(secs(30));
        cluster.heal();
        cluster.run_for(secs(30));
        assert_eq!((cluster.elections, cluster.leader()), (1, Some(leader)), "seed {seed}");
    }
}

#[test]
fn a_leader_in_a_minority_ends_before_the_majority_elects() {
    for seed in 0..20 {
        let mut cluster = led(Plan { drift: 0.1, ..plan(5) }, seed);
        let leader = cluster.leader().unwrap();
        cluster.partition(&[leader, (leader + 1) % 5].into());
        cluster.run_for(secs(10));
        assert!(cluster.leader().is_some_and(|new| new != leader && new != (leader + 1) % 5), "seed {seed}");
        cluster.heal();
        cluster.run_for(secs(10));
        assert_eq!((cluster.elections, cluster.violations), (2, 0), "seed {seed}");
    }
}

#[test]
fn a_triangle_cut_leaves_the_leader_in_place() {
    for seed in 0..20 {
        let mut cluster = led(plan(3), seed);
        let leader = cluster.leader().unwrap();
        let [a, b] = [(leader + 1) % 3, (leader + 2) % 3];
        cluster.cut(leader, a);
        cluster.cut(a, leader);
        cluster.run_for(secs(60));
        assert_eq!((cluster.elections, cluster.leader()), (1, Some(leader)), "seed {seed}");
        // Who cannot hear it has it from the one between them.
        let known = cluster.machine(a).unwrap().leader(cluster.local(a)).map(|leader| leader.name);
        assert_eq!(known.as_ref(), Some(&cluster.nodes[leader].name), "seed {seed}");
        assert!(cluster.machine(b).unwrap().has_quorum(cluster.local(b)));
    }
}

#[test]
fn without_a_quorum_nobody_leads() {
    for seed in 0..10 {
        let mut cluster = led(plan(3), seed);
        let alive = cluster.leader().unwrap();
        for n in (0..3).filter(|n| *n != alive) {
            cluster.crash(n);
        }
        cluster.run_for(secs(1));
        let elections = cluster.elections;
        cluster.run_for(secs(30));
        assert_eq!((cluster.leader(), cluster.elections), (None, elections), "seed {seed}");
        assert!(!cluster.machine(alive).unwrap().has_quorum(cluster.local(alive)), "seed {seed}");
    }
}

#[test]
fn the_voters_follow_who_joins_and_leaves_but_no_failure() {
    let count =
        |cluster: &Cluster, n: usize| cluster.machine(n).and_then(|machine| machine.voters().map(|v| v.names().len()));
    for seed in 0..10 {
        let mut cluster = led(Plan { fixed: false, ..plan(5) }, seed);
        let leader = cluster.leader().unwrap();
        let [dead, gone] = [(leader + 1) % 5, (leader + 2) % 5];
        cluster.crash(dead);
        cluster.run_for(secs(20));
        assert_eq!(count(&cluster, leader), Some(5), "seed {seed}: a failure is no reason");
        cluster.leave(gone);
        cluster.run_for(secs(5));
        assert_eq!(count(&cluster, leader), Some(4), "seed {seed}: who leaves counts no more");
        cluster.crash(gone);
        cluster.start(gone);
        cluster.start(dead);
        cluster.run_for(secs(10));
        assert_eq!((count(&cluster, leader), count(&cluster, gone)), (Some(5), Some(5)), "seed {seed}: and again");
        assert_eq!(cluster.violations, 0, "seed {seed}");
    }
}

/// A rolling restart: one node leaves while another has just started and promises nothing yet.
#[test]
fn a_voter_that_leaves_early_takes_no_lease_with_it() {
    for seed in 0..20 {
        let mut cluster = led(Plan { fixed: false, ..plan(3) }, seed);
        let leader = cluster.leader().unwrap();
        let [started, leaving] = [(leader + 1) % 3, (leader + 2) % 3];
        cluster.crash(started);
        cluster.start(started);
        cluster.run_for(Duration::from_millis(600));
        cluster.leave(leaving);
        let elections = cluster.elections;
        cluster.run_for(secs(3));
        assert_eq!((cluster.elections, cluster.leader()), (elections, Some(leader)), "seed {seed}");
        let voters = cluster.machine(leader).unwrap().voters().map(|voters| voters.names().len());
        assert_eq!(voters, Some(2), "seed {seed}: and is removed afterwards");
    }
}

#[test]
fn a_larger_cluster_has_seven_voters() {
    let cluster = led(Plan { fixed: false, ..plan(12) }, 1);
    assert_eq!(cluster.machine(11).unwrap().voters().unwrap().names().len(), 7);
    let leader = cluster.leader().unwrap();
    for n in 0..12 {
        let known = cluster.machine(n).unwrap().leader(cluster.local(n)).map(|leader| leader.name);
        assert_eq!(known.as_ref(), Some(&cluster.nodes[leader].name), "node {n}");
    }
}

/// DESIGN §8: no two leases at one instant, whatever happens; with ballots on the disk no term has two leaders either.
#[test]
fn no_two_leases_in_a_storm() {
    for (seed, nodes, fixed, durable) in [
        (1, 3, true, false),
        (2, 3, true, true),
        (3, 5, true, false),
        (4, 5, true, true),
        (5, 4, true, false),
        (6, 5, false, true),
        (7, 3, false, true),
    ] {
        let plan = Plan { nodes, fixed, durable, drift: 0.1, loss: 0.05, duplicates: 0.05, ..Plan::default() };
        let plan = Plan { delay: (Duration::from_micros(100), Duration::from_millis(150)), ..plan };
        let cluster = storm(plan, seed, 150);
        assert_eq!(cluster.violations, 0, "seed {seed}");
        assert!(cluster.elections >= 150, "seed {seed}: {} elections", cluster.elections);
        assert!(!durable || cluster.shared_terms == 0, "seed {seed}: {} terms with two leaders", cluster.shared_terms);
        for fault in ["crash", "restart", "double restart", "stall", "partition", "one-way cut", "loss", "cut", "leave"]
        {
            assert!(cluster.faults().contains_key(fault), "seed {seed}: no {fault}");
        }
    }
}

/// The checker sees what it is there for: with clocks that drift more than the timing allows, leases overlap.
#[test]
fn too_much_drift_is_found() {
    let plan = Plan { drift: 0.45, delay: (Duration::from_micros(100), Duration::from_millis(150)), ..plan(3) };
    let found = (0..200).any(|seed| storm(plan.clone(), seed, 50).violations > 0);
    assert!(found, "no schedule made two leases overlap");
}
