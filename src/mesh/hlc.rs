//! Hybrid logical clock (Kulkarni et al. 2014, "Logical Physical Clocks"): timestamps close to wall time that respect
//! causality.
//!
//! A [`Timestamp`] is 48 bits of wall milliseconds and 16 bits of logical counter; the writing actor breaks ties where
//! two are compared. Wall time is an argument: this file reads no clock.
//!
//! Departures from §3.2 of the paper. A remote timestamp more than [`AHEAD_MS_MAX`] ahead of our wall clock is stored
//! with its data but does not pull our clock, so that one wrong clock cannot drag the cluster into the future; and a
//! local write is stamped above whatever is known for its key, so that a wrong clock cannot lock a key either.

/// How far ahead of our wall clock a remote timestamp may be and still pull our clock: 500 ms.
pub const AHEAD_MS_MAX: u64 = 500;

const LOGICAL_BITS: u32 = 16;
const MS_MAX: u64 = (1 << (64 - LOGICAL_BITS)) - 1;

/// An HLC timestamp; the order is by wall milliseconds, then by logical counter.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Before everything that a clock ever gives: what `--worker-urls` says is stamped so.
    pub const ZERO: Self = Self(0);

    /// The timestamp with `ms` (48 bits, the largest when above) and `logical`.
    #[must_use]
    pub fn new(ms: u64, logical: u16) -> Self {
        Self((ms.min(MS_MAX) << LOGICAL_BITS) | u64::from(logical))
    }

    /// The timestamp as one number, as it travels.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The timestamp that travelled as `bits`; every value is one.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Wall milliseconds since 1970.
    #[must_use]
    pub fn ms(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The next larger one. A full logical counter carries into the milliseconds; the largest stays where it is, which
    /// orders nothing wrongly because a local write supersedes the dots it has seen whatever their timestamps.
    #[must_use]
    pub fn successor(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The clock of one node.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    last: Timestamp,
}

impl Clock {
    /// A timestamp for a local write: above every one given before, above `known` (the newest of the written key), and
    /// no less than the wall clock.
    pub fn tick(&mut self, wall_ms: u64, known: Timestamp) -> Timestamp {
        let stamp = Timestamp::new(wall_ms, 0).max(self.last.successor()).max(known.successor());
        // A key with a far-off timestamp must not push the stamps of all other keys.
        if stamp.ms() <= wall_ms.saturating_add(AHEAD_MS_MAX) {
            self.last = stamp;
        }
        stamp
    }

    /// Takes note of a remote timestamp; gives by how many milliseconds it leads when that is more than [`AHEAD_MS_MAX`],
    /// in which case the clock is unchanged.
    pub fn observe(&mut self, wall_ms: u64, remote: Timestamp) -> Option<u64> {
        let ahead_ms = remote.ms().saturating_sub(wall_ms);
        if ahead_ms > AHEAD_MS_MAX {
            return Some(ahead_ms);
        }
        self.last = self.last.max(remote);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_exceed_wall_time_earlier_ticks_and_the_known_stamp() {
        let at = Timestamp::new;
        for (case, last, wall_ms, known, expected) in [
            ("wall time leads", at(5, 0), 10, at(3, 0), at(10, 0)),
            ("same millisecond", at(10, 7), 10, at(3, 0), at(10, 8)),
            ("wall clock stepped back", at(10, 7), 2, at(3, 0), at(10, 8)),
            ("key known from the future", at(10, 0), 10, at(99_999, 3), at(99_999, 4)),
            ("logical counter full", at(10, u16::MAX), 10, Timestamp::ZERO, at(11, 0)),
        ] {
            let mut clock = Clock { last };
            assert_eq!(clock.tick(wall_ms, known), expected, "{case}");
        }
    }

    #[test]
    fn a_far_future_stamp_neither_pulls_the_clock_nor_locks_its_key() {
        let mut clock = Clock::default();
        let far = Timestamp::new(4_000_000_000_000, 0);
        assert_eq!(clock.observe(1000, far), Some(4_000_000_000_000 - 1000));
        assert!(clock.tick(1000, far) > far, "the key can still be written");
        assert_eq!(clock.tick(1001, Timestamp::ZERO), Timestamp::new(1001, 0), "other keys keep wall time");
        assert_eq!(clock.observe(1001, Timestamp::new(1501, 9)), None, "500 ms ahead is merged");
        assert_eq!(clock.tick(1002, Timestamp::ZERO), Timestamp::new(1501, 10));
        assert_eq!(clock.tick(1002, Timestamp::from_bits(u64::MAX)), Timestamp::from_bits(u64::MAX));
    }
}
