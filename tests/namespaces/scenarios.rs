//! What goes wrong, and what must hold then: DESIGN §3's table.

pub mod capture;
pub mod doctor;
pub mod leader;
pub mod limits;
pub mod paths;
pub mod slow;
pub mod state;

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;

use crate::{
    cluster::{Cluster, Quota, Turn},
    report::{Goal, Row},
};

/// How long a cluster may take to be whole again after a fault.
const WHOLE_WITHIN: Duration = Duration::from_secs(40);

/// A verdict that takes longer is a failure whatever the goal.
const DOWN_WITHIN: Duration = Duration::from_secs(20);

/// A silent crash at n=5 (n=20 lies between the rows of 5 and 100 nodes).
pub const SILENT: Goal = Goal { p50: Duration::from_millis(3000), max: Duration::from_millis(4000) };

/// A process killed while its kernel lives.
pub const KILLED: Goal = Goal { p50: Duration::from_millis(2500), max: Duration::from_millis(4000) };

/// Counts DOWN said by healthy nodes of healthy nodes since then.
fn false_deaths(cluster: &Cluster, since: SystemTime, ill: &BTreeSet<usize>) -> usize {
    told_deaths(cluster, since, |turn| !ill.contains(&turn.peer) && !ill.contains(&turn.observer))
}

/// Counts DOWN said since then of whom it is false, and prints what each such observer saw of the peer.
fn told_deaths(cluster: &Cluster, since: SystemTime, is_false: impl Fn(&Turn) -> bool) -> usize {
    let turns = cluster.turns_since(since);
    let deaths: Vec<&Turn> = turns.iter().filter(|turn| turn.status == "DOWN" && is_false(turn)).collect();
    for death in &deaths {
        let of_both = turns.iter().filter(|turn| (turn.observer, turn.peer) == (death.observer, death.peer));
        let story: Vec<String> = of_both
            .map(|turn| {
                let after = turn.at.duration_since(since).unwrap_or_default().as_secs_f64();
                format!("{after:.3} s {} ({})", turn.status, turn.reason)
            })
            .collect();
        eprintln!("false death: node{} of node{}: {}", death.observer, death.peer, story.join(", "));
    }
    deaths.len()
}

/// Waits until all but the victims call each victim DOWN, and notes how long each took.
async fn note_verdicts(cluster: &Cluster, row: &mut Row, since: SystemTime, victims: &BTreeSet<usize>) {
    let observers: Vec<usize> = (1..=cluster.size).filter(|n| !victims.contains(n)).collect();
    let first = |cluster: &Cluster, statuses: &[&str]| -> Vec<Duration> {
        let turns = cluster.turns_since(since);
        let pairs = observers.iter().flat_map(|observer| victims.iter().map(move |victim| (*observer, *victim)));
        pairs
            .filter_map(|(observer, victim)| {
                turns
                    .iter()
                    .find(|turn| {
                        (turn.observer, turn.peer) == (observer, victim) && statuses.contains(&turn.status.as_str())
                    })
                    .and_then(|turn| turn.at.duration_since(since).ok())
            })
            .collect()
    };
    let all = observers.len() * victims.len();
    cluster.wait_for(DOWN_WITHIN, "DOWN in every view", |cluster| first(cluster, &["DOWN"]).len() == all).await;
    row.down.extend(first(cluster, &["DOWN"]));
    row.doubted.extend(first(cluster, &["SUSPECTED", "DOWN"]));
}

async fn note_whole(cluster: &Cluster, row: &mut Row) {
    row.converged.push(cluster.wait_for(WHOLE_WITHIN, "whole again", Cluster::is_whole).await);
}

/// Another phase of the rings each round.
async fn settle(cluster: &Cluster, round: usize) {
    cluster.run_for(Duration::from_millis(1000 + 370 * u64::try_from(round % 5).unwrap())).await;
}

/// `kill -9`; then it starts again under its name.
pub async fn killed(cluster: &mut Cluster, rounds: usize) -> Row {
    let mut row = Row::new("kill -9", cluster.size);
    for round in 0..rounds {
        settle(cluster, round).await;
        let (victim, since) = (cluster.size - round % cluster.size, SystemTime::now());
        cluster.kill(victim);
        note_verdicts(cluster, &mut row, since, &BTreeSet::from([victim])).await;
        row.false_deaths += false_deaths(cluster, since, &BTreeSet::from([victim]));
        cluster.spawn(victim);
        note_whole(cluster, &mut row).await;
        row.rounds += 1;
    }
    row
}

/// The link of a host goes down, silence without any hint; its process is never heard again, a new one starts. (A process
/// that comes back has held the others for suspects meanwhile: they refute, and damping, DESIGN §3.6, makes it slower to
/// call them DOWN for a minute. Cutting off one node after the other would measure that.)
pub async fn unplugged(cluster: &mut Cluster, rounds: usize) -> Row {
    let mut row = Row::new("silent crash (link down)", cluster.size);
    for round in 0..rounds {
        settle(cluster, round).await;
        unplug_one(cluster, &mut row, cluster.size - round % cluster.size).await;
        row.rounds += 1;
    }
    row
}

/// One round of it.
async fn unplug_one(cluster: &mut Cluster, row: &mut Row, victim: usize) {
    let since = SystemTime::now();
    cluster.link(victim, "down");
    note_verdicts(cluster, row, since, &BTreeSet::from([victim])).await;
    row.false_deaths += false_deaths(cluster, since, &BTreeSet::from([victim]));
    cluster.kill(victim);
    cluster.link(victim, "up");
    cluster.spawn(victim);
    note_whole(cluster, row).await;
}

/// One host hears nobody; what it sends arrives.
pub async fn deaf(cluster: &mut Cluster) -> Row {
    let mut row = Row::new("deaf node", cluster.size);
    let (victim, since) = (cluster.size, SystemTime::now());
    cluster.drop_in(victim, "");
    note_verdicts(cluster, &mut row, since, &BTreeSet::from([victim])).await;
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::from([victim]));
    cluster.heal(victim);
    note_whole(cluster, &mut row).await;
    row.rounds = 1;
    row
}

/// Packets from `from` to `to` are lost, for each of the pairs; all others pass. Nobody may be called DOWN for it.
pub async fn cut(cluster: &mut Cluster, name: &str, pairs: &[(usize, usize)], time: Duration) -> Row {
    let mut row = Row::new(name, cluster.size);
    let since = SystemTime::now();
    for (from, to) in pairs {
        cluster.drop_in(*to, &format!("ip saddr 10.77.0.{from}"));
    }
    cluster.run_for(time).await;
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::new());
    (1..=cluster.size).for_each(|n| cluster.heal(n));
    note_whole(cluster, &mut row).await;
    row.rounds = 1;
    row.note = format!("{} s", time.as_secs());
    row
}

/// Each host loses this share of what comes to it.
pub async fn loss(cluster: &mut Cluster, percent: u32, time: Duration) -> Row {
    let mut row = Row::new(&format!("loss {percent} %"), cluster.size);
    let since = SystemTime::now();
    for n in 1..=cluster.size {
        cluster.drop_in(n, &format!("numgen random mod 100 < {percent} counter"));
    }
    count_sent(cluster);
    cluster.run_for(time).await;
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::new());
    let [udp, tcp] = sent(cluster).map(|plane| plane as f64 / time.as_secs_f64() / cluster.size as f64);
    let suspicions = cluster.turns_since(since).iter().filter(|turn| turn.status == "SUSPECTED").count();
    let rules = cluster.nft(1, "list chain inet smg in");
    assert!(!rules.contains("packets 0 "), "the loss took place: {rules}");
    (1..=cluster.size).for_each(|n| cluster.heal(n));
    note_whole(cluster, &mut row).await;
    row.rounds = 1;
    row.note = format!(
        "{} s, {suspicions} views suspected somebody; sent {udp:.0} B/s udp + {tcp:.0} B/s tcp each, with headers",
        time.as_secs()
    );
    row
}

/// Large packets vanish at one host, on both ways; it restarts meanwhile and must be let in.
pub async fn mtu_hole(cluster: &mut Cluster) -> Row {
    let mut row = Row::new("MTU hole above 1280 B", cluster.size);
    let (victim, since) = (cluster.size, SystemTime::now());
    cluster.nft(victim, "add rule inet smg in iif eth0 meta length > 1280 counter drop");
    cluster.nft(victim, "add rule inet smg out oif eth0 meta length > 1280 counter drop");
    cluster.run_for(Duration::from_secs(10)).await;
    cluster.kill(victim);
    cluster.spawn(victim);
    note_whole(cluster, &mut row).await;
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::from([victim]));
    cluster.heal(victim);
    row.rounds = 1;
    row.note = "restarted inside the hole".to_owned();
    row
}

/// SIGSTOP of a share of the nodes, SIGCONT after `time`.
pub async fn stalled(cluster: &mut Cluster, time: Duration, rounds: usize) -> Row {
    let mut row = Row::new(&format!("SIGSTOP {} s", time.as_secs()), cluster.size);
    let count = (cluster.size / 5).max(1);
    for round in 0..rounds {
        settle(cluster, round).await;
        let since = SystemTime::now();
        let victims: BTreeSet<usize> = (0..count).map(|i| cluster.size - (round + 4 * i) % cluster.size).collect();
        victims.iter().for_each(|n| cluster.signal(*n, Signal::SIGSTOP));
        cluster.run_for(time).await;
        let stopped_until = SystemTime::now();
        victims.iter().for_each(|n| cluster.signal(*n, Signal::SIGCONT));
        note_whole(cluster, &mut row).await;
        cluster.run_for(Duration::from_secs(3)).await;
        cluster.wait_for(WHOLE_WITHIN, "whole", Cluster::is_whole).await;
        let deaths: Vec<_> = cluster.turns_since(since).into_iter().filter(|turn| turn.status == "DOWN").collect();
        // Who was stopped must accuse nobody afterwards, and nobody but the stopped may be called DOWN.
        row.false_deaths += deaths.iter().filter(|turn| !victims.contains(&turn.peer)).count();
        let of_stopped = deaths.iter().filter(|turn| victims.contains(&turn.peer));
        let (during, after): (Vec<_>, Vec<_>) = of_stopped.partition(|turn| turn.at <= stopped_until);
        row.down.extend(during.iter().filter_map(|turn| turn.at.duration_since(since).ok()));
        if !after.is_empty() {
            row.note = format!("{} views DOWN after SIGCONT", after.len());
        }
        row.rounds += 1;
    }
    row
}

/// Ends hard and starts again under the same name at another address.
pub async fn moved(cluster: &mut Cluster) -> Row {
    let mut row = Row::new("new address, same name", cluster.size);
    let (victim, since) = (cluster.size, SystemTime::now());
    cluster.kill(victim);
    cluster.ip(victim, &["addr", "flush", "dev", "eth0"]);
    cluster.ip(victim, &["addr", "add", &format!("10.77.0.{}/24", 100 + victim), "dev", "eth0"]);
    cluster.spawn(victim);
    note_whole(cluster, &mut row).await;
    let address = format!("10.77.0.{}:39527", 100 + victim);
    cluster
        .wait_for(Duration::from_secs(5), "the new address in every view", |cluster| {
            (1..cluster.size).all(|n| cluster.hosts.answer(n, "/ha/status")["nodes"].to_string().contains(&address))
        })
        .await;
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::new());
    row.rounds = 1;
    row
}

/// SIGTERM and start, one node after the other.
pub async fn rolling(cluster: &mut Cluster, count: usize) -> Row {
    let mut row = Row::new("rolling restart", cluster.size);
    let since = SystemTime::now();
    for n in 1..=count {
        cluster.stop(n).await;
        cluster.spawn(n);
        note_whole(cluster, &mut row).await;
        row.rounds += 1;
    }
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::new());
    row
}

/// A fifth of the nodes have a quarter of a core, which a busy loop takes from them.
pub async fn throttled(cluster: &mut Cluster, time: Duration) -> Row {
    let mut row = Row::new("CPU quota 25 %", cluster.size);
    let since = SystemTime::now();
    let pids: Vec<u32> = (0..(cluster.size / 5).max(1)).map(|i| cluster.pid(cluster.size - 4 * i)).collect();
    let Some(quota) = Quota::new(&pids, 25) else {
        row.note = "SKIPPED: no CPU controller".to_owned();
        return row;
    };
    cluster.run_for(time).await;
    row.note = format!("{} s on {} nodes by {}, with a busy loop", time.as_secs(), pids.len(), quota.means);
    drop(quota);
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::new());
    note_whole(cluster, &mut row).await;
    row.rounds = 1;
    row
}

/// Cuts hosts 1 to `minority` from all others.
fn split(cluster: &Cluster, minority: usize) {
    split_off(cluster, &(1..=minority).collect::<Vec<_>>());
}

/// Cuts these hosts from all others.
fn split_off(cluster: &Cluster, side: &[usize]) {
    let others = (1..=cluster.size).filter(|n| !side.contains(n)).map(|n| format!("10.77.0.{n}"));
    let others = others.collect::<Vec<_>>().join(", ");
    for n in side {
        cluster.drop_in(*n, &format!("ip saddr {{ {others} }}"));
        cluster.nft(*n, &format!("add rule inet smg out ip daddr {{ {others} }} drop"));
    }
}

/// Each side calls its own ALIVE, and the others not even SUSPECTED any more.
fn is_split(cluster: &Cluster, minority: usize) -> bool {
    let views = cluster.views();
    views.iter().all(|(n, view)| {
        view.iter().all(|(peer, status)| ((*n <= minority) == (*peer <= minority)) == (status == "ALIVE"))
            && view.values().all(|status| status != "SUSPECTED")
    })
}

/// Counts DOWN said of the own side since then, and notes when the other side was called so.
fn false_deaths_across(cluster: &Cluster, since: SystemTime, minority: usize, down: &mut Vec<Duration>) -> usize {
    let across = |turn: &Turn| (turn.observer <= minority) != (turn.peer <= minority);
    let turns = cluster.turns_since(since).into_iter().filter(|turn| turn.status == "DOWN" && across(turn));
    down.extend(turns.filter_map(|turn| turn.at.duration_since(since).ok()));
    told_deaths(cluster, since, |turn| !across(turn))
}

/// Two sides that do not hear each other for some time.
pub async fn partitioned(cluster: &mut Cluster, time: Duration) -> Row {
    let mut row = Row::new("partition 3|2 and heal", cluster.size);
    let (since, minority) = (SystemTime::now(), cluster.size * 2 / 5);
    split(cluster, minority);
    let took =
        cluster.wait_for(DOWN_WITHIN, "each side calls the other DOWN", |cluster| is_split(cluster, minority)).await;
    cluster.run_for(time).await;
    assert!(is_split(cluster, minority), "the sides stay as they are: {:?}", cluster.views());
    // A worker is added on either side: no more than 3 s after the healing everybody has both.
    let (first, last) = ("http://10.77.0.1:9", "http://10.77.0.2:9");
    for (n, url) in [(1, first), (cluster.size, last)] {
        cluster.hosts.post(n, "/workers", &serde_json::json!({"url": url}).to_string());
    }
    (1..=minority).for_each(|n| cluster.heal(n));
    note_whole(cluster, &mut row).await;
    let has_both = |cluster: &Cluster, n| {
        let workers = cluster.hosts.answer(n, "/ha/workers").to_string();
        workers.contains(first) && workers.contains(last)
    };
    let equal = cluster
        .wait_for(Duration::from_secs(3), "the state of both sides everywhere", |cluster| {
            (1..=cluster.size).all(|n| has_both(cluster, n))
        })
        .await;
    row.false_deaths = false_deaths_across(cluster, since, minority, &mut row.down);
    row.rounds = 1;
    let [took, equal] = [took, equal].map(|time| time.as_secs_f64());
    row.note = format!("split in {took:.1} s, held {} s, equal state {equal:.1} s after that", time.as_secs());
    row
}

/// Counts from now on what each host sends by each plane.
fn count_sent(cluster: &Cluster) {
    for n in 1..=cluster.size {
        cluster.nft(n, "add rule inet smg out oif eth0 meta l4proto udp counter");
        cluster.nft(n, "add rule inet smg out oif eth0 meta l4proto tcp counter");
    }
}

/// Bytes that all hosts sent by UDP and by TCP since [`count_sent`], with their headers.
fn sent(cluster: &Cluster) -> [u64; 2] {
    let of_host = |n: usize| {
        let rules = cluster.nft(n, "list chain inet smg out");
        let counted = rules.lines().filter_map(|line| line.split(" bytes ").nth(1)?.trim().parse::<u64>().ok());
        counted.collect::<Vec<_>>()
    };
    let hosts: Vec<Vec<u64>> = (1..=cluster.size).map(of_host).collect();
    [0, 1].map(|plane| hosts.iter().map(|counted| counted[plane]).sum())
}

/// What an idle node costs: CPU, memory, bytes on the wire by plane, and what joining cost it. Goals: at most 0.3 % of a core
/// and 30 MB each at n = 20, by TLS too. At n = 5, where probes and votes are a greater part, TLS may take 0.6 %.
pub async fn idle(cluster: &mut Cluster, time: Duration) -> Row {
    let mut row = Row::new("idle", cluster.size);
    cluster.run_for(Duration::from_secs(10)).await;
    count_sent(cluster);
    let before: Vec<(u64, u64)> = (1..=cluster.size).map(|n| cluster.usage(n)).collect();
    let start = tokio::time::Instant::now();
    cluster.run_for(time).await;
    let (after, seconds): (Vec<(u64, u64)>, f64) =
        ((1..=cluster.size).map(|n| cluster.usage(n)).collect(), start.elapsed().as_secs_f64());
    let cpu: Vec<f64> =
        before.iter().zip(&after).map(|(before, after)| (after.0 - before.0) as f64 / seconds).collect();
    let rss = after.iter().map(|usage| usage.1).max().unwrap() as f64 / 1e6;
    let [udp, tcp] = sent(cluster).map(|plane| plane as f64 / seconds / cluster.size as f64);
    let joining_ms = before.iter().map(|(ticks, _)| ticks * 10).sum::<u64>() as f64 / cluster.size as f64;
    let (cpu_mean, cpu_max) = (cpu.iter().sum::<f64>() / cpu.len() as f64, cpu.iter().copied().fold(0.0, f64::max));
    row.rounds = 1;
    row.note = format!(
        "{seconds:.0} s: CPU {cpu_mean:.2} % of a core (max {cpu_max:.2}), RSS {rss:.1} MB, sent {udp:.0} B/s udp + {tcp:.0} B/s tcp with headers; started and joined for {joining_ms:.0} ms of CPU"
    );
    assert!(rss <= 30.0, "resident set: {row}");
    let cpu_max_percent = if cluster.is_tls() && cluster.size < 20 { 0.6 } else { 0.3 };
    assert!(cpu_mean <= cpu_max_percent, "idle CPU above {cpu_max_percent} %: {row}");
    row
}
