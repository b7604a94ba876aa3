//! The greeting that begins each direction of a pipe.

use bytes::Bytes;
use smg_proto::stream as proto;
use tonic_prost::prost::Message as _;

use super::PipeError;
use crate::PeerIdentity;

/// Version of the pipe protocol that we speak, and the only one that we know.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest cluster label, in bytes; the shortest is 1.
pub const CLUSTER_BYTES_MAX: usize = 64;

/// Longest node name, in bytes; the shortest is 1.
pub const NODE_BYTES_MAX: usize = 128;

/// Longest encoded greeting that is looked at, in bytes; leaves room for fields that later versions add.
const HELLO_BYTES_MAX: usize = 1024;

/// Who speaks on a pipe, by its own word.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// Label of the cluster, 1 to [`CLUSTER_BYTES_MAX`] bytes without control characters.
    pub cluster: String,
    /// Name of the node, 1 to [`NODE_BYTES_MAX`] bytes without control characters.
    pub node: String,
    /// Boot epoch of the node: unix time of its start, in milliseconds.
    pub boot_epoch_ms: u64,
}

impl Hello {
    /// Says what is out of bounds.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if !is_label(&self.cluster, CLUSTER_BYTES_MAX) {
            return Err("cluster label must have 1 to 64 bytes and no control characters");
        }
        if !is_label(&self.node, NODE_BYTES_MAX) {
            return Err("node name must have 1 to 128 bytes and no control characters");
        }
        Ok(())
    }

    /// The bytes of a greeting, in the version that we speak.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let hello = proto::Hello {
            version: PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            boot_epoch_ms: self.boot_epoch_ms,
        };
        hello.encode_to_vec()
    }

    /// The first frame of our direction.
    pub(super) fn to_frame(&self) -> proto::Frame {
        proto::Frame { lane: proto::Lane::Hello.into(), payload: Bytes::from(self.encode()) }
    }

    /// Reads the first frame of the peer's direction; none is a peer that ended before it spoke. Where the connection
    /// has an identity, that must name the node.
    ///
    /// # Errors
    /// `BadHello`, `UnknownVersion`, `ForeignCluster` or `WrongName`.
    pub(super) fn of_peer(
        frame: Option<proto::Frame>,
        cluster: &str,
        identity: Option<&PeerIdentity>,
    ) -> Result<Self, PipeError> {
        let hello = Self::from_frame(frame, cluster)?;
        let is_named = identity.is_none_or(|identity| identity.allows(cluster, &hello.node));
        if is_named { Ok(hello) } else { Err(PipeError::WrongName) }
    }

    fn from_frame(frame: Option<proto::Frame>, cluster: &str) -> Result<Self, PipeError> {
        let frame = frame.filter(|frame| frame.lane() == proto::Lane::Hello).ok_or(PipeError::BadHello)?;
        Self::decode(&frame.payload, cluster)
    }

    /// The greeting of a node of `cluster` that the bytes are.
    ///
    /// # Errors
    /// `BadHello`, `UnknownVersion` or `ForeignCluster`.
    pub fn decode(bytes: &[u8], cluster: &str) -> Result<Self, PipeError> {
        if bytes.len() > HELLO_BYTES_MAX {
            return Err(PipeError::BadHello);
        }
        let hello = proto::Hello::decode(bytes).map_err(|_| PipeError::BadHello)?;
        // The version comes first: it says how the other fields are to be read.
        if hello.version == 0 {
            return Err(PipeError::BadHello);
        }
        if hello.version != PROTOCOL_VERSION {
            return Err(PipeError::UnknownVersion);
        }
        let hello = Self { cluster: hello.cluster, node: hello.node, boot_epoch_ms: hello.boot_epoch_ms };
        hello.check().map_err(|_| PipeError::BadHello)?;
        if hello.cluster != cluster {
            return Err(PipeError::ForeignCluster);
        }
        Ok(hello)
    }
}

fn is_label(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn frame(version: u32, cluster: &str, node: &str) -> proto::Frame {
        let hello = proto::Hello { version, cluster: cluster.into(), node: node.into(), boot_epoch_ms: 7 };
        proto::Frame { lane: proto::Lane::Hello.into(), payload: hello.encode_to_vec().into() }
    }

    #[test]
    fn greetings_are_checked() {
        let other_lane = proto::Frame { lane: proto::Lane::Sync.into(), ..frame(1, "smg", "n1") };
        let garbage = proto::Frame { lane: proto::Lane::Hello.into(), payload: Bytes::from_static(b"\xff\xff\xff") };
        for (case, frame, expected) in [
            ("good", Some(frame(1, "smg", "n1")), None),
            ("longest name", Some(frame(1, "smg", &"n".repeat(128))), None),
            ("no frame", None, Some("bad_hello")),
            ("other lane", Some(other_lane), Some("bad_hello")),
            ("garbage", Some(garbage), Some("bad_hello")),
            ("no version", Some(frame(0, "smg", "n1")), Some("bad_hello")),
            ("later version", Some(frame(2, "smg", "n1")), Some("unknown_version")),
            ("foreign cluster", Some(frame(1, "other", "n1")), Some("foreign_cluster")),
            ("no cluster", Some(frame(1, "", "n1")), Some("bad_hello")),
            ("no node", Some(frame(1, "smg", "")), Some("bad_hello")),
            ("name too long", Some(frame(1, "smg", &"n".repeat(129))), Some("bad_hello")),
            ("control character", Some(frame(1, "smg", "n\n1")), Some("bad_hello")),
            ("greeting too long", Some(frame(1, "smg", &"n".repeat(2000))), Some("bad_hello")),
        ] {
            let outcome = Hello::from_frame(frame, "smg");
            assert_eq!(outcome.err().map(|error| error.reason()), expected, "{case}");
        }
    }

    #[test]
    fn a_greeting_survives_the_wire() {
        let hello = Hello { cluster: "smg".into(), node: "n1".into(), boot_epoch_ms: 42 };
        assert_eq!(Hello::from_frame(Some(hello.to_frame()), "smg").unwrap(), hello);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let frame = proto::Frame { lane: proto::Lane::Hello.into(), payload: payload.into() };
            let _ = Hello::from_frame(Some(frame), "smg");
        }
    }
}
