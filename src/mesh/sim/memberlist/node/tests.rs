//! The rules, one by one, at a single node.

use super::*;
use crate::mesh::node::NodeStatus::Suspected;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Node 0 among `count` that know each other, its first probe due at 1 s; what it sends is read with [`sent`].
fn node(count: usize) -> Node {
    let mut node = Node::new(0, Duration::ZERO, 1);
    node.settle(Duration::ZERO, count);
    (node.probe_at, node.gossip_at, node.exchange_at) = (ms(1000), ms(100), ms(3_600_000));
    node
}

/// Runs the node until `end`, as often as it asks for it.
fn run(node: &mut Node, end: Duration) {
    while node.poll_timeout() <= end {
        let now = node.poll_timeout();
        node.handle_timeout(now);
    }
}

fn sent(node: &mut Node) -> Vec<Transmit> {
    std::iter::from_fn(|| node.poll_transmit()).collect()
}

/// The targets of the packets whose first message fits.
fn targets(transmits: &[Transmit], fit: impl Fn(&Message) -> bool) -> Vec<Peer> {
    transmits.iter().filter(|transmit| fit(&transmit.messages[0])).map(|transmit| transmit.to).collect()
}

fn news(of: Peer, incarnation: u32, status: NodeStatus, from: Peer) -> News {
    News { of, incarnation, status, from }
}

fn hear(node: &mut Node, now: Duration, news: News) {
    node.handle_packet(now, news.from, Via::Datagram, &[Message::News(news)]);
}

fn ack_all(node: &mut Node, now: Duration) {
    for transmit in sent(node) {
        if let Message::Ping { seq } = transmit.messages[0] {
            node.handle_packet(now, transmit.to, transmit.via, &[Message::Ack { seq }]);
        }
    }
}

fn is_ping(message: &Message) -> bool {
    matches!(message, Message::Ping { .. })
}

#[test]
fn swim_4_3_every_node_is_probed_once_in_each_pass() {
    let mut node = node(6);
    node.next = node.list.len();
    let mut orders = Vec::new();
    for pass in 0..4_u64 {
        let mut probed = Vec::new();
        for second in 1..=5 {
            let now = ms(1000 * (pass * 5 + second));
            run(&mut node, now);
            let pings = sent(&mut node);
            probed.extend(targets(&pings, is_ping));
            for transmit in pings {
                if let Message::Ping { seq } = transmit.messages[0] {
                    node.handle_packet(now, transmit.to, transmit.via, &[Message::Ack { seq }]);
                }
            }
        }
        orders.push(probed.clone());
        probed.sort_unstable();
        assert_eq!(probed, [1, 2, 3, 4, 5], "pass {pass}");
    }
    assert!(orders.iter().any(|order| *order != orders[0]), "each pass is shuffled: {orders:?}");
}

#[test]
fn swim_3_1_relays_and_the_stream_are_asked_after_the_timeout_and_suspicion_comes_at_the_end() {
    let mut node = node(6);
    run(&mut node, ms(1499));
    let first = sent(&mut node);
    let [target] = targets(&first, is_ping)[..] else { panic!("one ping, not {first:?}") };
    run(&mut node, ms(1999));
    let second = sent(&mut node);
    let relays = targets(&second, |message| matches!(message, Message::IndirectPing { .. }));
    assert_eq!(relays.len(), timing::INDIRECT_CHECKS);
    assert!(!relays.contains(&target) && !relays.contains(&0), "{relays:?}");
    let stream = second.iter().filter(|transmit| transmit.via == Via::Stream).map(|transmit| transmit.to);
    assert_eq!(stream.collect::<Vec<_>>(), [target]);
    assert_eq!(node.status(target), Some(Alive));
    run(&mut node, ms(2000));
    assert_eq!(node.status(target), Some(Suspected));
    assert_eq!(node.poll_event(), Some(Event::Suspected(target)));
}

#[test]
fn swim_3_1_an_ack_by_any_path_saves_the_target() {
    for (case, via, is_over_at_once) in
        [("through a relay", Via::Datagram, true), ("on the stream, which is looked at last", Via::Stream, false)]
    {
        let mut node = node(6);
        run(&mut node, ms(1600));
        let seq = node.probe.as_ref().map(|_| node.seq).expect("a probe is under way");
        node.handle_packet(ms(1700), 3, via, &[Message::Ack { seq }]);
        assert_eq!(node.probe.is_none(), is_over_at_once, "{case}");
        run(&mut node, ms(2000));
        assert!((1..6).all(|peer| node.status(peer) == Some(Alive)), "{case}");
    }
}

#[test]
fn swim_3_1_a_relay_pings_and_passes_the_ack_on() {
    let mut node = node(6);
    node.handle_packet(ms(10), 4, Via::Datagram, &[Message::IndirectPing { seq: 77, target: 5 }]);
    let pings = sent(&mut node);
    assert_eq!(targets(&pings, is_ping), [5]);
    let Message::Ping { seq } = pings[0].messages[0] else { panic!("a ping, not {pings:?}") };
    node.handle_packet(ms(20), 5, Via::Datagram, &[Message::Ack { seq }]);
    let acks = sent(&mut node);
    assert_eq!((acks[0].to, &acks[0].messages[..]), (4, &[Message::Ack { seq: 77 }][..]));
    run(&mut node, ms(900));
    assert!(sent(&mut node).is_empty(), "no nack after an ack");
}

#[test]
fn lifeguard_iv_a_a_relay_that_hears_nothing_says_so() {
    let mut node = node(6);
    node.handle_packet(ms(10), 4, Via::Datagram, &[Message::IndirectPing { seq: 77, target: 5 }]);
    sent(&mut node);
    run(&mut node, ms(509));
    assert!(sent(&mut node).is_empty());
    run(&mut node, ms(510));
    let nacks = sent(&mut node);
    assert_eq!((nacks[0].to, &nacks[0].messages[..]), (4, &[Message::Nack { seq: 77 }][..]));
}

#[test]
fn lifeguard_iv_a_local_health_follows_what_happens() {
    for (case, before, nacks, expected) in
        [("all relays silent", 0, 0, 3), ("one nack", 0, 1, 2), ("all nacks", 2, 3, 2), ("never above 7", 6, 0, 7)]
    {
        let mut node = node(6);
        node.health = before;
        run(&mut node, ms(1500));
        for _ in 0..nacks {
            let seq = node.seq;
            node.handle_packet(ms(1600), 3, Via::Datagram, &[Message::Nack { seq }]);
        }
        run(&mut node, ms(1000 + 1000 * u64::from(before + 1)));
        assert_eq!(node.health, expected, "{case}");
    }
    let mut node = node(6);
    node.health = 2;
    run(&mut node, ms(1000));
    ack_all(&mut node, ms(1001));
    assert_eq!(node.health, 1, "a probe that succeeds");
    hear(&mut node, ms(1002), news(0, 1, Suspected, 3));
    assert_eq!(node.health, 2, "a refutation");
}

#[test]
fn lifeguard_iv_a_a_node_in_doubt_of_itself_gives_a_probe_more_time() {
    let mut node = node(6);
    node.health = 3;
    run(&mut node, ms(4999));
    let pings = targets(&sent(&mut node), is_ping);
    assert_eq!(pings.len(), 2, "one probe at a time, by datagram and stream: {pings:?}");
    assert_eq!(node.status(pings[0]), Some(Alive));
    run(&mut node, ms(5000));
    assert_eq!(node.status(pings[0]), Some(Suspected));
    assert_eq!(targets(&sent(&mut node), is_ping).len(), 1, "the next starts at once");
}

#[test]
fn lifeguard_iv_c_the_buddy_system_tells_the_suspected_node_with_the_ping() {
    let mut node = node(2);
    hear(&mut node, ms(500), news(1, 1, Suspected, 1));
    node.queue = Queue::default();
    run(&mut node, ms(1000));
    let pings = sent(&mut node);
    assert_eq!(pings[0].messages[1..], [Message::News(news(1, 1, Suspected, 0))]);
}

#[test]
fn swim_4_2_what_overrides_what() {
    for (case, heard, expected) in [
        ("a suspicion of the same incarnation", vec![(1, Suspected)], (1, Suspected)),
        ("an older suspicion", vec![(0, Suspected)], (1, Alive)),
        ("alive of the same incarnation", vec![(1, Suspected), (1, Alive)], (1, Suspected)),
        ("alive of a higher one", vec![(1, Suspected), (2, Alive)], (2, Alive)),
        ("a verdict", vec![(1, Down)], (1, Down)),
        ("a suspicion after a verdict", vec![(1, Down), (9, Suspected)], (1, Down)),
        ("alive after a verdict", vec![(1, Down), (2, Alive)], (2, Alive)),
        ("an older verdict", vec![(2, Alive), (1, Down)], (2, Alive)),
    ] {
        let mut node = node(6);
        for (incarnation, status) in heard {
            hear(&mut node, ms(10), news(4, incarnation, status, 3));
        }
        let record = node.record(4).expect("it is known");
        assert_eq!((record.incarnation, record.status), expected, "{case}");
    }
}

#[test]
fn swim_4_2_a_node_refutes_with_a_higher_incarnation() {
    for (case, status, accused, expected) in
        [("suspected", Suspected, 1, 2), ("declared dead", Down, 5, 6), ("an old suspicion", Suspected, 0, 1)]
    {
        let mut node = node(6);
        hear(&mut node, ms(10), news(0, accused, status, 3));
        assert_eq!((node.status(0), node.incarnation), (Some(Alive), expected), "{case}");
        let told = node.queue.take(1000, 1);
        let refutation = news(0, expected, Alive, 0);
        assert_eq!(told, if expected > 1 { vec![refutation] } else { Vec::new() }, "{case}");
    }
}

#[test]
fn lifeguard_iv_b_a_suspicion_becomes_a_verdict_sooner_when_others_share_it() {
    for (case, accusers, seconds) in
        [("one", vec![1], 24_000), ("two", vec![1, 2], 11_381), ("three", vec![1, 2, 3], 4000)]
    {
        let mut node = node(6);
        for accuser in accusers {
            hear(&mut node, ms(0), news(4, 1, Suspected, accuser));
        }
        let verdict_at = |node: &mut Node, at: Duration| {
            node.run_suspicions(at);
            node.status(4)
        };
        assert_eq!(verdict_at(&mut node, ms(seconds - 1)), Some(Suspected), "{case}");
        assert_eq!(verdict_at(&mut node, ms(seconds + 1)), Some(Down), "{case}");
    }
}

#[test]
fn gossip_reaches_three_nodes_each_200_ms_and_the_dead_for_a_while() {
    let mut node = node(6);
    node.probe_at = ms(3_600_000);
    hear(&mut node, ms(0), news(5, 1, Down, 3));
    run(&mut node, ms(99));
    assert!(sent(&mut node).is_empty());
    run(&mut node, ms(100));
    assert_eq!(sent(&mut node).len(), GOSSIP_NODES);
    run(&mut node, ms(299));
    assert!(sent(&mut node).is_empty());
    run(&mut node, ms(300));
    assert_eq!(sent(&mut node).len(), 1, "the fourth and last sending of it among six nodes");
    for (seconds, expected) in [(29, true), (31, false)] {
        let reached = (0..50).any(|_| {
            node.queue.push(news(4, 1, Suspected, 3));
            node.gossip(Duration::from_secs(seconds));
            sent(&mut node).iter().any(|transmit| transmit.to == 5)
        });
        assert_eq!(reached, expected, "after {seconds} s");
    }
}

#[test]
fn an_exchanged_list_brings_new_nodes_and_only_suspicion_of_the_dead() {
    let mut node = node(3);
    let list = [news(1, 1, Down, 2), news(7, 1, Alive, 2)].into();
    node.handle_packet(ms(10), 2, Via::Stream, &[Message::List { is_answer: false, list }]);
    assert_eq!((node.status(1), node.status(7)), (Some(Suspected), Some(Alive)));
    let answers = sent(&mut node);
    let Message::List { is_answer: true, list } = &answers[0].messages[0] else { panic!("an answer, not {answers:?}") };
    assert_eq!((answers[0].to, list.len()), (2, 3));
}
