//! A short slice of the fuzz targets: every seed as it is, and mutated, the same in each run.
//!
//! `proto/fuzz/run` goes on from there, with coverage.

#[path = "../proto/fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "the module of the fuzzing crate, whose other users name each target")]
mod targets;

use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_pcg::Pcg64Mcg;

/// Mutated inputs of each target: a second or so in a debug build.
const INPUTS: usize = 8000;

/// Numbers at which something may change.
const EDGES: [&[u8]; 5] = [&[0], &[0xff; 8], &[0x80, 0x80, 0x80, 0x80, 0x10], &[0x7f], &[0xff, 0xff, 0xff, 0xff, 0x0f]];

#[test]
fn mutated_messages_find_nothing() {
    for target in targets::TARGETS {
        let seeds = (target.seeds)();
        assert!(seeds.len() >= 3, "{} has seeds", target.name);
        seeds.iter().for_each(|seed| (target.run)(seed));
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        for _ in 0..INPUTS {
            (target.run)(&mutated(&mut rng, &seeds));
        }
    }
}

/// A seed with one to four changes.
fn mutated(rng: &mut Pcg64Mcg, seeds: &[Vec<u8>]) -> Vec<u8> {
    let pick = |rng: &mut Pcg64Mcg| seeds.choose(rng).cloned().unwrap_or_default();
    let mut input = pick(rng);
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=input.len());
        let end = input.len().min(at + rng.random_range(1..=16));
        match rng.random_range(0..5) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => drop(input.splice(at..end, EDGES[rng.random_range(0..EDGES.len())].iter().copied())),
            3 => {
                let other = pick(rng);
                input.truncate(at);
                input.extend(other.get(at..).unwrap_or_default());
            }
            _ => input[at..end].iter_mut().take(1).for_each(|byte| *byte ^= 1 << rng.random_range(0..8)),
        }
    }
    input
}
