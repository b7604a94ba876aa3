//! The measures, taken of clusters of the machines that ship.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use smg::mesh::{node::NodeStatus, sim::membership::Cluster};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// What detections took.
#[derive(Default)]
pub struct Detections {
    pub suspected: Vec<Duration>,
    pub down: Vec<Duration>,
    pub missed: usize,
    pub seeds: u64,
    pub hash: u64,
    /// Virtual time by time of the processor, after the forming.
    pub speed: f64,
    /// Time of the processor that one cluster took to form.
    pub forming: Duration,
}

/// What happened to healthy nodes.
#[derive(Default)]
pub struct Disturbance {
    pub false_downs: u64,
    pub suspicions: u64,
    pub hash: u64,
}

impl Disturbance {
    fn add(&mut self, cluster: &Cluster) {
        self.false_downs += cluster.checker.false_downs;
        self.suspicions += cluster.checker.suspicions;
        self.hash = mix(self.hash, cluster);
    }
}

fn mix(hash: u64, cluster: &Cluster) -> u64 {
    hash.rotate_left(1) ^ cluster.trace.hash()
}

/// Time of the processor that this process has used: what else runs on the machine does not count.
fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec as u32)
}

/// A cluster that has formed and has nothing more to tell.
fn settled(seed: u64, count: usize) -> Cluster {
    let mut cluster = Cluster::converged(seed, count);
    // λ·log n sendings of each record by each node take 21 s for a thousand.
    cluster.run_for(Duration::from_secs(if count > 100 { 30 } else { 5 }));
    cluster
}

/// From the crash of one node to DOWN in every view.
///
/// Large clusters take long to form, since everybody is news to everybody: each is used for several crashes, each of
/// another node that starts again afterwards.
pub fn detection(count: usize, crashes: usize, kernel_alive: bool) -> Detections {
    let each = if count >= 100 { 10 } else { 1 };
    let mut found = Detections { seeds: crashes.div_ceil(each) as u64, ..Detections::default() };
    let (mut running, mut virtual_time) = (Duration::ZERO, Duration::ZERO);
    for seed in 1..=found.seeds {
        let began = processor_time();
        let mut cluster = settled(seed, count);
        found.forming += processor_time() - began;
        let (began, formed) = (processor_time(), cluster.elapsed());
        for victim in 1..=each {
            crash(&mut cluster, victim, kernel_alive, &mut found);
        }
        virtual_time += cluster.elapsed() - formed;
        running += processor_time() - began;
        found.hash = mix(found.hash, &cluster);
    }
    found.speed = virtual_time.as_secs_f64() / running.as_secs_f64();
    found.forming = found.forming.div_f64(found.seeds as f64);
    found
}

/// One crash, waited for and mended.
fn crash(cluster: &mut Cluster, victim: usize, kernel_alive: bool, found: &mut Detections) {
    let wait = Duration::from_millis(5000 + cluster.random(1000));
    cluster.run_for(wait);
    if kernel_alive {
        cluster.kill(victim);
    } else {
        cluster.crash(victim);
    }
    let first = cluster.run_until(LIMIT, |c| c.running().any(|by| c.status(by, victim) == Some(NodeStatus::Suspected)));
    let rest = cluster.run_until(LIMIT, |c| c.all_see(victim, NodeStatus::Down));
    match (first, rest) {
        (Some(first), Some(rest)) => {
            found.suspected.push(first);
            found.down.push(first + rest);
        }
        _ => found.missed += 1,
    }
    cluster.restart(victim, None, Duration::ZERO);
    cluster.run_until(LIMIT, Cluster::is_converged);
}

/// From the start of one more node to ALIVE in every view.
pub fn spread(count: usize, seeds: u64) -> (Vec<Duration>, u64) {
    let (mut took, mut hash) = (Vec::new(), 0);
    for seed in 1..=seeds {
        let mut cluster = settled(seed, count);
        let addr = cluster.nodes[0].addr;
        let newcomer = cluster.add(vec![addr]);
        took.extend(cluster.run_until(LIMIT, |c| c.all_see(newcomer, NodeStatus::Alive)));
        hash = mix(hash, &cluster);
    }
    (took, hash)
}

/// What an idle cluster takes.
pub struct Idle {
    /// Bytes that a node sends per second, IPv4 and UDP headers included.
    pub bytes: u64,
    /// Virtual time by time of the processor.
    pub speed: f64,
    pub hash: u64,
}

pub fn idle(count: usize) -> Idle {
    const SPAN: Duration = Duration::from_secs(20);
    let mut cluster = settled(1, count);
    cluster.run_for(Duration::from_secs(10));
    let sent = |cluster: &Cluster| cluster.nodes.iter().map(|node| node.sent_bytes).sum::<u64>();
    let (before, began) = (sent(&cluster), processor_time());
    cluster.run_for(SPAN);
    let speed = SPAN.as_secs_f64() / (processor_time() - began).as_secs_f64();
    let bytes = (sent(&cluster) - before) / SPAN.as_secs() / count as u64;
    Idle { bytes, speed, hash: mix(0, &cluster) }
}

/// Virtual time and time of the processor of each phase in the life of one cluster.
pub fn phases(count: usize) -> Vec<(&'static str, Duration, Duration)> {
    let mut cluster = Cluster::new(1);
    let mut phases = Vec::new();
    let mut phase = |name, cluster: &mut Cluster, run: &dyn Fn(&mut Cluster)| {
        let (from, began) = (cluster.elapsed(), processor_time());
        run(cluster);
        phases.push((name, cluster.elapsed() - from, processor_time() - began));
    };
    phase("forming", &mut cluster, &|cluster| {
        let seed = cluster.add(Vec::new());
        let seeds = vec![cluster.nodes[seed].addr];
        (1..count).for_each(|_| _ = cluster.add(seeds.clone()));
        cluster.run_until(LIMIT * 3, Cluster::is_converged);
    });
    phase("news dies out", &mut cluster, &|cluster| cluster.run_for(Duration::from_secs(40)));
    phase("idle", &mut cluster, &|cluster| cluster.run_for(Duration::from_secs(60)));
    phase("a crash, until DOWN everywhere", &mut cluster, &|cluster| {
        cluster.crash(1);
        cluster.run_until(LIMIT, |cluster| cluster.all_see(1, NodeStatus::Down));
    });
    phase("the verdict dies out", &mut cluster, &|cluster| cluster.run_for(Duration::from_secs(40)));
    phase("10 % loss", &mut cluster, &|cluster| {
        cluster.network.loss = 0.1;
        cluster.run_for(Duration::from_secs(20));
    });
    phases
}

/// Verdicts over healthy nodes while datagrams get lost.
pub fn loss(count: usize, loss: f64, seeds: u64, time: Duration) -> Disturbance {
    let mut found = Disturbance::default();
    for seed in 1..=seeds {
        let mut cluster = Cluster::converged(seed, count);
        cluster.network.loss = loss;
        cluster.run_for(time);
        found.add(&cluster);
    }
    found
}

/// Ten times a fifth of the nodes do not run for 2 s, each time others.
pub fn stalls(count: usize, seeds: u64) -> Disturbance {
    let mut found = Disturbance::default();
    for seed in 1..=seeds {
        let mut cluster = settled(seed, count);
        for round in 0..10 {
            for index in (0..count).filter(|index| (index + round) % 5 == 0) {
                cluster.stall(index, Duration::from_secs(2));
            }
            cluster.run_for(Duration::from_secs(10));
        }
        found.add(&cluster);
    }
    found
}

/// Four of twenty nodes run for 25 ms of each 100 ms, as under a CPU quota, for a minute.
pub fn quota(seeds: u64) -> Disturbance {
    let mut found = Disturbance::default();
    for seed in 1..=seeds {
        let mut cluster = settled(seed, 20);
        for _ in 0..600 {
            for index in [2, 7, 12, 17] {
                cluster.stall(index, Duration::from_millis(75));
            }
            cluster.run_for(Duration::from_millis(100));
        }
        found.add(&cluster);
    }
    found
}

/// A hundred nodes start within a second and know one of them: until all see all, from the first start.
pub fn storm(seeds: u64) -> (Vec<Duration>, u64) {
    let (mut took, mut hash) = (Vec::new(), 0);
    for seed in 1..=seeds {
        let mut cluster = Cluster::new(seed);
        let first = cluster.add(Vec::new());
        let addr = cluster.nodes[first].addr;
        for _ in 1..100 {
            cluster.add(vec![addr]);
            cluster.run_for(Duration::from_millis(10));
        }
        let started = cluster.elapsed();
        took.extend(cluster.run_until(LIMIT, Cluster::is_converged).map(|rest| started + rest));
        hash = mix(hash, &cluster);
    }
    (took, hash)
}
