//! The slots of one request in flight, given back when dropped, and the watch over the end of their lease.
//!
//! The timer fires when the lease that was in force at the last look is about to end; mostly it has been renewed by then, and
//! the timer is set anew. So a request looks once in some seconds, by itself and on its own core.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use crate::gateway::{bounds::Held, slots::Standing};

/// A request that has lost a slot has this long to break by itself, with an error event, before its connection is closed. With
/// the second between two looks it is less than [`BREAK_AHEAD`](crate::gateway::slots::BREAK_AHEAD).
const OVERDUE_AFTER: Duration = Duration::from_millis(250);

/// The slots.
pub(crate) struct Tenure {
    held: RefCell<Vec<Held>>,
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
    /// Until when they were there at the last look.
    until: Cell<Option<Instant>>,
    is_lost: Cell<bool>,
}

impl Tenure {
    pub(crate) fn new(held: Vec<Held>) -> Self {
        Self { held: RefCell::new(held), timer: RefCell::new(None), until: Cell::new(None), is_lost: Cell::new(false) }
    }

    /// Whether a lease is over and the request is not, as when its client reads nothing, and so nobody polls it.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        let until = self.until.get();
        self.look(now) == Standing::Lost && until.is_none_or(|until| now >= until + OVERDUE_AFTER)
    }

    /// The slot that stands worst.
    fn look(&self, now: Instant) -> Standing {
        let mut worst = if self.is_lost.get() { Standing::Lost } else { Standing::Free };
        for (slots, taken) in self.held.borrow_mut().iter_mut() {
            worst = match (worst, slots.look(now, taken)) {
                (Standing::Lost, _) | (_, Standing::Lost) => Standing::Lost,
                (Standing::Until(one), Standing::Until(other)) => Standing::Until(one.min(other)),
                (Standing::Free, standing) | (standing, Standing::Free) => standing,
            };
        }
        self.is_lost.set(worst == Standing::Lost);
        if let Standing::Until(at) = worst {
            self.until.set(Some(at));
        }
        worst
    }

    /// Ready once the request must be broken.
    pub(crate) fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut timer = self.timer.borrow_mut();
        loop {
            if let Some(timer) = timer.as_mut()
                && timer.as_mut().poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            match self.look(Instant::now()) {
                Standing::Lost => return Poll::Ready(()),
                Standing::Free => {
                    *timer = None;
                    return Poll::Pending;
                }
                Standing::Until(at) => match timer.as_mut() {
                    Some(timer) => timer.as_mut().reset(at.into()),
                    None => *timer = Some(Box::pin(sleep_until(at.into()))),
                },
            }
        }
    }

    /// Waits until the request must be broken.
    pub(crate) async fn lost(&self) {
        std::future::poll_fn(|cx| self.poll_lost(cx)).await;
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        for (slots, taken) in self.held.get_mut().drain(..) {
            slots.give_back(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::{
        gateway::slots::{BREAK_AHEAD, Slots},
        mesh::quota::{Bucket, Holding, share::Share},
    };

    fn hold(slots: &Slots, lasts: Duration) {
        let now = Instant::now();
        slots.hold(now, &Holding { share: Share::of_tokens(1, 1), until: now + BREAK_AHEAD + lasts, credit: 0 });
    }

    #[tokio::test]
    async fn a_request_ends_with_its_lease_and_not_before() {
        let slots = Arc::new(Slots::new(Instant::now()));
        hold(&slots, Duration::from_millis(40));
        let begun = Instant::now();
        let tenure = Tenure::new(vec![(slots.clone(), slots.take(begun).unwrap())]);
        let mut lost = Box::pin(tenure.lost());
        assert!(futures_util::poll!(&mut lost).is_pending());
        hold(&slots, Duration::from_millis(200));
        let renewed = Instant::now();
        lost.await;
        assert!(renewed.elapsed() >= Duration::from_millis(190), "the renewed lease counts");
        let now = Instant::now();
        assert!(tenure.is_overdue(now + OVERDUE_AFTER), "and stays lost");
        assert_eq!(slots.in_use(), 1);
        drop(tenure);
        assert_eq!(slots.in_use(), 0, "the slot is back");
    }

    #[tokio::test]
    async fn without_a_lease_there_is_no_end() {
        let slots = Arc::new(Slots::new(Instant::now()));
        slots.own(1);
        let tenure = Tenure::new(vec![(slots.clone(), slots.take(Instant::now()).unwrap())]);
        assert!(futures_util::poll!(Box::pin(tenure.lost())).is_pending());
    }
}
