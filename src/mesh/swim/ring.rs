//! The aligned ring: who probes whom, when (DESIGN §3.1).
//!
//! Time is cut into rounds ⌊now/T⌋ of wall time. In each round the nodes, sorted by name, are shifted against each
//! other by the same pseudo-random step, so that each is probed by exactly one other, at an instant that depends on
//! its name alone: T apart on average and never more than T between two probes. SWIM §4.3 gives 2n−1 intervals as its
//! bound. Up to [`FULL_PROBE_NODES_MAX`] nodes everybody probes everybody, spread evenly over T. With unequal member
//! lists or clocks the assignment degrades to random probing.

use std::time::{Duration, Instant};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::config::FULL_PROBE_NODES_MAX;
use crate::mesh::node::NodeName;

/// Wall time that runs monotonically from a start.
#[derive(Clone, Copy, Debug)]
pub struct RingClock {
    start: Instant,
    wall_at_start: Duration,
    interval: Duration,
}

impl RingClock {
    /// A clock whose wall time at `start` is `wall_at_start_ms`, cut into rounds of `interval`.
    #[must_use]
    pub fn new(start: Instant, wall_at_start_ms: u64, interval: Duration) -> Self {
        // Year 10 000 bounds the sum, so that no clock reading overflows an instant.
        let wall_at_start = Duration::from_millis(wall_at_start_ms.min(253_402_300_799_000));
        Self { start, wall_at_start, interval: interval.max(Duration::from_millis(10)) }
    }

    /// Wall time in unix milliseconds.
    #[must_use]
    pub fn wall_ms(&self, now: Instant) -> u64 {
        let wall = self.wall_at_start + now.saturating_duration_since(self.start);
        u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
    }

    /// Number of the round that `now` is in.
    #[must_use]
    pub fn round(&self, now: Instant) -> u64 {
        let wall = self.wall_at_start + now.saturating_duration_since(self.start);
        u64::try_from(wall.as_micros() / self.interval.as_micros()).unwrap_or(u64::MAX)
    }

    /// Start of round `round`; the clock's own start for a round that began before it.
    #[must_use]
    pub fn instant(&self, round: u64, phase: Duration) -> Instant {
        let micros = u128::from(round) * self.interval.as_micros() + phase.as_micros();
        let wall = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        self.start + wall.saturating_sub(self.wall_at_start)
    }
}

/// Whom node `me` of the sorted list `live` probes in round `round`, each with its phase within `interval`, by phase.
#[must_use]
pub fn plan(round: u64, live: &[NodeName], me: &NodeName, interval: Duration) -> Vec<(Duration, NodeName)> {
    let Ok(index) = live.binary_search(me) else { return Vec::new() };
    let count = live.len();
    let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).max(1);
    let phase = |name: &NodeName| xxh3_64(name.as_str().as_bytes()) % micros;
    let mut plan: Vec<_> = if count < 2 {
        Vec::new()
    } else if count <= FULL_PROBE_NODES_MAX {
        let share = micros / (count as u64 - 1);
        let others = live.iter().enumerate().filter(|(other, _)| *other != index);
        others
            .map(|(other, name)| {
                // 0 to count − 2: the place of this prober among those of `name`.
                let place = (index + count - other - 1) % count;
                ((phase(name) + place as u64 * share) % micros, name.clone())
            })
            .collect()
    } else {
        let step = 1 + xxh3_64_with_seed(&round.to_le_bytes(), count as u64) % (count as u64 - 1);
        let target = &live[(index + usize::try_from(step).unwrap_or(1)) % count];
        vec![(phase(target), target.clone())]
    };
    plan.sort();
    plan.into_iter().map(|(micros, name)| (Duration::from_micros(micros), name)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;

    const T: Duration = Duration::from_secs(1);

    fn names(count: usize) -> Vec<NodeName> {
        let mut names: Vec<NodeName> = (0..count).map(|i| format!("node{i}").parse().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn aligned_ring_probes_each_node_once_per_round_at_a_fixed_phase() {
        for count in [9, 20, 101] {
            let live = names(count);
            let mut phases: BTreeMap<NodeName, Duration> = BTreeMap::new();
            for round in 0..50 {
                let mut probed = BTreeMap::new();
                for me in &live {
                    let plan = plan(round, &live, me, T);
                    assert_eq!(plan.len(), 1, "n={count}");
                    let (phase, target) = plan[0].clone();
                    assert_ne!(&target, me, "n={count}");
                    assert_eq!(*phases.entry(target.clone()).or_insert(phase), phase, "n={count}");
                    *probed.entry(target).or_insert(0) += 1;
                }
                assert_eq!(probed.len(), count, "n={count} round {round}: {probed:?}");
            }
        }
    }

    #[test]
    fn up_to_8_nodes_everybody_probes_everybody_spread_evenly() {
        for count in [2, 3, 5, 8] {
            let live = names(count);
            let mut by_target: BTreeMap<NodeName, Vec<Duration>> = BTreeMap::new();
            for me in &live {
                for (phase, target) in plan(7, &live, me, T) {
                    by_target.entry(target).or_default().push(phase);
                }
            }
            for phases in by_target.values_mut() {
                phases.sort();
                assert_eq!(phases.len(), count - 1, "n={count}");
                for pair in phases.windows(2) {
                    let gap = (pair[1] - pair[0]).as_secs_f64();
                    assert!((gap - 1.0 / (count as f64 - 1.0)).abs() < 0.001, "n={count}: gap {gap}");
                }
            }
        }
    }

    #[test]
    fn rounds_of_nodes_that_started_at_different_times_agree() {
        let start = Instant::now();
        let early = RingClock::new(start, 10_250, T);
        let late = RingClock::new(start + Duration::from_millis(500), 10_750, T);
        let now = start + Duration::from_millis(2900);
        assert_eq!((early.round(now), late.round(now)), (13, 13));
        assert_eq!(early.instant(14, Duration::ZERO), late.instant(14, Duration::ZERO));
    }

    #[test]
    fn nobody_else_means_nobody_to_probe() {
        let live = names(3);
        assert!(plan(0, &live[..1], &live[0], T).is_empty());
        assert!(plan(0, &live[1..], &live[0], T).is_empty(), "not a member itself");
    }
}
