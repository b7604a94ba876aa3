//! Elections in virtual time, next to the goals of DESIGN §8.
//!
//!     cargo bench --bench election                 # failover, and 20 000 elections under random faults: seconds
//!     cargo bench --bench election -- 1000000      # so many elections: about half an hour on one core
//!
//! The machines are the ones that ship. Clocks run up to 10 % fast or slow, messages take 0.1 to 150 ms, 5 % are lost and 5 %
//! come twice; nodes crash, restart once and twice in a row, stall, leave and are cut off. Each line names its seeds; the
//! same seeds give the same figures.

#![allow(clippy::print_stdout, missing_docs, unreachable_pub)]

use std::time::{Duration, Instant};

use rand::RngExt;
use smg::mesh::sim::election::{Cluster, Plan, storm};

/// Elections in one run, which has one seed.
const ELECTIONS_PER_SEED: u64 = 1000;

fn main() {
    let wanted: u64 = std::env::args().skip(1).find_map(|count| count.parse().ok()).unwrap_or(20_000);
    for nodes in [3, 5, 7] {
        failover(nodes);
    }
    let mut total = 0;
    let started = Instant::now();
    let plans =
        [(3, true, false), (3, true, true), (5, true, false), (5, true, true), (4, true, false), (5, false, true)];
    for (nodes, fixed, durable) in plans {
        total += storms(nodes, fixed, durable, wanted.div_ceil(plans.len() as u64));
    }
    println!("{total} elections in all, {:.0} s", started.elapsed().as_secs_f64());
}

/// From the death of a leader, at a random moment, to the next lease.
fn failover(nodes: usize) {
    const SEEDS: u64 = 2000;
    let mut times: Vec<Duration> = (1..=SEEDS).map(|seed| failover_time(nodes, seed)).collect();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64();
    println!(
        "failover, n = {nodes}: p50 {:.2} s, p99 {:.2} s, max {:.2} s   goal p50 <= 2.0 s, p99 <= 3.5 s   [seeds 1-{SEEDS}]",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn failover_time(nodes: usize, seed: u64) -> Duration {
    let mut cluster = Cluster::new(Plan { nodes, drift: 0.01, ..Plan::default() }, seed);
    let led = cluster.run_until(Duration::from_secs(60), |cluster| cluster.leader().is_some());
    assert!(led, "seed {seed}: nobody leads");
    let calm = Duration::from_micros(cluster.rng().random_range(2_000_000..4_000_000));
    cluster.run_for(calm);
    let Some(leader) = cluster.leader() else { panic!("seed {seed}: the leader is gone") };
    let died = cluster.now();
    cluster.crash(leader);
    let led = cluster.run_until(died + Duration::from_secs(60), |cluster| cluster.leader().is_some());
    assert!(led, "seed {seed}: nobody follows");
    cluster.now() - died
}

fn storms(nodes: usize, fixed: bool, durable: bool, wanted: u64) -> u64 {
    let plan = Plan { nodes, fixed, durable, drift: 0.1, loss: 0.05, duplicates: 0.05, ..Plan::default() };
    let plan = Plan { delay: (Duration::from_micros(100), Duration::from_millis(150)), ..plan };
    let seeds = wanted.div_ceil(ELECTIONS_PER_SEED);
    let (mut elections, mut shared, mut hours) = (0, 0, 0.0);
    for seed in 1..=seeds {
        let cluster = storm(plan.clone(), seed, ELECTIONS_PER_SEED);
        assert_eq!(cluster.violations, 0, "n = {nodes}, fixed {fixed}, durable {durable}, seed {seed}: two leases");
        elections += cluster.elections;
        shared += cluster.shared_terms;
        hours += cluster.now().as_secs_f64() / 3600.0;
    }
    println!(
        "storm, n = {nodes}, voters {}, data directory {}: {elections} elections in {hours:.1} h, two leases at an instant: 0, \
         terms with two leaders one after the other: {shared}   [seeds 1-{seeds}]",
        if fixed { "fixed" } else { "auto" },
        if durable { "yes" } else { "no" },
    );
    elections
}
