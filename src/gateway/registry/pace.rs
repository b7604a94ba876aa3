//! When the routing table is built anew.

use std::time::Duration;

use tokio::time::Instant;

/// Between two rebuilds of the routing table at least.
pub const REBUILD_SPACING: Duration = Duration::from_millis(10);

/// A rebuild also comes no sooner than this many times what the last one took after it, so that rebuilds cost a twentieth of a
/// core while the mesh tells of changes to thousands of workers; where one takes more than 25 ms it is more, for
/// [`REBUILD_SPACING_MAX`]. Breakers wait for no rebuild.
const REBUILD_PAUSE: u32 = 20;

/// However many workers there are, what is known of them is used after this.
pub const REBUILD_SPACING_MAX: Duration = Duration::from_millis(500);

/// What is to be known of the last rebuild and the next one.
#[derive(Debug)]
pub(super) struct Pace {
    due: Option<Instant>,
    rebuilt: Instant,
    /// From one rebuild to the next, at least, while nobody waits for it.
    spacing: Duration,
}

impl Pace {
    /// Nothing is due, and a rebuild was just made.
    pub(super) fn new(now: Instant) -> Self {
        Self { due: None, rebuilt: now, spacing: REBUILD_SPACING }
    }

    /// Something changed. Where a write through the API waits for the table the next one comes within [`REBUILD_SPACING`].
    pub(super) fn mark_stale(&mut self, now: Instant, is_awaited: bool) {
        let spacing = if is_awaited { REBUILD_SPACING } else { self.spacing };
        let due = now.max(self.rebuilt + spacing);
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// When the next rebuild is due; none while nothing changed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A rebuild that began at `began` took this long.
    pub(super) fn rebuilt(&mut self, began: Instant, took: Duration) {
        let spacing = took.saturating_mul(REBUILD_PAUSE).clamp(REBUILD_SPACING, REBUILD_SPACING_MAX);
        *self = Self { due: None, rebuilt: began, spacing };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn large_tables_are_built_less_often_unless_somebody_waits() {
        for (case, took, is_awaited, expected) in [
            ("few workers", Duration::from_micros(20), false, 10 * MS),
            ("a thousand", MS, false, 20 * MS),
            ("tens of thousands", 15 * MS, false, 300 * MS),
            ("the longest pause", 40 * MS, false, 500 * MS),
            ("however long it takes", Duration::MAX, false, 500 * MS),
            ("a write waits", 40 * MS, true, 10 * MS),
        ] {
            let began = Instant::now();
            let mut pace = Pace::new(began);
            pace.rebuilt(began, took);
            assert_eq!(pace.due(), None, "{case}");
            pace.mark_stale(began, is_awaited);
            assert_eq!(pace.due(), Some(began + expected), "{case}");
        }
    }

    #[test]
    fn one_that_waits_hastens_what_is_due_and_nobody_delays_it() {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        pace.rebuilt(began, 40 * MS);
        pace.mark_stale(began, false);
        pace.mark_stale(began + 100 * MS, true);
        assert_eq!(pace.due(), Some(began + 100 * MS));
        pace.mark_stale(began + 200 * MS, false);
        assert_eq!(pace.due(), Some(began + 100 * MS));
    }
}
