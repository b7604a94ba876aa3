//! One suspicion at one node: a timer that others' suspicions shorten. Lifeguard §IV.B.

use std::{collections::BTreeSet, time::Duration};

use super::{message::Peer, timing};

/// A suspicion and who shares it.
#[derive(Debug)]
pub(super) struct Suspicion {
    started: Duration,
    nodes: usize,
    /// The first and those that confirmed it: one more than are wanted at most.
    accusers: BTreeSet<Peer>,
    deadline: Duration,
}

impl Suspicion {
    /// A suspicion that `from` raised in a cluster of `nodes`.
    pub(super) fn new(now: Duration, nodes: usize, from: Peer) -> Self {
        let deadline = now + timing::suspicion_time(nodes, 0);
        Self { started: now, nodes, accusers: BTreeSet::from([from]), deadline }
    }

    /// Takes the word of `from`; whether it is new and wanted, and so is to be passed on.
    pub(super) fn confirm(&mut self, from: Peer) -> bool {
        if self.accusers.len() > timing::confirmations_wanted(self.nodes) || !self.accusers.insert(from) {
            return false;
        }
        self.deadline = self.started + timing::suspicion_time(self.nodes, self.accusers.len() - 1);
        true
    }

    /// When the suspected node counts as dead.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifeguard_iv_b_only_independent_suspicions_count_and_only_as_many_as_wanted() {
        let mut suspicion = Suspicion::new(Duration::from_secs(1), 5, 0);
        for (case, from, is_passed_on, deadline) in [
            ("its own originator", 0, false, 25.0),
            ("another", 1, true, 12.38),
            ("the same again", 1, false, 12.38),
            ("a third", 2, true, 5.0),
            ("one more than wanted", 3, false, 5.0),
        ] {
            assert_eq!(suspicion.confirm(from), is_passed_on, "{case}");
            let time = suspicion.deadline().as_secs_f64();
            assert!((time - deadline).abs() < 0.01, "{case}: {time}");
        }
    }
}
