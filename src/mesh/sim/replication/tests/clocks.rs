//! Wrong clocks lose nothing and lock nothing.

use super::*;

const HOUR_MS: i64 = 3_600_000;

/// From 2023, where simulations begin, to about the year 2100.
const TO_2100_MS: i64 = 76 * 365 * 24 * HOUR_MS;

fn observe(cluster: &mut Cluster, node: usize, id: &WorkerId) {
    let wall_ms = cluster.wall_ms_of(node);
    cluster.nodes[node].stores.observe_worker(wall_ms, id, &ready());
}

fn sees(cluster: &Cluster, at: usize, id: &WorkerId, observer: &str) -> bool {
    let view = cluster.nodes[at].stores.worker(id);
    view.is_some_and(|view| view.observed.contains_key(&observer.parse().unwrap()))
}

fn floor_of(cluster: &Cluster, at: usize, node: &str) -> u64 {
    cluster.nodes[at].stores.map(Namespace::Workers).seen_of(&Actor::floor_of(&node.parse().unwrap()))
}

/// Restarts n2 until its first epochs are folded at all others.
fn with_folded_epochs() -> Cluster {
    let mut cluster = cluster(3);
    put(&mut cluster, 2, "http://first:1");
    cluster.converges_within(SECOND);
    cluster.restart(2);
    put(&mut cluster, 2, "http://second:1");
    cluster.run_for(5 * SECOND);
    cluster.skip(2 * HOUR);
    cluster.run_for(60 * SECOND);
    assert!((0..3).all(|at| floor_of(&cluster, at, "n2") > WALL_MS), "the first epoch is folded");
    cluster
}

#[test]
fn a_node_whose_clock_was_set_back_over_a_restart_is_heard() {
    let mut cluster = with_folded_epochs();
    cluster.set_clock(2, -4 * HOUR_MS);
    cluster.restart(2);
    assert!(cluster.wall_ms_of(2) < floor_of(&cluster, 0, "n2"), "its new epoch is below the floor of its name");
    // Written before anybody told it, and after.
    let early = put(&mut cluster, 2, "http://early:1");
    cluster.converges_within(5 * SECOND);
    let late = put(&mut cluster, 2, "http://late:1");
    observe(&mut cluster, 2, &late);
    cluster.run_for(SECOND);
    for at in 0..3 {
        assert!(has(&cluster, at, &early) && has(&cluster, at, &late) && sees(&cluster, at, &late, "n2"), "n{at}");
    }
    assert!(remove(&mut cluster, 2, &early));
    cluster.run_for(SECOND);
    assert!((0..3).all(|at| !has(&cluster, at, &early)), "its removes are heard as well");
    let raised = |event: &&SyncEvent| matches!(event, SyncEvent::EpochRaised { .. });
    assert_eq!(cluster.nodes[2].events.iter().filter(raised).count(), 1, "it goes on in one epoch");
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);

    // And back: the right clock is ahead of every epoch, and the wrong ones leave nothing.
    cluster.set_clock(2, 0);
    cluster.restart(2);
    let right = put(&mut cluster, 2, "http://right:1");
    cluster.converges_within(5 * SECOND);
    observe(&mut cluster, 2, &late);
    cluster.converges_within(5 * SECOND);
    cluster.skip(2 * HOUR);
    cluster.run_for(60 * SECOND);
    for at in 0..3 {
        assert!(has(&cluster, at, &late) && has(&cluster, at, &right) && sees(&cluster, at, &late, "n2"), "n{at}");
        let map = cluster.nodes[at].stores.map(Namespace::Workers);
        assert!(map.actors().len() <= 10, "n{at}: {} actors", map.actors().len());
    }
    assert!(cluster.is_equal() && cluster.refused.is_empty(), "{:?}", cluster.refused);
}

#[test]
fn two_restarts_with_a_clock_set_back_take_different_epochs() {
    let mut cluster = with_folded_epochs();
    let mut epochs = BTreeSet::new();
    for round in 0..5 {
        cluster.set_clock(2, -4 * HOUR_MS - round);
        // What the epoch wrote last is known to n1 alone when the next one begins.
        cluster.restart(2);
        cluster.run_for(SECOND);
        assert!(epochs.insert(cluster.nodes[2].stores.epoch_ms()), "else a dot could mean two writes");
        cluster.set_cut(0, 2, true);
        let id = put(&mut cluster, 2, &format!("http://w:{round}"));
        cluster.run_for(Duration::from_millis(5));
        assert!(has(&cluster, 1, &id));
        cluster.set_cut(0, 2, false);
    }
    cluster.converges_within(5 * SECOND);
    for round in 0..5 {
        let id = WorkerId::of_url(&format!("http://w:{round}"));
        assert!((0..3).all(|at| has(&cluster, at, &id)), "round {round}");
    }
    assert!(cluster.refused.is_empty(), "{:?}", cluster.refused);
}

#[test]
fn a_clock_in_the_year_2100_locks_no_key_and_is_told() {
    let mut cluster = cluster(3);
    cluster.set_clock(1, TO_2100_MS);
    cluster.restart(1);
    cluster.run_for(SECOND);
    let id = put(&mut cluster, 1, "http://w:1");
    let other = put(&mut cluster, 1, "http://w:2");
    observe(&mut cluster, 1, &id);
    cluster.converges_within(SECOND);
    let told = |event: &SyncEvent| matches!(event, SyncEvent::ClockAhead { ahead_ms, .. } if *ahead_ms > 1 << 40);
    assert!(cluster.nodes[0].events.iter().any(told) && cluster.nodes[2].events.iter().any(told));
    // Another node changes one of its keys and removes the other; the wrong clock's next write wins again, being later.
    let patch = crate::mesh::stores::WorkerPatch { zone: Some("z".into()), ..Default::default() };
    let wall_ms = cluster.wall_ms_of(0);
    assert!(cluster.nodes[0].stores.patch_worker(wall_ms, &id, &patch) && remove(&mut cluster, 2, &other));
    cluster.converges_within(SECOND);
    for at in 0..3 {
        assert_eq!(cluster.nodes[at].stores.worker(&id).unwrap().spec.zone, "z", "n{at}");
        assert!(!has(&cluster, at, &other), "n{at}");
    }
    // Keys that it never wrote keep the time of those who write them.
    let own = put(&mut cluster, 0, "http://own:1");
    let newest = cluster.nodes[0].stores.map(Namespace::Workers).newest(format!("{own}/spec").as_bytes());
    assert!(newest.ms() <= cluster.wall_ms() + 1000);
    // Once its clock is right and it starts again, it is heard as before.
    cluster.set_clock(1, 0);
    cluster.restart(1);
    let right = put(&mut cluster, 1, "http://right:1");
    cluster.converges_within(5 * SECOND);
    let failed = WorkerObservation { state: WorkerState::NotReady, ..ready() };
    let wall_ms = cluster.wall_ms_of(1);
    cluster.nodes[1].stores.observe_worker(wall_ms, &id, &failed);
    cluster.converges_within(5 * SECOND);
    for at in 0..3 {
        let observed = &cluster.nodes[at].stores.worker(&id).unwrap().observed;
        assert_eq!(observed.get(&"n1".parse().unwrap()), Some(&failed), "n{at}: not what it saw in 2100");
        assert!(has(&cluster, at, &right), "n{at}");
    }
    assert!(cluster.is_equal() && cluster.refused.is_empty(), "{:?}", cluster.refused);
}

/// The newest reading that `node` has of the clock of `peer`.
fn skew_ms(cluster: &Cluster, node: usize, peer: usize) -> Option<i64> {
    let name = &cluster.nodes[peer].name;
    let mut skews = cluster.nodes[node].events.iter().filter_map(|event| match event {
        SyncEvent::ClockSkew { peer, skew_ms } if peer == name => Some(*skew_ms),
        _ => None,
    });
    skews.next_back()
}

#[test]
fn each_node_measures_the_clocks_of_its_peers_though_nothing_is_written() {
    let mut cluster = cluster(3);
    cluster.set_clock(1, 700);
    cluster.set_latency(2, Duration::from_millis(20));
    cluster.run_for(5 * SECOND);
    for (node, peer, expected_ms) in [(0, 1, 700), (1, 0, -700), (0, 2, 0), (2, 1, 700)] {
        let measured = skew_ms(&cluster, node, peer).expect("a reading");
        assert!((measured - expected_ms).abs() <= 2, "n{node} of n{peer}: {measured} ms for {expected_ms}");
    }
    // A step of ten minutes is seen with the next frame, and within a minute without one.
    cluster.set_clock(2, -600_000);
    cluster.run_for(61 * SECOND);
    assert!((skew_ms(&cluster, 0, 2).unwrap() + 600_000).abs() <= 2);
    cluster.set_clock(2, 0);
    put(&mut cluster, 0, "http://w:1");
    cluster.run_for(SECOND);
    assert!(skew_ms(&cluster, 0, 2).unwrap().abs() <= 2);
}

#[test]
fn a_way_that_is_too_long_tells_no_clock_and_asking_stays_rare() {
    let mut cluster = cluster(2);
    cluster.set_latency(1, Duration::from_millis(300));
    cluster.run_for(HOUR);
    assert_eq!(skew_ms(&cluster, 0, 1), None, "600 ms both ways");
    let asked = cluster.nodes[0].events.iter().filter(|event| matches!(event, SyncEvent::DeltaSent { .. })).count();
    assert!((55..=65).contains(&asked), "asked {asked} times in an hour");
}
