//! G-Counter (Shapiro et al. 2011 §3.1.1): each actor writes its own cumulative count, the value is their sum.
//!
//! The count of a boot epoch stays when its node restarts: the new epoch counts from 0 beside it. Payload: u64, little
//! endian; any other length counts 0.

use super::map::Map;
use crate::mesh::hlc::Timestamp;

/// Adds `n`; the actor's count stays at the largest u64 once it is there.
pub fn add(map: &mut Map, key: &[u8], stamp: Timestamp, n: u64) {
    let own = map.get(key).find(|live| live.dot.actor == map.own()).map_or(0, |live| count(live.payload));
    map.write_own(key, stamp, &own.saturating_add(n).to_le_bytes());
}

/// The sum over all actors.
#[must_use]
pub fn value(map: &Map, key: &[u8]) -> u128 {
    map.get(key).map(|live| u128::from(count(live.payload))).sum()
}

/// What one actor counted; 0 where the payload is no count.
#[must_use]
pub fn count(payload: &[u8]) -> u64 {
    payload.try_into().map(u64::from_le_bytes).unwrap_or(0)
}
