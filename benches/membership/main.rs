//! The membership table of the design, as measured in virtual time, next to its goals and to a model of memberlist.
//!
//!     cargo bench --bench membership                       # n = 3, 5, 20 and 100: some minutes
//!     cargo bench --bench membership -- 3 5 20 100 1000    # the sizes wanted; 1000 takes some minutes more
//!     cargo bench --bench membership -- adversary 2000     # random schedules of every fault, by seed
//!     cargo bench --bench membership -- speed 1000         # virtual time by time of the processor, phase by phase
//!
//! n nodes, RTT 0.4 to 1 ms, T = 1 s. Each row names its seeds and a hash over everything that happened in its runs: the
//! same seeds give the same figures and the same hash. `memberlist` is the model of `smg::mesh::sim::memberlist`.

#![allow(clippy::print_stdout, missing_docs, unreachable_pub)]

mod adversary;
mod ours;
mod yardstick;

use std::time::Duration;

/// The sizes measured unless others are given.
const SIZES: [usize; 4] = [3, 5, 20, 100];

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|size| size.parse().ok()).collect();
    if std::env::args().any(|arg| arg == "adversary") {
        let seeds = sizes.first().map_or(2000, |seeds| *seeds as u64);
        std::process::exit(i32::from(!adversary::suite(seeds)));
    }
    if std::env::args().any(|arg| arg == "speed") {
        return speed(sizes.first().copied().unwrap_or(1000));
    }
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    for count in sizes {
        println!("\nn = {count}");
        detections(count);
        spread(count);
        idle(count);
        losses(count);
        if count >= 20 {
            stalls(count);
        }
        if count == 20 {
            quota();
        }
        if count == 100 {
            storm();
        }
    }
}

/// One line of the table.
fn row(what: &str, figures: &str, goal: &str, yardstick: &str, seeds: u64, hash: u64) {
    let goal = if goal.is_empty() { String::new() } else { format!("   goal {goal}") };
    let yardstick = if yardstick.is_empty() { String::new() } else { format!("   memberlist {yardstick}") };
    println!("{what:34} {figures}{goal}{yardstick}   [seeds 1-{seeds}, trace {hash:016x}]");
}

fn detections(count: usize) {
    let crashes = (20_000 / count).clamp(10, 200);
    let goal = match count {
        5 => "p50 <= 3 s, p99 <= 4 s",
        100 => "p99 <= 4.5 s",
        1000 => "p99 <= 5 s",
        _ => "",
    };
    let mut silent = ours::detection(count, crashes, false);
    let mut theirs = yardstick::detection(count, crashes.min(100));
    let (seeds, hash) = (silent.seeds, silent.hash);
    row("silent crash: DOWN everywhere", &percentiles(&mut silent.down), goal, &percentiles(&mut theirs), seeds, hash);
    row("  first suspicion", &percentiles(&mut silent.suspected), "", "", seeds, hash);
    let mut killed = ours::detection(count, crashes.min(50), true);
    let (seeds, hash) = (killed.seeds, killed.hash);
    row("killed, kernel alive: suspected", &percentiles(&mut killed.suspected), "<= 0.7 s", "", seeds, hash);
    row("  DOWN everywhere", &percentiles(&mut killed.down), "p50 <= 2.5 s", "", seeds, hash);
    let missed = silent.missed + killed.missed;
    let (speed, forming) = (silent.speed, silent.forming);
    println!(
        "  missed within 20 s: {missed}; virtual time runs {speed:.0} x CPU time while nodes crash; forming {forming:.2?} of CPU"
    );
}

fn spread(count: usize) {
    let seeds = (2000 / count as u64).clamp(3, 20);
    let (mut took, hash) = ours::spread(count, seeds);
    let goal = match count {
        5 => "p99 <= 100 ms",
        20 => "p99 <= 300 ms",
        1000 => "p99 <= 1 s",
        _ => "",
    };
    row("one update to all", &percentiles(&mut took), goal, "", seeds, hash);
}

fn idle(count: usize) {
    let ours::Idle { bytes, speed, hash } = ours::idle(count);
    let goal = if count >= 100 { "<= 500 B/s, flat in n" } else { "" };
    row("idle", &format!("{bytes} B/s per node, headers included"), goal, "", 1, hash);
    println!("  virtual time runs {speed:.0} x CPU time when idle   goal >= 20 x with 1000 nodes");
}

/// How fast the simulator is: what a simulated second costs in the life of one cluster.
fn speed(count: usize) {
    println!("n = {count}, one thread");
    for (phase, took, used) in ours::phases(count) {
        let speed = took.as_secs_f64() / used.as_secs_f64();
        println!("{phase:34} {took:.2?} of virtual time in {used:.2?} of CPU: {speed:.1} x");
    }
}

fn losses(count: usize) {
    let (seeds, seconds) = match count {
        0..=20 => (6, 1800),
        21..=100 => (3, 400),
        _ => (1, 20),
    };
    for (percent, goal) in [(0, "0"), (10, "0"), (20, "<= 1 per hour"), (30, "")] {
        let loss = f64::from(percent) / 100.0;
        let found = ours::loss(count, loss, seeds, Duration::from_secs(seconds));
        let theirs = yardstick::loss(count, loss, seeds, Duration::from_secs(seconds));
        let hours = (seeds * seconds) as f64 / 3600.0;
        let figures =
            format!("{} false deaths, {} suspicions in {hours:.2} cluster-hours", found.false_downs, found.suspicions);
        let theirs = format!("{} and {}", theirs.false_downs, theirs.suspicions);
        row(&format!("loss {percent} %"), &figures, goal, &theirs, seeds, found.hash);
    }
}

fn stalls(count: usize) {
    let found = ours::stalls(count, 3);
    let theirs = yardstick::stalls(count, 3);
    let figures = format!("{} false deaths, {} suspicions", found.false_downs, found.suspicions);
    let theirs = format!("{} and {}", theirs.false_downs, theirs.suspicions);
    row("2 s stalls of 20 % of the nodes", &figures, "0", &theirs, 3, found.hash);
}

fn quota() {
    let found = ours::quota(3);
    let figures = format!("{} false deaths, {} suspicions in 60 s", found.false_downs, found.suspicions);
    row("CPU quota of 25 % on 4 of 20", &figures, "0", "", 3, found.hash);
}

fn storm() {
    let (mut took, hash) = ours::storm(10);
    row("100 nodes join in 1 s through one", &percentiles(&mut took), "<= 5 s", "", 10, hash);
}

/// Median, 99th percentile (nearest rank) and largest.
fn percentiles(took: &mut [Duration]) -> String {
    took.sort();
    let at =
        |share: f64| took.get(((took.len() as f64 * share).ceil() as usize).max(1) - 1).copied().unwrap_or_default();
    format!("p50 {:.2?} p99 {:.2?} max {:.2?}", at(0.5), at(0.99), at(1.0))
}
