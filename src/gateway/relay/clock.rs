//! How long a relayed response may take: its deadline, and the time that the worker may be silent.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

/// One timer for both. Silence is counted from when the client has room for more and the worker brings nothing, so a
/// client that reads slowly is never taken for a worker that stalls.
///
/// The timer is not moved with each frame: it fires when the first silence could have been over and is set anew from the
/// last one, so a frame costs no more than a look at the clock.
pub(super) struct Clock {
    timer: Pin<Box<Sleep>>,
    due: Instant,
    idle: Option<Duration>,
    silent_since: Option<Instant>,
}

impl Clock {
    /// Before the first frame: `due` ends everything, `idle` bounds a silence.
    pub(super) fn new(due: Instant, idle: Option<Duration>) -> Self {
        Self { timer: Box::pin(sleep_until(due.into())), due, idle, silent_since: None }
    }

    /// The deadline.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Ready once the deadline has passed.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.as_mut().poll(cx).is_ready() && (self.idle.is_none() || Instant::now() >= self.due) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The worker has nothing now: ready once that has been so for too long.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(idle) = self.idle else { return Poll::Pending };
        let now = Instant::now();
        let over = *self.silent_since.get_or_insert(now) + idle;
        if now >= over {
            return Poll::Ready(());
        }
        let next = over.min(self.due);
        if self.timer.is_elapsed() || self.timer.deadline() > next.into() {
            self.timer.as_mut().reset(next.into());
            // Registers the task; a timer that fires at once wakes it again.
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// The worker brought something.
    pub(super) fn on_frame(&mut self) {
        self.silent_since = None;
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn what_is_over_when() {
        let mut cx = Context::from_waker(Waker::noop());
        let now = Instant::now();
        let (past, far) = (now.checked_sub(SECOND).unwrap_or(now), now + 3600 * SECOND);
        for (case, due, idle, expected) in [
            ("nothing", far, None, (false, false)),
            ("idle is not watched", far, None, (false, false)),
            ("silent for less", far, Some(3600 * SECOND), (false, false)),
            ("silent for as long", far, Some(Duration::ZERO), (false, true)),
            ("deadline", past, None, (true, false)),
            ("deadline, idle watched", past, Some(3600 * SECOND), (true, false)),
        ] {
            let mut clock = Clock::new(due, idle);
            let found = (clock.poll_due(&mut cx).is_ready(), clock.poll_idle(&mut cx).is_ready());
            assert_eq!(found, expected, "{case}");
        }
    }

    #[tokio::test]
    async fn silence_wakes_and_a_frame_ends_it() {
        let start = Instant::now();
        let mut clock = Clock::new(start + 3600 * SECOND, Some(Duration::from_millis(20)));
        std::future::poll_fn(|cx| clock.poll_idle(cx)).await;
        assert!(start.elapsed() >= Duration::from_millis(20));
        clock.on_frame();
        let again = Instant::now();
        let woken = std::future::poll_fn(|cx| {
            assert!(clock.poll_due(cx).is_pending(), "the deadline is far");
            clock.poll_idle(cx)
        });
        woken.await;
        assert!(again.elapsed() >= Duration::from_millis(20), "counted anew");
    }
}
