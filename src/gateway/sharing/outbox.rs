//! Surprises that wait to be sent, within a budget of bytes.

use std::{collections::VecDeque, time::Instant};

use crate::mesh::routing::{PLACEMENTS_MAX, Placement};

/// Bytes of hints that this gateway sends per second, the copies for each peer counted.
pub const BYTES_PER_SECOND: usize = 256 << 10;

/// Bytes that may be sent at once after a while of silence.
pub const BURST_BYTES: usize = 256 << 10;

/// Surprises that wait at most; the oldest goes when one more comes, for it is the one most likely known by now.
pub const WAITING_MAX: usize = 4096;

/// Bytes of one batch at most, well below the limit of a frame.
const BATCH_BYTES: usize = 32 << 10;

/// The queue and its budget.
#[derive(Debug)]
pub struct Outbox {
    waiting: VecDeque<Placement>,
    /// Bytes that may be sent; below zero after loads were told, which are never held back.
    credit: f64,
    updated: Instant,
}

impl Outbox {
    /// Empty, with its burst to spend.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { waiting: VecDeque::new(), credit: BURST_BYTES as f64, updated: now }
    }

    /// Puts a surprise in; `false` when the oldest had to go.
    pub fn push(&mut self, placement: Placement) -> bool {
        let is_full = self.waiting.len() >= WAITING_MAX;
        if is_full {
            self.waiting.pop_front();
        }
        self.waiting.push_back(placement);
        !is_full
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets what waits: there is nobody to tell.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Takes bytes that were sent otherwise out of the budget.
    pub fn spend(&mut self, bytes: usize) {
        self.credit -= bytes as f64;
    }

    /// What may be sent to so many peers now, the oldest first, in batches of a frame each.
    pub fn take(&mut self, now: Instant, peers: usize) -> Vec<Vec<Placement>> {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now;
        self.credit = (self.credit + elapsed * BYTES_PER_SECOND as f64).min(BURST_BYTES as f64);
        let (mut batches, mut bytes) = (Vec::new(), BATCH_BYTES);
        while self.credit > 0.0
            && let Some(placement) = self.waiting.pop_front()
        {
            let size = placement.bytes();
            self.credit -= (size * peers) as f64;
            bytes += size;
            if bytes > BATCH_BYTES || batches.last().is_none_or(|batch: &Vec<_>| batch.len() >= PLACEMENTS_MAX) {
                batches.push(Vec::new());
                bytes = size;
            }
            if let Some(batch) = batches.last_mut() {
                batch.push(placement);
            }
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn placement(names: usize) -> Placement {
        Placement { model: "m".into(), worker: 1, generation: 0, age_ms: 0, names: vec![2; names] }
    }

    #[test]
    fn the_budget_holds_over_any_time() {
        let start = Instant::now();
        let mut outbox = Outbox::new(start);
        let (mut sent, peers) = (0, 7);
        for tick in 0..200 {
            (0..100).for_each(|_| {
                outbox.push(placement(10));
            });
            let batches = outbox.take(start + Duration::from_millis(tick * 50), peers);
            sent += batches.iter().flatten().map(|placement| placement.bytes() * peers).sum::<usize>();
            let allowed = BURST_BYTES + BYTES_PER_SECOND * tick as usize / 20 + placement(10).bytes() * peers;
            assert!(sent <= allowed, "{tick}: {sent} of {allowed}");
        }
        assert!(sent * 10 >= BYTES_PER_SECOND * 10 * 9, "it is used too: {sent}");
    }

    #[test]
    fn batches_fit_a_frame_and_keep_their_order() {
        let mut outbox = Outbox::new(Instant::now());
        for names in [4000, 100, 90, 4000, 1] {
            outbox.push(placement(names));
        }
        let batches = outbox.take(Instant::now(), 1);
        let names: Vec<Vec<usize>> =
            batches.iter().map(|batch| batch.iter().map(|placement| placement.names.len()).collect()).collect();
        assert_eq!(names, [vec![4000], vec![100, 90], vec![4000, 1]]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_oldest_goes_when_too_many_wait() {
        let mut outbox = Outbox::new(Instant::now());
        let kept = (0..=WAITING_MAX).map(|n| outbox.push(placement(1 + n % 7))).filter(|kept| *kept).count();
        assert_eq!(kept, WAITING_MAX);
        assert_eq!(outbox.waiting.len(), WAITING_MAX);
        assert_eq!(outbox.waiting[0].names.len(), 2, "the second");
    }

    #[test]
    fn loads_come_first() {
        let start = Instant::now();
        let mut outbox = Outbox::new(start);
        outbox.spend(2 * BURST_BYTES);
        outbox.push(placement(1));
        assert!(outbox.take(start, 1).is_empty());
        assert_eq!(outbox.take(start + Duration::from_secs(2), 1).len(), 1);
    }
}
