//! What nodes say to each other to coordinate, to and from bytes: the payload of a user message of membership.

mod rights;

use bytes::Bytes;
use prost::Message as _;
use smg_proto::coordination as pb;

use crate::mesh::{
    election::{
        message::{Body, Message, TERM_MAX},
        voters::{FIXED_TERM, VOTERS_MAX, Voters, VotersError, VotersId},
    },
    node::NodeNameError,
    quota::{self, Kind},
    wire::membership::USER_BYTES_MAX,
};

/// Changes of a set of voters stay below this.
const VERSION_MAX: u64 = 1 << 48;

/// Why bytes are no message for this node. Nothing was taken from them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not the wire format at all.
    #[error("not a protobuf message")]
    Format(#[from] prost::DecodeError),
    /// A name that no node can have.
    #[error("bad node name")]
    Name(#[from] NodeNameError),
    /// A set of voters that is empty or too large.
    #[error("bad set of voters")]
    Voters(#[from] VotersError),
    /// A field outside its documented range, or a kind that this build does not know.
    #[error("field {0} is missing or out of range")]
    Field(&'static str),
}

/// What may come.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Incoming {
    /// For the election.
    Election(Message),
    /// For the rights of that kind.
    Quota(Kind, quota::message::Message),
}

/// Encodes a message of the election.
#[must_use]
pub fn encode_election(message: &Message) -> Bytes {
    use pb::election_message::Body as Wire;
    let body = match &message.body {
        Body::Poll { set } => Wire::Poll(pb::Poll { set: Some(voters_to_wire(set)) }),
        Body::PollReply { granted } => Wire::PollReply(pb::PollReply { granted: *granted }),
        Body::Vote { set } => Wire::Vote(pb::Poll { set: Some(voters_to_wire(set)) }),
        Body::VoteReply { granted } => Wire::VoteReply(pb::PollReply { granted: *granted }),
        Body::Heartbeat { round } => Wire::Heartbeat(pb::Heartbeat { round: *round }),
        Body::HeartbeatReply { round, granted } => {
            Wire::HeartbeatReply(pb::HeartbeatReply { round: *round, granted: *granted })
        }
        Body::Resign => Wire::Resign(pb::Resign {}),
        Body::Query => Wire::Query(pb::Query {}),
        Body::Hint { leader, leader_term } => Wire::Hint(pb::Hint {
            leader: leader.as_ref().map(ToString::to_string).unwrap_or_default(),
            leader_term: *leader_term,
        }),
        Body::Set { set } => Wire::Set(voters_to_wire(set)),
    };
    let VotersId { term, version, hash } = message.voters;
    let voters = Some(pb::VotersId { term, version, hash });
    let election = pb::ElectionMessage { term: message.term, voters, body: Some(body) };
    pb::Envelope { kind: Some(pb::envelope::Kind::Election(election)) }.encode_to_vec().into()
}

/// Encodes a message about rights.
#[must_use]
pub fn encode_quota(kind: Kind, message: &quota::message::Message) -> Bytes {
    let message = rights::to_wire(message);
    let kind = match kind {
        Kind::Rates => pb::envelope::Kind::Quota(message),
        Kind::Slots => pb::envelope::Kind::Slots(message),
    };
    pb::Envelope { kind: Some(kind) }.encode_to_vec().into()
}

/// Decodes a message.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Incoming, DecodeError> {
    if bytes.len() > USER_BYTES_MAX {
        return Err(DecodeError::Field("size"));
    }
    match pb::Envelope::decode(bytes)?.kind {
        Some(pb::envelope::Kind::Election(election)) => Ok(Incoming::Election(election_from_wire(election)?)),
        Some(pb::envelope::Kind::Quota(message)) => Ok(Incoming::Quota(Kind::Rates, rights::from_wire(message)?)),
        Some(pb::envelope::Kind::Slots(message)) => Ok(Incoming::Quota(Kind::Slots, rights::from_wire(message)?)),
        None => Err(DecodeError::Field("kind")),
    }
}

fn election_from_wire(wire: pb::ElectionMessage) -> Result<Message, DecodeError> {
    use pb::election_message::Body as Wire;
    let pb::VotersId { term, version, hash } = wire.voters.unwrap_or_default();
    if term > FIXED_TERM || version >= VERSION_MAX {
        return Err(DecodeError::Field("voters"));
    }
    let set = |poll: pb::Poll| voters_from_wire(&poll.set.ok_or(DecodeError::Field("set"))?);
    let body = match wire.body.ok_or(DecodeError::Field("body"))? {
        Wire::Poll(poll) => Body::Poll { set: set(poll)? },
        Wire::PollReply(reply) => Body::PollReply { granted: reply.granted },
        Wire::Vote(poll) => Body::Vote { set: set(poll)? },
        Wire::VoteReply(reply) => Body::VoteReply { granted: reply.granted },
        Wire::Heartbeat(heartbeat) => Body::Heartbeat { round: heartbeat.round },
        Wire::HeartbeatReply(reply) => Body::HeartbeatReply { round: reply.round, granted: reply.granted },
        Wire::Resign(_) => Body::Resign,
        Wire::Query(_) => Body::Query,
        Wire::Hint(hint) => Body::Hint {
            leader: if hint.leader.is_empty() { None } else { Some(hint.leader.parse()?) },
            leader_term: in_range(hint.leader_term)?,
        },
        Wire::Set(set) => Body::Set { set: voters_from_wire(&set)? },
    };
    Ok(Message { term: in_range(wire.term)?, voters: VotersId { term, version, hash }, body })
}

fn in_range(term: u64) -> Result<u64, DecodeError> {
    if term <= TERM_MAX { Ok(term) } else { Err(DecodeError::Field("term")) }
}

fn voters_to_wire(set: &Voters) -> pb::Voters {
    let VotersId { term, version, .. } = set.id();
    pb::Voters { term, version, names: set.names().iter().map(ToString::to_string).collect() }
}

fn voters_from_wire(wire: &pb::Voters) -> Result<Voters, DecodeError> {
    if wire.term > FIXED_TERM || wire.version == 0 || wire.version >= VERSION_MAX || wire.names.len() > VOTERS_MAX {
        return Err(DecodeError::Field("voters"));
    }
    let names: Vec<_> = wire.names.iter().map(|name| name.parse()).collect::<Result<_, NodeNameError>>()?;
    Ok(Voters::new(wire.term, wire.version, names)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn set() -> Voters {
        Voters::new(3, 2, ["a", "b"].map(|name| name.parse().unwrap())).unwrap()
    }

    fn message(body: Body) -> Message {
        Message { term: 7, voters: set().id(), body }
    }

    #[test]
    fn messages_survive_the_wire() {
        for body in [
            Body::Poll { set: set() },
            Body::PollReply { granted: true },
            Body::Vote { set: Voters::fixed(set().names().to_vec()).unwrap() },
            Body::VoteReply { granted: false },
            Body::Heartbeat { round: 9 },
            Body::HeartbeatReply { round: 9, granted: true },
            Body::Resign,
            Body::Query,
            Body::Hint { leader: None, leader_term: 0 },
            Body::Hint { leader: Some("a".parse().unwrap()), leader_term: 7 },
            Body::Set { set: set() },
        ] {
            let sent = message(body);
            assert_eq!(decode(&encode_election(&sent)).unwrap(), Incoming::Election(sent));
        }
    }

    #[test]
    fn the_largest_set_fits_a_user_message() {
        let names = (0..VOTERS_MAX).map(|n| format!("{n:0>width$}", width = crate::mesh::node::NAME_BYTES_MAX));
        let set = Voters::new(1, 1, names.map(|name| name.parse().unwrap())).unwrap();
        let sent = message(Body::Vote { set });
        let bytes = encode_election(&sent);
        assert!(bytes.len() <= USER_BYTES_MAX, "{}", bytes.len());
        assert_eq!(decode(&bytes).unwrap(), Incoming::Election(sent));
    }

    #[test]
    fn bad_messages_are_refused_with_the_reason() {
        let edit = |body: Body, change: fn(&mut pb::ElectionMessage)| {
            let envelope = pb::Envelope::decode(encode_election(&message(body))).unwrap();
            let Some(pb::envelope::Kind::Election(mut election)) = envelope.kind else { unreachable!() };
            change(&mut election);
            pb::Envelope { kind: Some(pb::envelope::Kind::Election(election)) }.encode_to_vec()
        };
        let names = |election: &mut pb::ElectionMessage, names: Vec<String>| {
            election.body = Some(pb::election_message::Body::Set(pb::Voters { term: 1, version: 1, names }));
        };
        let set = |names_of: fn() -> Vec<String>| {
            let mut election = pb::ElectionMessage::default();
            names(&mut election, names_of());
            pb::Envelope { kind: Some(pb::envelope::Kind::Election(election)) }.encode_to_vec()
        };
        for (case, bytes, reason) in [
            ("empty", Vec::new(), "field kind is missing or out of range"),
            ("no body", edit(Body::Query, |e| e.body = None), "field body is missing or out of range"),
            ("term", edit(Body::Query, |e| e.term = u64::MAX), "field term is missing or out of range"),
            (
                "place of the set",
                edit(Body::Query, |e| e.voters.as_mut().unwrap().term = FIXED_TERM + 1),
                "field voters is missing or out of range",
            ),
            ("no voters", set(Vec::new), "bad set of voters"),
            (
                "too many voters",
                set(|| vec!["a".to_owned(); VOTERS_MAX + 1]),
                "field voters is missing or out of range",
            ),
            ("bad name", set(|| vec!["a b".to_owned()]), "bad node name"),
            ("junk", vec![0xff; 9], "not a protobuf message"),
            ("too large", vec![0; USER_BYTES_MAX + 1], "field size is missing or out of range"),
        ] {
            assert_eq!(decode(&bytes).unwrap_err().to_string(), reason, "{case}");
        }
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
