//! When a worker is spared requests because they fail there: a circuit breaker (Nygard 2007, "Release It!", §5.2).
//!
//! - *Closed*: every request may go. `failure_threshold` failures within `window` open the breaker.
//! - *Open*: none may go, for `timeout`; then the next request is the first trial.
//! - *Half-open*: as many trials may be under way as successes are still missing for `success_threshold`. That many
//!   successes close the breaker and forget the failures; one failure opens it again. A trial that says nothing about
//!   the worker gives its place to another.
//!
//! What counts is decided where the answer is seen: failures are no connection, a reset before the head, a time that
//! ran out, a status of 500 and above other than 503, and a body that broke off. Every other 4xx and 503, and a client
//! that left, are neutral: they say that the worker lives. A success is an answer below 400 that came to its end.
//!
//! Departure: failures are counted in tenths of the window, so one counts for 0.9 to 1.0 of it.
//!
//! All cores share a worker's breaker, and none waits for another: its state is one word, changed by compare and
//! exchange, and while it is closed a request reads that word once and writes nothing. Each change of state begins a new
//! *generation*; what a request of an earlier one has to say is ignored.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::config;

/// Parts that the window is counted in.
const SLOTS: usize = 10;

/// States a breaker can be in, as metrics number and the API names them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Every request may go.
    Closed = 0,
    /// None may.
    Open = 1,
    /// A few may, on trial.
    HalfOpen = 2,
}

impl State {
    /// The name in the API, in logs and in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// The changes of state that there are.
const TRANSITIONS: [(State, State); 4] = [
    (State::Closed, State::Open),
    (State::Open, State::HalfOpen),
    (State::HalfOpen, State::Closed),
    (State::HalfOpen, State::Open),
];

/// What a request said about its worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A good answer, whole.
    Success,
    /// Its failure counts against the worker.
    Failure,
    /// Nothing.
    Neutral,
}

/// Leave to send one request. Whoever has it reports one [`Outcome`]; a trial's place is taken until then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub struct Permit {
    generation: u16,
    is_trial: bool,
}

/// The breaker of one worker. Every method takes the time, which may be a little out of order among cores.
#[derive(Debug)]
pub struct Breaker {
    /// None: it never opens.
    rules: Option<config::Breaker>,
    epoch: Instant,
    word: AtomicU64,
    /// Failures while closed: number of the slot of time above, count below.
    failures: [AtomicU64; SLOTS],
    transitions: [AtomicU64; TRANSITIONS.len()],
}

impl Breaker {
    /// A closed breaker that never opens.
    #[must_use]
    pub fn off(now: Instant) -> Self {
        Self {
            rules: None,
            epoch: now,
            word: AtomicU64::new(Word::START.pack()),
            failures: Default::default(),
            transitions: Default::default(),
        }
    }

    /// A closed breaker.
    #[must_use]
    pub fn new(rules: &config::Breaker, now: Instant) -> Self {
        let rules = rules.enabled.then(|| rules.clone());
        Self { rules, ..Self::off(now) }
    }

    /// Leave to send a request now, if there is.
    pub fn admit(&self, now: Instant) -> Option<Permit> {
        let word = Word::unpack(self.word.load(Ordering::Acquire));
        match (&self.rules, word.phase) {
            (None, _) | (_, Phase::Closed) => Some(Permit { generation: word.generation, is_trial: false }),
            (Some(rules), _) => self.admit_trial(now, rules),
        }
    }

    #[cold]
    fn admit_trial(&self, now: Instant, rules: &config::Breaker) -> Option<Permit> {
        let now_ms = self.ms(now);
        let (_, after) = self.change(|word| match word.after_wait(now_ms).phase {
            // It has closed this very moment.
            Phase::Closed => Some(word),
            Phase::HalfOpen { successes, trials } if successes + trials < threshold(rules) => {
                Some(word.after_wait(now_ms).with(Phase::HalfOpen { successes, trials: trials + 1 }))
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => None,
        })?;
        let is_trial = after.phase != Phase::Closed;
        Some(Permit { generation: after.generation, is_trial })
    }

    /// Whether [`admit`](Self::admit) would say yes. Changes nothing.
    #[must_use]
    pub fn admits(&self, now: Instant) -> bool {
        let Some(rules) = &self.rules else { return true };
        match self.current(now).phase {
            Phase::Closed => true,
            Phase::Open { .. } => false,
            Phase::HalfOpen { successes, trials } => successes + trials < threshold(rules),
        }
    }

    /// How long it will be open still; zero unless it is.
    #[must_use]
    pub fn open_for(&self, now: Instant) -> Duration {
        match self.current(now).phase {
            Phase::Open { until_ms } => Duration::from_millis(until_ms.saturating_sub(self.ms(now))),
            _ => Duration::ZERO,
        }
    }

    /// Takes in what came of a request, and answers the state's change, if that made one.
    pub fn settle(&self, permit: Permit, outcome: Outcome, now: Instant) -> Option<(State, State)> {
        let rules = self.rules.as_ref()?;
        if !permit.is_trial && outcome != Outcome::Failure {
            return None;
        }
        let now_ms = self.ms(now);
        let until_ms = now_ms + rules.timeout.as_millis() as u64;
        if !permit.is_trial {
            let is_of_now = Word::unpack(self.word.load(Ordering::Acquire)).generation == permit.generation;
            if !is_of_now || self.count_failure(now_ms, rules) < u64::from(rules.failure_threshold) {
                return None;
            }
        }
        let changed = self.change(|word| {
            if word.generation != permit.generation {
                return None;
            }
            match (word.phase, outcome) {
                (Phase::Closed | Phase::HalfOpen { .. }, Outcome::Failure) => Some(word.with(Phase::Open { until_ms })),
                (Phase::HalfOpen { successes, .. }, Outcome::Success) if successes + 1 >= threshold(rules) => {
                    Some(word.with(Phase::Closed))
                }
                (Phase::HalfOpen { successes, trials }, Outcome::Success) => {
                    Some(word.with(Phase::HalfOpen { successes: successes + 1, trials: trials.saturating_sub(1) }))
                }
                (Phase::HalfOpen { successes, trials }, Outcome::Neutral) => {
                    Some(word.with(Phase::HalfOpen { successes, trials: trials.saturating_sub(1) }))
                }
                _ => None,
            }
        });
        changed.and_then(|(before, after)| {
            let (before, after) = (before.phase.state(), after.phase.state());
            (before != after).then_some((before, after))
        })
    }

    /// The state. An open breaker whose time is over is half-open, whether or not there was a request to try.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        self.current(now).phase.state()
    }

    /// The changes of state by name, and how often each happened.
    #[must_use]
    pub fn transitions(&self) -> [(&'static str, &'static str, u64); TRANSITIONS.len()] {
        std::array::from_fn(|index| {
            let (from, to) = TRANSITIONS[index];
            (from.as_str(), to.as_str(), self.transitions[index].load(Ordering::Relaxed))
        })
    }

    fn current(&self, now: Instant) -> Word {
        let now_ms = self.ms(now);
        let is_due = |word: Word| (word.after_wait(now_ms) != word).then(|| word.after_wait(now_ms));
        match self.change(is_due) {
            Some((_, after)) => after,
            None => Word::unpack(self.word.load(Ordering::Acquire)),
        }
    }

    /// Replaces the word by what `next` makes of it, and counts a change of state; none when `next` leaves it.
    fn change(&self, next: impl Fn(Word) -> Option<Word>) -> Option<(Word, Word)> {
        let update = |bits| next(Word::unpack(bits)).map(Word::pack);
        let before = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, update).ok().map(Word::unpack)?;
        let after = next(before)?;
        let change = (before.phase.state(), after.phase.state());
        if let Some(index) = TRANSITIONS.iter().position(|transition| *transition == change) {
            self.transitions[index].fetch_add(1, Ordering::Relaxed);
            // Failures of before do not count twice; one of this very moment may be forgotten with them.
            self.failures.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
        }
        Some((before, after))
    }

    /// Counts a failure in, and answers how many the window holds.
    fn count_failure(&self, now_ms: u64, rules: &config::Breaker) -> u64 {
        let slot_ms = (rules.window.as_millis() as u64 / SLOTS as u64).max(1);
        let number = now_ms / slot_ms;
        let count_in = |bits: u64| Some(if bits >> 32 == number { bits + 1 } else { (number << 32) + 1 });
        let _ = self.failures[number as usize % SLOTS].fetch_update(Ordering::Relaxed, Ordering::Relaxed, count_in);
        let slots = self.failures.iter().map(|slot| slot.load(Ordering::Relaxed));
        slots.filter(|bits| (bits >> 32) + SLOTS as u64 > number).map(|bits| bits & u64::from(u32::MAX)).sum()
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64
    }
}

fn threshold(rules: &config::Breaker) -> u16 {
    u16::try_from(rules.success_threshold).unwrap_or(u16::MAX)
}

/// State with what belongs to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Closed,
    /// Milliseconds since the epoch, 46 bits: two thousand years.
    Open {
        until_ms: u64,
    },
    HalfOpen {
        successes: u16,
        trials: u16,
    },
}

impl Phase {
    fn state(self) -> State {
        match self {
            Self::Closed => State::Closed,
            Self::Open { .. } => State::Open,
            Self::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

/// What the atomic word holds: 2 bits of state, 16 of generation, 46 of what belongs to the state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Word {
    generation: u16,
    phase: Phase,
}

impl Word {
    const START: Self = Self { generation: 0, phase: Phase::Closed };

    /// The same generation, or the next one when the state changes.
    fn with(self, phase: Phase) -> Self {
        let is_new = self.phase.state() != phase.state();
        Self { generation: self.generation.wrapping_add(is_new.into()), phase }
    }

    /// Half-open when it was open long enough.
    fn after_wait(self, now_ms: u64) -> Self {
        match self.phase {
            Phase::Open { until_ms } if until_ms <= now_ms => self.with(Phase::HalfOpen { successes: 0, trials: 0 }),
            _ => self,
        }
    }

    fn pack(self) -> u64 {
        let (tag, rest) = match self.phase {
            Phase::Closed => (0, 0),
            Phase::Open { until_ms } => (1, until_ms),
            Phase::HalfOpen { successes, trials } => (2, u64::from(successes) << 16 | u64::from(trials)),
        };
        rest << 18 | u64::from(self.generation) << 2 | tag
    }

    fn unpack(bits: u64) -> Self {
        let rest = bits >> 18;
        let phase = match bits & 3 {
            0 => Phase::Closed,
            1 => Phase::Open { until_ms: rest },
            _ => Phase::HalfOpen { successes: (rest >> 16) as u16, trials: rest as u16 },
        };
        Self { generation: (bits >> 2) as u16, phase }
    }
}

#[cfg(test)]
pub(crate) mod tests;
