//! How many retries the traffic may cause.
//!
//! Retries are allowed as a share of the requests of the last [`WINDOW_SECS`] seconds, plus a floor so that a quiet
//! gateway can retry at all: when every worker fails, the load on them grows by that share and not by a factor
//! (Google SRE book, ch. 21 "Handling Overload").

/// Length of the sliding window in seconds.
pub const WINDOW_SECS: u64 = 10;

/// Retries per window that need no traffic.
pub const FLOOR: u64 = 10;

const SLOTS: usize = WINDOW_SECS as usize;

/// Counts requests and retries per second over a sliding window. One per core: the shares add up to the same share.
#[derive(Debug)]
pub struct RetryBudget {
    percent: u64,
    /// Second that the newest slot stands for.
    newest: u64,
    requests: [u64; SLOTS],
    retries: [u64; SLOTS],
    requests_sum: u64,
    retries_sum: u64,
}

impl RetryBudget {
    /// A budget of `percent` (0 to 100) of the requests; 0 allows the floor alone.
    #[must_use]
    pub fn new(percent: u32) -> Self {
        Self {
            percent: percent.into(),
            newest: 0,
            requests: [0; SLOTS],
            retries: [0; SLOTS],
            requests_sum: 0,
            retries_sum: 0,
        }
    }

    /// Counts a request at second `now`, which never goes back.
    pub fn on_request(&mut self, now: u64) {
        self.advance(now);
        self.requests[slot(self.newest)] += 1;
        self.requests_sum += 1;
    }

    /// Takes one retry at second `now`; false when the budget is used up.
    #[must_use]
    pub fn try_retry(&mut self, now: u64) -> bool {
        self.advance(now);
        if self.retries_sum * 100 >= self.requests_sum * self.percent + FLOOR * 100 {
            return false;
        }
        self.retries[slot(self.newest)] += 1;
        self.retries_sum += 1;
        true
    }

    fn advance(&mut self, now: u64) {
        if now <= self.newest {
            return;
        }
        for second in self.newest + 1..=now.min(self.newest + WINDOW_SECS) {
            let slot = slot(second);
            self.requests_sum -= std::mem::take(&mut self.requests[slot]);
            self.retries_sum -= std::mem::take(&mut self.retries[slot]);
        }
        self.newest = now;
    }
}

fn slot(second: u64) -> usize {
    (second % WINDOW_SECS) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn granted(budget: &mut RetryBudget, now: u64) -> u64 {
        (0..10_000).take_while(|_| budget.try_retry(now)).count() as u64
    }

    #[test]
    fn a_quiet_gateway_has_the_floor() {
        let mut budget = RetryBudget::new(20);
        assert_eq!(granted(&mut budget, 5), FLOOR);
        assert_eq!(granted(&mut budget, 5 + WINDOW_SECS - 1), 0, "the window still holds them");
        assert_eq!(granted(&mut budget, 5 + WINDOW_SECS), FLOOR);
    }

    #[test]
    fn retries_are_a_share_of_requests() {
        for (case, percent, requests, expected) in
            [("none", 0, 1000, FLOOR), ("a fifth", 20, 1000, 200 + FLOOR), ("all", 100, 50, 50 + FLOOR)]
        {
            let mut budget = RetryBudget::new(percent);
            (0..requests).for_each(|_| budget.on_request(3));
            assert_eq!(granted(&mut budget, 4), expected, "{case}");
        }
    }

    proptest! {
        #[test]
        fn never_above_share_and_floor(percent in 0_u32..=100, steps in prop::collection::vec((0_u64..4, any::<bool>()), 1..400)) {
            let mut budget = RetryBudget::new(percent);
            let (mut now, mut requests, mut retries) = (0, Vec::new(), Vec::new());
            for (step, is_retry) in steps {
                now += step;
                if is_retry {
                    if budget.try_retry(now) {
                        retries.push(now);
                    }
                } else {
                    budget.on_request(now);
                    requests.push(now);
                }
                let within = |events: &[u64]| events.iter().filter(|&&at| at + WINDOW_SECS > now).count() as u64;
                prop_assert!(retries.len() < 400);
                if is_retry && retries.last() == Some(&now) {
                    prop_assert!((within(&retries) - 1) * 100 < within(&requests) * u64::from(percent) + FLOOR * 100);
                }
                prop_assert_eq!(budget.requests_sum, within(&requests));
                prop_assert_eq!(budget.retries_sum, within(&retries));
            }
        }
    }
}
