//! The part of a cluster-wide limit that this gateway holds on a lease.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Instant,
};

use super::{Hot, INTERVAL_NS_MAX, Limiter, Quota, Slot, TIME_BITS, TIME_MASK, TOLERANCE_NS_MAX, Terms, pack};
use crate::mesh::quota::{
    Bucket, Holding, Usage,
    share::{Share, TOKEN},
};

/// Nanoseconds in a second, times the micro-tokens in a token.
const SECOND: u64 = 1_000_000_000 * TOKEN;

/// Between two tokens of a share that admits nothing.
const CLOSED_INTERVAL_NS: u64 = 1_000_000_000;

/// The least rate that the arithmetic can keep, in micro-tokens per second; a smaller share admits nothing.
const RATE_MIN: u64 = SECOND.div_ceil(INTERVAL_NS_MAX);

impl Slot {
    fn set_share(&self, whole: Option<Quota>, share: Share, until_ns: u64) {
        let (interval, tolerance) = match share.rate {
            RATE_MIN.. => {
                let interval = SECOND.div_ceil(share.rate);
                let tolerance = u128::from(share.burst) * u128::from(interval) / u128::from(TOKEN);
                (interval, u64::try_from(tolerance).unwrap_or(u64::MAX).min(TOLERANCE_NS_MAX))
            }
            _ => (CLOSED_INTERVAL_NS, 0),
        };
        self.limit.store(whole.map_or(0, |quota| quota.per_second as u64), Ordering::Relaxed);
        self.interval_ns.store(interval, Ordering::Relaxed);
        self.tolerance_ns.store(tolerance, Ordering::Relaxed);
        self.until_ns.store(until_ns, Ordering::Relaxed);
    }
}

impl Limiter {
    /// Has the limit spent from shares alone from now on: nothing is admitted before [`hold`](Self::hold) says so. Where that
    /// is so already, what is held stays, also when the whole limit is another one: the shares follow it.
    pub fn share_out(&self, whole: Quota, now: Instant) {
        let mut terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shared = terms.share.is_some();
        terms.quota = Some(whole);
        if !is_shared {
            terms.share = Some(Share::NONE);
            let now = self.nanos(now);
            self.replace(&terms, now, now, 0);
        } else {
            let slot = self.slot();
            slot.limit.store(whole.per_second as u64, Ordering::Relaxed);
        }
    }

    /// Puts a share in force; see [`Buckets::hold`](crate::mesh::quota::Buckets::hold). Without effect where the limit is not
    /// shared out.
    pub fn hold(&self, now: Instant, holding: &Holding) -> u64 {
        let mut terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = terms.share else { return 0 };
        let (now, until) = (self.nanos(now), self.nanos(holding.until));
        let slot = self.slot();
        if known == holding.share && holding.credit == 0 && now < slot.until() {
            // The same bucket for longer: who reads the old end meanwhile refuses at worst.
            slot.until_ns.store(until, Ordering::Relaxed);
            return 0;
        }
        terms.share = Some(holding.share);
        self.replace(&terms, now, until, holding.credit)
    }

    /// Puts the terms in force with the tokens that are there and the credit; the tokens that find no room.
    fn replace(&self, terms: &Terms, now: u64, until_ns: u64, credit: u64) -> u64 {
        let word = &self.hot.word;
        let mut seen = word.load(Ordering::Acquire);
        // Only under the lock, which is held, does the generation change.
        let generation = seen >> TIME_BITS;
        let next = (generation + 1) & (u64::MAX >> TIME_BITS);
        let slots = &self.hot.slots;
        let (old, old_tolerance) = slots[generation as usize & 1].get();
        let is_leased = now < slots[generation as usize & 1].until() && old > 0;
        let share = terms.share.unwrap_or_default();
        let slot = &slots[next as usize & 1];
        slot.set_share(terms.quota, share, until_ns);
        let (interval, tolerance) = slot.get();
        let room = if tolerance > 0 { share.burst } else { 0 };
        loop {
            let ahead = (seen & TIME_MASK).saturating_sub(now);
            let there = if is_leased { micro_tokens(old_tolerance.saturating_sub(ahead), old) } else { 0 };
            let kept = there.saturating_add(credit).min(room);
            let missing = u128::from(room - kept) * u128::from(interval);
            let ahead = u64::try_from(missing.div_ceil(u128::from(TOKEN))).unwrap_or(u64::MAX).min(TOLERANCE_NS_MAX);
            match word.compare_exchange_weak(seen, pack(next, now + ahead), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return there.saturating_add(credit) - kept,
                Err(newer) => seen = newer,
            }
        }
    }

    /// The slot in force; it stays so while the terms are locked.
    fn slot(&self) -> &Slot {
        &self.hot.slots[(self.hot.word.load(Ordering::Acquire) >> TIME_BITS) as usize & 1]
    }
}

impl Bucket for Limiter {
    fn hold(&self, now: Instant, holding: &Holding) -> u64 {
        Self::hold(self, now, holding)
    }

    fn usage(&self) -> Usage {
        let Hot { admitted, refused, .. } = &self.hot;
        Usage { admitted: admitted.load(Ordering::Relaxed), refused: refused.load(Ordering::Relaxed) }
    }

    fn tokens(&self, now: Instant) -> u64 {
        let _terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, now) = (self.hot.word.load(Ordering::Acquire), self.nanos(now));
        let slot = &self.hot.slots[(seen >> TIME_BITS) as usize & 1];
        let (interval, tolerance) = slot.get();
        let ahead = (seen & TIME_MASK).saturating_sub(now);
        if now < slot.until() { micro_tokens(tolerance.saturating_sub(ahead), interval) } else { 0 }
    }
}

/// So many micro-tokens come in that time, rounded down.
fn micro_tokens(time_ns: u64, interval_ns: u64) -> u64 {
    let tokens = (u128::from(time_ns) * u128::from(TOKEN)).checked_div(u128::from(interval_ns));
    tokens.map_or(0, |tokens| u64::try_from(tokens).unwrap_or(u64::MAX))
}
