//! The membership table: detection of a silent crash, false deaths under loss, idle traffic and spread of one update, for
//! growing clusters, in virtual time.
//!
//! Run with `cargo bench --bench membership`; sizes may follow: `cargo bench --bench membership -- 3 5 20 100 1000`.
//! Every line names its seeds: n nodes, RTT 0.4 to 1 ms, T = 1 s. The same seeds give the same figures.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use smg::mesh::{node::NodeStatus, sim::membership::Cluster};

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|size| size.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![3, 5, 20, 100] } else { sizes };
    for count in sizes {
        let seeds = (2000 / count as u64).clamp(3, 200);
        detection(count, seeds, false);
        if count <= 100 {
            detection(count, seeds.min(50), true);
        }
        spread(count, seeds.min(20));
        idle(count);
        if count <= 20 {
            for loss in [0.0, 0.1, 0.2, 0.3] {
                false_deaths(count, loss, 600);
            }
        } else if count <= 100 {
            false_deaths(count, 0.1, 120);
            false_deaths(count, 0.2, 120);
        }
    }
}

/// From the crash of one node to DOWN in every view.
fn detection(count: usize, seeds: u64, kernel_alive: bool) {
    let began = Instant::now();
    let mut virtual_time = Duration::ZERO;
    let mut took = Vec::new();
    let mut suspected = Vec::new();
    let mut missed = 0;
    for seed in 1..=seeds {
        let mut cluster = Cluster::converged(seed, count);
        let wait = Duration::from_millis(5000 + cluster.random(1000));
        cluster.run_for(wait);
        if kernel_alive {
            cluster.kill(1);
        } else {
            cluster.crash(1);
        }
        let first = cluster.run_until(Duration::from_secs(20), |c| {
            c.running().any(|by| c.status(by, 1) == Some(NodeStatus::Suspected))
        });
        let rest = cluster.run_until(Duration::from_secs(20), |c| c.all_see(1, NodeStatus::Down));
        match (first, rest) {
            (Some(first), Some(rest)) => {
                suspected.push(first);
                took.push(first + rest);
            }
            _ => missed += 1,
        }
        virtual_time += cluster.elapsed();
    }
    let how = if kernel_alive { "killed, kernel alive" } else { "silent crash" };
    let speed = virtual_time.as_secs_f64() / began.elapsed().as_secs_f64();
    let (first, all) = (percentiles(&mut suspected), percentiles(&mut took));
    println!(
        "n={count} {how}: first suspicion {first}; DOWN everywhere {all}; missed {missed}; seeds 1-{seeds}; {speed:.0} x real time"
    );
}

/// From the start of one more node to ALIVE in every view.
fn spread(count: usize, seeds: u64) {
    let mut took = Vec::new();
    for seed in 1..=seeds {
        let mut cluster = Cluster::converged(seed, count);
        cluster.run_for(Duration::from_secs(5));
        let addr = cluster.nodes[0].addr;
        let newcomer = cluster.add(vec![addr]);
        took.extend(cluster.run_until(Duration::from_secs(20), |c| c.all_see(newcomer, NodeStatus::Alive)));
    }
    println!("n={count} one update to all: {}; seeds 1-{seeds}", percentiles(&mut took));
}

/// Bytes that an idle node sends per second, IPv4 and UDP headers included.
fn idle(count: usize) {
    let mut cluster = Cluster::converged(1, count);
    cluster.run_for(Duration::from_secs(10));
    let sent = |cluster: &Cluster| cluster.nodes.iter().map(|node| node.sent_bytes).sum::<u64>();
    let before = sent(&cluster);
    cluster.run_for(Duration::from_secs(20));
    println!(
        "n={count} idle: {} B/s per node, headers included; seed 1",
        (sent(&cluster) - before) / 20 / count as u64
    );
}

/// Verdicts over healthy nodes under loss.
fn false_deaths(count: usize, loss: f64, seconds: u64) {
    let (mut deaths, mut suspicions, mut lost) = (0, 0, 0);
    for seed in 1..=3 {
        let mut cluster = Cluster::converged(seed, count);
        cluster.network.loss = loss;
        cluster.run_for(Duration::from_secs(seconds));
        deaths += cluster.checker.false_downs;
        suspicions += cluster.checker.suspicions;
        lost += cluster.faults().lost;
    }
    let hours = 3.0 * seconds as f64 / 3600.0;
    println!(
        "n={count} loss {:.0} %: {deaths} false deaths, {suspicions} suspicions in {hours:.2} cluster-hours ({lost} lost); seeds 1-3",
        loss * 100.0
    );
}

fn percentiles(took: &mut [Duration]) -> String {
    took.sort();
    let at =
        |share: f64| took.get(((took.len() as f64 * share).ceil() as usize).max(1) - 1).copied().unwrap_or_default();
    format!("p50 {:.2?} p99 {:.2?} max {:.2?}", at(0.5), at(0.99), at(1.0))
}
