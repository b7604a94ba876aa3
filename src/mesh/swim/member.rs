//! Records of nodes, their order, and the list of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use foldhash::fast::FixedState;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    config::{FORGET_HEARSAY_AFTER, MEMBERS_MAX},
    message::Update,
    rtt::RttEstimate,
};
use crate::mesh::node::{NodeName, NodeStatus};

/// The unit in which ages travel: they are rounded down to it.
const AGE_UNIT: Duration = Duration::from_secs(1);

/// A map by name whose hasher has no random seed: equal runs are equal. Names come from the network, so somebody may
/// choose them to collide; what holds members has at most [`MEMBERS_MAX`] of them.
pub(super) type NameMap<V> = HashMap<NodeName, V, FixedState>;

/// How it is known that a node exists, the surest last.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Source {
    /// Somebody said so.
    Rumour,
    /// It was in the list of a member that was heard itself, or of a seed that was asked.
    List,
    /// A datagram in its name came from its address, or it answered a probe there.
    Heard,
}

/// A node as this one knows it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its status.
    pub status: NodeStatus,
    /// Its advertised address.
    pub addr: SocketAddr,
    /// The same for people, `host:port`.
    pub host: String,
    /// Its zone; empty when unknown.
    pub zone: String,
    /// Its membership epoch in unix milliseconds: the start of its process, or more (see `Event::EpochRaised`).
    pub boot_epoch_ms: u64,
    /// Its incarnation within the epoch.
    pub incarnation: u64,
    /// Since when it has this status, as far as this node knows.
    pub since: Instant,
    pub(super) source: Source,
    pub(super) rtt: RttEstimate,
    /// When a datagram of this process came from its address last.
    pub(super) heard_at: Option<Instant>,
    /// Refuted suspicions of the last minute, newest last; at most 8 are kept.
    pub(super) refuted_at: Vec<Instant>,
}

/// What orders two records of one node: epoch, then incarnation, then status (SWIM §4.2; the epoch is ours).
pub type Key = (u64, u64, u8);

/// The place of `status` in the order of records.
#[must_use]
pub fn rank(status: NodeStatus) -> u8 {
    match status {
        NodeStatus::Init | NodeStatus::Alive => 0,
        NodeStatus::Suspected => 1,
        NodeStatus::Down => 2,
        NodeStatus::Leaving => 3,
    }
}

impl Member {
    /// What orders this record among those of the same node.
    #[must_use]
    pub fn key(&self) -> Key {
        (self.boot_epoch_ms, self.incarnation, rank(self.status))
    }

    /// Whether it takes part: ALIVE or SUSPECTED (or INIT, of this node itself).
    #[must_use]
    pub fn is_live(&self) -> bool {
        rank(self.status) < rank(NodeStatus::Down)
    }

    /// Whether a datagram of this process may have come from its address after a verdict of that age. Ages travel in whole
    /// seconds, so the verdict may be older by one. Whoever is gone was silent for longer than that before it was given.
    pub(in crate::mesh) fn was_heard_since(&self, now: Instant, age: Duration) -> bool {
        self.heard_at.is_some_and(|at| now.saturating_duration_since(at) < age + AGE_UNIT)
    }

    /// Whether it has been ALIVE here since before a verdict of that age.
    pub(super) fn was_alive_since(&self, now: Instant, age: Duration) -> bool {
        self.status == NodeStatus::Alive && now.saturating_duration_since(self.since) >= age + AGE_UNIT
    }

    pub(super) fn from_update(update: &Update, now: Instant) -> Self {
        Self {
            name: update.name.clone(),
            status: update.status,
            addr: update.addr,
            host: update.host.clone(),
            zone: update.zone.clone(),
            boot_epoch_ms: update.epoch_ms,
            incarnation: update.incarnation,
            since: now.checked_sub(update.age).unwrap_or(now),
            source: Source::Rumour,
            rtt: RttEstimate::default(),
            heard_at: None,
            refuted_at: Vec::new(),
        }
    }

    pub(super) fn to_update(&self, now: Instant) -> Update {
        Update {
            name: self.name.clone(),
            status: if self.status == NodeStatus::Init { NodeStatus::Alive } else { self.status },
            epoch_ms: self.boot_epoch_ms,
            incarnation: self.incarnation,
            addr: self.addr,
            host: self.host.clone(),
            zone: self.zone.clone(),
            age: if self.is_live() { Duration::ZERO } else { now.saturating_duration_since(self.since) },
            accusers: Vec::new(),
        }
    }

    fn hash(&self) -> u64 {
        let seed = self.boot_epoch_ms.rotate_left(20) ^ self.incarnation;
        xxh3_64_with_seed(self.name.as_str().as_bytes(), seed)
    }
}

impl Update {
    /// What orders this record among those of the same node.
    #[must_use]
    pub fn key(&self) -> Key {
        (self.epoch_ms, self.incarnation, rank(self.status))
    }
}

/// What is kept of a forgotten member.
#[derive(Debug)]
struct Forgotten {
    last: Key,
    at: Instant,
    source: Source,
}

/// The members, with what is derived from them kept up to date, and the last records of forgotten ones.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// This node itself, which is never evicted or forgotten.
    me: Option<NodeName>,
    /// In the order of their arrival, but that the last one takes the place of one that goes.
    list: Vec<Member>,
    /// Places in `list`.
    places: NameMap<usize>,
    /// Names of the live ones, sorted.
    live: Vec<NodeName>,
    /// Names of the others, DOWN or LEAVING: looked through each round, when the live ones are not.
    gone: BTreeSet<NodeName>,
    /// Order-independent hash over the live ones.
    digest: u64,
    forgotten: BTreeMap<NodeName, Forgotten>,
}

impl Members {
    pub(super) fn of(me: Member, now: Instant) -> Self {
        let mut members = Self { me: Some(me.name.clone()), ..Self::default() };
        members.put(me, now);
        members
    }

    pub(super) fn get(&self, name: &NodeName) -> Option<&Member> {
        self.places.get(name).map(|place| &self.list[*place])
    }

    fn get_mut(&mut self, name: &NodeName) -> Option<&mut Member> {
        self.places.get(name).map(|place| &mut self.list[*place])
    }

    /// Members, and last records of forgotten ones.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.list.len(), self.forgotten.len())
    }

    pub(super) fn by_name(&self) -> Vec<&Member> {
        let mut members: Vec<_> = self.list.iter().collect();
        members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        members
    }

    pub(super) fn live(&self) -> &[NodeName] {
        &self.live
    }

    /// Those DOWN or LEAVING, by name.
    pub(super) fn gone(&self) -> impl Iterator<Item = &Member> {
        self.gone.iter().filter_map(|name| self.get(name))
    }

    pub(super) fn at(&self, addr: SocketAddr) -> Option<&Member> {
        self.list.iter().find(|member| member.addr == addr && member.is_live())
    }

    /// Hash over the live members, never 0.
    pub(super) fn digest(&self) -> u64 {
        self.digest | 1
    }

    /// The key below which nothing is believed of `name`: that of its record, or of the one it was forgotten with.
    pub(super) fn floor(&self, name: &NodeName) -> Option<Key> {
        let known = self.get(name).map(Member::key);
        known.or_else(|| self.forgotten.get(name).map(|gone| gone.last))
    }

    /// What the sender of `update` was forgotten with, if it was.
    pub(super) fn last_of_forgotten(&self, now: Instant, update: &Update) -> Option<Update> {
        let Forgotten { last: (epoch_ms, incarnation, rank), at, .. } = *self.forgotten.get(&update.name)?;
        let left = rank == self::rank(NodeStatus::Leaving);
        let status = if left { NodeStatus::Leaving } else { NodeStatus::Down };
        let age = now.saturating_duration_since(at);
        Some(Update { status, epoch_ms, incarnation, age, accusers: Vec::new(), ..update.clone() })
    }

    /// How many members are known by rumours alone.
    pub(super) fn hearsay(&self) -> usize {
        self.list.iter().filter(|member| member.source == Source::Rumour).count()
    }

    /// Notes how it is known that `name` exists, when that is surer than before.
    pub(super) fn vouch(&mut self, name: &NodeName, source: Source) {
        self.note(name, |member| member.source = member.source.max(source));
    }

    /// Puts a record in place; `false` when the list is full of live members.
    pub(super) fn put(&mut self, member: Member, now: Instant) -> bool {
        let Some(known) = self.places.get(&member.name).map(|place| &mut self.list[*place]) else {
            return self.add(member, now);
        };
        if known.is_live() && member.is_live() {
            // The usual case: nothing but the record changes.
            self.digest ^= known.hash() ^ member.hash();
            *known = member;
            return true;
        }
        let was_live = known.is_live();
        let before = std::mem::replace(known, member.clone());
        if was_live {
            self.unlist(&before);
        }
        self.enlist(&member);
        true
    }

    fn add(&mut self, member: Member, now: Instant) -> bool {
        if self.list.len() >= MEMBERS_MAX && !self.make_room(now) {
            return false;
        }
        self.forgotten.remove(&member.name);
        self.enlist(&member);
        self.places.insert(member.name.clone(), self.list.len());
        self.list.push(member);
        true
    }

    /// Changes what is not part of the order of records.
    pub(super) fn note(&mut self, name: &NodeName, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.get_mut(name) {
            change(member);
        }
    }

    /// Forgets members DOWN or LEAVING for their time, and records of forgotten ones after theirs.
    pub(super) fn forget(&mut self, now: Instant, down: Duration, left: Duration, keep: Duration) -> Vec<NodeName> {
        let over = |member: &Member| {
            if self.me.as_ref() == Some(&member.name) {
                return false;
            }
            let wait = match member.status {
                NodeStatus::Down if member.source < Source::Heard => down.min(FORGET_HEARSAY_AFTER),
                NodeStatus::Down => down,
                NodeStatus::Leaving => left,
                NodeStatus::Init | NodeStatus::Alive | NodeStatus::Suspected => return false,
            };
            now.saturating_duration_since(member.since) >= wait
        };
        let names: Vec<_> = self.gone().filter(|member| over(member)).map(|member| member.name.clone()).collect();
        for name in &names {
            self.drop_member(name, now);
        }
        self.forgotten.retain(|_, gone| now.saturating_duration_since(gone.at) < keep);
        names
    }

    fn make_room(&mut self, now: Instant) -> bool {
        let gone = self.gone().filter(|member| self.me.as_ref() != Some(&member.name));
        let worst = gone.min_by_key(|member| (member.source, member.since));
        let Some(oldest) = worst.map(|member| member.name.clone()) else { return false };
        self.drop_member(&oldest, now);
        true
    }

    fn drop_member(&mut self, name: &NodeName, now: Instant) {
        let Some(place) = self.places.remove(name) else { return };
        let member = self.list.swap_remove(place);
        if let Some(moved) = self.list.get(place) {
            self.places.insert(moved.name.clone(), place);
        }
        if member.is_live() {
            self.unlist(&member);
        }
        self.gone.remove(&member.name);
        if self.forgotten.len() >= MEMBERS_MAX {
            let worst = self.forgotten.iter().min_by_key(|(_, gone)| (gone.source, gone.at));
            worst.map(|(name, _)| name.clone()).map(|name| self.forgotten.remove(&name));
        }
        self.forgotten.insert(name.clone(), Forgotten { last: member.key(), at: now, source: member.source });
    }

    /// Adds a member to the derived values.
    fn enlist(&mut self, member: &Member) {
        if !member.is_live() {
            self.gone.insert(member.name.clone());
            return;
        }
        self.gone.remove(&member.name);
        self.digest ^= member.hash();
        if let Err(at) = self.live.binary_search(&member.name) {
            self.live.insert(at, member.name.clone());
        }
    }

    /// Takes a member out of the derived values.
    fn unlist(&mut self, member: &Member) {
        self.digest ^= member.hash();
        if let Ok(at) = self.live.binary_search(&member.name) {
            self.live.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn member(name: &str, status: NodeStatus, epoch: u64, incarnation: u64, now: Instant) -> Member {
        let update = Update {
            name: name.parse().unwrap(),
            status,
            epoch_ms: epoch,
            incarnation,
            addr: "10.0.0.1:1".parse().unwrap(),
            host: String::new(),
            zone: String::new(),
            age: Duration::ZERO,
            accusers: vec![],
        };
        Member::from_update(&update, now)
    }

    #[test]
    fn records_are_ordered_by_epoch_then_incarnation_then_status() {
        use NodeStatus::{Alive, Down, Leaving, Suspected};
        let now = Instant::now();
        let key = |status, epoch, incarnation| member("a", status, epoch, incarnation, now).key();
        for (case, newer, older) in [
            ("a restart beats everything", key(Alive, 2, 0), key(Down, 1, 9)),
            ("a refutation beats a verdict", key(Alive, 1, 2), key(Down, 1, 1)),
            ("a suspicion beats alive", key(Suspected, 1, 1), key(Alive, 1, 1)),
            ("a verdict beats a suspicion", key(Down, 1, 1), key(Suspected, 1, 1)),
            ("own leave beats a verdict", key(Leaving, 1, 1), key(Down, 1, 1)),
        ] {
            assert!(newer > older, "{case}");
        }
    }

    #[test]
    fn digest_depends_on_the_live_members_and_not_on_the_way_there() {
        let now = Instant::now();
        let mut left = Members::default();
        let mut right = Members::default();
        for name in ["a", "b", "c"] {
            left.put(member(name, NodeStatus::Alive, 1, 0, now), now);
        }
        for (name, status) in [("c", NodeStatus::Alive), ("d", NodeStatus::Alive), ("b", NodeStatus::Suspected)] {
            right.put(member(name, status, 1, 0, now), now);
        }
        right.put(member("a", NodeStatus::Alive, 1, 0, now), now);
        assert_ne!(left.digest(), right.digest());
        right.put(member("d", NodeStatus::Down, 1, 0, now), now);
        assert_eq!(left.digest(), right.digest());
        assert_eq!(left.live(), right.live());
    }

    #[test]
    fn forgotten_members_leave_their_last_record_as_a_floor() {
        let start = Instant::now();
        let minute = Duration::from_secs(60);
        let mut members = Members::default();
        members.put(member("a", NodeStatus::Down, 5, 3, start), start);
        members.put(member("b", NodeStatus::Alive, 5, 3, start), start);
        assert!(members.forget(start + minute / 2, minute, minute, 3 * minute).is_empty());
        let forgotten = members.forget(start + minute, minute, minute, 3 * minute);
        assert_eq!(forgotten, ["a".parse().unwrap()]);
        assert_eq!(members.floor(&"a".parse().unwrap()), Some((5, 3, 2)));
        members.forget(start + 5 * minute, minute, minute, 3 * minute);
        assert_eq!(members.floor(&"a".parse().unwrap()), None);
    }

    #[test]
    fn the_gone_ones_follow_every_change() {
        let now = Instant::now();
        let mut members = Members::default();
        let gone = |members: &Members| members.gone().map(|member| member.name.to_string()).collect::<Vec<_>>();
        for (name, status, expected) in [
            ("b", NodeStatus::Down, vec!["b"]),
            ("a", NodeStatus::Alive, vec!["b"]),
            ("a", NodeStatus::Leaving, vec!["a", "b"]),
            ("b", NodeStatus::Suspected, vec!["a"]),
            ("b", NodeStatus::Down, vec!["a", "b"]),
        ] {
            members.put(member(name, status, 1, 0, now), now);
            assert_eq!(gone(&members), expected, "after {name} became {status}");
        }
        let hour = Duration::from_secs(3600);
        members.forget(now + hour, hour, hour, hour);
        assert!(gone(&members).is_empty());
    }

    #[test]
    fn who_was_never_heard_is_forgotten_sooner() {
        let start = Instant::now();
        let hour = Duration::from_secs(3600);
        let mut members = Members::default();
        for name in ["heard", "listed", "rumoured"] {
            members.put(member(name, NodeStatus::Down, 5, 0, start), start);
        }
        members.vouch(&"heard".parse().unwrap(), Source::Heard);
        members.vouch(&"listed".parse().unwrap(), Source::List);
        assert_eq!(members.hearsay(), 1);
        assert!(members.forget(start + FORGET_HEARSAY_AFTER / 2, hour, hour, hour).is_empty());
        assert_eq!(members.forget(start + FORGET_HEARSAY_AFTER, hour, hour, hour).len(), 2);
        assert_eq!(members.forget(start + hour, hour, hour, hour), ["heard".parse().unwrap()]);
    }

    #[test]
    fn a_full_list_evicts_the_longest_gone_and_then_refuses() {
        let now = Instant::now();
        let mut members = Members::default();
        members.put(member("gone", NodeStatus::Down, 1, 0, now), now);
        for i in 1..MEMBERS_MAX {
            assert!(members.put(member(&format!("n{i}"), NodeStatus::Alive, 1, 0, now), now));
        }
        assert!(members.put(member("new", NodeStatus::Alive, 1, 0, now), now));
        assert!(members.get(&"gone".parse().unwrap()).is_none());
        assert!(!members.put(member("late", NodeStatus::Alive, 1, 0, now), now));
        assert_eq!(members.sizes().0, MEMBERS_MAX);
    }
}
