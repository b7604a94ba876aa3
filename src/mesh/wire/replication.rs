//! Sync frames to and from bytes. Every bound is checked here before anything else sees a value.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use smg_proto::replication as pb;
use xxhash_rust::xxh3::xxh3_64;

use super::compression;
use crate::mesh::{
    crdt::{
        delta::{Body, Chunk, Cover, KeyState, Live},
        dot::{ACTORS_MAX, Actor, ActorId, COUNTER_MAX, Dot, Key},
    },
    hlc::Timestamp,
    replication::{
        clock::Reading,
        frame::{Ack, Frame, Kind, NamespaceAck},
    },
    stores::Namespace,
};

/// Largest frame in bytes: 4 MiB. Frames are about 256 KiB unless one key is larger.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// Largest payload of a dot in bytes: 128 KiB.
pub const PAYLOAD_BYTES_MAX: usize = 128 << 10;

/// Concurrent live dots of one key at most.
pub const KEY_DOTS_MAX: usize = 4096;

/// Dead dots by which one key was found at most.
pub const KEY_RECORDS_MAX: usize = 65_536;

/// Namespaces that one ack names at most, unknown ones included.
pub const NAMESPACES_MAX: usize = 64;

/// Why bytes are no frame. Nothing was applied; the pipe is to be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("frame of {0} bytes exceeds the limit")]
    TooLarge(usize),
    /// Not a message of this protocol.
    #[error("malformed frame")]
    Malformed(#[from] prost::DecodeError),
    /// A part is missing, or of a kind that this version does not know.
    #[error("frame lacks {0}")]
    Missing(&'static str),
    /// A number, length or list is beyond its documented bound.
    #[error("{0} out of bounds")]
    OutOfBounds(&'static str),
    /// A compressed chunk cannot be expanded to the size that it gives.
    #[error("chunk that cannot be expanded")]
    Compression,
    /// The chunk was damaged on its way.
    #[error("wrong checksum of a chunk")]
    Checksum,
}

/// The bytes of a frame.
#[must_use]
pub fn encode(frame: &Frame) -> Bytes {
    encode_for(frame, false)
}

/// The bytes of a frame for a peer that may or may not read compressed chunks.
#[must_use]
pub fn encode_for(frame: &Frame, reads_lz4: bool) -> Bytes {
    let kind = match &frame.kind {
        Kind::Ack(ack) => pb::frame::Kind::Ack(ack_to_proto(ack)),
        Kind::Body(namespace, body) if body.chunk.is_some() => {
            let body = body_to_proto(*namespace, body).encode_to_vec();
            let block = if reads_lz4 { compression::compress(&body) } else { None };
            let (body, raw_bytes) = block.unwrap_or_else(|| (body.into(), 0));
            pb::frame::Kind::Chunk(pb::Chunk { checksum: xxh3_64(&body), body, raw_bytes })
        }
        Kind::Body(namespace, body) => pb::frame::Kind::Delta(body_to_proto(*namespace, body)),
    };
    pb::Frame { seq: frame.seq, kind: Some(kind) }.encode_to_vec().into()
}

/// The frame that the bytes are.
///
/// # Errors
/// When they are none, or a bound is exceeded.
pub fn decode(bytes: &[u8]) -> Result<Frame, DecodeError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    let frame = pb::Frame::decode(bytes)?;
    let kind = match frame.kind.ok_or(DecodeError::Missing("a known kind"))? {
        pb::frame::Kind::Ack(ack) => Kind::Ack(ack_from_proto(&ack)?),
        pb::frame::Kind::Delta(body) => body_from_proto(body, false)?,
        pb::frame::Kind::Chunk(chunk) => {
            if xxh3_64(&chunk.body) != chunk.checksum {
                return Err(DecodeError::Checksum);
            }
            let body = match chunk.raw_bytes {
                0 => chunk.body,
                raw_bytes => compression::expand(&chunk.body, raw_bytes)?,
            };
            body_from_proto(pb::Body::decode(body)?, true)?
        }
    };
    Ok(Frame { seq: frame.seq, kind })
}

// --- to proto ---

fn ack_to_proto(ack: &Ack) -> pb::Ack {
    let namespaces = ack.namespaces.iter().map(namespace_ack_to_proto).collect();
    let clock_ms = ack.clock.map_or(0, |reading| reading.wall_ms.max(1));
    let held_us = ack.clock.map_or(0, |reading| u32::try_from(reading.held.as_micros()).unwrap_or(u32::MAX));
    pb::Ack { received: ack.received, grant: ack.grant, namespaces, lz4: ack.reads_lz4, clock_ms, held_us }
}

fn namespace_ack_to_proto(ack: &NamespaceAck) -> pb::NamespaceAck {
    let base = ack.resume.as_ref().map_or(&[][..], |(_, base)| base.as_slice());
    let mut actors = Vec::new();
    let mut number = |(actor, counter): &(Actor, u64)| {
        actors.push(actor_to_proto(actor));
        pb::Counter { actor: u32::try_from(actors.len() - 1).unwrap_or(u32::MAX), counter: *counter }
    };
    let seen = ack.seen.iter().map(&mut number).collect();
    let resume_base = base.iter().map(&mut number).collect();
    let resume_from = ack.resume.as_ref().map(|(from, _)| from.clone()).unwrap_or_default();
    pb::NamespaceAck {
        namespace: namespace_to_proto(ack.namespace),
        actors,
        seen,
        root: ack.root,
        guarded: ack.guarded,
        is_receiving: ack.is_receiving,
        resume_from,
        resume_base,
    }
}

fn body_to_proto(namespace: Namespace, body: &Body) -> pb::Body {
    let cover = |cover: &Cover| pb::Cover { actor: cover.actor.0, from: cover.from, to: cover.to };
    let chunk = body.chunk.as_ref();
    pb::Body {
        namespace: namespace_to_proto(namespace),
        actors: body.actors.iter().map(actor_to_proto).collect(),
        context: counters_to_proto(&body.context),
        keys: body.keys.iter().map(key_to_proto).collect(),
        covers: body.covers.iter().map(cover).collect(),
        complete: body.complete,
        guard: chunk.map(|chunk| counters_to_proto(&chunk.guard)).unwrap_or_default(),
        base: chunk.map(|chunk| counters_to_proto(&chunk.base)).unwrap_or_default(),
        from: chunk.map(|chunk| Bytes::copy_from_slice(&chunk.from)).unwrap_or_default(),
        to: chunk.and_then(|chunk| chunk.to.as_deref()).map(Bytes::copy_from_slice).unwrap_or_default(),
    }
}

pub(super) fn key_to_proto(state: &KeyState) -> pb::KeyState {
    let live = |live: &Live| pb::Live {
        actor: live.dot.actor.0,
        counter: live.dot.counter,
        stamp: live.stamp.to_bits(),
        payload: Bytes::copy_from_slice(&live.payload),
    };
    pb::KeyState {
        key: Bytes::copy_from_slice(&state.key),
        live: state.live.iter().map(live).collect(),
        records: state.records.iter().map(|dot| pb::Counter { actor: dot.actor.0, counter: dot.counter }).collect(),
        guard: counters_to_proto(&state.guard),
    }
}

fn counters_to_proto(counters: &[(ActorId, u64)]) -> Vec<pb::Counter> {
    counters.iter().map(|(actor, counter)| pb::Counter { actor: actor.0, counter: *counter }).collect()
}

pub(super) fn actor_to_proto(actor: &Actor) -> pb::Actor {
    pb::Actor { node: actor.node.to_string(), boot_epoch_ms: actor.boot_epoch_ms }
}

fn namespace_to_proto(namespace: Namespace) -> i32 {
    match namespace {
        Namespace::Policies => pb::Namespace::Policies as i32,
        Namespace::Workers => pb::Namespace::Workers as i32,
        Namespace::Sessions => pb::Namespace::Sessions as i32,
        Namespace::Routing => pb::Namespace::Routing as i32,
    }
}

// --- from proto ---

fn ack_from_proto(ack: &pb::Ack) -> Result<Ack, DecodeError> {
    bounded("namespaces", ack.namespaces.len(), NAMESPACES_MAX)?;
    // A newer peer may know more namespaces. What it says of them means nothing here.
    let known = ack.namespaces.iter().filter_map(|told| Some((namespace_from_proto(told.namespace)?, told)));
    let namespaces =
        known.map(|(namespace, told)| namespace_ack_from_proto(namespace, told)).collect::<Result<_, _>>()?;
    let held = Duration::from_micros(ack.held_us.into());
    let clock = (ack.clock_ms > 0).then_some(Reading { wall_ms: ack.clock_ms, held });
    Ok(Ack { received: ack.received, grant: ack.grant, reads_lz4: ack.lz4, clock, namespaces })
}

fn namespace_ack_from_proto(namespace: Namespace, ack: &pb::NamespaceAck) -> Result<NamespaceAck, DecodeError> {
    bounded("actors", ack.actors.len(), 2 * ACTORS_MAX)?;
    bounded("resume key", ack.resume_from.len(), KEY_BYTES_MAX + 1)?;
    let actors = ack.actors.iter().map(actor_from_proto).collect::<Result<Vec<_>, _>>()?;
    let named = |counters: &[pb::Counter]| {
        counters_from_proto(counters, actors.len())?
            .into_iter()
            .map(|(actor, counter)| Ok((actors[actor.index()].clone(), counter)))
            .collect::<Result<Vec<_>, DecodeError>>()
    };
    let resume =
        if ack.resume_from.is_empty() { None } else { Some((ack.resume_from.clone(), named(&ack.resume_base)?)) };
    let (guarded, is_receiving) = (ack.guarded, ack.is_receiving);
    Ok(NamespaceAck { namespace, seen: named(&ack.seen)?, root: ack.root, guarded, is_receiving, resume })
}

fn body_from_proto(body: pb::Body, is_chunk: bool) -> Result<Kind, DecodeError> {
    bounded("actors", body.actors.len(), ACTORS_MAX)?;
    bounded("covers", body.covers.len(), body.actors.len())?;
    bounded("range", body.from.len().max(body.to.len()), KEY_BYTES_MAX + 1)?;
    let actors = body.actors.iter().map(actor_from_proto).collect::<Result<Vec<_>, _>>()?;
    let count = actors.len();
    let chunk = is_chunk.then(|| {
        Ok::<_, DecodeError>(Chunk {
            from: Key::from(&*body.from),
            to: (!body.to.is_empty()).then(|| Key::from(&*body.to)),
            guard: counters_from_proto(&body.guard, count)?,
            base: counters_from_proto(&body.base, count)?,
        })
    });
    let cover = |cover: &pb::Cover| {
        let (actor, to) = counter_from_proto(cover.actor, cover.to, count)?;
        bounded("cover", usize::from(cover.from > to), 0)?;
        Ok::<_, DecodeError>(Cover { actor, from: cover.from, to })
    };
    let namespace = namespace_from_proto(body.namespace).ok_or(DecodeError::Missing("a known namespace"))?;
    let body = Body {
        context: counters_from_proto(&body.context, count)?,
        keys: body.keys.into_iter().map(|key| key_from_proto(&key, count)).collect::<Result<_, _>>()?,
        covers: body.covers.iter().map(cover).collect::<Result<_, _>>()?,
        chunk: chunk.transpose()?,
        complete: body.complete,
        actors,
    };
    Ok(Kind::Body(namespace, body))
}

pub(super) fn key_from_proto(state: &pb::KeyState, actors: usize) -> Result<KeyState, DecodeError> {
    bounded("key", state.key.len(), KEY_BYTES_MAX)?;
    bounded("live dots", state.live.len(), KEY_DOTS_MAX)?;
    bounded("records", state.records.len(), KEY_RECORDS_MAX)?;
    if state.key.is_empty() {
        return Err(DecodeError::Missing("a key"));
    }
    let live = |live: &pb::Live| {
        bounded("payload", live.payload.len(), PAYLOAD_BYTES_MAX)?;
        let (actor, counter) = counter_from_proto(live.actor, live.counter, actors)?;
        let stamp = Timestamp::from_bits(live.stamp);
        Ok::<_, DecodeError>(Live { dot: Dot { actor, counter }, stamp, payload: (&*live.payload).into() })
    };
    let records = counters_from_proto_unbounded(&state.records, actors)?;
    Ok(KeyState {
        key: Key::from(&*state.key),
        live: state.live.iter().map(live).collect::<Result<_, _>>()?,
        records: records.into_iter().map(|(actor, counter)| Dot { actor, counter }).collect(),
        guard: counters_from_proto(&state.guard, actors)?,
    })
}

pub(super) fn counters_from_proto(counters: &[pb::Counter], actors: usize) -> Result<Vec<(ActorId, u64)>, DecodeError> {
    bounded("counters", counters.len(), actors)?;
    counters_from_proto_unbounded(counters, actors)
}

fn counters_from_proto_unbounded(counters: &[pb::Counter], actors: usize) -> Result<Vec<(ActorId, u64)>, DecodeError> {
    counters.iter().map(|entry| counter_from_proto(entry.actor, entry.counter, actors)).collect()
}

fn counter_from_proto(actor: u32, counter: u64, actors: usize) -> Result<(ActorId, u64), DecodeError> {
    if actor as usize >= actors {
        return Err(DecodeError::OutOfBounds("actor"));
    }
    if counter == 0 || counter > COUNTER_MAX {
        return Err(DecodeError::OutOfBounds("counter"));
    }
    Ok((ActorId(actor), counter))
}

pub(super) fn actor_from_proto(actor: &pb::Actor) -> Result<Actor, DecodeError> {
    let node = actor.node.parse().map_err(|_| DecodeError::OutOfBounds("node name"))?;
    Ok(Actor { node, boot_epoch_ms: actor.boot_epoch_ms })
}

fn namespace_from_proto(number: i32) -> Option<Namespace> {
    Namespace::ALL.into_iter().find(|namespace| namespace_to_proto(*namespace) == number)
}

pub(super) fn bounded(what: &'static str, value: usize, max: usize) -> Result<(), DecodeError> {
    if value <= max { Ok(()) } else { Err(DecodeError::OutOfBounds(what)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn actor() -> Actor {
        Actor { node: "n1".parse().unwrap(), boot_epoch_ms: 5 }
    }

    fn body(is_chunk: bool) -> Body {
        let (id, key) = (ActorId(0), Key::from(&b"k"[..]));
        let live = Live { dot: Dot { actor: id, counter: 3 }, stamp: Timestamp::new(9, 1), payload: b"v"[..].into() };
        let state =
            KeyState { key, live: vec![live], records: vec![Dot { actor: id, counter: 2 }], guard: vec![(id, 3)] };
        let chunk = Chunk { from: Key::from(&b"a"[..]), to: None, guard: vec![(id, 4)], base: vec![(id, 3)] };
        Body {
            actors: vec![actor()],
            context: vec![(id, 3)],
            keys: vec![state],
            covers: if is_chunk { Vec::new() } else { vec![Cover { actor: id, from: 0, to: 3 }] },
            chunk: is_chunk.then_some(chunk),
            complete: true,
        }
    }

    fn frames() -> Vec<Frame> {
        let resume = Some((Bytes::from_static(b"r"), vec![(actor(), 2)]));
        let (guarded, is_receiving) = (true, true);
        let (namespace, seen) = (Namespace::Workers, vec![(actor(), 1)]);
        let told = NamespaceAck { namespace, seen, root: 7, guarded, is_receiving, resume };
        let clock = Some(Reading { wall_ms: u64::MAX, held: Duration::from_micros(u32::MAX.into()) });
        let ack = Ack { received: 4, grant: true, reads_lz4: true, clock, namespaces: vec![told] };
        let bodies = [body(false), body(true)].map(|body| Kind::Body(Namespace::Policies, body));
        bodies.into_iter().chain([Kind::Ack(ack)]).map(|kind| Frame { seq: 6, kind }).collect()
    }

    #[test]
    fn frames_survive_the_way_through_bytes() {
        for frame in frames() {
            assert_eq!(decode(&encode(&frame)).unwrap(), frame);
        }
    }

    #[test]
    fn an_ack_of_a_newer_version_is_read_without_its_unknown_namespaces() {
        let Kind::Ack(ack) = &frames()[2].kind else { panic!("the last frame is an ack") };
        let mut newer = ack_to_proto(ack);
        newer.namespaces.insert(
            0,
            pb::NamespaceAck { namespace: 40, resume_from: vec![1; 5000].into(), ..pb::NamespaceAck::default() },
        );
        let bytes = pb::Frame { seq: 6, kind: Some(pb::frame::Kind::Ack(newer)) }.encode_to_vec();
        assert_eq!(decode(&bytes).unwrap(), frames()[2]);
    }

    #[test]
    fn absurd_frames_are_refused() {
        let change = |change: fn(&mut pb::Body)| {
            let mut proto = body_to_proto(Namespace::Workers, &body(false));
            change(&mut proto);
            pb::Frame { seq: 0, kind: Some(pb::frame::Kind::Delta(proto)) }.encode_to_vec()
        };
        let mut damaged = encode(&frames()[1]).to_vec();
        let last = damaged.len() - 20;
        damaged[last] ^= 1;
        let ack = pb::Ack { namespaces: vec![pb::NamespaceAck::default(); NAMESPACES_MAX + 1], ..pb::Ack::default() };
        let many_namespaces = pb::Frame { seq: 0, kind: Some(pb::frame::Kind::Ack(ack)) }.encode_to_vec();
        for (case, bytes) in [
            ("empty", Vec::new()),
            ("too long", vec![0; FRAME_BYTES_MAX + 1]),
            ("counter of all ones", change(|body| body.keys[0].live[0].counter = u64::MAX)),
            ("counter zero", change(|body| body.context[0].counter = 0)),
            ("actor without a name", change(|body| body.keys[0].live[0].actor = 1)),
            ("a million counters", change(|body| body.context = vec![body.context[0]; 1_000_000])),
            ("more actors than may be", change(|body| body.actors = vec![body.actors[0].clone(); ACTORS_MAX + 1])),
            ("bad node name", change(|body| body.actors[0].node = "a/b".into())),
            ("no key", change(|body| body.keys[0].key = Bytes::new())),
            ("long key", change(|body| body.keys[0].key = vec![1; KEY_BYTES_MAX + 1].into())),
            ("large payload", change(|body| body.keys[0].live[0].payload = vec![1; PAYLOAD_BYTES_MAX + 1].into())),
            ("cover that runs backwards", change(|body| body.covers[0].from = 9)),
            ("unknown namespace", change(|body| body.namespace = 77)),
            ("no namespace", change(|body| body.namespace = 0)),
            ("too many namespaces", many_namespaces),
            ("a length of 4 GiB", vec![0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            ("damaged chunk", damaged),
        ] {
            assert!(decode(&bytes).is_err(), "{case}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn mutated_frames_never_panic_and_are_applied_whole_or_not(
            which in 0_usize..3,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = encode(&frames()[which]).to_vec();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(Frame { kind: Kind::Body(namespace, body), .. }) = decode(&bytes) {
                let mut stores = crate::mesh::stores::Stores::new("me".parse().unwrap(), 1);
                let mut peer = crate::mesh::crdt::context::VersionVector::default();
                let before = stores.map(namespace).canonical();
                if stores.apply(1, namespace, &mut peer, body).is_err() {
                    prop_assert_eq!(stores.map(namespace).canonical(), before);
                }
            }
        }
    }
}
