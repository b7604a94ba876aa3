//! Bounds on requests in flight that the cluster shares: the one of all requests, and those of some.
//!
//! A request has a slot of every bound that selects it, or is refused and has none. It keeps them, in its `Tenure`, until
//! its response has been sent or given up, and loses them with their lease: then it is broken, in sight of its client.
//!
//! A bound that is taken away breaks nothing. While it has requests in flight it is *retired*: they end by themselves, count
//! again where the bound is set anew before that, and meanwhile are still reported to the leader, which would lend their
//! slots to others otherwise. There are no more of those than requests in flight.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;
use http::HeaderMap;

use crate::{
    gateway::{
        keys,
        selector::{KeyId, Selector},
        slots::{Slots, Taken},
    },
    mesh::{
        driver::rights::SharedLimit,
        quota::{Kind, share::Share},
    },
};

/// A slot, and what it is of.
pub type Held = (Arc<Slots>, Taken);

/// One bound.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Which requests.
    pub selector: Selector,
    /// In flight at once in the whole cluster.
    pub concurrent: u32,
    /// What this gateway holds of them.
    pub slots: Arc<Slots>,
}

/// All of them, shared by all cores. Without any a request looks at one pointer.
#[derive(Debug, Default)]
pub struct Bounds {
    in_force: ArcSwap<Vec<Bound>>,
    retired: Mutex<Vec<Bound>>,
}

impl Bounds {
    /// Takes a slot of every bound that selects the request; nothing where none does.
    ///
    /// # Errors
    /// The bound of which no slot is left, at most so many in flight; then none was taken.
    pub fn admit(
        &self,
        headers: &HeaderMap,
        model: Option<&str>,
        clock: impl Fn() -> Instant,
    ) -> Result<Vec<Held>, u32> {
        let bounds = self.in_force.load();
        if bounds.is_empty() {
            return Ok(Vec::new());
        }
        let now = clock();
        let wants_key = bounds.iter().any(|bound| bound.selector.key.is_some());
        let key = wants_key.then(|| keys::limited(headers)).flatten().map(KeyId::of);
        let mut held: Vec<Held> = Vec::new();
        let mut refused = None;
        for bound in bounds.iter().filter(|bound| bound.selector.selects(key, model)) {
            // Each that has none counts the request as refused, so that the leader sees the demand of all.
            match bound.slots.take(now) {
                Some(taken) => held.push((bound.slots.clone(), taken)),
                None => refused = Some(refused.map_or(bound.concurrent, |known: u32| known.min(bound.concurrent))),
            }
        }
        let Some(concurrent) = refused else { return Ok(held) };
        held.into_iter().for_each(|(slots, taken)| slots.give_back(taken));
        Err(concurrent)
    }

    /// Puts the bounds in force, all of them. One that was there keeps what is in flight. With `is_shared` slots are lent.
    pub fn set(&self, wanted: impl Iterator<Item = (Selector, u32)>, is_shared: bool, now: Instant) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<Bound> = self.in_force.load().iter().chain(retired.iter()).cloned().collect();
        let bound = |(selector, concurrent): (Selector, u32)| {
            let known = known.iter().find(|known| known.selector == selector);
            let slots = known.map_or_else(|| Arc::new(Slots::new(now)), |known| known.slots.clone());
            slots.resume();
            if !is_shared {
                slots.own(concurrent.into());
            }
            Bound { selector, concurrent, slots }
        };
        let wanted: Vec<Bound> = wanted.map(bound).collect();
        let is_gone = |known: &Bound| !wanted.iter().any(|bound| bound.selector == known.selector);
        let gone: Vec<Bound> = known.into_iter().filter(is_gone).collect();
        self.in_force.store(Arc::new(wanted));
        // A core may see the bounds of before a moment longer: once released there are no slots to take, and what is in
        // use only falls.
        gone.iter().for_each(|bound| bound.slots.release());
        *retired = gone.into_iter().filter(|bound| bound.slots.is_busy()).collect();
    }

    /// Forgets what was taken away and has nothing in flight any more; says whether there was any.
    pub fn forget_idle(&self) -> bool {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let before = retired.len();
        retired.retain(|bound| bound.slots.is_busy());
        retired.len() < before
    }

    /// Those in force.
    #[must_use]
    pub fn in_force(&self) -> Arc<Vec<Bound>> {
        self.in_force.load_full()
    }

    /// For the mesh to share out; of those that are retired nothing.
    #[must_use]
    pub fn to_share(&self) -> Vec<SharedLimit> {
        let shared = |bound: &Bound, slots: u64| SharedLimit {
            id: bound.selector.limit_id(),
            kind: Kind::Slots,
            whole: Share::of_tokens(slots, slots),
            bucket: bound.slots.clone(),
        };
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = self.in_force.load();
        let in_force = in_force.iter().map(|bound| shared(bound, bound.concurrent.into()));
        in_force.chain(retired.iter().map(|bound| shared(bound, 0))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::{gateway::slots::Standing, mesh::quota::Holding};

    /// A bound that is taken away and set again, with a lease that nobody renews meanwhile.
    #[test]
    fn what_is_in_flight_outlives_its_bound_and_counts_when_it_is_back() {
        let (start, bounds, headers) = (Instant::now(), Bounds::default(), HeaderMap::new());
        let set = |count: u32| bounds.set((count > 0).then(|| (Selector::default(), count)).into_iter(), true, start);
        let hold = |slots, secs: u64| {
            let holding =
                Holding { share: Share::of_tokens(slots, slots), until: start + Duration::from_secs(secs), credit: 0 };
            bounds.to_share().iter().for_each(|limit| assert_eq!(limit.bucket.hold(start, &holding), 0));
        };
        set(2);
        hold(2, 5);
        let mut held: Vec<Held> = (0..2).flat_map(|_| bounds.admit(&headers, None, || start).unwrap()).collect();
        set(0);
        assert!(bounds.admit(&headers, None, || start).unwrap().is_empty(), "there is no bound");
        let shared = bounds.to_share();
        let shared: Vec<_> = shared.iter().map(|limit| (limit.whole, limit.bucket.in_use())).collect();
        assert_eq!(shared, [(Share::NONE, 2)], "the leader still hears of them");
        let late = start + Duration::from_secs(60);
        let (slots, taken) = &mut held[0];
        assert!(matches!(slots.look(late, taken), Standing::Until(at) if at > late), "none is lost");
        hold(0, 70);
        set(2);
        hold(2, 70);
        assert_eq!(bounds.admit(&headers, None, || start).unwrap_err(), 2, "both still count");
        let (slots, taken) = held.pop().unwrap();
        slots.give_back(taken);
        assert_eq!(bounds.admit(&headers, None, || start).unwrap().len(), 1, "one has ended");
        set(0);
        set(2);
        set(0);
        assert_eq!(bounds.to_share().len(), 1);
        held.into_iter().for_each(|(slots, taken)| slots.give_back(taken));
    }

    #[test]
    fn a_request_has_a_slot_of_every_bound_or_of_none() {
        let (now, bounds) = (Instant::now(), Bounds::default());
        let key = Selector { key: Some(KeyId::of(b"k")), model: None };
        let wanted = || [(Selector::default(), 3), (key.clone(), 1)].into_iter();
        let mut headers = HeaderMap::new();
        assert!(bounds.admit(&headers, None, || now).unwrap().is_empty(), "no bound");
        bounds.set(wanted(), false, now);
        let in_flight = || bounds.in_force().iter().map(|bound| bound.slots.stats(now).in_flight).collect::<Vec<_>>();
        let first = bounds.admit(&headers, Some("m"), || now).unwrap();
        headers.insert("authorization", "Bearer k".parse().unwrap());
        let second = bounds.admit(&headers, Some("m"), || now).unwrap();
        assert_eq!((first.len(), second.len(), in_flight()), (1, 2, vec![2, 1]));
        assert_eq!(bounds.admit(&headers, None, || now).unwrap_err(), 1, "the bound of the key");
        assert_eq!(in_flight(), [2, 1], "of the other none was taken");
        // What is in flight stays so when bounds change.
        bounds.set([(Selector::default(), 2)].into_iter(), false, now);
        assert_eq!((in_flight(), bounds.admit(&headers, None, || now).unwrap_err()), (vec![2], 2));
        second.into_iter().for_each(|(slots, taken)| slots.give_back(taken));
        assert_eq!(in_flight(), [1]);
        assert_eq!(bounds.admit(&headers, None, || now).unwrap().len(), 1);
    }

    #[test]
    fn what_was_taken_away_is_forgotten_when_it_has_ended() {
        let (now, bounds, headers) = (Instant::now(), Bounds::default(), HeaderMap::new());
        bounds.set([(Selector::default(), 2)].into_iter(), false, now);
        let held = bounds.admit(&headers, None, || now).unwrap();
        bounds.set(std::iter::empty(), false, now);
        assert!(!bounds.forget_idle(), "a request runs");
        assert_eq!(bounds.to_share().len(), 1);
        held.into_iter().for_each(|(slots, taken)| slots.give_back(taken));
        assert!(bounds.forget_idle());
        assert_eq!(bounds.to_share().len(), 0);
    }
}
