//! Sides that do not hear each other for a time, and what becomes of them then.

use super::*;

#[test]
fn a_node_that_was_cut_off_slows_nobodys_detection() {
    check(20, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 5);
        for _ in 0..3 {
            cluster.run_for(secs(5));
            cluster.partition(&[0], &[1, 2, 3, 4]);
            cluster.run_for(secs(2));
            cluster.network.heal();
            assert!(cluster.run_until(secs(3), Cluster::is_converged).is_some());
        }
        assert!(has(cluster, 0, |event| matches!(event, Event::Suspected { local: true, .. })));
        cluster.crash(2);
        let time = cluster.run_until(secs(20), |c| c.all_see(2, Down)).expect("DOWN within 20 s");
        assert!(time <= secs(4), "{time:?}");
    });
}

#[test]
fn a_partition_makes_two_clusters_and_heals_by_itself() {
    check(20, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 5);
        cluster.partition(&[0, 1], &[2, 3, 4]);
        cluster.run_for(secs(15));
        assert!(cluster.faults().cut > 0);
        for (by, of, status) in [(0, 1, Alive), (0, 2, Down), (4, 2, Alive), (4, 1, Down)] {
            assert_eq!(cluster.status(by, of), Some(status), "{by} sees {of}");
        }
        cluster.network.heal();
        assert!(cluster.run_until(secs(5), Cluster::is_converged).is_some());
        assert!(cluster.checker.refutations > 0 && cluster.checker.true_downs > 0);
    });
}

#[test]
fn nobody_is_called_down_by_its_own_side_of_a_partition_that_heals() {
    check(16, |cluster| {
        // Posts that are acked, or gossip.
        let cluster_size = if cluster.seed % 5 == 4 { 40 } else { 20 };
        *cluster = Cluster::converged(cluster.seed, cluster_size);
        let (few, many): (Vec<_>, Vec<_>) = (0..cluster_size).partition(|index| index * 5 < cluster_size * 2);
        cluster.partition(&few, &many);
        // Long enough that each side calls all of the other DOWN, or so short that some were not even missed.
        let is_long = cluster.seed % 2 == 0;
        cluster.run_for(if is_long { secs(35) } else { ms(2500 + 500 * cluster.seed) });
        let is_own = |by: usize, of: usize| few.contains(&by) == few.contains(&of);
        let pairs = || (0..cluster_size).flat_map(|by| (0..cluster_size).map(move |of| (by, of)));
        for (by, of) in pairs().filter(|_| is_long) {
            assert_eq!(cluster.status(by, of), Some(if is_own(by, of) { Alive } else { Down }), "{by} sees {of}");
        }
        cluster.network.heal();
        assert!(cluster.run_until(secs(15), Cluster::is_converged).is_some(), "{}", cluster.describe());
        for (by, of) in pairs() {
            let name = cluster.nodes[of].name.clone();
            let is_death = |event: &Event| matches!(event, Event::MemberChanged(change) if change.name == name && change.to == Down);
            assert!(!is_own(by, of) || !has(cluster, by, is_death), "{by} called {of} DOWN");
        }
    });
}

#[test]
fn sides_that_forgot_each_other_meet_again_through_their_seeds() {
    check(3, |cluster| {
        cluster.configure(|config| config.forget_down_after = secs(30));
        for _ in 0..5 {
            cluster.add(Vec::new());
        }
        let all: Vec<_> = cluster.nodes.iter().map(|node| node.addr).collect();
        (0..5).for_each(|index| cluster.reseed(index, &all));
        assert!(cluster.run_until(secs(20), Cluster::is_converged).is_some());
        cluster.partition(&[0, 1], &[2, 3, 4]);
        cluster.run_for(secs(60));
        assert_eq!((cluster.status(0, 2), cluster.status(2, 0)), (None, None), "forgotten on both sides");
        cluster.network.heal();
        let took = cluster.run_until(secs(20), Cluster::is_converged);
        assert!(took.is_some(), "{}", cluster.describe());
    });
}
