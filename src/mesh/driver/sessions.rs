//! Sessions as the request path sees them: read without a lock, written through the driver.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::mesh::{
    driver::handle::Command,
    stores::{Session, SessionKey, WorkerId},
};

/// Parts of the table. A change copies one of them: 64 entries when the table is full.
const PARTS: usize = 1024;

/// The sessions that this node knows of; the driver writes, everybody reads. Bounded as the store is, by
/// [`SESSIONS_MAX`](crate::mesh::stores::SESSIONS_MAX) and [`RESPONSES_MAX`](crate::mesh::stores::RESPONSES_MAX).
#[derive(Debug)]
pub struct Table {
    parts: Box<[ArcSwap<HashMap<SessionKey, Session>>]>,
}

impl Default for Table {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| ArcSwap::default()).collect() }
    }
}

impl Table {
    fn part(&self, key: SessionKey) -> &ArcSwap<HashMap<SessionKey, Session>> {
        &self.parts[key.to_bits() as usize % PARTS]
    }

    /// Who holds a session.
    #[must_use]
    pub fn get(&self, key: SessionKey) -> Option<Session> {
        self.part(key).load().get(&key).copied()
    }

    /// Takes over what the store says of a session. For one caller at a time.
    pub(super) fn set(&self, key: SessionKey, session: Option<Session>) {
        let part = self.part(key);
        let mut entries = HashMap::clone(&part.load());
        match session {
            Some(session) => drop(entries.insert(key, session)),
            None => drop(entries.remove(&key)),
        }
        part.store(Arc::new(entries));
    }

    /// Takes over everything that the store knows.
    pub(super) fn replace(&self, sessions: impl Iterator<Item = (SessionKey, Session)>) {
        let mut parts: Vec<HashMap<_, _>> = (0..PARTS).map(|_| HashMap::new()).collect();
        for (key, session) in sessions {
            parts[key.to_bits() as usize % PARTS].insert(key, session);
        }
        self.parts.iter().zip(parts).for_each(|(part, entries)| part.store(Arc::new(entries)));
    }
}

/// Which worker holds which session, for the request path: reading waits for nothing, writing never.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    table: Arc<Table>,
    /// None: the table is on its own, without a store behind it.
    commands: Option<mpsc::Sender<Command>>,
}

impl Sessions {
    pub(super) fn new(table: Arc<Table>, commands: mpsc::Sender<Command>) -> Self {
        Self { table, commands: Some(commands) }
    }

    /// Who holds a session, as far as this node knows.
    #[must_use]
    pub fn get(&self, key: SessionKey) -> Option<Session> {
        self.table.get(key)
    }

    /// Says that a worker holds a session, here and everywhere; `known` is what [`get`](Self::get) said of it. Nothing is
    /// sent when that is so already, until it is due. A word that finds the driver's queue full is lost: the session's
    /// next request says it again.
    pub fn hold(&self, key: SessionKey, worker: &WorkerId, known: Option<Session>) {
        let (worker, wall_ms) = (worker.number(), unix_ms());
        if known.is_some_and(|known| known.worker == worker && !known.is_due(wall_ms)) {
            return;
        }
        match &self.commands {
            Some(commands) => {
                if commands.try_send(Command::HoldSession(key, worker)).is_err() {
                    tracing::debug!("session not told: the mesh is busy");
                }
            }
            None => self.table.set(key, Some(Session { worker, renewed_ms: wall_ms })),
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_the_store() {
        let table = Table::default();
        let session = |worker| Session { worker, renewed_ms: 0 };
        let key = SessionKey::of_response;
        table.set(key("a"), Some(session(1)));
        table.set(key("b"), Some(session(2)));
        table.set(key("a"), Some(session(3)));
        assert_eq!((table.get(key("a")), table.get(key("b"))), (Some(session(3)), Some(session(2))));
        table.set(key("b"), None);
        assert_eq!((table.get(key("b")), table.get(key("c"))), (None, None));
        table.replace([(key("c"), session(4))].into_iter());
        assert_eq!((table.get(key("a")), table.get(key("c"))), (None, Some(session(4))));
    }

    #[tokio::test]
    async fn what_is_known_is_not_said_again_and_a_full_queue_holds_nobody_up() {
        let (commands, mut inbox) = mpsc::channel(1);
        let sessions = Sessions::new(Arc::default(), commands);
        let (key, worker) = (SessionKey::of_response("a"), WorkerId::of_url("http://w"));
        let known = Session { worker: worker.number(), renewed_ms: unix_ms() };
        sessions.hold(key, &worker, Some(known));
        assert!(inbox.try_recv().is_err(), "known");
        for stale in [None, Some(Session { worker: 1, ..known }), Some(Session { renewed_ms: 0, ..known })] {
            sessions.hold(key, &worker, stale);
            sessions.hold(key, &worker, stale);
            assert!(matches!(inbox.try_recv(), Ok(Command::HoldSession(told, _)) if told == key), "{stale:?}");
            assert!(inbox.try_recv().is_err(), "the second found no room");
        }
    }
}
