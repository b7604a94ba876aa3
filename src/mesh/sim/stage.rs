//! Where simulated clusters of full knowledge play: true time, what is to happen in it, and a network between numbered
//! nodes that loses, doubles and delays what is sent and is cut in either direction.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::mesh::election::Standing;

/// How long it takes until a node that is silent is known to be.
pub(super) const DETECTED_AFTER: Duration = Duration::from_millis(2500);

/// True time, the steps `S` that are planned in it, and the cuts.
#[derive(Debug)]
pub(super) struct Stage<S> {
    pub(super) now: Duration,
    pub(super) rng: Pcg64Mcg,
    /// Faults that really happened, by name.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Pairs (from, to) whose messages vanish, and since when.
    cut: BTreeMap<(usize, usize), Duration>,
    base: Instant,
    steps: BTreeMap<(Duration, u64), S>,
    serial: u64,
}

impl<S> Stage<S> {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            rng: Pcg64Mcg::seed_from_u64(seed),
            faults: BTreeMap::new(),
            cut: BTreeMap::new(),
            // The one instant of a run; its value never shows, because only differences are used.
            base: Instant::now(),
            steps: BTreeMap::new(),
            serial: 0,
        }
    }

    /// The instant of now on a clock of that speed.
    pub(super) fn local(&self, speed: f64) -> Instant {
        self.base + self.now.mul_f64(speed)
    }

    /// The true time, after now, at which a clock of that speed shows an instant.
    pub(super) fn true_time(&self, at: Instant, speed: f64) -> Duration {
        let at = at.saturating_duration_since(self.base).div_f64(speed) + Duration::from_nanos(2);
        at.max(self.now + Duration::from_nanos(1))
    }

    /// The speed of a clock that starts: 1 − drift to 1 + drift.
    pub(super) fn speed(&mut self, drift: f64) -> f64 {
        if drift > 0.0 { self.rng.random_range(1.0 - drift..=1.0 + drift) } else { 1.0 }
    }

    pub(super) fn plan(&mut self, at: Duration, step: S) {
        self.serial += 1;
        self.steps.insert((at, self.serial), step);
    }

    /// When the next step is due.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.steps.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the next step, at its time.
    pub(super) fn next(&mut self) -> Option<S> {
        let ((at, _), step) = self.steps.pop_first()?;
        self.now = self.now.max(at);
        Some(step)
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.faults.entry(what).or_default() += 1;
    }

    /// When the copies of a message arrive; none when it is lost, which is counted.
    pub(super) fn arrivals(&mut self, loss: f64, duplicates: f64, delay: (Duration, Duration)) -> Vec<Duration> {
        if self.rng.random_bool(loss) {
            self.count("loss");
            return Vec::new();
        }
        let copies = 1 + usize::from(self.rng.random_bool(duplicates));
        (0..copies).map(|_| self.now + self.rng.random_range(delay.0..=delay.1)).collect()
    }

    /// Whether what goes from one node to another vanishes, which is counted.
    pub(super) fn vanishes(&mut self, from: usize, to: usize) -> bool {
        let is_cut = self.cut.contains_key(&(from, to));
        if is_cut {
            self.count("cut");
        }
        is_cut
    }

    /// Cuts what goes from one node to another; `detect` is what happens when that is noticed.
    pub(super) fn cut(&mut self, from: usize, to: usize, detect: S) {
        self.cut.entry((from, to)).or_insert(self.now);
        self.plan(self.now + DETECTED_AFTER, detect);
    }

    /// Takes every cut back.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    /// What membership would say of `other` at `n`: a node that is dead or cut off for [`DETECTED_AFTER`] is silent.
    pub(super) fn standing(&self, n: usize, other: usize, died_at: Option<Duration>, leaving: bool) -> Standing {
        let is_old = |since: Option<&Duration>| since.is_some_and(|since| self.now >= *since + DETECTED_AFTER);
        let is_cut = is_old(self.cut.get(&(n, other))) || is_old(self.cut.get(&(other, n)));
        match () {
            () if leaving => Standing::Leaving,
            () if is_old(died_at.as_ref()) || is_cut => Standing::Silent,
            () => Standing::Alive,
        }
    }
}

/// Every pair of nodes, in both directions, that a cut around `one` parts.
pub(super) fn parted(nodes: usize, one: &BTreeSet<usize>) -> impl Iterator<Item = (usize, usize)> {
    let pairs = (0..nodes).flat_map(move |a| (0..nodes).map(move |b| (a, b)));
    pairs.filter(|(a, b)| one.contains(a) != one.contains(b))
}
