//! The rules whose absence the adversarial suite must notice, each switched off by `SwimConfig::without` in test builds.

use super::{SwimConfig, member::Key};

/// A rule of this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::mesh) enum Rule {
    /// A node refutes what is said of it (SWIM §4.2).
    Refutation,
    /// A last round of probes before the verdict (DESIGN §3.5).
    Verification,
    /// A later process of a name beats an earlier one.
    EpochOrder,
    /// A later incarnation beats an earlier one (SWIM §4.2).
    IncarnationOrder,
    /// Of equal incarnations the worse status beats the better one (SWIM §4.2).
    StatusOrder,
    /// The last record of a forgotten node refuses older ones.
    Floor,
    /// A forgotten node that lives is told what it is held for.
    TellForgotten,
    /// Of two processes of one name the newer one gives it up.
    Contest,
    /// A node raises its epoch above what an earlier process left.
    RaiseEpoch,
    /// DOWN peers are contacted for ever (DESIGN §3.10).
    DownContact,
}

impl SwimConfig {
    /// Whether the machine follows `rule`: always, outside the mutation check.
    #[cfg(test)]
    pub(super) fn follows(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Whether the machine follows `rule`: always, outside the mutation check.
    #[cfg(not(test))]
    pub(super) const fn follows(&self, _rule: Rule) -> bool {
        true
    }

    /// Whether a record of order `key` is ordered before one of order `floor`.
    pub(super) fn is_older(&self, key: Key, floor: Key) -> bool {
        let seen = |(epoch, incarnation, status): Key| {
            let counts = |rule, value: u64| if self.follows(rule) { value } else { 0 };
            let status = counts(Rule::StatusOrder, status.into());
            (counts(Rule::EpochOrder, epoch), counts(Rule::IncarnationOrder, incarnation), status)
        };
        key != floor && seen(key) <= seen(floor)
    }
}
