//! Sync frames to and from bytes. Every bound is checked here before anything else sees a value.

use bytes::Bytes;
use prost::Message as _;
use smg_proto::replication as pb;
use xxhash_rust::xxh3::xxh3_64;

use crate::mesh::{
    crdt::{
        delta::{Body, Chunk, Cover, KeyState, Live},
        dot::{ACTORS_MAX, Actor, ActorId, COUNTER_MAX, Dot, Key},
    },
    hlc::Timestamp,
    replication::frame::{Ack, Frame, Kind, NamespaceAck},
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
    /// The chunk was damaged on its way.
    #[error("wrong checksum of a chunk")]
    Checksum,
}

/// The bytes of a frame.
#[must_use]
pub fn encode(frame: &Frame) -> Bytes {
    let kind = match &frame.kind {
        Kind::Ack(ack) => pb::frame::Kind::Ack(ack_to_proto(ack)),
        Kind::Body(namespace, body) if body.chunk.is_some() => {
            let body = Bytes::from(body_to_proto(*namespace, body).encode_to_vec());
            pb::frame::Kind::Chunk(pb::Chunk { checksum: xxh3_64(&body), body })
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
        pb::frame::Kind::Ack(ack) => Kind::Ack(ack_from_proto(ack)?),
        pb::frame::Kind::Delta(body) => body_from_proto(body, false)?,
        pb::frame::Kind::Chunk(chunk) => {
            if xxh3_64(&chunk.body) != chunk.checksum {
                return Err(DecodeError::Checksum);
            }
            body_from_proto(pb::Body::decode(chunk.body)?, true)?
        }
    };
    Ok(Frame { seq: frame.seq, kind })
}

// --- to proto ---

fn ack_to_proto(ack: &Ack) -> pb::Ack {
    let namespaces = ack.namespaces.iter().map(namespace_ack_to_proto).collect();
    pb::Ack { received: ack.received, grant: ack.grant, namespaces }
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

fn key_to_proto(state: &KeyState) -> pb::KeyState {
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

fn actor_to_proto(actor: &Actor) -> pb::Actor {
    pb::Actor { node: actor.node.to_string(), boot_epoch_ms: actor.boot_epoch_ms }
}

fn namespace_to_proto(namespace: Namespace) -> i32 {
    match namespace {
        Namespace::Policies => pb::Namespace::Policies as i32,
        Namespace::Workers => pb::Namespace::Workers as i32,
    }
}

// --- from proto ---

fn ack_from_proto(ack: pb::Ack) -> Result<Ack, DecodeError> {
    bounded("namespaces", ack.namespaces.len(), Namespace::ALL.len())?;
    let namespaces = ack.namespaces.into_iter().map(namespace_ack_from_proto).collect::<Result<_, _>>()?;
    Ok(Ack { received: ack.received, grant: ack.grant, namespaces })
}

fn namespace_ack_from_proto(ack: pb::NamespaceAck) -> Result<NamespaceAck, DecodeError> {
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
    Ok(NamespaceAck {
        namespace: namespace_from_proto(ack.namespace)?,
        seen: named(&ack.seen)?,
        root: ack.root,
        resume,
    })
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
    let namespace = namespace_from_proto(body.namespace)?;
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

fn key_from_proto(state: &pb::KeyState, actors: usize) -> Result<KeyState, DecodeError> {
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

fn counters_from_proto(counters: &[pb::Counter], actors: usize) -> Result<Vec<(ActorId, u64)>, DecodeError> {
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

fn actor_from_proto(actor: &pb::Actor) -> Result<Actor, DecodeError> {
    let node = actor.node.parse().map_err(|_| DecodeError::OutOfBounds("node name"))?;
    Ok(Actor { node, boot_epoch_ms: actor.boot_epoch_ms })
}

fn namespace_from_proto(namespace: i32) -> Result<Namespace, DecodeError> {
    match pb::Namespace::try_from(namespace) {
        Ok(pb::Namespace::Policies) => Ok(Namespace::Policies),
        Ok(pb::Namespace::Workers) => Ok(Namespace::Workers),
        Ok(pb::Namespace::Unspecified) | Err(_) => Err(DecodeError::Missing("a known namespace")),
    }
}

fn bounded(what: &'static str, value: usize, max: usize) -> Result<(), DecodeError> {
    if value <= max { Ok(()) } else { Err(DecodeError::OutOfBounds(what)) }
}
