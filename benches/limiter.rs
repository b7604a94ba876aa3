//! What a decision of the rate limiter costs. Run with `cargo bench --bench limiter`.
//!
//! Figures hold for the machine that printed them. The goal is 1 µs on the request path, with every core at it.

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use smg::{
    gateway::limiter::{Limiter, Quota},
    mesh::quota::{
        Holding,
        share::{AMOUNT_MAX, Share},
    },
};

/// Decisions of each thread.
const DECISIONS: u32 = 5_000_000;

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for (case, quota) in [
        ("no limit", None),
        ("admitted", Some(Quota { per_second: 1e9, burst: 1e7 })),
        ("from a share", None),
        ("refused", Some(Quota { per_second: 1.0, burst: 1.0 })),
    ] {
        for threads in [1, cores, 4 * cores] {
            let limiter = Limiter::new(quota, Instant::now());
            if case == "from a share" {
                let now = Instant::now();
                let holding = Holding {
                    share: Share { rate: AMOUNT_MAX, burst: AMOUNT_MAX },
                    until: now + Duration::from_secs(3600),
                    credit: AMOUNT_MAX,
                };
                limiter.share_out(Quota { per_second: 1e7, burst: 1e7 }, now);
                limiter.hold(now, &holding);
            }
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| (0..DECISIONS).filter(|_| limiter.admit(Instant::now()).is_ok()).count());
                }
            });
            let per_decision = start.elapsed().as_nanos() as f64 / f64::from(DECISIONS);
            println!(
                "{case}, {threads} threads on {cores} cores: {:.0} ns",
                per_decision * cores.min(threads) as f64 / threads as f64
            );
        }
    }
}
