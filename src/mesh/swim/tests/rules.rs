//! Rules of DESIGN §3 as one machine shows them, each under its number. Those that need a cluster (1, 7, 9) are in
//! `mesh::sim`, those that are a formula (2, 4, part of 6) beside it.

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A machine of zone `x` that knows the live peers of the given names and zones, at addresses 2, 3, …
fn among(now: Instant, peers: &[(&str, &str)]) -> Swim {
    let mut config = SwimConfig::new(name("a"), addr(1), 1000);
    config.zone = "x".into();
    let mut swim = Swim::new(config, now, 1);
    for ((node, zone), last) in peers.iter().zip(2..) {
        let said = Update { zone: (*zone).into(), ..update(node, NodeStatus::Alive, 0, last) };
        hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![said]));
    }
    sent(&mut swim);
    events(&mut swim);
    swim
}

/// Runs for `time`; everybody but `silent` answers pings and acknowledges gossip. Gives what was sent, with its time.
fn run(swim: &mut Swim, from: Instant, time: Duration, silent: &[u8]) -> Vec<(Duration, Transmit, Packet)> {
    let mut all = Vec::new();
    let mut now = from;
    loop {
        for (transmit, said) in sent(swim) {
            if !silent.iter().any(|last| addr(*last) == transmit.to) {
                answer(swim, now, &said, transmit.to);
            }
            all.push((now - from, transmit, said));
        }
        let Some(due) = swim.poll_timeout().filter(|due| *due <= from + time) else { return all };
        now = due.max(now);
        swim.handle_timeout(now);
    }
}

fn answer(swim: &mut Swim, now: Instant, said: &Packet, by: SocketAddr) {
    let body = match &said.body {
        Body::Ping { seq, .. } => Body::Ack { seq: *seq, target: None, digest: 0 },
        Body::PingReq { seq, .. } => Body::Nack { seq: *seq },
        Body::Gossip { seq } if *seq > 0 => Body::GossipAck { seq: *seq },
        _ => return,
    };
    let Some(node) = swim.members().find(|member| member.addr == by).map(|member| member.name.clone()) else { return };
    let ack = Packet { node, ..packet(body, vec![]) };
    swim.handle_datagram(now, by, Via::Datagram, &wire::encode("smg", &ack)).unwrap();
}

fn status(swim: &Swim, node: &str) -> NodeStatus {
    swim.member(&name(node)).unwrap().status
}

#[test]
fn design_3_2_after_the_timeout_three_relays_of_other_zones_first_and_the_stream() {
    let start = Instant::now();
    let mut swim = among(start, &[("b", "x"), ("c", "x"), ("d", "x"), ("e", "x"), ("f", "y"), ("g", "y")]);
    let all = run(&mut swim, start, ms(1500), &[2]);
    let to_b = |via| all.iter().find(|(_, t, _)| t.to == addr(2) && t.via == via && t.kind == MessageKind::Ping);
    let (pinged, ..) = to_b(Via::Datagram).expect("a direct ping");
    let (streamed, ..) = to_b(Via::Stream).expect("a ping on the stream path");
    // No answer was ever timed: the timeout is the initial 200 ms.
    assert_eq!(*streamed - *pinged, ms(200));
    let relays: Vec<_> = all.iter().filter(|(at, t, _)| t.kind == MessageKind::PingReq && at == streamed).collect();
    let asked = |last| relays.iter().any(|(_, t, _)| t.to == addr(last));
    assert!(relays.len() == 3 && asked(6) && asked(7), "{relays:?}");
}

/// Who answers by the stream or through a relay alone is alive, and its datagrams are lost: that is told each time.
#[test]
fn a_probe_that_no_datagram_answers_is_a_detour() {
    let start = Instant::now();
    for (case, via, is_relayed, at_ms, expected) in [
        ("by datagram", Via::Datagram, false, 0, "rtt"),
        ("by datagram, late", Via::Datagram, false, 250, "neither"),
        ("by the stream", Via::Stream, false, 250, "detour"),
        ("through a relay", Via::Datagram, true, 250, "detour"),
    ] {
        let mut swim = among(start, &[("b", "x"), ("c", "x"), ("d", "x")]);
        let all = run(&mut swim, start, ms(1500), &[2]);
        let is_ping = |t: &Transmit| t.to == addr(2) && t.via == Via::Datagram && t.kind == MessageKind::Ping;
        let (pinged, _, said) = all.iter().find(|(_, t, _)| is_ping(t)).expect("a direct ping");
        // The same history again, up to the answer.
        let mut swim = among(start, &[("b", "x"), ("c", "x"), ("d", "x")]);
        run(&mut swim, start, *pinged + ms(at_ms), &[2]);
        events(&mut swim);
        let Body::Ping { seq, .. } = said.body else { panic!("{said:?}") };
        let (node, by) = if is_relayed { ("c", addr(3)) } else { ("b", addr(2)) };
        let ack = Body::Ack { seq, target: is_relayed.then(|| name("b")), digest: 0 };
        let ack = wire::encode("smg", &Packet { node: name(node), ..packet(ack, vec![]) });
        swim.handle_datagram(start + *pinged + ms(at_ms), by, via, &ack).unwrap();
        let told = events(&mut swim).into_iter().find_map(|event| match event {
            Event::Rtt { peer, .. } if peer == name("b") => Some("rtt"),
            Event::Detour { peer } if peer == name("b") => Some("detour"),
            _ => None,
        });
        assert_eq!(told.unwrap_or("neither"), expected, "{case}");
    }
}

#[test]
fn a_verdict_is_doubted_unless_it_is_of_the_own_side_and_the_node_silent_and_suspected() {
    use NodeStatus::{Alive, Down, Suspected};
    // What a verdict is taken for, and what the node is some 2 s later, when it stays silent.
    let (believed, looked_into, doubted) = ((Down, Down), (Suspected, Down), (Suspected, Suspected));
    // How long ago the node was suspected here, for how long the teller has been ALIVE here, and how long ago the node was
    // heard here and called DOWN; in milliseconds.
    for (case, suspected_ago, teller_for, heard_ago, verdict_ago, epoch_ms, expected) in [
        ("silent since the verdict", Some(600), 9000, 5000, 900, 500, believed),
        ("heard after the verdict", Some(600), 9000, 900, 5000, 500, doubted),
        ("a verdict of this second, heard in it", Some(600), 9000, 900, 0, 500, doubted),
        ("a verdict of this second, silent before", Some(600), 9000, 1100, 0, 500, believed),
        ("the teller came after its verdict", Some(600), 4000, 9000, 5000, 500, looked_into),
        ("the teller came in the second of its verdict", Some(600), 4900, 9000, 4000, 500, looked_into),
        ("the teller came before its verdict", Some(600), 6000, 9000, 4999, 500, believed),
        ("suspected here this moment", Some(400), 9000, 5000, 900, 500, looked_into),
        ("not suspected here", None, 9000, 5000, 900, 500, looked_into),
        ("a verdict on a later process", None, 9000, 900, 5000, 501, believed),
    ] {
        for lives in [false, true] {
            let start = Instant::now();
            let now = start + ms(10_000);
            let mut swim = among(start, &[("b", "x"), ("c", "x")]);
            let from_b =
                |incarnation, said: Vec<Update>| Packet { incarnation, ..packet(Body::Gossip { seq: 0 }, said) };
            // Who suspects the teller and is answered holds it for ALIVE from then on.
            for (status, incarnation) in [(Suspected, 0), (Alive, 1)] {
                let said = from_b(incarnation, vec![update("b", status, incarnation, 2)]);
                hear(&mut swim, now - ms(teller_for), &said);
            }
            let from_c = Packet { node: name("c"), ..packet(Body::Gossip { seq: 0 }, vec![]) };
            let from_c = wire::encode("smg", &from_c);
            swim.handle_datagram(now - ms(heard_ago), addr(3), Via::Datagram, &from_c).unwrap();
            if let Some(ago) = suspected_ago {
                hear(&mut swim, now - ms(ago), &from_b(1, vec![update("c", Suspected, 0, 3)]));
            }
            events(&mut swim);
            let said = Update { age: ms(verdict_ago), epoch_ms, ..update("c", Down, 0, 3) };
            hear(&mut swim, now, &from_b(1, vec![said]));
            assert_eq!(status(&swim, "c"), expected.0, "{case}");
            // Who answers the last round is told, and was never DOWN here.
            let silent = if lives { &[][..] } else { &[3][..] };
            // Nothing ran before, for which the machine trusts itself less: a probe takes three times 600 ms.
            let all = run(&mut swim, now, ms(250 + 1800), silent);
            let names_it = |said: &Packet| said.updates.iter().any(|u| u.name == name("c") && u.status == Suspected);
            let told = all.iter().any(|(_, t, said)| t.to == addr(3) && names_it(said));
            let is_death = |event: &Event| matches!(event, Event::MemberChanged(change) if change.to == Down);
            let died = events(&mut swim).iter().any(is_death);
            let is_down = if lives { expected.0 == Down } else { expected.1 == Down };
            assert_eq!((status(&swim, "c") == Down, died), (is_down, is_down), "{case}, lives: {lives}");
            assert!(told || expected == believed, "{case}, lives: {lives}: the suspect is told");
        }
    }
}

#[test]
fn more_verdicts_in_doubt_than_probes_fit_are_all_looked_into_a_few_at_a_time() {
    let start = Instant::now();
    let names: Vec<String> = (2..200).map(|last| format!("n{last}")).collect();
    let peers: Vec<_> = names.iter().map(|node| (node.as_str(), "x")).collect();
    let mut swim = among(start, &peers);
    let dead: Vec<u8> = (30..200).collect();
    for last in &dead {
        let said = update(&format!("n{last}"), NodeStatus::Down, 0, *last);
        let said = Packet { node: name("n2"), ..packet(Body::Gossip { seq: 0 }, vec![said]) };
        hear(&mut swim, start + ms(10), &said);
    }
    let is_last_round = |t: &Transmit| t.kind == MessageKind::Ping && t.via == Via::Stream;
    let mut begun = Vec::new();
    for step in 0..250 {
        let now = start + ms(10 + step * 100);
        // Somebody is heard: else the silence of all others would say nothing.
        let said = Packet { node: name("n2"), ..packet(Body::Gossip { seq: 0 }, vec![]) };
        hear(&mut swim, now, &said);
        let all = run(&mut swim, now, ms(100), &dead);
        begun.extend(all.iter().filter(|(_, t, _)| is_last_round(t)).map(|(at, ..)| now + *at));
    }
    let most =
        begun.iter().map(|at| begun.iter().filter(|other| *other >= at && **other < *at + ms(250)).count()).max();
    assert!(most.unwrap() <= 64, "{most:?} last rounds within a quarter interval");
    for last in dead {
        assert_eq!(status(&swim, &format!("n{last}")), NodeStatus::Down, "n{last}");
    }
}

#[test]
fn design_3_3_a_suspicion_that_is_heard_is_looked_into_within_a_quarter_interval() {
    for (case, silent, says_so) in [("the suspect answers and is told", &[][..], false), ("silence", &[3][..], true)] {
        let start = Instant::now();
        let mut swim = among(start, &[("b", "x"), ("c", "x"), ("d", "x")]);
        let said = Update { accusers: vec![name("b")], ..update("c", NodeStatus::Suspected, 0, 3) };
        hear(&mut swim, start, &packet(Body::Gossip { seq: 0 }, vec![said]));
        let all = run(&mut swim, start, ms(900), silent);
        let looked = |(at, t, _): &&(Duration, Transmit, Packet)| {
            t.to == addr(3) && t.kind == MessageKind::Ping && t.via == Via::Datagram && *at <= ms(250)
        };
        assert!(all.iter().any(|sent| looked(&sent)), "{case}: {all:?}");
        let confirms = |(_, _, packet): &(Duration, Transmit, Packet)| {
            packet.updates.iter().any(|update| update.name == name("c") && update.accusers.contains(&name("a")))
        };
        assert_eq!(all.iter().any(confirms), says_so, "{case}: this node is among the accusers after its own failure");
        let told = all.iter().any(|(_, t, packet)| {
            t.to == addr(3) && packet.updates.iter().any(|update| update.status == NodeStatus::Suspected)
        });
        assert!(told, "{case}: a node that is suspected hears so from whoever pings it");
    }
}

#[test]
fn design_3_5_only_total_silence_in_a_last_round_is_down() {
    for (case, answers_last_round, expected) in
        [("total silence", false, NodeStatus::Down), ("an answer at last", true, NodeStatus::Suspected)]
    {
        let start = Instant::now();
        let mut swim = among(start, &[("b", "x"), ("c", "x"), ("d", "x")]);
        let accusers = vec![name("b"), name("d")];
        hear(
            &mut swim,
            start,
            &packet(Body::Gossip { seq: 0 }, vec![Update { accusers, ..update("c", NodeStatus::Suspected, 0, 3) }]),
        );
        // The last round is the one that begins with two equal pings at once.
        let mut last_round = None;
        let mut at = Duration::ZERO;
        while last_round.is_none() && at < Duration::from_secs(10) {
            let all = run(&mut swim, start + at, ms(1), &[3]);
            at += ms(1);
            let direct = all.iter().filter(|(_, t, _)| t.to == addr(3) && t.kind == MessageKind::Ping);
            let direct: Vec<_> = direct.filter(|(_, t, _)| t.via == Via::Datagram).collect();
            if let Some(twice) = direct.windows(2).find(|pair| pair[0].2.body == pair[1].2.body) {
                let other = |kind, via| all.iter().any(|(_, t, _)| t.kind == kind && t.via == via);
                assert!(other(MessageKind::PingReq, Via::Datagram) && other(MessageKind::Ping, Via::Stream), "{case}");
                last_round = Some(twice[1].2.clone());
            }
        }
        let last_round = last_round.expect("a last round before the verdict");
        assert_eq!(status(&swim, "c"), NodeStatus::Suspected, "{case}: no verdict before the last round is over");
        if answers_last_round {
            answer(&mut swim, start + at, &last_round, addr(3));
        }
        run(&mut swim, start + at, ms(650), &[3]);
        assert_eq!(status(&swim, "c"), expected, "{case}");
    }
}

#[test]
fn design_3_6_what_a_cut_off_node_suspected_is_kept_to_itself_and_damps_nothing() {
    let others = [("b", "x"), ("c", "x"), ("d", "x")];
    for (case, silent, suspected, damped) in
        [("everybody is silent", &[2, 3, 4][..], 3, 0), ("one of three is", &[3][..], 1, 1)]
    {
        let start = Instant::now();
        let mut swim = among(start, &others);
        let all = run(&mut swim, start, ms(3000), silent);
        let is_suspected = |(node, _): &&(&str, &str)| status(&swim, node) == NodeStatus::Suspected;
        assert_eq!(others.iter().filter(is_suspected).count(), suspected, "{case}");
        let accuses = |(_, t, packet): &(Duration, Transmit, Packet)| {
            t.kind == MessageKind::Gossip && packet.updates.iter().any(|update| update.status == NodeStatus::Suspected)
        };
        assert_eq!(all.iter().any(accuses), damped > 0, "{case}: tells others");
        for (last, (node, _)) in (2..).zip(others) {
            let refuted = Packet { node: name(node), incarnation: 1, ..packet(Body::Gossip { seq: 0 }, vec![]) };
            swim.handle_datagram(start + ms(3000), addr(last), Via::Datagram, &wire::encode("smg", &refuted)).unwrap();
            assert_eq!(status(&swim, node), NodeStatus::Alive, "{case}: {node}");
        }
        let counted = others.iter().map(|(node, _)| swim.member(&name(node)).unwrap().refuted_at.len()).sum::<usize>();
        assert_eq!(counted, damped, "{case}: refutations that double the time to refute");
    }
}

#[test]
fn design_3_10_down_peers_and_silent_seeds_are_contacted_for_ever_at_a_low_rate() {
    let start = Instant::now();
    let mut swim = among(start, &[("b", "x"), ("c", "x")]);
    swim.handle_seeds(start, &[addr(9)]);
    let from_c = Packet { node: name("c"), ..packet(Body::Gossip { seq: 0 }, vec![]) };
    swim.handle_datagram(start, addr(3), Via::Datagram, &wire::encode("smg", &from_c)).unwrap();
    hear(&mut swim, start, &packet(Body::Gossip { seq: 0 }, vec![update("c", NodeStatus::Down, 0, 3)]));
    let time = Duration::from_secs(3000);
    let all = run(&mut swim, start, time, &[3, 9]);
    for (who, last) in [("DOWN peer", 3), ("silent seed", 9)] {
        let times: Vec<_> = all.iter().filter(|(_, t, _)| t.to == addr(last)).map(|(at, ..)| *at).collect();
        // About one in each probe interval, and to the end.
        assert!((2500..3800).contains(&times.len()), "{who}: {} in {time:?}", times.len());
        assert!(*times.last().unwrap() + Duration::from_secs(5) > time, "{who}");
    }
}

#[test]
fn strangers_invent_a_bounded_number_of_members_and_keep_nobody_out() {
    let now = Instant::now();
    let mut swim = with_peer(now);
    for round in 0..100 {
        let invented = (0..10).map(|i| update(&format!("x{round}-{i}"), NodeStatus::Alive, 0, 200)).collect();
        let said = Packet { node: name(&format!("y{round}")), ..packet(Body::Gossip { seq: 0 }, invented) };
        swim.handle_datagram(now, addr(250), Via::Datagram, &wire::encode("smg", &said)).unwrap();
    }
    assert_eq!(swim.members().count(), 2 + config::HEARSAY_MAX);
    // Who comes itself is let in, and so is whom a member lists that was heard.
    let own = vec![update("c", NodeStatus::Alive, 0, 3)];
    let join = Packet { node: name("c"), ..packet(Body::Sync { seq: 1, reply_wanted: true }, own) };
    swim.handle_datagram(now, addr(3), Via::Datagram, &wire::encode("smg", &join)).unwrap();
    let listed = vec![update("d", NodeStatus::Alive, 0, 4)];
    hear(&mut swim, now, &packet(Body::Sync { seq: 1, reply_wanted: false }, listed.clone()));
    assert!(swim.member(&name("c")).is_some() && swim.member(&name("d")).is_some());
    let listed = vec![update("e", NodeStatus::Alive, 0, 5)];
    let forged = packet(Body::Sync { seq: 1, reply_wanted: false }, listed);
    swim.handle_datagram(now, addr(250), Via::Datagram, &wire::encode("smg", &forged)).unwrap();
    assert!(swim.member(&name("e")).is_none(), "a list in the name of a member from elsewhere");
}

fn claim(boot_ms: u64, last: u8, echo: u64) -> Packet {
    let body = Body::Claim { boot_ms, addr: addr(last), nonce: 9, echo };
    Packet { node: name("a"), ..packet(body, vec![]) }
}

/// What node `a` asked at address 7, where somebody claims its name.
fn asked(swim: &mut Swim, now: Instant) -> u64 {
    swim.handle_timeout(now);
    let claims = sent(swim).into_iter().filter(|(transmit, _)| transmit.to == addr(7));
    let nonces: Vec<_> = claims
        .filter_map(|(_, packet)| match packet.body {
            Body::Claim { nonce, .. } => Some(nonce),
            _ => None,
        })
        .collect();
    assert_eq!(nonces.len(), 1);
    nonces[0]
}

#[test]
fn a_name_is_given_up_to_an_answer_alone_never_to_a_forged_or_late_claim() {
    let now = Instant::now();
    let older = 1;
    for (case, echo, taken) in [("forged", Some(0), false), ("guessed", Some(9), false), ("answers", None, true)] {
        let mut swim = with_peer(now);
        hear(&mut swim, now, &claim(older, 7, 0));
        assert!(!swim.is_over(), "{case}: at the first word");
        let nonce = asked(&mut swim, now);
        hear(&mut swim, now, &claim(older, 7, echo.unwrap_or(nonce)));
        assert_eq!(swim.is_over(), taken, "{case}");
        assert_eq!(events(&mut swim).iter().any(|event| matches!(event, Event::NameTaken { .. })), taken, "{case}");
        hear(&mut swim, now, &claim(older, 8, nonce));
        assert_eq!(swim.is_over(), taken, "{case}: from an address that was not asked");
    }
    let mut swim = with_peer(now);
    hear(&mut swim, now, &claim(2000, 7, 0));
    let answer = sent(&mut swim).into_iter().find_map(|(_, packet)| match packet.body {
        Body::Claim { echo, .. } => Some(echo),
        _ => None,
    });
    assert_eq!(answer, Some(9), "the older answers with the number that it was asked");
}

#[test]
fn an_epoch_that_nothing_could_exceed_is_refused_and_bars_no_name() {
    let now = Instant::now();
    let far = wire::COUNTER_MAX - 1;
    let mut swim = with_peer(now);
    let said = Update { epoch_ms: far, ..update("b", NodeStatus::Down, 0, 2) };
    let own = Update { epoch_ms: far, ..update("a", NodeStatus::Down, 0, 1) };
    hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![said, own]));
    assert_eq!(status(&swim, "b"), NodeStatus::Alive);
    assert_eq!(swim.epoch_ms(), 1000);
    assert!(events(&mut swim).iter().any(|event| matches!(event, Event::EpochRefused { .. })));
    let header = Packet { epoch_ms: far, ..packet(Body::Gossip { seq: 0 }, vec![]) };
    let refused = swim.handle_datagram(now, addr(2), Via::Datagram, &wire::encode("smg", &header)).unwrap_err();
    assert_eq!(refused.reason(), "epoch");
    // A clock that is a year ahead is no attack.
    let year = Update { epoch_ms: RELEASED_MS + 365 * 86_400_000, ..update("b", NodeStatus::Down, 0, 2) };
    hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![year]));
    assert_eq!(status(&swim, "b"), NodeStatus::Down);
}

#[test]
fn a_restart_refutes_nothing_and_what_was_called_down_falsely_is_counted() {
    let now = Instant::now();
    for (case, before, epoch_ms, incarnation, counted, damps) in [
        ("suspected, refuted", NodeStatus::Suspected, 500, 1, 1, 1),
        ("suspected, restarted", NodeStatus::Suspected, 900, 0, 0, 0),
        ("down, came back", NodeStatus::Down, 500, 1, 1, 0),
        ("down, restarted", NodeStatus::Down, 900, 0, 0, 0),
    ] {
        let mut swim = with_peer(now);
        // The first that is heard of it, so that no verdict is in doubt.
        let accused = Update { accusers: vec![name("b")], ..update("c", before, 0, 3) };
        hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![accused]));
        assert_eq!(status(&swim, "c"), before, "{case}");
        events(&mut swim);
        let alive = Update { epoch_ms, ..update("c", NodeStatus::Alive, incarnation, 3) };
        hear(&mut swim, now, &packet(Body::Gossip { seq: 0 }, vec![alive]));
        assert_eq!(status(&swim, "c"), NodeStatus::Alive, "{case}");
        let found = events(&mut swim).iter().filter(|event| matches!(event, Event::FalseSuspicion { .. })).count();
        assert_eq!(found, counted, "{case}");
        assert_eq!(swim.member(&name("c")).unwrap().refuted_at.len(), damps, "{case}");
    }
}

#[test]
fn design_3_6_a_refuted_suspicion_makes_the_next_one_longer_and_a_restart_does_not() {
    let start = Instant::now();
    let down_after = |epoch_ms: u64| {
        let mut swim = among(start, &[("b", "x"), ("c", "x"), ("d", "x")]);
        let accused = Update { accusers: vec![name("b")], ..update("d", NodeStatus::Suspected, 0, 4) };
        hear(&mut swim, start, &packet(Body::Gossip { seq: 0 }, vec![accused]));
        let alive = Update { epoch_ms, ..update("d", NodeStatus::Alive, 1, 4) };
        hear(&mut swim, start, &packet(Body::Gossip { seq: 0 }, vec![alive]));
        let mut at = Duration::ZERO;
        while status(&swim, "d") != NodeStatus::Down {
            run(&mut swim, start + at, ms(100), &[4]);
            at += ms(100);
            assert!(at < Duration::from_secs(60));
        }
        at
    };
    let (refuted, restarted) = (down_after(500), down_after(900));
    assert!(refuted >= restarted + ms(900), "{refuted:?} after a refutation, {restarted:?} after a restart");
}
