//! Where the longest prefix of the prompt was seen, unless another worker's idleness is worth more.
//!
//! Each worker gets a score: the share of the prompt that it has seen, less its `strain`, less [`FAR`] when it is in
//! another zone. The best of those that have seen enough (`--cache-threshold`) and are not overloaded (the balance
//! thresholds) competes with the prompt's *home*, the worker that hashing alone gives it.
//!
//! Strain counts [`NEW_WEIGHT`] times for a conversation that begins: its later turns follow it, and what it can find in
//! a cache, instructions that others share, is soon wherever it goes. It counts [`RUNNING_WEIGHT`] times for one that
//! goes on: what its worker has of it nobody else has. So load is balanced by where conversations begin, and they stay.
//!
//! # Homes make gateways agree
//!
//! A prompt's home is the first worker of a rendezvous hash (Thaler & Ravishankar 1998, §3) of its session, which is
//! all up to the end of the first user message; a prompt without messages is hashed by its first blocks. Both are the
//! same in each later turn, so every gateway, also one that started this instant, sends a follow-up to the worker that
//! has its past, and nobody had to tell it: this gateway *expects* a session at its home unless it knows of another
//! place. Loads bound the hashing (Mirrokni, Thorup & Zadimoghaddam 2018, §1): a home with more than (1 + ε) times the
//! mean passes a new prompt on to the next. Such placements, and those that a shared prefix or load drew elsewhere, are
//! the surprises that gateways tell one another.

use std::sync::Arc;

use super::{Candidates, mix, power_of_two};
use crate::{
    config::Cache,
    gateway::{
        prefix::{
            Prompt,
            index::{self, Holder, Index, Tick},
        },
        worker::Worker,
    },
};

/// What another zone costs a worker, as a share of the prompt.
pub const FAR: f64 = 0.1;

/// Requests added to the mean that loads are compared with, so that a few requests on an idle cluster outweigh no
/// cache: about what an engine batches without slowing down.
pub const LOAD_FLOOR: usize = 16;

/// How often the strain of a worker counts for a conversation that begins.
pub const NEW_WEIGHT: f64 = 3.0;

/// How often it counts for one that goes on.
pub const RUNNING_WEIGHT: f64 = 0.5;

/// 1 + ε in percent: how far above the mean load a home may be before it passes new prompts on.
pub const LOAD_PERCENT: usize = 125;

/// Requests in flight up to which a home never passes a prompt on.
pub const HOME_LOAD_MIN: usize = 4;

/// Why a worker was chosen.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Branch {
    /// It has seen enough of the prompt.
    Cache,
    /// Nobody has, or its idleness is worth more: it is the prompt's home.
    Home,
    /// The home is too busy for new prompts: it is the next.
    Spill,
    /// The worker that has seen most is overloaded: this one is the best of the others.
    Balance,
    /// There is no text to compare: the less loaded of two.
    NoPrompt,
}

impl Branch {
    /// Every branch.
    pub const ALL: [Self; 5] = [Self::Cache, Self::Home, Self::Spill, Self::Balance, Self::NoPrompt];

    /// The spelling of metrics and of `X-SMG-Route`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Home => "home",
            Self::Spill => "spill",
            Self::Balance => "balance",
            Self::NoPrompt => "no_prompt",
        }
    }
}

/// How a choice came about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Why.
    pub branch: Branch,
    /// Blocks of the prompt that the worker has seen, as far as this gateway knows or expects.
    pub matched: usize,
    /// Blocks of the prompt.
    pub blocks: usize,
    /// Other gateways that know nothing of this choice would choose another worker for the next turn.
    pub is_surprise: bool,
}

/// What is known of the prompt.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its names.
    pub prompt: &'a Prompt,
    /// Who has seen what.
    pub index: &'a Index,
    /// The thresholds.
    pub rules: &'a Cache,
    /// Now.
    pub tick: Tick,
}

/// The candidate with the best score, and why.
#[must_use]
pub fn choose<'a>(candidates: Candidates<'a>, known: Known<'_>, random: u64) -> Option<(&'a Arc<Worker>, Verdict)> {
    let blocks = known.prompt.blocks.len();
    let Some(key) = known.prompt.home() else {
        let verdict = Verdict { branch: Branch::NoPrompt, matched: 0, blocks, is_surprise: false };
        return power_of_two::choose(candidates, random).map(|worker| (worker, verdict));
    };
    let loads = Loads::of(candidates);
    let matches = Matches::of(known);
    let survey = Survey::of(candidates, &loads, &matches, key, known);
    let home = survey.free.or(survey.busy)?;
    let expected = matches.place.map_or(survey.first_tag(), |place| place.tag);
    let (worker, branch, matched) = match survey.best {
        Some(best) if best.score >= home.score && best.share >= known.rules.threshold => {
            (best.worker, if survey.is_top_overloaded { Branch::Balance } else { Branch::Cache }, best.blocks)
        }
        _ if survey.is_top_overloaded => (home.worker, Branch::Balance, home.blocks),
        _ if home.worker.tag() == survey.first_tag() => (home.worker, Branch::Home, home.blocks),
        _ => (home.worker, Branch::Spill, home.blocks),
    };
    Some((worker, Verdict { branch, matched, blocks, is_surprise: worker.tag() != expected }))
}

/// How often strain counts for the prompt; once when it is no conversation, for nobody knows what follows.
#[must_use]
pub fn weight(prompt: &Prompt) -> f64 {
    match prompt.session {
        Some(_) if prompt.is_follow_up => RUNNING_WEIGHT,
        Some(_) => NEW_WEIGHT,
        None => 1.0,
    }
}

/// How far a worker's load lies above the mean, from about -1 to 1 and beyond: 1 is twice the mean of a busy cluster.
#[must_use]
pub fn strain(load: usize, mean: f64) -> f64 {
    (load as f64 - mean) / (mean + LOAD_FLOOR as f64)
}

/// The loads of all candidates.
struct Loads {
    least: usize,
    mean: f64,
    /// From this on a home passes new prompts on.
    home_max: usize,
}

impl Loads {
    fn of(candidates: Candidates<'_>) -> Self {
        let (mut least, mut total, mut count) = (usize::MAX, 0, 0_usize);
        for worker in candidates.iter() {
            let load = worker.load();
            least = least.min(load);
            total += load;
            count += 1;
        }
        let count = count.max(1);
        let home_max = ((total + 1) * LOAD_PERCENT).div_ceil(100 * count).max(HOME_LOAD_MIN);
        Self { least, mean: total as f64 / count as f64, home_max }
    }

    fn is_over(&self, load: usize, rules: &Cache) -> bool {
        load > self.least.saturating_add(rules.balance_abs) && load as f64 > rules.balance_rel * self.least as f64
    }
}

/// Who has seen how much of the prompt.
struct Matches {
    seen: index::Candidates,
    /// Where the session went last, as far as this gateway knows.
    place: Option<Holder>,
    /// Bit `tag % 64` of each worker in `seen`.
    filter: u64,
    /// The share of a follow-up that is expected where its session is.
    expected: Option<(usize, f64)>,
    blocks: usize,
}

impl Matches {
    fn of(known: Known<'_>) -> Self {
        let Known { prompt, index, tick, .. } = known;
        let mut seen = index::Candidates::default();
        index.longest(&prompt.blocks, &mut seen);
        let filter = seen.as_slice().iter().fold(0, |filter, (holder, _)| filter | bit(holder.tag));
        let blocks = prompt.blocks.len();
        // The last, incomplete block counts as one here, so that short conversations stay together too.
        let share = (prompt.earlier_blocks + 1) as f64 / (blocks + 1) as f64;
        let expected = prompt.is_follow_up.then_some((prompt.earlier_blocks, share));
        let place = prompt.session.and_then(|session| index.latest(session, tick));
        Self { seen, place, filter, expected, blocks }
    }

    /// Blocks that the worker has seen and what share of the prompt they are. `is_home`: hashing gives it the prompt.
    fn of_worker(&self, worker: &Worker, is_home: bool) -> (usize, f64) {
        let holder = worker.holder();
        let mut found = (0, 0.0);
        if self.filter & bit(holder.tag) != 0
            && let Some((_, blocks)) = self.seen.as_slice().iter().find(|(seen, _)| *seen == holder)
        {
            let blocks = *blocks as usize;
            found = (blocks, blocks as f64 / self.blocks as f64);
        }
        let is_place = self.place.map_or(is_home, |place| place == holder);
        match self.expected {
            Some(expected) if is_place && expected.1 > found.1 => expected,
            _ => found,
        }
    }
}

fn bit(tag: u32) -> u64 {
    1 << (tag % 64)
}

/// A worker with its score.
#[derive(Clone, Copy)]
struct Scored<'a> {
    worker: &'a Arc<Worker>,
    rendezvous: u64,
    blocks: usize,
    share: f64,
    score: f64,
}

/// The workers that matter.
struct Survey<'a> {
    /// First of the rendezvous order, whatever its load.
    first: Option<(u64, &'a Arc<Worker>)>,
    /// First of those that take new prompts.
    free: Option<Scored<'a>>,
    /// First of the others.
    busy: Option<Scored<'a>>,
    /// The best of those that have seen any of it and are not overloaded.
    best: Option<Scored<'a>>,
    /// An overloaded worker has seen more than `best`, and enough.
    is_top_overloaded: bool,
}

impl<'a> Survey<'a> {
    fn of(candidates: Candidates<'a>, loads: &Loads, matches: &Matches, key: u64, known: Known<'_>) -> Self {
        let rank = |worker: &Arc<Worker>| mix(key ^ worker.ring_hash());
        let first = candidates.iter().map(|worker| (rank(worker), worker)).max_by_key(|(rank, _)| *rank);
        let mut survey = Survey { first, free: None, busy: None, best: None, is_top_overloaded: false };
        let (mut top_over, weight) = (0.0_f64, weight(known.prompt));
        for worker in candidates.iter() {
            let (load, rendezvous) = (worker.load(), rank(worker));
            let is_home = first.is_some_and(|(highest, _)| highest == rendezvous);
            let (blocks, share) = matches.of_worker(worker, is_home);
            let far = if worker.is_far() { FAR } else { 0.0 };
            let scored =
                Scored { worker, rendezvous, blocks, share, score: share - weight * strain(load, loads.mean) - far };
            let home = if load < loads.home_max { &mut survey.free } else { &mut survey.busy };
            if home.is_none_or(|home| scored.rendezvous > home.rendezvous) {
                *home = Some(scored);
            }
            if share <= 0.0 {
                continue;
            }
            if loads.is_over(load, known.rules) {
                top_over = top_over.max(share);
            } else if survey.best.is_none_or(|best| scored.score > best.score) {
                survey.best = Some(scored);
            }
        }
        let best = survey.best.map_or(0.0, |best| best.share);
        survey.is_top_overloaded = top_over >= known.rules.threshold && top_over > best;
        survey
    }

    fn first_tag(&self) -> u32 {
        self.first.map_or(0, |(_, worker)| worker.tag())
    }
}

#[cfg(test)]
mod tests;
