//! What this node admitted and refused of each limit, told to the others while it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::mesh::{
    driver::rights::SharedLimit,
    quota::{Usage, share::LimitId},
    stores::Stores,
};

/// Between two writes of one limit's counts.
pub(super) const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// After so long without a change of the limits the counts of those that are gone are removed: a node that starts learns of the limits one by one.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// What was told, by limit: as many as there are limits.
#[derive(Debug)]
pub(super) struct Told {
    due: Instant,
    told: BTreeMap<LimitId, Usage>,
    changed_at: Instant,
    is_tidy: bool,
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now, told: BTreeMap::new(), changed_at: now, is_tidy: false }
    }

    /// The node ends: what it counted since the last time is told now.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.due = now;
    }

    /// Writes what came since the last time, when that is due; for a node that has the cluster's state.
    pub(super) fn run(&mut self, now: Instant, unix_ms: u64, limits: &[SharedLimit], stores: &mut Stores) {
        if now < self.due {
            return;
        }
        self.due = now + TELL_INTERVAL;
        let ids: BTreeSet<LimitId> = limits.iter().map(|limit| limit.id).collect();
        if !ids.iter().eq(self.told.keys()) {
            self.told.retain(|id, _| ids.contains(id));
            (self.changed_at, self.is_tidy) = (now, false);
        }
        for limit in limits {
            let (told, now_used) = (self.told.entry(limit.id).or_default(), limit.bucket.usage());
            stores.add_usage(unix_ms, limit.id, now_used.since(*told));
            *told = now_used;
        }
        if !self.is_tidy && now >= self.changed_at + FORGET_AFTER {
            stores.keep_usage(&ids);
            self.is_tidy = true;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::mesh::{
        quota::{Bucket, Holding, share::Share},
        stores::Namespace,
    };

    #[derive(Debug, Default)]
    struct Counted(Mutex<Usage>);

    impl Bucket for Counted {
        fn hold(&self, _: Instant, _: &Holding) -> u64 {
            0
        }

        fn usage(&self) -> Usage {
            *self.0.lock().unwrap()
        }
    }

    #[test]
    fn counts_are_told_once_a_second_while_they_change() {
        let start = Instant::now();
        let (mut told, mut stores) = (Told::new(start), Stores::new("a".parse().unwrap(), 1));
        let bucket = Arc::new(Counted::default());
        let limits = [SharedLimit { id: 7, whole: Share::of_tokens(1, 1), bucket: bucket.clone() }];
        let writes = |stores: &Stores| {
            let map = stores.map(Namespace::Routing);
            map.seen().get(map.own())
        };
        for ms in 0..10_000 {
            if ms < 5000 {
                bucket.0.lock().unwrap().admitted += 1;
            }
            told.run(start + Duration::from_millis(ms), ms, &limits, &mut stores);
        }
        assert_eq!(stores.usage(7)[&"a".parse().unwrap()], Usage { admitted: 5000, refused: 0 });
        assert!(writes(&stores) <= 6, "{} writes", writes(&stores));
        // A bucket that begins anew, as for a limit that was taken away and set again, takes nothing back.
        *bucket.0.lock().unwrap() = Usage::default();
        told.hurry(start + Duration::from_millis(10_001));
        told.run(start + Duration::from_millis(10_001), 0, &limits, &mut stores);
        bucket.0.lock().unwrap().admitted = 2;
        told.run(start + Duration::from_millis(11_100), 0, &limits, &mut stores);
        assert_eq!(stores.usage(7)[&"a".parse().unwrap()].admitted, 5002);
        // The limit goes, and its counts a minute later.
        told.run(start + Duration::from_secs(20), 0, &[], &mut stores);
        told.run(start + Duration::from_secs(79), 0, &[], &mut stores);
        assert_eq!(stores.usage(7).len(), 1);
        told.run(start + Duration::from_secs(81), 0, &[], &mut stores);
        assert_eq!(stores.usage(7).len(), 0);
    }
}
