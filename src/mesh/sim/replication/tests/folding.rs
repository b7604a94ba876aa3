//! Dead epochs are folded, and nothing is lost or comes back by it.

use super::*;

/// How many counters the vectors of a node hold at most.
fn vector_len(cluster: &Cluster, node: usize) -> usize {
    Namespace::ALL.iter().map(|ns| cluster.nodes[node].stores.map(*ns).seen().iter().count()).max().unwrap()
}

/// 400 restarts, or as many as `SMG_SIM_RESTARTS` says.
#[test]
fn vectors_stay_small_however_often_a_node_restarts() {
    let restarts = std::env::var("SMG_SIM_RESTARTS").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(400);
    let mut cluster = cluster(3);
    let kept = put(&mut cluster, 2, "http://kept:1");
    cluster.converges_within(SECOND);
    for round in 0..restarts {
        cluster.restart(2);
        cluster.run_for(Duration::from_millis(4));
        let id = put(&mut cluster, 2, &format!("http://w:{}", round % 5));
        let wall_ms = cluster.wall_ms();
        cluster.nodes[2].stores.observe_worker(wall_ms, &id, &ready());
        if round % 2 == 0 {
            remove(&mut cluster, 0, &id);
        }
        cluster.run_for(Duration::from_millis(4));
        cluster.skip(HOUR / 6);
        if round % 100 == 99 {
            cluster.run_for(5 * SECOND);
            let longest = (0..3).map(|node| vector_len(&cluster, node)).max().unwrap();
            assert!(longest < 40, "{longest} counters after {round} restarts");
        }
    }
    cluster.run_for(20 * SECOND);
    cluster.skip(2 * HOUR);
    cluster.run_for(60 * SECOND);
    assert!(cluster.is_equal() && cluster.refused.is_empty(), "{:?}", cluster.refused);
    for node in 0..3 {
        assert!(has(&cluster, node, &kept), "written by the first epoch of all");
        // A floor, three running epochs, and the dead ones of which something lives.
        assert!(vector_len(&cluster, node) <= 10, "{}", vector_len(&cluster, node));
        assert!(cluster.nodes[node].stores.map(Namespace::Workers).actors().len() <= 10);
    }
}

#[test]
fn nothing_is_folded_while_a_member_of_the_last_day_has_not_agreed_and_its_writes_survive() {
    let mut cluster = cluster(4);
    cluster.run_for(SECOND);
    // What n2 writes last reaches n3 alone, which is then cut off; n2 starts again without data.
    cluster.set_cut(2, 0, true);
    cluster.set_cut(2, 1, true);
    cluster.partition(&[0, 1], true);
    let late = put(&mut cluster, 2, "http://late:1");
    cluster.run_for(SECOND);
    cluster.partition(&[3], true);
    cluster.partition(&[0, 1, 3], false);
    cluster.partition(&[3], true);
    cluster.restart(2);
    cluster.run_for(5 * SECOND);
    [0, 1, 2].iter().for_each(|node| cluster.set_members(*node, &[0, 1, 2]));
    for _ in 0..23 {
        cluster.skip(HOUR);
        cluster.run_for(20 * SECOND);
    }
    assert!(!has(&cluster, 0, &late));
    cluster.partition(&[3], false);
    cluster.converges_within(5 * SECOND);
    assert!((0..4).all(|node| has(&cluster, node, &late)), "no write is lost while a holder lives");
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}

#[test]
fn a_node_that_was_away_for_26_hours_brings_its_own_writes_and_nothing_back() {
    let mut cluster = cluster(4);
    let [removed, kept] = ["http://removed:1", "http://kept:1"].map(|url| put(&mut cluster, 2, url));
    cluster.converges_within(SECOND);
    cluster.partition(&[3], true);
    let own = put(&mut cluster, 3, "http://own:1");
    let wall_ms = cluster.wall_ms();
    cluster.nodes[3].stores.observe_worker(wall_ms, &removed, &ready());
    cluster.restart(2);
    cluster.run_for(SECOND);
    assert!(remove(&mut cluster, 0, &removed));
    [0, 1, 2].iter().for_each(|node| cluster.set_members(*node, &[0, 1, 2]));
    let before = vector_len(&cluster, 0);
    cluster.skip(23 * HOUR);
    cluster.run_for(60 * SECOND);
    assert_eq!(vector_len(&cluster, 0), before, "n3 has a say for a day");
    cluster.skip(3 * HOUR);
    cluster.run_for(60 * SECOND);
    let folded = |cluster: &Cluster, node: usize| {
        let map = cluster.nodes[node].stores.map(Namespace::Workers);
        map.actors().iter().any(|(actor, _)| actor.is_floor())
    };
    assert!((0..3).all(|node| folded(&cluster, node)) && !folded(&cluster, 3));
    cluster.partition(&[3], false);
    cluster.converges_within(5 * SECOND);
    for node in 0..4 {
        assert!(!has(&cluster, node, &removed), "n{node}");
        assert!(has(&cluster, node, &kept) && has(&cluster, node, &own), "n{node}");
    }
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}
