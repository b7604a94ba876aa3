//! What other gateways say of a worker: that their circuit breakers keep requests away from it.
//!
//! A hint is no verdict. While it lasts this gateway prefers other workers, sends one request in [`TRY_EVERY`] there all
//! the same to see for itself, and takes the worker as usual when there is no other. One good answer here ends the hint,
//! and so does its deadline, which no gateway can set further away than [`HINT_MAX`]. So a gateway that is cut off from a
//! worker, or lies, costs that worker some requests of the others for a while, and nothing else.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::gateway::policy::mix;

/// Longest time that one hint lasts.
pub const HINT_MAX: Duration = Duration::from_secs(300);

/// One request in so many goes to a worker in spite of a hint.
pub const TRY_EVERY: u64 = 16;

/// The hint about one worker. Read by every core, set by the registry alone.
#[derive(Debug)]
pub struct Hint {
    epoch: Instant,
    /// Milliseconds after the epoch until which it lasts; 0: there is none.
    until_ms: AtomicU64,
    /// What was said last, in unix milliseconds: said again it is no news.
    said_ms: AtomicU64,
}

impl Hint {
    /// None.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { epoch: now, until_ms: AtomicU64::new(0), said_ms: AtomicU64::new(0) }
    }

    /// Takes in until when the others' breakers are open, in unix milliseconds; 0 when none is. What was said before
    /// changes nothing, so that a hint that was ended here stays ended.
    pub fn set(&self, said_ms: u64, now: Instant, wall_ms: u64) {
        if self.said_ms.swap(said_ms, Ordering::Relaxed) != said_ms {
            let rest = Duration::from_millis(said_ms.saturating_sub(wall_ms)).min(HINT_MAX);
            let until_ms = if rest.is_zero() { 0 } else { self.ms(now + rest) };
            self.until_ms.store(until_ms, Ordering::Relaxed);
        }
    }

    /// Whether another worker is to be preferred now.
    #[must_use]
    pub fn is_on(&self, now: Instant) -> bool {
        let until_ms = self.until_ms.load(Ordering::Relaxed);
        until_ms > 0 && self.ms(now) < until_ms
    }

    /// Whether another worker is to be preferred for this request, of which `random` are uniform bits.
    #[must_use]
    pub fn turns_away(&self, random: u64, now: Instant) -> bool {
        self.is_on(now) && !mix(random).is_multiple_of(TRY_EVERY)
    }

    /// A request was answered well from here.
    pub fn on_success(&self) {
        if self.until_ms.load(Ordering::Relaxed) > 0 {
            self.until_ms.store(0, Ordering::Relaxed);
        }
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: u64 = 1_700_000_000_000;

    #[test]
    fn a_hint_ends_by_its_deadline_by_a_word_and_by_success() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let hint = Hint::new(start);
        assert!(!hint.is_on(start), "nothing was said");
        hint.set(WALL + 60_000, start, WALL);
        assert!(hint.is_on(at(59)) && !hint.is_on(at(60)), "its deadline");
        hint.on_success();
        assert!(!hint.is_on(at(1)), "a good answer");
        hint.set(WALL + 60_000, at(2), WALL + 2_000);
        assert!(!hint.is_on(at(3)), "the same said again");
        hint.set(WALL + 90_000, at(30), WALL + 30_000);
        assert!(hint.is_on(at(31)), "news");
        hint.set(0, at(32), WALL + 32_000);
        assert!(!hint.is_on(at(33)), "taken back");
        hint.set(u64::MAX, at(40), WALL + 40_000);
        assert!(hint.is_on(at(339)) && !hint.is_on(at(340)), "nobody keeps a worker away for ever");
        hint.set(1, at(341), WALL + 341_000);
        assert!(!hint.is_on(at(341)), "of the past");
    }

    #[test]
    fn some_requests_try_all_the_same() {
        let now = Instant::now();
        let hint = Hint::new(now);
        assert!((0..100).all(|random| !hint.turns_away(random, now)));
        hint.set(WALL + 60_000, now, WALL);
        let tries = (0..16_000).filter(|random| !hint.turns_away(*random, now)).count();
        // σ = 31.
        assert!((850..=1_150).contains(&tries), "{tries}");
    }
}
