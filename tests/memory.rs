//! What replicated state costs in memory beside keys and payloads, by an allocator that counts.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::alloc::System;

use cap::Cap;
use smg::mesh::{
    crdt::{
        context::VersionVector,
        delta::{Body, Cover},
        dot::{Actor, ActorId},
        map::{Map, RECORDS_MAX},
    },
    hlc::Timestamp,
};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const ENTRIES: u64 = 100_000;

/// Metadata of one live entry, in bytes: DESIGN §4 allows 64.
const METADATA_MAX: usize = 64;

/// What remembering one remove may cost beside its key, in bytes; there are at most [`RECORDS_MAX`] of them.
const RECORD_MAX: usize = 48;

fn actor(node: &str) -> Actor {
    Actor { node: node.parse().unwrap(), boot_epoch_ms: 1 }
}

/// Keys in an order that is not theirs.
fn key(index: u64) -> Vec<u8> {
    format!("w-{:016x}/spec", index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()
}

fn content(map: &Map) -> usize {
    map.payload_bytes() + map.range_from(b"").map(|(key, _)| key.len()).sum::<usize>()
}

/// Bytes beside keys and payloads that `map` takes for each live entry, when there were `before` without it.
fn metadata(before: usize, map: &Map) -> usize {
    (ALLOCATOR.allocated() - before - content(map)) / map.len()
}

fn filled(own: &Actor) -> Map {
    let mut map = Map::new(own);
    for index in 0..ENTRIES {
        map.write(&key(index), Timestamp::new(index, 0), &[7; 120]);
    }
    map
}

/// What `source` has written since `from`, as one body.
fn delta(source: &Map, from: u64) -> Body {
    let (own, actor) = (source.own(), ActorId(0));
    let mut keys = Vec::new();
    let mut at = from;
    while let Some((counter, key, _)) = source.next_event(own, at) {
        keys.push(source.key_state(key));
        at = counter;
    }
    let to = source.seen().get(own);
    Body {
        actors: vec![source.actors().actor(own).clone()],
        context: vec![(actor, to)],
        keys,
        covers: vec![Cover { actor, from, to }],
        ..Body::default()
    }
}

// One test, because there is one allocator.
#[test]
fn live_entries_cost_at_most_64_bytes_beside_key_and_payload() {
    let before = ALLOCATOR.allocated();
    let mut map = filled(&actor("writer"));
    let written = metadata(before, &map);
    assert!(written <= METADATA_MAX, "written here: {written} bytes for each entry");

    // Overwritten in another order, twice: the dots are no longer in the order of keys, nor without gaps.
    for round in 1..=2 {
        for index in (0..ENTRIES).map(|index| (index * 7919 * round) % ENTRIES) {
            map.write(&key(index), Timestamp::new(index, 1), &[8; 120]);
        }
    }
    let overwritten = metadata(before, &map);
    assert!(overwritten <= METADATA_MAX, "overwritten: {overwritten} bytes for each entry");

    let from_here = ALLOCATOR.allocated();
    let mut joined = Map::new(&actor("reader"));
    let mut peer = VersionVector::default();
    joined.apply(&mut peer, delta(&map, 0)).unwrap();
    let received = metadata(from_here, &joined);
    assert!(received <= METADATA_MAX, "joined: {received} bytes for each entry");
    assert_eq!(joined.root(), map.root());
    drop(joined);

    // Removed and added again, until the cache of removes is full: it is bounded by number, not by what lives.
    for index in 0..ENTRIES {
        map.remove(&key(index));
        map.write(&key(index), Timestamp::new(index, 2), &[9; 120]);
    }
    let records = map.records_len();
    assert_eq!(records, RECORDS_MAX);
    let all = ALLOCATOR.allocated() - before - content(&map);
    let allowed = METADATA_MAX * map.len() + records * (RECORD_MAX + key(0).len());
    assert!(all <= allowed, "{all} bytes with {records} remembered removes, {allowed} allowed");

    let record_bytes = (all - overwritten * map.len()) / records - key(0).len();

    // Nine of ten go: what they took is given back.
    for index in (0..ENTRIES).filter(|index| index % 10 > 0) {
        map.remove(&key(index));
    }
    let rest = ALLOCATOR.allocated() - before - content(&map);
    let allowed = METADATA_MAX * map.len() + records * (RECORD_MAX + key(0).len());
    assert!(rest <= allowed, "{rest} bytes for {} entries, {allowed} allowed", map.len());
    assert!(all - rest >= 9 * METADATA_MAX / 10 * (ENTRIES as usize) / 10 * 7, "{all} then, {rest} now");

    println!("metadata of a live entry: {written} B written, {overwritten} B overwritten, {received} B joined");
    println!("a remembered remove: {record_bytes} B beside its key");
}
