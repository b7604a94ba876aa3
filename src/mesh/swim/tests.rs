//! The machine by itself: hostile bytes, bounds, and what the driver relies on. Whole clusters are in `mesh::sim`.

#![allow(clippy::unwrap_used)]

mod rules;

use proptest::prelude::*;

use super::{
    message::{Body, Update},
    *,
};

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn addr(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 39527))
}

fn machine(now: Instant, has_seeds: bool) -> Swim {
    let mut config = SwimConfig::new(name("a"), addr(1), 1000);
    config.has_seeds = has_seeds;
    Swim::new(config, now, 1)
}

fn update(node: &str, status: NodeStatus, incarnation: u64, last: u8) -> Update {
    Update {
        name: name(node),
        status,
        epoch_ms: 500,
        incarnation,
        addr: addr(last),
        host: String::new(),
        zone: String::new(),
        age: Duration::ZERO,
        accusers: Vec::new(),
    }
}

fn packet(body: Body, updates: Vec<Update>) -> Packet {
    Packet { node: name("b"), epoch_ms: 500, incarnation: 0, body, updates }
}

fn hear(swim: &mut Swim, now: Instant, packet: &Packet) {
    swim.handle_datagram(now, addr(2), Via::Datagram, &wire::encode("smg", packet)).unwrap();
}

fn sent(swim: &mut Swim) -> Vec<(Transmit, Packet)> {
    std::iter::from_fn(|| swim.poll_transmit())
        .map(|transmit| {
            let packet = wire::decode("smg", &transmit.payload).unwrap();
            (transmit, packet)
        })
        .collect()
}

fn events(swim: &mut Swim) -> Vec<Event> {
    std::iter::from_fn(|| swim.poll_event()).collect()
}

/// A machine that knows the live peer `b` and has been drained.
fn with_peer(now: Instant) -> Swim {
    let mut swim = machine(now, false);
    hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![update("b", NodeStatus::Alive, 0, 2)]));
    sent(&mut swim);
    events(&mut swim);
    swim
}

#[test]
fn init_ends_when_nobody_is_to_be_waited_for_or_somebody_was_heard() {
    let now = Instant::now();
    for (case, has_seeds, seeds, status) in [
        ("no seeds", false, vec![], NodeStatus::Alive),
        ("all seeds are this node", true, vec![addr(1)], NodeStatus::Alive),
        ("another seed", true, vec![addr(1), addr(2)], NodeStatus::Init),
        ("nothing resolved yet", true, vec![], NodeStatus::Init),
    ] {
        let mut swim = machine(now, has_seeds);
        swim.handle_seeds(now, &seeds);
        assert_eq!(swim.status(), status, "{case}");
        hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![]));
        assert_eq!(swim.status(), NodeStatus::Alive, "{case}: heard");
        assert_eq!(events(&mut swim).iter().filter(|event| **event == Event::Joined).count(), 1, "{case}");
    }
}

#[test]
fn in_init_every_seed_is_asked_with_growing_pauses_up_to_a_second() {
    let start = Instant::now();
    let mut swim = machine(start, true);
    swim.handle_seeds(start, &[addr(2), addr(3)]);
    let mut asked = Vec::new();
    while let Some(due) = swim.poll_timeout().filter(|due| *due < start + Duration::from_secs(10)) {
        swim.handle_timeout(due);
        asked.extend(sent(&mut swim).iter().map(|(transmit, _)| (due - start, transmit.to)));
    }
    let second = asked.iter().filter(|(_, to)| *to == addr(3)).count();
    assert_eq!(second * 2, asked.len());
    assert!((11..=14).contains(&second), "{asked:?}");
    assert!(asked[2].0 < Duration::from_millis(120), "{asked:?}");
}

#[test]
fn swim_4_2_news_of_this_node_is_refuted_with_a_higher_incarnation() {
    let now = Instant::now();
    for (case, status, incarnation, refuted) in [
        ("suspected", NodeStatus::Suspected, 0, Some(1)),
        ("down, of a later incarnation than ours", NodeStatus::Down, 7, Some(8)),
        ("leaving, which we do not", NodeStatus::Leaving, 0, Some(1)),
        ("alive is no news", NodeStatus::Alive, 0, None),
    ] {
        let mut swim = with_peer(now);
        let said = Update { epoch_ms: 1000, ..update("a", status, incarnation, 1) };
        hear(&mut swim, now, &packet(Body::Ping { seq: 1, target: None, digest: 0 }, vec![said]));
        let ack = sent(&mut swim).into_iter().find(|(transmit, _)| transmit.kind == MessageKind::Ack).unwrap().1;
        assert_eq!(ack.incarnation, refuted.unwrap_or(0), "{case}");
        let reported = events(&mut swim).into_iter().find_map(|event| match event {
            Event::Refuted { incarnation } => Some(incarnation),
            _ => None,
        });
        assert_eq!(reported, refuted, "{case}");
    }
}

#[test]
fn updates_up_to_32_nodes_are_sent_again_until_acked_at_most_5_times() {
    let start = Instant::now();
    let mut swim = with_peer(start);
    hear(&mut swim, start, &packet(Body::Gossip { seq: 0 }, vec![update("c", NodeStatus::Alive, 0, 3)]));
    swim.leave(start);
    let first = sent(&mut swim);
    let (_, to_b) = first.iter().find(|(transmit, _)| transmit.to == addr(2)).unwrap();
    let Body::Gossip { seq } = to_b.body else { panic!("{to_b:?}") };
    hear(&mut swim, start, &packet(Body::GossipAck { seq }, vec![]));
    let mut gossip = BTreeMap::new();
    while let Some(due) = swim.poll_timeout().filter(|due| *due < start + Duration::from_secs(30)) {
        swim.handle_timeout(due);
        for (transmit, packet) in sent(&mut swim) {
            *gossip.entry((transmit.kind, transmit.to)).or_insert(0) += 1;
            // Both answer probes, so that nothing else is to be told.
            if let Body::Ping { seq, target: Some(target), .. } = packet.body {
                let ack = Packet { node: target, ..self::packet(Body::Ack { seq, target: None, digest: 0 }, vec![]) };
                hear(&mut swim, due, &ack);
            }
        }
    }
    assert_eq!(gossip.get(&(MessageKind::Gossip, addr(2))), None, "acked");
    assert_eq!(gossip.get(&(MessageKind::Gossip, addr(3))), Some(&4), "5 with the first");
}

#[test]
fn lists_that_do_not_fit_a_datagram_go_by_stream() {
    let now = Instant::now();
    let mut swim = with_peer(now);
    for node in 0..60 {
        let said = update(&format!("node{node}"), NodeStatus::Alive, 0, 100 + node);
        hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![said]));
    }
    let all = sent(&mut swim);
    assert!(all.iter().all(|(transmit, _)| transmit.payload.len() <= DATAGRAM_BYTES_MAX));
    hear(&mut swim, now, &packet(Body::Sync { seq: 9, reply_wanted: true }, vec![]));
    let (transmit, list) = sent(&mut swim).into_iter().find(|(t, _)| t.kind == MessageKind::Sync).unwrap();
    assert_eq!((transmit.via, list.updates.len()), (Via::Stream, 62));
}

#[test]
fn the_longest_update_fits_a_datagram() {
    let now = Instant::now();
    let long = |first: char| format!("{first}{}", "x".repeat(127));
    let mut config = SwimConfig::new(name(&long('a')), addr(1), 1 << 47);
    config.cluster = "c".repeat(64);
    let mut swim = Swim::new(config, now, 1);
    let said = Update {
        name: name(&long('b')),
        host: "h".repeat(262),
        zone: "z".repeat(64),
        epoch_ms: 1 << 47,
        incarnation: 1 << 47,
        addr: "[2001:db8::1]:39527".parse().unwrap(),
        accusers: ('c'..'k').map(|first| name(&long(first))).collect(),
        ..update("b", NodeStatus::Suspected, 0, 2)
    };
    let packet =
        Packet { node: name(&long('b')), ..packet(Body::Ping { seq: 1, target: None, digest: 1 }, vec![said]) };
    swim.handle_datagram(now, addr(2), Via::Datagram, &wire::encode(&"c".repeat(64), &packet)).unwrap();
    let ack = std::iter::from_fn(|| swim.poll_transmit()).find(|transmit| transmit.kind == MessageKind::Ack).unwrap();
    assert!(ack.payload.len() <= DATAGRAM_BYTES_MAX && ack.payload.len() > 900, "{}", ack.payload.len());
}

#[test]
fn relays_ping_only_members_and_a_bounded_number() {
    let now = Instant::now();
    let mut swim = with_peer(now);
    for seq in 0..1000 {
        hear(&mut swim, now, &packet(Body::PingReq { seq, target: name("b") }, vec![]));
        hear(&mut swim, now, &packet(Body::PingReq { seq, target: name("stranger") }, vec![]));
    }
    assert_eq!(sent(&mut swim).len(), probe::RELAYS_MAX);
}

#[test]
fn the_clock_of_questions_wakes_nobody_while_there_is_nobody_to_ask() {
    let start = Instant::now();
    let mut swim = with_peer(start);
    assert_eq!(swim.seeds_timeout(), None);
    let mut now = start;
    while now < start + Duration::from_secs(60) {
        now = swim.poll_timeout().unwrap();
        swim.handle_timeout(now);
        sent(&mut swim);
        hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![]));
    }
    hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![update("c", NodeStatus::Down, 0, 3)]));
    let due = swim.seeds_timeout().unwrap();
    assert!(due > start + Duration::from_secs(58), "it went on meanwhile");
    assert!(due <= now + Duration::from_millis(1100), "whoever falls silent is asked within an interval");
}

#[test]
fn seeds_beyond_the_bound_are_left_out() {
    let now = Instant::now();
    let mut swim = machine(now, true);
    let many: Vec<_> = (0..1000u16).map(|port| SocketAddr::from(([10, 0, 0, 9], port + 1))).collect();
    swim.handle_seeds(now, &many);
    swim.handle_timeout(now);
    assert_eq!(sent(&mut swim).len(), seeds::SEEDS_MAX);
}

#[test]
fn foreign_packets_are_refused_with_the_reason() {
    let now = Instant::now();
    let ping = packet(Body::Ping { seq: 1, target: None, digest: 0 }, vec![]);
    let mut other_version = wire::encode("smg", &ping).to_vec();
    other_version[1] = 9;
    for (case, bytes, reason) in [
        ("another label", wire::encode("other", &ping).to_vec(), "foreign_cluster"),
        ("another version", other_version, "version"),
        ("junk", vec![0xff; 40], "malformed"),
    ] {
        let mut swim = machine(now, true);
        let error = swim.handle_datagram(now, addr(2), Via::Datagram, &bytes).unwrap_err();
        assert_eq!((error.reason(), swim.status()), (reason, NodeStatus::Init), "{case}");
        assert!(swim.poll_transmit().is_none(), "{case}");
    }
}

#[test]
fn hints_about_strangers_do_nothing() {
    let now = Instant::now();
    let mut swim = with_peer(now);
    swim.handle_hint(now, addr(77));
    swim.handle_hint(now, addr(1));
    assert!(sent(&mut swim).is_empty());
    swim.handle_hint(now, addr(2));
    let kinds: Vec<_> = sent(&mut swim).iter().map(|(transmit, _)| (transmit.kind, transmit.via)).collect();
    assert_eq!(kinds, [(MessageKind::Ping, Via::Datagram), (MessageKind::Ping, Via::Stream)]);
}

fn body() -> impl Strategy<Value = Body> {
    let target = prop_oneof![Just(None), Just(Some(name("a"))), Just(Some(name("b"))), Just(Some(name("c")))];
    prop_oneof![
        (any::<u64>(), target.clone(), any::<u64>()).prop_map(|(seq, target, digest)| Body::Ping {
            seq,
            target,
            digest
        }),
        (any::<u64>(), target, any::<u64>()).prop_map(|(seq, target, digest)| Body::Ack { seq, target, digest }),
        any::<u64>().prop_map(|seq| Body::PingReq { seq, target: name("c") }),
        any::<u64>().prop_map(|seq| Body::Nack { seq }),
        any::<u64>().prop_map(|seq| Body::Gossip { seq }),
        any::<u64>().prop_map(|seq| Body::GossipAck { seq }),
        (any::<u64>(), any::<bool>()).prop_map(|(seq, reply_wanted)| Body::Sync { seq, reply_wanted }),
        (any::<u64>(), 1..5u8).prop_map(|(boot_ms, last)| Body::Claim {
            boot_ms,
            addr: addr(last),
            nonce: 1,
            echo: boot_ms
        }),
    ]
}

fn any_update() -> impl Strategy<Value = Update> {
    let status = prop_oneof![
        Just(NodeStatus::Alive),
        Just(NodeStatus::Suspected),
        Just(NodeStatus::Down),
        Just(NodeStatus::Leaving)
    ];
    let counter = prop_oneof![0..3u64, Just(wire::COUNTER_MAX - 1), Just(1000u64)];
    ("[a-d]", status, counter.clone(), counter, 1..5u8, any::<u32>(), any::<bool>()).prop_map(
        |(node, status, epoch_ms, incarnation, last, age, accused)| Update {
            epoch_ms,
            age: Duration::from_secs(age.into()),
            accusers: if accused { vec![name("d")] } else { vec![] },
            ..update(&node, status, incarnation, last)
        },
    )
}

proptest! {
    /// Valid packets of any content, also mutated, in any order: no panic, no record that goes back, own name kept.
    #[test]
    fn packets_of_any_content_keep_the_invariants(
        packets in proptest::collection::vec(
            ("[a-d]", body(), proptest::collection::vec(any_update(), 0..4), 0..3000u64, any::<(u16, u8)>(), any::<bool>()),
            1..40,
        )
    ) {
        let mut now = Instant::now();
        let mut swim = machine(now, true);
        let mut floor: BTreeMap<NodeName, member::Key> = BTreeMap::new();
        for (node, body, updates, pause, (at, flip), mutate) in packets {
            now += Duration::from_millis(pause);
            let packet = Packet { node: name(&node), epoch_ms: 2, incarnation: pause % 4, body, updates };
            let mut bytes = wire::encode("smg", &packet).to_vec();
            if mutate {
                let at = usize::from(at) % bytes.len();
                bytes[at] ^= flip;
            }
            let _ = swim.handle_datagram(now, addr(2), Via::Datagram, &bytes);
            if swim.poll_timeout().is_some_and(|due| due <= now) {
                swim.handle_timeout(now);
            }
            while swim.poll_transmit().is_some() {}
            while swim.poll_event().is_some() {}
            prop_assert!(swim.member(&name("a")).is_some());
            for member in swim.members() {
                let key = member.key();
                let last = floor.insert(member.name.clone(), key).unwrap_or(key);
                prop_assert!(last <= key, "{} went from {last:?} to {key:?}", member.name);
            }
        }
    }

    #[test]
    fn junk_never_panics_nor_changes_anything(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
        let now = Instant::now();
        let mut swim = with_peer(now);
        prop_assert!(swim.handle_datagram(now, addr(2), Via::Stream, &bytes).is_err());
        prop_assert_eq!(swim.members().count(), 2);
    }
}
