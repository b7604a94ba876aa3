//! What is known of each address: the connection that carries what is sent there, and all that are read.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    time::Instant,
};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, SendDatagramError, VarInt};

use super::{PEERS_MAX, QUEUE_MAX, SILENCE_MAX, TOGETHER_MAX, TWIN_SILENCE_MAX};
use crate::{PeerIdentity, SendError};

/// Connections with one address at most; when one more is made the oldest of its identity ends, else the oldest of all. Two
/// peers that call each other at the same time have two, and a restart leaves an old one behind for a while.
pub(super) const PER_PEER_MAX: usize = 4;

/// Addresses from which one identity is connected, for each name that its certificate lists; for one more the connections at
/// its own least used address end. So nobody can push out the others by many addresses: a node has one, and a few more for
/// a while where it moves.
pub(super) const ADDRESSES_PER_NAME_MAX: usize = 8;

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
    served: Vec<Served>,
    /// Who is not let in at this address, and until when; the last one that was excluded.
    excluded: Option<(PeerIdentity, Instant)>,
}

struct Served {
    connection: Connection,
    identity: PeerIdentity,
}

enum State {
    /// Nothing carries what is sent.
    Idle,
    Dialing(VecDeque<Bytes>),
    Open(Link),
    /// Not dialed before this.
    Refused(Instant),
}

/// The connection that carries what is sent.
struct Link {
    connection: Connection,
    /// When it was made.
    since: Instant,
    /// Packets received so far, as last looked at.
    received: u64,
    /// When something was first sent after that.
    asked: Option<Instant>,
    /// The connection that this was preferred to, and the packets received there by then; none once this has proven itself.
    twin: Option<(Connection, u64)>,
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
                let is_alive = link.is_alive(now);
                if let Some(twin) = link.better_twin(now) {
                    *link = Link::new(now, &twin);
                    Sending::Done(link.send(now, payload))
                } else if is_alive {
                    Sending::Done(link.send(now, payload))
                } else if link.is_refused() {
                    // Whoever reads the connection has yet to find out.
                    Sending::Done(Err(SendError::Refused))
                } else {
                    try_old(&peer.served, &payload);
                    Sending::Dial(payload)
                }
            }
            State::Dialing(queue) => {
                try_old(&peer.served, &payload);
                enqueue(queue, payload);
                Sending::Done(Ok(()))
            }
            State::Refused(until) if *until > now => Sending::Done(Err(SendError::Refused)),
            State::Idle | State::Refused(_) => Sending::Dial(payload),
        }
    }

    /// Notes that the address is being dialed, with the first datagram for it.
    pub(super) fn dialing(&mut self, now: Instant, to: SocketAddr, payload: Bytes) {
        self.entry(now, to).state = State::Dialing(VecDeque::from([payload]));
    }

    /// Makes this connection the one that carries what is sent to its address. False when its peer is excluded there, and
    /// the connection is to be closed.
    pub(super) fn opened(
        &mut self,
        now: Instant,
        at: SocketAddr,
        connection: &Connection,
        identity: &PeerIdentity,
    ) -> bool {
        let peer = self.entry(now, at);
        if let Some((excluded, until)) = &peer.excluded
            && excluded == identity
            && *until > now
        {
            if let State::Dialing(_) = peer.state {
                peer.state = State::Refused(*until);
            }
            return false;
        }
        self.make_room(at, identity);
        let peer = self.entry(now, at);
        let mut link = Link::new(now, connection);
        if let State::Open(other) = &peer.state
            && now - other.since < TOGETHER_MAX
            && peer.served.iter().any(|served| served.is(&other.connection) && served.identity == *identity)
            && other.connection.close_reason().is_none()
            && precedes(&other.connection, connection)
        {
            let received = connection.stats().udp_rx.datagrams;
            link = Link { twin: Some((connection.clone(), received)), ..Link::new(other.since, &other.connection) };
        }
        if let State::Dialing(queue) = &mut peer.state {
            for payload in std::mem::take(queue) {
                // Lost like any other that finds no room.
                let _ = link.send(now, payload);
            }
        }
        peer.used = now;
        peer.state = State::Open(link);
        if peer.served.len() == PER_PEER_MAX {
            let own = peer.served.iter().position(|served| served.identity == *identity);
            peer.served.remove(own.unwrap_or(0)).connection.close(VarInt::from_u32(0), b"");
        }
        peer.served.push(Served { connection: connection.clone(), identity: identity.clone() });
        true
    }

    /// Forgets a dial that failed, and leaves the address alone until an instant where one is given, else goes on with an
    /// older connection if there is one; true when nothing else had opened meanwhile.
    pub(super) fn undialed(&mut self, now: Instant, at: SocketAddr, refused_until: Option<Instant>) -> bool {
        let Some(peer) = self.by_addr.get_mut(&at).filter(|peer| matches!(peer.state, State::Dialing(_))) else {
            return false;
        };
        peer.state = match (refused_until, newest_open(&peer.served)) {
            (Some(until), _) => State::Refused(until),
            (None, Some(old)) => State::Open(Link::new(now, &old.connection)),
            (None, None) => State::Idle,
        };
        self.forget_idle(at);
        true
    }

    /// This peer refuses us: the address is not dialed before this instant, unless another is connected from there.
    pub(super) fn refused(&mut self, now: Instant, at: SocketAddr, identity: &PeerIdentity, until: Instant) {
        self.entry(now, at).turn_from(now, identity, until);
    }

    /// Closes this peer's connections with the address, and lets it in there no more before this instant. Until then the
    /// address is not dialed either, unless another is connected from there: that one's connections stay.
    pub(super) fn exclude(&mut self, now: Instant, at: SocketAddr, identity: &PeerIdentity, until: Instant) {
        let peer = self.entry(now, at);
        peer.turn_from(now, identity, until);
        peer.excluded = Some((identity.clone(), until));
        peer.served.retain(|served| {
            let stays = served.identity != *identity;
            if !stays {
                served.connection.close(EXCLUDED, b"");
            }
            stays
        });
    }

    /// Notes that a connection has ended.
    pub(super) fn closed(&mut self, at: SocketAddr, connection: &Connection) {
        let Some(peer) = self.by_addr.get_mut(&at) else { return };
        let id = connection.stable_id();
        peer.served.retain(|served| served.connection.stable_id() != id);
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

    /// What tells the connection that carries what is sent there from every other, at both of its ends.
    #[cfg(test)]
    pub(super) fn secret(&self, at: SocketAddr) -> Option<[u8; 16]> {
        match self.by_addr.get(&at).map(|peer| &peer.state) {
            Some(State::Open(link)) => secret(&link.connection),
            _ => None,
        }
    }

    /// UDP packets sent so far on the connection that carries what is sent there.
    #[cfg(test)]
    pub(super) fn packets_sent(&self, at: SocketAddr) -> u64 {
        match self.by_addr.get(&at).map(|peer| &peer.state) {
            Some(State::Open(link)) => link.connection.stats().udp_tx.datagrams,
            _ => 0,
        }
    }

    fn forget_idle(&mut self, at: SocketAddr) {
        let is_idle =
            |peer: &Peer| peer.served.is_empty() && peer.excluded.is_none() && matches!(peer.state, State::Idle);
        if self.by_addr.get(&at).is_some_and(is_idle) {
            self.by_addr.remove(&at);
        }
    }

    /// Ends the connections of this identity at its least used address, when it has as many addresses as it may besides this.
    fn make_room(&mut self, at: SocketAddr, identity: &PeerIdentity) {
        let is_own = |served: &Served| served.identity == *identity;
        let others = self.by_addr.iter().filter(|(addr, peer)| **addr != at && peer.served.iter().any(is_own));
        let oldest = others.clone().min_by_key(|(_, peer)| peer.used).map(|(addr, _)| *addr);
        let Some(oldest) = oldest.filter(|_| others.count() >= addresses_max(identity)) else { return };
        let Some(peer) = self.by_addr.get_mut(&oldest) else { return };
        peer.served.retain(|served| {
            if is_own(served) {
                served.connection.close(VarInt::from_u32(0), b"");
            }
            !is_own(served)
        });
        // Whoever reads a connection tells its end as always; one that carried what is sent is not alive any more.
    }

    /// What is known of the address. Where there is no room for one more an address goes that is only to be left alone for
    /// a while, else the one that was used least recently and its connections with it.
    fn entry(&mut self, now: Instant, at: SocketAddr) -> &mut Peer {
        if self.by_addr.len() >= self.max
            && !self.by_addr.contains_key(&at)
            && let Some(oldest) =
                self.by_addr.iter().min_by_key(|(_, peer)| (peer.is_connected(), peer.used)).map(|(addr, _)| *addr)
            && let Some(mut peer) = self.by_addr.remove(&oldest)
        {
            peer.close_all(VarInt::from_u32(0));
        }
        let new = || Peer { used: now, state: State::Idle, served: Vec::new(), excluded: None };
        let peer = self.by_addr.entry(at).or_insert_with(new);
        peer.excluded.take_if(|(_, until)| *until <= now);
        peer
    }
}

fn addresses_max(identity: &PeerIdentity) -> usize {
    ADDRESSES_PER_NAME_MAX * identity.0.listed().len().max(1)
}

impl Peer {
    /// Whether there is a connection with the address, or to be.
    fn is_connected(&self) -> bool {
        !self.served.is_empty() || matches!(self.state, State::Dialing(_))
    }

    fn close_all(&mut self, code: VarInt) {
        for served in self.served.drain(..) {
            served.connection.close(code, b"");
        }
    }

    /// Sends no more to this peer, but to the newest connection of another at its address, else to nobody before this
    /// instant.
    fn turn_from(&mut self, now: Instant, identity: &PeerIdentity, until: Instant) {
        let is_other = |served: &&Served| served.identity != *identity;
        let mut others = self.served.iter().rev().filter(is_other);
        if let State::Open(link) = &self.state
            && others.clone().any(|served| served.connection.stable_id() == link.connection.stable_id())
        {
            return;
        }
        self.state =
            others.next().map_or(State::Refused(until), |served| State::Open(Link::new(now, &served.connection)));
    }
}

impl Link {
    fn new(since: Instant, connection: &Connection) -> Self {
        let received = connection.stats().udp_rx.datagrams;
        Self { connection: connection.clone(), since, received, asked: None, twin: None }
    }

    /// Whether the peer has ended it because it excludes us.
    fn is_refused(&self) -> bool {
        let reason = self.connection.close_reason();
        matches!(reason, Some(ConnectionError::ApplicationClosed(close)) if close.error_code == EXCLUDED)
    }

    /// False once the connection has ended, or has been silent for too long although it was spoken to.
    fn is_alive(&mut self, now: Instant) -> bool {
        let received = self.connection.stats().udp_rx.datagrams;
        if received != self.received {
            (self.received, self.asked, self.twin) = (received, None, None);
        }
        self.connection.close_reason().is_none() && self.asked.is_none_or(|asked| now - asked < SILENCE_MAX)
    }

    /// The connection that this one was preferred to, when the peer speaks there and not here: it started anew, and this one is
    /// of its last life.
    fn better_twin(&self, now: Instant) -> Option<Connection> {
        let (twin, received) = self.twin.as_ref()?;
        let is_silent = self.asked.is_some_and(|asked| now - asked >= TWIN_SILENCE_MAX);
        let speaks = twin.close_reason().is_none() && twin.stats().udp_rx.datagrams > *received;
        (is_silent && speaks).then(|| twin.clone())
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

impl Served {
    fn is(&self, connection: &Connection) -> bool {
        self.connection.stable_id() == connection.stable_id()
    }
}

/// The last connection that has not ended.
fn newest_open(served: &[Served]) -> Option<&Served> {
    served.iter().rev().find(|served| served.connection.close_reason().is_none())
}

/// Sends on an old connection what waits for a new one: it may still carry it, as where only the way back is cut. Then it may
/// arrive twice, as datagrams do.
fn try_old(served: &[Served], payload: &Bytes) {
    if let Some(old) = newest_open(served) {
        // Lost like any other that finds no way.
        let _ = old.connection.send_datagram(payload.clone());
    }
}

/// Which of two connections between the same two is to be used, where both sides dialed at once: an order that both see alike,
/// by secrets of the connections (RFC 8446 §7.5).
fn precedes(one: &Connection, other: &Connection) -> bool {
    secret(one) < secret(other)
}

fn secret(connection: &Connection) -> Option<[u8; 16]> {
    let mut secret = [0; 16];
    connection.export_keying_material(&mut secret, b"EXPORTER-smg-mesh-choice", b"").map(|()| secret).ok()
}

fn enqueue(queue: &mut VecDeque<Bytes>, payload: Bytes) {
    if queue.len() == QUEUE_MAX {
        queue.pop_front();
    }
    queue.push_back(payload);
}
