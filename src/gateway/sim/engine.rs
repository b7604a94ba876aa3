//! A worker's prefix cache, and the choice of somebody who sees all of them.

use std::collections::{BTreeMap, HashMap};

use crate::{
    config::Cache,
    gateway::{
        policy::cache_aware::{strain, weight},
        prefix::Prompt,
    },
};

/// Blocks by name, least recently used leave first. A prompt's blocks are touched from the last to the first, so that no
/// block is there without its predecessor.
#[derive(Debug)]
pub(super) struct Engine {
    blocks_max: usize,
    last_use: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
    clock: u64,
}

impl Engine {
    pub(super) fn new(blocks_max: usize) -> Self {
        Self { blocks_max, last_use: HashMap::new(), by_use: BTreeMap::new(), clock: 0 }
    }

    /// Blocks of the prompt that are here, from the first on.
    pub(super) fn known(&self, blocks: &[u64]) -> usize {
        blocks.partition_point(|block| self.last_use.contains_key(block))
    }

    /// Takes a prompt in; gives how many of its blocks were here.
    pub(super) fn serve(&mut self, blocks: &[u64]) -> usize {
        let known = self.known(blocks);
        for block in blocks.iter().rev() {
            self.clock += 1;
            if let Some(before) = self.last_use.insert(*block, self.clock) {
                self.by_use.remove(&before);
            }
            self.by_use.insert(self.clock, *block);
        }
        while self.last_use.len() > self.blocks_max
            && let Some((_, block)) = self.by_use.pop_first()
        {
            self.last_use.remove(&block);
        }
        known
    }
}

/// The worker with the best score as [`cache_aware`](crate::gateway::policy::cache_aware) has it, from what is really in
/// the caches and in flight.
pub(super) fn best(engines: &[Engine], busy: &[usize], prompt: &Prompt) -> usize {
    let (mean, least) = (busy.iter().sum::<usize>() as f64 / busy.len() as f64, busy.iter().min().copied());
    let (rules, least) = (Cache::default(), least.unwrap_or(0));
    let score = |worker: usize| {
        let (load, share) = (busy[worker], engines[worker].known(&prompt.blocks) as f64 / prompt.blocks.len() as f64);
        let is_over = load > least + rules.balance_abs && load as f64 > rules.balance_rel * least as f64;
        let share = if is_over || share < rules.threshold { 0.0 } else { share };
        share - weight(prompt) * strain(load, mean)
    };
    let best = (0..engines.len()).map(|worker| (score(worker), worker));
    best.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |(_, worker)| worker)
}
