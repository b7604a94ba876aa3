//! The prefix cache: whole blocks of prompt, least recently used leave first.
//!
//! A block is named by a hash of its bytes chained to its predecessor's name, so equal names mean equal prefixes (as in
//! vLLM's automatic prefix caching). A prompt's blocks are touched from the last to the first: a prefix is always more
//! recently used than what extends it, and eviction takes leaves before roots, so a cached block never lacks its
//! predecessor.

use std::collections::{BTreeMap, HashMap};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::prompt::TOKEN_BYTES;

/// Prefixes seen, within a budget of `blocks_max` blocks of about 100 bytes of memory each.
#[derive(Debug)]
pub(super) struct PrefixCache {
    block_tokens: u32,
    blocks_max: usize,
    last_use: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
    clock: u64,
}

impl PrefixCache {
    /// An empty cache of `tokens_max` tokens, rounded down to whole blocks of `block_tokens` (at least 1).
    pub(super) fn new(tokens_max: u32, block_tokens: u32) -> Self {
        let blocks_max = (tokens_max / block_tokens) as usize;
        Self { block_tokens, blocks_max, last_use: HashMap::new(), by_use: BTreeMap::new(), clock: 0 }
    }

    /// The names of the whole blocks of `prompt`; none when nothing is ever kept.
    pub(super) fn chain(&self, model: &str, prompt: &str) -> Vec<u64> {
        if self.blocks_max == 0 {
            return Vec::new();
        }
        let mut name = xxh3_64_with_seed(model.as_bytes(), 0);
        prompt
            .as_bytes()
            .chunks_exact(self.block_tokens as usize * TOKEN_BYTES)
            .map(|block| {
                name = xxh3_64_with_seed(block, name);
                name
            })
            .collect()
    }

    /// How many tokens of the prompt with these blocks are here; the blocks count as used.
    ///
    /// The result is below `prompt_tokens`: an engine computes at least one token to have logits to sample from.
    pub(super) fn lookup(&mut self, chain: &[u64], prompt_tokens: u32) -> u32 {
        let found = chain.iter().take_while(|name| self.last_use.contains_key(name)).count();
        self.touch(&chain[..found]);
        let tokens = u32::try_from(found).unwrap_or(u32::MAX).saturating_mul(self.block_tokens);
        tokens.min(prompt_tokens.saturating_sub(1))
    }

    /// Keeps these blocks, as many from the start as the budget allows, at the cost of the least recently used.
    pub(super) fn insert(&mut self, chain: &[u64]) {
        self.touch(&chain[..chain.len().min(self.blocks_max)]);
        while self.last_use.len() > self.blocks_max
            && let Some((_, name)) = self.by_use.pop_first()
        {
            self.last_use.remove(&name);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.last_use.clear();
        self.by_use.clear();
    }

    /// Tokens held now.
    pub(super) fn tokens(&self) -> u64 {
        self.last_use.len() as u64 * u64::from(self.block_tokens)
    }

    fn touch(&mut self, chain: &[u64]) {
        for name in chain.iter().rev() {
            self.clock += 1;
            if let Some(before) = self.last_use.insert(*name, self.clock) {
                self.by_use.remove(&before);
            }
            self.by_use.insert(self.clock, *name);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(cache: &mut PrefixCache, prompt: &str) -> u32 {
        let chain = cache.chain("m", prompt);
        let cached = cache.lookup(&chain, super::super::prompt::tokens(prompt));
        cache.insert(&chain);
        cached
    }

    #[test]
    fn shared_prefixes_are_found_in_whole_blocks() {
        // Blocks of 2 tokens are 8 bytes.
        for (case, first, second, expected) in [
            ("same, not whole blocks", "aaaaaaaabbbb", "aaaaaaaabbbb", 2),
            ("same, whole blocks, one token short", "aaaaaaaabbbbbbbb", "aaaaaaaabbbbbbbb", 3),
            ("extended", "aaaaaaaa", "aaaaaaaabbbbbbbbcc", 2),
            ("differs in the first block", "aaaaaaaabbbbbbbb", "xaaaaaaabbbbbbbb", 0),
            ("shorter than a block", "aaaa", "aaaa", 0),
        ] {
            let mut cache = PrefixCache::new(100, 2);
            assert_eq!(ask(&mut cache, first), 0, "{case}");
            assert_eq!(ask(&mut cache, second), expected, "{case}");
        }
    }

    #[test]
    fn models_share_nothing() {
        let cache = PrefixCache::new(100, 2);
        assert_ne!(cache.chain("a", "12345678"), cache.chain("b", "12345678"));
    }

    #[test]
    fn least_recently_used_leaves_first() {
        let mut cache = PrefixCache::new(4, 2);
        ask(&mut cache, "aaaaaaaa.");
        ask(&mut cache, "bbbbbbbb.");
        assert_eq!(ask(&mut cache, "aaaaaaaa."), 2);
        ask(&mut cache, "cccccccc.");
        assert_eq!(ask(&mut cache, "aaaaaaaa."), 2);
        assert_eq!(ask(&mut cache, "bbbbbbbb."), 0);
    }

    #[test]
    fn nothing_is_kept_without_a_budget() {
        let mut cache = PrefixCache::new(0, 16);
        assert!(cache.chain("m", &"a".repeat(1000)).is_empty());
        cache.insert(&[1, 2]);
        assert_eq!(cache.tokens(), 0);
    }

    proptest! {
        #[test]
        fn budget_holds_and_prefixes_are_closed(prompts in prop::collection::vec("[ab]{0,64}", 1..40)) {
            let mut cache = PrefixCache::new(10, 1);
            for prompt in prompts {
                ask(&mut cache, &prompt);
                prop_assert!(cache.tokens() <= 10);
                prop_assert_eq!(cache.last_use.len(), cache.by_use.len());
                // What is found now is the longest cached prefix: nothing beyond the first gap is cached.
                let chain = cache.chain("m", &prompt);
                let found = chain.iter().take_while(|name| cache.last_use.contains_key(name)).count();
                prop_assert!(chain[found..].iter().all(|name| !cache.last_use.contains_key(name)));
            }
        }
    }
}
