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
