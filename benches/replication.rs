//! The figures that replication is held to, each beside its goal. Run with `cargo bench --bench replication`, with a part
//! of a row's name after `--` for that row alone.
//!
//! Times of the simulated cluster are virtual, with 1 ms from node to node; they and the bytes hold on every machine.
//! Rates hold for the core that printed them. `SMG_BENCH_HOURS=24` lets the churn go on for a day instead of an hour.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use cap::Cap;
use smg::mesh::{
    crdt::{
        context::VersionVector,
        delta::{Body, Cover, KeyState, Live},
        dot::{Actor, ActorId, Dot, Key},
        map::Map,
    },
    hlc::Timestamp,
    replication::SyncEvent,
    sim::replication::Cluster,
    stores::{Namespace, PolicySpec, StoreEvent, WorkerId, WorkerObservation, WorkerOrigin, WorkerSpec, WorkerState},
};

#[global_allocator]
static ALLOCATOR: Cap<mimalloc::MiMalloc> = Cap::new(mimalloc::MiMalloc, usize::MAX);

const SECOND: Duration = Duration::from_secs(1);

type Row = (&'static str, fn() -> Vec<Figure>);

/// A measured value, what it is to reach, and whether it does.
struct Figure {
    measured: String,
    goal: &'static str,
    is_met: bool,
}

fn figure(measured: String, goal: &'static str, is_met: bool) -> Figure {
    Figure { measured, goal, is_met }
}

fn main() {
    const ROWS: [Row; 9] = [
        ("one entry to all, n=5", one_entry),
        ("1 000 entries to all, n=5", thousand_entries),
        ("reconcile 10 of 100 k", reconcile),
        ("heal a 50/50 partition of 10 min, 10 k writes on each side", heal),
        ("heal 3|2, 10 k workers added and removed a side, seen by all", heal_of_gateways),
        ("join with 100 k entries, n=5", join_of_100k),
        ("small deltas, one key each", small_deltas),
        ("deltas of 1 000 keys", large_deltas),
        ("add and remove 1 k keys/s", churn),
    ];
    let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (name, measure) in ROWS {
        if only.is_empty() || only.iter().any(|part| name.contains(part.as_str())) {
            for Figure { measured, goal, is_met } in measure() {
                println!("{name} | {measured} | goal {goal} | {}", if is_met { "met" } else { "MISSED" });
            }
        }
    }
}

// --- in virtual time ---

/// Lets a cluster run until all nodes have equal roots; gives the virtual time that took.
fn run_until_equal(cluster: &mut Cluster, limit: Duration) -> Duration {
    let mut took = Duration::ZERO;
    while !has_equal_roots(cluster) && took < limit {
        cluster.run_for(Duration::from_millis(1));
        took += Duration::from_millis(1);
    }
    took
}

fn has_equal_roots(cluster: &Cluster) -> bool {
    Namespace::ALL.iter().all(|namespace| {
        let mut roots = cluster.nodes.iter().map(|node| node.stores.map(*namespace).root());
        let first = roots.next();
        roots.all(|root| Some(root) == first)
    })
}

fn put_policy(cluster: &mut Cluster, node: usize, index: usize, pad: usize) -> usize {
    let model = format!("org/model-{index:06}");
    let config_json = format!("{{\"pad\":\"{pad:0170}\"}}");
    let wall_ms = cluster.wall_ms();
    let policy = PolicySpec { policy: "power_of_two".into(), config_json };
    cluster.nodes[node].stores.put_policy(wall_ms, &model, &policy).unwrap();
    let map = cluster.nodes[node].stores.map(Namespace::Policies);
    model.len() + map.get(model.as_bytes()).map(|live| live.payload.len()).sum::<usize>()
}

fn one_entry() -> Vec<Figure> {
    let mut cluster = Cluster::new(5, Instant::now());
    cluster.run_for(SECOND);
    let mut times = Vec::new();
    for index in 0..500 {
        put_policy(&mut cluster, index % 5, index, 0);
        times.push(run_until_equal(&mut cluster, SECOND));
        cluster.run_for(Duration::from_millis(37));
    }
    times.sort();
    let (p50, p99) = (times[250], times[495]);
    vec![figure(
        format!("p50 {p50:?}, p99 {p99:?} after 500 writes"),
        "p99 <= 100 ms",
        p99 <= Duration::from_millis(100),
    )]
}

fn thousand_entries() -> Vec<Figure> {
    let mut cluster = Cluster::new(5, Instant::now());
    cluster.run_for(SECOND);
    let (mut times, mut payload) = (Vec::new(), 0);
    cluster.bytes = 0;
    for round in 0..100 {
        payload += (0..1000).map(|index| 4 * put_policy(&mut cluster, round % 5, index, round)).sum::<usize>();
        times.push(run_until_equal(&mut cluster, 5 * SECOND));
        cluster.run_for(5 * SECOND);
    }
    times.sort();
    let (p99, ratio) = (times[98], cluster.bytes as f64 / payload as f64);
    let measured = format!("p99 {p99:?}, {ratio:.2} x the payload, acks of 5 s included");
    vec![figure(measured, "p99 <= 300 ms, <= 1.3 x", p99 <= Duration::from_millis(300) && ratio <= 1.3)]
}

fn reconcile() -> Vec<Figure> {
    let mut cluster = Cluster::new(2, Instant::now());
    for index in 0..100_000 {
        put_policy(&mut cluster, index % 2, index, 0);
    }
    run_until_equal(&mut cluster, 60 * SECOND);
    cluster.run_for(5 * SECOND);
    cluster.set_cut(0, 1, true);
    let entries: usize = (0..10).map(|index| put_policy(&mut cluster, index % 2, 7919 * index, 1)).sum();
    cluster.run_for(SECOND);
    cluster.bytes = 0;
    cluster.set_cut(0, 1, false);
    let took = run_until_equal(&mut cluster, 5 * SECOND);
    let beyond = cluster.bytes.saturating_sub(entries);
    let measured = format!("{took:?} with 1 ms each way, {beyond} B beside {entries} B of entries");
    vec![figure(measured, "one round trip, <= 2 kB beside", took <= Duration::from_millis(3) && beyond <= 2000)]
}

fn heal() -> Vec<Figure> {
    let mut cluster = Cluster::new(6, Instant::now());
    cluster.run_for(SECOND);
    cluster.partition(&[0, 1, 2], true);
    for second in 0..600 {
        for (side, write) in (0..2).flat_map(|side| (0..17).map(move |write| (side, write))) {
            // A tenth of the keys is written on both sides.
            let index = second * 17 + write + if write == 0 { 0 } else { side * 20_000 };
            put_policy(&mut cluster, side * 3 + write % 3, index, side);
        }
        cluster.run_for(SECOND);
    }
    cluster.partition(&[0, 1, 2], false);
    let took = run_until_equal(&mut cluster, 60 * SECOND);
    let keys = cluster.nodes[0].stores.map(Namespace::Policies).len();
    let is_met = took <= 3 * SECOND && cluster.is_equal() && keys > 19_000;
    vec![figure(format!("equal roots after {took:?}, {keys} keys"), "<= 3 s", is_met)]
}

/// Gateways that see each worker, as in `tests/namespaces/run state`: after the healing each has to learn of the workers of
/// the other side, to forget what that removed, and to say what it sees of those that are new to it.
fn heal_of_gateways() -> Vec<Figure> {
    const COUNT: usize = 10_000;
    let mut cluster = Cluster::new(5, Instant::now());
    let change = |cluster: &mut Cluster, nodes: [usize; 2], indexes: std::ops::Range<usize>, adds: bool| {
        for index in indexes {
            let (wall_ms, stores) = (cluster.wall_ms(), &mut cluster.nodes[nodes[index % 2]].stores);
            if adds {
                stores.put_worker(wall_ms, worker(index));
            } else {
                stores.remove_worker(wall_ms, &WorkerId::of_url(&worker(index).url));
            }
            if index % 200 == 0 {
                run_seeing(cluster, Duration::from_millis(50));
            }
        }
        run_seeing(cluster, 2 * SECOND);
    };
    change(&mut cluster, [0, 1], 0..12 * COUNT / 10, true);
    cluster.partition(&[0, 1], true);
    change(&mut cluster, [0, 1], 0..COUNT, false);
    change(&mut cluster, [2, 3], COUNT / 5..12 * COUNT / 10, false);
    change(&mut cluster, [0, 1], 2 * COUNT..3 * COUNT, true);
    change(&mut cluster, [2, 3], 25 * COUNT / 10..345 * COUNT / 100, true);
    change(&mut cluster, [2, 3], 0..COUNT / 20, true);
    cluster.nodes.iter_mut().for_each(|node| node.events.clear());
    cluster.bytes = 0;
    cluster.partition(&[0, 1], false);
    let (start, mut took) = (Instant::now(), Duration::ZERO);
    while (!has_equal_roots(&cluster) || cluster.nodes[0].stores.workers().len() != 3 * COUNT / 2) && took < 60 * SECOND
    {
        run_seeing(&mut cluster, Duration::from_millis(10));
        took += Duration::from_millis(10);
    }
    let (cpu, mut sent) = (start.elapsed(), [(0, 0); 2]);
    for event in cluster.nodes.iter().flat_map(|node| &node.events) {
        let (slot, size) = match event {
            SyncEvent::SnapshotSent { chunk_bytes, .. } => (&mut sent[0], chunk_bytes),
            SyncEvent::DeltaSent { delta_bytes, .. } => (&mut sent[1], delta_bytes),
            _ => continue,
        };
        (slot.0, slot.1) = (slot.0 + 1, slot.1 + size);
    }
    let measured = format!(
        "equal roots after {took:?}, {cpu:.2?} of CPU for all nodes, {} chunks of {:.1} MB and {} deltas of {:.1} MB",
        sent[0].0,
        sent[0].1 as f64 / 1e6,
        sent[1].0,
        sent[1].1 as f64 / 1e6,
    );
    vec![figure(measured, "<= 3 s", took <= 3 * SECOND && cluster.is_equal())]
}

/// Lets a cluster run in which each node says of each worker that it learns of that it is ready.
fn run_seeing(cluster: &mut Cluster, duration: Duration) {
    let mut left = duration;
    while !left.is_zero() {
        let step = left.min(Duration::from_millis(10));
        cluster.run_for(step);
        left -= step;
        let wall_ms = cluster.wall_ms();
        for node in &mut cluster.nodes {
            let mut changed = Vec::new();
            while let Some(event) = node.stores.poll_event() {
                match event {
                    StoreEvent::WorkerChanged(id) => changed.push(id),
                    StoreEvent::ManyChanged => {
                        changed = node.stores.workers().into_iter().map(|worker| worker.id).collect();
                    }
                    _ => {}
                }
            }
            let seen = WorkerObservation { state: WorkerState::Ready, models: Vec::new(), failing_until_ms: 0 };
            changed.iter().for_each(|id| node.stores.observe_worker(wall_ms, id, &seen));
        }
    }
}

fn join_of_100k() -> Vec<Figure> {
    let mut cluster = Cluster::new(5, Instant::now());
    let payload: usize = (0..100_000).map(|index| put_policy(&mut cluster, 0, index, 0)).sum();
    run_until_equal(&mut cluster, 60 * SECOND);
    cluster.bytes = 0;
    cluster.restart(4);
    let start = Instant::now();
    let took = run_until_equal(&mut cluster, 60 * SECOND);
    let (cpu, ratio) = (start.elapsed(), cluster.bytes as f64 / payload as f64);
    let measured = format!("{took:?} virtual, {cpu:.2?} of CPU for all nodes, {ratio:.2} x the payload");
    vec![figure(measured, "<= 2 s of CPU, <= 1.3 x", cpu <= 2 * SECOND && ratio <= 1.3 && cluster.is_equal())]
}

/// Workers that come and go: each second a thousand are added and those of ten seconds ago removed, on two nodes in turn.
fn churn() -> Vec<Figure> {
    let hours: usize = std::env::var("SMG_BENCH_HOURS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut cluster = Cluster::new(2, Instant::now());
    let (mut samples, mut live) = (Vec::new(), 0);
    for tick in 0..hours * 36_000 {
        for index in tick * 100..tick * 100 + 100 {
            let (add_at, remove_at, wall_ms) = (index % 2, index / 2 % 2, cluster.wall_ms());
            cluster.nodes[add_at].stores.put_worker(wall_ms, worker(index));
            if let Some(old) = index.checked_sub(10_000) {
                cluster.nodes[remove_at].stores.remove_worker(wall_ms, &WorkerId::of_url(&worker(old).url));
            }
        }
        cluster.run_for(Duration::from_millis(100));
        cluster.nodes.iter_mut().for_each(|node| {
            node.events.clear();
            while node.stores.poll_event().is_some() {}
        });
        // A sample each minute, once the cache of removes is full.
        if tick >= 3000 && tick % 600 == 0 {
            samples.push(ALLOCATOR.allocated());
            live = cluster.nodes[0].stores.map(Namespace::Workers).len();
        }
    }
    let (least, most) = (samples.iter().min().unwrap(), samples.iter().max().unwrap());
    let mean = samples.iter().sum::<usize>() as f64 / samples.len() as f64;
    let spread = (*most as f64 - mean).max(mean - *least as f64) / mean * 100.0;
    let trend = (samples[samples.len() - 1] as f64 - samples[0] as f64) / samples[0] as f64 * 100.0;
    let measured = format!(
        "{hours} h virtual, {live} live keys: {:.1} MB on both nodes +- {spread:.1} %, {trend:+.1} % from first to last",
        mean / 1e6
    );
    vec![figure(measured, "flat +- 5 %", spread <= 5.0)]
}

fn worker(index: usize) -> WorkerSpec {
    WorkerSpec {
        url: format!("http://worker-{index:010}.example:8000"),
        models: Vec::new(),
        api_key: None,
        zone: String::new(),
        origin: WorkerOrigin::Api,
        draining: false,
    }
}

// --- in the core, by the wall clock ---

fn actor(node: &str) -> Actor {
    Actor { node: node.parse().unwrap(), boot_epoch_ms: 1 }
}

/// Deltas of one key each, joined into a namespace of 1 000 keys.
fn small_deltas() -> Vec<Figure> {
    const DELTAS: u64 = 500_000;
    let (writer, actor_id) = (actor("writer"), ActorId(0));
    let body = |counter: u64| {
        let key = Key::from(format!("w-{:016x}/spec", counter % 1000).as_bytes());
        let dot = Dot { actor: actor_id, counter };
        let live = Live { dot, stamp: Timestamp::new(counter, 0), payload: [7; 100][..].into() };
        Body {
            actors: vec![writer.clone()],
            context: vec![(actor_id, counter)],
            keys: vec![KeyState { key, live: vec![live], records: Vec::new(), guard: Vec::new() }],
            covers: vec![Cover { actor: actor_id, from: counter - 1, to: counter }],
            ..Body::default()
        }
    };
    let bodies: Vec<Body> = (1..=DELTAS).map(body).collect();
    let (mut map, mut peer) = (Map::new(&actor("reader")), VersionVector::default());
    let start = Instant::now();
    let joined = bodies.into_iter().filter_map(|body| map.apply(&mut peer, body).ok()).count();
    let rate = joined as f64 / start.elapsed().as_secs_f64() / 1e6;
    vec![figure(format!("{rate:.2} M/s on one core"), ">= 1 M/s", rate >= 1.0)]
}

/// The same writes as they arrive when there are many.
fn large_deltas() -> Vec<Figure> {
    let mut source = Map::new(&actor("writer"));
    let (mut map, mut peer) = (Map::new(&actor("reader")), VersionVector::default());
    let (mut joined, mut spent) = (0, Duration::ZERO);
    for round in 0..300_u64 {
        let from = source.seen().get(source.own());
        for index in 0..1000_u64 {
            source.write(format!("w-{index:016x}/spec").as_bytes(), Timestamp::new(round, 0), &[7; 100]);
        }
        let to = source.seen().get(source.own());
        let keys: Vec<KeyState> = source.range_from(b"").map(|(key, _)| source.key_state(key)).collect();
        joined += keys.len();
        let body = Body {
            actors: vec![actor("writer")],
            context: vec![(ActorId(0), to)],
            keys,
            covers: vec![Cover { actor: ActorId(0), from, to }],
            ..Body::default()
        };
        let start = Instant::now();
        map.apply(&mut peer, body).unwrap();
        spent += start.elapsed();
    }
    let rate = joined as f64 / spent.as_secs_f64() / 1e6;
    vec![figure(format!("{rate:.2} M keys/s on one core"), ">= 1 M keys/s", rate >= 1.0)]
}
