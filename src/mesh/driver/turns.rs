//! When the driver lets the other tasks of its thread run.
//!
//! A task that finds its next input at once is put aside by the runtime after 128 inputs only, and meanwhile QUIC neither
//! brings packets nor sends any: beside a state that comes probes took up to 100 ms.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    time::{Duration, Instant},
};

use tokio::task::yield_now;

/// After work of this long without a pause the others have their turn.
const WORK_MAX: Duration = Duration::from_micros(500);

/// How often they have it: a packet comes from the socket by way of the endpoint's task and that of its connection.
const TURNS: usize = 2;

/// Since when a task has run without a pause.
#[derive(Debug)]
pub(super) struct Turns {
    since: Instant,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { since: Instant::now() }
    }

    /// Waits for something; where that is not there at once, the others run meanwhile.
    pub(super) async fn wait<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut waited = false;
        let output = poll_fn(|cx| {
            let polled = future.as_mut().poll(cx);
            waited |= polled.is_pending();
            polled
        });
        let output = output.await;
        if waited {
            self.since = Instant::now();
        }
        output
    }

    /// Lets the others run when it is their turn; whether they did.
    pub(super) async fn give(&mut self) -> bool {
        if self.since.elapsed() < WORK_MAX {
            return false;
        }
        for _ in 0..TURNS {
            yield_now().await;
        }
        self.since = Instant::now();
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Works until the clock shows so much more.
    fn work(time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[tokio::test]
    async fn others_run_after_small_pieces_of_work_that_never_wait() {
        let runs = Arc::new(AtomicUsize::new(0));
        let other = tokio::spawn({
            let runs = runs.clone();
            async move {
                loop {
                    runs.fetch_add(1, Ordering::Relaxed);
                    yield_now().await;
                }
            }
        });
        let mut turns = Turns::new();
        let mut given = 0;
        for _ in 0..100 {
            turns.wait(std::future::ready(())).await;
            work(WORK_MAX / 4);
            given += usize::from(turns.give().await);
        }
        assert!((20..=50).contains(&given), "{given} turns in 100 quarters");
        let found = runs.load(Ordering::Relaxed);
        assert!(found >= given * TURNS - 1, "the other ran {found} times in {given} turns");
        other.abort();
    }

    #[tokio::test]
    async fn who_waits_gives_no_turn_beside() {
        let mut turns = Turns::new();
        for _ in 0..10 {
            work(WORK_MAX);
            turns.wait(yield_now()).await;
            assert!(!turns.give().await, "it has just waited");
        }
    }
}
