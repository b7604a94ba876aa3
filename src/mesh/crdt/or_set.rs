//! OR-Set without tombstones (Bieniusa et al. 2012; Shapiro et al. 2011 §3.3.5): an element is a key, and an add that a
//! remove has not seen survives it.

use super::map::Map;
use crate::mesh::hlc::Timestamp;

/// Adds an element.
pub fn add(map: &mut Map, element: &[u8], stamp: Timestamp) {
    map.write(element, stamp, &[]);
}

/// Removes an element as far as it was seen here; `false` when it was not there.
pub fn remove(map: &mut Map, element: &[u8]) -> bool {
    map.remove(element)
}

/// Whether the element is in the set.
#[must_use]
pub fn contains(map: &Map, element: &[u8]) -> bool {
    !map.get(element).is_empty()
}
