//! Figures of the replication core. Run with `cargo bench --bench replication`.
//!
//! Wall-clock figures hold for the machine that printed them; bytes and virtual times hold everywhere.

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use smg::mesh::{
    crdt::{
        context::VersionVector,
        delta::{Body, Cover, KeyState, Live},
        dot::{Actor, ActorId, Dot, Key},
        map::Map,
    },
    hlc::Timestamp,
    sim::replication::Cluster,
    stores::{Namespace, PolicySpec},
};

fn main() {
    small_deltas();
    thousand_entries();
    join_of_100k();
}

/// Deltas of one key each, joined into a namespace of 1 000 keys.
fn small_deltas() {
    const DELTAS: u64 = 500_000;
    let Ok(node) = "writer".parse() else { return };
    let writer = Actor { node, boot_epoch_ms: 1 };
    let Ok(node) = "reader".parse() else { return };
    let actor = ActorId(0);
    let bodies: Vec<Body> = (1..=DELTAS)
        .map(|counter| {
            let key = Key::from(format!("w-{:016x}/spec", counter % 1000).as_bytes());
            let live =
                Live { dot: Dot { actor, counter }, stamp: Timestamp::new(counter, 0), payload: [7; 100][..].into() };
            Body {
                actors: vec![writer.clone()],
                context: vec![(actor, counter)],
                keys: vec![KeyState { key, live: vec![live], records: Vec::new(), guard: Vec::new() }],
                covers: vec![Cover { actor, from: counter - 1, to: counter }],
                ..Body::default()
            }
        })
        .collect();
    let mut map = Map::new(&Actor { node, boot_epoch_ms: 1 });
    let mut peer = VersionVector::default();
    let start = Instant::now();
    let joined = bodies.into_iter().filter_map(|body| map.apply(&mut peer, body).ok()).count();
    let rate = joined as f64 / start.elapsed().as_secs_f64();
    println!("small deltas, one key each: {joined} joined, {:.2} M/s on one core", rate / 1e6);

    // The same writes as they arrive when there are many: a thousand keys to a delta.
    let mut source = Map::new(&writer);
    let (mut map, mut peer) = (Map::new(&Actor { boot_epoch_ms: 2, ..writer.clone() }), VersionVector::default());
    let (mut keys_joined, mut spent) = (0, Duration::ZERO);
    for round in 0..300_u64 {
        let from = source.seen().get(source.own());
        for index in 0..1000_u64 {
            source.write(format!("w-{index:016x}/spec").as_bytes(), Timestamp::new(round, 0), &[7; 100]);
        }
        let to = source.seen().get(source.own());
        let keys: Vec<KeyState> = source.range_from(b"").map(|(key, _)| source.key_state(key)).collect();
        keys_joined += keys.len();
        let body = Body {
            actors: vec![writer.clone()],
            context: vec![(actor, to)],
            keys,
            covers: vec![Cover { actor, from, to }],
            ..Body::default()
        };
        let start = Instant::now();
        let _ = map.apply(&mut peer, body);
        spent += start.elapsed();
    }
    println!("keys in deltas of 1000: {:.2} M keys/s on one core", keys_joined as f64 / spent.as_secs_f64() / 1e6);
}

/// 1 000 entries written at once on one of five nodes.
fn thousand_entries() {
    let mut cluster = Cluster::new(5, Instant::now());
    cluster.run_for(Duration::from_secs(1));
    cluster.bytes = 0;
    write(&mut cluster, 0, 1000);
    let took = cluster.converges_within(Duration::from_secs(5));
    cluster.run_for(Duration::from_secs(5));
    let payload = 4 * payload_bytes(&cluster);
    let ratio = cluster.bytes as f64 / payload as f64;
    println!(
        "1000 entries to 4 peers: equal after {took:?} (virtual, 1 ms latency), {} bytes for {payload}: {ratio:.2} x",
        cluster.bytes
    );
}

/// A node joins four that hold 100 k entries.
fn join_of_100k() {
    let mut cluster = Cluster::new(5, Instant::now());
    write(&mut cluster, 0, 100_000);
    cluster.converges_within(Duration::from_secs(60));
    let payload = payload_bytes(&cluster);
    cluster.bytes = 0;
    cluster.restart(4);
    let start = Instant::now();
    // Comparing states costs more than the join, so it is done once the roots are equal.
    let mut virtual_ms = 0;
    let roots = |cluster: &Cluster| {
        cluster.nodes.iter().map(|node| node.stores.map(Namespace::Policies).root()).collect::<Vec<_>>()
    };
    while roots(&cluster).windows(2).any(|pair| pair[0] != pair[1]) && virtual_ms < 60_000 {
        cluster.run_for(Duration::from_millis(1));
        virtual_ms += 1;
    }
    let cpu = start.elapsed();
    let ratio = cluster.bytes as f64 / payload as f64;
    println!(
        "join with 100 k entries: {virtual_ms} ms virtual, {cpu:?} of CPU for all nodes, {} bytes for {payload}: {ratio:.2} x, equal: {}",
        cluster.bytes,
        cluster.is_equal()
    );
}

fn write(cluster: &mut Cluster, node: usize, count: usize) {
    for index in 0..count {
        let policy = PolicySpec { policy: "power_of_two".into(), config_json: format!("{{\"pad\":\"{index:0170}\"}}") };
        let wall_ms = cluster.wall_ms();
        let _ = cluster.nodes[node].stores.put_policy(wall_ms, &format!("org/model-{index:06}"), &policy);
    }
}

fn payload_bytes(cluster: &Cluster) -> usize {
    let map = cluster.nodes[0].stores.map(Namespace::Policies);
    map.payload_bytes() + map.range_from(b"").map(|(key, _)| key.len()).sum::<usize>()
}
