//! The table against a model, at its bounds, and under several threads.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::gateway::policy::mix;

fn holder(tag: u32) -> Holder {
    Holder { tag, generation: 0 }
}

/// Names of a prompt whose blocks are numbered; equal beginnings have equal names.
fn names(blocks: &[u8]) -> Vec<u64> {
    let mut last = 77;
    let link = |&block: &u8| {
        last = mix(last ^ (u64::from(block) + 1)).max(2);
        last
    };
    blocks.iter().map(link).collect()
}

fn found(index: &Index, blocks: &[u64]) -> (usize, BTreeMap<u32, u32>) {
    let mut candidates = Candidates::default();
    let longest = index.longest(blocks, &mut candidates);
    (longest, candidates.as_slice().iter().map(|(holder, blocks)| (holder.tag, *blocks)).collect())
}

#[test]
fn a_slot_is_five_words() {
    assert_eq!(SLOT_BYTES, 40);
    assert_eq!(Index::new(1 << 20).stats().bytes_max, (1 << 20) / 320 * 320, "never above the budget");
    assert_eq!(Index::new(0).stats().bytes_max, 320, "one bucket at least");
}

#[test]
fn buckets_lie_on_cache_lines_within_the_budget() {
    for bytes in [0, 320, 384, 1000, 1 << 12, (1 << 16) + 8, 1 << 20] {
        let index = Index::new(bytes);
        index.record([7], holder(1), 1);
        let table = index.first.table.get().unwrap();
        assert_eq!(table.all().as_ptr().align_offset(8 * LINE_WORDS), 0, "{bytes}");
        assert_eq!(table.all().len() * 8, index.stats().bytes_max, "{bytes}");
        assert!(table.bytes() <= bytes.max(8 * (BUCKET_WORDS + LINE_WORDS)), "{bytes}");
    }
}

#[test]
fn a_table_takes_memory_with_its_first_name() {
    let index = Index::new(1 << 20);
    assert_eq!(found(&index, &names(&[1, 2, 3])), (0, BTreeMap::new()));
    assert!(index.hottest(10, 1).is_empty());
    assert_eq!(index.latest(7, 1), None);
    index.clear();
    assert!(index.first.table.get().is_none(), "nothing was written");
    index.record(names(&[1, 2]), holder(1), 1);
    assert!(index.first.table.get().is_some());
    assert_eq!(found(&index, &names(&[1, 2, 3])), (2, BTreeMap::from([(1, 2)])));
}

#[test]
fn prompts_longer_than_what_is_read_ahead_are_recorded_whole() {
    for blocks in [AHEAD - 1, AHEAD, AHEAD + 1, 2 * AHEAD, 3 * AHEAD + 5] {
        let index = Index::new(1 << 20);
        let prompt = names(&(0..blocks as u8).collect::<Vec<_>>());
        assert_eq!(index.record(prompt.iter().copied(), holder(1), 1), 0, "{blocks} new");
        assert_eq!(index.stats().entries, blocks);
        assert_eq!(index.record(prompt.iter().copied(), holder(1), 2), blocks, "{blocks} known");
        assert_eq!(found(&index, &prompt), (blocks, BTreeMap::from([(1, blocks as u32)])));
    }
}

#[test]
fn the_longest_match_and_who_has_it() {
    let index = Index::new(1 << 16);
    index.record(names(&[1, 2, 3, 4, 5]), holder(1), 10);
    index.record(names(&[1, 2, 3, 9]), holder(2), 11);
    for (case, prompt, longest, of) in [
        ("nothing", vec![7, 7], 0, vec![]),
        ("all of it", vec![1, 2, 3, 4, 5], 5, vec![(1, 5)]),
        ("longer than known", vec![1, 2, 3, 4, 5, 6, 7], 5, vec![(1, 5)]),
        ("the other branch", vec![1, 2, 3, 9, 9], 4, vec![(2, 4)]),
        ("what both have", vec![1, 2, 3, 8], 3, vec![(1, 3), (2, 3)]),
        ("no blocks", vec![], 0, vec![]),
    ] {
        let (found_longest, found_of) = found(&index, &names(&prompt));
        assert_eq!(found_longest, longest, "{case}");
        for (tag, blocks) in of {
            assert_eq!(found_of.get(&tag), Some(&blocks), "{case}");
        }
    }
}

#[test]
fn recording_tells_what_the_worker_had() {
    let index = Index::new(1 << 16);
    for (case, prompt, tag, expected) in [
        ("new", vec![1, 2, 3], 1, 0),
        ("again", vec![1, 2, 3], 1, 3),
        ("longer", vec![1, 2, 3, 4], 1, 3),
        ("another worker", vec![1, 2, 3, 4], 2, 0),
        ("branch", vec![1, 2, 9, 4], 2, 2),
    ] {
        assert_eq!(index.record(names(&prompt), holder(tag), 1), expected, "{case}");
    }
    assert_eq!(index.stats(), Stats { entries: 6, bytes: 240, bytes_max: 65_280, evictions: 0 });
}

#[test]
fn a_new_generation_has_seen_nothing() {
    let index = Index::new(1 << 16);
    let (before, after) = (Holder { tag: 1, generation: 4 }, Holder { tag: 1, generation: 5 });
    let prompt = names(&[1, 2, 3]);
    index.record(prompt.iter().copied(), before, 1);
    assert_eq!(index.record(prompt.iter().copied(), after, 1), 0);
    let mut candidates = Candidates::default();
    index.longest(&prompt, &mut candidates);
    assert_eq!(candidates.as_slice(), [(after, 3)], "the new life takes the place of the old one");
}

#[test]
fn the_latest_holders_stay() {
    let index = Index::new(1 << 16);
    let prompt = names(&[1]);
    for tag in 1..=HOLDERS as u32 {
        index.record(prompt.iter().copied(), holder(tag), tag);
    }
    index.record(prompt.iter().copied(), holder(1), 90);
    index.record(prompt.iter().copied(), holder(50), 91);
    let (_, of) = found(&index, &prompt);
    assert_eq!(of.into_keys().collect::<Vec<_>>(), [1, 3, 4, 50], "2 was used longest ago");
}

#[test]
fn the_name_used_longest_ago_leaves() {
    // One bucket.
    let index = Index::new(0);
    for (tick, block) in (0..WAYS as u8).enumerate() {
        index.record(names(&[block]), holder(1), tick as u32);
    }
    index.record(names(&[0]), holder(1), 100);
    assert_eq!(index.stats().evictions, 0);
    index.record(names(&[200]), holder(1), 101);
    assert_eq!(index.stats().evictions, 1);
    assert_eq!(index.stats().entries, WAYS);
    for block in 0..WAYS as u8 {
        assert_eq!(found(&index, &names(&[block])).0, usize::from(block != 1), "{block}");
    }
}

/// Names that nothing relates.
fn spread(count: usize) -> impl Iterator<Item = u64> {
    (0..count as u64).map(|n| mix(n).max(2))
}

#[test]
fn a_large_budget_is_taken_into_use_when_a_part_of_it_is_full() {
    let index = Index::new(GROWING_BYTES_MIN);
    let bytes = |index: &Index| index.tables().map(Table::bytes).sum::<usize>();
    let (first_full, count) = (FIRST_NAMES * FIRST_BYTES / BUCKET_BYTES, 250_000);
    for (n, name) in spread(count).enumerate() {
        index.record([name], holder(1), n as u32 / 100);
        assert_eq!(bytes(&index) <= FIRST_BYTES, index.stats().entries <= first_full, "{:?}", index.stats());
    }
    assert!(bytes(&index) <= GROWING_BYTES_MIN && index.stats().bytes_max <= GROWING_BYTES_MIN);
    let stats = index.stats();
    assert_eq!(stats.entries + stats.evictions as usize, count);
    assert!(stats.evictions * 20 < count as u64, "buckets overflow before all are full: {stats:?}");
    let known = spread(count).filter(|name| index.latest(*name, 2_500).is_some()).count();
    assert_eq!(known, stats.entries, "of either table");
    // What is known already is found where it is, and nothing is there twice.
    let again = spread(count).map(|name| index.record([name], holder(1), 2_500)).sum::<usize>();
    // A name that had to leave comes back at the cost of another one.
    assert!(again >= known - 4 * stats.evictions as usize, "{again} of {known}");
    let mut listed: Vec<_> = index.hottest(count, 2_500).iter().map(|hot| hot.name).collect();
    listed.sort_unstable();
    listed.dedup();
    assert_eq!(listed.len(), index.stats().entries);
    index.clear();
    assert_eq!((index.stats().entries, index.hottest(count, 2_500).len()), (0, 0));
}

#[test]
fn in_a_full_index_the_name_of_either_table_leaves_that_was_used_longest_ago() {
    let index = Index::new(GROWING_BYTES_MIN);
    let slots = GROWING_BYTES_MIN / SLOT_BYTES;
    for (n, name) in spread(3 * slots).enumerate() {
        index.record([name], holder(1), n as u32 / 1000);
    }
    let now = 3 * slots as u32 / 1000;
    let first = index.first.table.get().unwrap();
    let mut ages = Vec::new();
    first.each(&mut |_, word| ages.push(word.age(now)));
    let early = ages.iter().filter(|age| **age > u64::from(now) * 2 / 3).count();
    assert!(ages.len() > FIRST_BYTES / SLOT_BYTES * 9 / 10, "no slot is lost to use: {}", ages.len());
    assert!(early * 100 < ages.len(), "{early} of {} are as old as the table", ages.len());
}

#[test]
fn time_wraps_around() {
    let index = Index::new(0);
    let end = table::TICK_MASK as Tick;
    for (block, tick) in (0..WAYS as u8).zip(end - 3..) {
        index.record(names(&[block]), holder(1), tick);
    }
    index.record(names(&[100]), holder(1), end + 10);
    assert_eq!(found(&index, &names(&[0])).0, 0, "the first one, before the wrap, was the oldest");
    assert_eq!(found(&index, &names(&[7])).0, 1);
}

#[test]
fn the_hottest_come_first_and_no_more_than_asked() {
    let index = Index::new(1 << 16);
    for block in 0..50_u8 {
        index.record(names(&[block]), holder(1 + u32::from(block)), u32::from(block) * 8);
    }
    for (count, expected) in [(0, 0), (1, 1), (10, 10), (500, 50)] {
        let hot = index.hottest(count, 400);
        assert_eq!(hot.len(), expected);
        let tags: Vec<_> = hot.iter().map(|hot| hot.holder.tag).collect();
        assert_eq!(tags, (51 - expected as u32..=50).rev().collect::<Vec<_>>());
    }
    let one_tick = Index::new(1 << 16);
    one_tick.record((2..500).map(mix), holder(1), 5);
    assert_eq!(one_tick.hottest(100, 6).len(), 100, "more than asked for in one tick");
}

#[test]
fn a_cleared_table_is_empty() {
    let index = Index::new(1 << 16);
    index.record(names(&[1, 2, 3]), holder(1), 1);
    index.clear();
    assert_eq!(index.stats().entries, 0);
    assert_eq!(found(&index, &names(&[1, 2, 3])).0, 0);
}

#[test]
fn of_many_candidates_the_longest_matches_stay() {
    let mut candidates = Candidates::default();
    for tag in 1..=40 {
        candidates.note(holder(tag), tag);
        candidates.note(holder(tag), 1);
    }
    let mut tags: Vec<_> = candidates.as_slice().iter().map(|(holder, _)| holder.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (25..=40).collect::<Vec<_>>());
}

/// Threads that record and look up at once: a match never names a worker that did not record the name.
#[test]
fn several_cores_never_credit_a_stranger() {
    let index = Index::new(4 * 320);
    std::thread::scope(|scope| {
        for tag in 1..=4_u32 {
            let index = &index;
            scope.spawn(move || {
                for round in 0..20_000_u64 {
                    // Each name belongs to one worker: its remainder says to which.
                    let name = (mix(round) | 0xff) - 0xff + 4 * (mix(round * 31) & 15) + 4 + u64::from(tag - 1);
                    index.record([name], holder(tag), round as u32);
                    let other = (mix(round) | 0xff) - 0xff + 4 * (mix(round * 31) & 15) + 4 + round % 4;
                    let mut candidates = Candidates::default();
                    index.note(other, 1, &mut candidates);
                    for (found, _) in candidates.as_slice() {
                        assert_eq!(u64::from(found.tag - 1), other % 4);
                    }
                }
            });
        }
    });
    assert!(index.stats().entries <= 4 * WAYS);
}

proptest! {
    /// Without pressure the table is a map from names to the workers that recorded them.
    #[test]
    fn as_a_map(history in proptest::collection::vec((proptest::collection::vec(0u8..3, 1..6), 1u32..4), 1..40)) {
        let index = Index::new(1 << 20);
        let mut model: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for (tick, (blocks, tag)) in history.iter().enumerate() {
            let prompt = names(blocks);
            let had = prompt.iter().take_while(|name| model.get(name).is_some_and(|of| of.contains(tag))).count();
            prop_assert_eq!(index.record(prompt.iter().copied(), holder(*tag), tick as u32), had);
            for name in prompt {
                model.entry(name).or_default().insert(*tag);
            }
        }
        for (blocks, _) in &history {
            let mut longer = names(blocks);
            longer.extend([5, 6, 7]);
            let (longest, of) = found(&index, &longer);
            prop_assert_eq!(longest, blocks.len());
            let expected = &model[&longer[longest - 1]];
            for tag in expected {
                prop_assert_eq!(of.get(tag).copied(), Some(longest as u32));
            }
            for (tag, depth) in of {
                prop_assert!(model[&longer[depth as usize - 1]].contains(&tag));
            }
        }
        prop_assert_eq!(index.stats().entries, model.len());
    }

    #[test]
    fn the_budget_holds(bytes in 0usize..4096, prompts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 1..60)) {
        let index = Index::new(bytes);
        let mut recorded = 0;
        for (tick, blocks) in prompts.iter().enumerate() {
            recorded += blocks.len();
            index.record(names(blocks), holder(1), tick as u32);
            let stats = index.stats();
            prop_assert!(stats.bytes <= stats.bytes_max && stats.bytes_max <= bytes.max(320));
            prop_assert!(stats.entries as u64 + stats.evictions <= recorded as u64);
        }
    }
}
