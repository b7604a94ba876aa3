//! What ends by age, whatever happens: old sessions, and what searches for workers have left behind.

use std::time::{Duration, Instant};

use super::{Driver, net::Net, unix_ms};

/// How often it is looked for.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(10);

impl Driver {
    /// Removes what is over, every [`EXPIRE_INTERVAL`].
    pub(super) fn expire(&mut self, now: Instant) {
        if self.expire_due > now {
            return;
        }
        self.expire_due = now + EXPIRE_INTERVAL;
        self.stores.expire_sessions(unix_ms());
        if self.net.as_ref().is_none_or(Net::synced) {
            let search = self.config.kubernetes.workers.as_ref().map(|pods| pods.search.number());
            self.stores.settle_searches(unix_ms(), search);
        }
    }
}
