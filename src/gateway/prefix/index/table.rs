//! One piece of memory in buckets.

use std::{
    hint::black_box,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use super::{HOLDERS, Holder, LINE_WORDS, Tick, WAYS};

pub(super) const BUCKET_WORDS: usize = WAYS * (1 + HOLDERS);

/// Buckets in a region: 2560 bytes of the table.
const REGION_BUCKETS: usize = 8;

const EMPTY: u64 = 0;
const BUSY: u64 = 1;

pub(super) const TICK_MASK: u64 = 0xff_ffff;

/// A holder and when it last saw the prefix, as one word.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) struct Word(pub(super) u64);

impl Word {
    pub(super) fn new(holder: Holder, tick: Tick) -> Self {
        Self(u64::from(holder.tag) << 32 | u64::from(holder.generation) << 24 | u64::from(tick) & TICK_MASK)
    }

    pub(super) fn holder(self) -> Holder {
        Holder { tag: (self.0 >> 32) as u32, generation: (self.0 >> 24) as u8 }
    }

    /// Ticks since; an empty word is as old as can be.
    pub(super) fn age(self, now: Tick) -> u64 {
        if self.0 == 0 { TICK_MASK } else { u64::from(now).wrapping_sub(self.0) & TICK_MASK }
    }
}

/// Buckets of names and their holders.
pub(super) struct Table {
    /// The buckets, behind up to a line that brings them into line.
    words: Box<[AtomicU64]>,
    /// Where they begin.
    start: usize,
    buckets: usize,
    /// One bit per [`REGION_BUCKETS`] buckets that ever held a name: whoever walks the table skips the rest, whose pages
    /// were never written. A bit for 2560 bytes.
    used: Box<[AtomicU64]>,
}

/// A slot that a new name may have.
#[derive(Clone, Copy)]
pub(super) struct Victim<'a> {
    bucket: &'a [AtomicU64],
    way: usize,
    held: u64,
    /// Ticks since the last use; beyond all where nothing is held.
    pub(super) age: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Touched {
    /// The worker had seen it.
    Known,
    /// The name was here, of other workers.
    Joined,
    /// The name is new.
    Added,
    /// The name is new, and another one left for it.
    Replaced,
    /// Another core was at the slot.
    Lost,
}

impl Table {
    pub(super) fn new(buckets: usize) -> Self {
        let words: Box<[AtomicU64]> = bytemuck::allocation::zeroed_slice_box(buckets * BUCKET_WORDS + LINE_WORDS - 1);
        let start = words.as_ptr().align_offset(8 * LINE_WORDS).min(LINE_WORDS - 1);
        let used = (0..buckets.div_ceil(64 * REGION_BUCKETS)).map(|_| AtomicU64::new(0)).collect();
        Self { words, start, buckets, used }
    }

    /// Bytes that its buckets take with what brings them into line.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// All buckets.
    pub(super) fn all(&self) -> &[AtomicU64] {
        &self.words[self.start..self.start + self.buckets * BUCKET_WORDS]
    }

    fn bucket_index(&self, name: u64) -> usize {
        // By multiplication (Lemire 2019, §3): any number of buckets, no division.
        ((u128::from(name) * self.buckets as u128) >> 64) as usize
    }

    fn bucket(&self, name: u64) -> &[AtomicU64] {
        let at = self.start + self.bucket_index(name) * BUCKET_WORDS;
        &self.words[at..at + BUCKET_WORDS]
    }

    /// The bucket of a name, and where in it the name is.
    fn find(&self, name: u64) -> Option<(&[AtomicU64], usize)> {
        let bucket = self.bucket(name);
        let way = (0..WAYS).find(|way| bucket[*way].load(Acquire) == name)?;
        Some((bucket, way))
    }

    /// The workers that have seen the prefix of this name; none when it is not here.
    pub(super) fn holders(&self, name: u64) -> Option<[Word; HOLDERS]> {
        let (bucket, way) = self.find(name)?;
        let words = holder_words(bucket, way);
        let found = std::array::from_fn(|i| Word(words[i].load(Acquire)));
        (bucket[way].load(Relaxed) == name).then_some(found)
    }

    /// Brings the buckets of these names near, as many lines of each: loads that wait for nothing and for which nothing
    /// waits.
    pub(super) fn read_ahead(&self, names: &[u64], lines: usize) {
        let lines = names.iter().flat_map(|name| self.bucket(*name).iter().step_by(LINE_WORDS).take(lines));
        black_box(lines.fold(0, |all, word| all ^ word.load(Relaxed)));
    }

    /// Notes a use of a name; none when it is not here.
    pub(super) fn touch(&self, name: u64, word: Word, now: Tick) -> Option<Touched> {
        self.find(name).map(|(bucket, way)| touch_holder(holder_words(bucket, way), word, now))
    }

    /// The slot that the name would take: an empty one, or the one used longest ago. None while all are being filled.
    pub(super) fn victim(&self, name: u64, now: Tick) -> Option<Victim<'_>> {
        let bucket = self.bucket(name);
        let mut victim: Option<Victim<'_>> = None;
        for way in 0..WAYS {
            let held = bucket[way].load(Acquire);
            let age = match held {
                EMPTY => u64::MAX,
                BUSY => continue,
                _ => holder_words(bucket, way).iter().map(|word| Word(word.load(Relaxed)).age(now)).min().unwrap_or(0),
            };
            if victim.is_none_or(|victim| age > victim.age) {
                victim = Some(Victim { bucket, way, held, age });
            }
        }
        victim
    }

    /// Puts a new name into one of its slots.
    pub(super) fn take(&self, Victim { bucket, way, held, .. }: Victim<'_>, name: u64, word: Word) -> Touched {
        if bucket[way].compare_exchange(held, BUSY, Acquire, Relaxed).is_err() {
            // Another core took it this instant; the next use of the name finds a place.
            return Touched::Lost;
        }
        let words = holder_words(bucket, way);
        words[0].store(word.0, Relaxed);
        words[1..].iter().for_each(|word| word.store(0, Relaxed));
        bucket[way].store(name, Release);
        self.mark_used(name);
        if held == EMPTY { Touched::Added } else { Touched::Replaced }
    }

    /// The bit of a name's region is set, and read alone once it is.
    fn mark_used(&self, name: u64) {
        let region = self.bucket_index(name) / REGION_BUCKETS;
        let (word, bit) = (&self.used[region / 64], 1 << (region % 64));
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
        }
    }

    /// Gives each name with each of its holders.
    pub(super) fn each(&self, seen: &mut impl FnMut(u64, Word)) {
        let regions = self.all().chunks(REGION_BUCKETS * BUCKET_WORDS).enumerate();
        let used = regions.filter(|(at, _)| self.used[at / 64].load(Relaxed) >> (at % 64) & 1 == 1);
        for bucket in used.flat_map(|(_, region)| region.chunks_exact(BUCKET_WORDS)) {
            for way in 0..WAYS {
                let name = bucket[way].load(Acquire);
                if name > BUSY {
                    let words = holder_words(bucket, way).iter().map(|word| Word(word.load(Relaxed)));
                    words.filter(|word| word.0 != 0).for_each(|word| seen(name, word));
                }
            }
        }
    }

    /// Forgets everything; how many names that was.
    pub(super) fn clear(&self) -> usize {
        let mut gone = 0;
        for bucket in self.all().chunks_exact(BUCKET_WORDS) {
            for slot in &bucket[..WAYS] {
                let name = slot.load(Relaxed);
                // A busy slot is being filled by a request that began before; it is forgotten as any other in time.
                if name > BUSY && slot.compare_exchange(name, EMPTY, Acquire, Relaxed).is_ok() {
                    gone += 1;
                }
            }
        }
        gone
    }
}

fn holder_words(bucket: &[AtomicU64], way: usize) -> &[AtomicU64] {
    &bucket[WAYS + way * HOLDERS..WAYS + (way + 1) * HOLDERS]
}

fn touch_holder(words: &[AtomicU64], word: Word, now: Tick) -> Touched {
    let (mut oldest, mut oldest_age) = (0, 0);
    for (i, held) in words.iter().enumerate() {
        let known = Word(held.load(Relaxed));
        if known.0 >> 32 == word.0 >> 32 {
            // Unchanged within a tick: the cache line stays shared between the cores.
            if known != word && known.holder().generation == word.holder().generation {
                // Old news from a peer do not make an entry older.
                if word.age(now) <= known.age(now) {
                    held.store(word.0, Relaxed);
                }
                return Touched::Known;
            }
            held.store(word.0, Relaxed);
            return if known == word { Touched::Known } else { Touched::Joined };
        }
        let age = if known.0 == 0 { u64::MAX } else { known.age(now) };
        if age > oldest_age {
            (oldest, oldest_age) = (i, age);
        }
    }
    words[oldest].store(word.0, Relaxed);
    Touched::Joined
}
