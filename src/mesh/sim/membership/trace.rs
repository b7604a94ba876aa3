//! A hash over all that happened in a run: two runs are the same exactly when their hashes are.

use std::{net::SocketAddr, time::Duration};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::mesh::swim::Event;

/// The hash so far, over every delivery and every event in their order, with their virtual times.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Trace(u64);

impl Trace {
    /// The hash.
    #[must_use]
    pub fn hash(self) -> u64 {
        self.0
    }

    /// A packet, or a hint without bytes, reached `to`.
    pub(in crate::mesh::sim) fn delivered(&mut self, at: Duration, to: SocketAddr, payload: &[u8]) {
        self.add(format!("{} {to}", at.as_nanos()).as_bytes());
        self.add(payload);
    }

    /// Node `by` reported `event`.
    pub(super) fn reported(&mut self, at: Duration, by: usize, event: &Event) {
        self.add(format!("{} {by} {event:?}", at.as_nanos()).as_bytes());
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }
}
