//! What `--mesh-data-dir` holds, to and from bytes. The bytes come from a disk, so they are trusted no more than those of
//! a peer.

use prost::Message as _;
use smg_proto::replication as pb;

use super::replication::{
    DecodeError, actor_from_proto, actor_to_proto, bounded, counters_from_proto, key_from_proto, key_to_proto,
};
use crate::mesh::crdt::{
    delta::KeyState,
    dot::{ACTORS_MAX, Actor, ActorId},
};

/// A key as it is saved. Actor numbers are indices into `actors`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SavedKey {
    /// The actors that the numbers mean.
    pub actors: Vec<Actor>,
    /// The key's live dots, and what was seen of it beyond the saved context of its namespace.
    pub state: KeyState,
}

/// The bytes of a saved key.
#[must_use]
pub fn encode_key(saved: &SavedKey) -> Vec<u8> {
    let actors = saved.actors.iter().map(actor_to_proto).collect();
    pb::SavedKey { actors, state: Some(key_to_proto(&saved.state)) }.encode_to_vec()
}

/// The saved key that the bytes are.
///
/// # Errors
/// When they are none, or a bound of the sync lane is exceeded.
pub fn decode_key(bytes: &[u8]) -> Result<SavedKey, DecodeError> {
    let saved = pb::SavedKey::decode(bytes)?;
    bounded("actors", saved.actors.len(), ACTORS_MAX)?;
    let actors = saved.actors.iter().map(actor_from_proto).collect::<Result<Vec<_>, _>>()?;
    let state = key_from_proto(&saved.state.ok_or(DecodeError::Missing("a key state"))?, actors.len())?;
    Ok(SavedKey { actors, state })
}

/// The bytes of a namespace's context.
#[must_use]
pub fn encode_context(seen: &[(Actor, u64)]) -> Vec<u8> {
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let counter =
        |(index, (_, counter)): (usize, &(Actor, u64))| pb::Counter { actor: number(index), counter: *counter };
    pb::SavedContext {
        actors: seen.iter().map(|(actor, _)| actor_to_proto(actor)).collect(),
        seen: seen.iter().enumerate().map(counter).collect(),
    }
    .encode_to_vec()
}

/// The context that the bytes are.
///
/// # Errors
/// When they are none, or a bound of the sync lane is exceeded.
pub fn decode_context(bytes: &[u8]) -> Result<Vec<(Actor, u64)>, DecodeError> {
    let saved = pb::SavedContext::decode(bytes)?;
    bounded("actors", saved.actors.len(), ACTORS_MAX)?;
    let actors = saved.actors.iter().map(actor_from_proto).collect::<Result<Vec<_>, _>>()?;
    let named = |(actor, counter): (ActorId, u64)| (actors[actor.index()].clone(), counter);
    Ok(counters_from_proto(&saved.seen, actors.len())?.into_iter().map(named).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::mesh::{
        crdt::{delta::Live, dot::Dot},
        hlc::Timestamp,
    };

    fn actor(name: &str) -> Actor {
        Actor { node: name.parse().unwrap(), boot_epoch_ms: 7 }
    }

    #[test]
    fn what_is_saved_reads_back() {
        let dot = Dot { actor: ActorId(1), counter: 3 };
        let live = vec![Live { dot, stamp: Timestamp::new(9, 1), payload: b"v"[..].into() }];
        let guard = vec![(ActorId(0), 5)];
        let state = KeyState { key: b"k"[..].into(), live, records: Vec::new(), guard };
        let saved = SavedKey { actors: vec![actor("a"), actor("b")], state };
        assert_eq!(decode_key(&encode_key(&saved)).unwrap(), saved);
        let seen = vec![(actor("a"), 1), (actor("b"), 1 << 48)];
        assert_eq!(decode_context(&encode_context(&seen)).unwrap(), seen);
        assert_eq!(decode_context(&encode_context(&[])).unwrap(), []);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let state =
            KeyState { key: b"k"[..].into(), live: Vec::new(), records: Vec::new(), guard: vec![(ActorId(1), 5)] };
        let beyond = SavedKey { actors: vec![actor("a")], state };
        assert!(matches!(decode_key(&encode_key(&beyond)), Err(DecodeError::OutOfBounds(_))));
        assert!(matches!(decode_key(b""), Err(DecodeError::Missing(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode_key(&bytes).is_ok(), decode_context(&bytes).is_ok());
        }
    }
}
