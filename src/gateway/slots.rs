//! How many requests may be in flight at this gateway of a limit that the cluster shares: slots for all cores, in one atomic
//! word for those that the leader lent and one for those of a local share.
//!
//! A request takes a slot and has it until it ends. Each half of a word changes together with the other, so a slot is never
//! taken of a share that is not in force: who made the share smaller knows with the same step how many are in use.
//!
//! # The end of a lease
//!
//! Lent slots end with their lease. From [`BREAK_AHEAD`] before its end on nothing is admitted, and every request looks at the
//! time by itself ([`look`](Slots::look)), however late the task that renews leases is: then it goes on in a slot of the local
//! share, where there is one, or is broken. A lease that is renewed after its end is another: what ran under the one before
//! stays lost, for the leader may have lent its slots to others. A local slot has no end, since nobody else is lent it.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::mesh::quota::{
    Bucket, Holding, Usage,
    share::{Share, TOKEN},
};

/// So long before the end of a lease that is not renewed its requests are broken: a client that does not read is noticed once
/// a second, and what was broken has to be heard of by the worker.
pub const BREAK_AHEAD: Duration = Duration::from_millis(1500);

const IN_USE_BITS: u32 = 32;

const IN_USE_MASK: u64 = (1 << IN_USE_BITS) - 1;

/// Slots in one word: the share above, those in use below.
#[derive(Debug, Default)]
struct Pool {
    word: AtomicU64,
    /// Until when something is admitted, in nanoseconds from the start; 0: never was.
    until_ns: AtomicU64,
}

impl Pool {
    fn share(&self) -> u64 {
        self.word.load(Ordering::Acquire) >> IN_USE_BITS
    }

    fn in_use(&self) -> u64 {
        self.word.load(Ordering::Acquire) & IN_USE_MASK
    }

    fn set_share(&self, slots: u64) {
        let slots = slots.min(IN_USE_MASK);
        let set = |word: u64| Some(slots << IN_USE_BITS | word & IN_USE_MASK);
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, set);
    }

    fn take(&self) -> bool {
        let one_more = |word: u64| (word & IN_USE_MASK < word >> IN_USE_BITS).then_some(word + 1);
        self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    fn give_back(&self) {
        self.word.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A slot that was taken; to be [given back](Slots::give_back) once.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// The lease that it is of; none: a local one.
    lease: Option<u64>,
}

/// How a slot stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It is there until then, or longer where the lease is renewed: look again.
    Until(Instant),
    /// It has no end.
    Free,
    /// Its lease is over, or about to be: its request must be broken.
    Lost,
}

/// For people.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stats {
    /// What may be in flight here now.
    pub share: u64,
    /// What is, in lent slots and local ones.
    pub in_flight: u64,
    /// Requests refused since the limit was put in force here, or came back while requests of it ran.
    pub refused: u64,
}

/// The slots of one limit.
#[derive(Debug)]
pub struct Slots {
    epoch: Instant,
    lent: Pool,
    local: Pool,
    /// Counts leases; one that was renewed in time stays the same.
    lease: AtomicU64,
    admitted: AtomicU64,
    refused: AtomicU64,
    is_released: AtomicBool,
}

impl Slots {
    /// No slot, before some are held.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let (lent, local) = (Pool::default(), Pool::default());
        let [lease, admitted, refused] = [const { AtomicU64::new(0) }; 3];
        Self { epoch: now, lent, local, lease, admitted, refused, is_released: AtomicBool::new(false) }
    }

    /// So many, without an end: for a gateway that shares them with nobody.
    pub fn own(&self, slots: u64) {
        self.lent.set_share(slots);
        self.lent.until_ns.store(u64::MAX, Ordering::Release);
    }

    /// There is no such limit any more: nothing is taken, and what is in flight ends by itself, whatever becomes of its lease.
    pub fn release(&self) {
        self.is_released.store(true, Ordering::Release);
        self.lent.set_share(0);
        self.local.set_share(0);
    }

    /// The limit is there again, and what is still in flight counts as before.
    pub fn resume(&self) {
        self.is_released.store(false, Ordering::Release);
    }

    /// Takes a slot; none is left otherwise, and the request counts as refused.
    #[must_use]
    pub fn take(&self, now: Instant) -> Option<Taken> {
        let lease = self.lease.load(Ordering::Acquire);
        let taken = if self.is_lent(now) {
            self.lent.take().then_some(Taken { lease: Some(lease) })
        } else {
            self.take_local(now)
        };
        let count = if taken.is_some() { &self.admitted } else { &self.refused };
        count.fetch_add(1, Ordering::Relaxed);
        taken
    }

    fn take_local(&self, now: Instant) -> Option<Taken> {
        let is_held = self.nanos(now) < self.local.until_ns.load(Ordering::Acquire);
        (is_held && self.local.take()).then_some(Taken { lease: None })
    }

    /// Gives a slot back: its request has ended.
    pub fn give_back(&self, taken: Taken) {
        if taken.lease.is_some() { self.lent.give_back() } else { self.local.give_back() }
    }

    /// How a slot stands at `now`. One whose lease is over becomes a local one where there is room.
    pub fn look(&self, now: Instant, taken: &mut Taken) -> Standing {
        let Some(lease) = taken.lease else { return Standing::Free };
        if self.is_released.load(Ordering::Acquire) {
            return Standing::Until(now + BREAK_AHEAD);
        }
        // Written in the other order: who sees a new end sees that the lease is a new one.
        let until_ns = self.lent.until_ns.load(Ordering::Acquire);
        if until_ns == u64::MAX {
            return Standing::Free;
        }
        let end = Duration::from_nanos(until_ns).saturating_sub(BREAK_AHEAD);
        if lease == self.lease.load(Ordering::Acquire) && now < self.epoch + end {
            return Standing::Until(self.epoch + end);
        }
        match self.take_local(now) {
            Some(local) => {
                self.lent.give_back();
                *taken = local;
                Standing::Free
            }
            None => Standing::Lost,
        }
    }

    /// For people.
    #[must_use]
    pub fn stats(&self, now: Instant) -> Stats {
        let is_local = self.nanos(now) < self.local.until_ns.load(Ordering::Acquire);
        let share = match (self.is_lent(now), is_local) {
            (true, _) => self.lent.share(),
            (false, true) => self.local.share(),
            (false, false) => 0,
        };
        let in_flight = self.lent.in_use() + self.local.in_use();
        Stats { share, in_flight, refused: self.refused.load(Ordering::Relaxed) }
    }

    /// Whether anything is in flight.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.lent.in_use() + self.local.in_use() > 0
    }

    /// Requests in flight in slots of a local share.
    #[must_use]
    pub fn in_local_use(&self) -> u64 {
        self.local.in_use()
    }

    fn is_lent(&self, now: Instant) -> bool {
        let ahead_ns = u64::try_from(BREAK_AHEAD.as_nanos()).unwrap_or(u64::MAX);
        self.nanos(now).saturating_add(ahead_ns) < self.lent.until_ns.load(Ordering::Acquire)
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

fn whole(share: Share) -> u64 {
    share.burst / TOKEN
}

impl Bucket for Slots {
    fn hold(&self, now: Instant, holding: &Holding) -> u64 {
        if self.nanos(now) >= self.lent.until_ns.load(Ordering::Acquire) {
            self.lease.fetch_add(1, Ordering::AcqRel);
        }
        self.lent.set_share(whole(holding.share));
        self.lent.until_ns.store(self.nanos(holding.until), Ordering::Release);
        0
    }

    fn hold_local(&self, _: Instant, holding: &Holding) {
        self.local.set_share(whole(holding.share));
        self.local.until_ns.store(self.nanos(holding.until), Ordering::Release);
    }

    fn in_use(&self) -> u64 {
        self.lent.in_use()
    }

    fn usage(&self) -> Usage {
        Usage { admitted: self.admitted.load(Ordering::Relaxed), refused: self.refused.load(Ordering::Relaxed) }
    }

    fn tokens(&self, _: Instant) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn holding(slots: u64, until: Instant) -> Holding {
        Holding { share: Share::of_tokens(slots, slots), until, credit: 0 }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_share_bounds_what_is_in_flight_and_shrinks_as_requests_end() {
        let start = Instant::now();
        let slots = Slots::new(start);
        assert!(slots.take(start).is_none(), "nothing is held");
        let until = after(start, 60_000);
        slots.hold(start, &holding(3, until));
        let taken: Vec<Taken> = (0..3).map(|_| slots.take(start).unwrap()).collect();
        assert!(slots.take(start).is_none());
        slots.hold(start, &holding(1, until));
        assert_eq!(slots.in_use(), 3, "what is in use stays");
        for (taken, is_room) in taken.into_iter().zip([false, false, true]) {
            slots.give_back(taken);
            let more = slots.take(start);
            assert_eq!(more.is_some(), is_room);
            more.into_iter().for_each(|taken| slots.give_back(taken));
        }
        assert_eq!(slots.stats(start), Stats { share: 1, in_flight: 0, refused: 4 });
    }

    #[test]
    fn what_runs_when_a_lease_ends_is_lost_unless_it_was_renewed_in_time() {
        let start = Instant::now();
        for (case, renewed_ms, looked_ms, expected) in [
            ("long before", None, 3000, Standing::Until(after(start, 3500))),
            ("about to end", None, 3500, Standing::Lost),
            ("renewed", Some(3400), 3500, Standing::Until(after(start, 6900))),
            ("renewed late, but before the end", Some(4999), 5000, Standing::Until(after(start, 8499))),
            ("renewed after the end", Some(5000), 5000, Standing::Lost),
        ] {
            let slots = Slots::new(start);
            slots.hold(start, &holding(3, after(start, 5000)));
            let mut taken = slots.take(start).unwrap();
            if let Some(ms) = renewed_ms {
                slots.hold(after(start, ms), &holding(3, after(start, ms + 5000)));
            }
            assert_eq!(slots.look(after(start, looked_ms), &mut taken), expected, "{case}");
            assert_eq!(slots.in_use(), 1, "{case}: it counts until it is given back");
        }
        let slots = Slots::new(start);
        slots.hold(start, &holding(3, after(start, 5000)));
        assert!(slots.take(after(start, 3499)).is_some() && slots.take(after(start, 3500)).is_none());
    }

    #[test]
    fn a_local_share_takes_over_what_it_has_room_for() {
        let start = Instant::now();
        let slots = Slots::new(start);
        slots.hold(start, &holding(3, after(start, 5000)));
        let mut taken: Vec<Taken> = (0..3).map(|_| slots.take(start).unwrap()).collect();
        slots.hold_local(after(start, 1000), &holding(2, after(start, 6000)));
        assert!(slots.take(after(start, 1000)).is_none(), "lent slots come first");
        let late = after(start, 4000);
        let looked: Vec<Standing> = taken.iter_mut().map(|taken| slots.look(late, taken)).collect();
        assert_eq!(looked, [Standing::Free, Standing::Free, Standing::Lost]);
        taken.drain(..).for_each(|taken| slots.give_back(taken));
        assert_eq!((slots.in_use(), slots.in_local_use()), (0, 0));
        let local = slots.take(late).unwrap();
        assert_eq!((slots.in_use(), slots.in_local_use()), (0, 1));
        // A leader is back: the local share is over, and what it began is not the leader's.
        slots.hold_local(late, &holding(0, late));
        slots.hold(late, &holding(1, after(start, 9000)));
        let lent = slots.take(late).unwrap();
        assert_eq!(slots.stats(late), Stats { share: 1, in_flight: 2, refused: 1 });
        slots.give_back(lent);
        slots.give_back(local);
    }

    #[test]
    fn slots_of_its_own_have_no_end() {
        let start = Instant::now();
        let slots = Slots::new(start);
        slots.own(1);
        let year = start + Duration::from_secs(365 * 86_400);
        let mut taken = slots.take(year).unwrap();
        assert_eq!((slots.take(year).is_none(), slots.look(year, &mut taken)), (true, Standing::Free));
    }

    /// Cores that take and give back while the share changes never have more in use than the larger share, nor than what was
    /// in use when it became smaller.
    #[test]
    fn the_bound_holds_among_cores() {
        let start = Instant::now();
        let slots = Slots::new(start);
        let until = start + Duration::from_secs(3600);
        slots.hold(start, &holding(3, until));
        let most = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..20_000 {
                            if let Some(taken) = slots.take(start) {
                                most.fetch_max(slots.in_use(), Ordering::Relaxed);
                                slots.give_back(taken);
                            }
                        }
                    })
                })
                .collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                for share in [1, 3] {
                    slots.hold(start, &holding(share, until));
                    let left = slots.in_use().max(share);
                    assert!(slots.in_use() <= left, "it never grows beyond");
                }
            }
        });
        assert!(most.load(Ordering::Relaxed) <= 3, "four cores, three slots");
        assert_eq!(slots.in_use(), 0);
    }
}
