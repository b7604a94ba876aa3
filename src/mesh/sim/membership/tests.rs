//! The membership machine in whole clusters. Figures of many seeds come from `cargo bench --bench membership`.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod partitions;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;

use super::{Cluster, check};
use crate::mesh::{
    node::NodeStatus::{Alive, Down, Init, Leaving, Suspected},
    swim::{
        Event, Swim, SwimConfig,
        message::{Body, Packet, Update},
    },
    wire::membership,
};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn has(cluster: &Cluster, index: usize, wanted: impl Fn(&Event) -> bool) -> bool {
    cluster.nodes[index].events.iter().any(|(_, event)| wanted(event))
}

#[test]
fn same_seed_same_trace_hash() {
    let run = |seed| {
        let mut cluster = Cluster::converged(seed, 5);
        cluster.network.loss = 0.1;
        cluster.kill(1);
        cluster.run_for(secs(10));
        cluster.restart(1, None, Duration::ZERO);
        cluster.run_for(secs(5));
        assert!(cluster.faults().lost > 0 && cluster.faults().refusals > 0, "{:?}", cluster.faults());
        cluster.trace.hash()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn nodes_join_in_any_order_of_starts() {
    for count in [3, 5] {
        check(20, |cluster| {
            // All list all, themselves included, as in the manual's three-node pattern.
            let addrs: Vec<_> = (0..count).map(|_| cluster.fresh_addr()).collect();
            for _ in 0..count {
                cluster.add(addrs.clone());
            }
            // `add` takes fresh addresses, so the listed ones are dead: nobody is found, and all stay in INIT.
            cluster.run_for(secs(2));
            assert!(cluster.running().all(|index| cluster.nodes[index].swim.as_ref().unwrap().status() == Init));
            let real: Vec<_> = cluster.nodes.iter().map(|node| node.addr).collect();
            for index in 0..count {
                let pause = ms(cluster.random(3000));
                cluster.run_for(pause);
                cluster.reseed(index, &real);
            }
            assert!(cluster.run_until(secs(2), Cluster::is_converged).is_some());
            assert!(cluster.running().all(|index| has(cluster, index, |event| *event == Event::Joined)));
        });
    }
}

#[test]
fn the_manuals_start_order_does_not_matter() {
    check(20, |cluster| {
        // Node 2 lists node 1, node 3 lists both; node 1, which lists nobody, comes six seconds later.
        let first = cluster.fresh_addr();
        let second = cluster.add(vec![first]);
        let third = cluster.add(vec![first, cluster.nodes[second].addr]);
        let met = cluster.run_until(secs(2), |c| c.status(second, third) == Some(Alive));
        assert!(met.is_some(), "a dead first entry with a living second");
        cluster.run_for(secs(6));
        let node1 = cluster.add(Vec::new());
        cluster.move_to(node1, first);
        assert!(cluster.run_until(secs(2), Cluster::is_converged).is_some());
    });
}

#[test]
fn a_node_alone_is_alive_and_one_with_dead_seeds_stays_in_init() {
    check(3, |cluster| {
        let alone = cluster.add(Vec::new());
        let dead = cluster.fresh_addr();
        let stuck = cluster.add(vec![dead]);
        cluster.run_for(secs(120));
        assert_eq!(cluster.status(alone, alone), Some(Alive));
        assert_eq!(cluster.status(stuck, stuck), Some(Init));
    });
}

#[test]
fn a_silent_crash_is_down_everywhere_within_the_goal() {
    let took = std::cell::RefCell::new(Vec::new());
    for (count, seeds, goal) in [(3, 40, secs(5)), (5, 40, secs(4)), (40, 3, ms(4500))] {
        took.borrow_mut().clear();
        check(seeds, |cluster| {
            *cluster = Cluster::converged(cluster.seed, count);
            let wait = ms(10_000 + cluster.random(1000));
            cluster.run_for(wait);
            cluster.crash(1);
            let time = cluster.run_until(secs(10), |c| c.all_see(1, Down)).expect("DOWN within 10 s");
            assert!(time <= goal, "n={count}: {time:?}");
            assert_eq!(cluster.checker.false_downs, 0);
            took.borrow_mut().push(time);
        });
        let mut took = took.borrow_mut();
        took.sort();
        let (p50, p99) = (took[took.len() / 2], took[took.len() - 1]);
        println!("n={count}: silent crash to DOWN in every view, {} seeds: p50 {p50:?} max {p99:?}", took.len());
    }
}

#[test]
fn the_timing_flags_set_the_pace_of_detection() {
    let median = |change: fn(&mut SwimConfig)| {
        let detection = |seed| {
            let mut cluster = Cluster::new(seed);
            cluster.configure(change);
            for _ in 0..5 {
                let seeds = cluster.nodes.first().map(|node| node.addr).into_iter().collect();
                cluster.add(seeds);
            }
            cluster.run_until(secs(30), Cluster::is_converged).expect("a healthy network converges");
            let wait = ms(5000 + cluster.random(1000));
            cluster.run_for(wait);
            cluster.crash(1);
            cluster.run_until(secs(60), |c| c.all_see(1, Down)).expect("DOWN within a minute")
        };
        let mut took: Vec<_> = (1..=9).map(detection).collect();
        took.sort();
        took[4]
    };
    let usual = median(|_| {});
    // Five nodes probe each other five times per interval; the time to refute is 1 s, or 8 gossip intervals if that is more.
    let often = median(|config| config.probe_interval = ms(5000));
    assert!(often > usual + ms(300), "probes: {often:?} against {usual:?}");
    let gossip = median(|config| config.gossip_interval = ms(500));
    assert!(gossip > usual + ms(2500) && gossip < usual + ms(3500), "gossip: {gossip:?} against {usual:?}");
    let doubled = median(|config| config.suspicion_multiplier = 2.0);
    assert!(doubled > usual + ms(800) && doubled < usual + ms(1200), "suspicion: {doubled:?} against {usual:?}");
}

#[test]
fn design_3_7_a_hint_starts_the_probe_and_is_no_verdict() {
    check(20, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 5);
        cluster.run_for(secs(5));
        cluster.kill(2);
        let suspected = cluster.run_until(secs(3), |c| c.running().any(|by| c.status(by, 2) == Some(Suspected)));
        assert!(suspected.unwrap() <= ms(1100), "{suspected:?}");
        assert!(cluster.run_until(secs(3), |c| c.all_see(2, Down)).is_some());
        assert!(cluster.faults().refusals > 0);
    });
    check(5, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 3);
        let (now, addr) = (cluster.now(), cluster.nodes[1].addr);
        cluster.nodes[0].swim.as_mut().unwrap().handle_hint(now, addr);
        cluster.run_for(secs(5));
        assert_eq!((cluster.status(0, 1), cluster.checker.suspicions), (Some(Alive), 0));
    });
}

#[test]
fn one_way_and_triangle_cuts_kill_nobody() {
    check(5, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 5);
        let (a, b, c) = (cluster.nodes[0].addr, cluster.nodes[1].addr, cluster.nodes[2].addr);
        cluster.network.cut(a, b);
        cluster.network.cut(b, c);
        cluster.network.cut(c, b);
        cluster.run_for(secs(60));
        assert!(cluster.faults().cut > 0);
        assert_eq!(cluster.checker.true_downs + cluster.checker.false_downs, 0);
    });
}

#[test]
fn swim_4_2_a_suspected_node_refutes_with_a_higher_incarnation() {
    check(20, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 5);
        cluster.run_for(secs(3));
        cluster.stall(3, ms(1500));
        cluster.run_for(secs(10));
        assert!(cluster.checker.suspicions > 0 && cluster.checker.refutations > 0);
        assert!(cluster.is_converged());
        assert!(has(cluster, 3, |event| matches!(event, Event::Refuted { .. })));
        assert!(cluster.nodes[0].swim.as_ref().unwrap().member(&cluster.nodes[3].name).unwrap().incarnation > 0);
        assert_eq!(cluster.checker.true_downs, 0, "a stall of 1.5 s is shorter than any verdict");
    });
}

#[test]
fn a_restart_wins_at_once_also_at_a_new_address() {
    check(20, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 5);
        for (moves, dead_for) in [(false, ms(500)), (true, ms(500)), (true, secs(8)), (false, secs(8))] {
            cluster.crash(4);
            cluster.run_for(dead_for);
            let addr = moves.then(|| cluster.fresh_addr());
            cluster.restart(4, addr, Duration::ZERO);
            let took = cluster.run_until(secs(2), Cluster::is_converged);
            assert!(took.is_some(), "moves={moves} dead for {dead_for:?}");
        }
    });
}

#[test]
fn a_node_whose_clock_went_back_adopts_a_higher_epoch() {
    check(20, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 3);
        for moves in [false, true] {
            cluster.crash(2);
            cluster.run_for(secs(1));
            let addr = moves.then(|| cluster.fresh_addr());
            cluster.restart(2, addr, secs(3600));
            assert!(cluster.run_until(secs(4), Cluster::is_converged).is_some(), "moves={moves}");
            assert!(has(cluster, 2, |event| matches!(event, Event::EpochRaised { .. })), "moves={moves}");
        }
    });
}

#[test]
fn of_two_live_nodes_of_one_name_the_older_stays() {
    check(20, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 3);
        cluster.run_for(secs(3));
        let through = usize::try_from(cluster.random(3)).unwrap();
        let older = 1;
        let newer = cluster.add_named("node1", vec![cluster.nodes[through].addr]);
        let taken = |c: &Cluster| has(c, newer, |event| matches!(event, Event::NameTaken { .. }));
        assert!(cluster.run_until(secs(3), taken).is_some());
        cluster.crash(newer);
        assert!(cluster.run_until(secs(5), Cluster::is_converged).is_some());
        assert!(!has(cluster, older, |event| matches!(event, Event::NameTaken { .. })));
        cluster.run_for(secs(10));
        assert!(cluster.is_converged());
    });
}

#[test]
fn a_leaving_node_is_let_go_by_a_quorum_and_never_called_down() {
    for count in [2, 5, 40] {
        check(3, |cluster| {
            *cluster = Cluster::converged(cluster.seed, count);
            cluster.leave(1);
            let left = |c: &Cluster| has(c, 1, |event| *event == Event::Left);
            assert!(cluster.run_until(ms(300), left).is_some(), "n={count}");
            cluster.crash(1);
            assert!(cluster.run_until(secs(3), |c| c.all_see(1, Leaving)).is_some(), "n={count}");
            cluster.run_for(secs(30));
            assert!(cluster.all_see(1, Leaving), "n={count}");
            if count > 5 {
                return;
            }
            cluster.run_for(secs(301));
            assert!(cluster.running().all(|by| cluster.status(by, 1).is_none()), "n={count}: forgotten");
        });
    }
}

#[test]
fn a_leaving_node_keeps_a_true_view_as_long_as_it_runs() {
    check(5, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 4);
        cluster.run_for(secs(2));
        cluster.leave(1);
        cluster.run_for(secs(1));
        cluster.crash(2);
        assert!(cluster.run_until(secs(8), |c| c.status(1, 2) == Some(Down)).is_some());
        assert_eq!(cluster.status(0, 1), Some(Leaving));
    });
}

#[test]
fn leaving_without_anybody_to_tell_ends_in_bounded_time() {
    check(1, |cluster| {
        *cluster = Cluster::converged(1, 2);
        cluster.crash(0);
        cluster.leave(1);
        let left = |c: &Cluster| has(c, 1, |event| *event == Event::Left);
        assert!(cluster.run_until(ms(2100), left).is_some());
        let alone = cluster.add(Vec::new());
        cluster.leave(alone);
        assert!(has(cluster, alone, |event| *event == Event::Left));
    });
}

#[test]
fn clusters_of_different_labels_never_merge() {
    check(5, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 3);
        cluster.configure(|config| config.cluster = "other".into());
        let stranger = cluster.add(vec![cluster.nodes[0].addr]);
        cluster.run_for(secs(30));
        assert_eq!(cluster.status(stranger, stranger), Some(Init));
        assert_eq!(cluster.nodes[0].swim.as_ref().unwrap().members().count(), 3);
        assert!(cluster.faults().refused > 10);
    });
}

#[test]
fn loss_of_20_percent_kills_nobody() {
    check(3, |cluster| {
        cluster.network.loss = 0.2;
        cluster.network.reordering = 0.05;
        cluster.network.duplication = 0.05;
        for _ in 0..5 {
            let seeds = cluster.nodes.first().map(|node| node.addr).into_iter().collect();
            cluster.add(seeds);
        }
        assert!(cluster.run_until(secs(20), Cluster::is_converged).is_some());
        cluster.run_for(secs(200));
        let faults = cluster.faults();
        assert!(faults.lost > 100 && faults.reordered > 10 && faults.duplicated > 10, "{faults:?}");
        assert_eq!(cluster.checker.false_downs, 0);
    });
}

#[test]
fn design_3_9_a_stall_of_2_s_kills_no_healthy_node() {
    check(5, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 10);
        for _ in 0..5 {
            for _ in 0..2 {
                let index = usize::try_from(cluster.random(10)).unwrap();
                cluster.stall(index, secs(2));
            }
            cluster.run_for(secs(10));
        }
        assert_eq!((cluster.checker.false_downs, cluster.faults().stalls), (0, 10));
        assert!(cluster.run_until(secs(5), Cluster::is_converged).is_some());
    });
}

#[test]
fn a_slow_clock_and_a_narrow_path_harm_nobody() {
    check(5, |cluster| {
        cluster.network.mtu = 1200;
        let seed = cluster.add(Vec::new());
        let addr = cluster.nodes[seed].addr;
        for _ in 1..20 {
            cluster.add(vec![addr]);
        }
        cluster.set_speed(5, 0.8);
        cluster.restart(5, None, Duration::ZERO);
        assert!(cluster.run_until(secs(5), Cluster::is_converged).is_some());
        cluster.run_for(secs(60));
        assert_eq!((cluster.checker.false_downs, cluster.faults().too_large), (0, 0));
        assert!(cluster.is_converged());
    });
}

#[test]
fn down_peers_are_forgotten_after_the_documented_time_and_do_not_come_back() {
    check(2, |cluster| {
        cluster.configure(|config| config.forget_down_after = secs(60));
        for _ in 0..4 {
            let seeds = cluster.nodes.first().map(|node| node.addr).into_iter().collect();
            cluster.add(seeds);
        }
        cluster.run_for(secs(3));
        // Node 3 sleeps through the death of node 2 and speaks of it as ALIVE when everybody has forgotten it.
        cluster.stall(3, secs(90));
        cluster.crash(2);
        cluster.run_for(secs(80));
        assert_eq!(cluster.status(0, 2), None);
        cluster.run_for(secs(100));
        assert!(cluster.running().all(|by| cluster.status(by, 2).is_none()));
        assert!(!has(cluster, 0, |event| matches!(event, Event::FalseSuspicion { name } if name.as_str() == "node2")));
        assert!(cluster.is_converged());
    });
}

#[test]
fn nodes_that_never_were_are_gone_after_five_minutes() {
    check(1, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 5);
        let from = cluster.fresh_addr();
        for index in 0..40 {
            let said = invented(index, cluster.fresh_addr());
            cluster.inject(0, from, said);
        }
        assert_eq!(cluster.nodes[0].swim.as_ref().unwrap().members().count(), 45, "they are believed at first");
        assert!(cluster.run_until(secs(120), Cluster::is_converged).is_some(), "{}", cluster.describe());
        cluster.run_for(secs(310));
        assert!(cluster.running().all(|by| cluster.nodes[by].swim.as_ref().unwrap().members().count() == 5));
        assert_eq!(cluster.checker.false_downs, 0);
    });
}

/// Gossip of a stranger about a node that never was.
fn invented(index: u64, addr: SocketAddr) -> Bytes {
    let update = Update {
        name: format!("ghost{index}").parse().unwrap(),
        status: Alive,
        epoch_ms: 1,
        incarnation: 0,
        addr,
        host: String::new(),
        zone: String::new(),
        age: Duration::ZERO,
        accusers: Vec::new(),
    };
    let node = format!("stranger{index}").parse().unwrap();
    membership::encode(
        "smg",
        &Packet { node, epoch_ms: 1, incarnation: 0, body: Body::Gossip { seq: 0 }, updates: vec![update] },
    )
}

#[test]
fn a_join_storm_through_one_seed_ends_within_5_s() {
    check(1, |cluster| {
        let seed = cluster.add(Vec::new());
        let addr = cluster.nodes[seed].addr;
        for _ in 1..100 {
            cluster.run_for(ms(10));
            cluster.add(vec![addr]);
        }
        let took = cluster.run_until(secs(5), Cluster::is_converged);
        assert!(took.is_some());
        println!("n=100: join storm of 1 s through one seed converged {took:?} after the last start");
    });
}

#[test]
fn idle_traffic_is_flat_in_n() {
    for (count, bound) in [(20, 500), (100, 500)] {
        check(1, |cluster| {
            *cluster = Cluster::converged(1, count);
            cluster.run_for(secs(5));
            let before: u64 = cluster.nodes.iter().map(|node| node.sent_bytes).sum();
            cluster.run_for(secs(10));
            let after: u64 = cluster.nodes.iter().map(|node| node.sent_bytes).sum();
            let rate = (after - before) / count as u64 / 10;
            println!("n={count}: idle {rate} B/s per node, headers included");
            assert!(rate <= bound, "n={count}: {rate} B/s");
        });
    }
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = || {
        let mut cluster = Cluster::converged(7, 5);
        cluster.network.loss = 0.1;
        cluster.crash(2);
        cluster.run_for(secs(20));
        let bytes: Vec<_> = cluster.nodes.iter().map(|node| node.sent_bytes).collect();
        (cluster.faults().clone(), bytes)
    };
    assert_eq!(run(), run());
}

#[test]
fn random_faults_violate_no_invariant_and_the_cluster_converges_after_them() {
    check(10, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 6);
        cluster.network.loss = 0.1;
        cluster.network.reordering = 0.1;
        cluster.network.duplication = 0.1;
        for _ in 0..30 {
            let index = usize::try_from(cluster.random(6)).unwrap();
            let other = usize::try_from(cluster.random(6)).unwrap();
            match cluster.random(7) {
                0 => cluster.crash(index),
                1 => cluster.kill(index),
                2 if cluster.nodes[index].swim.is_none() => {
                    let addr = (cluster.random(2) == 0).then(|| cluster.fresh_addr());
                    let back = secs(cluster.random(2) * 1000);
                    cluster.restart(index, addr, back);
                }
                3 => {
                    let time = ms(cluster.random(6000));
                    cluster.stall(index, time);
                }
                4 => {
                    let (a, b) = (cluster.nodes[index].addr, cluster.nodes[other].addr);
                    cluster.network.cut(a, b);
                }
                5 => cluster.partition(&[index], &[(index + 1) % 6, (index + 2) % 6, (index + 3) % 6]),
                _ => cluster.network.heal(),
            }
            let pause = ms(cluster.random(4000));
            cluster.run_for(pause);
        }
        cluster.network.heal();
        // Host names of seeds resolve to where the nodes are now.
        let addrs: Vec<_> = cluster.nodes.iter().map(|node| node.addr).collect();
        for index in 0..6 {
            cluster.reseed(index, &addrs);
            if cluster.nodes[index].swim.is_none() {
                cluster.restart(index, None, Duration::ZERO);
            }
        }
        assert!(cluster.run_until(secs(20), Cluster::is_converged).is_some(), "{}", cluster.describe());
        let faults = cluster.faults();
        assert!(faults.lost > 0 && faults.duplicated > 0 && faults.reordered > 0, "{faults:?}");
    });
}

#[test]
fn junk_is_refused_and_changes_nothing() {
    check(3, |cluster| {
        *cluster = Cluster::converged(cluster.seed, 3);
        let from = cluster.fresh_addr();
        for length in [0, 1, 100, 1200, 65_535] {
            for fill in [0, 0x0a, 0xff] {
                cluster.inject(0, from, Bytes::from(vec![fill; length]));
            }
        }
        assert_eq!(cluster.faults().refused, 15);
        assert!(cluster.is_converged());
    });
}

#[test]
fn a_node_that_lost_its_name_is_silent() {
    check(1, |cluster| {
        *cluster = Cluster::converged(1, 2);
        let newer = cluster.add_named("node1", vec![cluster.nodes[0].addr]);
        cluster.run_for(secs(5));
        let before = cluster.nodes[newer].sent_bytes;
        cluster.run_for(secs(20));
        assert_eq!(cluster.nodes[newer].sent_bytes, before);
        assert_eq!(cluster.nodes[newer].swim.as_ref().and_then(Swim::poll_timeout), None);
    });
}
