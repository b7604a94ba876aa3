//! The documented defaults of `DefaultLANConfig`, and how the times grow with the cluster.

use std::time::Duration;

/// `ProbeInterval`: one probe starts in each, and it is how long a probe may take.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// `ProbeTimeout`: after it a probe also asks relays and the stream path. It is not scaled by local health.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// `IndirectChecks`: relays that are asked.
pub const INDIRECT_CHECKS: usize = 3;

/// `GossipInterval`: time between two rounds of gossip.
pub const GOSSIP_INTERVAL: Duration = Duration::from_millis(200);

/// `GossipNodes`: nodes that one round reaches.
pub const GOSSIP_NODES: usize = 3;

/// `GossipToTheDeadTime`: so long a dead node still gets gossip, and so long it stays on the list.
pub const GOSSIP_TO_THE_DEAD: Duration = Duration::from_secs(30);

/// `AwarenessMaxMultiplier`: local health is scored from 0, good, to one less than this.
pub const AWARENESS_MAX: u32 = 8;

/// `UDPBufferSize`: bytes of one datagram at most.
pub const DATAGRAM_BYTES: usize = 1400;

const SUSPICION_MULT: u32 = 4;
const SUSPICION_MAX_MULT: u32 = 6;
const RETRANSMIT_MULT: u32 = 4;
const EXCHANGE_INTERVAL: Duration = Duration::from_secs(30);
const EXCHANGE_NODES: usize = 32;

/// Shortest life of a suspicion among `nodes`: `SuspicionMult` probe intervals, times log10 n from 10 nodes on.
#[must_use]
pub fn suspicion_min(nodes: usize) -> Duration {
    (PROBE_INTERVAL * SUSPICION_MULT).mul_f64((nodes.max(1) as f64).log10().max(1.0))
}

/// Independent suspicions after the first that shorten the life to its least; none where there are too few others.
#[must_use]
pub fn confirmations_wanted(nodes: usize) -> usize {
    let wanted = SUSPICION_MULT as usize - 2;
    if nodes.saturating_sub(2) < wanted { 0 } else { wanted }
}

/// Life of a suspicion that `confirmations` others share: Lifeguard §IV.B.
#[must_use]
pub fn suspicion_time(nodes: usize, confirmations: usize) -> Duration {
    let (min, wanted) = (suspicion_min(nodes), confirmations_wanted(nodes));
    if wanted == 0 {
        return min;
    }
    let max = min * SUSPICION_MAX_MULT;
    let share = ((confirmations + 1) as f64).ln() / ((wanted + 1) as f64).ln();
    max - (max - min).mul_f64(share.min(1.0))
}

/// How often one node sends one piece of news: λ·log n of SWIM §4.1, with `RetransmitMult` for λ.
#[must_use]
pub fn retransmits(nodes: usize) -> u32 {
    RETRANSMIT_MULT * ((nodes + 1) as f64).log10().ceil() as u32
}

/// `PushPullInterval`, and once more of it for each doubling above 32 nodes.
#[must_use]
pub fn exchange_interval(nodes: usize) -> Duration {
    let doublings = (nodes.max(EXCHANGE_NODES) as f64 / EXCHANGE_NODES as f64).log2().ceil();
    EXCHANGE_INTERVAL.mul_f64(1.0 + doublings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifeguard_iv_b_confirmations_shorten_a_suspicion() {
        for (nodes, confirmations, seconds) in [
            (2, 0, 4.0),
            (3, 5, 4.0),
            (4, 0, 24.0),
            (5, 1, 11.38),
            (5, 2, 4.0),
            (5, 9, 4.0),
            (10, 0, 24.0),
            (100, 0, 48.0),
            (100, 2, 8.0),
            (1000, 2, 12.0),
        ] {
            let time = suspicion_time(nodes, confirmations).as_secs_f64();
            assert!((time - seconds).abs() < 0.01, "{nodes} nodes, {confirmations} confirmations: {time}");
        }
    }

    #[test]
    fn swim_4_1_news_is_sent_a_logarithm_of_times() {
        for (nodes, times) in [(1, 4), (3, 4), (9, 4), (10, 8), (99, 8), (100, 12), (999, 12), (1000, 16)] {
            assert_eq!(retransmits(nodes), times, "{nodes} nodes");
        }
    }

    #[test]
    fn lists_are_exchanged_less_often_in_large_clusters() {
        for (nodes, seconds) in [(1, 30), (32, 30), (33, 60), (64, 60), (65, 90), (100, 90), (1000, 180)] {
            assert_eq!(exchange_interval(nodes).as_secs(), seconds, "{nodes} nodes");
        }
    }
}
