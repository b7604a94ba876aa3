//! PN-Counter (Shapiro et al. 2011 §3.1.3): each actor writes what it added and what it took, both cumulative.
//!
//! Payload: two u64, little endian, added then taken; any other length counts 0. Epochs as in
//! [`g_counter`](super::g_counter).

use super::map::Map;
use crate::mesh::hlc::Timestamp;

/// Adds `n`, or takes it when negative; each side stays at the largest u64 once it is there.
pub fn add(map: &mut Map, key: &[u8], stamp: Timestamp, n: i64) {
    let amount = n.unsigned_abs();
    let (added, taken) = if n < 0 { (0, amount) } else { (amount, 0) };
    move_by(map, key, stamp, added, taken);
}

/// Adds to both sides in one write, so that nobody sees one without the other.
pub fn move_by(map: &mut Map, key: &[u8], stamp: Timestamp, added: u64, taken: u64) {
    let own = map.get(key).find(|live| live.dot.actor == map.own());
    let before = own.map_or((0, 0), |live| counts(live.payload));
    let mut payload = [0_u8; 16];
    payload[..8].copy_from_slice(&before.0.saturating_add(added).to_le_bytes());
    payload[8..].copy_from_slice(&before.1.saturating_add(taken).to_le_bytes());
    map.write_own(key, stamp, &payload);
}

/// The sum over all actors.
#[must_use]
pub fn value(map: &Map, key: &[u8]) -> i128 {
    let both = map.get(key).map(|live| counts(live.payload));
    both.map(|(added, taken)| i128::from(added) - i128::from(taken)).sum()
}

/// What one actor added and took; zeros where the payload is no such pair.
#[must_use]
pub fn counts(payload: &[u8]) -> (u64, u64) {
    match payload.split_first_chunk::<8>() {
        Some((added, taken)) if taken.len() == 8 => {
            (u64::from_le_bytes(*added), taken.try_into().map(u64::from_le_bytes).unwrap_or(0))
        }
        _ => (0, 0),
    }
}
