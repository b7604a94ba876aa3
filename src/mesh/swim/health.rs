//! How far this node trusts itself before it accuses others: Lifeguard (Dadgar et al. 2018) §IV.A, "local health
//! aware probe".

/// Worst score.
pub const SCORE_MAX: u32 = 8;

/// The local health multiplier: 0 when all is well; each sign of own trouble adds, each good probe takes one off.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalHealth(u32);

impl LocalHealth {
    /// The score, 0 to [`SCORE_MAX`].
    #[must_use]
    pub fn score(self) -> u32 {
        self.0
    }

    /// A sign of own trouble: a suspicion of this node, relays that did not even answer, a stall.
    pub fn worsen(&mut self, by: u32) {
        self.0 = (self.0 + by).min(SCORE_MAX);
    }

    /// A probe was answered.
    pub fn improve(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_health_stays_within_its_bounds() {
        let mut health = LocalHealth::default();
        health.improve();
        assert_eq!(health.score(), 0);
        health.worsen(100);
        assert_eq!(health.score(), SCORE_MAX);
        health.improve();
        assert_eq!(health.score(), SCORE_MAX - 1);
    }
}
