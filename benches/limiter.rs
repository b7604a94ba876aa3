//! What a decision of the rate limiter costs, and a slot of a bound on requests in flight. Run with `cargo bench --bench limiter`.
//!
//! Figures hold for the machine that printed them. The goal is 1 µs on the request path, with every core at it.

#![allow(clippy::print_stdout)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue};
use smg::{
    config::{CONCURRENT_MAX, RATE_MAX, RateLimit},
    gateway::{
        headers,
        limiter::{Limiter, Quota},
        limits::RateLimits,
        selector::{KeyId, Selector},
        slots::Standing,
    },
    mesh::quota::{
        Bucket as _, Holding,
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
    for (case, refusing, tells) in [
        ("three limits, admitted", false, false),
        ("three limits, admitted, and the client told", false, true),
        ("three limits, the last refuses", true, false),
    ] {
        for threads in [1, cores, 4 * cores] {
            three(case, (refusing, tells), threads, cores);
        }
    }
    for bounds in 0..=3 {
        for threads in [1, cores, 4 * cores] {
            in_flight(bounds, threads, cores);
        }
    }
}

/// A slot of every one of so many bounds on requests in flight, of a leased share, taken, looked at and given back.
fn in_flight(bounds: usize, threads: usize, cores: usize) {
    const DECISIONS: u32 = 1_000_000;
    let now = Instant::now();
    let limits = RateLimits::default();
    let key = Selector { key: Some(KeyId::of(b"sk-0123456789abcdef0123456789abcdef")), model: None };
    let model = Selector { key: None, model: Some("meta-llama/Llama-3.1-8B-Instruct".into()) };
    let wanted = [Selector::default(), model, key].into_iter().take(bounds).map(|selector| (selector, CONCURRENT_MAX));
    limits.bounds.set(wanted, true, now);
    let share = Share::of_tokens(CONCURRENT_MAX.into(), CONCURRENT_MAX.into());
    for bound in limits.bounds.in_force().iter() {
        bound.slots.hold(now, &Holding { share, until: now + Duration::from_secs(3600), credit: 0 });
    }
    let header = HeaderValue::from_static("Bearer sk-0123456789abcdef0123456789abcdef");
    let headers: HeaderMap = [(http::header::AUTHORIZATION, header)].into_iter().collect();
    let request = || {
        let held = limits.bounds.admit(&headers, Some("meta-llama/Llama-3.1-8B-Instruct"), Instant::now);
        for (slots, mut taken) in held.unwrap_or_default() {
            assert!(matches!(slots.look(now, &mut taken), Standing::Until(_)));
            slots.give_back(taken);
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| (0..DECISIONS).for_each(|_| request()));
        }
    });
    let per_request = start.elapsed().as_nanos() as f64 / f64::from(DECISIONS);
    println!(
        "in flight, {bounds} bounds, {threads} threads on {cores} cores: {:.0} ns",
        per_request * cores.min(threads) as f64 / threads as f64
    );
}

/// A limit of all, of the request's key and of its model, among 28 others that do not select it.
fn three(case: &str, (refusing, tells): (bool, bool), threads: usize, cores: usize) {
    const DECISIONS: u32 = 1_000_000;
    let now = Instant::now();
    let all = if refusing { Quota { per_second: 1.0, burst: 1.0 } } else { Quota { per_second: 1e9, burst: 1e7 } };
    let limits = RateLimits::of(Arc::new(Limiter::new(Some(all), now)));
    let large = RateLimit { per_second: RATE_MAX, burst: RATE_MAX };
    let others = (0..28).map(|n| Selector { key: None, model: Some(format!("meta-llama/Llama-{n}").into()) });
    let key = Selector { key: Some(KeyId::of(b"sk-0123456789abcdef0123456789abcdef")), model: None };
    let model = Selector { key: None, model: Some("meta-llama/Llama-3.1-8B-Instruct".into()) };
    let scoped: Vec<_> = others.chain([key, model]).map(|selector| (selector, large)).collect();
    limits.set_scoped(&scoped, false, now);
    let header = HeaderValue::from_static("Bearer sk-0123456789abcdef0123456789abcdef");
    let headers: HeaderMap = [(http::header::AUTHORIZATION, header)].into_iter().collect();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut told = HeaderMap::with_capacity(8);
                let mut admit = || {
                    let admitted = limits.admit(&headers, Some("meta-llama/Llama-3.1-8B-Instruct"), Instant::now);
                    if let (true, Ok(Some(left))) = (tells, &admitted) {
                        headers::rate_limit(&mut told, left.limit, left.remaining, left.reset);
                    }
                    admitted
                };
                (0..DECISIONS).filter(|_| admit().is_ok()).count()
            });
        }
    });
    let per_decision = start.elapsed().as_nanos() as f64 / f64::from(DECISIONS);
    println!(
        "{case}, {threads} threads on {cores} cores: {:.0} ns",
        per_decision * cores.min(threads) as f64 / threads as f64
    );
}
