//! Choices in tables, and the laws that gateways rely on.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::gateway::{policy::tests::load, worker::tests::workers};

const RULES: Cache = Cache { threshold: 0.3, balance_abs: 64, balance_rel: 1.5, index_bytes: 1 << 16 };

/// A conversation's turn: `shared` blocks that others have too, then its own, `earlier` of all known from the last turn.
fn prompt(session: u64, shared: u64, blocks: u64, earlier: Option<usize>) -> Prompt {
    Prompt {
        blocks: (1..=blocks).map(|i| if i <= shared { mix(i) } else { mix(session * 1000 + i) }).collect(),
        session: Some(mix(session + 77)),
        session_blocks: shared as usize,
        is_follow_up: earlier.is_some(),
        earlier_blocks: earlier.unwrap_or(0),
        tail: None,
    }
}

struct Gateway {
    workers: Vec<Arc<Worker>>,
    index: Index,
}

impl Gateway {
    fn new(n: usize) -> Self {
        Self { workers: workers(n), index: Index::new(RULES.index_bytes) }
    }

    fn ask(&self, prompt: &Prompt) -> (usize, Verdict) {
        let known = Known { prompt, index: &self.index, rules: &RULES, tick: 9 };
        let (worker, verdict) = choose(Candidates { ready: &self.workers, tried: &[] }, known, 7).unwrap();
        (self.workers.iter().position(|w| w.id == worker.id).unwrap(), verdict)
    }

    fn see(&self, worker: usize, prompt: &Prompt) {
        self.index.record(prompt.blocks.iter().copied().chain(prompt.session), self.workers[worker].holder(), 5);
    }

    /// A worker that hashing does not choose for the prompt.
    fn stranger(&self, prompt: &Prompt) -> usize {
        (Gateway::new(self.workers.len()).ask(prompt).0 + 1) % self.workers.len()
    }
}

#[test]
fn gateways_agree_on_homes_without_a_word() {
    let (one, two) = (Gateway::new(5), Gateway::new(5));
    for session in 0..200 {
        let (first, verdict) = one.ask(&prompt(session, 0, 4, None));
        assert_eq!((verdict.branch, verdict.matched, verdict.is_surprise), (Branch::Home, 0, false));
        one.see(first, &prompt(session, 0, 4, None));
        let (later, verdict) = two.ask(&prompt(session, 0, 9, Some(4)));
        assert_eq!(later, first, "a gateway that saw no earlier turn");
        assert_eq!((verdict.branch, verdict.matched), (Branch::Cache, 4), "expects the session at its home");
        assert!(!verdict.is_surprise);
    }
}

#[test]
fn a_session_stays_where_it_went() {
    let gateway = Gateway::new(5);
    for session in 0..50 {
        let first = prompt(session, 0, 4, None);
        let stranger = gateway.stranger(&first);
        gateway.see(stranger, &first);
        let (next, verdict) = gateway.ask(&prompt(session, 0, 6, Some(4)));
        assert_eq!(next, stranger);
        assert_eq!((verdict.branch, verdict.matched, verdict.is_surprise), (Branch::Cache, 4, false));
    }
}

#[test]
fn a_short_conversation_stays_too() {
    let gateway = Gateway::new(5);
    for session in 0..50 {
        let first = prompt(session, 0, 0, None);
        let stranger = gateway.stranger(&first);
        gateway.see(stranger, &first);
        assert_eq!(gateway.ask(&prompt(session, 0, 0, Some(0))).0, stranger);
    }
}

#[test]
fn a_shared_beginning_draws_new_sessions_when_it_is_enough_of_them() {
    for (case, shared, blocks, is_drawn) in
        [("most of it", 8, 10, true), ("just enough", 3, 10, true), ("too little", 2, 10, false)]
    {
        let gateway = Gateway::new(8);
        let newcomer = prompt(2, shared, blocks, None);
        let stranger = gateway.stranger(&newcomer);
        gateway.see(stranger, &prompt(1, shared, blocks, None));
        let (chosen, verdict) = gateway.ask(&newcomer);
        assert_eq!(chosen == stranger, is_drawn, "{case}");
        assert_eq!(verdict.is_surprise, is_drawn, "{case}: what was drawn away from its home is a surprise");
        assert_eq!(verdict.branch, if is_drawn { Branch::Cache } else { Branch::Home }, "{case}");
    }
}

#[test]
fn load_outweighs_a_cache_in_time() {
    const BEGINS: bool = false;
    const GOES_ON: bool = true;
    for (case, loads, matched, is_running, expected) in [
        ("idle", [0, 0], 8, BEGINS, Branch::Cache),
        ("somewhat busier", [13, 10], 8, BEGINS, Branch::Cache),
        ("much busier", [20, 10], 8, BEGINS, Branch::Home),
        ("much busier, with its past there", [20, 10], 8, GOES_ON, Branch::Cache),
        ("still busier, with its past there", [60, 10], 8, GOES_ON, Branch::Cache),
        ("still busier, with little there", [60, 10], 3, GOES_ON, Branch::Home),
        ("overloaded by both thresholds", [100, 10], 8, BEGINS, Branch::Balance),
        ("overloaded, with its past there", [100, 10], 8, GOES_ON, Branch::Balance),
        ("by the absolute one alone", [300, 230], 8, BEGINS, Branch::Cache),
        ("by the relative one alone", [40, 10], 9, GOES_ON, Branch::Cache),
    ] {
        let gateway = Gateway::new(2);
        // A session whose home is worker 1 and whose beginning, or all of whose past, was seen at worker 0.
        let session = (0..).find(|session| gateway.stranger(&prompt(*session, 0, 10, None)) == 0).unwrap();
        let (before, now) = if is_running {
            (prompt(session, 0, matched, None), prompt(session, 0, 10, Some(matched as usize)))
        } else {
            (prompt(session + 1, matched, 10, None), prompt(session, matched, 10, None))
        };
        gateway.see(0, &before);
        let _in_flight = load(&gateway.workers, &loads);
        let (chosen, verdict) = gateway.ask(&now);
        assert_eq!(verdict.branch, expected, "{case}");
        assert_eq!(chosen, usize::from(expected != Branch::Cache), "{case}");
    }
}

#[test]
fn conversations_begin_evenly_beside_a_shared_beginning() {
    let gateway = Gateway::new(4);
    let mut begun = [0_usize; 4];
    let mut in_flight = Vec::new();
    for session in 0..80 {
        let newcomer = prompt(session, 9, 10, None);
        let (place, _) = gateway.ask(&newcomer);
        gateway.see(place, &newcomer);
        in_flight.push(gateway.workers[place].begin());
        begun[place] += 1;
    }
    assert!(begun.iter().all(|count| (16..=24).contains(count)), "{begun:?}");
}

#[test]
fn loads_at_other_gateways_count() {
    let gateway = Gateway::new(2);
    let newcomer = prompt(1, 8, 10, None);
    let stranger = gateway.stranger(&newcomer);
    gateway.see(stranger, &prompt(2, 8, 10, None));
    assert_eq!(gateway.ask(&newcomer).0, stranger);
    gateway.workers[stranger].set_elsewhere(200);
    assert_eq!(gateway.ask(&newcomer).1.branch, Branch::Balance);
}

#[test]
fn a_busy_home_passes_new_prompts_on_and_says_so() {
    let gateway = Gateway::new(4);
    let newcomer = prompt(1, 0, 6, None);
    let home = gateway.ask(&newcomer).0;
    let mut loads = [4; 4];
    loads[home] = 9;
    let _in_flight = load(&gateway.workers, &loads);
    let (chosen, verdict) = gateway.ask(&newcomer);
    assert_ne!(chosen, home);
    assert_eq!((verdict.branch, verdict.is_surprise), (Branch::Spill, true));
    let (chosen, _) = gateway.ask(&prompt(1, 0, 9, Some(6)));
    assert_eq!(chosen, home, "a follow-up is worth more than that");
}

#[test]
fn a_restarted_worker_has_seen_nothing() {
    let gateway = Gateway::new(3);
    let newcomer = prompt(1, 8, 10, None);
    let stranger = gateway.stranger(&newcomer);
    gateway.see(stranger, &prompt(2, 8, 10, None));
    gateway.workers[stranger].set_generation(1);
    assert_eq!(gateway.ask(&newcomer).1.branch, Branch::Home);
}

#[test]
fn the_own_zone_wins_between_equals() {
    let gateway = Gateway::new(2);
    for worker in 0..2 {
        gateway.see(worker, &prompt(2, 8, 10, None));
    }
    for far in 0..2 {
        (0..2).for_each(|worker| gateway.workers[worker].set_far(worker == far));
        for session in 10..30 {
            assert_eq!(gateway.ask(&prompt(session, 8, 10, None)).0, 1 - far);
        }
    }
}

#[test]
fn without_text_load_decides() {
    let gateway = Gateway::new(3);
    let (_, verdict) = gateway.ask(&Prompt::default());
    assert_eq!((verdict.branch, verdict.is_surprise), (Branch::NoPrompt, false));
}

/// One hot prefix takes all workers and pushes no other conversation from its place.
#[test]
fn one_hot_prefix_is_shared_by_all() {
    let gateway = Gateway::new(4);
    let others: Vec<_> = (100..140).map(|session| (session, gateway.ask(&prompt(session, 0, 8, None)).0)).collect();
    for (session, place) in &others {
        gateway.see(*place, &prompt(*session, 0, 8, None));
    }
    let mut in_flight = Vec::new();
    for session in 1000..1400 {
        let hot = prompt(session, 8, 10, None);
        let (place, _) = gateway.ask(&hot);
        gateway.see(place, &hot);
        in_flight.push(gateway.workers[place].begin());
    }
    let loads: Vec<_> = gateway.workers.iter().map(|worker| worker.in_flight()).collect();
    assert!(loads.iter().all(|load| (80..=120).contains(load)), "{loads:?}");
    let stayed = others.iter().filter(|(session, place)| gateway.ask(&prompt(*session, 0, 12, Some(8))).0 == *place);
    assert!(stayed.count() * 10 >= others.len() * 9);
}

proptest! {
    #[test]
    fn the_order_of_the_workers_does_not_matter(session in 0u64..1000, n in 1usize..9, turn in 0usize..9) {
        let (one, mut two) = (Gateway::new(n), Gateway::new(n));
        two.workers.rotate_left(turn % n);
        let prompt = prompt(session, 2, 6, None);
        let (a, b) = (one.ask(&prompt).0, two.ask(&prompt).0);
        prop_assert_eq!(&one.workers[a].id, &two.workers[b].id);
    }

    #[test]
    fn a_verdict_never_claims_more_than_the_prompt(
        session in 0u64..5, seen in proptest::collection::vec((0usize..4, 0u64..5, 0u64..9, 0u64..9), 0..20),
        shared in 0u64..9, blocks in 0u64..9, earlier in proptest::option::of(0usize..9),
    ) {
        let gateway = Gateway::new(4);
        for (worker, session, shared, blocks) in seen {
            gateway.see(worker, &prompt(session, shared.min(blocks), blocks, None));
        }
        let asked = prompt(session, shared.min(blocks), blocks, earlier.map(|earlier| earlier.min(blocks as usize)));
        let (_, verdict) = gateway.ask(&asked);
        prop_assert!(verdict.matched <= verdict.blocks);
    }
}
