//! Steps of the machine that histories alone hardly meet; histories are in [`crate::mesh::sim::quota`].
#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use super::{
    message::{Ask, Grant, Want},
    *,
};

const ID: LimitId = 1;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn limit() -> BTreeMap<LimitId, Share> {
    [(ID, Share::of_tokens(90, 30))].into()
}

/// Notes what it is told; it gives up what it is told to.
#[derive(Debug, Default)]
struct Noted {
    held: RefCell<Vec<Holding>>,
    gives: Cell<u64>,
    usage: Cell<Usage>,
    in_use: Cell<u64>,
    /// Slots that are taken at the moment when the share becomes nothing.
    late: Cell<u64>,
}

impl Buckets for Noted {
    fn hold(&self, _: Instant, _: LimitId, holding: &Holding) -> u64 {
        self.held.borrow_mut().push(*holding);
        if holding.share == Share::NONE {
            self.in_use.set(self.in_use.get() + self.late.take());
        }
        self.gives.get()
    }

    fn in_use(&self, _: LimitId) -> u64 {
        self.in_use.get()
    }

    fn usage(&self, _: LimitId) -> Usage {
        self.usage.get()
    }
}

/// A leader `a` since `start`, whose lease does not end.
fn leader(start: Instant) -> Escrow {
    let mut machine = Escrow::new(name("a"), Kind::Rates, Timing::default(), WithoutQuorum::Closed, start, 1);
    machine.handle_limits(start, &limit(), true, &Noted::default());
    let lead = Lead { term: 1, until: start + Duration::from_secs(3600) };
    machine.handle_leader(start, Some(&name("a")), Some(lead), &Noted::default());
    machine
}

/// What the leader answers `from`.
fn answer(machine: &mut Escrow, now: Instant, from: &str, ask: Ask) -> Option<Grant> {
    machine.handle_message(now, &name(from), &Message::Ask(ask), &Noted::default());
    let grants = std::iter::from_fn(|| machine.poll_transmit()).map(|sent| match sent.message {
        Message::Grant(grant) => grant,
        Message::Ask(ask) => panic!("{ask:?}"),
    });
    grants.last()
}

fn ask(reign: u64, seq: u64, held: u64, want: Share, demand: u64) -> Ask {
    let want = Want { limit: ID, demand: demand * share::TOKEN, given: 0, held: want };
    Ask { reign, seq, held, leaves: false, wants: vec![want] }
}

fn share_of(grant: &Grant) -> Share {
    grant.rights.first().map_or(Share::NONE, |right| right.share)
}

fn reign_of(machine: &mut Escrow, now: Instant) -> u64 {
    let welcome = answer(machine, now, "z", Ask { seq: 1, ..Ask::default() }).unwrap();
    assert_eq!((welcome.seq, welcome.rights.len()), (0, 0), "only its number");
    welcome.reign
}

#[test]
fn a_new_leader_waits_until_all_that_it_does_not_know_has_run_out() {
    let start = Instant::now();
    let mut machine = leader(start);
    let reign = reign_of(&mut machine, start);
    let mut held = 0;
    for (after, expected) in [(0, false), (250, false), (499, false), (700, true)] {
        let now = start + millis(after);
        let grant = answer(&mut machine, now, "b", ask(reign, 1, held, Share::NONE, 50)).unwrap();
        assert_eq!(share_of(&grant) != Share::NONE, expected, "after {after} ms");
        held = grant.seq;
    }
}

#[test]
fn what_an_earlier_leader_lent_is_kept_by_who_reports_it_in_time() {
    let start = Instant::now();
    let kept = Share::of_tokens(40, 10);
    for (after, expected) in [(100, kept), (501, Share::NONE)] {
        let mut machine = leader(start);
        let reign = reign_of(&mut machine, start);
        let now = start + millis(after);
        let grant = answer(&mut machine, now, "b", ask(reign, 1, 0, kept, 0)).unwrap();
        assert_eq!(share_of(&grant), expected, "after {after} ms");
    }
}

/// It may have started just now, and know no limit, or one of before: it would cut what everybody holds, or lend too much.
#[test]
fn a_leader_without_the_clusters_state_renews_and_lends_nothing_new() {
    let start = Instant::now();
    let kept = Share::of_tokens(40, 10);
    for (case, known) in [("no limit", BTreeMap::new()), ("another", [(ID, Share::of_tokens(900, 900))].into())] {
        let mut machine = leader(start);
        machine.handle_limits(start, &known, false, &Noted::default());
        let reign = reign_of(&mut machine, start);
        let (mut held, mut other_held) = (0, 0);
        for after in (100..2000).step_by(100) {
            let now = start + millis(after);
            let grant = answer(&mut machine, now, "b", ask(reign, 1, held, kept, 40)).unwrap();
            assert_eq!(share_of(&grant), kept, "{case}: after {after} ms");
            assert!(held == 0 || grant.seq == held, "{case}: it is the same grant for longer");
            held = grant.seq;
            let other = answer(&mut machine, now, "c", ask(reign, 1, other_held, Share::NONE, 40)).unwrap();
            assert_eq!(share_of(&other), Share::NONE, "{case}: after {after} ms");
            other_held = other.seq;
        }
        let now = start + millis(2000);
        machine.handle_limits(now, &limit(), true, &Noted::default());
        assert_eq!(machine.pooled(ID), 0, "{case}: no tokens come of a limit that is not known");
        let grants = [2050, 2100, 2150].map(|after| {
            let question = ask(reign, 1, other_held, Share::NONE, 40);
            let grant = answer(&mut machine, start + millis(after), "c", question).unwrap();
            other_held = grant.seq;
            (share_of(&grant), grant.rights.first().map_or(0, |right| right.credit))
        });
        let (share, _) = grants[2];
        // As soon as the limits are known.
        assert!(share.rate > 0 && limit()[&ID].covers(share.plus(kept)), "{case}: {grants:?}");
        let credit: u64 = grants.iter().map(|(_, credit)| credit).sum();
        assert!(credit <= 90 * share::TOKEN / 6, "{case}: {credit} in 150 ms at less than 90 a second");
    }
}

#[test]
fn what_one_is_to_lose_counts_until_it_says_so_or_its_lease_is_over() {
    let start = Instant::now();
    for confirms in [true, false] {
        let mut machine = leader(start);
        let reign = reign_of(&mut machine, start);
        let mut now = start + millis(600);
        let mut held = 0;
        // `b` has all the demand and nearly all of the limit.
        for _ in 0..5 {
            now += millis(100);
            held = answer(&mut machine, now, "b", ask(reign, 1, held, Share::NONE, 90)).unwrap().seq;
        }
        let first = answer(&mut machine, now, "b", ask(reign, 2, held, Share::NONE, 90)).unwrap();
        assert!(share_of(&first).rate > 80 * share::TOKEN, "{first:?}");
        // `c` has as much demand now, but `b` has not given up anything.
        now += millis(20);
        let of_c = |machine: &mut Escrow, now, held| answer(machine, now, "c", ask(reign, 1, held, Share::NONE, 90));
        let nothing = of_c(&mut machine, now, 0).unwrap();
        now += millis(20);
        let less = answer(&mut machine, now, "b", ask(reign, 3, first.seq, Share::NONE, 90)).unwrap();
        assert!(share_of(&less).rate < 50 * share::TOKEN, "{less:?}");
        now += millis(20);
        let still = of_c(&mut machine, now, nothing.seq).unwrap();
        let left = limit()[&ID].minus(share_of(&first));
        assert!(left.covers(share_of(&still)), "{still:?} of {left:?}");
        if confirms {
            answer(&mut machine, now, "b", ask(reign, 4, less.seq, Share::NONE, 90)).unwrap();
        } else {
            now += Timing::default().hold;
        }
        let mut more = still;
        for _ in 0..2 {
            now += millis(20);
            more = of_c(&mut machine, now, more.seq).unwrap();
        }
        assert!(share_of(&more).rate > 30 * share::TOKEN, "{more:?}");
    }
}

#[test]
fn tokens_that_are_given_up_are_lent_once() {
    let start = Instant::now();
    let mut machine = leader(start);
    let reign = reign_of(&mut machine, start);
    let mut now = start + millis(600);
    let mut held = 0;
    for _ in 0..5 {
        now += millis(100);
        held = answer(&mut machine, now, "b", ask(reign, 1, held, Share::NONE, 90)).unwrap().seq;
    }
    let nothing = answer(&mut machine, now, "c", ask(reign, 1, 0, Share::NONE, 90)).unwrap();
    now += millis(20);
    let less = answer(&mut machine, now, "b", ask(reign, 2, held, Share::NONE, 90)).unwrap();
    let mut gives = ask(reign, 3, less.seq, Share::NONE, 90);
    gives.wants[0].given = 7 * share::TOKEN;
    // The same word twice, as the network may have it.
    answer(&mut machine, now, "b", gives.clone()).unwrap();
    answer(&mut machine, now, "b", gives).unwrap();
    let mut credit = 0;
    let mut held = nothing.seq;
    for _ in 0..5 {
        let grant = answer(&mut machine, now, "c", ask(reign, 2, held, Share::NONE, 90)).unwrap();
        credit += grant.rights.first().map_or(0, |right| right.credit);
        held = grant.seq;
    }
    assert_eq!(credit, 7 * share::TOKEN);
}

#[test]
fn a_grant_counts_from_the_question_and_no_longer() {
    let start = Instant::now();
    let bucket = Noted::default();
    let right = message::Right { limit: ID, share: Share::of_tokens(9, 3), credit: 0 };
    for (case, reign, lease_ms, after, expected) in [
        ("in time", 5, 405, 100, Some(405)),
        ("a shorter lease", 5, 200, 100, Some(200)),
        ("a longer lease than this node knows", 5, 9999, 100, Some(405)),
        ("too late", 5, 405, 405, None),
        ("of another reign", 6, 405, 100, None),
    ] {
        let mut machine = Escrow::new(name("b"), Kind::Rates, Timing::default(), WithoutQuorum::Closed, start, 1);
        machine.handle_limits(start, &limit(), true, &bucket);
        machine.handle_leader(start, Some(&name("a")), None, &bucket);
        machine.handle_message(
            start,
            &name("a"),
            &Message::Grant(Grant { reign: 5, ask: 1, ..Grant::default() }),
            &bucket,
        );
        let grant = Grant { reign, ask: 1, seq: 1, lease_ms, rights: vec![right] };
        machine.handle_message(start + millis(after), &name("a"), &Message::Grant(grant.clone()), &bucket);
        let until = machine.lease_until(start + millis(after));
        assert_eq!(until, expected.map(|ms| start + millis(ms)), "{case}");
        machine.handle_message(start + millis(after), &name("c"), &Message::Grant(grant), &bucket);
        assert_eq!(machine.lease_until(start + millis(after)), until, "{case}, from another");
    }
}

#[test]
fn who_leaves_returns_its_rights_once_it_is_quiet() {
    let start = Instant::now();
    let bucket = Noted::default();
    let mut machine = leader(start);
    let mut now = start;
    let mut run = |machine: &mut Escrow, for_ms: u64, requests: u64| {
        for _ in 0..for_ms / 10 {
            now += millis(10);
            bucket.usage.set(Usage { admitted: bucket.usage.get().admitted + requests, refused: 0 });
            machine.handle_timeout(now, &bucket);
        }
        now
    };
    let now = run(&mut machine, 1500, 1);
    assert_eq!(machine.held(now, ID), limit()[&ID], "alone it has all");
    machine.leave(now, &bucket);
    let now = run(&mut machine, 1000, 1);
    assert_eq!(machine.held(now, ID), limit()[&ID], "requests still come");
    let now = run(&mut machine, 5000, 0);
    assert_eq!(machine.held(now, ID), limit()[&ID], "one may still come");
    let now = run(&mut machine, 1500, 0);
    assert_eq!((machine.held(now, ID), machine.poll_timeout()), (Share::NONE, None));
    assert_eq!(bucket.held.borrow().last().unwrap().share, Share::NONE);
    assert_eq!(machine.owners(ID).unwrap(), []);
}

#[test]
fn who_leaves_keeps_slots_for_short_requests_and_for_one_that_begins_last() {
    let start = Instant::now();
    let bucket = Noted::default();
    let whole = Share::of_tokens(12, 12);
    let mut machine = Escrow::new(name("a"), Kind::Slots, Timing::slots(), WithoutQuorum::Closed, start, 1);
    machine.handle_limits(start, &[(ID, whole)].into(), true, &bucket);
    let lead = Lead { term: 1, until: start + Duration::from_secs(3600) };
    machine.handle_leader(start, Some(&name("a")), Some(lead), &bucket);
    let mut now = start;
    let mut run = |machine: &mut Escrow, secs: u64, requests: u64| {
        for _ in 0..secs * 100 {
            now += millis(10);
            bucket.usage.set(Usage { admitted: bucket.usage.get().admitted + requests, refused: 0 });
            machine.handle_timeout(now, &bucket);
        }
        machine.held(now, ID)
    };
    assert_eq!(run(&mut machine, 8, 1), whole, "alone it has all");
    machine.leave(start + Duration::from_secs(8), &bucket);
    assert_eq!(run(&mut machine, 10, 1), whole, "requests come and go between two looks");
    bucket.late.set(1);
    assert_eq!(run(&mut machine, 8, 0), whole, "one took a slot while they were given up");
    assert_eq!((bucket.late.get(), bucket.held.borrow().last().unwrap().share), (0, whole), "so it has them again");
    bucket.in_use.set(0);
    assert_eq!(run(&mut machine, 8, 0), Share::NONE);
    assert_eq!(machine.owners(ID).unwrap(), []);
}

/// A request that is being broken is nobody's: a leader that begins would let its node keep a slot for it.
#[test]
fn what_is_in_use_after_its_lease_is_not_reported() {
    let start = Instant::now();
    let bucket = Noted::default();
    bucket.in_use.set(3);
    let mut machine = Escrow::new(name("b"), Kind::Slots, Timing::slots(), WithoutQuorum::Closed, start, 1);
    machine.handle_limits(start, &limit(), true, &bucket);
    machine.handle_leader(start, Some(&name("a")), None, &bucket);
    let mut reported = |grant: Option<Grant>, after: u64| {
        let now = start + millis(after);
        grant.into_iter().for_each(|grant| machine.handle_message(now, &name("a"), &Message::Grant(grant), &bucket));
        machine.handle_timeout(now, &bucket);
        std::iter::from_fn(|| machine.poll_transmit()).last().map(|sent| match sent.message {
            Message::Ask(ask) => (ask.seq, ask.wants[0].held.burst / share::TOKEN),
            Message::Grant(grant) => panic!("{grant:?}"),
        })
    };
    assert_eq!(reported(None, 0), Some((1, 0)), "before there is a lease");
    let (seq, _) = reported(Some(Grant { reign: 5, ask: 1, ..Grant::default() }), 20).unwrap();
    let grant = Grant { reign: 5, ask: seq, seq: 1, lease_ms: 5400, ..Grant::default() };
    assert_eq!(reported(Some(grant), 300).map(|(_, held)| held), Some(3), "under it, though the share is nothing");
    assert_eq!(reported(None, 5500).map(|(_, held)| held), Some(0), "after it");
}

fn slots(held: u64, demand: u64) -> (Share, u64) {
    (Share::of_tokens(held, held), demand)
}

/// A leader of 12 slots, and what it answers one of its holders after the time when it may lend.
struct Desk {
    machine: Escrow,
    reign: u64,
    now: Instant,
}

impl Desk {
    fn open() -> Self {
        let start = Instant::now();
        let mut machine = Escrow::new(name("a"), Kind::Slots, Timing::slots(), WithoutQuorum::Closed, start, 1);
        machine.handle_limits(start, &[(ID, Share::of_tokens(12, 12))].into(), true, &Noted::default());
        let lead = Lead { term: 1, until: start + Duration::from_secs(3600) };
        machine.handle_leader(start, Some(&name("a")), Some(lead), &Noted::default());
        let reign = reign_of(&mut machine, start);
        Self { machine, reign, now: start + Timing::slots().hold }
    }

    /// The slots that `from` is lent, and the number of its grant.
    fn ask(&mut self, from: &str, held: u64, (share, demand): (Share, u64)) -> (u64, u64) {
        self.now += millis(50);
        let question = ask(self.reign, 1, held, share, demand);
        let grant = answer(&mut self.machine, self.now, from, question).unwrap();
        (share_of(&grant).burst / share::TOKEN, grant.seq)
    }

    fn bound(&self, of: &str) -> u64 {
        let owners = self.machine.owners(ID).unwrap();
        owners.iter().find(|owner| owner.node == name(of)).map_or(0, |owner| owner.bound.burst / share::TOKEN)
    }
}

#[test]
fn slots_in_use_count_until_their_holder_says_less() {
    let mut desk = Desk::open();
    let mut b = (0, 0);
    for _ in 0..5 {
        b = desk.ask("b", b.1, slots(b.0, 12));
    }
    let (most, _) = b;
    assert!(most >= 9, "{most} where nearly all the demand is");
    // `c` wants as many; `b`, with all in use, is told to have fewer.
    let mut c = desk.ask("c", 0, slots(0, 12));
    for _ in 0..5 {
        b = desk.ask("b", b.1, slots(most, 12));
        c = desk.ask("c", c.1, slots(c.0, 12));
    }
    assert!(b.0 <= 6, "{b:?}");
    assert_eq!(desk.bound("b"), most, "they are in use, whatever its share");
    assert!(c.0 + most <= 12, "{c:?} beside {most}");
    for in_use in (b.0..most).rev() {
        desk.ask("b", b.1, slots(in_use, 12));
        c = desk.ask("c", c.1, slots(c.0, 12));
        c = desk.ask("c", c.1, slots(c.0, 12));
        assert_eq!(desk.bound("b"), in_use);
        assert!(c.0 + in_use <= 12, "{c:?} beside {in_use}");
    }
    assert!(c.0 >= 5, "{c:?} once they have ended");
}

#[test]
fn who_claims_more_than_it_was_lent_takes_nothing_from_others() {
    let mut desk = Desk::open();
    let mut c = (0, 0);
    for _ in 0..3 {
        c = desk.ask("c", c.1, slots(c.0, 5));
    }
    let mut b = desk.ask("b", 0, slots(1_000_000, 5));
    for _ in 0..3 {
        b = desk.ask("b", b.1, slots(1_000_000, 5));
        c = desk.ask("c", c.1, slots(c.0, 5));
    }
    assert!(desk.bound("b") + desk.bound("c") <= 12, "{} and {}", desk.bound("b"), desk.bound("c"));
    assert!(c.0 >= 3, "{c:?}");
}

/// A lease of slots outlasts an election, and ends before the leader's table lets go of it on the worst clocks.
#[test]
fn a_lease_of_slots_outlasts_an_election_and_ends_in_time() {
    let (slots, rates) = (Timing::slots(), Timing::default());
    for timing in [slots, rates] {
        assert!(timing.lease.div_f64(0.9) < timing.hold.div_f64(1.1), "{timing:?}");
    }
    let left = slots.lease - crate::gateway::slots::BREAK_AHEAD;
    assert!(left >= millis(3500), "the 99th percentile of a failover is 3.5 s, and {left:?} are left");
}
