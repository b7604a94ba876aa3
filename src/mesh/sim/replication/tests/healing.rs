//! What a healed partition costs: everybody is sent what it lacks once, however much is written meanwhile.

use super::*;

/// More keys than a delta carries, so that each side needs a snapshot from the other.
const KEYS: usize = 17_000;

/// Two sides, 0 and 1 beside 2, 3 and 4, with many keys each that the other lacks.
fn parted() -> Cluster {
    let mut cluster = cluster(5);
    cluster.partition(&[0, 1], true);
    for index in 0..KEYS {
        for (side, node) in [[0, 1], [2, 3]].iter().enumerate() {
            put(&mut cluster, node[index % 2], &format!("http://side-{side}-{index}"));
        }
    }
    cluster.run_for(3 * SECOND);
    cluster.nodes.iter_mut().for_each(|node| node.events.clear());
    cluster
}

/// Snapshots that each node has received whole.
fn received(cluster: &Cluster) -> Vec<usize> {
    let is_whole = |event: &&SyncEvent| matches!(event, SyncEvent::SnapshotReceived { is_last: true, .. });
    cluster.nodes.iter().map(|node| node.events.iter().filter(is_whole).count()).collect()
}

#[test]
fn a_healed_partition_costs_each_node_one_snapshot_although_all_go_on_writing() {
    let mut cluster = parted();
    cluster.partition(&[0, 1], false);
    for round in 0..40 {
        for node in 0..5 {
            put(&mut cluster, node, &format!("http://later-{node}-{round}"));
        }
        cluster.run_for(Duration::from_millis(5));
    }
    cluster.converges_within(3 * SECOND);
    assert_eq!(received(&cluster), [1; 5]);
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}

#[test]
fn a_node_that_is_served_slowly_is_not_served_by_its_own_side_as_well() {
    let mut cluster = parted();
    // The snapshot takes node 1 a few sync intervals; what its neighbour has long had is already on the way.
    cluster.set_latency(1, Duration::from_millis(500));
    cluster.partition(&[0, 1], false);
    cluster.converges_within(20 * SECOND);
    assert_eq!(received(&cluster)[1], 1);
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}

#[test]
fn two_donors_at_once_do_not_end_each_others_snapshot() {
    let mut cluster = parted();
    let mut stores = Stores::new("reader".parse().unwrap(), WALL_MS);
    let mut donors = [0, 2].map(|index| (index, VersionVector::default()));
    let chunks = donors.clone().map(|(index, _)| chunks_of(&mut cluster, index));
    let longest = chunks.iter().map(Vec::len).max().unwrap();
    assert!(longest > 3, "{longest} chunks");
    for at in 0..longest {
        for ((_, context), chunks) in donors.iter_mut().zip(&chunks) {
            if let Some(body) = chunks.get(at) {
                stores.apply(WALL_MS, Namespace::Workers, context, body.clone()).unwrap();
            }
        }
    }
    assert_eq!(stores.workers().len(), 2 * KEYS);
    for (index, _) in donors {
        let map = cluster.nodes[index].stores.map(Namespace::Workers);
        assert!(
            map.actors().iter().all(|(actor, id)| stores.map(Namespace::Workers).seen_of(actor) >= map.seen().get(id))
        );
    }
}

/// The chunks of a snapshot that a node sends a peer which has nothing.
fn chunks_of(cluster: &mut Cluster, index: usize) -> Vec<Body> {
    let (now, node) = (cluster.now, &mut cluster.nodes[index]);
    let pipe = PipeId(1 << 40);
    node.replicator.handle_connected(now, pipe, "reader".parse().unwrap(), WALL_MS, true);
    let mut bodies = Vec::new();
    for seq in 0..100 {
        let namespaces = Namespace::ALL.map(digest_of);
        let ack = Ack { received: bodies.len() as u64, grant: true, namespaces: namespaces.into(), ..Ack::default() };
        let frame = wire::encode(&Frame { seq, kind: Kind::Ack(ack) });
        node.replicator.handle_frame(now, WALL_MS, &mut node.stores, pipe, &frame).unwrap();
        while let Some((_, bytes)) = node.replicator.poll_transmit(now, &node.stores, &|other| other == pipe) {
            let Kind::Body(namespace, body) = wire::decode(&bytes).unwrap().kind else { panic!("a body is sent") };
            let is_last =
                namespace == Namespace::Workers && body.chunk.as_ref().is_some_and(|chunk| chunk.to.is_none());
            bodies.push(body);
            if is_last {
                bodies.retain(|body| body.chunk.is_some());
                return bodies;
            }
        }
    }
    panic!("the snapshot does not end")
}
