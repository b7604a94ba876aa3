//! Messages about rights, to and from what `coordination.proto` says.

use smg_proto::coordination as pb;

use super::DecodeError;
use crate::mesh::quota::{
    message::{Ask, Grant, LIMITS_MAX, Message, Right, Want},
    share::{AMOUNT_MAX, LimitId, Share},
};

/// No lease is longer.
const LEASE_MS_MAX: u32 = 10_000;

pub(super) fn to_wire(message: &Message) -> pb::QuotaMessage {
    use pb::quota_message::Body;
    let body = match message {
        Message::Ask(ask) => Body::Ask(pb::Ask {
            reign: ask.reign,
            seq: ask.seq,
            held: ask.held,
            leaves: ask.leaves,
            wants: ask.wants.iter().map(want_to_wire).collect(),
        }),
        Message::Grant(grant) => Body::Grant(pb::Grant {
            reign: grant.reign,
            ask: grant.ask,
            seq: grant.seq,
            lease_ms: grant.lease_ms,
            rights: grant.rights.iter().map(right_to_wire).collect(),
        }),
    };
    pb::QuotaMessage { body: Some(body) }
}

pub(super) fn from_wire(wire: pb::QuotaMessage) -> Result<Message, DecodeError> {
    use pb::quota_message::Body;
    match wire.body.ok_or(DecodeError::Field("body"))? {
        Body::Ask(ask) => {
            let pb::Ask { reign, seq, held, leaves, wants } = ask;
            let wants = wants.iter().map(want_from_wire).collect::<Result<Vec<_>, _>>()?;
            are_distinct(wants.iter().map(|want| want.limit), "wants")?;
            Ok(Message::Ask(Ask { reign, seq, held, leaves, wants }))
        }
        Body::Grant(grant) => {
            let pb::Grant { reign, ask, seq, lease_ms, rights } = grant;
            if reign == 0 || lease_ms > LEASE_MS_MAX {
                return Err(DecodeError::Field(if reign == 0 { "reign" } else { "lease_ms" }));
            }
            let rights = rights.iter().map(right_from_wire).collect::<Result<Vec<_>, _>>()?;
            are_distinct(rights.iter().map(|right| right.limit), "rights")?;
            Ok(Message::Grant(Grant { reign, ask, seq, lease_ms, rights }))
        }
    }
}

/// Few, and each once.
fn are_distinct(limits: impl Iterator<Item = LimitId>, field: &'static str) -> Result<(), DecodeError> {
    let mut limits: Vec<LimitId> = limits.collect();
    let count = limits.len();
    limits.sort_unstable();
    limits.dedup();
    if count <= LIMITS_MAX && limits.len() == count { Ok(()) } else { Err(DecodeError::Field(field)) }
}

fn want_to_wire(want: &Want) -> pb::Want {
    let held = Some(share_to_wire(want.held));
    pb::Want { limit: want.limit, demand: want.demand, given: want.given, held }
}

fn want_from_wire(wire: &pb::Want) -> Result<Want, DecodeError> {
    Ok(Want {
        limit: wire.limit,
        demand: amount(wire.demand, "demand")?,
        given: amount(wire.given, "given")?,
        held: share_from_wire(wire.held.unwrap_or_default())?,
    })
}

fn right_to_wire(right: &Right) -> pb::Right {
    pb::Right { limit: right.limit, share: Some(share_to_wire(right.share)), credit: right.credit }
}

fn right_from_wire(wire: &pb::Right) -> Result<Right, DecodeError> {
    Ok(Right {
        limit: wire.limit,
        share: share_from_wire(wire.share.unwrap_or_default())?,
        credit: amount(wire.credit, "credit")?,
    })
}

fn share_to_wire(share: Share) -> pb::RightsShare {
    pb::RightsShare { rate: share.rate, burst: share.burst }
}

fn share_from_wire(wire: pb::RightsShare) -> Result<Share, DecodeError> {
    Ok(Share { rate: amount(wire.rate, "rate")?, burst: amount(wire.burst, "burst")? })
}

fn amount(amount: u64, field: &'static str) -> Result<u64, DecodeError> {
    if amount <= AMOUNT_MAX { Ok(amount) } else { Err(DecodeError::Field(field)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message as _;

    use super::*;
    use crate::mesh::quota::Kind;
    use crate::mesh::wire::{
        coordination::{Incoming, decode, encode_quota},
        membership::USER_BYTES_MAX,
    };

    fn largest_want(n: usize) -> Want {
        let all = Share { rate: AMOUNT_MAX, burst: AMOUNT_MAX };
        Want { limit: u64::MAX - n as u64, demand: AMOUNT_MAX, given: AMOUNT_MAX, held: all }
    }

    fn largest_ask(count: usize) -> Ask {
        let wants = (0..count).map(largest_want).collect();
        Ask { reign: u64::MAX, seq: u64::MAX, held: u64::MAX, leaves: true, wants }
    }

    fn grant() -> Grant {
        let right = Right { limit: 3, share: Share { rate: 5, burst: 6 }, credit: 7 };
        Grant { reign: 1, ask: 2, seq: 4, lease_ms: 405, rights: vec![right] }
    }

    #[test]
    fn messages_survive_the_wire_and_the_largest_fits() {
        let largest = Message::Ask(largest_ask(LIMITS_MAX));
        for sent in [Message::Ask(Ask::default()), Message::Grant(grant()), largest] {
            for kind in [Kind::Rates, Kind::Slots] {
                let bytes = encode_quota(kind, &sent);
                assert!(bytes.len() <= USER_BYTES_MAX, "{}", bytes.len());
                assert_eq!(decode(&bytes).unwrap(), Incoming::Quota(kind, sent.clone()));
            }
        }
    }

    #[test]
    fn bad_messages_are_refused_with_the_reason() {
        let twice = Ask { wants: vec![largest_want(0); 2], ..Ask::default() };
        let beyond = Want { demand: AMOUNT_MAX + 1, ..largest_want(0) };
        let beyond = Ask { wants: vec![beyond], ..Ask::default() };
        for (case, message, field) in [
            ("too many", Message::Ask(largest_ask(LIMITS_MAX + 1)), "wants"),
            ("twice the same", Message::Ask(twice), "wants"),
            ("too much", Message::Ask(beyond), "demand"),
            ("no reign", Message::Grant(Grant { reign: 0, ..grant() }), "reign"),
            ("too long", Message::Grant(Grant { lease_ms: LEASE_MS_MAX + 1, ..grant() }), "lease_ms"),
        ] {
            let reason = decode(&encode_quota(Kind::Rates, &message)).unwrap_err().to_string();
            assert_eq!(reason, format!("field {field} is missing or out of range"), "{case}");
        }
        let empty = pb::Envelope { kind: Some(pb::envelope::Kind::Quota(pb::QuotaMessage { body: None })) };
        assert!(decode(&empty.encode_to_vec()).is_err());
    }
}
