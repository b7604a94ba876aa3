//! Messages of the election: what is taken is within its bounds, reads the same once written again, and moves no machine
//! into a panic.

use std::time::{Duration, Instant};

use smg::mesh::{
    election::{
        Election, ElectionConfig, Timing,
        message::{Body, Message, TERM_MAX},
        voters::Voters,
    },
    node::NodeName,
    wire::coordination::{Incoming, decode, encode_election},
};

pub(super) fn run(bytes: &[u8]) {
    let Ok(Incoming::Election(message)) = decode(bytes) else { return };
    assert!(message.term <= TERM_MAX);
    let again = decode(&encode_election(&message));
    assert!(matches!(again, Ok(Incoming::Election(again)) if again == message));
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
    bodies.map(|body| encode_election(&Message { term: 3, voters: set.id(), body }).to_vec()).into()
}
