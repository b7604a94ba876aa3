//! CPU of cache-aware routing, step by step. Run with `cargo bench --bench prefix`.
//!
//! Figures hold for the machine that printed them. The index is larger than any processor cache and full, so that its
//! lookups and inserts miss the cache as they do in a gateway that has run for a while.

#![allow(clippy::print_stdout)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use serde_json::json;
use smg::gateway::{
    prefix::{
        self, HashKey, Index, Prompt,
        chain::{BLOCK_BYTES, KEY_BYTES},
        index::{Candidates, Holder},
    },
    scan::scan,
};

fn main() {
    let key = HashKey::new(std::array::from_fn::<u8, KEY_BYTES, _>(|i| (i * 37 + 11) as u8));
    for kib in [2, 16] {
        let body = chat(kib << 10);
        let Ok(found) = scan(body.as_bytes()) else { return };
        let alone = per_call(|| drop(black_box(scan(black_box(body.as_bytes())))));
        let names = per_call(|| drop(black_box(prefix::prompt(&key, black_box(body.as_bytes()), &found))));
        println!("chat request of {kib} KiB: {alone:?} to scan the body, {names:?} more to name its prefixes");
    }
    let index = Index::new(64 << 20);
    let holder = |tag: u64| Holder { tag: 1 + (tag % 16) as u32, generation: 0 };
    let prompts: Vec<Prompt> = (0..100_000).map(|seed| random_prompt(seed, 8 << 10)).collect();
    for (prompt, tag) in prompts.iter().zip(0..) {
        index.record(prompt.blocks.iter().copied(), holder(tag), tag as u32);
    }
    println!("index of 64 MiB after {} prompts of 8 KiB: {:?}", prompts.len(), index.stats());
    let mut next = prompts.iter().rev().cycle();
    let lookup = per_call(|| {
        let mut seen = Candidates::default();
        if let Some(prompt) = next.next() {
            black_box(index.longest(&prompt.blocks, &mut seen));
        }
    });
    let fresh: Vec<Prompt> = (1_000_000..1_050_000).map(|seed| random_prompt(seed, 8 << 10)).collect();
    let (mut tag, start) = (0, Instant::now());
    for prompt in &fresh {
        tag += 1;
        index.record(prompt.blocks.iter().copied(), holder(tag), 200_000 + tag as u32);
    }
    let insert = start.elapsed() / fresh.len() as u32;
    println!("prompt of 8 KiB: {lookup:?} to look it up, {insert:?} to insert it");
}

/// A chat request of about so many bytes.
fn chat(bytes: usize) -> String {
    let text: String = (0..bytes).map(|i| char::from(b'a' + (i * 7 % 26) as u8)).collect();
    json!({"model": "m", "messages": [
        {"role": "system", "content": text[..bytes / 2]}, {"role": "user", "content": text[bytes / 2..]}]})
    .to_string()
}

fn random_prompt(seed: u64, bytes: usize) -> Prompt {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).max(2)
    };
    Prompt { blocks: (0..bytes / BLOCK_BYTES).map(|_| next()).collect(), ..Prompt::default() }
}

/// Mean of many calls, the best of five rounds.
fn per_call(mut call: impl FnMut()) -> Duration {
    const CALLS: u32 = 20_000;
    let round = |_| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        start.elapsed() / CALLS
    };
    (0..5).map(round).min().unwrap_or_default()
}
