//! Dots of others reach a peer to which their writer has no pipe, whatever else is under way.

use super::*;

/// Runs until a node has all of `ids`; gives how long that took.
fn arrives(cluster: &mut Cluster, node: usize, ids: &[WorkerId], limit: Duration) -> Duration {
    let from = cluster.now;
    while !ids.iter().all(|id| has(cluster, node, id)) {
        assert!(cluster.now - from < limit, "not at n{node} after {limit:?}");
        cluster.run_for(Duration::from_millis(10));
    }
    cluster.now - from
}

/// Writes on the nodes, each one every 20 ms; gives the ids of the first node's.
fn all_write(cluster: &mut Cluster, nodes: &[usize], duration: Duration) -> Vec<WorkerId> {
    let (end, mut ids) = (cluster.now + duration, Vec::new());
    while cluster.now < end {
        let wall_ms = cluster.wall_ms();
        for node in nodes {
            let id = put(cluster, *node, &format!("http://later-{node}-{wall_ms}"));
            if *node == nodes[0] {
                ids.push(id);
            }
        }
        cluster.run_for(Duration::from_millis(20));
    }
    ids
}

#[test]
fn writes_of_an_unreachable_node_come_soon_through_one_that_writes_itself() {
    let mut cluster = cluster(3);
    cluster.converges_within(SECOND);
    cluster.set_cut(0, 2, true);
    for round in 0..10 {
        let ids = all_write(&mut cluster, &[0, 1], SECOND / 2);
        let end = cluster.now + 3 * SECOND;
        while !ids.iter().all(|id| has(&cluster, 2, id)) {
            assert!(cluster.now < end, "round {round}: not all at n2 after 3 s");
            all_write(&mut cluster, &[1], SECOND / 10);
        }
    }
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}

#[test]
fn what_an_unreachable_node_wrote_during_a_snapshot_comes_soon_after_it() {
    let mut cluster = cluster(3);
    cluster.partition(&[2], true);
    for index in 0..20_000 {
        put(&mut cluster, 0, &format!("http://worker-{index}.example:8000"));
    }
    cluster.run_for(3 * SECOND);
    // A second for each pipe full of chunks; n0 and n1 write all the time.
    cluster.set_latency(2, SECOND / 2);
    cluster.set_cut(1, 2, false);
    while cluster.nodes[2].stores.workers().len() < 20_000 {
        all_write(&mut cluster, &[1], SECOND / 20);
        all_write(&mut cluster, &[0, 1], SECOND / 20);
    }
    cluster.set_latency(2, Duration::from_millis(1));
    let ids = all_write(&mut cluster, &[0, 1], SECOND / 2);
    let took = arrives(&mut cluster, 2, &ids, 10 * SECOND);
    // Two sync intervals, and some acks that were on their way slowly.
    assert!(took <= 3 * SECOND, "{took:?}");
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}
