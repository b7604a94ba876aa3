//! Which workers have seen which prefix: a fixed table of atomics that all cores read and write without a lock.
//!
//! A name hashes to one bucket of [`WAYS`] slots. A slot is a name and up to [`HOLDERS`] holders, each one word: worker,
//! generation, last use. Five words, so 40 bytes per name. The chain makes it a radix tree by construction: a name
//! stands for its whole prefix, so the longest match is found by binary search over a prompt's names.
//!
//! A bucket begins on a cache line: its names are one, its holders four. What recording a prompt's names needs is read ahead, for
//! [`AHEAD`] names at a time, so that their misses of the cache overlap; one by one they would be the whole cost.
//!
//! A name that finds its bucket full takes the slot that was used longest ago, there and then: there is no sweep, and the
//! index never holds more than its budget. A prompt's names are used together, so a prefix is at least
//! as recent as what extends it and leaves no sooner, but for the luck of buckets; a gap costs a shorter match.
//!
//! Names are spread over all of a table, so each new one takes a page of memory until there are as many as pages. An index
//! with a budget of [`GROWING_BYTES_MIN`] or more therefore begins with a table of [`FIRST_BYTES`] and takes the rest into use
//! when that has filled: 2 000 prompts take 4 MiB of 64, and not 16. Nothing moves then. New names go to the second table, and
//! a name that finds no room takes the slot of both that was used longest ago.
//!
//! # Races
//!
//! A slot that changes its name is `BUSY` meanwhile: nobody matches it and nobody else takes it. Readers look at the
//! name again after the holders. Two cores that write a holder of one slot at once may lose one of the two; like a
//! collision of names or of worker tags (32 bits), that costs a request its best worker and nothing worse.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

mod table;

use self::table::{BUCKET_WORDS, Table, Touched, Word};

/// Words in a cache line.
const LINE_WORDS: usize = 8;

/// Slots of a bucket; their names fill one cache line.
pub const WAYS: usize = LINE_WORDS;

/// Workers remembered for one name, the latest ones.
pub const HOLDERS: usize = 4;

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 8 * (1 + HOLDERS);

const BUCKET_BYTES: usize = 8 * BUCKET_WORDS;

/// From this budget on an index begins with a part of it.
pub const GROWING_BYTES_MIN: usize = 16 << 20;

/// That part.
pub const FIRST_BYTES: usize = 4 << 20;

/// Names per bucket of the first table at which the rest is taken into use. Of buckets with 3 names on average one in 260 has
/// more than its 8 slots (Poisson).
const FIRST_NAMES: usize = 3;

/// Names whose buckets are read ahead: 80 lines, which fit into the nearest cache.
pub const AHEAD: usize = 16;

/// Time in quarters of a second, of which 24 bits count: it wraps after 48 days.
pub type Tick = u32;

/// A worker in one life: after a restart, or when its cache was flushed, it has another generation.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Holder {
    /// Upper half of the worker's ring hash, never 0.
    pub tag: u32,
    /// Low byte of its generation.
    pub generation: u8,
}

/// What is known of one model's prompts.
pub struct Index {
    first: Stage,
    /// None where the budget is small.
    rest: Option<Stage>,
    entries: AtomicUsize,
    evictions: AtomicU64,
}

/// A part of the budget. Its table is made with its first name: what is empty takes no memory, also where the allocator
/// would clear what an earlier table had instead of asking the kernel for clear pages.
struct Stage {
    buckets: usize,
    table: OnceLock<Table>,
}

impl Stage {
    fn new(buckets: usize) -> Self {
        Self { buckets, table: OnceLock::new() }
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
    /// An index within a budget of `bytes_max` bytes, at least one bucket. Pages of it that were never written take no
    /// memory.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let buckets = |bytes: usize| (bytes.saturating_sub(8 * LINE_WORDS) / BUCKET_BYTES).max(1);
        let (first, rest) = match bytes_max {
            0..GROWING_BYTES_MIN => (bytes_max, None),
            _ => (FIRST_BYTES, Some(Stage::new(buckets(bytes_max - FIRST_BYTES)))),
        };
        let (entries, evictions) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { first: Stage::new(buckets(first)), rest, entries, evictions }
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let entries = self.entries.load(Relaxed);
        let evictions = self.evictions.load(Relaxed);
        let buckets = self.first.buckets + self.rest.as_ref().map_or(0, |rest| rest.buckets);
        Stats { entries, bytes: entries * SLOT_BYTES, bytes_max: buckets * BUCKET_BYTES, evictions }
    }

    /// The workers that have seen the prefix of this name; none when it is not here.
    fn holders(&self, name: u64) -> Option<[Word; HOLDERS]> {
        self.tables().find_map(|table| table.holders(name))
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
        let (mut names, mut batch) = (names.into_iter(), [0; AHEAD]);
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
            self.grow(added + self.entries.fetch_add(added, Relaxed));
        }
        if evicted > 0 {
            self.evictions.fetch_add(evicted, Relaxed);
        }
        seen
    }

    /// Brings what a use of these names needs near.
    fn read_ahead(&self, names: &[u64]) {
        let (last, earlier) = self.last();
        last.read_ahead(names, BUCKET_WORDS / LINE_WORDS);
        if let Some(earlier) = earlier {
            earlier.read_ahead(names, 1);
        }
    }

    fn touch(&self, name: u64, holder: Holder, now: Tick) -> Touched {
        let (word, (last, earlier)) = (Word::new(holder, now), self.last());
        let known = last.touch(name, word, now).or_else(|| earlier?.touch(name, word, now));
        if let Some(touched) = known {
            return touched;
        }
        // A slot that is free, at best in the last table; else the one of both that was used longest ago.
        let victim = last.victim(name, now).map(|victim| (last, victim));
        let is_free = victim.is_some_and(|(_, victim)| victim.age == u64::MAX);
        let other = earlier.filter(|_| !is_free).and_then(|table| Some((table, table.victim(name, now)?)));
        match victim.into_iter().chain(other).max_by_key(|(_, victim)| victim.age) {
            Some((table, victim)) => table.take(victim, name, word),
            None => Touched::Lost,
        }
    }

    /// The table that new names go to, and the one before it.
    fn last(&self) -> (&Table, Option<&Table>) {
        let first = self.first.table.get_or_init(|| Table::new(self.first.buckets));
        match self.rest.as_ref().and_then(|rest| rest.table.get()) {
            Some(rest) => (rest, Some(first)),
            None => (first, None),
        }
    }

    /// Takes the rest of the budget into use once the first table has so many names that its buckets begin to overflow.
    fn grow(&self, entries: usize) {
        if let Some(rest) = &self.rest
            && entries > self.first.buckets * FIRST_NAMES
        {
            rest.table.get_or_init(|| Table::new(rest.buckets));
        }
    }

    /// The tables in use, the last first.
    fn tables(&self) -> impl Iterator<Item = &Table> {
        [self.rest.as_ref(), Some(&self.first)].into_iter().flatten().filter_map(|stage| stage.table.get())
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
        self.tables().for_each(|table| table.each(&mut seen));
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let gone = self.tables().map(Table::clear).sum();
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

#[cfg(test)]
mod tests;
