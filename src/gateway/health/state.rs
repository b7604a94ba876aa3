//! When a worker counts as ready, and when to look again: a pure machine.
//!
//! - A worker that was never healthy is *pending*. It is probed at once, then after 100 ms, 200 ms, … up to every 1 s
//!   for [`FAST_PROBES`] probes, because somebody is starting it and waits; then at the interval. Its first success
//!   makes it ready: no threshold, nothing is known against it.
//! - A *ready* worker is probed at the interval. `failure_threshold` failures in a row make it not ready.
//! - A *not ready* worker is probed at the interval, for ever. `success_threshold` successes in a row make it ready;
//!   after the first of them the next probes follow within [`CONFIRM_WAIT_MAX`], so that coming back takes about one
//!   interval, not several.
//! - Waits are shortened by up to a fifth at random, so that gateways and workers do not fall into step.

use std::time::Duration;

use crate::{config::Health, mesh::stores::WorkerState};

/// First wait after the failed probe of a pending worker.
pub const PENDING_WAIT_MIN: Duration = Duration::from_millis(100);

/// Longest wait of the fast phase of a pending worker.
pub const PENDING_WAIT_MAX: Duration = Duration::from_secs(1);

/// Probes of the fast phase: about a minute.
pub const FAST_PROBES: u32 = 60;

/// Longest wait between the successes that bring a worker back.
pub const CONFIRM_WAIT_MAX: Duration = Duration::from_secs(1);

/// State of one worker as seen from here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checks {
    state: WorkerState,
    probes: u32,
    failures: u32,
    successes: u32,
}

impl Checks {
    /// A worker that was not probed yet: pending, or ready at once where there are no health checks.
    #[must_use]
    pub fn new(rules: &Health) -> Self {
        let state = if rules.enabled { WorkerState::Pending } else { WorkerState::Ready };
        Self { state, probes: 0, failures: 0, successes: 0 }
    }

    /// The state: pending, ready or not ready.
    #[must_use]
    pub fn state(&self) -> WorkerState {
        self.state
    }

    /// Takes in the result of a probe, and says how long to wait for the next, before [`jittered`].
    pub fn on_probe(&mut self, success: bool, rules: &Health) -> Duration {
        if !rules.enabled {
            return rules.interval;
        }
        self.probes = self.probes.saturating_add(1);
        if success {
            (self.successes, self.failures) = (self.successes.saturating_add(1), 0);
        } else {
            (self.failures, self.successes) = (self.failures.saturating_add(1), 0);
        }
        self.state = match self.state {
            WorkerState::Pending if success => WorkerState::Ready,
            WorkerState::NotReady if self.successes >= rules.success_threshold => WorkerState::Ready,
            WorkerState::Ready if self.failures >= rules.failure_threshold => WorkerState::NotReady,
            unchanged => unchanged,
        };
        self.wait(rules)
    }

    fn wait(&self, rules: &Health) -> Duration {
        match self.state {
            WorkerState::Pending if self.probes <= FAST_PROBES => {
                let doublings = self.probes.saturating_sub(1).min(4);
                (PENDING_WAIT_MIN * 2u32.pow(doublings)).min(PENDING_WAIT_MAX).min(rules.interval)
            }
            WorkerState::NotReady if self.successes > 0 => rules.interval.min(CONFIRM_WAIT_MAX),
            _ => rules.interval,
        }
    }
}

/// A wait shortened by up to a fifth; `random` is 64 uniform bits.
#[must_use]
pub fn jittered(wait: Duration, random: u64) -> Duration {
    let fifth = wait / 5;
    wait - fifth.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn rules() -> Health {
        Health {
            enabled: true,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            failure_threshold: 3,
            success_threshold: 2,
            endpoint: "/health".into(),
        }
    }

    fn run(results: &str) -> Checks {
        let mut checks = Checks::new(&rules());
        for result in results.chars() {
            checks.on_probe(result == '+', &rules());
        }
        checks
    }

    #[test]
    fn thresholds_count_in_a_row() {
        use WorkerState::{NotReady, Pending, Ready};
        for (case, results, expected) in [
            ("not probed", "", Pending),
            ("never healthy", "----------", Pending),
            ("first success of a pending worker", "---+", Ready),
            ("two failures", "+--", Ready),
            ("three failures", "+---", NotReady),
            ("failures not in a row", "+--+--", Ready),
            ("one success is not enough", "+---+", NotReady),
            ("two successes", "+---++", Ready),
            ("successes not in a row", "+---+-+", NotReady),
            ("counting begins anew once back", "+---++--", Ready),
        ] {
            assert_eq!(run(results).state(), expected, "{case}");
        }
    }

    #[test]
    fn waits_fit_the_state() {
        for (case, results, expected_ms) in [
            ("first failure", "-", 100),
            ("second", "--", 200),
            ("fifth", "-----", 1_000),
            ("sixth", "------", 1_000),
            ("ready", "+", 10_000),
            ("ready, one failure", "+-", 10_000),
            ("not ready", "+---", 10_000),
            ("on the way back", "+---+", 1_000),
            ("fast phase over", &"-".repeat(61), 10_000),
        ] {
            assert_eq!(run(results).wait(&rules()).as_millis(), expected_ms, "{case}");
        }
    }

    #[test]
    fn without_health_checks_a_worker_is_ready() {
        let rules = Health { enabled: false, ..rules() };
        let mut checks = Checks::new(&rules);
        assert_eq!(checks.state(), WorkerState::Ready);
        for _ in 0..10 {
            checks.on_probe(false, &rules);
        }
        assert_eq!(checks.state(), WorkerState::Ready);
    }

    proptest! {
        #[test]
        fn a_wait_is_positive_and_at_most_the_interval(
            results in "[+-]{1,100}", interval_ms in 1u64..60_000, random: u64,
        ) {
            let rules = Health { interval: Duration::from_millis(interval_ms), ..rules() };
            let mut checks = Checks::new(&rules);
            for result in results.chars() {
                let wait = jittered(checks.on_probe(result == '+', &rules), random);
                prop_assert!(wait > Duration::ZERO && wait <= rules.interval);
            }
        }

        #[test]
        fn jitter_takes_at_most_a_fifth(random: u64) {
            let wait = jittered(Duration::from_secs(10), random);
            prop_assert!((Duration::from_secs(8)..=Duration::from_secs(10)).contains(&wait));
        }
    }
}
