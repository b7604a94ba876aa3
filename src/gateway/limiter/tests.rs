//! The bound as a table, as a law over histories, and among threads that race.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::mesh::quota::{Bucket, Holding, share::TOKEN};

fn quota(per_second: f64, burst: f64) -> Option<Quota> {
    Some(Quota { per_second, burst })
}

/// How many of `n` requests at one instant are admitted.
fn admitted(limiter: &Limiter, n: usize, now: Instant) -> usize {
    (0..n).filter(|_| limiter.admit(now).is_ok()).count()
}

#[test]
fn a_bucket_fills_at_its_rate_up_to_its_burst() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let limiter = Limiter::new(quota(10.0, 3.0), start);
    for (case, ms, expected) in [
        ("the burst at first", 0, 3),
        ("nothing more", 0, 0),
        ("not before the first token", 99, 0),
        ("one token", 100, 1),
        ("two", 300, 2),
        ("never more than the burst", 10_000, 3),
        ("a clock that is behind gives nothing", 9_000, 0),
    ] {
        assert_eq!(admitted(&limiter, 10, at(ms)), expected, "{case}");
    }
}

#[test]
fn who_is_refused_learns_when_to_come_again() {
    let start = Instant::now();
    let limiter = Limiter::new(quota(3.0, 2.0), start);
    assert_eq!(limiter.stats(start).remaining, Some(2));
    let third = Duration::from_nanos(333_333_334);
    let left = |remaining, spent| Ok(Some(Left { limit: 3, remaining, reset: spent * third }));
    assert_eq!([limiter.admit(start), limiter.admit(start)], [left(1, 1), left(0, 2)]);
    let refused = Refused { limit: 3, retry_after: third, reset: 2 * third, unleased_for: None };
    assert_eq!(limiter.admit(start), Err(refused));
    let later = start + refused.retry_after;
    assert_eq!(limiter.admit(later), left(0, 2), "who is admitted learns what is left");
    let stats = limiter.stats(later);
    assert_eq!((stats.remaining, stats.admitted, stats.refused), (Some(0), 3, 1));
    assert_eq!(limiter.stats(later + refused.reset).remaining, Some(2));
}

#[test]
fn without_a_quota_everything_passes() {
    let start = Instant::now();
    let limiter = Limiter::new(None, start);
    assert_eq!(limiter.admit(start), Ok(None));
    assert_eq!(limiter.stats(start), Stats { quota: None, remaining: None, admitted: 0, refused: 0 });
    limiter.set(quota(1.0, 1.0), start);
    assert_eq!(admitted(&limiter, 5, start), 1);
    limiter.set(None, start);
    assert_eq!(admitted(&limiter, 5, start), 5);
}

#[test]
fn another_quota_leaves_spent_what_was_spent() {
    let start = Instant::now();
    for (case, spend, to, now, after_tenth) in [
        ("the same", 6, (10.0, 10.0), 4, 1),
        ("ten times the rate", 6, (100.0, 10.0), 4, 10),
        ("a tenth of the rate", 6, (1.0, 10.0), 4, 0),
        ("more room", 6, (10.0, 20.0), 14, 1),
        ("less room than was spent", 6, (10.0, 5.0), 0, 0),
        ("nothing", 6, (10.0, 0.0), 0, 0),
        ("half a token", 0, (10.0, 0.5), 0, 0),
        ("a rate beyond all bounds", 6, (1e300, 10.0), 4, 10),
        ("a rate below all bounds", 6, (1e-300, 10.0), 4, 0),
        ("a burst beyond all bounds", 6, (10.0, 1e300), 94, 1),
    ] {
        let limiter = Limiter::new(quota(10.0, 10.0), start);
        assert_eq!(admitted(&limiter, spend, start), spend, "{case}");
        limiter.set(quota(to.0, to.1), start);
        assert_eq!(admitted(&limiter, if to.1 > 1e9 { now } else { 100 }, start), now, "{case}");
        if to.1 < 1e9 {
            assert_eq!(admitted(&limiter, 100, start + Duration::from_millis(100)), after_tenth, "{case}, later");
        }
    }
    // As often as one likes: the generation has five bits.
    let limiter = Limiter::new(quota(10.0, 10.0), start);
    assert_eq!(admitted(&limiter, 6, start), 6);
    for n in 0..100 {
        limiter.set(quota(10.0, if n % 2 == 0 { 20.0 } else { 10.0 }), start);
    }
    assert_eq!(admitted(&limiter, 100, start), 4);
}

/// Cores that race admit no more than the law allows, and while the quota changes no more than the larger one does.
#[test]
fn the_bound_holds_among_cores() {
    let limiter = Limiter::new(quota(1e6, 100.0), Instant::now());
    let start = Instant::now();
    let (a, b) = (quota(1e6, 100.0), quota(1e5, 1000.0));
    let total: usize = std::thread::scope(|scope| {
        let racing: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| (0..100_000).filter(|_| limiter.admit(Instant::now()).is_ok()).count()))
            .collect();
        for n in 0..1000 {
            limiter.set(if n % 2 == 0 { b } else { a }, Instant::now());
        }
        racing.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let allowed = 1e6 * start.elapsed().as_secs_f64() + 1000.0;
    assert!(total as f64 <= allowed, "{total} of {allowed}");
    let stats = limiter.stats(Instant::now());
    assert_eq!((stats.admitted, stats.admitted + stats.refused), (total as u64, 300_000));
}

/// What happens to a limiter: time passes, requests come, the quota is changed.
#[derive(Clone, Debug)]
enum Act {
    Wait(u64),
    Ask(usize),
    Set(u32, u32),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0_u64..400_000_000).prop_map(Act::Wait),
        4 => (1_usize..30).prop_map(Act::Ask),
        1 => (1_u32..1000, 0_u32..40).prop_map(|(rate, burst)| Act::Set(rate, burst)),
    ];
    prop::collection::vec(act, 1..60)
}

proptest! {
    /// Over every window: admitted ≤ ∫ rate + the largest burst.
    #[test]
    fn no_window_has_more_than_rate_and_burst(rate in 1_u32..1000, burst in 1_u32..40, acts in acts()) {
        let start = Instant::now();
        let limiter = Limiter::new(quota(rate.into(), burst.into()), start);
        let (mut rate, mut burst_max) = (f64::from(rate), f64::from(burst));
        let (mut now, mut filled) = (start, 0.0);
        // What the rate has brought by then, and how many were admitted before and after.
        let mut log = vec![(0.0, 0_usize, 0_usize)];
        let mut total = 0;
        for act in acts {
            match act {
                Act::Wait(ns) => {
                    now += Duration::from_nanos(ns);
                    filled += rate * ns as f64 / 1e9;
                }
                Act::Set(to, burst) => {
                    limiter.set(quota(to.into(), burst.into()), now);
                    (rate, burst_max) = (to.into(), burst_max.max(burst.into()));
                }
                Act::Ask(n) => {
                    let before = total;
                    total += admitted(&limiter, n, now);
                    log.push((filled, before, total));
                }
            }
        }
        for (i, (from, before, _)) in log.iter().enumerate() {
            for (to, _, after) in &log[i..] {
                let (came, allowed) = ((after - before) as f64, to - from + burst_max);
                prop_assert!(came <= allowed + 1e-6, "{came} of {allowed}");
            }
        }
    }

    /// Who asks all the time gets what the rate allows, but for the rounding of one token's time.
    #[test]
    fn nothing_is_withheld(rate in 1_u32..100_000, burst in 1_u32..40) {
        let start = Instant::now();
        let limiter = Limiter::new(quota(rate.into(), burst.into()), start);
        let (mut now, mut total) = (start, 0);
        while total < 500 {
            match limiter.admit(now) {
                Ok(_) => total += 1,
                Err(refused) => now += refused.retry_after,
            }
        }
        let allowed = f64::from(rate) * (now - start).as_secs_f64() + f64::from(burst);
        prop_assert!(500.0 >= 0.999 * allowed - 1.0, "{allowed}");
    }
}

fn holding(tokens: (u64, u64), until: Instant, credit: u64) -> Holding {
    Holding { share: Share::of_tokens(tokens.0, tokens.1), until, credit: credit * TOKEN }
}

#[test]
fn a_share_begins_empty_and_ends_with_its_lease() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let limiter = Limiter::new(None, start);
    assert_eq!(limiter.hold(start, &holding((10, 5), at(500), 0)), 0, "nothing is shared out");
    assert_eq!(limiter.admit(start), Ok(None));
    limiter.share_out(Quota { per_second: 30.0, burst: 9.0 }, start);
    let refused = limiter.admit(start).unwrap_err();
    assert_eq!((refused.limit, refused.retry_after), (30, UNLEASED_RETRY), "nothing is held yet");
    limiter.hold(start, &holding((10, 5), at(400), 0));
    for (case, ms, expected) in [
        ("nothing at first", 0, 0),
        ("a token", 100, 1),
        ("two", 300, 2),
        ("the end of the lease", 400, 0),
        ("after it", 900, 0),
    ] {
        assert_eq!(admitted(&limiter, 10, at(ms)), expected, "{case}");
    }
    assert_eq!(limiter.stats(at(900)).remaining, Some(0));
    limiter.hold(at(1000), &holding((10, 5), at(1400), 0));
    assert_eq!(admitted(&limiter, 10, at(1000)), 0, "what was there before the gap is gone");
    assert_eq!(admitted(&limiter, 10, at(1200)), 2);
    limiter.hold(at(1300), &holding((10, 5), at(1800), 0));
    assert_eq!(admitted(&limiter, 10, at(1700)), 5, "a lease in time keeps them");
}

#[test]
fn tokens_stay_as_far_as_there_is_room() {
    let start = Instant::now();
    let until = start + Duration::from_secs(10);
    for (case, to, credit, given, there) in [
        ("the same", (10, 6), 0, 0, 6),
        ("more room, without tokens", (10, 9), 0, 0, 6),
        ("more room, with some", (10, 9), 2, 0, 8),
        ("more tokens than room", (10, 7), 3, 2, 7),
        ("less room", (10, 2), 0, 4, 2),
        ("another rate", (1000, 6), 0, 0, 6),
        ("nothing", (0, 0), 0, 6, 0),
    ] {
        let limiter = Limiter::new(None, start);
        limiter.share_out(Quota { per_second: 30.0, burst: 9.0 }, start);
        limiter.hold(start, &holding((10, 6), until, 6));
        assert_eq!(limiter.stats(start).remaining, Some(6), "{case}");
        let found = limiter.hold(start, &holding(to, until, credit));
        let left = Bucket::tokens(&limiter, start);
        assert!(left.abs_diff(there as u64 * TOKEN) <= 2, "{case}: {left} are there");
        assert_eq!(Bucket::tokens(&limiter, until), 0, "{case}: the lease is over");
        assert!(found.abs_diff(given * TOKEN) <= 2, "{case}: {found}");
        // A billionth of a token may be lost on the way.
        let later = start + Duration::from_micros(10);
        assert_eq!(admitted(&limiter, 20, later), there, "{case}");
    }
}

#[test]
fn a_token_comes_back_into_the_share_that_it_is_of_alone() {
    let start = Instant::now();
    let until = |secs| start + Duration::from_secs(secs);
    for (case, to, back) in [
        ("the same for longer", (10, 6), 1),
        ("a smaller one", (10, 2), 0),
        ("a larger one", (10, 9), 0),
        ("a slower one", (5, 6), 0),
        ("nothing", (0, 0), 0),
    ] {
        let limiter = Limiter::new(None, start);
        limiter.share_out(Quota { per_second: 30.0, burst: 9.0 }, start);
        limiter.hold(start, &holding((10, 6), until(10), 6));
        let (taken, _) = limiter.take(start).unwrap().unwrap();
        limiter.hold(start, &holding(to, until(20), 0));
        // A billionth of a token may be lost on the way.
        let now = start + Duration::from_micros(10);
        let spent = admitted(&limiter, 20, now);
        assert_eq!(spent, 5.min(to.1 as usize), "{case}");
        limiter.put_back(now, taken);
        assert_eq!(admitted(&limiter, 20, now), back, "{case}");
        assert_eq!(limiter.stats(now).admitted, (spent + back) as u64, "{case}: it was never admitted");
    }
}

#[test]
fn a_limit_of_its_own_and_a_shared_one_take_turns() {
    let start = Instant::now();
    let whole = Quota { per_second: 10.0, burst: 4.0 };
    let limiter = Limiter::new(Some(whole), start);
    limiter.share_out(whole, start);
    assert_eq!(admitted(&limiter, 9, start), 0, "a share begins empty");
    limiter.hold(start, &holding((10, 4), start + Duration::from_secs(1), 4));
    limiter.share_out(Quota { per_second: 20.0, burst: 4.0 }, start);
    assert_eq!(admitted(&limiter, 9, start), 4, "what is held stays");
    limiter.set(None, start);
    assert_eq!(admitted(&limiter, 9, start), 9);
    limiter.set(Some(whole), start);
    assert_eq!(admitted(&limiter, 9, start + Duration::from_secs(5)), 4, "no lease any more");
}

/// Cores that race while shares move to and fro admit no more than what was lent.
#[test]
fn shares_hold_among_cores() {
    let start = Instant::now();
    let limiter = Limiter::new(None, start);
    limiter.share_out(Quota { per_second: 1e6, burst: 1000.0 }, start);
    let forever = start + Duration::from_secs(3600);
    let admitted: usize = std::thread::scope(|scope| {
        let racing: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| (0..100_000).filter(|_| limiter.admit(Instant::now()).is_ok()).count()))
            .collect();
        let mut pool = 0;
        for n in 0..1000 {
            let share = if n % 2 == 0 { (1_000_000, 1000) } else { (100_000, 100) };
            let credit = if n % 2 == 0 { pool } else { 0 };
            let now = Instant::now();
            let holding = Holding { share: Share::of_tokens(share.0, share.1), until: forever, credit };
            pool = limiter.hold(now, &holding).min(900 * TOKEN);
        }
        racing.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let allowed = 1e6 * start.elapsed().as_secs_f64() + 1000.0;
    assert!(admitted as f64 <= allowed, "{admitted} of {allowed}");
}
