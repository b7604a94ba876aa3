//! What the stream plane tells its owner.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use smg_proto::stream as proto;
use tonic::{Code, Status};

use super::Hello;
use crate::PeerIdentity;

/// Names one pipe of one [`Streams`](super::Streams); never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PipeId(pub u64);

/// What a frame's payload is; opaque to this crate.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Lane {
    /// What would be a datagram, were it small enough or the datagram path open.
    Datagram,
    /// Bulk state.
    Sync,
    /// Hints that may be lost.
    Routing,
}

/// News of one pipe. Per pipe: `Opened`, then frames, then `Closed` once and last; or `Closed` alone.
#[derive(Debug)]
pub enum StreamEvent {
    /// Greetings were exchanged; frames may be sent.
    Opened {
        /// The pipe.
        pipe: PipeId,
        /// True when we dialed it.
        dialed: bool,
        /// The remote address: the dialed one, else the peer's ephemeral port.
        addr: SocketAddr,
        /// What the peer says of itself; its cluster is ours.
        hello: Hello,
        /// Who the peer is by its certificate; none while the plane authenticates nobody.
        identity: Option<PeerIdentity>,
        /// What the peer that dialed said of its trace, at most 256 bytes and not checked further; none of a pipe of ours.
        traceparent: Option<String>,
    },
    /// A frame arrived, in order.
    Frame {
        /// The pipe.
        pipe: PipeId,
        /// What the payload is.
        lane: Lane,
        /// At most [`FRAME_BYTES_MAX`](super::FRAME_BYTES_MAX) bytes.
        payload: Bytes,
    },
    /// The queue is at most half full again, after a frame was refused as [`PipeSendError::Full`].
    Writable {
        /// The pipe.
        pipe: PipeId,
    },
    /// The pipe is gone; frames still queued on it are lost.
    Closed {
        /// The pipe.
        pipe: PipeId,
        /// The remote address, as in `Opened`.
        addr: SocketAddr,
        /// True when we dialed it.
        dialed: bool,
        /// Why; none when either side closed it in order.
        error: Option<PipeError>,
    },
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PipeSendError {
    /// The queue has no room for it now; [`StreamEvent::Writable`] tells when to try again.
    #[error("pipe is full")]
    Full,
    /// The payload exceeds the limit; trying again cannot help.
    #[error("frame of {len} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Size of the refused payload in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The pipe is not open: not yet, or no longer.
    #[error("pipe is not open")]
    Closed,
}

/// Why a pipe is gone. In every case the pipe's queues were dropped; whether dialing again can help is said per variant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipeError {
    /// No TCP connection: nobody listens there, or no route. A hint that the peer's process is gone; may help later.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// The peer's host answered nothing within the connect timeout. May help later.
    #[error("connecting took too long")]
    ConnectTimeout,
    /// No greeting came in time. May help later.
    #[error("no greeting in time")]
    HelloTimeout,
    /// The greeting was missing, malformed or out of bounds. Does not help until one side changes.
    #[error("malformed greeting")]
    BadHello,
    /// One side speaks a version that the other does not know. Does not help until one side changes.
    #[error("unknown protocol version")]
    UnknownVersion,
    /// The peer belongs to another cluster. Does not help until one side changes.
    #[error("foreign cluster")]
    ForeignCluster,
    /// The peer's certificate does not name the node of its greeting. Does not help until one side changes.
    #[error("the certificate does not name the node")]
    WrongName,
    /// The TLS handshake failed, or the peer's certificate is no longer good; the reason is one of a closed set. Does
    /// not help until one side changes, but for `tls_closed`: the peer went away.
    #[error("refused by TLS: {0}")]
    Refused(&'static str),
    /// The accepting side has as many pipes as it takes. May help later.
    #[error("too many pipes")]
    TooManyPipes,
    /// The peer sent a frame that breaks the protocol: no known lane, or undecodable. Dialing again may help once.
    #[error("malformed frame")]
    BadFrame,
    /// The peer sent a message above the limit; it was not read. Dialing again may help once.
    #[error("frame exceeds the limit")]
    FrameTooLarge,
    /// The connection broke, the peer answered no keepalive ping (HTTP/2 does not tell the two apart), or the far end
    /// does not speak this protocol. May help later.
    #[error("connection lost")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This side is shutting down.
    #[error("shutting down")]
    ShutDown,
}

impl PipeError {
    /// Name of the variant, for metrics and logs: a closed set, snake case.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => "refused",
            Self::Connect(_) => "unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::HelloTimeout => "hello_timeout",
            Self::BadHello => "bad_hello",
            Self::UnknownVersion => "unknown_version",
            Self::ForeignCluster => "foreign_cluster",
            Self::WrongName => "wrong_name",
            Self::Refused(reason) => reason,
            Self::TooManyPipes => "too_many_pipes",
            Self::BadFrame => "bad_frame",
            Self::FrameTooLarge => "frame_too_large",
            Self::Lost(_) => "lost",
            Self::ShutDown => "shut_down",
        }
    }

    /// Whether one side excludes the other for what it is: dialing again at once cannot help.
    #[must_use]
    pub fn is_exclusion(&self) -> bool {
        match self {
            Self::Refused(reason) => *reason != "tls_closed",
            Self::WrongName | Self::ForeignCluster | Self::UnknownVersion => true,
            _ => false,
        }
    }

    /// The answer to a peer whose greeting is refused. The message is the reason's name, for [`Self::from_refusal`].
    pub(super) fn to_refusal(&self) -> Status {
        Status::new(Code::FailedPrecondition, self.reason())
    }

    /// What the far end's refusal of our greeting means, or what broke the call.
    pub(super) fn from_refusal(status: Status) -> Self {
        if status.code() == Code::FailedPrecondition {
            let known = [
                Self::HelloTimeout,
                Self::BadHello,
                Self::UnknownVersion,
                Self::ForeignCluster,
                Self::WrongName,
                Self::TooManyPipes,
                Self::ShutDown,
            ];
            if let Some(error) = known.into_iter().find(|error| error.reason() == status.message()) {
                return error;
            }
        }
        Self::from_status(status)
    }

    /// What ended the reading of a pipe.
    pub(super) fn from_status(status: Status) -> Self {
        match status.code() {
            // What tonic's decoder says of a length above its limit, and of bytes that are no message.
            Code::OutOfRange => Self::FrameTooLarge,
            Code::Internal if is_undecodable(&status) => Self::BadFrame,
            _ => Self::Lost(Box::new(status)),
        }
    }
}

fn is_undecodable(status: &Status) -> bool {
    // The transport's own failures carry their source; the decoder's verdicts do not.
    std::error::Error::source(status).is_none() && !status.message().starts_with("h2 protocol error")
}

impl Lane {
    pub(super) fn to_proto(self) -> proto::Lane {
        match self {
            Self::Datagram => proto::Lane::Datagram,
            Self::Sync => proto::Lane::Sync,
            Self::Routing => proto::Lane::Routing,
        }
    }

    /// None for what carries no payload of the owner's.
    pub(super) fn from_proto(lane: proto::Lane) -> Option<Self> {
        match lane {
            proto::Lane::Datagram => Some(Self::Datagram),
            proto::Lane::Sync => Some(Self::Sync),
            proto::Lane::Routing => Some(Self::Routing),
            proto::Lane::Unspecified | proto::Lane::Hello | proto::Lane::Close => None,
        }
    }
}
