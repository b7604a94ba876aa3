//! Whether what others wrote has to be sent to a peer after all, since their writers seem not to deliver it.

use std::{collections::BTreeMap, time::Instant};

use crate::mesh::{
    crdt::{context::VersionVector, dot::ActorId, map::Map},
    replication::GRANT_FOR,
};

/// Actors of which a peer lacks something: up to where it has their dots, and since when no more. O(actors).
#[derive(Debug, Default)]
pub(super) struct Lags(BTreeMap<ActorId, (u64, Instant)>);

impl Lags {
    /// Looks at what the peer, which has or will have `peer`, lacks of what was here a sync interval ago, `mark`. True when
    /// something is lacking that some keys would make good, or of an actor of which nothing has come for [`GRANT_FOR`]: a
    /// snapshot is given that time, because on a busy machine everything is late, and snapshots would make it later.
    pub(super) fn are_left(&mut self, now: Instant, map: &Map, mark: &VersionVector, peer: &VersionVector) -> bool {
        let had = |actor: ActorId| map.actors().counter(peer, actor);
        let lacks = |actor: ActorId| mark.get(actor) > had(actor);
        self.0.retain(|actor, (counter, _)| lacks(*actor) && *counter == had(*actor));
        for (actor, _) in mark.iter().filter(|(actor, _)| lacks(*actor)) {
            self.0.entry(actor).or_insert((had(actor), now));
        }
        let is_cheap = map.actors().iter().all(|(_, actor)| had(actor) >= map.floor(actor));
        let is_stuck = |(_, since): &(u64, Instant)| now.saturating_duration_since(*since) >= GRANT_FOR;
        !self.0.is_empty() && (is_cheap || self.0.values().any(is_stuck))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::mesh::{
        crdt::{
            delta::{Body, Chunk, Cover, KeyState, Live},
            dot::{Actor, Dot, Key},
        },
        hlc::Timestamp,
    };

    /// A node that has ten operations of a writer, by a delta, or by a snapshot that leaves no record of what died.
    fn reader(by_snapshot: bool) -> (Map, ActorId) {
        let [reader, writer] = ["reader", "writer"].map(|name| Actor { node: name.parse().unwrap(), boot_epoch_ms: 1 });
        let (mut map, actor) = (Map::new(&reader), ActorId(0));
        let live = Live { dot: Dot { actor, counter: 10 }, stamp: Timestamp::ZERO, payload: b"v"[..].into() };
        let key = Key::from(&b"k"[..]);
        let chunk = Chunk { from: Key::from(&b""[..]), to: None, guard: Vec::new(), base: vec![(actor, 10)] };
        let body = Body {
            actors: vec![writer.clone()],
            context: vec![(actor, 10)],
            keys: vec![KeyState { key, live: vec![live], records: Vec::new(), guard: Vec::new() }],
            covers: if by_snapshot { Vec::new() } else { vec![Cover { actor, from: 0, to: 10 }] },
            chunk: by_snapshot.then_some(chunk),
            complete: true,
        };
        map.apply(&mut VersionVector::default(), body).unwrap();
        let id = map.actors().id(&writer).unwrap();
        (map, id)
    }

    #[test]
    fn a_snapshot_is_sent_for_what_does_not_come_at_all_and_some_keys_at_once() {
        let start = Instant::now();
        for (case, by_snapshot, steps) in [
            ("nothing is lacking", true, &[(0, 10, false), (9, 10, false)][..]),
            ("some keys", false, &[(0, 4, true), (1, 10, false)]),
            ("nothing comes", true, &[(0, 4, false), (4, 4, false), (5, 4, true), (6, 10, false)]),
            ("it comes slowly", true, &[(0, 4, false), (4, 6, false), (8, 6, false), (9, 6, true)]),
            ("it came in between", true, &[(0, 4, false), (4, 10, false), (5, 4, false)]),
        ] {
            let ((map, writer), mut lags) = (reader(by_snapshot), Lags::default());
            for (second, counter, expected) in steps {
                let mut peer = VersionVector::default();
                peer.raise(writer, *counter);
                let now = start + Duration::from_secs(*second);
                assert_eq!(lags.are_left(now, &map, map.seen(), &peer), *expected, "{case}, second {second}");
            }
        }
    }
}
