//! The books of all pipes: their queues in both directions, and whose event is next.
//!
//! One lock guards them; it is held for a push or a pop, never across an await. Wakers are called after its release.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use smg_proto::stream as proto;
use tokio_util::sync::CancellationToken;

use super::{FRAME_BYTES_MAX, Hello, Lane, PipeError, PipeId, PipeSendError, StreamConfig, StreamEvent};
use crate::PeerIdentity;

/// Most bytes that wait on a pipe to be sent, overhead included: 1 MiB, or one frame where that is larger.
pub const OUTBOUND_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that wait on a pipe to be taken as events, beyond which the pipe is not read: 1 MiB, exceeded by one frame.
pub const INBOUND_BYTES_MAX: usize = 1024 * 1024;

/// What each queued frame counts for besides its payload, in bytes; bounds the number of small frames.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// All pipes of one plane.
pub(super) struct Pipes {
    books: Mutex<Books>,
}

struct Books {
    pipes: BTreeMap<PipeId, Pipe>,
    /// Pipes that have an event, each once: the first is served, then goes to the back.
    turns: VecDeque<PipeId>,
    events_waker: Option<Waker>,
    next_id: u64,
    accepted: usize,
    accepted_max: usize,
    hello: proto::Frame,
    is_shut_down: bool,
}

struct Pipe {
    addr: SocketAddr,
    dialed: bool,
    state: State,
    closing: CancellationToken,
    outbound: VecDeque<proto::Frame>,
    outbound_bytes: usize,
    outbound_waker: Option<Waker>,
    owes_writable: bool,
    has_said_close: bool,
    /// `Opened`, frames and `Closed`, in order.
    inbound: VecDeque<StreamEvent>,
    inbound_bytes: usize,
    inbound_waker: Option<Waker>,
    has_turn: bool,
    is_writable: bool,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum State {
    /// Greetings are under way.
    Opening,
    /// Frames flow.
    Open,
    /// No more frames are taken; those queued are still sent.
    Closing,
    /// Its `Closed` is queued.
    Finished,
}

impl Pipes {
    pub(super) fn new(config: &StreamConfig) -> Self {
        let books = Books {
            pipes: BTreeMap::new(),
            turns: VecDeque::new(),
            events_waker: None,
            next_id: 0,
            accepted: 0,
            accepted_max: config.inbound_pipes_max,
            hello: config.hello.to_frame(),
            is_shut_down: false,
        };
        Self { books: Mutex::new(books) }
    }

    /// Enters a pipe that is being dialed, with our greeting queued. The token is cancelled when it is to be closed.
    pub(super) fn begin_dialed(&self, addr: SocketAddr) -> (PipeId, CancellationToken) {
        self.books().begin(addr, true)
    }

    /// Enters a pipe that a peer opened; none when there are too many.
    pub(super) fn begin_accepted(&self, addr: SocketAddr) -> Option<(PipeId, CancellationToken)> {
        let mut books = self.books();
        if books.accepted >= books.accepted_max || books.is_shut_down {
            return None;
        }
        books.accepted += 1;
        Some(books.begin(addr, false))
    }

    /// Greetings are done: frames may flow. False when the pipe was closed meanwhile.
    pub(super) fn open(
        &self,
        id: PipeId,
        hello: Hello,
        identity: Option<PeerIdentity>,
        traceparent: Option<String>,
    ) -> bool {
        self.update(id, |pipe, wakers| {
            if pipe.state != State::Opening {
                return false;
            }
            pipe.state = State::Open;
            let (dialed, addr) = (pipe.dialed, pipe.addr);
            let opened = StreamEvent::Opened { pipe: id, dialed, addr, hello, identity, traceparent };
            pipe.push_event(opened, wakers);
            true
        })
        .unwrap_or(false)
    }

    pub(super) fn try_send(&self, id: PipeId, lane: Lane, payload: Bytes) -> Result<(), PipeSendError> {
        if payload.len() > FRAME_BYTES_MAX {
            return Err(PipeSendError::TooLarge { len: payload.len(), max: FRAME_BYTES_MAX });
        }
        self.update(id, |pipe, wakers| {
            if pipe.state != State::Open {
                return Err(PipeSendError::Closed);
            }
            let bytes = payload.len() + FRAME_OVERHEAD_BYTES;
            if !pipe.outbound.is_empty() && pipe.outbound_bytes + bytes > OUTBOUND_BYTES_MAX {
                pipe.owes_writable = true;
                return Err(PipeSendError::Full);
            }
            pipe.outbound_bytes += bytes;
            pipe.outbound.push_back(proto::Frame { lane: lane.to_proto().into(), payload });
            wakers.other = pipe.outbound_waker.take();
            Ok(())
        })
        .unwrap_or(Err(PipeSendError::Closed))
    }

    pub(super) fn has_room(&self, id: PipeId) -> bool {
        self.update(id, |pipe, _| {
            let is_open = pipe.state == State::Open;
            pipe.owes_writable |= is_open && !pipe.is_half_empty();
            is_open && pipe.is_half_empty()
        })
        .unwrap_or(false)
    }

    /// Gives the next frame to send; none when the pipe is to end in this direction.
    pub(super) fn poll_outbound(&self, id: PipeId, cx: &mut Context<'_>) -> Poll<Option<proto::Frame>> {
        self.update(id, |pipe, wakers| {
            let Some(frame) = pipe.outbound.pop_front() else {
                return match pipe.state {
                    State::Closing if !pipe.has_said_close => {
                        pipe.has_said_close = true;
                        Poll::Ready(Some(proto::Frame { lane: proto::Lane::Close.into(), payload: Bytes::new() }))
                    }
                    State::Closing | State::Finished => Poll::Ready(None),
                    State::Opening | State::Open => {
                        pipe.outbound_waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                };
            };
            pipe.outbound_bytes -= frame.payload.len() + FRAME_OVERHEAD_BYTES;
            if pipe.owes_writable && pipe.state == State::Open && pipe.is_half_empty() {
                pipe.owes_writable = false;
                pipe.is_writable = true;
                pipe.take_turn(wakers);
            }
            Poll::Ready(Some(frame))
        })
        .unwrap_or(Poll::Ready(None))
    }

    /// Enters a frame that arrived; dropped when the pipe is closing.
    pub(super) fn push_inbound(&self, id: PipeId, lane: Lane, payload: Bytes) {
        self.update(id, |pipe, wakers| {
            if pipe.state == State::Open {
                pipe.inbound_bytes += payload.len() + FRAME_OVERHEAD_BYTES;
                pipe.push_event(StreamEvent::Frame { pipe: id, lane, payload }, wakers);
            }
        });
    }

    /// Ready when the next frame may be read.
    pub(super) fn poll_room(&self, id: PipeId, cx: &mut Context<'_>) -> Poll<()> {
        self.update(id, |pipe, _| {
            if pipe.inbound_bytes < INBOUND_BYTES_MAX || pipe.state != State::Open {
                return Poll::Ready(());
            }
            pipe.inbound_waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .unwrap_or(Poll::Ready(()))
    }

    /// Begins to close a pipe: see [`super::Streams::close`].
    pub(super) fn close(&self, id: PipeId) {
        self.update(id, Pipe::close);
    }

    pub(super) fn close_all(&self) {
        let ids: Vec<PipeId> = self.books().pipes.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
    }

    /// Queues the pipe's last event and drops what was to be sent. Only the first call counts.
    pub(super) fn finish(&self, id: PipeId, error: Option<PipeError>) {
        self.update(id, |pipe, wakers| {
            if pipe.state != State::Finished {
                pipe.state = State::Finished;
                pipe.outbound.clear();
                pipe.outbound_bytes = 0;
                wakers.other = pipe.outbound_waker.take();
                let closed = StreamEvent::Closed { pipe: id, addr: pipe.addr, dialed: pipe.dialed, error };
                pipe.push_event(closed, wakers);
            }
        });
    }

    /// Nothing more will come: ends the events once they are drained.
    pub(super) fn shut_down(&self) {
        let waker = {
            let mut books = self.books();
            books.is_shut_down = true;
            books.events_waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    pub(super) fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        let (event, waker) = {
            let mut books = self.books();
            let Some(next) = books.next_event() else {
                if books.is_shut_down && books.pipes.is_empty() {
                    return Poll::Ready(None);
                }
                books.events_waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            next
        };
        waker.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(event))
    }

    /// Changes one pipe, gives it a turn when it now has an event, and wakes whom that concerns.
    fn update<T>(&self, id: PipeId, change: impl FnOnce(&mut Pipe, &mut Wakers) -> T) -> Option<T> {
        let mut wakers = Wakers::default();
        let result = {
            let mut books = self.books();
            let pipe = books.pipes.get_mut(&id)?;
            let result = change(pipe, &mut wakers);
            if wakers.wants_turn {
                books.turns.push_back(id);
                wakers.events = books.events_waker.take();
            }
            result
        };
        wakers.events.into_iter().chain(wakers.other).for_each(Waker::wake);
        Some(result)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do once the lock is released.
#[derive(Default)]
struct Wakers {
    wants_turn: bool,
    events: Option<Waker>,
    other: Option<Waker>,
}

impl Books {
    fn begin(&mut self, addr: SocketAddr, dialed: bool) -> (PipeId, CancellationToken) {
        let id = PipeId(self.next_id);
        self.next_id += 1;
        let closing = CancellationToken::new();
        let hello = self.hello.clone();
        let pipe = Pipe {
            addr,
            dialed,
            state: State::Opening,
            closing: closing.clone(),
            outbound_bytes: hello.payload.len() + FRAME_OVERHEAD_BYTES,
            outbound: VecDeque::from([hello]),
            outbound_waker: None,
            owes_writable: false,
            has_said_close: false,
            inbound: VecDeque::new(),
            inbound_bytes: 0,
            inbound_waker: None,
            has_turn: false,
            is_writable: false,
        };
        self.pipes.insert(id, pipe);
        (id, closing)
    }

    /// The next event and the reader that it makes room for.
    fn next_event(&mut self) -> Option<(StreamEvent, Option<Waker>)> {
        while let Some(id) = self.turns.pop_front() {
            let Some(pipe) = self.pipes.get_mut(&id) else { continue };
            pipe.has_turn = false;
            let Some((event, waker)) = pipe.next_event(id) else { continue };
            if matches!(event, StreamEvent::Closed { .. }) {
                self.accepted -= usize::from(!pipe.dialed);
                self.pipes.remove(&id);
            } else if pipe.is_writable || !pipe.inbound.is_empty() {
                pipe.has_turn = true;
                self.turns.push_back(id);
            }
            return Some((event, waker));
        }
        None
    }
}

impl Pipe {
    fn is_half_empty(&self) -> bool {
        self.outbound_bytes <= OUTBOUND_BYTES_MAX / 2
    }

    fn push_event(&mut self, event: StreamEvent, wakers: &mut Wakers) {
        self.inbound.push_back(event);
        self.take_turn(wakers);
    }

    fn take_turn(&mut self, wakers: &mut Wakers) {
        if !self.has_turn {
            self.has_turn = true;
            wakers.wants_turn = true;
        }
    }

    fn next_event(&mut self, id: PipeId) -> Option<(StreamEvent, Option<Waker>)> {
        // After `Closed` is queued nobody can use the room.
        if std::mem::take(&mut self.is_writable) && self.state == State::Open {
            return Some((StreamEvent::Writable { pipe: id }, None));
        }
        let event = self.inbound.pop_front()?;
        let mut waker = None;
        if let StreamEvent::Frame { payload, .. } = &event {
            self.inbound_bytes -= payload.len() + FRAME_OVERHEAD_BYTES;
            if self.inbound_bytes < INBOUND_BYTES_MAX {
                waker = self.inbound_waker.take();
            }
        }
        Some((event, waker))
    }

    fn close(&mut self, wakers: &mut Wakers) {
        if !matches!(self.state, State::Opening | State::Open) {
            return;
        }
        self.state = State::Closing;
        self.inbound.retain(|event| !matches!(event, StreamEvent::Frame { .. }));
        self.inbound_bytes = 0;
        wakers.other = self.outbound_waker.take();
        self.closing.cancel();
    }
}

#[cfg(test)]
mod tests;
