//! PN-Counter (Shapiro et al. 2011 §3.1.3): each actor writes what it added and what it took, both cumulative.
//!
//! Payload: two u64, little endian, added then taken; any other length counts 0. Epochs as in
//! [`g_counter`](super::g_counter).

use super::map::Map;
use crate::mesh::hlc::Timestamp;

/// Adds `n`, or takes it when negative; each side stays at the largest u64 once it is there.
pub fn add(map: &mut Map, key: &[u8], stamp: Timestamp, n: i64) {
    let own = map.get(key).find(|live| live.dot.actor == map.own());
    let (mut added, mut taken) = own.map_or((0, 0), |live| counts(live.payload));
    let side = if n < 0 { &mut taken } else { &mut added };
    *side = side.saturating_add(n.unsigned_abs());
    let mut payload = [0_u8; 16];
    payload[..8].copy_from_slice(&added.to_le_bytes());
    payload[8..].copy_from_slice(&taken.to_le_bytes());
    map.write_own(key, stamp, &payload);
}

/// The sum over all actors.
#[must_use]
pub fn value(map: &Map, key: &[u8]) -> i128 {
    let both = map.get(key).map(|live| counts(live.payload));
    both.map(|(added, taken)| i128::from(added) - i128::from(taken)).sum()
}

fn counts(payload: &[u8]) -> (u64, u64) {
    match payload.split_first_chunk::<8>() {
        Some((added, taken)) if taken.len() == 8 => {
            (u64::from_le_bytes(*added), taken.try_into().map(u64::from_le_bytes).unwrap_or(0))
        }
        _ => (0, 0),
    }
}
