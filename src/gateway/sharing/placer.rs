//! The way of surprises from the request path, on every core, to the task that tells them.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::mesh::routing::Placement;

/// Placements from the cores that wait to be taken; the oldest is lost when one more comes.
pub const PLACED_MAX: usize = 4096;

/// Where the request path reports surprises. Cheap to clone; never waits. By default nobody hears.
#[derive(Clone, Debug, Default)]
pub struct Placer(Option<Arc<Placed>>);

/// The task's end of it.
#[derive(Debug, Default)]
pub(super) struct Placed {
    waiting: Mutex<Waiting>,
    /// Told of the first that waits alone: a task that is awake or about to be is not woken for each.
    begun: Notify,
}

/// What waits to be taken.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) placements: VecDeque<Placement>,
    /// Lost since the last time.
    pub(super) lost: usize,
}

impl Placer {
    /// A way to tell, and its end.
    pub(super) fn new() -> (Self, Arc<Placed>) {
        let placed = Arc::new(Placed::default());
        (Self(Some(placed.clone())), placed)
    }

    /// Whether a surprise is worth putting into words.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Reports a surprise; the oldest that waits is lost when there are [`PLACED_MAX`].
    pub fn place(&self, placement: Placement) {
        let Some(placed) = &self.0 else { return };
        let mut waiting = placed.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.placements.len() >= PLACED_MAX {
            waiting.placements.pop_front();
            waiting.lost += 1;
        }
        waiting.placements.push_back(placement);
        let is_first = waiting.placements.len() == 1;
        drop(waiting);
        if is_first {
            placed.begun.notify_one();
        }
    }
}

impl Placed {
    /// Until something waits that nobody was told of.
    pub(super) async fn begun(&self) {
        self.begun.notified().await;
    }

    /// All that waits.
    pub(super) fn take(&self) -> Waiting {
        mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use tokio::pin;

    use super::*;

    fn placement(worker: u32) -> Placement {
        Placement { model: "m".into(), worker, generation: 0, age_ms: 0, names: vec![2] }
    }

    #[tokio::test]
    async fn many_surprises_are_told_of_once_and_the_oldest_goes() {
        let (placer, placed) = Placer::new();
        for worker in 0..=PLACED_MAX {
            placer.place(placement(worker as u32));
        }
        placed.begun().await;
        let again = placed.begun();
        pin!(again);
        assert!(poll!(&mut again).is_pending(), "told once");
        let waiting = placed.take();
        assert_eq!((waiting.placements.len(), waiting.lost), (PLACED_MAX, 1));
        assert_eq!(waiting.placements[0].worker, 1, "the second");
        placer.place(placement(7));
        assert!(poll!(&mut again).is_ready(), "told again after a look");
        assert_eq!(placed.take().lost, 0);
    }

    #[test]
    fn by_default_nobody_hears() {
        let placer = Placer::default();
        placer.place(placement(1));
        assert!(!placer.is_heard());
    }
}
