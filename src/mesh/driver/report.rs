//! Events of the machines as logs and metrics. The machines say what happened; only this file decides how loud.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use smg_transport::{SendError, grpc::PipeError};
use tracing::{debug, trace, warn};

use crate::{
    mesh::{
        driver::{
            handle::{Leadership, View},
            rights::RightsView,
        },
        node::NodeStatus,
        replication::{FrameError, SyncEvent},
        stores::StoreEvent,
        swim::{DatagramError, Via},
    },
    telemetry::metrics::{ElectionSample, MeshSample, Metrics},
};

/// Refused peers are logged this often at most, by plane and reason.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Reasons that are no news: a connection that ends before it says anything is a port check, and packets of an earlier
/// connection come after each restart.
const COMMON: [&str; 2] = ["tls_closed", "unknown_connection"];

/// A change of the stores.
pub(super) fn store_event(event: &StoreEvent) {
    debug!(?event, "store changed");
}

/// A step of replication.
pub(super) fn sync_event(metrics: &Metrics, event: &SyncEvent) {
    trace!(?event, "replication");
    match event {
        SyncEvent::DeltaSent { .. } => metrics.mesh_sync_operation("delta_sent"),
        SyncEvent::DeltaReceived { .. } => metrics.mesh_sync_operation("delta_received"),
        SyncEvent::SnapshotSent { .. } => metrics.mesh_sync_operation("snapshot_sent"),
        SyncEvent::SnapshotReceived { .. } => metrics.mesh_sync_operation("snapshot_received"),
        SyncEvent::DigestSent { .. } => metrics.mesh_sync_operation("digest"),
        SyncEvent::Acked { latency, .. } => metrics.mesh_sync_latency(*latency),
        // Stamps that are ahead are told in `links`.
        SyncEvent::CaughtUp { .. } | SyncEvent::InSync { .. } | SyncEvent::ClockAhead { .. } => {}
        SyncEvent::EpochRaised { peer, epoch_ms } => {
            warn!(peer = %peer, epoch_ms, "our clock was set back since this node last ran; what it says goes on in a later epoch");
        }
        SyncEvent::ClockSkew { peer, skew_ms } => metrics.mesh_clock_skew(peer, *skew_ms),
    }
}

/// A membership packet that was refused.
pub(super) fn refused(metrics: &Metrics, from: SocketAddr, via: Via, error: &DatagramError) {
    let plane = plane(via);
    metrics.mesh_rejected(plane, error.reason());
    debug!(addr = %from, plane, reason = error.reason(), %error, "datagram dropped");
}

/// Refusals that a user should see: one a minute of each plane and reason is told, the rest is counted.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Both words come from closed sets.
    told: BTreeMap<(&'static str, &'static str), Instant>,
}

impl Refusals {
    /// Counts and tells what was refused before it could be read, or because its name is not that of its connection.
    pub(super) fn count(
        &mut self,
        now: Instant,
        metrics: &Metrics,
        (plane, reason): (&'static str, &'static str),
        from: SocketAddr,
        times: u64,
    ) {
        metrics.mesh_rejected_times(plane, reason, times);
        if COMMON.contains(&reason) {
            debug!(addr = %from, plane, reason, "mesh peer refused");
            return;
        }
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < REFUSAL_LOG_INTERVAL;
        if !self.told.get(&(plane, reason)).is_some_and(is_recent) {
            self.told.insert((plane, reason), now);
            warn!(addr = %from, plane, reason, "mesh peer refused; more of the kind within a minute are counted, not logged");
        }
    }
}

/// The plane by its label.
pub(super) fn plane(via: Via) -> &'static str {
    if via == Via::Datagram { "datagram" } else { "grpc" }
}

/// A replication frame that was refused.
pub(super) fn frame_refused(metrics: &Metrics, from: Option<&SocketAddr>, error: &FrameError) {
    metrics.mesh_rejected("grpc", error.reason());
    debug!(addr = ?from, reason = error.reason(), %error, "replication frame refused, pipe closed");
}

/// The end of a pipe: why it was refused, if that is why it ended. What the peer did wrong is counted, what the network did
/// is not.
pub(super) fn pipe_closed(addr: SocketAddr, dialed: bool, error: Option<&PipeError>) -> Option<&'static str> {
    let Some(error) = error else {
        debug!(addr = %addr, dialed, "pipe closed");
        return None;
    };
    debug!(addr = %addr, dialed, reason = error.reason(), %error, "pipe lost");
    let is_refusal = matches!(
        error,
        PipeError::BadHello
            | PipeError::UnknownVersion
            | PipeError::ForeignCluster
            | PipeError::WrongName
            | PipeError::Refused(_)
            | PipeError::TooManyPipes
            | PipeError::BadFrame
            | PipeError::FrameTooLarge
    );
    // One that we dialed and that is slow to greet is the network's; a stranger who never greets is not.
    let is_mute = !dialed && matches!(error, PipeError::HelloTimeout);
    (is_refusal || is_mute).then(|| error.reason())
}

/// A packet that this host did not send.
pub(super) fn datagram_lost(metrics: &Metrics, to: SocketAddr, error: &SendError) {
    let reason = match error {
        SendError::Full => "send_buffer_full",
        SendError::Refused => "peer_refused",
        _ => "send_failed",
    };
    metrics.mesh_rejected("datagram", reason);
    debug!(addr = %to, reason, %error, "datagram not sent");
}

/// What a scrape shows of the mesh.
pub(super) fn sample(view: &View, leadership: &Leadership, rights: &RightsView) -> MeshSample {
    if !view.mesh_enabled {
        return MeshSample::default();
    }
    let others = view.nodes.iter().filter(|other| other.name != view.node);
    let count = |status| (status, view.nodes.iter().filter(|node| node.status == status).count());
    MeshSample {
        peers: others.map(|other| (other.name.clone(), other.status == NodeStatus::Alive)).collect(),
        members: NodeStatus::ALL.map(count).into(),
        election: Some(ElectionSample {
            leads: leadership.leader_at(Instant::now()) == Some(&view.node),
            term: leadership.term,
            voters: leadership.voters.len(),
            has_quorum: leadership.has_quorum,
        }),
        rights: Some(rights.sample(Instant::now())),
    }
}
