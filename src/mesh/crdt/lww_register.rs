//! LWW-Register (Shapiro et al. 2011 §3.2.1): the last writer by HLC timestamp wins, ties by actor.
//!
//! A write supersedes every dot it has seen, so timestamps decide between concurrent writes alone.

use super::map::{LiveRef, Map};
use crate::mesh::hlc::Timestamp;

/// Writes `payload`. `stamp` should exceed [`Map::newest`] of the key.
pub fn write(map: &mut Map, key: &[u8], stamp: Timestamp, payload: &[u8]) {
    map.write(key, stamp, payload);
}

/// The winning dot; none when the key does not live.
#[must_use]
pub fn read<'a>(map: &'a Map, key: &[u8]) -> Option<LiveRef<'a>> {
    newest(map, map.get(key))
}

/// The winner among some live dots of one key.
#[must_use]
pub fn newest<'a>(map: &Map, live: impl Iterator<Item = LiveRef<'a>>) -> Option<LiveRef<'a>> {
    live.max_by_key(|live| (live.stamp, map.actors().actor(live.dot.actor), live.dot.counter))
}
