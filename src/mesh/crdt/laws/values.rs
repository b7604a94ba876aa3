//! What each type is worth after any history, worked out without any join.
//!
//! The oracle is the definition of [`crdt`](crate::mesh::crdt) itself: a dot lives unless an operation that saw it has
//! killed it. It watches each operation at the replica that performs it, and never a body.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A dot by the name of its actor.
type Named = (Actor, u64);

/// Live dots of one key, with stamp and payload.
type Values = BTreeMap<Named, (Timestamp, Vec<u8>)>;

fn values(map: &Map, key: &[u8]) -> Values {
    let named = |dot: crate::mesh::crdt::dot::Dot| (map.actors().actor(dot.actor).clone(), dot.counter);
    map.get(key).map(|live| (named(live.dot), (live.stamp, live.payload.to_vec()))).collect()
}

/// Where a step operates, and on which key; none for a sync.
fn target(step: &Step) -> Option<(usize, [u8; 2])> {
    match *step {
        Step::Lww(at, key, _) => Some((at, [b'l', key])),
        Step::Add(at, key) => Some((at, [b's', key])),
        Step::Remove(at, kind, key) => Some((at, [[b'l', b's', b'g', b'p'][usize::from(kind)], key])),
        Step::Count(at, _) => Some((at, *b"g\0")),
        Step::Balance(at, _) => Some((at, *b"p\0")),
        Step::Sync { .. } | Step::Restart(_) => None,
    }
}

proptest! {
    #[test]
    fn every_type_is_worth_what_its_operations_say(history in histories()) {
        let mut maps: Vec<Map> = (0..REPLICAS).map(replica).collect();
        let (mut added, mut killed) = (BTreeMap::<[u8; 2], Values>::new(), BTreeSet::<Named>::new());
        let (mut counted, mut balance, mut is_reset) = (0_u128, 0_i128, BTreeSet::<u8>::new());
        for (at_ms, step) in history.iter().enumerate() {
            let Some((at, key)) = target(step) else {
                go_on(&mut maps, std::slice::from_ref(step), at_ms);
                continue;
            };
            let before = values(&maps[at], &key);
            go_on(&mut maps, std::slice::from_ref(step), at_ms);
            let after = values(&maps[at], &key);
            let gone: Vec<&Named> = before.keys().filter(|dot| !after.contains_key(*dot)).collect();
            match step {
                // Stamps exceed what was known, so the last writer is also the latest.
                Step::Lww(..) | Step::Add(..) => {
                    prop_assert_eq!((gone.len(), after.len()), (before.len(), 1), "all that was seen is superseded");
                    prop_assert!(before.values().all(|(stamp, _)| after.values().all(|(new, _)| new > stamp)));
                }
                Step::Remove(..) => prop_assert!(after.is_empty()),
                Step::Count(..) | Step::Balance(..) => {
                    let own = actor(at, 7);
                    prop_assert!(gone.iter().all(|(actor, _)| *actor == own), "others' counts stay");
                }
                Step::Sync { .. } | Step::Restart(_) => {}
            }
            match *step {
                Step::Count(_, n) => counted += u128::from(n),
                Step::Balance(_, n) => balance += i128::from(n),
                Step::Remove(..) if !gone.is_empty() => drop(is_reset.insert(key[0])),
                _ => {}
            }
            killed.extend(gone.into_iter().cloned());
            added.entry(key).or_default().extend(after.into_iter().filter(|(dot, _)| !before.contains_key(dot)));
        }
        settle(&mut maps);
        for (key, added) in &added {
            let live: Values = added.iter().filter(|(dot, _)| !killed.contains(*dot)).map(|(k, v)| (k.clone(), v.clone())).collect();
            for map in &maps {
                prop_assert_eq!(&values(map, key), &live);
                prop_assert_eq!(or_set::contains(map, key), !live.is_empty());
                let newest = live.iter().max_by_key(|((actor, counter), (stamp, _))| (*stamp, actor.clone(), *counter));
                let read = lww_register::read(map, key).map(|live| live.payload.to_vec());
                prop_assert_eq!(read, newest.map(|(_, (_, payload))| payload.clone()), "ties go by actor");
            }
        }
        for map in &maps {
            if !is_reset.contains(&b'g') {
                prop_assert_eq!(g_counter::value(map, b"g\0"), counted);
            }
            if !is_reset.contains(&b'p') {
                prop_assert_eq!(pn_counter::value(map, b"p\0"), balance);
            }
        }
    }
}
