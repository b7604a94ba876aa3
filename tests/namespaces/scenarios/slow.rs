//! A peer that takes in little or nothing while the others go on writing: it costs them no memory and no time.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;

use super::false_deaths;
use crate::{
    cluster::Cluster,
    inside::is_equal,
    load::{KEYS, Load},
    report::{Row, percentile},
};

/// Updates asked for per second, in all. What was made of that is in the table.
const RATE: usize = 5000;

/// What a donor may grow by (DESIGN §4).
const GROWTH_MAX: u64 = 8 << 20;

/// How long an update may take to the other peers, 99 of 100 times.
pub const SPREAD_P99_MAX: Duration = Duration::from_millis(150);

/// From the release until the peer has everything.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);

/// What is wrong with the peer.
#[derive(Clone, Copy, Debug)]
pub enum Burden {
    /// Its link carries 10 kB/s each way.
    SlowLink,
    /// SIGSTOP.
    Stopped,
}

impl Burden {
    fn begin(self, cluster: &Cluster, n: usize) {
        match self {
            Self::SlowLink => {
                link(cluster, n, &["add", "root", "tbf", "rate", "80kbit", "burst", "4kb", "latency", "1s"]);
            }
            Self::Stopped => cluster.signal(n, Signal::SIGSTOP),
        }
    }

    fn end(self, cluster: &Cluster, n: usize) {
        match self {
            Self::SlowLink => link(cluster, n, &["del", "root"]),
            Self::Stopped => cluster.signal(n, Signal::SIGCONT),
        }
    }
}

/// Changes the queue of host `n`'s link, on both ends.
fn link(cluster: &Cluster, n: usize, change: &[&str]) {
    for (host, interface) in [(n, "eth0".to_owned()), (0, format!("v{n}"))] {
        let mut command = cluster.hosts.command(host, "tc");
        command.args(["qdisc", change[0], "dev", &interface]).args(&change[1..]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "tc {change:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// All but the last node write for `before`, then for `time` while the last is burdened.
pub async fn burdened(cluster: &mut Cluster, burden: Burden, name: &str, before: Duration, time: Duration) -> Row {
    let mut row = Row::new(name, cluster.size);
    let (since, slow, donors) = (SystemTime::now(), cluster.size, cluster.size - 1);
    let load = Load::start(cluster, donors, RATE);
    let usual = peak(cluster, donors, before).await;
    let calm = load.finish().await;

    burden.begin(cluster, slow);
    let load = Load::start(cluster, donors, RATE);
    let strained = peak(cluster, donors, time).await;
    let told = load.finish().await;
    burden.end(cluster, slow);
    let is_caught_up = |cluster: &Cluster| is_equal(cluster, "policies", KEYS + 1);
    let caught_up = cluster.wait_for(CAUGHT_UP_WITHIN * 6, "the same everywhere", is_caught_up).await;

    let growth = usual.iter().zip(&strained).map(|(usual, strained)| strained.saturating_sub(*usual)).max().unwrap();
    let [p99, calm_p99] = [&told, &calm].map(|load| percentile(&load.spread, 99));
    let rate = told.writes as f64 / time.as_secs_f64();
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::from([slow]));
    row.rounds = 1;
    row.note = format!(
        "{} s, {rate:.0} updates/s, donors grew {:.1} MiB at most, p99 to the others {} ms ({} ms without it), caught up in {:.2} s",
        time.as_secs(),
        growth as f64 / f64::from(1 << 20),
        p99.as_millis(),
        calm_p99.as_millis(),
        caught_up.as_secs_f64(),
    );
    assert!(told.writes > 0 && told.spread.len() > 10, "updates were made and seen: {row}");
    assert!(growth <= GROWTH_MAX, "donors grew: {row}");
    assert!(caught_up <= CAUGHT_UP_WITHIN, "caught up: {row}");
    row.spread_p99 = Some(p99);
    row
}

/// The greatest resident set of each of the nodes 1 to `donors` within `time`, in bytes.
async fn peak(cluster: &Cluster, donors: usize, time: Duration) -> Vec<u64> {
    let start = tokio::time::Instant::now();
    let mut peak = vec![0; donors];
    while start.elapsed() < time {
        cluster.run_for(Duration::from_millis(500)).await;
        for (n, peak) in (1..).zip(&mut peak) {
            *peak = cluster.usage(n).1.max(*peak);
        }
    }
    peak
}
