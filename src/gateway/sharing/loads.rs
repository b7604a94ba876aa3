//! Requests in flight at other gateways, as they last said.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::LOAD_TTL;
use crate::mesh::{node::NodeName, routing::LOADS_MAX};

/// While nothing changes the loads are said again this often, so that they stay believed.
const REPEAT: Duration = Duration::from_millis(450);

/// Requests by tag of the worker.
type Tags = Vec<(u32, u32)>;

/// The book of loads. Bounded by the peers that spoke within [`LOAD_TTL`].
#[derive(Debug, Default)]
pub struct Loads {
    heard: BTreeMap<NodeName, (Instant, Tags)>,
    said: Option<(Instant, Tags)>,
}

impl Loads {
    /// Takes in what a peer says; it replaces all it said before.
    pub fn heard(&mut self, now: Instant, peer: NodeName, loads: Tags) {
        self.heard.insert(peer, (now, loads));
    }

    /// Whether a peer's word may count still.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        !self.heard.is_empty()
    }

    /// Requests in flight at all other gateways by tag of the worker. What was said longer than [`LOAD_TTL`] ago is
    /// forgotten.
    pub fn elsewhere(&mut self, now: Instant) -> BTreeMap<u32, u32> {
        self.heard.retain(|_, (at, _)| now.saturating_duration_since(*at) < LOAD_TTL);
        let mut sum = BTreeMap::new();
        for (tag, in_flight) in self.heard.values().flat_map(|(_, loads)| loads) {
            let total: &mut u32 = sum.entry(*tag).or_default();
            *total = total.saturating_add(*in_flight);
        }
        sum
    }

    /// What is to be said of the own loads now; none when it was just said.
    pub fn due(&mut self, now: Instant, mut own: Tags) -> Option<Tags> {
        own.sort_unstable();
        own.truncate(LOADS_MAX);
        let is_due = match &self.said {
            None => !own.is_empty(),
            Some((at, said)) => *said != own || !own.is_empty() && now.saturating_duration_since(*at) >= REPEAT,
        };
        is_due.then(|| {
            self.said = Some((now, own.clone()));
            own
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn loads_add_up_and_a_silent_peer_is_forgotten() {
        let (mut loads, start) = (Loads::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        loads.heard(start, "a".parse().unwrap(), vec![(1, 2), (2, 5)]);
        loads.heard(after(600), "b".parse().unwrap(), vec![(1, 3)]);
        assert_eq!(loads.elsewhere(after(700)), BTreeMap::from([(1, 5), (2, 5)]));
        loads.heard(after(700), "b".parse().unwrap(), vec![]);
        assert_eq!(loads.elsewhere(after(999)), BTreeMap::from([(1, 2), (2, 5)]));
        assert_eq!(loads.elsewhere(after(1000)), BTreeMap::new());
    }

    #[test]
    fn own_loads_are_said_when_they_change_and_now_and_then() {
        let (mut loads, start) = (Loads::default(), Instant::now());
        for (case, ms, own, is_said) in [
            ("nothing yet", 0, vec![], false),
            ("first", 150, vec![(1, 1)], true),
            ("the same", 300, vec![(1, 1)], false),
            ("the same for a while", 600, vec![(1, 1)], true),
            ("more", 750, vec![(2, 1), (1, 1)], true),
            ("the same in another order", 900, vec![(1, 1), (2, 1)], false),
            ("none any more", 1050, vec![], true),
            ("still none", 9000, vec![], false),
        ] {
            assert_eq!(loads.due(start + Duration::from_millis(ms), own).is_some(), is_said, "{case}");
        }
    }
}
