//! How many requests per second this gateway admits: a token bucket for all cores in one atomic word.
//!
//! The generic cell rate algorithm (ITU-T I.371 annex A.1, virtual scheduling): with a token every `interval` and room
//! for `burst` of them, the word holds the *theoretical arrival time*, the instant at which the bucket will be full
//! again. A request that comes at `now` moves it from max(it, now) one interval on, unless it would then lie more than
//! `burst` intervals ahead: then the request is refused and nothing is written. So over any time τ no more than
//! rate·τ + burst are admitted, on however many cores, and no timer fills anything up.
//!
//! # Changing the quota
//!
//! What was spent stays spent: the time that the word is ahead is stretched from the old interval to the new one in the
//! same step in which the new quota takes hold. Two slots hold the old and the new quota, and five bits of the word, a
//! generation, say which of them it was computed with. A request that read one generation and meets another begins anew,
//! so no token is taken at a rate that is not in force. Only a limit that was off begins with a full bucket.
//!
//! # Shares
//!
//! A limit of the whole cluster is spent from a *share* that this gateway holds on a lease ([`Limiter::hold`]). The instant
//! at which the lease ends is part of the quota: a request that comes later is refused on the request path itself, however
//! late the task that renews leases is. Tokens that are there stay when the share changes; what finds no room in a smaller one
//! is given up, and nothing comes into a larger one but what the leader sends along.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering, fence},
    },
    time::{Duration, Instant},
};

use crate::{config::RateLimit, mesh::quota::share::Share};

/// Bits of the word that hold the time, in nanoseconds from the limiter's start. It counts 9 years, and has room for
/// [`TOLERANCE_NS_MAX`] ahead of that.
const TIME_BITS: u32 = 59;

const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// Longest time between two tokens, 18 min: a rate below is taken for this one.
const INTERVAL_NS_MAX: u64 = 1 << 40;

/// Longest time that a full bucket stands for, 4.5 years: what a larger burst is cut to.
const TOLERANCE_NS_MAX: u64 = 1 << 57;

/// Whoever is refused for want of a lease may come again after this long: a leader lends, or is elected, about as soon.
const UNLEASED_RETRY: Duration = Duration::from_secs(1);

/// How much may be admitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quota {
    /// Tokens per second, above 0 and at most 10⁹; one below 0.001 counts as about that.
    pub per_second: f64,
    /// Most tokens at once, not negative; below 1 nothing is admitted.
    pub burst: f64,
}

/// A request was refused. Nothing was taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// Tokens per second, rounded down.
    pub limit: u64,
    /// After this long there is a token again.
    pub retry_after: Duration,
    /// After this long the bucket is full again.
    pub reset: Duration,
    /// For want of a lease, not of a token: the last one ended, or the first was asked for, this long ago.
    pub unleased_for: Option<Duration>,
}

/// What is left where a request was admitted. Of a limit that is shared out the tokens are those of the share: other gateways
/// have more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Left {
    /// Tokens per second of the whole limit, rounded down.
    pub limit: u64,
    /// Whole tokens that are there now.
    pub remaining: u64,
    /// After this long the bucket is full again.
    pub reset: Duration,
}

impl Left {
    /// What binds a client sooner: fewer tokens, and of as many the one that needs longer to be full.
    #[must_use]
    pub fn or_tighter(self, other: Self) -> Self {
        let key = |left: &Self| (left.remaining, std::cmp::Reverse(left.reset));
        if key(&other) < key(&self) { other } else { self }
    }
}

/// A token that was taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Of the quota that was in force.
    generation: u64,
    /// When, on the limiter's clock.
    at_ns: u64,
}

/// What a limiter says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    /// The quota in force; none admits everything.
    pub quota: Option<Quota>,
    /// Whole tokens that are there now; none without a quota.
    pub remaining: Option<u64>,
    /// Requests admitted under a quota since the start.
    pub admitted: u64,
    /// Requests refused since the start.
    pub refused: u64,
}

/// The bucket.
#[derive(Debug)]
pub struct Limiter {
    epoch: Instant,
    hot: Hot,
    /// What is in force. Held while it is changed.
    terms: Mutex<Terms>,
}

/// What was last put in force.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Terms {
    /// The whole limit.
    quota: Option<Quota>,
    /// What is held of it, where it is shared.
    share: Option<Share>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Hot {
    /// Generation and theoretical arrival time.
    word: AtomicU64,
    slots: [Slot; 2],
    admitted: AtomicU64,
    refused: AtomicU64,
}

/// A quota as the request path uses it.
#[derive(Debug, Default)]
struct Slot {
    /// Nanoseconds from one token to the next; 0 admits everything.
    interval_ns: AtomicU64,
    /// How far ahead the word may be.
    tolerance_ns: AtomicU64,
    /// From here on nothing is admitted.
    until_ns: AtomicU64,
    /// Whole tokens per second, for those who are refused.
    limit: AtomicU64,
}

impl Slot {
    fn set(&self, quota: Option<Quota>) {
        let interval = quota.map_or(0, |quota| interval_ns(quota.per_second));
        // The conversion saturates, and a burst that is no number becomes none.
        let tolerance = (quota.map_or(0.0, |quota| quota.burst) * interval as f64) as u64;
        self.limit.store(quota.map_or(0, |quota| quota.per_second as u64), Ordering::Relaxed);
        self.interval_ns.store(interval, Ordering::Relaxed);
        self.tolerance_ns.store(tolerance.min(TOLERANCE_NS_MAX), Ordering::Relaxed);
        self.until_ns.store(u64::MAX, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.interval_ns.load(Ordering::Relaxed), self.tolerance_ns.load(Ordering::Relaxed))
    }

    fn until(&self) -> u64 {
        self.until_ns.load(Ordering::Relaxed)
    }
}

/// Rounded up: rather a token too late than one too many.
fn interval_ns(per_second: f64) -> u64 {
    ((1e9 / per_second).ceil() as u64).clamp(1, INTERVAL_NS_MAX)
}

/// The word that holds both.
fn pack(generation: u64, arrival_ns: u64) -> u64 {
    generation << TIME_BITS | arrival_ns.min(TIME_MASK)
}

impl From<RateLimit> for Quota {
    fn from(limit: RateLimit) -> Self {
        Self { per_second: limit.per_second.into(), burst: limit.burst.into() }
    }
}

impl Default for Limiter {
    /// Admits everything.
    fn default() -> Self {
        Self::of(None)
    }
}

impl Limiter {
    /// A limiter as configured, from now on.
    #[must_use]
    pub fn of(limit: Option<RateLimit>) -> Self {
        Self::new(limit.map(Quota::from), Instant::now())
    }

    /// A limiter with a full bucket; without a quota it admits everything.
    #[must_use]
    pub fn new(quota: Option<Quota>, now: Instant) -> Self {
        let limiter = Self { epoch: now, hot: Hot::default(), terms: Mutex::default() };
        limiter.set(quota, now);
        limiter
    }

    /// Takes a token, where there is a quota; what is left of it then.
    ///
    /// # Errors
    /// When there is no token; nothing was taken.
    pub fn admit(&self, now: Instant) -> Result<Option<Left>, Refused> {
        let taken = self.take(now).inspect_err(|_| self.count_refused())?;
        if taken.is_some() {
            self.count();
        }
        Ok(taken.map(|(_, left)| left))
    }

    /// Counts a request that took a token here as admitted: every other limit has let it pass too.
    pub fn count(&self) {
        self.hot.admitted.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a token, where there is a quota; what was taken, and what is left. It counts as admitted with
    /// [`count`](Self::count) only, and as refused with [`count_refused`](Self::count_refused).
    ///
    /// # Errors
    /// When there is no token; nothing was taken.
    pub fn take(&self, now: Instant) -> Result<Option<(Taken, Left)>, Refused> {
        self.decide(now, true)
    }

    /// Whether there is no token for a request; none is taken.
    #[must_use]
    pub fn refuses(&self, now: Instant) -> Option<Refused> {
        self.decide(now, false).err()
    }

    /// Counts a request that found no token here as refused, so that the demand is seen.
    pub fn count_refused(&self) {
        self.hot.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives a token back that was taken for a request which another limit refused.
    ///
    /// What would have come in since then with the token still there comes off: it might have found no room. A token of a
    /// quota that is no longer in force is lost, for that quota's rights may be in other hands.
    pub fn put_back(&self, now: Instant, taken: Taken) {
        let Hot { word, slots, .. } = &self.hot;
        let since = self.nanos(now).saturating_sub(taken.at_ns);
        let mut seen = word.load(Ordering::Acquire);
        while seen >> TIME_BITS == taken.generation {
            let (interval, _) = slots[taken.generation as usize & 1].get();
            let arrival = (seen & TIME_MASK).saturating_sub(interval.saturating_sub(since));
            let back = pack(taken.generation, arrival);
            match word.compare_exchange_weak(seen, back, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(newer) => seen = newer,
            }
        }
    }

    /// Finds a token, and takes it where it `takes`.
    fn decide(&self, now: Instant, takes: bool) -> Result<Option<(Taken, Left)>, Refused> {
        let Hot { word, slots, .. } = &self.hot;
        let now = self.nanos(now);
        let mut seen = word.load(Ordering::Acquire);
        loop {
            let slot = &slots[(seen >> TIME_BITS) as usize & 1];
            let (interval, tolerance) = slot.get();
            let ahead = (seen & TIME_MASK).saturating_sub(now);
            if interval > 0 && ahead + interval <= tolerance && now < slot.until() {
                if !takes {
                    return Ok(None);
                }
                let generation = seen >> TIME_BITS;
                let (taken, spent) = (pack(generation, now + ahead + interval), ahead + interval);
                let limit = slot.limit.load(Ordering::Relaxed);
                match word.compare_exchange_weak(seen, taken, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => {
                        let (remaining, reset) = ((tolerance - spent) / interval, Duration::from_nanos(spent));
                        return Ok(Some((Taken { generation, at_ns: now }, Left { limit, remaining, reset })));
                    }
                    Err(newer) => seen = newer,
                }
                continue;
            }
            let (limit, until) = (slot.limit.load(Ordering::Relaxed), slot.until());
            // Nothing is written, so whether the slot was the word's is still to be seen.
            fence(Ordering::Acquire);
            let newer = word.load(Ordering::Relaxed);
            if newer >> TIME_BITS != seen >> TIME_BITS {
                seen = word.load(Ordering::Acquire);
                continue;
            }
            if interval == 0 {
                return Ok(None);
            }
            if until <= now {
                let unleased_for = Some(Duration::from_nanos(now - until));
                return Err(Refused { limit, retry_after: UNLEASED_RETRY, reset: UNLEASED_RETRY, unleased_for });
            }
            return Err(Refused {
                limit,
                retry_after: Duration::from_nanos((ahead + interval).saturating_sub(tolerance)),
                reset: Duration::from_nanos(ahead),
                unleased_for: None,
            });
        }
    }

    /// Puts another quota in force at once; what was spent under the old one stays spent. The same one changes nothing.
    pub fn set(&self, quota: Option<Quota>, now: Instant) {
        let mut terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        if *terms == (Terms { quota, share: None }) {
            return;
        }
        *terms = Terms { quota, share: None };
        let Hot { word, slots, .. } = &self.hot;
        let now = self.nanos(now);
        let mut seen = word.load(Ordering::Acquire);
        // Only here does the generation change, and the lock is held.
        let generation = seen >> TIME_BITS;
        let next = (generation + 1) & (u64::MAX >> TIME_BITS);
        let (old, _) = slots[generation as usize & 1].get();
        let slot = &slots[next as usize & 1];
        slot.set(quota);
        let (new, _) = slot.get();
        loop {
            let ahead = (seen & TIME_MASK).saturating_sub(now);
            let spent = if old == 0 { 0 } else { (u128::from(ahead) * u128::from(new)).div_ceil(u128::from(old)) };
            let arrival = now + u64::try_from(spent).unwrap_or(u64::MAX).min(TOLERANCE_NS_MAX);
            match word.compare_exchange_weak(seen, pack(next, arrival), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(newer) => seen = newer,
            }
        }
    }

    /// What there is, and what became of the requests so far.
    #[must_use]
    pub fn stats(&self, now: Instant) -> Stats {
        let terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        let Hot { word, slots, admitted, refused } = &self.hot;
        let seen = word.load(Ordering::Acquire);
        let slot = &slots[(seen >> TIME_BITS) as usize & 1];
        let (interval, tolerance) = slot.get();
        let now = self.nanos(now);
        let ahead = (seen & TIME_MASK).saturating_sub(now);
        let there = if now < slot.until() { tolerance.saturating_sub(ahead) } else { 0 };
        Stats {
            quota: terms.quota,
            remaining: there.checked_div(interval),
            admitted: admitted.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX).min(TIME_MASK - 2 * TOLERANCE_NS_MAX)
    }
}

mod share;
#[cfg(test)]
mod tests;
