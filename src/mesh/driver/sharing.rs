//! Routing hints on the pipes: out to the peers that this node dialed, in to whoever makes use of them.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use smg_transport::grpc::{Lane, PipeId, Streams};
use tokio::sync::mpsc;
use tracing::debug;

use crate::{
    mesh::{
        driver::sights::Sights,
        node::NodeName,
        routing::Message,
        swim::Swim,
        wire::routing::{self, DecodeError},
    },
    telemetry::metrics::Metrics,
};

/// Hints that wait to be made use of; further ones are lost.
pub(super) const SHARED_MAX: usize = 1024;

/// Who is at the far end of each open pipe, and where hints go.
#[derive(Debug)]
pub(super) struct Sharing {
    /// With whether this node dialed it: two nodes that dialed each other have two pipes, and each uses its own.
    pipes: BTreeMap<PipeId, (NodeName, bool)>,
    inbox: mpsc::Sender<(NodeName, Message)>,
    pub(super) sights: Sights,
    /// What is known of who sees whom has changed.
    changed: bool,
}

impl Sharing {
    pub(super) fn new(inbox: mpsc::Sender<(NodeName, Message)>) -> Self {
        Self { pipes: BTreeMap::new(), inbox, sights: Sights::default(), changed: false }
    }

    pub(super) fn opened(&mut self, now: Instant, pipe: PipeId, node: NodeName, dialed: bool) {
        self.sights.heeded(now);
        self.pipes.insert(pipe, (node, dialed));
    }

    pub(super) fn closed(&mut self, pipe: PipeId) {
        if let Some((node, false)) = self.pipes.remove(&pipe)
            && !self.pipes.values().any(|(other, dialed)| *other == node && !dialed)
        {
            self.changed |= self.sights.gone(&node);
        }
    }

    /// Says what this node sees, when that is due; whether something else is known of what others see.
    pub(super) fn settle(&mut self, now: Instant, streams: &Streams, swim: &Swim) -> bool {
        let members = swim.members().map(|member| (&member.name, member.status));
        if let Some(sight) = self.sights.take(now, members) {
            let is_lost = !self.send(streams, None, &routing::encode(&Message::Sight(sight)));
            if is_lost {
                self.sights.heeded(now);
            }
        }
        std::mem::take(&mut self.changed)
    }

    /// Sends a frame to one peer or to all. A pipe without room loses it; whether none did.
    pub(super) fn send(&self, streams: &Streams, to: Option<&NodeName>, frame: &Bytes) -> bool {
        let mut all = true;
        let is_meant = |node: &NodeName| to.is_none_or(|to| to == node);
        for (pipe, _) in self.pipes.iter().filter(|(_, (node, dialed))| *dialed && is_meant(node)) {
            if let Err(error) = streams.try_send(*pipe, Lane::Routing, frame.clone()) {
                debug!(%error, "routing hint lost on its pipe");
                all = false;
            }
        }
        all
    }

    /// Takes a frame in.
    pub(super) fn received(&mut self, metrics: &Metrics, pipe: PipeId, frame: &[u8]) {
        let Some((peer, _)) = self.pipes.get(&pipe) else { return };
        match routing::decode(frame) {
            Ok(Message::Sight(sight)) => self.changed |= self.sights.heard(peer, sight),
            // Later versions may say more.
            Err(DecodeError::UnknownKind) => debug!(peer = %peer, "routing frame of no known kind"),
            Ok(message) => {
                if self.inbox.try_send((peer.clone(), message)).is_err() {
                    debug!(peer = %peer, "routing hint lost: nobody takes them");
                }
            }
            Err(error) => {
                metrics.mesh_rejected("grpc", "bad_routing");
                debug!(peer = %peer, %error, "routing frame dropped");
            }
        }
    }
}
