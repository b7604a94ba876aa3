//! What this node admitted and refused of each limit, and the tokens in its hands, told to the others while it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::mesh::{
    driver::rights::SharedLimit,
    quota::{
        Kind, Tokens, Usage,
        share::{LimitId, TOKEN},
    },
    stores::Stores,
};

/// Between two writes of one limit's counts.
pub(super) const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// After so long without a change of the limits the counts of those that are gone are removed: a node that starts learns of the limits one by one.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// What was told, by limit: as many as there are limits, and were within the last minute.
#[derive(Debug)]
pub(super) struct Told {
    due: Instant,
    told: BTreeMap<LimitId, Account>,
    /// The limits that there were at the last look.
    ids: BTreeSet<LimitId>,
    changed_at: Instant,
    is_tidy: bool,
}

/// What was last told of a limit.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    usage: Usage,
    /// Thousandths of a token in this node's hands.
    left: u64,
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now, told: BTreeMap::new(), ids: BTreeSet::new(), changed_at: now, is_tidy: false }
    }

    /// The node ends: what it counted since the last time is told now.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.due = now;
    }

    /// Writes what came since the last time, when that is due; for a node that has the cluster's state. `pooled` says how many
    /// micro-tokens of a limit this node has as the leader, that nobody holds.
    pub(super) fn run(
        &mut self,
        now: Instant,
        unix_ms: u64,
        limits: &[SharedLimit],
        pooled: &dyn Fn(LimitId) -> u64,
        stores: &mut Stores,
    ) {
        if now < self.due {
            return;
        }
        self.due = now + TELL_INTERVAL;
        let limits = || limits.iter().filter(|limit| limit.kind == Kind::Rates);
        let ids: BTreeSet<LimitId> = limits().map(|limit| limit.id).collect();
        if !ids.iter().eq(self.told.keys()) {
            self.on_gone(unix_ms, &ids, stores);
        }
        if self.ids != ids {
            (self.changed_at, self.is_tidy) = (now, false);
            self.ids = ids.clone();
        }
        for limit in limits() {
            let told = self.told.entry(limit.id).or_default();
            let left = limit.bucket.tokens(now).saturating_add(pooled(limit.id)) / (TOKEN / Tokens::PER_TOKEN);
            let usage = limit.bucket.usage();
            let more = usage.since(told.usage);
            stores.add_usage(unix_ms, limit.id, more);
            stores.add_tokens(unix_ms, limit.id, Tokens::between(told.left, left, more.admitted));
            *told = Account { usage, left };
        }
        if !self.is_tidy && now >= self.changed_at + FORGET_AFTER {
            self.told.retain(|id, _| ids.contains(id));
            stores.keep_usage(&ids);
            self.is_tidy = true;
        }
    }

    /// The tokens of a limit that is gone are gone. Its account stays as long as its counts do, so that they go on from there
    /// where it is set anew before they are removed.
    fn on_gone(&mut self, unix_ms: u64, ids: &BTreeSet<LimitId>, stores: &mut Stores) {
        for (id, account) in self.told.iter_mut().filter(|(id, _)| !ids.contains(id)) {
            stores.add_tokens(unix_ms, *id, Tokens::between(account.left, 0, 0));
            account.left = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::mesh::{
        quota::{Bucket, Holding, share::Share},
        stores::Namespace,
    };

    #[derive(Debug, Default)]
    struct Counted(Mutex<Usage>, AtomicU64);

    impl Bucket for Counted {
        fn hold(&self, _: Instant, _: &Holding) -> u64 {
            0
        }

        fn usage(&self) -> Usage {
            *self.0.lock().unwrap()
        }

        fn tokens(&self, _: Instant) -> u64 {
            self.1.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn counts_are_told_once_a_second_while_they_change() {
        let start = Instant::now();
        let (mut told, mut stores) = (Told::new(start), Stores::new("a".parse().unwrap(), 1));
        let bucket = Arc::new(Counted::default());
        let limits = [SharedLimit { id: 7, kind: Kind::Rates, whole: Share::of_tokens(1, 1), bucket: bucket.clone() }];
        let writes = |stores: &Stores| {
            let map = stores.map(Namespace::Routing);
            map.seen().get(map.own())
        };
        for ms in 0..10_000 {
            if ms < 5000 {
                bucket.0.lock().unwrap().admitted += 1;
            }
            told.run(start + Duration::from_millis(ms), ms, &limits, &|_| 0, &mut stores);
        }
        assert_eq!(stores.usage(7)[&"a".parse().unwrap()], Usage { admitted: 5000, refused: 0 });
        // One of requests and one of tokens each time.
        assert!(writes(&stores) <= 12, "{} writes", writes(&stores));
        // A bucket that begins anew, as for a limit that was taken away and set again, takes nothing back.
        *bucket.0.lock().unwrap() = Usage::default();
        told.hurry(start + Duration::from_millis(10_001));
        told.run(start + Duration::from_millis(10_001), 0, &limits, &|_| 0, &mut stores);
        bucket.0.lock().unwrap().admitted = 2;
        told.run(start + Duration::from_millis(11_100), 0, &limits, &|_| 0, &mut stores);
        assert_eq!(stores.usage(7)[&"a".parse().unwrap()].admitted, 5002);
        // The limit goes, and its counts a minute later.
        told.run(start + Duration::from_secs(20), 0, &[], &|_| 0, &mut stores);
        told.run(start + Duration::from_secs(79), 0, &[], &|_| 0, &mut stores);
        assert_eq!(stores.usage(7).len(), 1);
        told.run(start + Duration::from_secs(81), 0, &[], &|_| 0, &mut stores);
        assert_eq!(stores.usage(7).len(), 0);
    }

    /// A limit that is taken away with tokens in hand, and set anew before its counts are removed.
    #[test]
    fn tokens_of_a_limit_that_was_taken_away_do_not_come_back_with_it() {
        let start = Instant::now();
        let (mut told, mut stores) = (Told::new(start), Stores::new("a".parse().unwrap(), 1));
        let bucket = Arc::new(Counted::default());
        let limits = [SharedLimit { id: 7, kind: Kind::Rates, whole: Share::of_tokens(9, 9), bucket: bucket.clone() }];
        bucket.1.store(5 * TOKEN, Ordering::Relaxed);
        for (second, is_there, expected) in [(0, true, 5000), (1, false, 0), (30, true, 5000), (31, true, 5000)] {
            let limits: &[SharedLimit] = if is_there { &limits } else { &[] };
            told.run(start + TELL_INTERVAL * second, 0, limits, &|_| 0, &mut stores);
            assert_eq!(stores.tokens(7)[&"a".parse().unwrap()].left(), expected, "after {second} s");
        }
    }

    /// A bucket that is spent from, refilled, shrunk and emptied, and a pool beside it, read back from what was written.
    #[test]
    fn what_is_told_of_tokens_is_what_is_there() {
        let start = Instant::now();
        let (mut told, mut stores) = (Told::new(start), Stores::new("a".parse().unwrap(), 1));
        let bucket = Arc::new(Counted::default());
        let limits = [SharedLimit { id: 7, kind: Kind::Rates, whole: Share::of_tokens(9, 9), bucket: bucket.clone() }];
        for (second, (case, there, pooled, admitted, expected)) in (0..).zip([
            ("nothing is held", 0, 0, 0, (0, 0)),
            ("a share is lent", 5 * TOKEN, 0, 0, (5000, 0)),
            ("two are spent", 3 * TOKEN, 0, 2, (5000, 2000)),
            ("three are spent, and as many came in", 3 * TOKEN, 0, 3, (8000, 5000)),
            ("one is given up", 2 * TOKEN, 0, 0, (8000, 6000)),
            ("the leader has half a token to lend", 2 * TOKEN, TOKEN / 2, 0, (8500, 6000)),
            ("the lease is over", 0, 0, 0, (8500, 8500)),
        ]) {
            bucket.1.store(there, Ordering::Relaxed);
            bucket.0.lock().unwrap().admitted += admitted;
            told.run(start + TELL_INTERVAL * second, 0, &limits, &|_| pooled, &mut stores);
            let tokens = stores.tokens(7).get(&"a".parse().unwrap()).copied().unwrap_or_default();
            assert_eq!((tokens.came, tokens.gone), expected, "{case}");
            assert_eq!(tokens.left(), (there + pooled) / 1000, "{case}");
        }
    }
}
