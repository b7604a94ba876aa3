//! Which workers have seen which prefix: a fixed table of atomics that all cores read and write without a lock.
//!
//! A name hashes to one bucket of [`WAYS`] slots. A slot is a name and up to [`HOLDERS`] holders, each one word: worker,
//! generation, last use. Five words, so 40 bytes per name. The chain makes it a radix tree by construction: a name
//! stands for its whole prefix, so the longest match is found by binary search over a prompt's names.
//!
//! A bucket begins on a cache line: its names are one, its holders four. What recording a prompt's names needs is read ahead, for
//! [`AHEAD`] names at a time, so that their misses of the cache overlap; one by one they would be the whole cost.
//!
//! A name that finds its bucket full takes the slot that was used longest ago, there and then: there is no sweep and no
//! growth, and the table never holds more than its budget. A prompt's names are used together, so a prefix is at least
//! as recent as what extends it and leaves no sooner, but for the luck of buckets; a gap costs a shorter match.
//!
//! # Races
//!
//! A slot that changes its name is `BUSY` meanwhile: nobody matches it and nobody else takes it. Readers look at the
//! name again after the holders. Two cores that write a holder of one slot at once may lose one of the two; like a
//! collision of names or of worker tags (32 bits), that costs a request its best worker and nothing worse.

use std::{
    fmt,
    hint::black_box,
    sync::{
        OnceLock,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

/// Words in a cache line.
const LINE_WORDS: usize = 8;

/// Slots of a bucket; their names fill one cache line.
pub const WAYS: usize = LINE_WORDS;

/// Workers remembered for one name, the latest ones.
pub const HOLDERS: usize = 4;

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 8 * (1 + HOLDERS);

/// Buckets in a region: 2560 bytes of the table.
const REGION_BUCKETS: usize = 8;

const BUCKET_WORDS: usize = WAYS * (1 + HOLDERS);

/// Names whose buckets are read ahead: 80 lines, which fit into the nearest cache.
pub const AHEAD: usize = 16;

const EMPTY: u64 = 0;
const BUSY: u64 = 1;

/// Time in quarters of a second, of which 24 bits count: it wraps after 48 days.
pub type Tick = u32;

const TICK_MASK: u64 = 0xff_ffff;

/// A worker in one life: after a restart, or when its cache was flushed, it has another generation.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Holder {
    /// Upper half of the worker's ring hash, never 0.
    pub tag: u32,
    /// Low byte of its generation.
    pub generation: u8,
}

/// A holder and when it last saw the prefix, as one word.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Word(u64);

impl Word {
    fn new(holder: Holder, tick: Tick) -> Self {
        Self(u64::from(holder.tag) << 32 | u64::from(holder.generation) << 24 | u64::from(tick) & TICK_MASK)
    }

    fn holder(self) -> Holder {
        Holder { tag: (self.0 >> 32) as u32, generation: (self.0 >> 24) as u8 }
    }

    /// Ticks since; an empty word is as old as can be.
    fn age(self, now: Tick) -> u64 {
        if self.0 == 0 { TICK_MASK } else { u64::from(now).wrapping_sub(self.0) & TICK_MASK }
    }
}

/// The table of one model.
pub struct Index {
    /// The buckets, once there is a name: a table that is empty takes no memory, also where the allocator would clear what
    /// an earlier one had instead of asking the kernel for clear pages.
    memory: OnceLock<Memory>,
    /// One bit per [`REGION_BUCKETS`] buckets that ever held a name: whoever walks the table skips the rest, whose pages
    /// were never written. A bit for 2560 bytes.
    used: Box<[AtomicU64]>,
    buckets: usize,
    entries: AtomicUsize,
    evictions: AtomicU64,
}

struct Memory {
    /// The buckets, behind up to a line that brings them into line.
    words: Box<[AtomicU64]>,
    /// Where they begin.
    start: usize,
}

impl Memory {
    fn new(buckets: usize) -> Self {
        let words: Box<[AtomicU64]> = bytemuck::allocation::zeroed_slice_box(buckets * BUCKET_WORDS + LINE_WORDS - 1);
        let start = words.as_ptr().align_offset(8 * LINE_WORDS).min(LINE_WORDS - 1);
        Self { words, start }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Names it holds.
    pub entries: usize,
    /// Bytes that they take.
    pub bytes: usize,
    /// Bytes that all of it may take.
    pub bytes_max: usize,
    /// Names that had to leave for others, so far.
    pub evictions: u64,
}

/// Workers that a lookup remembers at most.
pub const CANDIDATES_MAX: usize = 16;

/// Workers that have seen a prefix of a prompt, each with the longest that the lookup came by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidates {
    found: [(Holder, u32); CANDIDATES_MAX],
    len: usize,
}

impl Candidates {
    /// The workers, each with its number of blocks.
    #[must_use]
    pub fn as_slice(&self) -> &[(Holder, u32)] {
        &self.found[..self.len]
    }

    /// Notes a worker; of more than [`CANDIDATES_MAX`] the longest matches stay.
    pub fn note(&mut self, holder: Holder, blocks: u32) {
        if let Some(known) = self.found[..self.len].iter_mut().find(|(known, _)| *known == holder) {
            known.1 = known.1.max(blocks);
        } else if self.len < CANDIDATES_MAX {
            self.found[self.len] = (holder, blocks);
            self.len += 1;
        } else if let Some(least) = self.found.iter_mut().min_by_key(|(_, blocks)| *blocks)
            && least.1 < blocks
        {
            *least = (holder, blocks);
        }
    }
}

impl Index {
    /// A table within a budget of `bytes_max` bytes, at least one bucket. Pages of it that were never written take no
    /// memory.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let buckets = (bytes_max.saturating_sub(8 * LINE_WORDS) / (8 * BUCKET_WORDS)).max(1);
        let used = (0..buckets.div_ceil(64 * REGION_BUCKETS)).map(|_| AtomicU64::new(0)).collect();
        let (memory, entries, evictions) = (OnceLock::new(), AtomicUsize::new(0), AtomicU64::new(0));
        Self { memory, used, buckets, entries, evictions }
    }

    /// All buckets; none before there was a name.
    fn table(&self) -> &[AtomicU64] {
        let Some(Memory { words, start }) = self.memory.get() else { return &[] };
        &words[*start..start + self.buckets * BUCKET_WORDS]
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let entries = self.entries.load(Relaxed);
        let evictions = self.evictions.load(Relaxed);
        Stats { entries, bytes: entries * SLOT_BYTES, bytes_max: self.buckets * BUCKET_WORDS * 8, evictions }
    }

    /// The workers that have seen the prefix of this name; none when it is not here.
    fn holders(&self, name: u64) -> Option<[Word; HOLDERS]> {
        self.memory.get()?;
        let bucket = self.bucket(name);
        let way = (0..WAYS).find(|way| bucket[*way].load(Acquire) == name)?;
        let words = holder_words(bucket, way);
        let found = std::array::from_fn(|i| Word(words[i].load(Acquire)));
        (bucket[way].load(Relaxed) == name).then_some(found)
    }

    /// Notes the workers that have seen the prefix of this name, as `blocks` blocks long; whether it is here.
    pub fn note(&self, name: u64, blocks: u32, into: &mut Candidates) -> bool {
        let Some(holders) = self.holders(name) else { return false };
        for word in holders.iter().filter(|word| word.0 != 0) {
            into.note(word.holder(), blocks);
        }
        true
    }

    /// The worker that saw the prefix of this name last.
    #[must_use]
    pub fn latest(&self, name: u64, now: Tick) -> Option<Holder> {
        let words = self.holders(name)?;
        words.into_iter().filter(|word| word.0 != 0).min_by_key(|word| word.age(now)).map(Word::holder)
    }

    /// Finds the longest known prefix of a prompt by binary search, and notes who has seen it or one of the shorter ones
    /// that the search came by; its length in blocks.
    pub fn longest(&self, blocks: &[u64], into: &mut Candidates) -> usize {
        let (mut known, mut unknown) = (0, blocks.len() + 1);
        while known + 1 < unknown {
            let middle = known.midpoint(unknown);
            if self.note(blocks[middle - 1], middle as u32, into) {
                known = middle;
            } else {
                unknown = middle;
            }
        }
        known
    }

    /// Says that the worker sees a prompt of these names now, the shortest prefix first; gives how many of them, from
    /// the first on, it had seen already.
    pub fn record(&self, names: impl IntoIterator<Item = u64>, holder: Holder, now: Tick) -> usize {
        let (mut seen, mut is_seen, mut added, mut evicted) = (0, true, 0, 0);
        let (mut names, mut batch) = (names.into_iter(), [EMPTY; AHEAD]);
        loop {
            let mut filled = 0;
            for (slot, name) in batch.iter_mut().zip(&mut names) {
                *slot = name;
                filled += 1;
            }
            self.read_ahead(&batch[..filled]);
            for name in &batch[..filled] {
                let touched = self.touch(*name, holder, now);
                is_seen &= touched == Touched::Known;
                seen += usize::from(is_seen);
                added += usize::from(touched == Touched::Added);
                evicted += u64::from(touched == Touched::Replaced);
            }
            if filled < AHEAD {
                break;
            }
        }
        if added > 0 {
            self.entries.fetch_add(added, Relaxed);
        }
        if evicted > 0 {
            self.evictions.fetch_add(evicted, Relaxed);
        }
        seen
    }

    /// Brings the buckets of these names near: loads that wait for nothing and for which nothing waits.
    fn read_ahead(&self, names: &[u64]) {
        let lines = names.iter().flat_map(|name| self.bucket(*name).iter().step_by(LINE_WORDS));
        black_box(lines.fold(0, |all, word| all ^ word.load(Relaxed)));
    }

    fn touch(&self, name: u64, holder: Holder, now: Tick) -> Touched {
        let bucket = self.bucket(name);
        let word = Word::new(holder, now);
        match (0..WAYS).find(|way| bucket[*way].load(Acquire) == name) {
            Some(way) => touch_holder(holder_words(bucket, way), word, now),
            None => self.take_slot(name, word, now),
        }
    }

    /// Puts a new name into its bucket, at the cost of the one used longest ago when that is full.
    fn take_slot(&self, name: u64, word: Word, now: Tick) -> Touched {
        let bucket = self.bucket(name);
        let mut victim: Option<(u64, usize, u64)> = None;
        for way in 0..WAYS {
            let held = bucket[way].load(Acquire);
            let age = match held {
                EMPTY => u64::MAX,
                BUSY => continue,
                _ => holder_words(bucket, way).iter().map(|word| Word(word.load(Relaxed)).age(now)).min().unwrap_or(0),
            };
            if victim.is_none_or(|(oldest, ..)| age > oldest) {
                victim = Some((age, way, held));
            }
        }
        let Some((_, way, held)) = victim else { return Touched::Lost };
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

    fn bucket_index(&self, name: u64) -> usize {
        // By multiplication (Lemire 2019, §3): any number of buckets, no division.
        ((u128::from(name) * self.buckets as u128) >> 64) as usize
    }

    fn bucket(&self, name: u64) -> &[AtomicU64] {
        let Memory { words, start } = self.memory.get_or_init(|| Memory::new(self.buckets));
        let at = start + self.bucket_index(name) * BUCKET_WORDS;
        &words[at..at + BUCKET_WORDS]
    }

    /// What was used last, at most `count` pairs of name and holder with their age in ticks, the latest first. Two
    /// passes over the table: for a peer that has just come, not for requests.
    #[must_use]
    pub fn hottest(&self, count: usize, now: Tick) -> Vec<Hot> {
        let mut by_age = vec![0_usize; AGES];
        self.each(|_, word| by_age[age_class(word.age(now))] += 1);
        let mut total = 0;
        let classes = by_age.iter().take_while(|found| {
            total += **found;
            total <= count
        });
        // The class that breaks the budget is taken in part.
        let last = classes.count();
        let mut hot = Vec::with_capacity(count.min(total));
        self.each(|name, word| {
            let class = age_class(word.age(now));
            if class < last || class == last && hot.len() < count {
                hot.push(Hot { name, holder: word.holder(), age: word.age(now) as Tick });
            }
        });
        hot.sort_unstable_by_key(|hot| (hot.age, hot.name, hot.holder));
        hot.truncate(count);
        hot
    }

    fn each(&self, mut seen: impl FnMut(u64, Word)) {
        let regions = self.table().chunks(REGION_BUCKETS * BUCKET_WORDS).enumerate();
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

    /// Forgets everything.
    pub fn clear(&self) {
        let mut gone = 0;
        for bucket in self.table().chunks_exact(BUCKET_WORDS) {
            for slot in &bucket[..WAYS] {
                let name = slot.load(Relaxed);
                // A busy slot is being filled by a request that began before; it is forgotten as any other in time.
                if name > BUSY && slot.compare_exchange(name, EMPTY, Acquire, Relaxed).is_ok() {
                    gone += 1;
                }
            }
        }
        self.entries.fetch_sub(gone, Relaxed);
    }
}

/// Something that was used lately.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hot {
    /// Name of the prefix.
    pub name: u64,
    /// Who has seen it.
    pub holder: Holder,
    /// How long ago.
    pub age: Tick,
}

/// Classes of age: a quarter of a second each, the last one for all that is older than 17 min.
const AGES: usize = 4096;

fn age_class(age: u64) -> usize {
    (age as usize).min(AGES - 1)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Touched {
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

#[cfg(test)]
mod tests;
