//! Equal vectors with different roots, which no history brings about, are repaired however long that takes.

use super::*;

/// Lets both nodes have seen a dot of a third one of which only the first has what it wrote.
fn diverge(cluster: &mut Cluster) {
    let ghost = Actor { node: "ghost".parse().unwrap(), boot_epoch_ms: 1 };
    let dot = Dot { actor: ActorId(0), counter: 1 };
    let policy = PolicySpec { policy: "random".into(), config_json: String::new() };
    let payload = crate::mesh::wire::state::encode_policy(&policy).unwrap().into();
    let live = vec![Live { dot, stamp: Timestamp::new(1, 0), payload }];
    let key = KeyState { key: b"m"[..].into(), live, records: Vec::new(), guard: Vec::new() };
    let body = Body {
        actors: vec![ghost],
        context: vec![(dot.actor, 1)],
        keys: vec![key],
        covers: vec![Cover { actor: dot.actor, from: 0, to: 1 }],
        ..Body::default()
    };
    let lossy = Body { keys: Vec::new(), ..body.clone() };
    for (node, body) in [(0, body), (1, lossy)] {
        let stores = &mut cluster.nodes[node].stores;
        stores.apply(WALL_MS, Namespace::Policies, &mut VersionVector::default(), body).unwrap();
    }
    assert!(!cluster.is_equal());
}

#[test]
fn equal_vectors_with_different_roots_are_healed_by_a_snapshot() {
    let mut cluster = cluster(2);
    cluster.run_for(SECOND);
    diverge(&mut cluster);
    let took = cluster.converges_within(6 * SECOND);
    assert!(took > 2 * SECOND, "{took:?}");
}

#[test]
fn a_repair_that_takes_long_is_sent_once() {
    let mut cluster = cluster(2);
    for index in 0..12_000_u32 {
        let noise = (0..32).map(|i| format!("{:016x}", xxhash_rust::xxh3::xxh3_64_with_seed(&index.to_le_bytes(), i)));
        let policy = PolicySpec { policy: "random".into(), config_json: noise.collect() };
        let wall_ms = cluster.wall_ms();
        cluster.nodes[0].stores.put_policy(wall_ms, &format!("a{index:05}"), &policy).unwrap();
    }
    cluster.converges_within(10 * SECOND);
    cluster.run_for(SECOND);
    diverge(&mut cluster);
    cluster.nodes.iter_mut().for_each(|node| node.events.clear());
    // 25 chunks and more, of which the last has the key that differs; four go at once.
    cluster.set_latency(1, SECOND / 2);
    cluster.run_for(40 * SECOND);
    assert!(cluster.is_equal());
    for node in &cluster.nodes {
        let last = |event: &SyncEvent| match event {
            SyncEvent::SnapshotReceived { is_last, .. } => Some(*is_last),
            _ => None,
        };
        let chunks: Vec<bool> = node.events.iter().filter_map(last).collect();
        assert!(chunks.len() > 20, "{} chunks", chunks.len());
        assert_eq!(chunks.iter().filter(|is_last| **is_last).count(), 1, "{} chunks", chunks.len());
        assert!(chunks.ends_with(&[true]) && chunks.len() < 40, "{} chunks", chunks.len());
    }
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}
