//! Every limit of a gateway: those of all requests, and those of some; per second here, in flight in [`bounds`].
//!
//! [`bounds`]: crate::gateway::bounds
//!
//! A request passes all limits that select it, or counts in none: what it took from some is put back when another
//! refuses. Then the client is told of the one that it has to wait longest for, and it counts as refused in each that had
//! no token: where several bind, the leader sees the demand of each, and moves the shares of all of them at once.
//!
//! Bound: [`SCOPED_MAX`] limits for some requests, so that one message of the mesh speaks of all; those beyond it, in the
//! order of their names, have no effect. The API refuses to add them; where gateways added some at once all the same, it
//! lists them as not in force, and a warning is logged.

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use http::HeaderMap;

use crate::{
    config::RateLimit,
    gateway::{
        bounds::Bounds,
        keys,
        limiter::{Left, Limiter, Quota, Refused, Taken},
        limits::unleased::Unleased,
        rate::Terms,
        selector::{KeyId, Selector},
    },
    mesh::{
        driver::rights::SharedLimit,
        quota::{Kind, message::LIMITS_MAX, share::Share},
    },
};

pub mod unleased;

/// Limits for some requests at most; with the one for all as many as a message of the mesh holds.
pub const SCOPED_MAX: usize = LIMITS_MAX - 1;

/// The limits, shared by all cores.
#[derive(Debug, Default)]
pub struct RateLimits {
    /// Of all requests.
    pub all: Arc<Limiter>,
    /// How many may be in flight.
    pub bounds: Bounds,
    /// Who waits for a share.
    pub unleased: Unleased,
    scoped: ArcSwap<Vec<Scoped>>,
}

/// A limit of some requests.
#[derive(Clone, Debug)]
pub struct Scoped {
    /// Which.
    pub selector: Selector,
    /// How many.
    pub limiter: Arc<Limiter>,
}

impl RateLimits {
    /// One limit, of all requests.
    #[must_use]
    pub fn of(all: Arc<Limiter>) -> Self {
        Self { all, ..Self::default() }
    }

    /// Takes a token of every limit that selects the request, at the time that `clock` shows; what is left of the one of them
    /// that has least, none where no limit selects it.
    ///
    /// # Errors
    /// When one has no token; then none was taken. What is said is of the limit with the longest wait.
    pub fn admit(
        &self,
        headers: &HeaderMap,
        model: Option<&str>,
        clock: impl Fn() -> Instant,
    ) -> Result<Option<Left>, Refused> {
        self.decide(headers, model, clock, true)
    }

    /// The same for one that may wait when it is refused, and so is not counted as refused.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub fn try_admit(
        &self,
        headers: &HeaderMap,
        model: Option<&str>,
        clock: impl Fn() -> Instant,
    ) -> Result<Option<Left>, Refused> {
        self.decide(headers, model, clock, false)
    }

    fn decide(
        &self,
        headers: &HeaderMap,
        model: Option<&str>,
        clock: impl Fn() -> Instant,
        counts_refused: bool,
    ) -> Result<Option<Left>, Refused> {
        let now = clock();
        let scoped = self.scoped.load();
        if scoped.is_empty() && counts_refused {
            return self.all.admit(now);
        }
        let wants_key = scoped.iter().any(|limit| limit.selector.key.is_some());
        let key = wants_key.then(|| keys::limited(headers)).flatten().map(KeyId::of);
        let selected = scoped.iter().filter(|limit| limit.selector.selects(key, model));
        let limiters = selected.map(|limit| &*limit.limiter).chain([&*self.all]);
        let mut taken: [Option<(&Limiter, Taken)>; LIMITS_MAX] = [None; LIMITS_MAX];
        let mut least: Option<Left> = None;
        for (first, (limiter, place)) in limiters.clone().zip(&mut taken).enumerate() {
            match limiter.take(now) {
                Ok(None) => {}
                Ok(Some((token, left))) => {
                    *place = Some((limiter, token));
                    least = Some(least.map_or(left, |least| least.or_tighter(left)));
                }
                Err(refused) => {
                    let back = clock();
                    taken.iter().flatten().for_each(|(limiter, token)| limiter.put_back(back, *token));
                    let others = limiters.enumerate().filter(|(other, _)| *other != first);
                    let others = others.filter_map(|(_, other)| Some((other, other.refuses(now)?)));
                    let all = [(limiter, refused)].into_iter().chain(others);
                    return Err(all
                        .inspect(|(limiter, _)| {
                            if counts_refused {
                                limiter.count_refused();
                            }
                        })
                        .map(|(_, refused)| refused)
                        .reduce(longest)
                        .unwrap_or(refused));
                }
            }
        }
        taken.iter().flatten().for_each(|(limiter, _)| limiter.count());
        Ok(least)
    }

    /// Puts limits in force: those of all requests, and all of those of some, at most [`SCOPED_MAX`]. With `is_shared` they are
    /// spent from shares alone.
    pub fn set(&self, all: Terms, scoped: &[(Selector, Terms)], is_shared: bool, now: Instant) {
        let scoped = &scoped[..SCOPED_MAX.min(scoped.len())];
        let rates = scoped.iter().filter_map(|(selector, terms)| Some((selector.clone(), terms.rate?)));
        put(&self.all, all.rate, is_shared, now);
        self.set_scoped(&rates.collect::<Vec<_>>(), is_shared, now);
        let bounds = scoped.iter().map(|(selector, terms)| (selector.clone(), terms.concurrent));
        let bounds = [(Selector::default(), all.concurrent)].into_iter().chain(bounds);
        self.bounds.set(bounds.filter_map(|(selector, bound)| Some((selector, bound?))), is_shared, now);
    }

    /// Puts the limits per second of some requests in force, all of them, at most [`SCOPED_MAX`]. One that was there keeps its
    /// tokens and figures. With `is_shared` they are spent from shares alone.
    pub fn set_scoped(&self, wanted: &[(Selector, RateLimit)], is_shared: bool, now: Instant) {
        let known = self.scoped.load_full();
        let limit = |(selector, limit): &(Selector, RateLimit)| {
            let known = known.iter().find(|known| known.selector == *selector);
            let limiter = known.map_or_else(Arc::default, |known| known.limiter.clone());
            put(&limiter, Some(*limit), is_shared, now);
            Scoped { selector: selector.clone(), limiter }
        };
        self.scoped.store(Arc::new(wanted.iter().take(SCOPED_MAX).map(limit).collect()));
    }

    /// All limits that are in force, for the mesh to share out; those that are off are none.
    #[must_use]
    pub fn to_share(&self) -> Vec<SharedLimit> {
        let scoped = self.scoped();
        let shared = |selector: &Selector, limiter: &Arc<Limiter>| {
            let quota = limiter.stats(Instant::now()).quota?;
            let whole = Share::of_tokens(quota.per_second as u64, quota.burst as u64);
            Some(SharedLimit { id: selector.limit_id(), kind: Kind::Rates, whole, bucket: limiter.clone() })
        };
        let all = shared(&Selector::default(), &self.all);
        let rates = all.into_iter().chain(scoped.iter().filter_map(|limit| shared(&limit.selector, &limit.limiter)));
        rates.chain(self.bounds.to_share()).collect()
    }

    /// The limits of some requests that are in force.
    #[must_use]
    pub fn scoped(&self) -> Arc<Vec<Scoped>> {
        self.scoped.load_full()
    }
}

/// What a client is told of two limits that refuse it: of the one that it has to wait longer for. It wants for a lease only
/// where both do.
fn longest(one: Refused, other: Refused) -> Refused {
    let longer = if other.retry_after > one.retry_after { other } else { one };
    let unleased_for = one.unleased_for.zip(other.unleased_for).map(|(one, other)| one.max(other));
    Refused { unleased_for, ..longer }
}

/// Puts a limit in force, or none.
pub fn put(limiter: &Limiter, limit: Option<RateLimit>, is_shared: bool, now: Instant) {
    match limit.filter(|_| is_shared) {
        Some(limit) => limiter.share_out(limit.into(), now),
        None => limiter.set(limit.map(Quota::from), now),
    }
}

#[cfg(test)]
mod shift;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    const fn rate(per_second: u32, burst: u32) -> RateLimit {
        RateLimit { per_second, burst }
    }

    fn selector(key: Option<&[u8]>, model: Option<&str>) -> Selector {
        Selector { key: key.map(KeyId::of), model: model.map(Into::into) }
    }

    fn headers(key: &str) -> HeaderMap {
        [(http::header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap())].into_iter().collect()
    }

    /// 10 at once for all, 5 for the key `k`, 3 for the model `m`, 2 for both.
    fn limits(now: Instant) -> RateLimits {
        let limits = RateLimits::of(Arc::new(Limiter::new(Some(rate(1, 10).into()), now)));
        let scoped = [
            (selector(Some(b"k"), None), rate(1, 5)),
            (selector(None, Some("m")), rate(2, 3)),
            (selector(Some(b"k"), Some("m")), rate(4, 2)),
        ];
        limits.set_scoped(&scoped, false, now);
        limits
    }

    fn left(limits: &RateLimits, now: Instant) -> Vec<u64> {
        let scoped = limits.scoped();
        let all = scoped.iter().map(|limit| &limit.limiter).chain([&limits.all]);
        all.map(|limiter| limiter.stats(now).remaining.unwrap()).collect()
    }

    #[test]
    fn a_request_counts_in_all_that_select_it_or_in_none() {
        let now = Instant::now();
        let limits = limits(now);
        for (key, model, is_admitted, expected) in [
            ("k", "m", true, [4, 2, 1, 9]),
            ("k", "m", true, [3, 1, 0, 8]),
            ("k", "m", false, [3, 1, 0, 8]),
            ("k", "other", true, [2, 1, 0, 7]),
            ("j", "m", true, [2, 0, 0, 6]),
            ("j", "m", false, [2, 0, 0, 6]),
            ("j", "other", true, [2, 0, 0, 5]),
        ] {
            assert_eq!(limits.admit(&headers(key), Some(model), || now).is_ok(), is_admitted, "{key} {model}");
            assert_eq!(left(&limits, now), expected, "{key} {model}");
        }
        let admitted: Vec<u64> = limits.scoped().iter().map(|limit| limit.limiter.stats(now).admitted).collect();
        assert_eq!(admitted, [3, 3, 2], "what is put back was never admitted");
        let unnamed =
            |limits: &RateLimits| limits.admit(&HeaderMap::new(), None, || now).map_err(|refused| refused.limit);
        assert_eq!(unnamed(&limits), Err(2), "who names no model may get any: it counts for each");
        limits.set_scoped(&[(selector(Some(b"k"), None), rate(1, 5))], false, now);
        assert_eq!(unnamed(&limits).unwrap().unwrap().limit, 1, "without a key and a model that of all alone");
    }

    #[test]
    fn who_is_admitted_hears_of_what_has_least_left() {
        let now = Instant::now();
        let limits = limits(now);
        for (key, model, limit, remaining) in
            [("k", "m", 4, 1), ("j", "m", 2, 1), ("k", "other", 1, 3), ("j", "other", 1, 6), ("k", "m", 2, 0)]
        {
            let left = limits.admit(&headers(key), Some(model), || now).unwrap().unwrap();
            assert_eq!((left.limit, left.remaining), (limit, remaining), "{key} {model}");
        }
        let off = RateLimits::default();
        assert_eq!(off.admit(&headers("k"), Some("m"), || now), Ok(None), "no limit, nothing to hear");
    }

    #[test]
    fn who_is_refused_hears_of_the_longest_wait() {
        let now = Instant::now();
        let limits = limits(now);
        let admit = |key: &str, model| limits.admit(&headers(key), Some(model), || now);
        for _ in 0..2 {
            admit("k", "m").unwrap();
        }
        // 4 a second for both: the others have tokens.
        assert_eq!(admit("k", "m").unwrap_err().retry_after, Duration::from_millis(250));
        admit("j", "m").unwrap();
        // The model's, at 2 a second, has none either.
        let refused = admit("k", "m").unwrap_err();
        assert_eq!((refused.limit, refused.retry_after), (2, Duration::from_millis(500)));
        while admit("j", "other").is_ok() {}
        assert_eq!(admit("k", "m").unwrap_err().limit, 1, "and the one of all, at 1 a second");
    }

    #[test]
    fn limits_that_stay_keep_their_tokens_and_there_is_a_bound() {
        let now = Instant::now();
        let limits = limits(now);
        limits.admit(&headers("k"), Some("m"), || now).unwrap();
        let kept = [(selector(None, Some("m")), rate(2, 3)), (selector(None, Some("n")), rate(1, 1))];
        limits.set_scoped(&kept, false, now);
        assert_eq!(left(&limits, now), [2, 1, 9]);
        let many: Vec<_> = (0..40).map(|n| (selector(None, Some(&format!("m{n}"))), rate(1, 1))).collect();
        limits.set_scoped(&many, false, now);
        assert_eq!(limits.scoped().len(), SCOPED_MAX);
        limits.admit(&headers("k"), Some("m39"), || now).unwrap();
        limits.admit(&headers("k"), Some("m39"), || now).unwrap();
    }

    /// Cores that take and put back at once never have more than the burst admitted.
    #[test]
    fn what_is_put_back_is_not_there_twice() {
        let now = Instant::now();
        let limits = RateLimits::of(Arc::new(Limiter::new(Some(rate(1, 1000).into()), now)));
        // The second, looked at after the first, refuses nearly everybody.
        let scoped = [(selector(Some(b"k"), None), rate(1, 1000)), (selector(None, Some("m")), rate(1, 100))];
        limits.set_scoped(&scoped, false, now);
        let begin = Instant::now();
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..20_000).filter(|_| limits.admit(&headers("k"), Some("m"), Instant::now).is_ok()).count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let came = begin.elapsed().as_secs() as usize + 1;
        assert!((100..=100 + came).contains(&admitted), "{admitted} of 100 and {came}");
        let left = left(&limits, Instant::now());
        // Time between taking and putting back costs a part of a token: at one a second next to nothing.
        assert!((800..=900 + came as u64).contains(&left[0]) && left[2] <= 900 + came as u64, "{left:?}");
    }
}
