//! Messages of the election and about rights: what is taken is within its bounds, reads the same once written again, and
//! moves no machine into a panic.

use std::time::{Duration, Instant};

use smg::mesh::{
    election::{
        Election, ElectionConfig, Timing,
        message::{Body, Message, TERM_MAX},
        voters::Voters,
    },
    node::NodeName,
    quota::{
        self, Buckets, Escrow, Holding, Lead, Usage,
        message::{Ask, Grant, Right, Want},
        share::{LimitId, Share},
    },
    wire::coordination::{Incoming, decode, encode_election, encode_quota},
};

pub(super) fn run(bytes: &[u8]) {
    match decode(bytes) {
        Ok(Incoming::Election(message)) => run_election(&message),
        Ok(Incoming::Quota(kind, message)) => run_quota(kind, &message),
        Ok(_) | Err(_) => {}
    }
}

fn run_election(message: &Message) {
    assert!(message.term <= TERM_MAX);
    let again = decode(&encode_election(message));
    assert!(matches!(again, Ok(Incoming::Election(again)) if again == *message));
    let now = Instant::now();
    let config = ElectionConfig { node: name("a"), fixed: None, expected: 3, saved: None, timing: Timing::default() };
    let mut machine = Election::new(config, now, 1);
    for after in [0, 1, 5, 60] {
        let now = now + Duration::from_secs(after);
        machine.handle_message(now, &name("b"), message.clone());
        machine.handle_timeout(now);
        while machine.poll_ballot().is_some() {}
        machine.handle_saved(now, u64::MAX);
        assert!(std::iter::from_fn(|| machine.poll_transmit()).count() < 100);
        while machine.poll_event().is_some() {}
        let alone = machine.voters().is_some_and(|set| set.quorum() - 1 < 2 && set.contains(&name("a")));
        assert!(alone || !machine.is_leader(now), "two voices are no quorum of more than three");
    }
}

/// Keeps what it is told, and gives nothing up.
struct Bucket;

impl Buckets for Bucket {
    fn hold(&self, _: Instant, _: LimitId, _: &Holding) -> u64 {
        0
    }

    fn usage(&self, _: LimitId) -> Usage {
        Usage::default()
    }
}

/// As the leader and as a node that is led: no more is ever lent or held than the limit.
fn run_quota(kind: quota::Kind, message: &quota::message::Message) {
    let again = decode(&encode_quota(kind, message));
    assert!(matches!(again, Ok(Incoming::Quota(again_kind, again)) if again_kind == kind && again == *message));
    let limit = Share::of_tokens(100, 20);
    for leader in ["a", "b"] {
        let now = Instant::now();
        let timing = quota::Timing::default();
        let mut machine = Escrow::new(name("a"), kind, timing, quota::local::WithoutQuorum::Closed, now, 1);
        machine.handle_limits(now, &[(1, limit)].into(), true, &Bucket);
        for after in [0, 1, 5] {
            let now = now + Duration::from_secs(after);
            let lead = (leader == "a").then_some(Lead { term: 1, until: now + Duration::from_millis(800) });
            machine.handle_leader(now, Some(&name(leader)), lead, &Bucket);
            machine.handle_message(now, &name("b"), message, &Bucket);
            machine.handle_timeout(now, &Bucket);
            assert!(std::iter::from_fn(|| machine.poll_transmit()).count() < 10);
            if leader == "a" && after > 0 {
                assert!(limit.covers(machine.held(now, 1)), "no more than there is");
            }
        }
    }
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a node name")
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let set = Voters::new(1, 2, ["a", "b", "c"].map(name)).expect("three voters");
    let bodies = [
        Body::Poll { set: set.clone() },
        Body::PollReply { granted: true },
        Body::Vote { set: set.clone() },
        Body::VoteReply { granted: true },
        Body::Heartbeat { round: 1 },
        Body::HeartbeatReply { round: 1, granted: true },
        Body::Resign,
        Body::Query,
        Body::Hint { leader: Some(name("b")), leader_term: 3 },
        Body::Set { set: set.clone() },
    ];
    let election = bodies.map(|body| encode_election(&Message { term: 3, voters: set.id(), body }).to_vec());
    let share = Share::of_tokens(10, 5);
    let want = Want { limit: 1, demand: 9, given: 1, held: share };
    let right = Right { limit: 1, share, credit: 2 };
    let rights = [
        quota::message::Message::Ask(Ask { seq: 1, wants: vec![want], ..Ask::default() }),
        quota::message::Message::Ask(Ask { reign: 7, seq: 2, held: 3, leaves: true, wants: vec![want] }),
        quota::message::Message::Grant(Grant { reign: 7, ask: 1, seq: 1, lease_ms: 405, rights: vec![right] }),
        quota::message::Message::Grant(Grant { reign: 7, ask: 1, ..Grant::default() }),
    ];
    let of_kind = |kind| rights.iter().map(move |message| encode_quota(kind, message).to_vec());
    election.into_iter().chain(of_kind(quota::Kind::Rates)).chain(of_kind(quota::Kind::Slots)).collect()
}
