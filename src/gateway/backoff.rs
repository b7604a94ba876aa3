//! How long a retry waits.

use std::time::Duration;

use crate::config::Retry;

/// The wait before the `retry`-th retry, from 1: `initial · multiplier^(retry-1)`, at most `backoff_max`, then moved by
/// up to the jitter's share either way by `random`.
#[must_use]
pub fn wait(config: &Retry, retry: u32, random: u64) -> Duration {
    let growth = config.backoff_multiplier.powi(retry.saturating_sub(1).min(1000) as i32);
    let plain = (config.backoff_initial.as_secs_f64() * growth).min(config.backoff_max.as_secs_f64());
    let unit = (random >> 11) as f64 / (1_u64 << 53) as f64;
    let jittered = plain * (1.0 + config.jitter_factor * (2.0 * unit - 1.0));
    Duration::try_from_secs_f64(jittered.min(config.backoff_max.as_secs_f64())).unwrap_or(config.backoff_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_maximum() {
        let config = Retry {
            retries_max: 5,
            backoff_initial: Duration::from_millis(50),
            backoff_max: Duration::from_secs(30),
            backoff_multiplier: 2.0,
            jitter_factor: 0.2,
            budget_percent: 20,
        };
        for (retry, random, low_ms, high_ms) in [
            (1, 0, 40, 40),
            (1, u64::MAX, 59, 60),
            (2, 1 << 63, 99, 101),
            (3, 1 << 63, 199, 201),
            (u32::MAX, u64::MAX, 30_000, 30_000),
        ] {
            let wait = wait(&config, retry, random).as_secs_f64() * 1000.0;
            assert!(wait >= f64::from(low_ms) - 0.01 && wait <= f64::from(high_ms) + 0.01, "{retry} {random}: {wait}");
        }
    }
}
