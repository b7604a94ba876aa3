//! What nodes say to each other, and how many bytes it takes.
//!
//! Bytes are those of the documented structures in MessagePack, where each record is a map from the names of its fields,
//! with the bytes of type, compound and checksum around them. Lists on a stream are counted as they are before
//! compression.

use std::sync::Arc;

use crate::mesh::node::NodeStatus;

/// A node, by its index.
pub type Peer = usize;

/// What one node claims of another: SWIM §4.2.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct News {
    pub(super) of: Peer,
    pub(super) incarnation: u32,
    /// ALIVE, SUSPECTED or DOWN.
    pub(super) status: NodeStatus,
    /// Who suspects it or declared it dead.
    pub(super) from: Peer,
}

/// One message; a datagram holds several.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Message {
    Ping {
        seq: u32,
    },
    Ack {
        seq: u32,
    },
    /// "Ping that one for me": SWIM §3.1.
    IndirectPing {
        seq: u32,
        target: Peer,
    },
    /// "I asked and heard nothing", so that the requester knows that it is heard itself: Lifeguard §IV.A.
    Nack {
        seq: u32,
    },
    News(News),
    /// All that a node knows, on a stream.
    List {
        is_answer: bool,
        list: Arc<[News]>,
    },
}

/// Type of a compound datagram and number of its parts.
pub(super) const COMPOUND_BYTES: usize = 2;

/// Length before each part of a compound datagram.
pub(super) const PART_BYTES: usize = 2;

const CHECKSUM_BYTES: usize = 5;
const TYPE_BYTES: usize = 1;
const MAP_BYTES: usize = 1;
const BOOL_BYTES: usize = 1;
const EMPTY_BYTES: usize = 1;
const ADDR_BYTES: usize = 5;
const PORT_BYTES: usize = 3;
/// A name of six letters.
const NAME_BYTES: usize = 7;
/// Six protocol versions.
const VERSIONS_BYTES: usize = 7;

/// Bytes of a datagram, or of what is sent at once on a stream.
pub(super) fn packet_bytes(messages: &[Message]) -> usize {
    let parts: usize = messages.iter().map(bytes).sum();
    match messages {
        [_] => CHECKSUM_BYTES + parts,
        _ => CHECKSUM_BYTES + COMPOUND_BYTES + PART_BYTES * messages.len() + parts,
    }
}

/// Bytes of one message.
pub(super) fn bytes(message: &Message) -> usize {
    let fields = match message {
        Message::Ping { seq } => field("SeqNo", uint(*seq)) + field("Node", NAME_BYTES) + source(),
        Message::Ack { seq } => field("SeqNo", uint(*seq)) + field("Payload", EMPTY_BYTES),
        Message::IndirectPing { seq, .. } => {
            let target = field("Target", ADDR_BYTES) + field("Port", PORT_BYTES) + field("Node", NAME_BYTES);
            field("SeqNo", uint(*seq)) + target + field("Nack", BOOL_BYTES) + source()
        }
        Message::Nack { seq } => field("SeqNo", uint(*seq)),
        Message::News(news) => news_bytes(news),
        Message::List { list, .. } => {
            let count = uint(u32::try_from(list.len()).unwrap_or(u32::MAX));
            let head = field("Nodes", count) + field("UserStateLen", uint(0)) + field("Join", BOOL_BYTES);
            head + list.iter().map(entry_bytes).sum::<usize>()
        }
    };
    TYPE_BYTES + MAP_BYTES + fields
}

fn source() -> usize {
    field("SourceAddr", ADDR_BYTES) + field("SourcePort", PORT_BYTES) + field("SourceNode", NAME_BYTES)
}

fn news_bytes(news: &News) -> usize {
    let subject = field("Incarnation", uint(news.incarnation)) + field("Node", NAME_BYTES);
    match news.status {
        NodeStatus::Alive => subject + identity(),
        _ => subject + field("From", NAME_BYTES),
    }
}

/// One record of a list.
fn entry_bytes(news: &News) -> usize {
    let state = field("Incarnation", uint(news.incarnation)) + field("State", 1);
    MAP_BYTES + field("Name", NAME_BYTES) + identity() + state
}

fn identity() -> usize {
    field("Addr", ADDR_BYTES) + field("Port", PORT_BYTES) + field("Meta", EMPTY_BYTES) + field("Vsn", VERSIONS_BYTES)
}

fn field(name: &str, value_bytes: usize) -> usize {
    1 + name.len() + value_bytes
}

/// A number takes a byte up to 127, and else a byte of type and one, two or four more.
fn uint(value: u32) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0xff => 2,
        0x100..=0xffff => 3,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_named_fields() {
        let news = |status| Message::News(News { of: 1, incarnation: 1, status, from: 2 });
        for (case, messages, expected) in [
            ("an ack with a small number", vec![Message::Ack { seq: 1 }], 5 + 2 + 7 + 9),
            ("an ack with a large number", vec![Message::Ack { seq: 70_000 }], 5 + 2 + 11 + 9),
            ("a ping", vec![Message::Ping { seq: 1 }], 5 + 2 + 7 + 12 + 16 + 14 + 18),
            ("a suspicion", vec![news(NodeStatus::Suspected)], 5 + 2 + 13 + 12 + 12),
            ("news of a live node", vec![news(NodeStatus::Alive)], 5 + 2 + 13 + 12 + 10 + 8 + 6 + 11),
            ("a compound", vec![Message::Nack { seq: 1 }, Message::Nack { seq: 2 }], 5 + 2 + 2 * (2 + 9)),
        ] {
            assert_eq!(packet_bytes(&messages), expected, "{case}");
        }
    }
}
