//! The socket under QUIC, and a tally of the packets that QUIC drops without a word.
//!
//! The socket is watched for what comes in alone, or the process would wake after each packet that has left it. So nobody is
//! told when there is room again: what finds none is lost, as if by the network.
//!
//! QUIC never answers what it cannot attribute, and counts it nowhere. So the socket looks at the clear bits of each
//! packet that arrives (RFC 9000 §17) and tallies those that lead nowhere; dropping them stays QUIC's own work.
//!
//! | reason | the packet |
//! |---|---|
//! | `plaintext` | lacks the fixed bit, as every plain datagram of the mesh does, or is too short for a packet |
//! | `quic_version` | is of another QUIC version |
//! | `unknown_connection` | carries a connection id that this process never gave out: garbage, or sent to an earlier process |
//! | `replayed` | arrived before, byte for byte: a recording, or a duplicate by the network |
//!
//! Packets are remembered by a keyed hash, the last [`REMEMBERED_MAX`] to twice as many. An older recording is dropped
//! all the same, it is only not recognised as one.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher, RandomState},
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use futures_util::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, ConnectionId, ConnectionIdGenerator as _, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use quinn_proto::HashedConnectionIdGenerator;
use rand::RngExt as _;
use tokio::io::{Interest, unix::AsyncFd};

use crate::udp::{self, canonical};

/// Packets that are remembered at least, to know a replay by; 64 KiB or so.
pub(super) const REMEMBERED_MAX: usize = 4096;

/// Bytes of a packet's end that tell it from every other: its authentication tag.
const TAG_BYTES: usize = 16;

/// Bytes of a packet's beginning that are hashed too, for packets without a tag.
const HEAD_BYTES: usize = 32;

/// Messages read in one call: the kernel is handed memory for each, and an idle node gets them one by one.
const RECEIVED_MAX: usize = 8;

/// Errors in a row after which others have a turn.
const ERRORS_MAX: usize = 16;

/// Length of the connection ids that are given out here.
const ID_BYTES: usize = 8;

const LONG_HEADER: u8 = 0x80;
const FIXED_BIT: u8 = 0x40;

/// The one version that is spoken (RFC 9000 §15).
pub(super) const VERSION: u32 = 1;

/// A socket whose incoming packets are tallied.
#[derive(Debug)]
pub(super) struct Watched {
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    tally: Arc<Tally>,
}

/// There is always room, or what finds none is lost.
#[derive(Debug)]
struct Room;

/// What was seen to lead nowhere and not told yet.
#[derive(Debug)]
pub(super) struct Tally {
    ids: Ids,
    /// Keyed, so that nobody can make packets that are taken for replays.
    digests: RandomState,
    seen: Mutex<Seen>,
    /// Why the socket is of no use any more.
    broken: OnceLock<io::ErrorKind>,
    /// Woken when there is something to tell.
    reader: AtomicWaker,
}

#[derive(Debug, Default)]
struct Seen {
    /// By reason: the last sender, and how many packets.
    refused: BTreeMap<&'static str, (SocketAddr, u64)>,
    recent: HashSet<u64>,
    earlier: HashSet<u64>,
}

impl Watched {
    /// Watches a bound socket; must be called within a tokio runtime.
    pub(super) fn new(socket: UdpSocket, tally: Arc<Tally>) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket: udp::watch(socket, Interest::READABLE)?, state, tally })
    }
}

impl Tally {
    pub(super) fn new(ids: Ids) -> Self {
        Self {
            ids,
            digests: RandomState::new(),
            seen: Mutex::default(),
            broken: OnceLock::new(),
            reader: AtomicWaker::new(),
        }
    }

    /// The next reason with its last sender and how often since it was told last, or the end of the socket; else wakes this
    /// task later.
    pub(super) fn poll_next(&self, waker: &Waker) -> Option<io::Result<(&'static str, SocketAddr, u64)>> {
        self.reader.register(waker);
        if let Some(kind) = self.broken.get() {
            return Some(Err((*kind).into()));
        }
        self.seen().refused.pop_first().map(|(reason, (from, times))| Ok((reason, from, times)))
    }

    /// Notes that the socket is of no use any more: QUIC's own task ends with it and tells nobody.
    pub(super) fn fail(&self, error: &io::Error) {
        // The first reason is as good as any.
        let _ = self.broken.set(error.kind());
        self.reader.wake();
    }

    fn digest(&self, packet: &[u8]) -> u64 {
        let head = &packet[..packet.len().min(HEAD_BYTES)];
        let tag = &packet[packet.len().saturating_sub(TAG_BYTES)..];
        self.digests.hash_one((packet.len(), head, tag))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, from: SocketAddr, packets: &[u8], stride: usize) {
        let mut seen = self.seen();
        let mut is_news = false;
        // The kernel may hand over several packets of one sender as one.
        for packet in packets.chunks(stride.max(1)) {
            let is_replay = || seen.is_replay(self.digest(packet)).then_some("replayed");
            let reason = self.ids.misfit(packet).or_else(is_replay);
            if let Some(reason) = reason {
                is_news = true;
                let (last, times) = seen.refused.entry(reason).or_insert((from, 0));
                (*last, *times) = (from, *times + 1);
            }
        }
        drop(seen);
        if is_news {
            self.reader.wake();
        }
    }
}

impl Seen {
    fn is_replay(&mut self, digest: u64) -> bool {
        if self.earlier.contains(&digest) || !self.recent.insert(digest) {
            return true;
        }
        if self.recent.len() >= REMEMBERED_MAX {
            self.earlier = std::mem::take(&mut self.recent);
        }
        false
    }
}

/// Gives out connection ids, and knows them again by a keyed hash in them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    key: u64,
}

impl Ids {
    pub(super) fn new() -> Self {
        Self { key: rand::rng().random() }
    }

    pub(super) fn generator(self) -> HashedConnectionIdGenerator {
        HashedConnectionIdGenerator::from_key(self.key)
    }

    /// Why a packet cannot belong to any connection of this process, as far as its clear bits tell.
    fn misfit(self, packet: &[u8]) -> Option<&'static str> {
        let first = *packet.first()?;
        if first & FIXED_BIT == 0 || packet.len() <= ID_BYTES {
            return Some("plaintext");
        }
        if first & LONG_HEADER == 0 {
            let id = ConnectionId::new(&packet[1..=ID_BYTES]);
            return self.generator().validate(&id).is_err().then_some("unknown_connection");
        }
        let version = packet[1..5].try_into().map_or(0, u32::from_be_bytes);
        (version != VERSION).then_some("quic_version")
    }
}

impl AsyncUdpSocket for Watched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.state.send(self.socket.get_ref().into(), transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            sent => sent,
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let most = buffers.len().min(meta.len()).min(RECEIVED_MAX);
        let (buffers, meta) = (&mut buffers[..most], &mut meta[..most]);
        let mut errors = 0;
        let received = loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            match ready.try_io(|socket| self.state.recv(socket.get_ref().into(), buffers, meta)) {
                Ok(Ok(received)) => {
                    if received < most {
                        // There was no more: the kernel tells of the next.
                        ready.clear_ready();
                    }
                    break received;
                }
                Ok(Err(error)) if udp::is_fatal(&error) => {
                    self.tally.fail(&error);
                    return Poll::Ready(Err(error));
                }
                // The fate of an earlier datagram, or a want of memory that passes.
                Ok(Err(_)) if errors < ERRORS_MAX => errors += 1,
                Ok(Err(_)) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Err(_) => {}
            }
        };
        for (buffer, meta) in buffers.iter().zip(&*meta).take(received) {
            self.tally.note(canonical(meta.addr), &buffer[..meta.len], meta.stride);
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
