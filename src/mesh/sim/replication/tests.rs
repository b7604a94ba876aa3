//! Histories of faults that must end in byte-equal state.
#![allow(clippy::unwrap_used)]

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use super::*;
use crate::mesh::stores::{PolicySpec, WorkerId, WorkerObservation, WorkerOrigin, WorkerSpec, WorkerState};
use crate::mesh::{
    crdt::{
        context::VersionVector,
        delta::{Body, Cover, KeyState, Live},
        dot::{Actor, ActorId, Dot},
    },
    hlc::Timestamp,
    replication::frame::{Ack, Frame, Kind, NamespaceAck},
    wire::replication as wire,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

mod clocks;
mod folding;
mod healing;
mod losses;
mod relaying;
mod repairing;

fn spec(url: &str) -> WorkerSpec {
    WorkerSpec {
        url: url.into(),
        models: Vec::new(),
        api_key: None,
        zone: String::new(),
        origin: WorkerOrigin::Api,
        draining: false,
    }
}

fn ready() -> WorkerObservation {
    WorkerObservation { state: WorkerState::Ready, models: vec!["m".into()], failing_until_ms: 0 }
}

fn cluster(count: usize) -> Cluster {
    Cluster::new(count, Instant::now())
}

fn put(cluster: &mut Cluster, node: usize, url: &str) -> WorkerId {
    let wall_ms = cluster.wall_ms_of(node);
    cluster.nodes[node].stores.put_worker(wall_ms, spec(url))
}

fn remove(cluster: &mut Cluster, node: usize, id: &WorkerId) -> bool {
    let wall_ms = cluster.wall_ms_of(node);
    cluster.nodes[node].stores.remove_worker(wall_ms, id)
}

/// What a node says that has nothing.
fn digest_of(namespace: Namespace) -> NamespaceAck {
    NamespaceAck { namespace, seen: Vec::new(), root: 0, guarded: false, is_receiving: false, resume: None }
}

fn has(cluster: &Cluster, node: usize, id: &WorkerId) -> bool {
    cluster.nodes[node].stores.worker(id).is_some()
}

#[test]
fn a_write_reaches_all_in_two_milliseconds_and_a_remove_as_well() {
    let mut cluster = cluster(3);
    cluster.run_for(SECOND);
    let id = put(&mut cluster, 0, "http://w:1");
    cluster.run_for(Duration::from_millis(3));
    assert!((0..3).all(|node| has(&cluster, node, &id)));
    assert!(remove(&mut cluster, 1, &id));
    cluster.run_for(Duration::from_millis(3));
    assert!((0..3).all(|node| !has(&cluster, node, &id)));
    cluster.converges_within(SECOND);
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}

/// How long writes on some nodes take to reach the others of them, 99 of 100.
fn propagation_p99(cluster: &mut Cluster, nodes: &[usize], writes: usize, tag: &str) -> Duration {
    let mut times = Vec::new();
    for index in 0..writes {
        let writer = nodes[index % nodes.len()];
        let id = put(cluster, writer, &format!("http://{tag}-{index}"));
        let mut took = Duration::ZERO;
        while !nodes.iter().all(|node| has(cluster, *node, &id)) {
            cluster.run_for(Duration::from_millis(1));
            took += Duration::from_millis(1);
            assert!(took < 10 * SECOND, "write {index} of n{writer} never arrives");
        }
        times.push(took);
    }
    times.sort();
    times[times.len() * 99 / 100]
}

#[test]
fn own_writes_wait_for_no_grant_while_a_peer_is_stopped_and_after_reconnects() {
    // The stopped node is the first that the others grant everything to.
    for (case, backlog) in [("no backlog", 0), ("small backlog", 200), ("large backlog", 3000)] {
        let mut cluster = cluster(5);
        cluster.run_for(SECOND);
        cluster.set_stopped(0, true);
        for (a, b) in (0..5).flat_map(|a| (a + 1..5).map(move |b| (a, b))) {
            cluster.set_cut(a, b, true);
        }
        for index in 0..backlog {
            put(&mut cluster, 1, &format!("http://before-{index}"));
        }
        for (a, b) in (0..5).flat_map(|a| (a + 1..5).map(move |b| (a, b))) {
            cluster.set_cut(a, b, false);
        }
        // Without a round trip no peer knows what the other has.
        cluster.run_for(Duration::from_millis(3));
        let p99 = propagation_p99(&mut cluster, &[1, 2, 3, 4], 200, "now");
        assert!(p99 <= Duration::from_millis(100), "{case}: {p99:?}");
        cluster.run_for(SECOND);
        for node in 2..5 {
            assert_eq!(cluster.nodes[node].stores.entry_counts().workers, 200 + backlog, "{case}: n{node}");
        }
        cluster.set_stopped(0, false);
        cluster.converges_within(5 * SECOND);
        cluster.run_for(2 * SECOND);
        assert!(cluster.refused.is_empty(), "{case}: {:?}", cluster.refused);
        assert!(cluster.nodes.iter().all(|node| node.stores.map(Namespace::Workers).guards().is_empty()), "{case}");
    }
}

#[test]
fn fifty_nodes_learn_of_a_write_in_few_steps_and_few_bytes() {
    let mut cluster = cluster(50);
    cluster.run_for(3 * SECOND);
    let all: Vec<usize> = (0..50).collect();
    cluster.bytes = 0;
    cluster.nodes.iter_mut().for_each(|node| node.events.clear());
    let p99 = propagation_p99(&mut cluster, &all, 40, "w");
    cluster.run_for(5 * SECOND);
    assert!(p99 <= Duration::from_millis(20), "{p99:?}");
    // Six links to a node.
    let events = cluster.nodes.iter().flat_map(|node| &node.events);
    let keys: usize = events.map(|event| if let SyncEvent::DeltaSent { keys, .. } = event { *keys } else { 0 }).sum();
    assert!(keys <= 40 * 300 * 11 / 10, "{keys} keys for 40 writes over 300 links");
    assert!(cluster.bytes <= 40 * 300 * 400, "{} bytes", cluster.bytes);
    assert!(cluster.is_equal() && cluster.refused.is_empty(), "{:?}", cluster.refused);
    cluster.run_for(30 * SECOND);
    cluster.bytes = 0;
    cluster.run_for(16 * SECOND);
    assert!(cluster.bytes <= 300 * 2 * 60, "{} bytes of silence", cluster.bytes);
}

#[test]
fn a_sparse_mesh_delivers_around_stopped_nodes_and_to_those_who_come_back() {
    let mut cluster = cluster(50);
    cluster.run_for(3 * SECOND);
    let stopped = [3, 4, 17, 30, 49];
    stopped.iter().for_each(|node| cluster.set_stopped(*node, true));
    let others: Vec<usize> = (0..50).filter(|node| !stopped.contains(node)).collect();
    let p99 = propagation_p99(&mut cluster, &others, 20, "w");
    assert!(p99 <= Duration::from_millis(20), "{p99:?}");
    stopped.iter().for_each(|node| cluster.set_stopped(*node, false));
    cluster.restart(17);
    cluster.converges_within(5 * SECOND);
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}

#[test]
fn new_writes_and_removes_overtake_a_snapshot() {
    let mut cluster = cluster(2);
    cluster.set_cut(0, 1, true);
    let ids: Vec<_> = (0..60_000).map(|index| put(&mut cluster, 0, &format!("http://worker-{index}:8000"))).collect();
    cluster.set_latency(1, Duration::from_millis(20));
    cluster.set_cut(0, 1, false);
    cluster.run_for(Duration::from_millis(70));
    let added = put(&mut cluster, 0, "http://added");
    let removed = ids.iter().find(|id| has(&cluster, 1, id)).unwrap();
    assert!(remove(&mut cluster, 0, removed));
    cluster.run_for(Duration::from_millis(45));
    assert!(cluster.nodes[1].stores.map(Namespace::Workers).progress().is_some(), "the snapshot is still on its way");
    assert!(has(&cluster, 1, &added) && !has(&cluster, 1, removed));
    cluster.converges_within(5 * SECOND);
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}

#[test]
fn an_empty_restart_gets_all_state_back_from_one_peer() {
    let mut cluster = cluster(5);
    for index in 0..2000 {
        put(&mut cluster, index % 5, &format!("http://worker-{index}.example:8000"));
    }
    cluster.converges_within(5 * SECOND);
    let payload = cluster.nodes[0].stores.entry_counts().payload_bytes;
    cluster.bytes = 0;
    cluster.restart(2);
    cluster.converges_within(5 * SECOND);
    assert_eq!(cluster.nodes[2].stores.entry_counts().workers, 2000);
    // 70 bytes of key and dot go with each ~40 byte entry; four peers sending it all would be four times this.
    assert!(cluster.bytes < payload + 2000 * 110, "{} bytes for {payload}", cluster.bytes);
}

#[test]
fn a_thousand_entries_to_four_peers_cost_little_beyond_them() {
    let mut cluster = cluster(5);
    cluster.run_for(SECOND);
    cluster.bytes = 0;
    for index in 0..1000 {
        let model = format!("model-{index}");
        let policy =
            PolicySpec { policy: "random".into(), config_json: format!("{{\"pad\":\"{}\"}}", "x".repeat(200)) };
        let wall_ms = cluster.wall_ms();
        cluster.nodes[index % 5].stores.put_policy(wall_ms, &model, &policy).unwrap();
    }
    let took = cluster.converges_within(SECOND);
    cluster.run_for(5 * SECOND);
    let counts: usize =
        cluster.nodes[0].stores.map(Namespace::Policies).range_from(b"").map(|(key, _)| key.len()).sum();
    let payload = (cluster.nodes[0].stores.entry_counts().payload_bytes + counts) * 4;
    assert!(took < Duration::from_millis(300), "{took:?}");
    assert!(cluster.bytes * 10 <= payload * 13, "{} bytes for {payload}", cluster.bytes);
}

#[test]
fn equal_nodes_are_silent() {
    let mut cluster = cluster(3);
    put(&mut cluster, 0, "http://w:1");
    cluster.run_for(60 * SECOND);
    cluster.bytes = 0;
    cluster.run_for(160 * SECOND);
    // Six pipes, one digest of at most 60 bytes per 16 s each.
    assert!(cluster.bytes <= 6 * 11 * 60, "{} bytes", cluster.bytes);
    assert!(cluster.nodes[0].events.iter().any(|event| matches!(event, SyncEvent::InSync { .. })));
}

#[test]
fn what_one_side_of_a_partition_removes_stays_removed() {
    let mut cluster = cluster(5);
    let ids: Vec<_> = (0..200).map(|index| put(&mut cluster, index % 5, &format!("http://w:{index}"))).collect();
    cluster.converges_within(5 * SECOND);
    cluster.partition(&[0, 1], true);
    for (index, id) in ids.iter().enumerate().filter(|(index, _)| index % 2 == 0) {
        assert!(remove(&mut cluster, index % 3, id));
        let (wall_ms, node) = (cluster.wall_ms(), 2 + index % 3);
        cluster.nodes[node].stores.observe_worker(wall_ms, id, &ready());
    }
    cluster.run_for(600 * SECOND);
    cluster.partition(&[0, 1], false);
    let took = cluster.converges_within(3 * SECOND);
    cluster.run_for(10 * SECOND);
    assert!(cluster.is_equal(), "after {took:?}");
    for (index, id) in ids.iter().enumerate() {
        assert_eq!(has(&cluster, 4, id), index % 2 == 1, "{index}");
    }
    assert_eq!(cluster.nodes[0].stores.map(Namespace::Workers).len(), 100, "no orphaned observation is left");
}

#[test]
fn a_removed_seed_worker_stays_removed_when_its_node_starts_again() {
    let mut cluster = cluster(3);
    let url = "http://seed:1";
    let id = cluster.nodes[0].stores.seed_worker(spec(url));
    assert_eq!(cluster.nodes[1].stores.seed_worker(spec(url)), id);
    cluster.converges_within(3 * SECOND);
    assert_eq!(cluster.nodes[2].stores.workers().len(), 1);
    assert_eq!(cluster.nodes[2].stores.map(Namespace::Workers).len(), 1);
    assert!(remove(&mut cluster, 2, &id));
    cluster.converges_within(SECOND);
    for restart in 0..5 {
        cluster.restart(0);
        cluster.nodes[0].stores.seed_worker(spec(url));
        cluster.converges_within(3 * SECOND);
        assert!((0..3).all(|node| !has(&cluster, node, &id)), "restart {restart}");
    }
    let key = format!("{id}/spec");
    assert_eq!(cluster.nodes[0].stores.map(Namespace::Workers).get(key.as_bytes()).count(), 1, "losing dots are gone");
    put(&mut cluster, 1, url);
    cluster.converges_within(SECOND);
    assert!((0..3).all(|node| has(&cluster, node, &id)), "an operator can add it again");
}

#[test]
fn a_worker_of_the_api_that_a_flag_names_too_leaves_a_marker() {
    let mut cluster = cluster(3);
    let url = "http://both:1";
    let id = put(&mut cluster, 1, url);
    cluster.run_for(SECOND);
    cluster.restart(0);
    cluster.nodes[0].stores.seed_worker(spec(url));
    cluster.converges_within(3 * SECOND);
    assert!(remove(&mut cluster, 2, &id));
    cluster.converges_within(SECOND);
    cluster.restart(0);
    cluster.nodes[0].stores.seed_worker(spec(url));
    cluster.converges_within(3 * SECOND);
    assert!((0..3).all(|node| !has(&cluster, node, &id)));
}

#[test]
fn a_restarted_node_replaces_its_old_observations() {
    let mut cluster = cluster(2);
    let id = put(&mut cluster, 0, "http://w:1");
    cluster.run_for(SECOND);
    let wall_ms = cluster.wall_ms();
    cluster.nodes[1].stores.observe_worker(wall_ms, &id, &ready());
    cluster.converges_within(SECOND);
    cluster.restart(1);
    cluster.run_for(SECOND);
    // The wall clock of the restarted node was set back an hour.
    let seen = WorkerObservation { state: WorkerState::NotReady, models: Vec::new(), failing_until_ms: 0 };
    cluster.nodes[1].stores.observe_worker(WALL_MS - 3_600_000, &id, &seen);
    cluster.converges_within(SECOND);
    let view = cluster.nodes[0].stores.worker(&id).unwrap();
    assert_eq!(view.observed.values().collect::<Vec<_>>(), [&seen]);
    assert_eq!(cluster.nodes[0].stores.map(Namespace::Workers).len(), 2);
}

#[test]
fn a_remove_that_overtakes_the_add_through_a_faster_peer_is_kept() {
    let mut cluster = cluster(3);
    cluster.run_for(SECOND);
    // n0 and n2 hear each other late: n1 learns of the add at once and removes before n2 has heard of it.
    cluster.set_cut(0, 2, true);
    let id = put(&mut cluster, 0, "http://w:1");
    cluster.run_for(Duration::from_millis(5));
    assert!(remove(&mut cluster, 1, &id));
    cluster.run_for(Duration::from_millis(5));
    let before = cluster.nodes[2].stores.map(Namespace::Workers).guards().len();
    assert_eq!(before, 1, "n2 knows that it has not seen all that the remover had");
    cluster.set_cut(0, 2, false);
    for _ in 0..100 {
        cluster.run_for(Duration::from_millis(1));
        assert!(!has(&cluster, 2, &id));
    }
    cluster.converges_within(5 * SECOND);
    cluster.run_for(2 * SECOND);
    assert_eq!(cluster.nodes[2].stores.map(Namespace::Workers).guards().len(), 0);
}

#[test]
fn dots_of_an_unreachable_writer_come_through_others() {
    let mut cluster = cluster(3);
    cluster.run_for(SECOND);
    cluster.set_cut(0, 2, true);
    let id = put(&mut cluster, 0, "http://w:1");
    cluster.run_for(4 * SECOND);
    assert!(has(&cluster, 2, &id));
}

#[test]
fn frames_out_of_place_are_refused_and_change_nothing() {
    let mut cluster = cluster(2);
    cluster.run_for(SECOND);
    put(&mut cluster, 0, "http://w:1");
    let now = Instant::now();
    let mut taken = Vec::new();
    while let Some((pipe, bytes)) = {
        let node = &mut cluster.nodes[0];
        node.replicator.poll_transmit(now, &node.stores, &|_| true)
    } {
        taken.push((pipe, bytes));
    }
    let (pipe, delta) = taken.into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let other = cluster.wires.keys().map(|id| PipeId(*id)).find(|id| *id != pipe).unwrap();
    let target = &mut cluster.nodes[1];
    let mut send = |pipe: PipeId, bytes: &[u8]| {
        target.replicator.handle_frame(now, WALL_MS, &mut target.stores, pipe, bytes).map_err(|error| error.reason())
    };
    for (case, pipe, bytes, expected) in [
        ("not a frame", pipe, &b"\xff\xff"[..], Err("sync_malformed")),
        ("a pipe that is not there", PipeId(99), &delta[..], Err("sync_unknown_pipe")),
        ("a delta where acks belong", other, &delta[..], Err("sync_direction")),
        ("as sent", pipe, &delta[..], Ok(())),
        ("the same again", pipe, &delta[..], Err("sync_sequence")),
    ] {
        assert_eq!(send(pipe, bytes), expected, "{case}");
    }
    assert_eq!(cluster.nodes[1].stores.workers().len(), 1);
}

#[test]
fn a_peer_that_knows_fewer_namespaces_is_brought_up_to_date_in_those() {
    let now = Instant::now();
    let (mut stores, pipe) = (Stores::new("new".parse().unwrap(), 5), PipeId(1));
    stores.put_worker(WALL_MS, spec("http://w:1"));
    let policy = PolicySpec { policy: "random".into(), config_json: String::new() };
    stores.put_policy(WALL_MS, "m", &policy).unwrap();
    let mut newer = Replicator::new(Config { sync_interval: SECOND }, now, 0);
    newer.handle_connected(now, pipe, "old".parse().unwrap(), 1, true);
    let mut ack = |newer: &mut Replicator, seq: u64, received: u64, root: u64, seen: Vec<(Actor, u64)>| {
        let told = NamespaceAck { seen, root, ..digest_of(Namespace::Policies) };
        let frame =
            Frame { seq, kind: Kind::Ack(Ack { received, grant: true, namespaces: vec![told], ..Ack::default() }) };
        newer.handle_frame(now, WALL_MS, &mut stores, pipe, &wire::encode(&frame)).unwrap();
        let sent = std::iter::from_fn(|| newer.poll_transmit(now, &stores, &|_| true));
        sent.map(|(_, bytes)| wire::decode(&bytes).unwrap().kind).collect::<Vec<_>>()
    };
    let sent = ack(&mut newer, 0, 0, 0, Vec::new());
    let [Kind::Body(Namespace::Policies, body)] = &sent[..] else { panic!("{sent:?}") };
    assert!(body.complete, "nothing more will come, so the peer waits for nothing");
    let root = {
        let mut receiver = Stores::new("old".parse().unwrap(), 1);
        receiver.apply(WALL_MS, Namespace::Policies, &mut VersionVector::default(), body.clone()).unwrap();
        receiver.map(Namespace::Policies).root()
    };
    assert!(ack(&mut newer, 1, 1, root, vec![(body.actors[0].clone(), 1)]).is_empty());
    assert!(std::iter::from_fn(|| newer.poll_event()).any(|event| matches!(event, SyncEvent::InSync { .. })));
}

#[test]
fn a_slow_peer_costs_nothing_and_gets_the_newest_state() {
    let mut cluster = cluster(3);
    cluster.run_for(SECOND);
    cluster.set_latency(2, 5 * SECOND);
    let policy = |round: usize| PolicySpec { policy: "random".into(), config_json: format!("{round:01000}") };
    cluster.bytes = 0;
    for round in 0..2000 {
        let wall_ms = cluster.wall_ms();
        cluster.nodes[0].stores.put_policy(wall_ms, "m", &policy(round)).unwrap();
        cluster.run_for(Duration::from_millis(10));
        assert_eq!(cluster.nodes[1].stores.policies()[0].1, policy(round), "the fast peer does not wait");
    }
    // 2000 states to the fast peer, at most a pipe full per 5 s to the slow one and from there.
    assert!(cluster.bytes < 2000 * 1400 + 200_000, "{} bytes", cluster.bytes);
    cluster.set_latency(2, Duration::from_millis(1));
    cluster.converges_within(10 * SECOND);
}

#[test]
fn a_snapshot_goes_on_where_it_was_cut() {
    let mut cluster = cluster(2);
    cluster.set_cut(0, 1, true);
    for index in 0..60_000 {
        put(&mut cluster, 0, &format!("http://worker-{index}.example:8000"));
    }
    cluster.set_latency(1, Duration::from_millis(20));
    cluster.set_cut(0, 1, false);
    let mut cuts = 0;
    while !cluster.is_equal() {
        // Time for the digest and for two pipes full of chunks, of 20 and more that are needed.
        cluster.run_for(Duration::from_millis(65));
        cluster.reconnect(0, 1);
        cuts += 1;
        assert!(cuts < 20, "no progress over {cuts} cuts");
    }
    let chunks =
        cluster.nodes[1].events.iter().filter(|event| matches!(event, SyncEvent::SnapshotReceived { .. })).count();
    assert!(cuts >= 3 && chunks < 40, "{chunks} chunks over {cuts} cuts");
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
    assert_eq!(cluster.nodes[1].stores.workers().len(), 60_000);
}

#[test]
fn a_peer_behind_the_remembered_removes_is_served_by_a_snapshot() {
    let mut cluster = cluster(2);
    let old = put(&mut cluster, 0, "http://old:1");
    cluster.converges_within(SECOND);
    cluster.set_cut(0, 1, true);
    remove(&mut cluster, 0, &old);
    for index in 0..crate::mesh::crdt::map::RECORDS_MAX {
        let id = put(&mut cluster, 0, &format!("http://gone:{index}"));
        remove(&mut cluster, 0, &id);
    }
    let kept = put(&mut cluster, 0, "http://kept:1");
    cluster.set_cut(0, 1, false);
    cluster.converges_within(SECOND);
    assert!(has(&cluster, 1, &kept) && !has(&cluster, 1, &old));
    let snapshots = cluster.nodes[1].events.iter().filter(|event| matches!(event, SyncEvent::SnapshotReceived { .. }));
    assert_eq!(snapshots.count(), 1);
    assert_eq!(cluster.nodes[0].stores.map(Namespace::Workers).records_len(), crate::mesh::crdt::map::RECORDS_MAX);
}

/// Runs a history with the seeds 0 to `count`: as many as `SMG_SIM_SEEDS` says, or the one that `SMG_SIM_SEED` names.
fn for_each_seed(count: u64, test: &str, mut history: impl FnMut(u64)) {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match from_env("SMG_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_env("SMG_SIM_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history(seed)));
        assert!(outcome.is_ok(), "SMG_SIM_SEED={seed} cargo test {test}");
    }
}

#[test]
fn any_history_of_faults_ends_equal() {
    for_each_seed(30, "any_history_of_faults_ends_equal", random_history);
}

fn random_history(seed: u64) {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let count = rng.random_range(2..6);
    let topology = if seed % 3 == 2 { Topology::Sparse } else { Topology::Full };
    let count = if topology == Topology::Sparse { count + 4 } else { count };
    let mut cluster = Cluster::with_topology(count, Instant::now(), topology);
    let url = |index: u32| format!("http://w:{index}");
    let mut removed_last = BTreeMap::new();
    for _ in 0..rng.random_range(50..400) {
        let (node, other, key) = (rng.random_range(0..count), rng.random_range(0..count), rng.random_range(0..12));
        let (id, wall_ms) = (WorkerId::of_url(&url(key)), cluster.wall_ms());
        match rng.random_range(0..20) {
            0..5 => {
                put(&mut cluster, node, &url(key));
                removed_last.remove(&key);
            }
            5..9 => {
                if remove(&mut cluster, node, &id) {
                    removed_last.insert(key, ());
                }
            }
            9..12 => cluster.nodes[node].stores.observe_worker(wall_ms, &id, &ready()),
            12 => {
                cluster.nodes[node].stores.seed_worker(spec(&url(key)));
            }
            13 if node != other => cluster.set_cut(node, other, true),
            14 | 15 if node != other => cluster.set_cut(node, other, false),
            16 if node != other => cluster.reconnect(node, other),
            17 => cluster.set_latency(node, Duration::from_millis(rng.random_range(1..300))),
            18 if rng.random_ratio(1, 4) => cluster.restart(node),
            19 if rng.random_ratio(1, 4) => cluster.skip(HOUR),
            _ => cluster.run_for(Duration::from_millis(u64::from(rng.next_u32() % 700))),
        }
    }
    for a in 0..count {
        cluster.set_latency(a, Duration::from_millis(1));
        for b in a + 1..count {
            cluster.set_cut(a, b, false);
        }
    }
    cluster.converges_within(20 * SECOND);
    cluster.run_for(25 * SECOND);
    cluster.skip(2 * HOUR);
    cluster.run_for(60 * SECOND);
    if topology == Topology::Full {
        let epochs = |node: &Node| node.stores.map(Namespace::Workers).seen().iter().count();
        let dead = |node: &Node| {
            let map = node.stores.map(Namespace::Workers);
            map.actors().iter().filter(|(actor, _)| map.is_folded(actor)).count()
        };
        assert!(cluster.nodes.iter().all(|node| epochs(node) <= 2 * count + dead(node)), "dead epochs are folded");
    }
    assert!(cluster.is_equal());
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
    for node in &cluster.nodes {
        let seen = node.stores.map(Namespace::Workers);
        let live = node.stores.workers();
        let orphans = seen.range_from(b"").filter(|(key, _)| {
            let key = std::str::from_utf8(key).unwrap();
            key.contains("/seen/") && !live.iter().any(|view| key.starts_with(view.id.as_str()))
        });
        assert_eq!(orphans.count(), 0, "no observation outlives its worker");
    }
}
