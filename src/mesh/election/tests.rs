//! Steps of the machine that histories alone hardly meet; histories are in [`crate::mesh::sim::election`].
#![allow(clippy::unwrap_used)]

use super::*;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn voters() -> Voters {
    Voters::fixed(["a", "b", "c"].map(name)).unwrap()
}

fn machine(node: &str, saved: Option<Ballot>, now: Instant) -> Election {
    let config =
        ElectionConfig { node: name(node), fixed: Some(voters()), expected: 3, saved, timing: Timing::default() };
    Election::new(config, now, 1)
}

fn message(term: u64, body: Body) -> Message {
    Message { term, voters: voters().id(), body }
}

/// What it says to `to`, once everything is saved.
fn said(machine: &mut Election, now: Instant, to: &str) -> Vec<Body> {
    machine.handle_saved(now, u64::MAX);
    let all = std::iter::from_fn(|| machine.poll_transmit());
    all.filter(|transmit| transmit.to == name(to)).map(|transmit| transmit.message.body).collect()
}

/// A machine that has abstained long enough, and that instant.
fn awake(node: &str) -> (Election, Instant) {
    let start = Instant::now();
    let machine = machine(node, None, start);
    let now = start + machine.config.timing.promise;
    (machine, now)
}

#[test]
fn a_vote_waits_for_its_ballot() {
    let (mut b, now) = awake("b");
    b.handle_message(now, &name("a"), message(1, Body::Vote { set: voters() }));
    assert_eq!(b.poll_transmit(), None, "not before the ballot is on the disk");
    let ballot = std::iter::from_fn(|| b.poll_ballot()).last().unwrap();
    assert_eq!((ballot.term, ballot.voted_for), (1, Some(name("a"))));
    assert_eq!(said(&mut b, now, "a"), [Body::VoteReply { granted: true }]);
}

#[test]
fn a_starting_process_promises_nothing_at_first() {
    let start = Instant::now();
    let mut b = machine("b", None, start);
    let promise = b.config.timing.promise;
    for (after, granted) in [(Duration::ZERO, false), (promise - Duration::from_millis(1), false), (promise, true)] {
        b.handle_message(start + after, &name("a"), message(1, Body::Vote { set: voters() }));
        assert_eq!(said(&mut b, start + after, "a")[0], Body::VoteReply { granted }, "after {after:?}");
    }
}

#[test]
fn one_term_has_one_vote_also_after_a_restart() {
    let (mut b, now) = awake("b");
    b.handle_message(now, &name("a"), message(1, Body::Vote { set: voters() }));
    let ballot = std::iter::from_fn(|| b.poll_ballot()).last();
    let mut again = machine("b", ballot, now);
    let later = now + again.config.timing.promise;
    again.handle_message(later, &name("c"), message(1, Body::Vote { set: voters() }));
    assert_eq!(said(&mut again, later, "c")[0], Body::VoteReply { granted: false });
    again.handle_message(later, &name("c"), message(2, Body::Vote { set: voters() }));
    assert_eq!(said(&mut again, later, "c")[0], Body::VoteReply { granted: true });
}

#[test]
fn a_promise_refuses_others_and_names_the_leader() {
    let (mut b, now) = awake("b");
    b.handle_message(now, &name("a"), message(1, Body::Heartbeat { round: 1 }));
    assert_eq!(said(&mut b, now, "a"), [Body::HeartbeatReply { round: 1, granted: true }]);
    b.handle_message(now, &name("c"), message(2, Body::Poll { set: voters() }));
    let hint = Body::Hint { leader: Some(name("a")), leader_term: 1 };
    assert_eq!(said(&mut b, now, "c"), [Body::PollReply { granted: false }, hint]);
    let lapsed = now + b.config.timing.promise;
    b.handle_message(lapsed, &name("c"), message(2, Body::Poll { set: voters() }));
    assert_eq!(said(&mut b, lapsed, "c")[0], Body::PollReply { granted: true });
}

/// Found by the model: a vote that is given once more, to a candidate that started anew, is a promise too. Whoever was
/// about to be elected itself must let that go.
#[test]
fn a_vote_given_once_more_ends_the_own_poll() {
    let (mut b, now) = awake("b");
    b.handle_message(now, &name("a"), message(1, Body::Vote { set: voters() }));
    // The vote led to nothing; b polls for term 2.
    let due = b.campaign_due.max(now + b.config.timing.promise);
    b.handle_timeout(due);
    assert!(said(&mut b, due, "c").contains(&Body::Poll { set: voters() }));
    b.handle_message(due, &name("a"), message(1, Body::Vote { set: voters() }));
    assert!(said(&mut b, due, "a").contains(&Body::VoteReply { granted: true }));
    b.handle_message(due, &name("c"), message(2, Body::PollReply { granted: true }));
    assert!(!said(&mut b, due, "c").contains(&Body::Vote { set: voters() }), "it has promised a");
}

#[test]
fn lists_of_operators_that_differ_are_told_once() {
    let (mut b, now) = awake("b");
    let other = Voters::fixed(["a", "b"].map(name)).unwrap();
    for _ in 0..2 {
        let asked = Message { term: 1, voters: other.id(), body: Body::Vote { set: other.clone() } };
        b.handle_message(now, &name("a"), asked);
    }
    let told: Vec<Event> = std::iter::from_fn(|| b.poll_event()).collect();
    assert_eq!(told, [Event::VotersDiffer { peer: name("a") }]);
    assert_eq!(b.voters(), Some(&voters()));
}
