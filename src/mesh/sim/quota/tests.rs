//! What the design promises of limits, and that the checkers notice when it does not hold.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, time::Duration};

use rand::RngExt;

use super::{Cluster, Plan, slots};
use crate::mesh::quota::{Timing, local::WithoutQuorum, share::Share};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A cluster with a leader, and rights that have settled; `demand` requests a second in all, evenly.
fn settled(plan: Plan, seed: u64, demand: f64) -> Cluster {
    let mut cluster = Cluster::new(plan, seed);
    let nodes = cluster.plan.nodes;
    (0..nodes).for_each(|n| cluster.set_demand(n, demand / nodes as f64));
    cluster.run_for(secs(6));
    assert!(cluster.leader().is_some(), "seed {seed}: nobody leads");
    cluster
}

/// Seeds from 0, so many or as `SMG_SIM_SEEDS` says.
fn seeds(count: u64) -> std::ops::Range<u64> {
    0..std::env::var("SMG_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(count)
}

fn all_on(cluster: &mut Cluster, node: usize, demand: f64) {
    for n in 0..cluster.plan.nodes {
        cluster.set_demand(n, if n == node { demand } else { 0.0 });
    }
}

#[test]
fn an_even_load_uses_the_limit() {
    for (nodes, limit, burst, demand) in
        [(1, 100, 20, 300.0), (3, 100, 20, 300.0), (5, 100, 20, 300.0), (5, 1000, 1000, 1500.0), (9, 500, 50, 1000.0)]
    {
        for seed in 0..3 {
            let mut cluster = settled(Plan { nodes, limit, burst, ..Plan::default() }, seed, demand);
            let used = cluster.run_for(secs(20));
            let case = format!("{nodes} nodes, {limit}/s, burst {burst}, seed {seed}: {used}");
            assert!((0.95..=1.02).contains(&used), "{case}");
            assert_eq!(cluster.violations, 0, "{case}");
        }
    }
}

#[test]
fn all_on_one_node_uses_the_limit() {
    for nodes in [3, 5] {
        for seed in 0..3 {
            let mut cluster = settled(Plan { nodes, ..Plan::default() }, seed, 0.0);
            all_on(&mut cluster, 1, 300.0);
            cluster.run_for(secs(2));
            let used = cluster.run_for(secs(20));
            assert!(used >= 0.90, "{nodes} nodes, seed {seed}: {used}");
            assert_eq!(cluster.violations, 0, "{nodes} nodes, seed {seed}");
        }
    }
}

#[test]
fn a_load_that_shifts_is_followed_within_2_s() {
    for seed in 0..5 {
        let mut cluster = settled(Plan { nodes: 5, ..Plan::default() }, seed, 0.0);
        let mut used = Vec::new();
        for turn in 0..10 {
            all_on(&mut cluster, turn % 5, 300.0);
            cluster.run_for(secs(2));
            used.push(cluster.run_for(secs(1)));
        }
        let mean = used.iter().sum::<f64>() / used.len() as f64;
        assert!(mean >= 0.90, "seed {seed}: {mean} of {used:?}");
        assert_eq!(cluster.violations, 0, "seed {seed}");
    }
}

#[test]
fn after_a_kill_the_others_use_the_limit_within_8_s() {
    for seed in 0..10 {
        let mut cluster = settled(Plan { nodes: 5, ..Plan::default() }, seed, 500.0);
        let leader = cluster.leader().unwrap();
        let victim = if seed % 2 == 0 { leader } else { (leader + 1) % 5 };
        cluster.crash(victim);
        cluster.run_for(secs(4));
        let used = cluster.run_for(secs(4));
        assert!(used >= 0.90, "seed {seed}: {used}");
        assert_eq!(cluster.violations, 0, "seed {seed}");
    }
}

/// A partition: the side of the quorum has the whole limit, the other nothing.
#[test]
fn the_side_with_the_quorum_keeps_the_limit() {
    for seed in 0..5 {
        let mut cluster = settled(Plan { nodes: 5, ..Plan::default() }, seed, 500.0);
        let leader = cluster.leader().unwrap();
        let minority: BTreeSet<usize> = [leader, (leader + 1) % 5].into();
        cluster.partition(&minority);
        cluster.run_for(secs(5));
        let used = cluster.run_for(secs(5));
        assert!(used >= 0.90, "seed {seed}: {used}");
        assert!(minority.iter().all(|n| cluster.held(*n) == Share::NONE), "seed {seed}");
        cluster.heal();
        cluster.run_for(secs(2));
        assert!((0..5).all(|n| cluster.held(n) != Share::NONE), "seed {seed}: all take part again");
        assert_eq!(cluster.violations, 0, "seed {seed}");
    }
}

/// One fault; the leader, when there is one, is its victim more often than others.
fn fault(cluster: &mut Cluster) {
    let count = cluster.plan.nodes;
    let any = cluster.rng().random_range(0..count);
    let victim = cluster.leader().filter(|_| cluster.rng().random_bool(0.5)).unwrap_or(any);
    match cluster.rng().random_range(0..9) {
        0 => {
            cluster.count("crash");
            cluster.crash(victim);
        }
        1 => {
            cluster.count("restart");
            cluster.crash(victim);
            let gap = millis(cluster.rng().random_range(0..300));
            cluster.run_for(gap);
            cluster.start(victim);
        }
        2 => {
            cluster.count("stall");
            let time = millis(cluster.rng().random_range(50..4000));
            cluster.stall(victim, time);
        }
        3 => {
            cluster.count("partition");
            let one: BTreeSet<usize> = (0..count).filter(|_| cluster.rng().random_bool(0.5)).collect();
            cluster.partition(&one);
        }
        4 => {
            cluster.count("one-way cut");
            let other = cluster.rng().random_range(0..count);
            if other != victim {
                cluster.cut(victim, other);
            }
        }
        5 => {
            cluster.count("heavy loss");
            cluster.plan.loss = cluster.rng().random_range(0.0..0.4);
        }
        6 => {
            cluster.count("shift");
            all_on(cluster, any, 400.0);
        }
        7 => {
            cluster.count("limit");
            let limit = Share::of_tokens(cluster.rng().random_range(1..300), cluster.rng().random_range(1..60));
            cluster.set_limit(limit);
        }
        _ => {
            cluster.count("leave");
            cluster.leave(victim);
        }
    }
}

/// Faults one after the other, now and then all is mended.
fn storm(plan: Plan, seed: u64, faults: u32) -> Cluster {
    let loss = plan.loss;
    let mut cluster = settled(plan, seed, 300.0);
    for n in 0..faults {
        fault(&mut cluster);
        let gap = millis(cluster.rng().random_range(0..2500));
        cluster.run_for(gap);
        if n % 4 == 3 {
            cluster.heal();
            cluster.plan.loss = loss;
            for node in 0..cluster.plan.nodes {
                if cluster.escrow(node).is_none() || cluster.nodes[node].leaving {
                    cluster.start(node);
                }
                cluster.set_demand(node, 80.0);
            }
            cluster.run_for(secs(4));
        }
    }
    cluster
}

fn rough(nodes: usize) -> Plan {
    let delay = (Duration::from_micros(100), millis(150));
    Plan { nodes, drift: 0.1, loss: 0.05, duplicates: 0.05, delay, ..Plan::default() }
}

/// Admitted(τ) ≤ limit·τ + burst in every window, whatever happens.
#[test]
fn the_limit_holds_in_a_storm() {
    let seeds = std::env::var("SMG_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(6);
    for seed in 0..seeds {
        let plan = if seed % 3 == 0 { Plan { drift: 0.0, ..rough(5) } } else { rough(3 + seed as usize % 3) };
        let cluster = storm(plan, seed, 120);
        assert_eq!(cluster.violations, 0, "seed {seed}: {:?}", cluster.faults());
        assert!(cluster.admitted > 5000, "seed {seed}: {} admitted", cluster.admitted);
        for what in ["crash", "restart", "stall", "partition", "one-way cut", "loss", "cut", "shift", "limit", "leave"]
        {
            assert!(cluster.faults().contains_key(what), "seed {seed}: no {what}");
        }
    }
}

/// With local shares both bounds hold in the same storm, and something is admitted by them.
#[test]
fn local_shares_hold_their_bound_in_a_storm() {
    let mut locally = 0;
    for seed in 0..6 {
        let cluster = storm(Plan { mode: WithoutQuorum::Local, ..rough(3 + seed as usize % 3) }, seed, 120);
        assert_eq!(cluster.violations, 0, "seed {seed}: {:?}", cluster.faults());
        locally += cluster.admitted_locally;
    }
    assert!(locally > 2000, "{locally} admitted locally");
}

/// A minority of two admits two of five parts of the limit, and not a token more of what a leader lends once it is back.
#[test]
fn a_minority_with_local_shares_admits_its_parts() {
    for seed in 0..5 {
        let plan = Plan { nodes: 5, mode: WithoutQuorum::Local, ..Plan::default() };
        let mut cluster = settled(plan, seed, 500.0);
        let leader = cluster.leader().unwrap();
        let minority: BTreeSet<usize> = [leader, (leader + 1) % 5].into();
        cluster.partition(&minority);
        cluster.run_for(secs(5));
        let before = cluster.admitted_locally;
        let used = cluster.run_for(secs(10));
        let locally = (cluster.admitted_locally - before) as f64 / 1000.0;
        assert!((0.38..=0.41).contains(&locally), "seed {seed}: {locally}");
        assert!((1.30..=1.42).contains(&used), "seed {seed}: {used}");
        cluster.heal();
        cluster.run_for(secs(3));
        let before = cluster.admitted_locally;
        let used = cluster.run_for(secs(5));
        assert!((0.95..=1.03).contains(&used) && cluster.admitted_locally == before, "seed {seed}: {used}");
        assert_eq!(cluster.violations, 0, "seed {seed}: {:?}", cluster.faults());
    }
}

/// The checkers see what they are there for: a leader that lends what a holder may still have breaks the limit.
#[test]
fn lending_before_a_lease_is_over_is_found() {
    let timing = Timing { hold: millis(150), ..Timing::default() };
    let found = (0..20).any(|seed| storm(Plan { timing, ..rough(3) }, seed, 60).violations > 0);
    assert!(found, "no schedule lent a right twice");
}

/// What a rolling restart does to each leader: the next one is elected, and told what is held, before any lease is over.
#[test]
fn a_leader_that_leaves_has_nobody_refused() {
    for seed in 0..20 {
        let mut cluster = settled(Plan { nodes: 3, limit: 1000, burst: 1000, ..Plan::default() }, seed, 150.0);
        let (leader, refused) = (cluster.leader().unwrap(), cluster.refused);
        cluster.leave(leader);
        cluster.run_for(secs(4));
        assert_ne!(cluster.leader(), Some(leader), "seed {seed}");
        assert_eq!(cluster.refused, refused, "seed {seed}");
        assert_eq!(cluster.violations, 0, "seed {seed}");
    }
}

/// What part of the slots was in use over a time, by the length of what ended.
fn busy(cluster: &mut Cluster, time: Duration) -> f64 {
    let (mut sum, steps) = (0, 100);
    for _ in 0..steps {
        cluster.run_for(time / steps);
        sum += cluster.in_flight().0;
    }
    sum as f64 / f64::from(steps) / cluster.plan.slots.unwrap().slots as f64
}

/// Slots are used wherever the requests are, within a few times their length after they shift.
#[test]
fn slots_follow_the_load() {
    for seed in 0..3 {
        let mut cluster = settled(Plan { slots: Some(slots::Plan::default()), ..Plan::default() }, seed, 60.0);
        cluster.run_for(secs(10));
        let even = busy(&mut cluster, secs(20));
        assert!(even >= 0.90, "seed {seed}: {even} of the slots in use under an even load");
        let mut shifted = Vec::new();
        for node in 0..3 {
            all_on(&mut cluster, node, 60.0);
            cluster.run_for(secs(8));
            shifted.push(busy(&mut cluster, secs(10)));
        }
        assert!(shifted.iter().all(|part| *part >= 0.80), "seed {seed}: {shifted:?} after shifts");
        assert_eq!((cluster.violations, cluster.slots.broken), (0, 0), "seed {seed}: {:?}", cluster.slots);
    }
}

/// An election breaks nothing, neither after a crash of the leader nor when it leaves.
#[test]
fn an_election_breaks_no_request() {
    for seed in 0..10 {
        let plan = Plan { slots: Some(slots::Plan { length: secs(30), ..slots::Plan::default() }), ..Plan::default() };
        let mut cluster = settled(Plan { nodes: 5, ..plan }, seed, 20.0);
        cluster.run_for(secs(10));
        let leader = cluster.leader().unwrap();
        if seed % 2 == 0 {
            cluster.crash(leader);
        } else {
            cluster.leave(leader);
        }
        cluster.run_for(secs(10));
        assert!(cluster.leader().is_some_and(|now| now != leader), "seed {seed}");
        assert_eq!((cluster.violations, cluster.slots.broken), (0, 0), "seed {seed}: {:?}", cluster.slots);
    }
}

/// A node that starts among others that are full, with little demand, gets its part.
#[test]
fn a_node_that_starts_among_full_ones_is_served() {
    for seed in 0..3 {
        let slots = slots::Plan { slots: 200, length: secs(30), ..slots::Plan::default() };
        let mut cluster = settled(Plan { slots: Some(slots), ..Plan::default() }, seed, 30.0);
        for (n, demand) in [(0, 45.0), (1, 45.0), (2, 2.0)] {
            cluster.set_demand(n, demand);
        }
        cluster.crash(2);
        cluster.run_for(secs(60));
        assert!(cluster.in_flight().0 >= 195, "seed {seed}: the two are full");
        cluster.start(2);
        cluster.run_for(secs(60));
        let (held, busy) = (cluster.slots_held(2), busy(&mut cluster, secs(20)));
        assert!(held >= 6, "seed {seed}: {held} slots");
        assert!(busy >= 0.95, "seed {seed}: {busy} of the slots in use");
        // Of the rate it needs 2 of 100 on average, while the others have use for 90; a 75th is always its own.
        let held = cluster.held(2).tokens();
        assert!(held.0 >= 1.3, "seed {seed}: {held:?}");
        assert_eq!((cluster.violations, cluster.slots.broken), (0, 0), "seed {seed}");
    }
}

/// With fewer slots than nodes shares go round while requests run, and every request keeps its slot to its end.
#[test]
fn fewer_slots_than_nodes_go_round_and_break_nothing() {
    for (seed, count) in [(0, 1), (1, 2), (2, 1), (3, 2)] {
        let slots = slots::Plan { slots: count, length: secs(8), ..slots::Plan::default() };
        let mut cluster = settled(Plan { nodes: 5, slots: Some(slots), ..Plan::default() }, seed, 20.0);
        cluster.run_for(secs(10));
        let busy = busy(&mut cluster, secs(200));
        assert!(busy >= 0.9, "seed {seed}: {busy} of the slots in use");
        let tally = cluster.slots;
        assert!(tally.ended > 10 * count, "seed {seed}: {tally:?}");
        assert_eq!((cluster.violations, tally.broken), (0, 0), "seed {seed}: {tally:?}");
    }
}

/// The minority's requests are broken before the leader lends their slots to the others, which then use all of them.
#[test]
fn a_minority_breaks_its_requests_and_the_majority_gets_the_slots() {
    let mut moved = 0;
    for (seed, mode) in seeds(2).flat_map(|seed| [(seed, WithoutQuorum::Closed), (seed, WithoutQuorum::Local)]) {
        let plan = Plan { slots: Some(slots::Plan { length: secs(60), ..slots::Plan::default() }), ..Plan::default() };
        let mut cluster = settled(Plan { nodes: 5, mode, ..plan }, seed, 100.0);
        // Until what began in local shares before there was a leader has ended.
        cluster.run_for(secs(if mode == WithoutQuorum::Local { 240 } else { 20 }));
        let leader = cluster.leader().unwrap();
        let minority: BTreeSet<usize> = [leader, (leader + 1) % 5].into();
        cluster.partition(&minority);
        cluster.run_for(secs(30));
        let (lent, local) = cluster.in_flight();
        let case = format!("seed {seed}, {}: {:?}", mode.as_str(), cluster.slots);
        assert!(lent >= 18, "{case}: {lent} of 20 at the majority");
        assert!(minority.iter().all(|n| cluster.slots_held(*n) == 0), "{case}");
        assert!(cluster.slots.broken > 0, "{case}");
        match mode {
            WithoutQuorum::Closed => assert_eq!(local, 0, "{case}"),
            // A fifth of 20 at each of two, and what the others may have begun so before there was a leader.
            WithoutQuorum::Local => assert!((8..=20).contains(&local), "{case}: {local}"),
        }
        assert_eq!(cluster.violations, 0, "{case}: {:?}", cluster.faults());
        moved += cluster.slots.moved;
    }
    // Not at every seed: new requests may have taken the local slots before those that run notice the end of their lease.
    assert!(moved > 0, "no request went on in a local slot");
}

/// In flight over all nodes is within the bound at every instant, whatever happens.
#[test]
fn the_bound_on_requests_in_flight_holds_in_a_storm() {
    let all = seeds(6);
    let seeds = all.end;
    let (mut broken, mut full) = (0, 0);
    for seed in all {
        let mode = if seed % 2 == 0 { WithoutQuorum::Closed } else { WithoutQuorum::Local };
        let length = secs(1 + seed % 3 * 10);
        let slots = slots::Plan { slots: [20, 4, 7][seed as usize % 3], length, ..slots::Plan::default() };
        let cluster = storm(Plan { mode, slots: Some(slots), ..rough(3 + seed as usize % 3) }, seed, 120);
        assert_eq!(cluster.violations, 0, "seed {seed}: {:?}", cluster.faults());
        let tally = cluster.slots;
        assert!(tally.begun > 3 * slots.slots && tally.ended > 0 && tally.refused > 0, "seed {seed}: {tally:?}");
        broken += tally.broken;
        full += u64::from(tally.most.0 == slots.slots);
        for what in ["crash", "restart", "stall", "partition", "one-way cut", "loss", "cut", "shift", "leave"] {
            assert!(cluster.faults().contains_key(what), "seed {seed}: no {what}");
        }
    }
    assert!(broken >= 5 * seeds && full * 2 > seeds, "{broken} broken, {full} runs at the bound");
}

/// The checker sees what it is there for, at every seed: a node whose requests outlive their lease, and a leader that lends
/// too early. A follower with slots in use is cut off, and the others have use for all.
#[test]
fn requests_that_outlive_their_lease_are_found() {
    let plan = slots::Plan { length: secs(60), ..slots::Plan::default() };
    let early = Timing { hold: millis(1500), ..Timing::slots() };
    for (case, plan, is_found) in [
        ("as it is", plan, false),
        ("a holder that goes on", slots::Plan { ignores_end: true, ..plan }, true),
        ("a leader that lends too early", slots::Plan { timing: early, ..plan }, true),
    ] {
        for seed in seeds(3) {
            let mut cluster = settled(Plan { slots: Some(plan), ..Plan::default() }, seed, 60.0);
            cluster.run_for(secs(20));
            let follower = (cluster.leader().unwrap() + 1) % 3;
            assert!(cluster.slots_held(follower) > 0, "{case}, seed {seed}: it has slots to lose");
            cluster.partition(&[follower].into());
            cluster.run_for(secs(12));
            let faults = cluster.faults();
            assert_eq!(faults.contains_key("in flight beyond"), is_found, "{case}, seed {seed}: {faults:?}");
        }
    }
}

/// Slots that are idle go to whoever has use for them: 2 s after all requests began to come to another node. Every node keeps
/// one, and a 25th of all is spread over them, so of few slots more are idle.
#[test]
fn idle_slots_follow_the_load_within_2_s() {
    for (count, length) in [(100, millis(200)), (1000, millis(100))] {
        for seed in seeds(2) {
            let slots = slots::Plan { slots: count, length, ..slots::Plan::default() };
            let mut cluster = settled(Plan { slots: Some(slots), ..Plan::default() }, seed, 0.0);
            // Twice as many as there are slots for.
            let demand = 2.0 * count as f64 / length.as_secs_f64();
            all_on(&mut cluster, 0, demand);
            cluster.run_for(secs(10));
            for node in [1, 2, 0] {
                all_on(&mut cluster, node, demand);
                let parts: Vec<f64> = (0..6).map(|_| busy(&mut cluster, millis(500))).collect();
                println!("{count} slots, seed {seed}, in use in each half second after a shift: {parts:.2?}");
                let third = parts[4].midpoint(parts[5]);
                assert!(third >= 0.90, "{count} slots, seed {seed}: {parts:?}");
            }
            assert_eq!((cluster.violations, cluster.slots.broken), (0, 0), "{count} slots, seed {seed}");
        }
    }
}
