//! Routing frames to and from bytes. Every bound is checked here before anything else sees a value.

use bytes::Bytes;
use prost::Message as _;
use smg_proto::routing as pb;

use crate::mesh::{
    node::{NodeName, NodeStatus},
    routing::{DOUBTS_MAX, LOADS_MAX, MODELS_MAX, Message, NAMES_MAX, PLACEMENTS_MAX, Placement, Sight},
};

/// Largest frame in bytes.
pub const FRAME_BYTES_MAX: usize = 64 << 10;

const MODEL_BYTES_MAX: usize = 256;

/// Names below mark free slots and are no names.
const NAME_MIN: u64 = 2;

/// Why bytes are no frame. It is dropped; the pipe goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("routing frame of {0} bytes exceeds the limit")]
    TooLarge(usize),
    /// Not a message of this protocol.
    #[error("malformed routing frame")]
    Malformed(#[from] prost::DecodeError),
    /// Of a kind that this version does not know.
    #[error("routing frame of no known kind")]
    UnknownKind,
    /// A number, length or list is beyond its documented bound.
    #[error("{0} out of bounds")]
    OutOfBounds(&'static str),
}

/// The bytes of a message.
#[must_use]
pub fn encode(message: &Message) -> Bytes {
    let kind = match message {
        Message::Loads(loads) => {
            let (workers, in_flight) = loads.iter().copied().unzip();
            pb::frame::Kind::Loads(pb::Loads { workers, in_flight })
        }
        Message::Placements(placements) => pb::frame::Kind::Placements(placements_to_proto(placements)),
        Message::Ask => pb::frame::Kind::Ask(pb::Ask {}),
        Message::Sight(sight) => {
            let of = |(name, status): (&NodeName, &NodeStatus)| (name.to_string(), number(*status));
            let (doubted, statuses) = sight.doubted.iter().map(of).unzip();
            pb::frame::Kind::Sight(pb::Sight { alive: sight.alive, doubted, statuses })
        }
    };
    pb::Frame { kind: Some(kind) }.encode_to_vec().into()
}

fn placements_to_proto(placements: &[Placement]) -> pb::Placements {
    let mut models: Vec<String> = Vec::new();
    let placement = |placement: &Placement| {
        let known = models.iter().position(|model| **model == *placement.model);
        let model = known.unwrap_or_else(|| {
            models.push(placement.model.to_string());
            models.len() - 1
        });
        pb::Placement {
            model: model as u32,
            worker: placement.worker,
            generation: placement.generation.into(),
            age_ms: placement.age_ms,
            names: placement.names.clone(),
        }
    };
    let placements = placements.iter().map(placement).collect();
    pb::Placements { models, placements }
}

/// The message that the bytes are.
///
/// # Errors
/// When they are none, or a bound is exceeded.
pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    match pb::Frame::decode(bytes)?.kind.ok_or(DecodeError::UnknownKind)? {
        pb::frame::Kind::Loads(loads) => {
            if loads.workers.len() > LOADS_MAX || loads.workers.len() != loads.in_flight.len() {
                return Err(DecodeError::OutOfBounds("loads"));
            }
            Ok(Message::Loads(loads.workers.into_iter().zip(loads.in_flight).collect()))
        }
        pb::frame::Kind::Placements(placements) => placements_from_proto(placements),
        pb::frame::Kind::Ask(pb::Ask {}) => Ok(Message::Ask),
        pb::frame::Kind::Sight(sight) => sight_from_proto(sight),
    }
}

fn number(status: NodeStatus) -> u32 {
    NodeStatus::ALL.iter().position(|known| *known == status).unwrap_or_default() as u32
}

fn sight_from_proto(sight: pb::Sight) -> Result<Message, DecodeError> {
    let pb::Sight { alive, doubted, statuses } = sight;
    if doubted.len() > DOUBTS_MAX || doubted.len() != statuses.len() {
        return Err(DecodeError::OutOfBounds("doubted"));
    }
    let mut found = Sight { alive, ..Sight::default() };
    for (name, number) in doubted.into_iter().zip(statuses) {
        let name = name.parse::<NodeName>().map_err(|_| DecodeError::OutOfBounds("name"))?;
        let status = usize::try_from(number).ok().and_then(|number| NodeStatus::ALL.get(number).copied());
        let status = status.filter(|status| *status != NodeStatus::Alive).ok_or(DecodeError::OutOfBounds("status"))?;
        if found.doubted.insert(name, status).is_some() {
            return Err(DecodeError::OutOfBounds("doubted"));
        }
    }
    Ok(Message::Sight(found))
}

fn placements_from_proto(placements: pb::Placements) -> Result<Message, DecodeError> {
    let pb::Placements { models, placements } = placements;
    let is_model = |model: &String| (1..=MODEL_BYTES_MAX).contains(&model.len());
    if models.len() > MODELS_MAX || !models.iter().all(is_model) {
        return Err(DecodeError::OutOfBounds("models"));
    }
    if placements.len() > PLACEMENTS_MAX {
        return Err(DecodeError::OutOfBounds("placements"));
    }
    let models: Vec<std::sync::Arc<str>> = models.into_iter().map(Into::into).collect();
    let placement = |placement: pb::Placement| {
        let model = models.get(placement.model as usize).ok_or(DecodeError::OutOfBounds("model"))?;
        let is_bounded = (1..=NAMES_MAX).contains(&placement.names.len());
        if !is_bounded || placement.names.iter().any(|name| *name < NAME_MIN) {
            return Err(DecodeError::OutOfBounds("names"));
        }
        let generation = u8::try_from(placement.generation).map_err(|_| DecodeError::OutOfBounds("generation"))?;
        let pb::Placement { worker, age_ms, names, .. } = placement;
        Ok(Placement { model: model.clone(), worker, generation, age_ms, names })
    };
    Ok(Message::Placements(placements.into_iter().map(placement).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn placement(names: Vec<u64>) -> Placement {
        Placement { model: "m".into(), worker: 7, generation: 255, age_ms: 12, names }
    }

    #[test]
    fn messages_come_back() {
        let other = Placement { model: "n".into(), ..placement(vec![2, u64::MAX]) };
        for message in [
            Message::Ask,
            Message::Loads(vec![]),
            Message::Sight(Sight::default()),
            Message::Sight(Sight {
                alive: 3,
                doubted: [("a".parse().unwrap(), NodeStatus::Down), ("b".parse().unwrap(), NodeStatus::Init)].into(),
            }),
            Message::Loads(vec![(1, 2), (u32::MAX, 3)]),
            Message::Placements(vec![placement(vec![9]), other.clone(), placement(vec![5, 6]), other]),
        ] {
            assert_eq!(decode(&encode(&message)).unwrap(), message);
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let loads = |workers, in_flight| pb::frame::Kind::Loads(pb::Loads { workers, in_flight });
        let sight = |doubted: &[&str], statuses: &[u32]| {
            let doubted = doubted.iter().map(|&name| name.to_owned()).collect();
            pb::frame::Kind::Sight(pb::Sight { alive: 1, doubted, statuses: statuses.to_vec() })
        };
        let of = |models: &[&str], placement: pb::Placement| {
            let models = models.iter().map(|&model| model.to_owned()).collect();
            pb::frame::Kind::Placements(pb::Placements { models, placements: vec![placement] })
        };
        let good = pb::Placement { model: 0, worker: 1, generation: 0, age_ms: 0, names: vec![2] };
        let long = "m".repeat(257);
        for (case, kind) in [
            ("loads of different lengths", loads(vec![1], vec![])),
            ("too many loads", loads(vec![1; LOADS_MAX + 1], vec![1; LOADS_MAX + 1])),
            ("more doubted than statuses", sight(&["a"], &[])),
            ("doubted twice", sight(&["a", "a"], &[3, 3])),
            ("doubted and ALIVE", sight(&["a"], &[1])),
            ("no status", sight(&["a"], &[5])),
            ("no name of a node", sight(&[""], &[3])),
            ("no such model", of(&[], good.clone())),
            ("no name of a model", of(&[""], good.clone())),
            ("long name of a model", of(&[&long], good.clone())),
            ("too many models", of(&["m"; MODELS_MAX + 1], good.clone())),
            ("no names", of(&["m"], pb::Placement { names: vec![], ..good.clone() })),
            ("a mark instead of a name", of(&["m"], pb::Placement { names: vec![1], ..good.clone() })),
            ("too many names", of(&["m"], pb::Placement { names: vec![2; NAMES_MAX + 1], ..good.clone() })),
            ("generation", of(&["m"], pb::Placement { generation: 256, ..good.clone() })),
        ] {
            let bytes = pb::Frame { kind: Some(kind) }.encode_to_vec();
            assert!(decode(&bytes).is_err(), "{case}");
        }
        assert!(matches!(decode(&[]), Err(DecodeError::UnknownKind)));
        assert!(matches!(decode(&vec![0; FRAME_BYTES_MAX + 1]), Err(DecodeError::TooLarge(_))));
        assert!(decode(b"\xff\xff").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&message)).unwrap(), message);
            }
        }
    }
}
