//! The same measures of the model of memberlist.

use std::time::Duration;

use smg::mesh::{node::NodeStatus, sim::memberlist::Cluster};

/// Longest wait for a verdict.
const LIMIT: Duration = Duration::from_secs(120);

/// What happened to healthy nodes.
#[derive(Default)]
pub struct Disturbance {
    pub false_downs: u64,
    pub suspicions: u64,
}

impl Disturbance {
    fn add(&mut self, cluster: &Cluster) {
        self.false_downs += cluster.false_downs;
        self.suspicions += cluster.suspicions;
    }
}

/// From the crash of one node until everybody holds it dead.
pub fn detection(count: usize, crashes: usize) -> Vec<Duration> {
    let once = |seed: u64| {
        let mut cluster = Cluster::settled(seed, count);
        cluster.run_for(Duration::from_millis(5000 + seed * 37 % 1000));
        cluster.crash(1);
        cluster.run_until(LIMIT, |cluster| cluster.all_see(1, NodeStatus::Down))
    };
    (1..=crashes as u64).filter_map(once).collect()
}

/// Verdicts over healthy nodes while datagrams get lost.
pub fn loss(count: usize, loss: f64, seeds: u64, time: Duration) -> Disturbance {
    let mut found = Disturbance::default();
    for seed in 1..=seeds {
        let mut cluster = Cluster::settled(seed, count);
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
        let mut cluster = Cluster::settled(seed, count);
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
