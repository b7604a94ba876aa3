//! Whether this gateway has requests in flight, told to those who look after them only while there are any.
//!
//! Loads are told and breakers are looked at several times a second. A gateway that nobody uses has nothing to tell, and
//! each timer that wakes it costs a tenth of a millisecond. So whoever looks rests when [`REST_AFTER`] has passed without
//! a request, and the next request wakes it: it costs a request one read of a word that no one writes meanwhile.

use std::{
    future::pending,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval},
};

/// How long nothing is in flight before those who look rest: what the last requests did has been seen by then.
pub const REST_AFTER: Duration = Duration::from_secs(2);

/// The sign that there is work. Starts busy.
#[derive(Debug)]
pub struct Activity {
    /// Nobody looks: the next request has to say so.
    is_resting: AtomicBool,
    busy: watch::Sender<bool>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { is_resting: AtomicBool::new(false), busy: watch::Sender::new(true) }
    }
}

impl Activity {
    /// Counts a request in at its worker.
    pub fn begin(&self, in_flight: &AtomicUsize) {
        // In one order with what `rest` does: either that sees the count, or this sees that it rests.
        in_flight.fetch_add(1, Ordering::SeqCst);
        if self.is_resting.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Follows whether there is work.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.busy.subscribe()
    }

    /// Rests until the next request, unless `is_used` sees one by then.
    pub fn rest(&self, is_used: impl FnOnce() -> bool) {
        self.is_resting.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if is_used() {
            self.is_resting.store(false, Ordering::Relaxed);
            return;
        }
        // In this order a request in between has the last word: it says busy after this has said not.
        self.busy.send_if_modified(|busy| {
            let rests = self.is_resting.load(Ordering::Relaxed);
            std::mem::replace(busy, !rests) == rests
        });
    }

    #[cold]
    fn wake(&self) {
        if self.is_resting.swap(false, Ordering::Relaxed) {
            self.busy.send_if_modified(|busy| !std::mem::replace(busy, true));
        }
    }
}

/// Says when to look: now and then while there is work, otherwise not before the next request.
#[derive(Debug)]
pub struct Lookout {
    busy: watch::Receiver<bool>,
    tick: Interval,
    /// When a request was last seen, or the sign that one came.
    used: Instant,
}

impl Lookout {
    /// One that looks every `period` while there is work.
    ///
    /// # Panics
    /// When `period` is zero.
    #[must_use]
    pub fn new(busy: watch::Receiver<bool>, period: Duration) -> Self {
        let mut tick = interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { busy, tick, used: Instant::now() }
    }

    /// Waits for the next look, which is also due without work when it `is_needed`. Cancel safe.
    pub async fn next(&mut self, is_needed: bool) {
        while !is_needed && !*self.busy.borrow() {
            if self.busy.changed().await.is_err() {
                return pending().await;
            }
            self.used = Instant::now();
        }
        self.tick.tick().await;
    }

    /// Takes in what a look saw, and answers whether it is time to rest.
    pub fn note(&mut self, is_used: bool) -> bool {
        let now = Instant::now();
        // A request may have come and gone between two looks.
        let is_woken = self.busy.has_changed().unwrap_or(false) && *self.busy.borrow_and_update();
        if is_used || is_woken {
            self.used = now;
        }
        now - self.used >= REST_AFTER
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn a_request_wakes_who_rests_and_nothing_else_does() {
        let (activity, count) = (Activity::default(), AtomicUsize::new(0));
        let mut busy = activity.watch();
        assert!(*busy.borrow_and_update(), "starts busy");
        activity.begin(&count);
        assert!(!busy.has_changed().is_ok_and(|changed| changed), "already busy");
        activity.rest(|| true);
        assert!(*busy.borrow_and_update(), "a request came before the rest");
        activity.rest(|| false);
        assert!(busy.has_changed().is_ok_and(|changed| changed) && !*busy.borrow_and_update(), "rests");
        activity.begin(&count);
        assert!(busy.has_changed().is_ok_and(|changed| changed) && *busy.borrow_and_update(), "woken");
        activity.begin(&count);
        assert!(!busy.has_changed().is_ok_and(|changed| changed), "woken once");
    }

    /// A request that begins while another thread goes to rest: whichever way it falls out, the end is busy.
    #[test]
    fn no_request_is_slept_through() {
        for _ in 0..2000 {
            let (activity, count) = (Activity::default(), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                scope.spawn(|| activity.rest(|| count.load(Ordering::Relaxed) > 0));
                scope.spawn(|| activity.begin(&count));
            });
            assert!(*activity.watch().borrow());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn looks_while_there_is_work_and_a_while_longer() {
        let (activity, count) = (Activity::default(), AtomicUsize::new(0));
        let mut lookout = Lookout::new(activity.watch(), Duration::from_millis(250));
        let start = Instant::now();
        for look in 0..8 {
            lookout.next(false).await;
            assert!(!lookout.note(look == 0), "{:?}", start.elapsed());
        }
        lookout.next(false).await;
        assert!(lookout.note(false), "{:?} without use", start.elapsed());
        activity.rest(|| false);
        assert!(timeout(Duration::from_secs(3600), lookout.next(false)).await.is_err(), "rests");
        lookout.next(true).await;
        activity.begin(&count);
        lookout.next(false).await;
        assert!(!lookout.note(false), "a request so short that no look sees it counts as well");
    }
}
