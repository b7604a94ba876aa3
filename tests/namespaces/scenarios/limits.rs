//! One limit over five nodes: no window in which more is admitted than it allows, and hardly anything left unused.
//!
//! Every host has clients and a worker of its own, so a cut keeps no request from being answered, only rights from moving.
//! A request is admitted between its sending and its answer. So a window holds for certain what was sent and answered in
//! it, and that must be no more than limit·τ + burst, in every window of every phase.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::time::MissedTickBehavior;

use super::{leader, note_whole, split_off};
use crate::{
    cluster::{Cluster, program},
    harness::Process,
    http::Connection,
    inside::on_host,
    report::Row,
};

/// Requests a second of the whole cluster, as the flags of [`ARGS`] say it.
const LIMIT: f64 = 100.0;

/// Requests at once.
const BURST: f64 = 20.0;

/// What the nodes are started with.
pub const ARGS: [&str; 10] = [
    "--worker-urls",
    "http://127.0.0.1:9000",
    "--rate-limit-tokens-per-second",
    "100",
    "--rate-limit-burst",
    "20",
    "--health-check-interval-secs",
    "1",
    "--health-success-threshold",
    "1",
];

/// Requests a second of all clients together: three times what is admitted.
const DEMAND: usize = 300;

/// Clients of one host; each has one request under way.
const CLIENTS: usize = 6;

/// What must at least be used: of an even load or one on one node, after a shift, and after a kill or a cut.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub even: f64,
    pub shifted: f64,
    pub killed: f64,
}

/// Issue 8: 95 % under even load, 90 % within 2 s of a shift and within 8 s of a kill.
pub const GOAL: Use = Use { even: 0.95, shifted: 0.90, killed: 0.90 };

/// One request that was sent.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    sent: Instant,
    answered: Instant,
    end: End,
}

/// How it ended. Its client knows one gateway alone, and asks it also while it starts and leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// 200.
    Admitted,
    /// 429.
    Refused,
    /// 503 of a gateway that drains, or that has started and is not ready: a balancer would have asked another one.
    Away,
    /// Any other 5xx.
    Failed,
    /// The connection ended before the answer.
    Broken,
}

impl End {
    fn of(status: u16, body: &[u8]) -> Self {
        let says = |code: &str| String::from_utf8_lossy(body).contains(&format!("\"code\":\"{code}\""));
        match status {
            200 => Self::Admitted,
            429 => Self::Refused,
            503 if says("draining") || says("no_available_workers") => Self::Away,
            _ => Self::Failed,
        }
    }
}

/// Even, all on one, shifting every 2 s, the leader killed, cut off with one other, a rolling restart.
pub async fn shared(cluster: &mut Cluster, span: Duration, goal: Use) -> Row {
    let mut row = Row::new("limit 100/s, burst 20", cluster.size);
    let _workers: Vec<Process> = (1..=cluster.size).map(|n| worker(cluster, n)).collect();
    let load = Load::start(cluster);
    let mut phases = Phases::default();
    load.even();
    cluster.run_for(Duration::from_secs(8)).await;
    phases.measure("even", goal.even, cluster, span).await;

    load.all_on(2);
    cluster.run_for(Duration::from_secs(2)).await;
    phases.measure("all on one", goal.even, cluster, span).await;
    shifting(cluster, &load, &mut phases, goal).await;

    load.even();
    cluster.run_for(Duration::from_secs(2)).await;
    let (first, _) = leader::led(cluster, (1..=cluster.size).collect()).await;
    cluster.kill(first);
    cluster.run_for(Duration::from_secs(8)).await;
    phases.measure("8 s after the leader's death", goal.killed, cluster, span / 2).await;
    cluster.spawn(first);
    note_whole(cluster, &mut row).await;

    let (second, _) = leader::led(cluster, (1..=cluster.size).collect()).await;
    let cut = [second, second % cluster.size + 1];
    split_off(cluster, &cut);
    cluster.run_for(Duration::from_secs(8)).await;
    phases.measure("3|2, the leader in the 2", goal.killed, cluster, span).await;
    cut.iter().for_each(|n| cluster.heal(*n));
    note_whole(cluster, &mut row).await;

    let restarting = Instant::now();
    for n in 1..=cluster.size {
        cluster.stop(n).await;
        cluster.spawn(n);
        note_whole(cluster, &mut row).await;
    }
    phases.0.push(Phase { name: "rolling restart", from: restarting, to: Instant::now(), least: 0.0 });
    let seen = load.finish().await;
    row.rounds = phases.0.len();
    row.note = phases.report(&seen);
    row
}

/// Every 2 s another node has all requests; then each has them for 3 s, of which the last counts.
async fn shifting(cluster: &Cluster, load: &Load, phases: &mut Phases, goal: Use) {
    let from = Instant::now();
    for turn in 0..2 * cluster.size {
        load.all_on(turn % cluster.size + 1);
        cluster.run_for(Duration::from_secs(2)).await;
    }
    phases.0.push(Phase { name: "shifting every 2 s", from, to: Instant::now(), least: 0.0 });
    for turn in 0..cluster.size {
        load.all_on(turn % cluster.size + 1);
        cluster.run_for(Duration::from_secs(2)).await;
        phases.measure("2 s after a shift", goal.shifted, cluster, Duration::from_secs(1)).await;
    }
}

fn worker(cluster: &Cluster, n: usize) -> Process {
    let mut command = cluster.hosts.command(n, &program());
    command.args(["sim-worker", "--host", "127.0.0.1", "--port", "9000", "--model", "m1"]);
    Process::start_command(&format!("worker{n}"), &mut command, &[])
}

/// A span of time, and how much of the limit is to be used in it.
#[derive(Clone, Copy, Debug)]
struct Phase {
    name: &'static str,
    from: Instant,
    to: Instant,
    least: f64,
}

#[derive(Debug, Default)]
struct Phases(Vec<Phase>);

impl Phases {
    async fn measure(&mut self, name: &'static str, least: f64, cluster: &Cluster, span: Duration) {
        let from = Instant::now();
        cluster.run_for(span).await;
        self.0.push(Phase { name, from, to: Instant::now(), least });
    }

    /// Prints what each phase used, holds it to its goal and every window to the limit.
    fn report(&self, seen: &[Outcome]) -> String {
        let admitted: Vec<Outcome> = seen.iter().filter(|one| one.end == End::Admitted).copied().collect();
        println!("| {:<30} | used % | largest 1 s | largest 10 s | away | 5xx | broken |", "limit 100/s, burst 20");
        let mut names: Vec<&str> = self.0.iter().map(|phase| phase.name).collect();
        names.dedup();
        let mut short = Vec::new();
        for name in names {
            let parts: Vec<&Phase> = self.0.iter().filter(|phase| phase.name == name).collect();
            let during = |outcome: &&Outcome| {
                parts.iter().any(|phase| phase.from <= outcome.answered && outcome.answered <= phase.to)
            };
            let count = admitted.iter().filter(during).count() as f64;
            let time: f64 = parts.iter().map(|phase| (phase.to - phase.from).as_secs_f64()).sum();
            let used = count / (LIMIT * time);
            let (from, to) = (parts[0].from, parts[parts.len() - 1].to);
            let within: Vec<Outcome> =
                admitted.iter().filter(|one| from <= one.sent && one.answered <= to).copied().collect();
            let [second, ten] = [1, 10].map(|secs| largest(&within, Duration::from_secs(secs)));
            let ended = [End::Away, End::Failed, End::Broken]
                .map(|end| seen.iter().filter(during).filter(move |o| o.end == end));
            let [away, failed, broken] = ended.map(Iterator::count);
            println!(
                "| {name:<30} | {:>6.1} | {second:>11} | {ten:>12} | {away:>4} | {failed:>3} | {broken:>6} |",
                used * 100.0
            );
            if used < parts[0].least {
                short.push(format!("{name}: {used:.3} of {}", parts[0].least));
            }
        }
        let [second, ten] = [1, 10].map(|secs| (largest(&admitted, Duration::from_secs(secs)), secs));
        for (count, secs) in [second, ten] {
            let allowed = LIMIT * secs as f64 + BURST;
            assert!(count as f64 <= allowed, "{count} of {allowed} in {secs} s");
        }
        let [away, failed, broken] =
            [End::Away, End::Failed, End::Broken].map(|end| seen.iter().filter(|one| one.end == end).count());
        assert_eq!(failed, 0, "answers that no client should get, of {}", seen.len());
        assert!(short.is_empty(), "used too little: {short:?}");
        assert!(seen.len() > 2 * admitted.len(), "more came than the limit allows");
        format!(
            "{} requests, {} admitted, {} sent to a gateway that was away, {failed} other 5xx, {broken} broken; at most {} of 120 in 1 s, {} of 1020 in 10 s",
            seen.len(),
            admitted.len(),
            away,
            second.0,
            ten.0
        )
    }
}

/// The most that was sent and answered in one window.
fn largest(admitted: &[Outcome], window: Duration) -> usize {
    let mut sorted = admitted.to_vec();
    sorted.sort_by_key(|outcome| outcome.sent);
    let of = |(first, begin): (usize, &Outcome)| {
        let end = begin.sent + window;
        sorted[first..].iter().take_while(|one| one.sent <= end).filter(|one| one.answered <= end).count()
    };
    sorted.iter().enumerate().map(of).max().unwrap_or(0)
}

/// Clients on every host.
struct Load {
    stop: Arc<AtomicBool>,
    /// Requests a second of each host.
    rates: Arc<Vec<AtomicUsize>>,
    clients: Vec<Pin<Box<dyn Future<Output = Vec<Outcome>>>>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rates: Arc<Vec<AtomicUsize>> = Arc::new((0..cluster.size).map(|_| AtomicUsize::new(0)).collect());
        let client = |n: usize| {
            let (stop, rates) = (stop.clone(), rates.clone());
            let work =
                move || async move { join_all((0..CLIENTS).map(|_| client(&stop, &rates[n - 1]))).await.concat() };
            Box::pin(on_host(cluster, n, work)) as Pin<Box<dyn Future<Output = _>>>
        };
        let clients = (1..=cluster.size).map(client).collect();
        Self { stop, rates, clients }
    }

    fn even(&self) {
        self.rates.iter().for_each(|rate| rate.store(DEMAND / self.rates.len(), Relaxed));
    }

    fn all_on(&self, n: usize) {
        self.rates.iter().enumerate().for_each(|(i, rate)| rate.store(if i + 1 == n { DEMAND } else { 0 }, Relaxed));
    }

    async fn finish(self) -> Vec<Outcome> {
        self.stop.store(true, Relaxed);
        join_all(self.clients).await.concat()
    }
}

/// Sends its part of the host's rate until it is stopped; a node that is dead answers nothing.
async fn client(stop: &AtomicBool, rate: &AtomicUsize) -> Vec<Outcome> {
    /// Between two looks at the rate.
    const TICK: Duration = Duration::from_millis(2);
    let body = r#"{"model":"m1","max_tokens":1,"messages":[{"role":"user","content":"hello"}]}"#;
    let (mut seen, mut connection, mut due) = (Vec::new(), None, Instant::now());
    let mut pace = tokio::time::interval(TICK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Relaxed) {
        pace.tick().await;
        let per_second = rate.load(Relaxed) as f64 / CLIENTS as f64;
        if per_second == 0.0 {
            due = Instant::now();
            continue;
        }
        if Instant::now() < due {
            continue;
        }
        // One that is late sends the next in its time, not what it missed.
        due = due.max(Instant::now() - TICK) + Duration::from_secs_f64(1.0 / per_second);
        let open = match connection.take() {
            Some(open) => Ok(open),
            None => Connection::open().await,
        };
        let Ok(mut open) = open else { continue };
        let sent = Instant::now();
        let answer = open.send("POST", "/v1/chat/completions", body).await;
        let end = answer.as_ref().map_or(End::Broken, |(status, body)| End::of(*status, body));
        seen.push(Outcome { sent, answered: Instant::now(), end });
        connection = answer.is_ok().then_some(open).filter(Connection::stays_open);
    }
    seen
}

#[test]
fn an_answer_of_a_gateway_that_is_away_is_no_failure() {
    for (status, code, expected) in [
        (200, "", End::Admitted),
        (429, "rate_limit_exceeded", End::Refused),
        (503, "draining", End::Away),
        (503, "no_available_workers", End::Away),
        (503, "slot_lost", End::Failed),
        (502, "worker_reset", End::Failed),
    ] {
        let body = format!(r#"{{"error":{{"type":"x","code":"{code}","message":"y","param":null}}}}"#);
        assert_eq!(End::of(status, body.as_bytes()), expected, "{status} {code}");
    }
}

#[test]
fn a_window_holds_what_was_sent_and_answered_in_it() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let outcome = |sent, answered| Outcome { sent: at(sent), answered: at(answered), end: End::Admitted };
    let seen = [outcome(0, 5), outcome(900, 1100), outcome(990, 1000), outcome(1000, 1005), outcome(1800, 1900)];
    assert_eq!(largest(&seen, Duration::from_secs(1)), 4, "from 900 to 1900 ms");
    assert_eq!(largest(&seen[..2], Duration::from_secs(1)), 1, "the second was answered too late");
    assert_eq!(largest(&[], Duration::from_secs(1)), 0);
}
