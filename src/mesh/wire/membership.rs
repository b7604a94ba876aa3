//! SWIM packets to and from bytes.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use smg_proto::membership as pb;

use crate::mesh::{
    node::{NodeName, NodeNameError, NodeStatus},
    swim::message::{Body, Packet, Update},
};

mod put;

/// The protocol version that this build speaks.
pub const VERSION: u32 = 1;

/// Largest packet in bytes on a stream; a larger one is refused unread.
pub const PACKET_BYTES_MAX: usize = 4 << 20;

/// Updates in one packet at most.
pub const UPDATES_MAX: usize = 4096;

/// Epochs and incarnations stay below this, so that none can be made that no node can exceed.
pub const COUNTER_MAX: u64 = 1 << 48;

/// Accusers in one update at most.
pub const ACCUSERS_MAX: usize = 8;

/// Largest user message in bytes; one that makes the packet too large for a datagram goes by stream.
pub const USER_BYTES_MAX: usize = 4096;

const HOST_BYTES_MAX: usize = 262;
const ZONE_BYTES_MAX: usize = 64;

/// Why bytes are no packet for this node. Nothing was taken from them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not the wire format at all.
    #[error("not a protobuf message")]
    Format(#[from] prost::DecodeError),
    /// Another protocol version; an upgrade of the older side helps.
    #[error("protocol version {0}")]
    Version(u32),
    /// A different cluster's packet.
    #[error("foreign cluster label")]
    ForeignCluster,
    /// A name that no node can have.
    #[error("bad node name")]
    Name(#[from] NodeNameError),
    /// An address without 4 or 16 bytes of IP, with port 0, or unspecified.
    #[error("bad address")]
    Address,
    /// A field outside its documented range, or no body.
    #[error("field {0} is missing or out of range")]
    Field(&'static str),
}

/// Encodes `packet` under the label `cluster`.
#[must_use]
pub fn encode(cluster: &str, packet: &Packet) -> Bytes {
    let body = body_to_wire(&packet.body);
    let mut bytes = Vec::with_capacity(head_len(cluster, packet, &body) + updates_len(packet));
    put::number(1, VERSION.into(), &mut bytes);
    put::text(2, cluster, &mut bytes);
    put::text(3, packet.node.as_str(), &mut bytes);
    put::number(4, packet.epoch_ms, &mut bytes);
    put::number(5, packet.incarnation, &mut bytes);
    body.encode(&mut bytes);
    for update in &packet.updates {
        put::update(update, &mut bytes);
    }
    bytes.into()
}

/// Size in bytes of `packet` as [`encode`] would make it.
#[must_use]
pub fn packet_len(cluster: &str, packet: &Packet) -> usize {
    head_len(cluster, packet, &body_to_wire(&packet.body)) + updates_len(packet)
}

/// Size in bytes that `update` adds to a packet.
#[must_use]
pub fn update_len(update: &Update) -> usize {
    put::update_len(update)
}

/// The packet without its updates.
fn head_len(cluster: &str, packet: &Packet, body: &pb::datagram::Body) -> usize {
    put::number_len(VERSION.into())
        + put::text_len(cluster)
        + put::text_len(packet.node.as_str())
        + put::number_len(packet.epoch_ms)
        + put::number_len(packet.incarnation)
        + body.encoded_len()
}

fn updates_len(packet: &Packet) -> usize {
    packet.updates.iter().map(update_len).sum()
}

/// Decodes a packet of the cluster `cluster`.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(cluster: &str, bytes: &[u8]) -> Result<Packet, DecodeError> {
    if bytes.len() > PACKET_BYTES_MAX {
        return Err(DecodeError::Field("size"));
    }
    let wire = pb::Datagram::decode(bytes)?;
    if wire.version != VERSION {
        return Err(DecodeError::Version(wire.version));
    }
    if wire.cluster != cluster {
        return Err(DecodeError::ForeignCluster);
    }
    if wire.updates.len() > UPDATES_MAX {
        return Err(DecodeError::Field("updates"));
    }
    check_counters(wire.epoch_ms, wire.incarnation)?;
    Ok(Packet {
        node: wire.node.parse()?,
        epoch_ms: wire.epoch_ms,
        incarnation: wire.incarnation,
        body: body_from_wire(wire.body.ok_or(DecodeError::Field("body"))?)?,
        updates: wire.updates.into_iter().map(update_from_wire).collect::<Result<_, _>>()?,
    })
}

/// The sender's name as the packet says it, with everything else skipped unread; none when the bytes are no packet.
#[must_use]
pub fn sender(bytes: &[u8]) -> Option<String> {
    /// The one field of `Datagram` that is wanted, by its number.
    #[derive(prost::Message)]
    struct Sender {
        #[prost(string, tag = "3")]
        node: String,
    }
    Sender::decode(bytes).ok().map(|sender| sender.node)
}

fn body_to_wire(body: &Body) -> pb::datagram::Body {
    use pb::datagram::Body as Wire;
    match body {
        Body::Ping { seq, target, digest } => {
            Wire::Ping(pb::Ping { seq: *seq, target: name_to_wire(target.as_ref()), digest: *digest })
        }
        Body::Ack { seq, target, digest } => {
            Wire::Ack(pb::Ack { seq: *seq, target: name_to_wire(target.as_ref()), digest: *digest })
        }
        Body::PingReq { seq, target } => Wire::PingReq(pb::PingReq { seq: *seq, target: target.to_string() }),
        Body::Nack { seq } => Wire::Nack(pb::Nack { seq: *seq }),
        Body::Gossip { seq } => Wire::Gossip(pb::Gossip { seq: *seq }),
        Body::GossipAck { seq } => Wire::GossipAck(pb::GossipAck { seq: *seq }),
        Body::Sync { seq, reply_wanted } => Wire::Sync(pb::Sync { seq: *seq, reply_wanted: *reply_wanted }),
        Body::Claim { boot_ms, addr, nonce, echo } => {
            Wire::Claim(pb::Claim { boot_ms: *boot_ms, addr: Some(addr_to_wire(*addr)), nonce: *nonce, echo: *echo })
        }
        Body::User { payload } => Wire::User(pb::User { payload: payload.clone() }),
    }
}

fn body_from_wire(body: pb::datagram::Body) -> Result<Body, DecodeError> {
    use pb::datagram::Body as Wire;
    Ok(match body {
        Wire::Ping(ping) => Body::Ping { seq: ping.seq, target: name_from_wire(&ping.target)?, digest: ping.digest },
        Wire::Ack(ack) => Body::Ack { seq: ack.seq, target: name_from_wire(&ack.target)?, digest: ack.digest },
        Wire::PingReq(req) => Body::PingReq { seq: req.seq, target: req.target.parse()? },
        Wire::Nack(nack) => Body::Nack { seq: nack.seq },
        Wire::Gossip(gossip) => Body::Gossip { seq: gossip.seq },
        Wire::GossipAck(ack) => Body::GossipAck { seq: ack.seq },
        Wire::Sync(sync) => Body::Sync { seq: sync.seq, reply_wanted: sync.reply_wanted },
        Wire::Claim(claim) => Body::Claim {
            boot_ms: claim.boot_ms,
            addr: addr_from_wire(claim.addr)?,
            nonce: claim.nonce,
            echo: claim.echo,
        },
        Wire::User(user) if user.payload.is_empty() || user.payload.len() > USER_BYTES_MAX => {
            return Err(DecodeError::Field("payload"));
        }
        Wire::User(user) => Body::User { payload: user.payload },
    })
}

fn status_to_wire(status: NodeStatus) -> pb::Status {
    match status {
        NodeStatus::Init | NodeStatus::Alive => pb::Status::Alive,
        NodeStatus::Suspected => pb::Status::Suspected,
        NodeStatus::Down => pb::Status::Down,
        NodeStatus::Leaving => pb::Status::Leaving,
    }
}

fn update_from_wire(update: pb::Update) -> Result<Update, DecodeError> {
    check_counters(update.epoch_ms, update.incarnation)?;
    if update.host.len() > HOST_BYTES_MAX {
        return Err(DecodeError::Field("host"));
    }
    if update.zone.len() > ZONE_BYTES_MAX {
        return Err(DecodeError::Field("zone"));
    }
    if update.accusers.len() > ACCUSERS_MAX {
        return Err(DecodeError::Field("accusers"));
    }
    let status = match pb::Status::try_from(update.status) {
        Ok(pb::Status::Alive) => NodeStatus::Alive,
        Ok(pb::Status::Suspected) => NodeStatus::Suspected,
        Ok(pb::Status::Down) => NodeStatus::Down,
        Ok(pb::Status::Leaving) => NodeStatus::Leaving,
        Ok(pb::Status::Unspecified) | Err(_) => return Err(DecodeError::Field("status")),
    };
    Ok(Update {
        name: update.name.parse()?,
        status,
        epoch_ms: update.epoch_ms,
        incarnation: update.incarnation,
        addr: addr_from_wire(update.addr)?,
        host: update.host,
        zone: update.zone,
        age: Duration::from_secs(update.age_s.into()),
        accusers: update.accusers.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
    })
}

fn check_counters(epoch_ms: u64, incarnation: u64) -> Result<(), DecodeError> {
    if epoch_ms >= COUNTER_MAX {
        return Err(DecodeError::Field("epoch_ms"));
    }
    if incarnation >= COUNTER_MAX {
        return Err(DecodeError::Field("incarnation"));
    }
    Ok(())
}

fn name_to_wire(name: Option<&NodeName>) -> String {
    name.map(NodeName::to_string).unwrap_or_default()
}

fn name_from_wire(text: &str) -> Result<Option<NodeName>, DecodeError> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

fn addr_to_wire(addr: SocketAddr) -> pb::Address {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    pb::Address { ip: ip.into(), port: addr.port().into() }
}

fn addr_from_wire(addr: Option<pb::Address>) -> Result<SocketAddr, DecodeError> {
    let addr = addr.ok_or(DecodeError::Address)?;
    let ip: IpAddr = if let Ok(v4) = <[u8; 4]>::try_from(&*addr.ip) {
        v4.into()
    } else {
        <[u8; 16]>::try_from(&*addr.ip).map_err(|_| DecodeError::Address)?.into()
    };
    let port = u16::try_from(addr.port).map_err(|_| DecodeError::Address)?;
    if port == 0 || ip.is_unspecified() || ip.is_multicast() {
        return Err(DecodeError::Address);
    }
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn update() -> Update {
        Update {
            name: "node2".parse().unwrap(),
            status: NodeStatus::Suspected,
            epoch_ms: 1_700_000_000_000,
            incarnation: 3,
            addr: "[2001:db8::1]:39527".parse().unwrap(),
            host: "node2:39527".into(),
            zone: "b".into(),
            age: Duration::from_secs(2),
            accusers: vec!["node3".parse().unwrap()],
        }
    }

    fn packet(body: Body) -> Packet {
        Packet {
            node: "node1".parse().unwrap(),
            epoch_ms: 1_700_000_000_001,
            incarnation: 7,
            body,
            updates: vec![update()],
        }
    }

    #[test]
    fn packets_survive_the_wire() {
        let target: NodeName = "node2".parse().unwrap();
        let addr = "10.0.0.1:39527".parse().unwrap();
        for (case, body) in [
            ("ping", Body::Ping { seq: 1, target: Some(target.clone()), digest: 9 }),
            ("ack", Body::Ack { seq: 1, target: None, digest: 9 }),
            ("ping_req", Body::PingReq { seq: 2, target }),
            ("nack", Body::Nack { seq: 2 }),
            ("gossip", Body::Gossip { seq: 3 }),
            ("gossip_ack", Body::GossipAck { seq: 3 }),
            ("sync", Body::Sync { seq: 4, reply_wanted: true }),
            ("claim", Body::Claim { boot_ms: 5, addr, nonce: 6, echo: 7 }),
            ("user", Body::User { payload: Bytes::from_static(b"anything") }),
        ] {
            let sent = packet(body);
            let bytes = encode("smg", &sent);
            assert_eq!(bytes.len(), packet_len("smg", &sent), "{case}");
            assert_eq!(decode("smg", &bytes).unwrap(), sent, "{case}");
        }
    }

    #[test]
    fn updates_are_written_as_the_schema_says() {
        let few = Update {
            status: NodeStatus::Alive,
            incarnation: 0,
            addr: "10.0.0.1:1".parse().unwrap(),
            host: String::new(),
            zone: String::new(),
            age: Duration::ZERO,
            accusers: vec![],
            ..update()
        };
        let many = Update { accusers: vec!["node3".parse().unwrap(); ACCUSERS_MAX + 1], ..update() };
        for (case, update) in [("everything", update()), ("what may be absent is", few), ("too many accusers", many)] {
            let mut bytes = Vec::new();
            put::update(&update, &mut bytes);
            assert_eq!(bytes.len(), update_len(&update), "{case}");
            let read = pb::Datagram::decode(&*bytes).unwrap();
            assert_eq!((read.encoded_len(), read.updates.len()), (bytes.len(), 1), "{case}: as the library writes it");
            assert_eq!(read.encode_to_vec(), bytes, "{case}");
            assert_eq!(read.updates[0].accusers.len(), update.accusers.len().min(ACCUSERS_MAX), "{case}");
        }
    }

    #[test]
    fn update_len_is_what_an_update_adds() {
        let mut sent = packet(Body::Nack { seq: 1 });
        let with = packet_len("smg", &sent);
        sent.updates.clear();
        assert_eq!(with, packet_len("smg", &sent) + update_len(&update()));
    }

    #[test]
    fn bad_packets_are_refused_with_the_reason() {
        let good = pb::Datagram::decode(encode("smg", &packet(Body::Nack { seq: 1 }))).unwrap();
        let edit = |change: fn(&mut pb::Datagram)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad.encode_to_vec()
        };
        for (case, bytes, reason) in [
            ("version", edit(|d| d.version = 2), "protocol version 2"),
            ("cluster", edit(|d| d.cluster = "other".into()), "foreign cluster label"),
            ("name", edit(|d| d.node = "a b".into()), "bad node name"),
            ("epoch", edit(|d| d.epoch_ms = u64::MAX), "field epoch_ms is missing or out of range"),
            ("no body", edit(|d| d.body = None), "field body is missing or out of range"),
            ("status", edit(|d| d.updates[0].status = 77), "field status is missing or out of range"),
            ("host", edit(|d| d.updates[0].host = "h".repeat(263)), "field host is missing or out of range"),
            ("no address", edit(|d| d.updates[0].addr = None), "bad address"),
            ("port 0", edit(|d| d.updates[0].addr.as_mut().unwrap().port = 0), "bad address"),
            ("0.0.0.0", edit(|d| d.updates[0].addr.as_mut().unwrap().ip = vec![0; 4].into()), "bad address"),
        ] {
            assert_eq!(decode("smg", &bytes).unwrap_err().to_string(), reason, "{case}");
        }
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode("smg", &bytes);
        }
    }
}
