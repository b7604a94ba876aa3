//! The `sessions` namespace: which worker holds what a client will come back for.
//!
//! The key is a 64-bit hash of what the client names (a routing key within a model, or the id of a stored response), the
//! value the worker's id as a number. Neither gives a client's text back. Two names that share a hash share a worker.
//!
//! # Bounds
//!
//! An entry lives for [`SESSION_TTL_MS`] after it was last renewed, and one that is used is renewed once in
//! [`SESSION_RENEW_MS`], so that traffic follows the sessions that there are and not the requests. Of more than
//! [`SESSIONS_MAX`] routing keys or [`RESPONSES_MAX`] responses the ones renewed longest ago go; the two do not crowd each
//! other out. The writer of an entry removes it; when it does not, because it is gone, everybody else does a little later
//! ([`GRACE_MS`], [`SLACK`]), to the same effect.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Namespace, StoreEvent, Stores};
use crate::mesh::{crdt::lww_register, hlc::Timestamp, wire::state};

/// Sessions of routing keys that a cluster remembers at most. About 300 bytes each on every node.
pub const SESSIONS_MAX: usize = 65_536;

/// Stored responses whose worker a cluster remembers at most. Fewer: there is one for each request of that kind, most are
/// never asked for, and of one that was forgotten the workers can be asked.
pub const RESPONSES_MAX: usize = 16_384;

/// How long a session is remembered after it was last renewed: 4 h.
pub const SESSION_TTL_MS: u64 = 4 * 3600 * 1000;

/// A session in use is renewed when its entry is this old: 15 min.
pub const SESSION_RENEW_MS: u64 = 15 * 60 * 1000;

/// How much longer others wait before they remove what its writer did not: 1 min.
const GRACE_MS: u64 = 60 * 1000;

/// Beyond its bound by this part of it others remove what its writers did not: a sixteenth.
const SLACK: usize = 16;

/// Entries looked at after each write at most: more than one write adds.
const LOOKS_MAX: usize = 4;

/// Entries looked at by one call of [`Stores::expire_sessions`] at most.
const EXPIRE_LOOKS_MAX: usize = 8192;

/// The bit of a key that says that it is of a response.
const RESPONSE: u64 = 1 << 63;

/// What names a session: a hash.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionKey(u64);

impl SessionKey {
    /// The session of a routing key with a model; the same key with another model is another session.
    #[must_use]
    pub fn of_routing_key(model: &str, routing_key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(routing_key, xxh3_64_with_seed(model.as_bytes(), 1)) & !RESPONSE)
    }

    /// The holder of a stored response.
    #[must_use]
    pub fn of_response(id: &str) -> Self {
        Self(xxh3_64_with_seed(id.as_bytes(), 2) | RESPONSE)
    }

    /// The hash.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Whether it is of a response.
    fn is_of_response(self) -> bool {
        self.0 & RESPONSE != 0
    }

    fn bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    fn parse(key: &[u8]) -> Option<Self> {
        Some(Self(u64::from_be_bytes(key.try_into().ok()?)))
    }
}

/// Which worker holds a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Session {
    /// [`WorkerId::number`](super::WorkerId::number) of the worker.
    pub worker: u64,
    /// When the entry was written, in unix milliseconds by the writer's clock.
    pub renewed_ms: u64,
}

impl Session {
    /// Whether the entry is old enough to be written again. One from the future is, too: its clock was wrong.
    #[must_use]
    pub fn is_due(&self, wall_ms: u64) -> bool {
        wall_ms.abs_diff(self.renewed_ms) >= SESSION_RENEW_MS
    }
}

/// The live sessions of both kinds by age.
#[derive(Clone, Debug, Default)]
pub(super) struct Ages {
    sessions: Age,
    responses: Age,
}

impl Ages {
    fn of(&mut self, is_of_response: bool) -> &mut Age {
        if is_of_response { &mut self.responses } else { &mut self.sessions }
    }
}

/// Those of one kind.
#[derive(Clone, Debug, Default)]
struct Age {
    of: BTreeMap<u64, Timestamp>,
    oldest: BTreeSet<(Timestamp, u64)>,
}

impl Age {
    fn set(&mut self, key: SessionKey, stamp: Option<Timestamp>) {
        let before = match stamp {
            Some(stamp) => self.of.insert(key.0, stamp),
            None => self.of.remove(&key.0),
        };
        if let Some(before) = before {
            self.oldest.remove(&(before, key.0));
        }
        if let Some(stamp) = stamp {
            self.oldest.insert((stamp, key.0));
        }
    }
}

impl Stores {
    /// Says that a worker holds a session. Nothing is written when that is known and young enough.
    pub fn put_session(&mut self, wall_ms: u64, key: SessionKey, worker: u64) {
        if self.session(key).is_some_and(|known| known.worker == worker && !known.is_due(wall_ms)) {
            return;
        }
        self.write(Namespace::Sessions, wall_ms, &key.bytes(), &state::encode_session(worker));
        self.on_session_key(&key.bytes());
        self.evict(key.is_of_response(), LOOKS_MAX, wall_ms);
    }

    /// Which worker holds a session, as far as is known.
    #[must_use]
    pub fn session(&self, key: SessionKey) -> Option<Session> {
        let map = self.map(Namespace::Sessions);
        let winner = lww_register::read(map, &key.bytes())?;
        let worker = state::decode_session(winner.payload).ok()?;
        Some(Session { worker, renewed_ms: winner.stamp.ms() })
    }

    /// Every session, in the order of the keys.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionKey, Session)> {
        let keys = self.map(Namespace::Sessions).range_from(b"").filter_map(|(key, _)| SessionKey::parse(key));
        keys.filter_map(|key| Some((key, self.session(key)?)))
    }

    /// Removes what is too old or too many; to be called now and then.
    pub fn expire_sessions(&mut self, wall_ms: u64) {
        self.evict(false, EXPIRE_LOOKS_MAX, wall_ms);
        self.evict(true, EXPIRE_LOOKS_MAX, wall_ms);
    }

    /// A key of the namespace changed.
    pub(super) fn on_session_key(&mut self, key: &[u8]) {
        let Some(key) = SessionKey::parse(key) else { return };
        let map = self.map(Namespace::Sessions);
        let stamp = lww_register::read(map, &key.bytes()).map(|winner| winner.stamp);
        self.ages.of(key.is_of_response()).set(key, stamp);
        self.push_event(StoreEvent::SessionChanged(key));
    }

    /// Removes what is too old or too many of one kind, the oldest first, after a look at so many entries at most.
    fn evict(&mut self, is_of_response: bool, looks_max: usize, wall_ms: u64) {
        let max = if is_of_response { RESPONSES_MAX } else { SESSIONS_MAX };
        let mut from = (Timestamp::ZERO, 0);
        for _ in 0..looks_max {
            let age = self.ages.of(is_of_response);
            let Some(&(stamp, bits)) = age.oldest.range(from..).next() else { return };
            let (age_ms, live) = (wall_ms.saturating_sub(stamp.ms()), age.of.len());
            if live <= max && age_ms <= SESSION_TTL_MS {
                return;
            }
            from = (stamp, bits.saturating_add(1));
            let key = SessionKey(bits);
            let is_abandoned = live > max + max / SLACK || age_ms > SESSION_TTL_MS + GRACE_MS;
            if is_abandoned || self.wrote(key) {
                self.maps[Namespace::Sessions.index()].remove(&key.bytes());
                self.on_session_key(&key.bytes());
            }
        }
    }

    /// Whether this process wrote the entry.
    fn wrote(&self, key: SessionKey) -> bool {
        let map = self.map(Namespace::Sessions);
        lww_register::read(map, &key.bytes()).is_some_and(|winner| winner.dot.actor == map.own())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::mesh::crdt::{
        context::VersionVector,
        delta::{Body, Cover},
        dot::Actor,
    };

    const NOW: u64 = 1_700_000_000_000;

    fn key(n: usize) -> SessionKey {
        SessionKey::of_routing_key("m", &n.to_be_bytes())
    }

    fn stores(name: &str) -> Stores {
        Stores::new(name.parse().unwrap(), NOW)
    }

    /// Gives `to` all that `from` knows.
    fn send(from: &Stores, to: &mut Stores) {
        let map = from.map(Namespace::Sessions);
        let to_counter = map.seen().get(map.own());
        let body = Body {
            actors: vec![Actor { node: from.node.clone(), boot_epoch_ms: NOW }],
            context: vec![(map.own(), to_counter)],
            keys: map.range_from(b"").map(|(key, _)| map.key_state(key)).collect(),
            covers: vec![Cover { actor: map.own(), from: 0, to: to_counter }],
            ..Body::default()
        };
        to.apply(NOW, Namespace::Sessions, &mut VersionVector::default(), body).unwrap();
    }

    #[test]
    fn names_are_told_apart() {
        let all = [
            SessionKey::of_routing_key("m", b"k"),
            SessionKey::of_routing_key("n", b"k"),
            SessionKey::of_routing_key("m", b"l"),
            SessionKey::of_response("k"),
        ];
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_session_is_written_when_it_is_news_and_renewed_when_it_is_due() {
        let mut stores = stores("a");
        for (case, wall_ms, worker, is_written) in [
            ("new", NOW, 1, true),
            ("known", NOW + 1, 1, false),
            ("moved", NOW + 2, 2, true),
            ("young", NOW + 1 + SESSION_RENEW_MS, 2, false),
            ("due", NOW + 2 + SESSION_RENEW_MS, 2, true),
            ("far in the future", NOW, 2, true),
        ] {
            let before = stores.map(Namespace::Sessions).root();
            stores.put_session(wall_ms, key(1), worker);
            assert_eq!(stores.map(Namespace::Sessions).root() != before, is_written, "{case}");
            assert_eq!(stores.session(key(1)).unwrap().worker, worker, "{case}");
        }
        assert_eq!(stores.sessions().count(), 1);
    }

    #[test]
    fn the_oldest_of_a_kind_go_when_there_are_too_many() {
        let mut stores = stores("a");
        let response = |n: usize| SessionKey::of_response(&n.to_string());
        for n in 0..=SESSIONS_MAX {
            stores.put_session(NOW + n as u64, key(n), 1);
        }
        assert_eq!(stores.map(Namespace::Sessions).len(), SESSIONS_MAX);
        assert_eq!((stores.session(key(0)), stores.session(key(1)).is_some()), (None, true));
        for n in 0..=RESPONSES_MAX {
            stores.put_session(NOW + (SESSIONS_MAX + n) as u64, response(n), 1);
        }
        assert_eq!(stores.map(Namespace::Sessions).len(), SESSIONS_MAX + RESPONSES_MAX);
        assert_eq!((stores.session(response(0)), stores.session(response(1)).is_some()), (None, true));
        assert!(stores.session(key(1)).is_some(), "responses crowd out no session");
    }

    #[test]
    fn beyond_the_slack_what_dead_writers_left_goes_too() {
        let (mut dead, mut living) = (stores("a"), stores("b"));
        let response = |n: usize| SessionKey::of_response(&n.to_string());
        for n in 0..RESPONSES_MAX {
            dead.put_session(NOW + n as u64, response(n), 1);
        }
        send(&dead, &mut living);
        let later = NOW + RESPONSES_MAX as u64;
        for n in 0..RESPONSES_MAX / 4 {
            living.put_session(later + n as u64, response(RESPONSES_MAX + n), 1);
        }
        living.expire_sessions(later);
        let left = living.map(Namespace::Sessions).len();
        assert!((RESPONSES_MAX..=RESPONSES_MAX + RESPONSES_MAX / SLACK).contains(&left), "{left}");
        assert_eq!(living.session(response(0)), None);
    }

    #[test]
    fn what_was_not_renewed_goes_and_its_writer_need_not_live() {
        let (mut writer, mut other) = (stores("a"), stores("b"));
        writer.put_session(NOW, key(1), 1);
        writer.put_session(NOW + 10, key(2), 1);
        send(&writer, &mut other);
        for (case, wall_ms, of_writer, of_other) in [
            ("young", NOW + SESSION_TTL_MS, 2, 2),
            ("its writer removes it", NOW + 1 + SESSION_TTL_MS, 1, 2),
            ("others wait longer", NOW + GRACE_MS + SESSION_TTL_MS, 0, 2),
            ("but not for ever", NOW + 1 + GRACE_MS + SESSION_TTL_MS, 0, 1),
        ] {
            writer.expire_sessions(wall_ms);
            other.expire_sessions(wall_ms);
            let left = [&writer, &other].map(|stores| stores.map(Namespace::Sessions).len());
            assert_eq!(left, [of_writer, of_other], "{case}");
        }
    }

    #[test]
    fn changes_are_told_on_both_sides() {
        let (mut writer, mut other) = (stores("a"), stores("b"));
        writer.put_session(NOW, key(1), 7);
        send(&writer, &mut other);
        for stores in [&mut writer, &mut other] {
            assert_eq!(stores.poll_event(), Some(StoreEvent::SessionChanged(key(1))));
            assert_eq!(stores.session(key(1)), Some(Session { worker: 7, renewed_ms: NOW }));
        }
        writer.maps[Namespace::Sessions.index()].write(&[1, 2, 3], Timestamp::new(NOW, 0), b"x");
        assert_eq!(writer.sessions().count(), 1, "a key of a newer version is passed over");
    }
}
