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
        let crashes = (20_000 / count).clamp(10, 200);
        detection(count, crashes, false);
        detection(count, crashes.min(50), true);
        spread(count, (2000 / count as u64).clamp(3, 20));
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
///
/// Large clusters take long to form, since everybody is news to everybody: each is used for several crashes, each of
/// another node that starts again afterwards. How fast virtual time runs is said of the time after the forming.
fn detection(count: usize, crashes: usize, kernel_alive: bool) {
    let each = if count >= 100 { 10 } else { 1 };
    let seeds = crashes.div_ceil(each) as u64;
    let (mut forming, mut running, mut virtual_time) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut times = Times::default();
    for seed in 1..=seeds {
        let began = Instant::now();
        let mut cluster = settled(seed, count);
        forming += began.elapsed();
        let (began, formed) = (Instant::now(), cluster.elapsed());
        for victim in 1..=each {
            crash(&mut cluster, victim, kernel_alive, &mut times);
        }
        virtual_time += cluster.elapsed() - formed;
        running += began.elapsed();
    }
    let how = if kernel_alive { "killed, kernel alive" } else { "silent crash" };
    let speed = virtual_time.as_secs_f64() / running.as_secs_f64();
    let forming = forming.div_f64(seeds as f64);
    let (first, all) = (percentiles(&mut times.suspected), percentiles(&mut times.down));
    println!(
        "n={count} {how}: first suspicion {first}; DOWN everywhere {all}; missed {}; {each} in each of seeds 1-{seeds}; \
         {speed:.0} x real time once formed, which took {forming:.2?}",
        times.missed
    );
}

/// What detections took.
#[derive(Default)]
struct Times {
    suspected: Vec<Duration>,
    down: Vec<Duration>,
    missed: usize,
}

/// One crash, waited for and mended.
fn crash(cluster: &mut Cluster, victim: usize, kernel_alive: bool, times: &mut Times) {
    let wait = Duration::from_millis(5000 + cluster.random(1000));
    cluster.run_for(wait);
    if kernel_alive {
        cluster.kill(victim);
    } else {
        cluster.crash(victim);
    }
    let limit = Duration::from_secs(20);
    let first = cluster.run_until(limit, |c| c.running().any(|by| c.status(by, victim) == Some(NodeStatus::Suspected)));
    let rest = cluster.run_until(limit, |c| c.all_see(victim, NodeStatus::Down));
    match (first, rest) {
        (Some(first), Some(rest)) => {
            times.suspected.push(first);
            times.down.push(first + rest);
        }
        _ => times.missed += 1,
    }
    cluster.restart(victim, None, Duration::ZERO);
    cluster.run_until(limit, Cluster::is_converged);
}

/// A cluster that has formed and has nothing more to tell.
fn settled(seed: u64, count: usize) -> Cluster {
    let mut cluster = Cluster::converged(seed, count);
    // λ·log n sendings of each record by each node take 21 s for a thousand.
    cluster.run_for(Duration::from_secs(if count > 100 { 30 } else { 5 }));
    cluster
}

/// From the start of one more node to ALIVE in every view.
fn spread(count: usize, seeds: u64) {
    let mut took = Vec::new();
    for seed in 1..=seeds {
        let mut cluster = settled(seed, count);
        let addr = cluster.nodes[0].addr;
        let newcomer = cluster.add(vec![addr]);
        took.extend(cluster.run_until(Duration::from_secs(20), |c| c.all_see(newcomer, NodeStatus::Alive)));
    }
    println!("n={count} one update to all: {}; seeds 1-{seeds}", percentiles(&mut took));
}

/// Bytes that an idle node sends per second, IPv4 and UDP headers included.
fn idle(count: usize) {
    let mut cluster = settled(1, count);
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
