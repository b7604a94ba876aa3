//! Paths that delay, reorder and double what they carry, by a switch in user space.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use super::{false_deaths, unplug_one};
use crate::{
    cluster::Cluster,
    relay::{PLAIN, Rules},
    report::Row,
};

/// Three zones: 2 ms one way inside, 40 ms more or less by 10 ms between them.
pub const ZONES: Rules = Rules { zones: 3, inside_ms: 2, across_ms: 40, jitter_ms: 10, ..PLAIN };

/// A quarter of the frames is held back by 10 to 50 ms, one in a hundred comes twice.
pub const REORDER: Rules = Rules { hold_percent: 25, double_percent: 1, ..PLAIN };

/// Distance is no fault: `time` without one, then a silent crash, which is seen as soon as elsewhere.
pub async fn delayed(cluster: &mut Cluster, time: Duration) -> Row {
    let mut row = Row::new("delay 40 ± 10 ms, 3 zones", cluster.size);
    quiet_then_crash(cluster, time, &mut row).await;
    let counts = cluster.relay.take().unwrap().finish().await;
    let (frames, across) = (counts.get("frames"), counts.get("across"));
    row.note = format!(
        "{} s, {} views suspected somebody; {frames} frames, {} delayed, {across} across, {:.1} ms on average",
        time.as_secs(),
        row.suspicions,
        counts.get("delayed"),
        counts.mean_delay_ms(),
    );
    // Timers round to milliseconds, so a few of the frames inside a zone may count as not delayed.
    assert!(across > 0 && counts.get("delayed") * 100 >= frames * 95, "frames were delayed: {row}");
    // The mean lies between the delay inside and the one across by the share of each.
    let expected = 2.0 + 38.0 * across as f64 / frames as f64;
    assert!(counts.mean_delay_ms() >= 0.9 * expected, "by as much as asked, {expected:.1} ms: {row}");
    row
}

/// Nobody dies because packets overtake each other or come twice, and a silent crash is seen.
pub async fn reordered(cluster: &mut Cluster, time: Duration) -> Row {
    let mut row = Row::new("reorder 25 %, double 1 %", cluster.size);
    quiet_then_crash(cluster, time, &mut row).await;
    let counts = cluster.relay.take().unwrap().finish().await;
    let [frames, held_back, overtaken, doubled] =
        ["frames", "held_back", "reordered", "doubled"].map(|name| counts.get(name));
    row.note = format!(
        "{} s, {} views suspected somebody; {frames} frames, {held_back} held back, {overtaken} overtaken, {doubled} doubled",
        time.as_secs(),
        row.suspicions,
    );
    assert!(held_back * 100 >= frames * 20, "frames were held back: {row}");
    assert!(overtaken > 0 && doubled > 0, "frames were overtaken and doubled: {row}");
    row
}

/// Lets the cluster run, then unplugs one host.
async fn quiet_then_crash(cluster: &mut Cluster, time: Duration, row: &mut Row) {
    let since = SystemTime::now();
    cluster.run_for(time).await;
    row.suspicions = cluster.turns_since(since).iter().filter(|turn| turn.status == "SUSPECTED").count();
    row.false_deaths = false_deaths(cluster, since, &BTreeSet::new());
    unplug_one(cluster, row, cluster.size).await;
    row.rounds = 1;
}
