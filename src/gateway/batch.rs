//! Frames of a response that arrived together, joined so that they leave in one write.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

/// A batch of this many bytes is sent without waiting for more: what one read from a worker brings at most.
const BATCH_BYTES: usize = 16 << 10;

/// Turns that the other tasks of the core get to bring a further frame. One is not enough: the worker connection's task
/// is then behind this one in the queue.
const TURNS_MAX: u32 = 2;

/// Bytes that wait for the frames right behind them; at most [`BATCH_BYTES`] and one frame. A single frame is not copied.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    first: Bytes,
    joined: BytesMut,
    /// Turns that the other tasks of the core had since the last frame.
    turns: u32,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= BATCH_BYTES
    }

    pub(crate) fn push(&mut self, data: Bytes) {
        self.turns = 0;
        if self.is_empty() {
            self.first = data;
            return;
        }
        self.joined.extend_from_slice(&std::mem::take(&mut self.first));
        self.joined.extend_from_slice(&data);
    }

    /// Everything held; none when that is nothing.
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        self.turns = 0;
        let held = if self.joined.is_empty() { std::mem::take(&mut self.first) } else { self.joined.split().freeze() };
        (!held.is_empty()).then_some(held)
    }

    /// No further frame is there: gives what is held once the other tasks of this core had [`TURNS_MAX`] turns to bring one.
    /// Pending while nothing is held.
    pub(crate) fn poll_settled(&mut self, cx: &Context<'_>) -> Poll<Bytes> {
        if self.is_empty() {
            return Poll::Pending;
        }
        self.turns += 1;
        if self.turns > TURNS_MAX {
            return self.take().map_or(Poll::Pending, Poll::Ready);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Whether nothing is given yet.
    fn waits(batch: &mut Batch) -> bool {
        batch.poll_settled(&Context::from_waker(Waker::noop())).is_pending()
    }

    #[test]
    fn frames_behind_one_another_leave_together_and_a_single_one_after_its_turns() {
        let mut batch = Batch::default();
        assert!(waits(&mut batch) && batch.take().is_none(), "nothing is held");
        batch.push(Bytes::from_static(b"one "));
        for _ in 0..TURNS_MAX {
            assert!(waits(&mut batch));
        }
        assert!(!waits(&mut batch), "a single frame");
        assert!(batch.is_empty());
        for text in ["two ", "three ", "four"] {
            assert!(waits(&mut batch) || batch.is_empty(), "a new frame has all its turns");
            batch.push(Bytes::from_static(text.as_bytes()));
        }
        assert_eq!(batch.len(), "two three four".len());
        assert_eq!(batch.take().as_deref(), Some(&b"two three four"[..]));
        assert!(batch.is_empty() && !batch.is_full());
    }

    #[test]
    fn a_batch_is_full_at_its_bound() {
        let mut batch = Batch::default();
        batch.push(Bytes::from(vec![0; BATCH_BYTES - 1]));
        assert!(!batch.is_full());
        batch.push(Bytes::from_static(b"x"));
        assert!(batch.is_full());
        assert_eq!(batch.take().map(|held| held.len()), Some(BATCH_BYTES));
    }
}
