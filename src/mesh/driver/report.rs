//! Events of the machines as logs and metrics. The machines say what happened; only this file decides how loud.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use smg_transport::{SendError, grpc::PipeError};
use tracing::{debug, trace, warn};

use crate::{
    mesh::{
        replication::{FrameError, SyncEvent},
        stores::StoreEvent,
        swim::{DatagramError, Via},
    },
    telemetry::metrics::Metrics,
};

/// Refused peers are logged this often at most.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

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
    let plane = if via == Via::Datagram { "datagram" } else { "grpc" };
    metrics.mesh_rejected(plane, error.reason());
    debug!(addr = %from, plane, reason = error.reason(), %error, "datagram dropped");
}

/// A packet whose sender's name is not that of its connection.
pub(super) fn wrong_name(metrics: &Metrics, from: SocketAddr, via: Via) {
    let plane = if via == Via::Datagram { "datagram" } else { "grpc" };
    metrics.mesh_rejected(plane, "wrong_name");
    debug!(addr = %from, plane, reason = "wrong_name", "packet in another's name dropped");
}

/// Peers that TLS refused: one a minute is told.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: Option<Instant>,
}

impl Refusals {
    pub(super) fn tell(&mut self, now: Instant, plane: &'static str, from: SocketAddr, reason: &'static str) {
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= REFUSAL_LOG_INTERVAL) {
            self.told = Some(now);
            warn!(addr = %from, plane, reason, "mesh peer refused by TLS; more within a minute are counted, not logged");
        }
    }
}

/// A replication frame that was refused.
pub(super) fn frame_refused(metrics: &Metrics, from: Option<&SocketAddr>, error: &FrameError) {
    metrics.mesh_rejected("grpc", error.reason());
    debug!(addr = ?from, reason = error.reason(), %error, "replication frame refused, pipe closed");
}

/// The end of a pipe. What the peer did wrong is counted; what the network did is not.
pub(super) fn pipe_closed(metrics: &Metrics, addr: SocketAddr, dialed: bool, error: Option<&PipeError>) {
    let Some(error) = error else { return debug!(addr = %addr, dialed, "pipe closed") };
    let refused = matches!(
        error,
        PipeError::BadHello
            | PipeError::UnknownVersion
            | PipeError::ForeignCluster
            | PipeError::WrongName
            | PipeError::TooManyPipes
            | PipeError::BadFrame
            | PipeError::FrameTooLarge
    );
    if refused {
        metrics.mesh_rejected("grpc", error.reason());
    }
    debug!(addr = %addr, dialed, reason = error.reason(), %error, "pipe lost");
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
