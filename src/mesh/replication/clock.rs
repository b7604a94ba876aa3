//! How far the wall clock of a peer is from ours, measured on the acks of a pipe.
//!
//! NTP (RFC 5905 §8) has four instants: a frame leaves here at T1 and arrives there at T2, its ack leaves there at T3 and
//! arrives here at T4, each by the clock of where it happens. Then the peer's clock leads ours by
//! θ = ((T2 − T1) + (T3 − T4)) / 2, wrong by no more than half of the round trip δ = (T4 − T1) − (T3 − T2). An ack tells
//! T2 and T3 − T2 ([`Reading`]); T4 − T1 is measured here without a wall clock, as the latency of the ack. So
//! θ = T2 + latency − T4 − δ / 2.
//!
//! Departures: no filter over several samples (§10), because a clock that was stepped is to be seen at once; instead a
//! round trip above [`ROUND_TRIP_MAX`] is no sample. Where nothing else is sent a frame without content asks for the
//! time, each [`INTERVAL`].

use std::time::{Duration, Instant};

/// A clock is asked for this often, where no other frame does: 60 s, for some 100 bytes.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// Samples with a longer round trip are not used: 400 ms, so that one that is used is wrong by 200 ms at most.
pub const ROUND_TRIP_MAX: Duration = Duration::from_millis(400);

/// Clocks further apart than this count as that far apart: 100 years, in milliseconds.
pub const SKEW_MS_MAX: i64 = 3_155_760_000_000;

/// What an ack says of the acceptor's clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reading {
    /// Its wall clock when the newest frame came (T2), in unix milliseconds; any number, since peers may lie.
    pub wall_ms: u64,
    /// How long it kept the ack (T3 − T2), at most 4294 s.
    pub held: Duration,
}

/// By how many milliseconds the peer's clock leads ours; none when that cannot be told well enough. `wall_ms` is our clock
/// at the arrival of the ack, `latency` the time since the frame was handed out.
#[must_use]
pub fn skew_ms(wall_ms: u64, latency: Duration, reading: Reading) -> Option<i64> {
    let round_trip = latency.saturating_sub(reading.held);
    if round_trip > ROUND_TRIP_MAX {
        return None;
    }
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let theirs = i64::try_from(reading.wall_ms).unwrap_or(i64::MAX);
    let ours = i64::try_from(wall_ms).unwrap_or(i64::MAX);
    let apart = theirs.saturating_sub(ours).clamp(-SKEW_MS_MAX, SKEW_MS_MAX);
    Some(apart.saturating_add(millis(latency)).saturating_sub(millis(round_trip / 2)).clamp(-SKEW_MS_MAX, SKEW_MS_MAX))
}

/// When the clock of one peer is to be asked for.
#[derive(Debug, Default)]
pub(super) struct Asking {
    asked: Option<Instant>,
    is_due: bool,
}

impl Asking {
    /// Once per sync interval.
    pub(super) fn on_tick(&mut self, now: Instant) {
        self.is_due |= self.asked.is_none_or(|at| at + INTERVAL <= now);
    }

    /// Whether a frame without content is to be sent.
    pub(super) fn is_due(&self) -> bool {
        self.is_due
    }

    /// A frame was sent: its ack tells the time.
    pub(super) fn on_sent(&mut self, now: Instant) {
        *self = Self { asked: Some(now), is_due: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5905 §8, Figure 15: T1 and T4 by our clock, T2 and T3 by the peer's.
    #[test]
    fn the_offset_is_that_of_rfc_5905_section_8() {
        for (case, t1, t2, t3, t4, expected) in [
            ("equal clocks", 1000, 1010, 1010, 1020, Some(0)),
            ("equal clocks, the ack was kept", 1000, 1010, 1030, 1040, Some(0)),
            ("the peer leads", 1000, 1710, 1730, 1040, Some(700)),
            ("the peer lags", 601_000, 1010, 1030, 601_040, Some(-600_000)),
            ("all of the way is one way: wrong by half of it", 1000, 1100, 1100, 1100, Some(50)),
            ("the longest round trip", 1000, 1200, 1200, 1400, Some(0)),
            ("too long", 1000, 1200, 1200, 1401, None),
        ] {
            let reading = Reading { wall_ms: t2, held: Duration::from_millis(t3 - t2) };
            assert_eq!(skew_ms(t4, Duration::from_millis(t4 - t1), reading), expected, "{case}");
        }
    }

    #[test]
    fn absurd_readings_are_bounded() {
        for (case, theirs, ours, held) in [
            ("the largest clock", u64::MAX, 0, Duration::ZERO),
            ("the smallest", 0, u64::MAX, Duration::ZERO),
            ("kept for longer than it was away", u64::MAX, 5, Duration::MAX),
        ] {
            let skew = skew_ms(ours, Duration::from_millis(20), Reading { wall_ms: theirs, held });
            assert!(skew.is_some_and(|skew| skew.abs() <= SKEW_MS_MAX), "{case}: {skew:?}");
        }
    }

    #[test]
    fn it_is_asked_at_first_and_once_in_an_interval() {
        let (start, mut asking) = (Instant::now(), Asking::default());
        let mut asked = Vec::new();
        for second in 0..150 {
            let now = start + Duration::from_secs(second);
            asking.on_tick(now);
            // A frame of its own account at 70 s puts it off.
            if asking.is_due() || second == 70 {
                asking.on_sent(now);
                asked.push(second);
            }
        }
        assert_eq!(asked, [0, 60, 70, 130]);
    }
}
