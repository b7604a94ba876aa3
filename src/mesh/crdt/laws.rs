//! The laws of a join semilattice, checked over histories of operations on three replicas (STYLE §7).

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::{
    context::VersionVector,
    delta::{Body, Chunk, Cover},
    dot::{Actor, ActorId, Key},
    g_counter, lww_register,
    map::Map,
    or_set, pn_counter,
};
use crate::mesh::hlc::Timestamp;

mod values;

const REPLICAS: usize = 3;

/// One step of a history. Keys name their type by the first letter.
#[derive(Clone, Debug)]
enum Step {
    Lww(usize, u8, u8),
    Add(usize, u8),
    Remove(usize, u8, u8),
    Count(usize, u8),
    Balance(usize, i8),
    /// A replica starts again under a new epoch, without data.
    Restart(usize),
    /// A delta or a state, sent from one replica to another; `lost` is built and never arrives.
    Sync {
        from: usize,
        to: usize,
        kind: u8,
        copies: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let replica = 0..REPLICAS;
    prop_oneof![
        (replica.clone(), 0_u8..3, any::<u8>()).prop_map(|(at, key, value)| Step::Lww(at, key, value)),
        (replica.clone(), 0_u8..3).prop_map(|(at, key)| Step::Add(at, key)),
        (replica.clone(), 0_u8..4, 0_u8..3).prop_map(|(at, kind, key)| Step::Remove(at, kind, key)),
        (replica.clone(), any::<u8>()).prop_map(|(at, n)| Step::Count(at, n)),
        (replica.clone(), any::<i8>()).prop_map(|(at, n)| Step::Balance(at, n)),
        (replica.clone(), replica, 0_u8..4, 0_u8..3).prop_map(|(from, to, kind, copies)| Step::Sync {
            from,
            to,
            kind,
            copies
        }),
    ]
}

fn histories_with_restarts() -> impl Strategy<Value = Vec<Step>> {
    let restart = (0..REPLICAS).prop_map(Step::Restart);
    proptest::collection::vec(prop_oneof![6 => step(), 1 => restart], 1..60)
}

fn histories() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..60)
}

fn actor(index: usize, boot_epoch_ms: u64) -> Actor {
    Actor { node: format!("n{index}").parse().unwrap(), boot_epoch_ms }
}

fn replica(index: usize) -> Map {
    Map::new(&actor(index, 7))
}

fn run(history: &[Step]) -> Vec<Map> {
    let mut maps: Vec<Map> = (0..REPLICAS).map(replica).collect();
    go_on(&mut maps, history, 0);
    maps
}

fn go_on(maps: &mut [Map], history: &[Step], from_ms: usize) {
    for (at_ms, step) in history.iter().enumerate().map(|(index, step)| (from_ms + index, step)) {
        // Replicas disagree about the time, so that timestamps and causality do too.
        let stamp = |map: &Map, at: usize, key: &[u8]| {
            Timestamp::new(at_ms as u64 + 20 * at as u64, 0).max(map.newest(key).successor())
        };
        match *step {
            Step::Lww(at, key, value) => {
                let stamp = stamp(&maps[at], at, &[b'l', key]);
                lww_register::write(&mut maps[at], &[b'l', key], stamp, &[value]);
            }
            Step::Add(at, key) => {
                let stamp = stamp(&maps[at], at, &[b's', key]);
                or_set::add(&mut maps[at], &[b's', key], stamp);
            }
            Step::Remove(at, kind, key) => {
                maps[at].remove(&[[b'l', b's', b'g', b'p'][usize::from(kind)], key]);
            }
            Step::Restart(at) => maps[at] = Map::new(&actor(at, 100 + at_ms as u64)),
            Step::Count(at, n) => g_counter::add(&mut maps[at], b"g\0", Timestamp::ZERO, n.into()),
            Step::Balance(at, n) => pn_counter::add(&mut maps[at], b"p\0", Timestamp::ZERO, n.into()),
            Step::Sync { from, to, kind, copies } => {
                let body = match kind {
                    0 => state(&maps[from]),
                    1 => delta(&maps[from], &maps[to].seen_by_name(&maps[from])),
                    2 => own_delta(&maps[from], &maps[to].seen_by_name(&maps[from])),
                    _ => partial(&maps[from]),
                };
                for _ in 0..copies {
                    join(&mut maps[to], &body);
                }
            }
        }
    }
}

/// Anti-entropy between all, until all is known to all.
fn settle(maps: &mut [Map]) {
    for _ in 0..2 {
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2), (2, 1), (1, 0)] {
            let body = delta(&maps[from], &maps[to].seen_by_name(&maps[from]));
            join(&mut maps[to], &body);
        }
    }
    maps.iter_mut().for_each(Map::prune);
}

impl Map {
    /// What this replica has seen, in the numbers of `other`.
    fn seen_by_name(&self, other: &Self) -> VersionVector {
        let mut vector = VersionVector::default();
        for (actor, counter) in self.seen().iter() {
            if let Some(id) = other.actors().id(self.actors().actor(actor)) {
                vector.raise(id, counter);
            }
        }
        vector
    }
}

fn body(map: &Map) -> Body {
    let mut actors: Vec<_> = map.actors().iter().map(|(actor, id)| (id, actor.clone())).collect();
    actors.sort();
    Body {
        actors: actors.into_iter().map(|(_, actor)| actor).collect(),
        context: map.seen().iter().collect(),
        ..Body::default()
    }
}

/// The same body with the numbers of its own list of actors.
fn numbered(map: &Map, mut body: Body) -> Body {
    let mut ids: Vec<ActorId> = map.actors().iter().map(|(_, id)| id).collect();
    ids.sort();
    let number = |actor: &mut ActorId| {
        let position = ids.iter().position(|id| id == actor).unwrap();
        *actor = ActorId(u32::try_from(position).unwrap());
    };
    body.context.iter_mut().for_each(|(actor, _)| number(actor));
    body.covers.iter_mut().for_each(|cover| number(&mut cover.actor));
    if let Some(chunk) = &mut body.chunk {
        chunk.base.iter_mut().chain(&mut chunk.guard).for_each(|(actor, _)| number(actor));
    }
    for key in &mut body.keys {
        key.live.iter_mut().for_each(|live| number(&mut live.dot.actor));
        key.records.iter_mut().for_each(|dot| number(&mut dot.actor));
        key.guard.iter_mut().for_each(|(actor, _)| number(actor));
    }
    body
}

/// The whole state, as a snapshot of one chunk.
fn state(map: &Map) -> Body {
    let start = Key::from(&b""[..]);
    let guarded = map.guards().keys_from(&start).map(|key| &**key);
    let mut keys: Vec<&[u8]> = map.range_from(b"").map(|(key, _)| key).chain(guarded).collect();
    keys.sort();
    keys.dedup();
    let keys = keys.into_iter().map(|key| map.key_state(key)).collect();
    let guard = map.guards().range_at(b"").0.beyond(map.seen()).map(|guard| guard.iter().collect()).unwrap_or_default();
    let chunk = Chunk { from: start, to: None, guard, base: map.seen().iter().collect() };
    numbered(map, Body { keys, chunk: Some(chunk), ..body(map) })
}

/// What a peer that has seen `peer` lacks.
fn delta(map: &Map, peer: &VersionVector) -> Body {
    if map.actors().iter().any(|(_, actor)| peer.get(actor) < map.floor(actor)) || map.guards().has_ranges() {
        return state(map);
    }
    let actors: Vec<_> = map.actors().iter().map(|(_, actor)| actor).collect();
    delta_of(map, peer, &actors)
}

/// What a peer lacks of the sender's own operations alone, as it is pushed at once.
fn own_delta(map: &Map, peer: &VersionVector) -> Body {
    if peer.get(map.own()) < map.floor(map.own()) {
        return state(map);
    }
    delta_of(map, peer, &[map.own()])
}

fn delta_of(map: &Map, peer: &VersionVector, actors: &[ActorId]) -> Body {
    let mut body = body(map);
    for actor in actors.iter().copied() {
        let mut at = peer.get(actor);
        while let Some((counter, key, dead)) = map.next_event(actor, at) {
            let position = body.keys.iter().position(|state| *state.key == *key).unwrap_or_else(|| {
                body.keys.push(map.key_state(key));
                body.keys.len() - 1
            });
            if dead {
                body.keys[position].records.push(super::dot::Dot { actor, counter });
            }
            at = counter;
        }
        let (from, to) = (peer.get(actor), map.seen().get(actor));
        if to > from {
            body.covers.push(Cover { actor, from, to });
        }
    }
    numbered(map, body)
}

/// Some keys, covering nothing: a delta that is cut off in the middle.
fn partial(map: &Map) -> Body {
    let keys = map.range_from(b"").step_by(2).map(|(key, _)| map.key_state(key)).collect();
    numbered(map, Body { keys, ..body(map) })
}

fn join(map: &mut Map, body: &Body) {
    map.apply(&mut VersionVector::default(), body.clone()).unwrap();
}

fn joined(a: &Map, b: &Map) -> Map {
    let mut a = a.clone();
    join(&mut a, &state(b));
    a
}

fn same(a: &Map, b: &Map) -> bool {
    a.canonical() == b.canonical() && a.root() == b.root()
}

proptest! {
    #[test]
    fn join_is_commutative_associative_and_idempotent(history in histories()) {
        let maps = run(&history);
        let (a, b, c) = (&maps[0], &maps[1], &maps[2]);
        prop_assert!(same(&joined(a, b), &joined(b, a)));
        prop_assert!(same(&joined(&joined(a, b), c), &joined(a, &joined(b, c))));
        prop_assert!(same(&joined(a, a), a));
        prop_assert!(same(&joined(&joined(a, b), b), &joined(a, b)));
    }

    #[test]
    fn operations_and_joins_are_inflationary(history in histories()) {
        for cut in 1..history.len() {
            let (before, after) = (run(&history[..cut]), run(&history[..=cut]));
            for (before, after) in before.iter().zip(&after) {
                prop_assert!(after.seen().covers(before.seen()));
                prop_assert!(same(&joined(after, before), after), "the earlier state lies below the later");
            }
        }
    }

    #[test]
    fn joining_a_delta_equals_joining_the_state(history in histories()) {
        let maps = run(&history);
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            let mut by_delta = maps[a].clone();
            join(&mut by_delta, &delta(&maps[b], &maps[a].seen_by_name(&maps[b])));
            prop_assert!(same(&by_delta, &joined(&maps[a], &maps[b])));
        }
    }

    #[test]
    fn anti_entropy_after_any_order_duplication_and_loss_ends_equal(history in histories()) {
        let mut maps = run(&history);
        settle(&mut maps);
        prop_assert!(same(&maps[0], &maps[1]) && same(&maps[1], &maps[2]));
        prop_assert!(maps.iter().all(|map| map.guards().is_empty()));
        let (sum, balance) = (g_counter::value(&maps[0], b"g\0"), pn_counter::value(&maps[0], b"p\0"));
        prop_assert!(sum <= history.len() as u128 * 255 && balance.abs() <= history.len() as i128 * 128);
    }
}

proptest! {
    #[test]
    fn folding_changes_no_value_then_or_later_and_brings_nothing_back(
        before in histories_with_restarts(),
        after in histories(),
    ) {
        let mut maps = run(&before);
        // Frames that are still on their way when the fold happens.
        let stale: Vec<Body> = maps.iter().flat_map(|map| [state(map), partial(map)]).collect();
        settle(&mut maps);
        let mut unfolded = maps.clone();
        let decided: Vec<Actor> = maps.iter().map(|map| map.actors().actor(map.own()).clone()).collect();
        for own in &decided {
            maps[0].fold(&own.node, own.boot_epoch_ms);
        }
        maps[0].prune();
        for body in &stale {
            maps.iter_mut().for_each(|map| join(map, body));
        }
        settle(&mut maps);
        prop_assert!(same(&maps[0], &maps[1]) && same(&maps[1], &maps[2]));
        prop_assert_eq!(maps[0].root(), unfolded[0].root(), "the live dots are those without the fold");
        for map in &maps {
            let folded = map.actors().iter().filter(|(actor, _)| map.is_folded(actor)).count();
            prop_assert!(folded <= map.range_from(b"").map(|(_, live)| live.count()).sum::<usize>());
            prop_assert!(map.seen().iter().count() <= 2 * REPLICAS + folded, "floors, running epochs, live dots");
        }
        for maps in [&mut maps, &mut unfolded] {
            go_on(maps, &after, 1000);
            settle(maps);
        }
        prop_assert!(same(&maps[0], &maps[1]) && same(&maps[1], &maps[2]));
        prop_assert_eq!(maps[0].root(), unfolded[0].root(), "nor does it change what comes later");
    }
}

#[test]
fn nobody_folds_a_running_epoch() {
    let (mut a, mut b) = (replica(0), replica(1));
    or_set::add(&mut a, b"k", Timestamp::ZERO);
    a.fold(&actor(0, 7).node, 8);
    assert!(!a.is_folded(&actor(0, 7)), "not its own");
    b.fold(&actor(0, 7).node, 8);
    let refused = a.apply(&mut VersionVector::default(), delta(&b, &VersionVector::default()));
    assert_eq!(refused, Err(super::delta::BodyError::FloorAhead));
}

#[test]
fn each_type_resolves_concurrent_operations_by_its_rule() {
    let (mut a, mut b) = (replica(0), replica(1));
    lww_register::write(&mut a, b"l", Timestamp::new(2, 0), b"later");
    lww_register::write(&mut b, b"l", Timestamp::new(1, 0), b"earlier");
    or_set::add(&mut a, b"s", Timestamp::ZERO);
    b = joined(&b, &a);
    or_set::add(&mut a, b"s", Timestamp::ZERO);
    assert!(or_set::remove(&mut b, b"s"));
    g_counter::add(&mut a, b"g", Timestamp::ZERO, 3);
    g_counter::add(&mut a, b"g", Timestamp::ZERO, 1);
    g_counter::add(&mut b, b"g", Timestamp::ZERO, 5);
    pn_counter::add(&mut a, b"p", Timestamp::ZERO, 3);
    pn_counter::add(&mut b, b"p", Timestamp::ZERO, -5);
    let both = joined(&a, &b);
    assert_eq!(lww_register::read(&both, b"l").unwrap().payload, b"later");
    assert!(or_set::contains(&both, b"s"), "an add that the remove has not seen wins");
    assert_eq!((g_counter::value(&both, b"g"), pn_counter::value(&both, b"p")), (9, -2));
}

#[test]
fn a_remove_that_is_known_before_its_add_is_not_undone_by_the_add() {
    let (mut a, mut b, mut c) = (replica(0), replica(1), replica(2));
    or_set::add(&mut a, b"k", Timestamp::ZERO);
    let add = delta(&a, &VersionVector::default());
    join(&mut b, &add);
    assert!(or_set::remove(&mut b, b"k"));
    join(&mut c, &own_delta(&b, &VersionVector::default()));
    assert_eq!(c.guards().len(), 1);
    join(&mut c, &add);
    assert!(!or_set::contains(&c, b"k"));
    assert!(c.guards().is_empty(), "the guard goes once the add was seen");
}

#[test]
fn own_writes_that_others_overwrote_still_lead_to_their_keys() {
    let (mut a, mut b) = (replica(0), replica(1));
    lww_register::write(&mut a, b"l", Timestamp::new(1, 0), b"old");
    join(&mut b, &delta(&a, &VersionVector::default()));
    lww_register::write(&mut b, b"l", Timestamp::new(2, 0), b"new");
    join(&mut a, &delta(&b, &VersionVector::default()));
    let pushed = own_delta(&a, &VersionVector::default());
    assert_eq!(pushed.keys.len(), 1, "else c would count the old write as dead and hold nothing in its place");
    let mut c = replica(2);
    join(&mut c, &pushed);
    assert_eq!(lww_register::read(&c, b"l").unwrap().payload, b"new");
}

#[test]
fn bodies_that_contradict_what_was_seen_are_refused_whole() {
    let (mut a, mut b) = (replica(0), replica(1));
    or_set::add(&mut a, b"k", Timestamp::ZERO);
    or_set::add(&mut b, b"k", Timestamp::ZERO);
    let good = delta(&b, &VersionVector::default());
    let own = Actor { node: "n0".parse().unwrap(), boot_epoch_ms: 7 };
    let mut forged = good.clone();
    forged.actors[0] = own;
    forged.context[0].1 = 9;
    let mut beyond = good.clone();
    beyond.keys[0].live[0].dot.counter = 2;
    let mut gap = good.clone();
    gap.context[0].1 = 9;
    gap.covers[0] = Cover { from: 5, to: 9, ..gap.covers[0] };
    let mut number = good.clone();
    number.keys[0].live[0].dot.actor = ActorId(99);
    let mut outside = state(&b);
    outside.chunk.as_mut().unwrap().to = Some(Key::from(&b"a"[..]));
    let mut middle = state(&b);
    middle.chunk.as_mut().unwrap().from = Key::from(&b"a"[..]);
    for (case, body) in [
        ("dots of the receiver that it never gave", forged),
        ("dot beyond the context", beyond),
        ("cover that starts later", gap),
        ("unknown actor number", number),
        ("key outside the chunk", outside),
        ("middle of a snapshot that never began", middle),
    ] {
        let (before, mut peer) = (a.canonical(), VersionVector::default());
        assert!(a.apply(&mut peer, body).is_err(), "{case}");
        assert_eq!((a.canonical(), peer.iter().count()), (before, 0), "{case}");
    }
    assert!(a.apply(&mut VersionVector::default(), good).is_ok());
}
