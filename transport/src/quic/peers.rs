//! What is known of each address: the connection that carries what is sent there, and all that are read.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    time::Instant,
};

use bytes::Bytes;
use quinn::{Connection, SendDatagramError, VarInt};

use super::{PEERS_MAX, QUEUE_MAX, SILENCE_MAX};
use crate::SendError;

/// Connections with one address at most; the oldest ends when one more is made. Two peers that call each other at the same
/// time have two, and a restart leaves an old one behind for a while.
pub(super) const PER_PEER_MAX: usize = 4;

/// Application error of a connection whose owner excludes the peer: the peer may try again after its pause.
pub(super) const EXCLUDED: VarInt = VarInt::from_u32(2);

/// The addresses that are remembered.
pub(super) struct Peers {
    by_addr: BTreeMap<SocketAddr, Peer>,
    /// [`PEERS_MAX`], but in tests.
    pub(super) max: usize,
}

struct Peer {
    used: Instant,
    state: State,
    /// All connections that are read, the newest last.
    served: Vec<Connection>,
}

enum State {
    /// Nothing carries what is sent.
    Idle,
    Dialing(VecDeque<Bytes>),
    Open(Link),
    /// Not dialed before this.
    Refused(Instant),
    /// Neither dialed nor let in before this.
    Excluded(Instant),
}

/// The connection that carries what is sent.
struct Link {
    connection: Connection,
    /// Packets received so far, as last looked at.
    received: u64,
    /// When something was first sent after that.
    asked: Option<Instant>,
}

/// What is to be done with a datagram.
pub(super) enum Sending {
    /// Nothing more.
    Done(Result<(), SendError>),
    /// Dial, and hand it to [`Peers::dialing`].
    Dial(Bytes),
}

impl Peers {
    pub(super) fn new() -> Self {
        Self { by_addr: BTreeMap::new(), max: PEERS_MAX }
    }

    /// Sends on the connection with this address, or keeps the datagram for the one that is being made.
    pub(super) fn send(&mut self, now: Instant, to: SocketAddr, payload: Bytes) -> Sending {
        let Some(peer) = self.by_addr.get_mut(&to) else { return Sending::Dial(payload) };
        peer.used = now;
        match &mut peer.state {
            State::Open(link) => {
                if link.is_alive(now) {
                    Sending::Done(link.send(now, payload))
                } else {
                    Sending::Dial(payload)
                }
            }
            State::Dialing(queue) => {
                enqueue(queue, payload);
                Sending::Done(Ok(()))
            }
            State::Refused(until) | State::Excluded(until) if *until > now => Sending::Done(Err(SendError::Refused)),
            State::Idle | State::Refused(_) | State::Excluded(_) => Sending::Dial(payload),
        }
    }

    /// Notes that the address is being dialed, with the first datagram for it.
    pub(super) fn dialing(&mut self, now: Instant, to: SocketAddr, payload: Bytes) {
        self.entry(now, to).state = State::Dialing(VecDeque::from([payload]));
    }

    /// Makes this connection the one that carries what is sent to its address. False when the address is excluded, and the
    /// connection is to be closed.
    pub(super) fn opened(&mut self, now: Instant, at: SocketAddr, connection: &Connection) -> bool {
        if self.is_excluded(now, at) {
            return false;
        }
        let peer = self.entry(now, at);
        let mut link = Link { connection: connection.clone(), received: 0, asked: None };
        if let State::Dialing(queue) = &mut peer.state {
            for payload in std::mem::take(queue) {
                // Lost like any other that finds no room.
                let _ = link.send(now, payload);
            }
        }
        peer.used = now;
        peer.state = State::Open(link);
        peer.served.push(connection.clone());
        if peer.served.len() > PER_PEER_MAX {
            peer.served.remove(0).close(VarInt::from_u32(0), b"");
        }
        true
    }

    /// Forgets a dial that failed, and leaves the address alone until an instant where one is given; true when nothing else
    /// had opened meanwhile.
    pub(super) fn undialed(&mut self, at: SocketAddr, refused_until: Option<Instant>) -> bool {
        let Some(peer) = self.by_addr.get_mut(&at).filter(|peer| matches!(peer.state, State::Dialing(_))) else {
            return false;
        };
        peer.state = refused_until.map_or(State::Idle, State::Refused);
        self.forget_idle(at);
        true
    }

    /// The far end refuses us: it is not dialed before this instant.
    pub(super) fn refused(&mut self, now: Instant, at: SocketAddr, until: Instant) {
        self.entry(now, at).state = State::Refused(until);
    }

    /// Closes all connections with the address. Until this instant it is neither dialed nor let in.
    pub(super) fn exclude(&mut self, now: Instant, at: SocketAddr, until: Instant) {
        let peer = self.entry(now, at);
        peer.state = State::Excluded(until);
        peer.close_all(EXCLUDED);
    }

    pub(super) fn is_excluded(&self, now: Instant, at: SocketAddr) -> bool {
        self.by_addr.get(&at).is_some_and(|peer| matches!(peer.state, State::Excluded(until) if until > now))
    }

    /// Notes that a connection has ended.
    pub(super) fn closed(&mut self, at: SocketAddr, connection: &Connection) {
        let Some(peer) = self.by_addr.get_mut(&at) else { return };
        let id = connection.stable_id();
        peer.served.retain(|served| served.stable_id() != id);
        if matches!(&peer.state, State::Open(link) if link.connection.stable_id() == id) {
            peer.state = State::Idle;
        }
        self.forget_idle(at);
    }

    pub(super) fn clear(&mut self) {
        self.by_addr.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_addr.len()
    }

    #[cfg(test)]
    pub(super) fn served(&self, at: SocketAddr) -> usize {
        self.by_addr.get(&at).map_or(0, |peer| peer.served.len())
    }

    fn forget_idle(&mut self, at: SocketAddr) {
        if self.by_addr.get(&at).is_some_and(|peer| peer.served.is_empty() && matches!(peer.state, State::Idle)) {
            self.by_addr.remove(&at);
        }
    }

    /// What is known of the address. The one that was used least recently goes where there is no room for one more, and its
    /// connections with it.
    fn entry(&mut self, now: Instant, at: SocketAddr) -> &mut Peer {
        if self.by_addr.len() >= self.max
            && !self.by_addr.contains_key(&at)
            && let Some(oldest) = self.by_addr.iter().min_by_key(|(_, peer)| peer.used).map(|(addr, _)| *addr)
            && let Some(mut peer) = self.by_addr.remove(&oldest)
        {
            peer.close_all(VarInt::from_u32(0));
        }
        self.by_addr.entry(at).or_insert_with(|| Peer { used: now, state: State::Idle, served: Vec::new() })
    }
}

impl Peer {
    fn close_all(&mut self, code: VarInt) {
        for connection in self.served.drain(..) {
            connection.close(code, b"");
        }
    }
}

impl Link {
    /// False once the connection has ended, or has been silent for too long although it was spoken to.
    fn is_alive(&mut self, now: Instant) -> bool {
        let received = self.connection.stats().udp_rx.datagrams;
        if received != self.received {
            (self.received, self.asked) = (received, None);
        }
        self.connection.close_reason().is_none() && self.asked.is_none_or(|asked| now - asked < SILENCE_MAX)
    }

    fn send(&mut self, now: Instant, payload: Bytes) -> Result<(), SendError> {
        let len = payload.len();
        self.connection.send_datagram(payload).map_err(|error| match error {
            SendDatagramError::TooLarge => {
                SendError::TooLarge { len, max: self.connection.max_datagram_size().unwrap_or_default() }
            }
            error => SendError::Io(io::Error::other(error)),
        })?;
        self.asked.get_or_insert(now);
        Ok(())
    }
}

fn enqueue(queue: &mut VecDeque<Bytes>, payload: Bytes) {
    if queue.len() == QUEUE_MAX {
        queue.pop_front();
    }
    queue.push_back(payload);
}
