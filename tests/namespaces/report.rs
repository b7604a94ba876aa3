//! What a scenario showed, as one line of a table, and its goals.

use std::{fmt, time::Duration};

/// One scenario at one size.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub scenario: String,
    pub size: usize,
    pub rounds: usize,
    /// From the fault to the first line that doubts the victim, per view and round.
    pub doubted: Vec<Duration>,
    /// From the fault to DOWN, per view and round.
    pub down: Vec<Duration>,
    /// DOWN said of nodes that were well, in views.
    pub false_deaths: usize,
    /// SUSPECTED said before anything was wrong, in views; only where that is looked at.
    pub suspicions: usize,
    /// What 99 of 100 updates took at most to be seen at a peer that is well; only where that is looked at.
    pub spread_p99: Option<Duration>,
    /// From the end of the fault until everybody sees everybody ALIVE, per round.
    pub converged: Vec<Duration>,
    /// From the fault until another node led, per round; only where that is looked at.
    pub failover: Vec<Duration>,
    pub note: String,
}

/// What must hold of a time that was measured again and again.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub p50: Duration,
    pub max: Duration,
}

impl Goal {
    /// Fails when the times exceed the goal by more than `slack`: the machine is shared, and the table's p99 is held
    /// against the largest of the few values here.
    pub fn check(self, times: &[Duration], row: &Row, slack: Duration) {
        let (p50, max) = (percentile(times, 50), percentile(times, 100));
        assert!(p50 <= self.p50 + slack, "p50 {p50:?} exceeds {:?} + {slack:?}: {row}", self.p50);
        assert!(max <= self.max + 2 * slack, "max {max:?} exceeds {:?} + 2 × {slack:?}: {row}", self.max);
    }
}

impl Row {
    pub fn new(scenario: &str, size: usize) -> Self {
        Self { scenario: scenario.to_owned(), size, ..Self::default() }
    }

    /// Prints the line.
    pub fn print(&self) {
        println!("{self}");
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "| {:<28} | {:>2} | {:>2} | {:>13} | {:>13} | {:>2} | {:>13} | {}",
            self.scenario,
            self.size,
            self.rounds,
            spread(&self.doubted),
            spread(&self.down),
            self.false_deaths,
            spread(&self.converged),
            self.note
        )
    }
}

pub const HEADER: &str = "| scenario                     |  n | rounds | suspected s p50/max | DOWN s p50/max | false deaths | whole again s p50/max | note";

fn spread(times: &[Duration]) -> String {
    if times.is_empty() {
        return "-".to_owned();
    }
    format!("{:.2} / {:.2}", percentile(times, 50).as_secs_f64(), percentile(times, 100).as_secs_f64())
}

/// The value that `percent` of the times do not exceed.
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}
