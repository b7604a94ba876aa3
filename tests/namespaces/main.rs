//! Clusters of real processes in network namespaces: what a simulator cannot show, the kernel, TCP, signals, quotas.
//!
//! `cargo test` runs a short slice with five processes. `tests/namespaces/run` runs everything with 5 and 20 processes of
//! the release build and prints a table; `tests/namespaces/run loss mtu` only the scenarios with one of these words,
//! `--tls` before them all that by mutual TLS. Both need root, `ip`, `nft` and `curl`, and say so where these are missing. Loss and cuts are `nft` rules on receiving hosts, so they
//! hit both planes. Delay, reordering and duplicates come from `relay.py`, a switch in user space: it does the same on every
//! kernel, `netem` or not, counts what it did, and needs `python3`.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod cluster;
#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "shared with the suite that speaks HTTP")]
mod harness;
mod hosts;
mod http;
mod inside;
mod load;
#[path = "../cluster/machine.rs"]
#[allow(dead_code, reason = "shared with the suite that speaks HTTP")]
mod machine;
mod relay;
mod report;
mod scenarios;

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;

use cluster::{Cluster, Setup};
use report::{HEADER, Row};
use scenarios::{
    capture, doctor, leader, limits, paths,
    slow::{self, Burden},
    state,
};

/// Slack of the slice: it runs beside other tests and with an unoptimised program, and where processors were short beside
/// more than that.
fn slice_slack() -> Duration {
    Duration::from_secs(if machine::excuse().is_some() { 15 } else { 2 })
}

/// Slack of the full set: the machine has less cores than the cluster has nodes.
const FULL_SLACK: Duration = Duration::from_millis(500);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn nobody_dies(row: &Row) {
    assert_eq!(row.false_deaths, 0, "{row}");
}

#[tokio::test]
async fn a_killed_process_is_down_everywhere_and_comes_back() {
    let Some(mut cluster) = Cluster::start(5, "kill -9", Setup::default()).await else { return };
    let row = scenarios::killed(&mut cluster, 1).await;
    nobody_dies(&row);
    scenarios::KILLED.check(&row.down, &row, slice_slack());
    let mut statuses = cluster.hosts.statuses(1);
    statuses.sort();
    assert_eq!(statuses, harness::all_alive(5), "the HA API agrees with the log");
}

#[tokio::test]
async fn a_silent_crash_is_down_everywhere() {
    let Some(mut cluster) = Cluster::start(5, "link down", Setup::default()).await else { return };
    let row = scenarios::unplugged(&mut cluster, 1).await;
    nobody_dies(&row);
    scenarios::SILENT.check(&row.down, &row, slice_slack());
}

#[tokio::test]
async fn a_one_way_cut_kills_nobody() {
    let Some(mut cluster) = Cluster::start(5, "one-way cut", Setup::default()).await else { return };
    nobody_dies(&scenarios::cut(&mut cluster, "one-way cut", &[(1, 2)], seconds(8)).await);
}

#[tokio::test]
async fn loss_of_a_fifth_kills_nobody() {
    let Some(mut cluster) = Cluster::start(5, "loss 20 %", Setup::default()).await else { return };
    nobody_dies(&scenarios::loss(&mut cluster, 20, seconds(8)).await);
}

#[tokio::test]
async fn distance_kills_nobody() {
    let Some(mut cluster) = Cluster::start(5, "delay", setup("delay")).await else { return };
    let row = paths::delayed(&mut cluster, seconds(5)).await;
    nobody_dies(&row);
    scenarios::SILENT.check(&row.down, &row, slice_slack());
}

#[tokio::test]
async fn reordering_kills_nobody() {
    let Some(mut cluster) = Cluster::start(5, "reorder", setup("reorder")).await else { return };
    let row = paths::reordered(&mut cluster, seconds(5)).await;
    nobody_dies(&row);
    scenarios::SILENT.check(&row.down, &row, slice_slack());
}

#[tokio::test]
async fn both_sides_of_a_partition_keep_what_they_wrote() {
    let Some(mut cluster) = Cluster::start(5, "state", setup("state")).await else { return };
    nobody_dies(&state::diverged(&mut cluster, 400, state::EQUAL_WITHIN + slice_slack()).await);
}

#[tokio::test]
async fn a_slow_peer_costs_the_others_no_memory_and_catches_up() {
    let Some(mut cluster) = Cluster::start(5, "slow peer", setup("slow peer")).await else { return };
    nobody_dies(&slow::burdened(&mut cluster, Burden::SlowLink, "peer at 10 kB/s", seconds(5), seconds(10)).await);
}

#[tokio::test]
async fn with_tls_a_killed_process_is_down_everywhere_as_soon() {
    let Some(mut cluster) = Cluster::start(5, "kill -9 by TLS", Setup { is_tls: true, ..Setup::default() }).await
    else {
        return;
    };
    let row = scenarios::killed(&mut cluster, 1).await;
    nobody_dies(&row);
    scenarios::KILLED.check(&row.down, &row, slice_slack());
}

#[tokio::test]
async fn a_tap_reads_nothing_of_a_mesh_by_tls() {
    let Some(mut cluster) = Cluster::start(5, "capture", setup("capture")).await else { return };
    nobody_dies(&capture::compared(&mut cluster).await);
}

#[tokio::test]
async fn a_leader_that_dies_or_is_cut_off_is_followed_by_one() {
    let Some(mut cluster) = Cluster::start(5, "leader", setup("leader")).await else { return };
    let row = leader::contested(&mut cluster, 1, seconds(4)).await;
    nobody_dies(&row);
    leader::FAILOVER.check(&row.failover, &row, slice_slack());
}

#[tokio::test]
async fn a_limit_holds_in_every_window_whatever_happens() {
    let Some(mut cluster) = Cluster::start(5, "limits", setup("limits")).await else { return };
    // How much is used is for an idle machine to show.
    let goal = limits::Use { even: 0.5, shifted: 0.3, killed: 0.3 };
    nobody_dies(&limits::shared(&mut cluster, seconds(4), goal).await);
}

#[tokio::test]
async fn the_doctor_names_a_blocked_plane() {
    let Some(mut cluster) = Cluster::start(3, "doctor", Setup::default()).await else { return };
    doctor::examined(&mut cluster).await;
}

/// Everything, when `SMG_NAMESPACES` is set, to `all` or to words of which one is in the name of each scenario wanted.
#[tokio::test]
async fn full_set() {
    let Ok(wanted) = std::env::var("SMG_NAMESPACES") else {
        eprintln!("SKIPPED full_set: tests/namespaces/run starts it");
        return;
    };
    println!("mesh: {}", if is_tls() { "mutual TLS, datagrams by QUIC" } else { "plain, datagrams by UDP" });
    println!("{HEADER}");
    let mut failed = Vec::new();
    for size in [5, 20] {
        for scenario in SCENARIOS {
            let is_wanted = wanted.split(' ').any(|word| word == "all" || scenario.contains(word));
            if !is_wanted || size > 5 && OF_FIVE.contains(&scenario) {
                continue;
            }
            let Some(mut cluster) = Cluster::start(size, scenario, setup(scenario)).await else { return };
            // A failure ends its scenario, not the table.
            if AssertUnwindSafe(run(scenario, &mut cluster)).catch_unwind().await.is_err() {
                failed.push(format!("{scenario} n={size}"));
            }
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

const SCENARIOS: [&str; 24] = [
    "idle",
    "kill",
    "silent",
    "deaf",
    "one-way",
    "triangle",
    "loss10",
    "loss20",
    "loss30",
    "stall2",
    "stall8",
    "mtu",
    "moved",
    "rolling",
    "quota",
    "partition",
    "delay",
    "reorder",
    "state",
    "slow peer",
    "stopped peer",
    "capture",
    "leader",
    "limits",
];

/// What is the same with more nodes, or too much for one machine.
const OF_FIVE: [&str; 6] = ["state", "slow peer", "stopped peer", "capture", "leader", "limits"];

/// Whether `tests/namespaces/run --tls` was asked for.
fn is_tls() -> bool {
    std::env::var_os("SMG_NAMESPACES_TLS").is_some()
}

fn setup(scenario: &str) -> Setup {
    let rules = match scenario {
        "delay" => Some(paths::ZONES),
        "reorder" => Some(paths::REORDER),
        _ => None,
    };
    // Thousands of workers that are not there.
    let args: &[&str] = match scenario {
        "state" => &["--disable-health-check"],
        "limits" => &limits::ARGS,
        _ => &[],
    };
    Setup { rules, args: args.iter().map(ToString::to_string).collect(), is_tls: is_tls() || scenario == "capture" }
}

async fn run(scenario: &str, cluster: &mut Cluster) {
    let rounds = if cluster.size > 5 { 3 } else { 10 };
    let row = match scenario {
        "idle" => scenarios::idle(cluster, seconds(60)).await,
        "kill" => scenarios::killed(cluster, rounds).await,
        "silent" => scenarios::unplugged(cluster, rounds).await,
        "deaf" => scenarios::deaf(cluster).await,
        "one-way" => scenarios::cut(cluster, "one-way cut 1→2", &[(1, 2)], seconds(30)).await,
        "triangle" => scenarios::cut(cluster, "triangle cut 1–2", &[(1, 2), (2, 1)], seconds(30)).await,
        "loss10" => scenarios::loss(cluster, 10, seconds(60)).await,
        "loss20" => scenarios::loss(cluster, 20, seconds(60)).await,
        "loss30" => scenarios::loss(cluster, 30, seconds(60)).await,
        "stall2" => scenarios::stalled(cluster, seconds(2), rounds.min(5)).await,
        "stall8" => scenarios::stalled(cluster, seconds(8), 2).await,
        "mtu" => scenarios::mtu_hole(cluster).await,
        "moved" => scenarios::moved(cluster).await,
        "rolling" => scenarios::rolling(cluster, 5).await,
        "quota" => scenarios::throttled(cluster, seconds(30)).await,
        "partition" => scenarios::partitioned(cluster, seconds(10)).await,
        "delay" => paths::delayed(cluster, seconds(30)).await,
        "reorder" => paths::reordered(cluster, seconds(30)).await,
        "state" => state::diverged(cluster, 10_000, state::MANY_EQUAL_WITHIN).await,
        "slow peer" => slow::burdened(cluster, Burden::SlowLink, "peer at 10 kB/s", seconds(30), seconds(300)).await,
        "stopped peer" => slow::burdened(cluster, Burden::Stopped, "peer stopped", seconds(30), seconds(60)).await,
        "capture" => capture::compared(cluster).await,
        "leader" => leader::contested(cluster, 5, seconds(15)).await,
        "limits" => limits::shared(cluster, seconds(15), limits::GOAL).await,
        other => panic!("no scenario {other}"),
    };
    row.print();
    match scenario {
        "kill" => scenarios::KILLED.check(&row.down, &row, FULL_SLACK),
        "silent" | "delay" | "reorder" => scenarios::SILENT.check(&row.down, &row, FULL_SLACK),
        "leader" => leader::FAILOVER.check(&row.failover, &row, FULL_SLACK),
        _ => {}
    }
    // At 30 % DESIGN §3 promises nothing; the figure is printed.
    if scenario != "loss30" {
        nobody_dies(&row);
    }
    if let Some(p99) = row.spread_p99 {
        assert!(p99 <= slow::SPREAD_P99_MAX, "updates to the other peers: {row}");
    }
    if scenario == "delay" {
        assert_eq!(row.suspicions, 0, "distance alone makes nobody suspect: {row}");
    }
    if scenario == "stall2" {
        assert!(row.down.is_empty(), "nobody is called DOWN within a stall of 2 s: {row}");
    }
}
