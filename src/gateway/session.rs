//! A request's session: which worker holds it, and telling the cluster when that changes.

use http::StatusCode;

use crate::{
    config::PolicyKind,
    gateway::{core::Core, view::Route, worker::Worker},
    mesh::stores::{Session, SessionKey},
};

/// The session of a request whose policy keeps sessions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    key: SessionKey,
    known: Option<Session>,
}

impl Held {
    /// The session of this routing key on this route; none when its policy keeps none.
    pub(crate) fn of(core: &Core, route: &Route, routing_key: Option<&[u8]>) -> Option<Self> {
        let routing_key = routing_key.filter(|_| route.policy == PolicyKind::Manual)?;
        let key = SessionKey::of_routing_key(&route.label, routing_key);
        Some(Self { key, known: core.shared().sessions.get(key) })
    }

    /// The worker that holds it.
    pub(crate) fn worker(&self) -> Option<u64> {
        self.known.map(|session| session.worker)
    }

    /// The worker answered: unless it failed, it holds the session from now on.
    pub(crate) fn on_answer(&self, core: &Core, worker: &Worker, status: StatusCode) {
        if !status.is_server_error() {
            core.shared().sessions.hold(self.key, &worker.id, self.known);
        }
    }
}
