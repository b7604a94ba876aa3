//! Documented defaults for a LAN, and the formulas around them.

use std::time::Duration;

/// `ProbeInterval`: one probe in this time, and the time that it has.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// `ProbeTimeout`: then relays and the stream path are tried.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// `IndirectChecks`: relays that are asked.
pub const INDIRECT_CHECKS: usize = 3;

/// `GossipInterval`.
pub const GOSSIP_INTERVAL: Duration = Duration::from_millis(200);

/// `GossipNodes`: whom one round reaches.
pub const GOSSIP_NODES: usize = 3;

/// `AwarenessMaxMultiplier`: the local health score stays below (Lifeguard §IV.A).
pub const AWARENESS_MAX: u32 = 8;

/// `SuspicionMult`.
const SUSPICION_MULT: u32 = 4;

/// `SuspicionMaxTimeoutMult`.
const SUSPICION_MAX_MULT: u32 = 6;

/// `RetransmitMult`: λ of SWIM §4.1.
const RETRANSMIT_MULT: u32 = 4;

/// `PushPullInterval`, for up to 32 nodes.
const PUSH_PULL_INTERVAL: Duration = Duration::from_secs(30);

/// Above this many nodes whole lists are exchanged less often.
const PUSH_PULL_NODES: usize = 32;

/// Shortest time to refute among `count` nodes: grows with their decimal logarithm (Lifeguard §IV.B).
#[must_use]
pub fn suspicion_min(count: usize) -> Duration {
    PROBE_INTERVAL.mul_f64(f64::from(SUSPICION_MULT) * (count.max(1) as f64).log10().max(1.0))
}

/// Confirmations that bring the time to refute to its shortest: none where nobody else could confirm.
#[must_use]
pub fn confirmations_wanted(count: usize) -> u32 {
    let wanted = SUSPICION_MULT - 2;
    if count.saturating_sub(2) < wanted as usize { 0 } else { wanted }
}

/// Time to refute after `confirmations` (Lifeguard §IV.B).
#[must_use]
pub fn suspicion_time(count: usize, confirmations: u32) -> Duration {
    let (min, wanted) = (suspicion_min(count), confirmations_wanted(count));
    if wanted == 0 {
        return min;
    }
    let max = min * SUSPICION_MAX_MULT;
    let share = f64::from(confirmations + 1).ln() / f64::from(wanted + 1).ln();
    (max - (max - min).mul_f64(share.min(1.0))).max(min)
}

/// How often a piece of news is sent from one node (SWIM §4.1).
#[must_use]
pub fn retransmits(count: usize) -> u32 {
    RETRANSMIT_MULT * ((count + 1) as f64).log10().ceil() as u32
}

/// Time between two exchanges of whole lists.
#[must_use]
pub fn push_pull_interval(count: usize) -> Duration {
    if count <= PUSH_PULL_NODES {
        return PUSH_PULL_INTERVAL;
    }
    let doublings = ((count as f64).log2() - (PUSH_PULL_NODES as f64).log2()).ceil();
    PUSH_PULL_INTERVAL.mul_f64(doublings + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifeguard_iv_b_times_to_refute() {
        for (count, confirmations, seconds) in [
            (2, 0, 4.0),
            (3, 0, 4.0),
            (5, 0, 24.0),
            (5, 1, 11.4),
            (5, 2, 4.0),
            (5, 9, 4.0),
            (100, 2, 8.0),
            (1000, 2, 12.0),
        ] {
            let time = suspicion_time(count, confirmations).as_secs_f64();
            assert!((time - seconds).abs() < 0.1, "n={count} confirmations={confirmations}: {time}");
        }
    }

    #[test]
    fn swim_4_1_retransmits_and_exchanges_by_size() {
        for (count, times, seconds) in [(5, 4, 30), (32, 8, 30), (33, 8, 60), (100, 12, 90), (1000, 16, 180)] {
            assert_eq!((retransmits(count), push_pull_interval(count).as_secs()), (times, seconds), "n={count}");
        }
    }
}
