//! The accepting side of a pipe: joins what comes, answers with acks.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    clock::Reading,
    frame::{Ack, NamespaceAck},
};
use crate::mesh::{
    crdt::{context::VersionVector, dot::Actor, map::Map},
    stores::{Namespace, Stores},
};

/// Frames are acked at the latest after this: 20 ms.
pub const ACK_DELAY: Duration = Duration::from_millis(20);

/// Frames are acked at the latest after this many.
pub const ACK_FRAMES: u32 = 64;

/// Frames are acked at the latest after this many bytes: 1 MiB, a quarter of what a snapshot may have on its way.
pub const ACK_BYTES: usize = 1 << 20;

/// A digest without news is sent at the latest after this many checks of half a sync interval each.
const QUIET_CHECKS_MAX: u32 = 32;

#[derive(Debug, Default)]
struct InNamespace {
    /// What the dialer has seen, as its bodies told.
    context: VersionVector,
    acked: VersionVector,
    acked_root: Option<u64>,
}

/// State of an accepted pipe: O(actors).
#[derive(Debug)]
pub(super) struct Inbound {
    received: u64,
    unacked: u32,
    unacked_bytes: usize,
    /// When the newest frame came, and our wall clock then.
    arrived: Option<(Instant, u64)>,
    acks: u64,
    granted: bool,
    grant_told: bool,
    pub(super) ack_due: Option<Instant>,
    pub(super) check_due: Instant,
    quiet: u32,
    quiet_limit: u32,
    namespaces: [InNamespace; Namespace::COUNT],
}

impl Inbound {
    /// The first ack is due at once: it is the digest from which the dialer starts.
    pub(super) fn new(now: Instant, check_every: Duration) -> Self {
        Self {
            received: 0,
            unacked: 0,
            unacked_bytes: 0,
            arrived: None,
            acks: 0,
            granted: false,
            grant_told: false,
            ack_due: Some(now),
            check_due: now + check_every,
            quiet: 0,
            quiet_limit: 2,
            namespaces: Default::default(),
        }
    }

    pub(super) fn grant(&mut self, now: Instant) {
        self.granted = true;
        self.ack_due = Some(now);
    }

    pub(super) fn expected_seq(&self) -> u64 {
        self.received
    }

    pub(super) fn context(&mut self, namespace: Namespace) -> &mut VersionVector {
        &mut self.namespaces[namespace.index()].context
    }

    /// Counts an applied body.
    pub(super) fn on_applied(&mut self, now: Instant, wall_ms: u64, frame_bytes: usize) {
        self.arrived = Some((now, wall_ms));
        self.received += 1;
        self.unacked += 1;
        self.unacked_bytes += frame_bytes;
        let due = if self.unacked >= ACK_FRAMES || self.unacked_bytes >= ACK_BYTES { now } else { now + ACK_DELAY };
        self.ack_due = Some(self.ack_due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Half-interval check: an ack is due when there is news, or after a silence that doubles each time.
    pub(super) fn on_check(&mut self, now: Instant, check_every: Duration, stores: &Stores) {
        self.check_due = now + check_every;
        for namespace in Namespace::ALL {
            let (map, told) = (stores.map(namespace), &mut self.namespaces[namespace.index()]);
            told.context.retain(|actor| map.actors().knows(actor));
        }
        let has_news = Namespace::ALL.iter().any(|namespace| {
            let (map, told) = (stores.map(*namespace), &self.namespaces[namespace.index()]);
            told.acked_root != Some(map.root()) || !told.acked.covers(map.seen())
        });
        self.quiet += 1;
        if has_news {
            self.quiet_limit = 2;
        } else if self.quiet >= self.quiet_limit {
            self.quiet_limit = (self.quiet_limit * 2).min(QUIET_CHECKS_MAX);
        } else {
            return;
        }
        self.quiet = 0;
        self.ack_due.get_or_insert(now);
    }

    pub(super) fn build_ack(&mut self, now: Instant, stores: &Stores) -> (u64, Ack) {
        let seq = self.acks;
        self.acks += 1;
        (self.unacked, self.unacked_bytes) = (0, 0);
        self.ack_due = None;
        let tells_grant = self.granted && !std::mem::replace(&mut self.grant_told, self.granted);
        let namespaces = Namespace::ALL.iter().map(|namespace| {
            let (map, told) = (stores.map(*namespace), &mut self.namespaces[namespace.index()]);
            let news = map.seen().beyond(&told.acked);
            told.acked_root = Some(map.root());
            told.acked = map.seen().clone();
            // Where a snapshot stopped is told with the grant, which is when the dialer may begin one.
            let (guarded, is_receiving) = (!map.guards().is_empty(), map.progress().is_some());
            let resume = if tells_grant { resume_of(map) } else { None };
            let (namespace, seen) = (*namespace, named(map, news.as_ref()));
            NamespaceAck { namespace, seen, root: map.root(), guarded, is_receiving, resume }
        });
        let namespaces = namespaces.collect();
        let clock = self.arrived.take().map(|(arrived, wall_ms)| {
            let held = now.saturating_duration_since(arrived);
            Reading { wall_ms, held }
        });
        (seq, Ack { received: self.received, grant: self.granted, reads_lz4: true, clock, namespaces })
    }
}

fn resume_of(map: &Map) -> Option<(Bytes, Vec<(Actor, u64)>)> {
    let progress = map.progress()?;
    Some((Bytes::copy_from_slice(&progress.until), named(map, Some(&progress.base))))
}

fn named(map: &Map, vector: Option<&VersionVector>) -> Vec<(Actor, u64)> {
    let counters = vector.into_iter().flat_map(VersionVector::iter);
    counters.map(|(actor, counter)| (map.actors().actor(actor).clone(), counter)).collect()
}
