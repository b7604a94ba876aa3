//! Live dots side by side, 40 bytes each beside key and payload.

use crate::mesh::{
    crdt::dot::{ActorId, Dot},
    hlc::Timestamp,
};

/// Slots that are allocated together: 1024, or 40 KiB.
const BLOCK: usize = 1024;

/// The end of a chain of slots.
pub(super) const NONE: u32 = u32::MAX;

/// A live dot as it is read; what its operation wrote is borrowed from the namespace, or from a body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LiveRef<'a> {
    /// The operation.
    pub dot: Dot,
    /// When it was, by the writer's HLC.
    pub stamp: Timestamp,
    /// What it wrote.
    pub payload: &'a [u8],
}

/// A live dot as it is kept.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// The key, then the payload: one allocation without a header.
    bytes: Box<[u8]>,
    stamp: Timestamp,
    /// The counter less one (48 bits, see `COUNTER_MAX`), then the length of the key (16 bits).
    packed: u64,
    actor: ActorId,
    /// Another slot of the same key, or [`NONE`].
    pub(super) next: u32,
}

impl Slot {
    /// Keys are at most 1024 bytes long (`wire::replication::KEY_BYTES_MAX`), those of the stores much less.
    pub(super) fn new(key: &[u8], live: LiveRef<'_>) -> Self {
        let mut bytes = Vec::with_capacity(key.len() + live.payload.len());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(live.payload);
        let key_len = u16::try_from(key.len()).expect("keys are at most 1024 bytes long");
        let packed = (live.dot.counter.saturating_sub(1) << 16) | u64::from(key_len);
        Self { bytes: bytes.into(), stamp: live.stamp, packed, actor: live.dot.actor, next: NONE }
    }

    fn key_len(&self) -> usize {
        (self.packed & 0xffff) as usize
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..self.key_len()]
    }

    pub(super) fn counter(&self) -> u64 {
        (self.packed >> 16) + 1
    }

    pub(super) fn dot(&self) -> Dot {
        Dot { actor: self.actor, counter: self.counter() }
    }

    pub(super) fn live(&self) -> LiveRef<'_> {
        LiveRef { dot: self.dot(), stamp: self.stamp, payload: &self.bytes[self.key_len()..] }
    }
}

/// Slots, numbered from 0 without gaps, so that there are never more than live dots.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    blocks: Vec<Vec<Slot>>,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.blocks.last().map_or(0, |last| (self.blocks.len() - 1) * BLOCK + last.len())
    }

    pub(super) fn get(&self, number: u32) -> &Slot {
        &self.blocks[number as usize / BLOCK][number as usize % BLOCK]
    }

    pub(super) fn get_mut(&mut self, number: u32) -> &mut Slot {
        &mut self.blocks[number as usize / BLOCK][number as usize % BLOCK]
    }

    /// Gives the number of the new slot. 2^32 - 1 of them take 160 GiB, more than a node has.
    pub(super) fn push(&mut self, slot: Slot) -> u32 {
        let number = u32::try_from(self.len()).expect("fewer live dots than 2^32");
        match self.blocks.last_mut().filter(|last| last.len() < BLOCK) {
            Some(last) => last.push(slot),
            None => {
                // The first block grows, so that a small namespace stays small.
                let mut block = if self.blocks.is_empty() { Vec::new() } else { Vec::with_capacity(BLOCK) };
                block.push(slot);
                self.blocks.push(block);
            }
        }
        number
    }

    /// Frees a slot; the last one takes its number. Gives the number that the last one had, if it is another.
    pub(super) fn swap_remove(&mut self, number: u32) -> Option<u32> {
        let block = self.blocks.last_mut()?;
        let last = block.pop()?;
        if block.is_empty() {
            self.blocks.pop();
        }
        let moved = u32::try_from(self.len()).expect("fewer live dots than 2^32");
        if moved == number {
            return None;
        }
        *self.get_mut(number) = last;
        Some(moved)
    }
}
