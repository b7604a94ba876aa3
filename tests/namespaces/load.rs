//! Updates through the public API, and how long one takes to be seen elsewhere.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::time::MissedTickBehavior;

use crate::{cluster::Cluster, http::Connection, inside::on_host};

/// Connections of one writer: a write is answered when the writer's routing table shows it, some 10 ms later.
const CONNECTIONS: usize = 48;

/// Keys that the writers go round in; the live state is these and the marker.
pub const KEYS: usize = 1000;

/// Between two writes of the marker.
const MARK_INTERVAL: Duration = Duration::from_millis(200);

/// Between two looks of a reader: the resolution of what is measured.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The marker's values, in turn, so that what a reader sees tells which write it was.
const TURNS: [&str; 5] = ["random", "round_robin", "power_of_two", "least_load", "prefix_hash"];

/// Clients that write and look until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    writers: Vec<Pin<Box<dyn Future<Output = ()>>>>,
    marker: Pin<Box<dyn Future<Output = Vec<Instant>>>>,
    readers: Vec<Pin<Box<dyn Future<Output = Seen>>>>,
}

/// What one reader saw: the marker's turn, when it changed.
type Seen = Vec<(Instant, usize)>;

/// What a load was in numbers.
#[derive(Debug)]
pub struct Measured {
    pub writes: u64,
    /// From the request that wrote a marker to the first look, per marker and reader, that showed it or a later one.
    pub spread: Vec<Duration>,
}

impl Load {
    /// Writes at nodes 1 to `writers`, `rate` a second in all, and looks at nodes 2 to `writers`.
    pub fn start(cluster: &Cluster, writers: usize, rate: usize) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pause =
            Duration::from_secs(1) * u32::try_from(CONNECTIONS * writers).unwrap() / u32::try_from(rate).unwrap();
        let write = |n: usize| {
            let (stop, made) = (stop.clone(), made.clone());
            let work = move || async move {
                join_all((0..CONNECTIONS).map(|i| write(&stop, &made, pause, n * CONNECTIONS + i))).await;
            };
            Box::pin(on_host(cluster, n, work)) as Pin<Box<dyn Future<Output = ()>>>
        };
        let writing = (1..=writers).map(write).collect();
        let marking = stop.clone();
        let marker = Box::pin(on_host(cluster, 1, move || async move { mark(&marking).await }));
        let read = |n: usize| {
            let stop = stop.clone();
            Box::pin(on_host(cluster, n, move || async move { look(&stop).await }))
                as Pin<Box<dyn Future<Output = Seen>>>
        };
        let readers = (2..=writers).map(read).collect();
        Self { stop, made, writers: writing, marker, readers }
    }

    /// Stops the clients; every write is acknowledged.
    pub async fn finish(self) -> Measured {
        self.stop.store(true, Relaxed);
        join_all(self.writers).await;
        let marked = self.marker.await;
        let seen = join_all(self.readers).await;
        let spread = seen.iter().flat_map(|seen| spread(&marked, seen)).collect();
        Measured { writes: self.made.load(Relaxed), spread }
    }
}

/// Sets the policies of `load0`, `load1`, … in turn, one per `pause`, beginning with that of `start`.
async fn write(stop: &AtomicBool, made: &AtomicU64, pause: Duration, start: usize) {
    let mut connection = Connection::open().await.unwrap();
    let mut pace = tokio::time::interval(pause);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut key = start * 31;
    while !stop.load(Relaxed) {
        pace.tick().await;
        key += 1;
        let body = format!("{{\"policy\":\"{}\"}}", TURNS[key / KEYS % TURNS.len()]);
        let (status, answer) =
            connection.send("PUT", &format!("/ha/policies/load{}", key % KEYS), &body).await.unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        made.fetch_add(1, Relaxed);
    }
}

/// Sets the marker to one turn after the other; when each was asked for.
async fn mark(stop: &AtomicBool) -> Vec<Instant> {
    let mut connection = Connection::open().await.unwrap();
    let mut pace = tokio::time::interval(MARK_INTERVAL);
    let mut marked = Vec::new();
    while !stop.load(Relaxed) {
        pace.tick().await;
        let body = format!("{{\"policy\":\"{}\"}}", TURNS[marked.len() % TURNS.len()]);
        marked.push(Instant::now());
        let (status, _) = connection.send("PUT", "/ha/policies/marker", &body).await.unwrap();
        assert_eq!(status, 200, "marker");
    }
    marked
}

/// Looks at the marker again and again.
async fn look(stop: &AtomicBool) -> Seen {
    let mut connection = Connection::open().await.unwrap();
    let mut pace = tokio::time::interval(LOOK_INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut seen: Seen = Vec::new();
    while !stop.load(Relaxed) {
        pace.tick().await;
        // 404 before the first.
        let Ok(marker) = connection.get("/ha/policies/marker").await else { continue };
        let turn = TURNS.iter().position(|turn| marker["policy"] == *turn).unwrap();
        if seen.last().is_none_or(|(_, last)| *last != turn) {
            seen.push((Instant::now(), turn));
        }
    }
    seen
}

/// How long each mark took to be seen, itself or a later one; of the last ones, which the end cut off, only what is known.
fn spread(marked: &[Instant], seen: &Seen) -> Vec<Duration> {
    let mut found = Vec::new();
    let mut next = 0;
    for (at, turn) in seen {
        // The newest mark of this turn that had been asked for by then.
        let newest = marked.iter().enumerate().rev().find(|(mark, asked)| mark % TURNS.len() == *turn && *asked <= at);
        let Some((mark, _)) = newest.filter(|(mark, _)| *mark >= next) else { continue };
        found.extend(marked[next..=mark].iter().map(|asked| *at - *asked));
        next = mark + 1;
    }
    found
}

#[test]
fn a_mark_counts_from_its_request_to_the_first_look_that_shows_it_or_a_later_one() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let marked = [at(0), at(200), at(400), at(600)];
    // The second was never seen by itself.
    let seen = vec![(at(20), 0), (at(450), 2), (at(610), 3)];
    let ms: Vec<u128> = spread(&marked, &seen).iter().map(Duration::as_millis).collect();
    assert_eq!(ms, [20, 250, 50, 10]);
}
