//! Round-trip time of one peer and the timeout that follows from it.
//!
//! Jacobson and Karels 1988 as in RFC 6298 §2, with bounds of its own: 50 ms to 500 ms, times one plus the local health
//! score (DESIGN §3.2, Lifeguard §IV.A). Samples come only from probes without a second try (Karn; RFC 6298 §3).

use std::time::Duration;

/// Shortest timeout of a direct probe at full local health.
pub const RTO_MIN: Duration = Duration::from_millis(50);
/// Longest timeout of a direct probe at full local health.
pub const RTO_MAX: Duration = Duration::from_millis(500);
/// Timeout before the first sample.
pub const RTO_INITIAL: Duration = Duration::from_millis(200);
/// Shortest time after which a probe has failed, all tries included.
pub const DEADLINE_MIN: Duration = Duration::from_millis(600);

/// Smoothed round-trip time of one peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct RttEstimate(Option<(Duration, Duration)>);

impl RttEstimate {
    /// Adds one sample.
    pub fn record(&mut self, rtt: Duration) {
        self.0 = Some(match self.0 {
            None => (rtt, rtt / 2),
            Some((srtt, var)) => ((srtt * 7 + rtt) / 8, (var * 3 + srtt.abs_diff(rtt)) / 4),
        });
    }

    /// How long to wait for an ack before other ways are tried, when this node's health score is `health`.
    #[must_use]
    pub fn timeout(&self, health: u32) -> Duration {
        let rto = self.0.map_or(RTO_INITIAL, |(srtt, var)| (srtt + var * 4).clamp(RTO_MIN, RTO_MAX));
        rto * (1 + health)
    }

    /// After how long without any answer a probe has failed, when this node's health score is `health`.
    #[must_use]
    pub fn deadline(&self, health: u32) -> Duration {
        (self.timeout(health) * 3).max(DEADLINE_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adaptive_timeout_follows_the_rtt_within_its_bounds() {
        let ms = Duration::from_millis;
        for (case, samples, health, timeout, deadline) in [
            ("no sample", vec![], 0, 200, 600),
            ("fast peer: lower bound", vec![1, 1, 1], 0, 50, 600),
            ("slow peer: upper bound", vec![900, 900], 0, 500, 1500),
            ("first sample: srtt + 4 * srtt / 2", vec![60], 0, 180, 600),
            ("poor local health waits longer", vec![1, 1], 3, 200, 600),
            ("worst local health", vec![1, 1], 8, 450, 1350),
        ] {
            let mut rtt = RttEstimate::default();
            for sample in samples {
                rtt.record(ms(sample));
            }
            assert_eq!((rtt.timeout(health), rtt.deadline(health)), (ms(timeout), ms(deadline)), "{case}");
        }
    }
}
