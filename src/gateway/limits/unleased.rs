//! Requests that come while no share of a limit per second is in force, and wait for one.
//!
//! A lease lasts less than half a second, and no new leader lends before it has been elected and all that an earlier one lent has
//! run out ([`quota`](crate::mesh::quota)). A client has no part in that: a limit that is far from used up refuses
//! nobody for it. So who finds that the lease has ended, or that the first one has not come yet, waits, until [`GAP_MAX`]
//! after it ended; from then on, without a quorum say, such requests are refused at once. The limit holds all the same: a
//! request that waited takes a token like any other. When a lease comes it has few tokens, so those that waited also wait for
//! theirs, within the same time. Where any limit refuses a request for want of a token alone, it does not begin to wait.
//!
//! Bound: as many requests wait as `--queue-size` says, besides those that wait for `--max-concurrent-requests`, and no longer than
//! `--queue-timeout-secs`; further ones are refused.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use http::HeaderMap;
use tokio::time::sleep_until;

use crate::{
    gateway::{
        limiter::{Left, Refused},
        limits::RateLimits,
    },
    telemetry::metrics::Metrics,
};

/// How long after the end of a lease requests still wait for the next: the 99th percentile of a failover, 3.5 s, and the
/// half second for which a new leader lends nothing.
pub const GAP_MAX: Duration = Duration::from_secs(4);

/// How often who waits looks for a lease.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How many may wait, and for how long at most: `--queue-size`, `--queue-timeout-secs`.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    /// Requests.
    pub size: usize,
    /// Each of them.
    pub timeout: Duration,
}

/// A request that may go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Passed {
    /// As [`RateLimits::admit`].
    pub left: Option<Left>,
    /// Whether it waited: what it knew before may be out of date.
    pub has_waited: bool,
}

/// Those that wait, on all cores.
#[derive(Debug, Default)]
pub struct Unleased {
    waiting: AtomicUsize,
}

/// A place among them, free again when dropped.
#[derive(Debug)]
pub struct Waiting<'a> {
    of: &'a Unleased,
    until: Instant,
}

impl Unleased {
    /// A place for a request that was refused at `now`, where it is to wait and fewer than may do.
    pub fn enter(&self, refused: &Refused, queue: Queue, now: Instant) -> Option<Waiting<'_>> {
        let left = GAP_MAX.checked_sub(refused.unleased_for?).filter(|left| !left.is_zero())?;
        let one_more = |waiting: usize| (waiting < queue.size).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Waiting { of: self, until: now + left.min(queue.timeout) })
    }
}

impl Waiting<'_> {
    /// When to look again after having been refused at `now`: there may be a lease, or will be a token. None: never in time.
    #[must_use]
    pub fn next_look(&self, refused: &Refused, now: Instant) -> Option<Instant> {
        let wait = if refused.unleased_for.is_some() { LOOK_EVERY } else { refused.retry_after };
        Some(now + wait).filter(|next| *next <= self.until)
    }
}

impl RateLimits {
    /// Takes a token of every limit that selects the request. Where all that refuse it want for a share alone it waits for that,
    /// if there is room in the `queue`.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub async fn take(
        &self,
        headers: &HeaderMap,
        model: Option<&str>,
        queue: Queue,
        metrics: &Metrics,
    ) -> Result<Passed, Refused> {
        let refused = match self.try_admit(headers, model, Instant::now) {
            Ok(left) => {
                if left.is_some() {
                    metrics.rate_limit("allowed", "within_rate");
                }
                return Ok(Passed { left, has_waited: false });
            }
            Err(refused) => refused,
        };
        let now = Instant::now();
        let waiting = self.unleased.enter(&refused, queue, now);
        let has_waited = waiting.is_some();
        if let Some(waiting) = waiting {
            let _queued = Queued::new(metrics, now);
            let mut look = waiting.next_look(&refused, now);
            while let Some(next) = look {
                sleep_until(next.into()).await;
                match self.try_admit(headers, model, Instant::now) {
                    Ok(left) => {
                        metrics.rate_limit("allowed", "awaited_share");
                        return Ok(Passed { left, has_waited: true });
                    }
                    Err(refused) => look = waiting.next_look(&refused, Instant::now()),
                }
            }
        }
        // Once more, so that it counts as refused by each limit that has none.
        let admitted = self.admit(headers, model, Instant::now);
        let (decision, result) =
            if admitted.is_ok() { ("allowed", "within_rate") } else { ("rejected", "rate_exceeded") };
        metrics.rate_limit(decision, result);
        admitted.map(|left| Passed { left, has_waited })
    }
}

/// One request more in the queue, as the metrics show it, until dropped.
struct Queued<'a> {
    metrics: &'a Metrics,
    since: Instant,
}

impl<'a> Queued<'a> {
    fn new(metrics: &'a Metrics, since: Instant) -> Self {
        metrics.queue_entered();
        Self { metrics, since }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.metrics.queue_left(self.since.elapsed());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.of.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use futures_util::poll;

    use super::*;
    use crate::{
        config::RateLimit,
        gateway::{limiter::Limiter, limits::put},
        mesh::quota::{
            Holding,
            share::{Share, TOKEN},
        },
    };

    const fn queue(size: usize) -> Queue {
        Queue { size, timeout: Duration::from_secs(60) }
    }

    /// 300 per second in all, in shares.
    fn shared(since: Instant) -> RateLimits {
        let limits = RateLimits::default();
        put(&limits.all, Some(RateLimit { per_second: 300, burst: 300 }), true, since);
        limits
    }

    /// A third of it, for half a second.
    fn lend(limits: &RateLimits, tokens: u64) {
        let now = Instant::now();
        let holding = Holding {
            share: Share::of_tokens(100, 100),
            until: now + Duration::from_millis(500),
            credit: tokens * TOKEN,
        };
        limits.all.hold(now, &holding);
    }

    fn depth(metrics: &Metrics) -> String {
        metrics.encode().lines().find(|line| line.starts_with("smg_queue_depth ")).unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_request_waits_for_the_share_and_then_for_a_token() {
        for tokens in [1, 0] {
            let (limits, metrics, headers) = (shared(Instant::now()), Metrics::new(), HeaderMap::new());
            let mut taking = Box::pin(limits.take(&headers, None, queue(1), &metrics));
            assert!(poll!(&mut taking).is_pending());
            assert_eq!(depth(&metrics), "smg_queue_depth 1");
            assert!(limits.take(&headers, None, queue(1), &metrics).await.is_err(), "there is room for one");
            lend(&limits, tokens);
            let passed = taking.await.unwrap();
            assert!(passed.has_waited && passed.left.is_some_and(|left| left.limit == 300), "{tokens}: {passed:?}");
            assert_eq!(depth(&metrics), "smg_queue_depth 0");
            let stats = limits.all.stats(Instant::now());
            assert_eq!((stats.admitted, stats.refused), (1, 1), "each counts once");
            assert!(metrics.encode().contains("result=\"awaited_share\"} 1"));
        }
    }

    #[tokio::test]
    async fn after_a_long_gap_nobody_waits_and_whoever_leaves_makes_room() {
        let (metrics, headers) = (Metrics::new(), HeaderMap::new());
        let limits = shared(Instant::now());
        let mut taking = Box::pin(limits.take(&headers, None, queue(1), &metrics));
        assert!(poll!(&mut taking).is_pending());
        drop(taking);
        assert_eq!(depth(&metrics), "smg_queue_depth 0");
        assert!(poll!(Box::pin(limits.take(&headers, None, queue(1), &metrics))).is_pending());
        let long_ago = Instant::now().checked_sub(GAP_MAX).unwrap();
        let limits = RateLimits::of(Arc::new(Limiter::new(None, long_ago)));
        put(&limits.all, Some(RateLimit { per_second: 300, burst: 300 }), true, long_ago);
        assert!(poll!(Box::pin(limits.take(&headers, None, queue(1), &metrics))).is_ready());
    }

    const fn refused(retry_after_ms: u64, unleased_for_ms: Option<u64>) -> Refused {
        let unleased_for = match unleased_for_ms {
            Some(ms) => Some(Duration::from_millis(ms)),
            None => None,
        };
        Refused { limit: 10, retry_after: Duration::from_millis(retry_after_ms), reset: Duration::ZERO, unleased_for }
    }

    #[test]
    fn who_wants_for_a_lease_waits_and_nobody_else() {
        let (unleased, now) = (Unleased::default(), Instant::now());
        for (case, refused, is_in) in [
            ("no token", refused(5, None), false),
            ("the lease has just ended", refused(1000, Some(0)), true),
            ("a while ago", refused(1000, Some(3999)), true),
            ("too long ago", refused(1000, Some(4000)), false),
            ("very long ago", refused(1000, Some(3_600_000)), false),
        ] {
            assert_eq!(unleased.enter(&refused, queue(10), now).is_some(), is_in, "{case}");
        }
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let (unleased, now) = (Unleased::default(), Instant::now());
        let lapsed = refused(1000, Some(0));
        let places: Vec<_> = (0..3).map_while(|_| unleased.enter(&lapsed, queue(2), now)).collect();
        assert_eq!(places.len(), 2);
        drop(places);
        assert!(unleased.enter(&lapsed, queue(2), now).is_some(), "they left");
        assert!(unleased.enter(&lapsed, queue(0), now).is_none(), "no queue");
    }

    #[test]
    fn it_ends_when_the_gap_is_too_long() {
        let (unleased, now) = (Unleased::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        let place = unleased.enter(&refused(1000, Some(1000)), queue(1), now).unwrap();
        for (case, refused, asked_ms, looks_ms) in [
            ("for a lease", refused(1000, Some(1000)), 0, Some(20)),
            ("the last time", refused(1000, Some(3980)), 2980, Some(3000)),
            ("over", refused(1000, Some(3990)), 2990, None),
            ("for a token of a new lease", refused(7, None), 1500, Some(1507)),
            ("for one that comes too late", refused(1501, None), 1500, None),
        ] {
            assert_eq!(place.next_look(&refused, at(asked_ms)), looks_ms.map(at), "{case}");
        }
        let short = Queue { size: 2, timeout: Duration::from_secs(1) };
        let place = unleased.enter(&refused(1000, Some(1000)), short, now).unwrap();
        assert_eq!(place.next_look(&refused(1000, Some(1990)), at(990)), None, "no longer than --queue-timeout-secs");
    }
}
