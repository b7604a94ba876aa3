//! Metrics of cache-aware routing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use opentelemetry::{
    KeyValue, StringValue,
    metrics::{BoundCounter, BoundHistogram, Meter},
};

use super::{MODELS_MAX, Metrics, OTHER_MODEL, Source, counters_by_one, definitions as def, family::Family, gauge};

/// The prefix index of one model at the time of a scrape.
#[derive(Clone, Debug)]
pub struct CacheSample {
    /// Label `model`; several may have the same.
    pub model: Arc<str>,
    /// Bytes in use.
    pub bytes: u64,
    /// Prefixes that left for others, so far.
    pub evictions: u64,
}

/// Instruments of cache-aware routing.
pub(super) struct Caches {
    branches: Family<&'static str, BoundCounter<u64>>,
    ratio: BoundHistogram<f64>,
    shared: Family<&'static str, BoundCounter<u64>>,
    source: Source<Vec<CacheSample>>,
    /// Tokens of prompts, and those of them that a cache had.
    tokens: [AtomicU64; 2],
}

impl Caches {
    pub(super) fn new(meter: &Meter) -> Self {
        let source = Source::default();
        observe(meter, &source);
        let ratio = meter.f64_histogram(def::CACHE_MATCH.name).with_description(def::CACHE_MATCH.help);
        let ratio = ratio.with_boundaries(def::RATIO_BUCKETS.to_vec()).build().bind(&[]);
        let [branches, shared] = [&def::CACHE_BRANCH, &def::CACHE_SHARED].map(|which| counters_by_one(meter, which));
        Self { branches, ratio, shared, source, tokens: Default::default() }
    }

    /// Counts for [`Metrics::cached_tokens`].
    pub(super) fn add_tokens(&self, prompt: u64, cached: u64) {
        for (sum, tokens) in self.tokens.iter().zip([prompt, cached]) {
            sum.fetch_add(tokens, Ordering::Relaxed);
        }
    }
}

impl Metrics {
    /// `smg_cache_aware_policy_branch_total{branch}`, and `smg_cache_aware_match_ratio` of prompts of a block or more.
    pub fn cache_aware(&self, branch: &'static str, matched: usize, blocks: usize) {
        self.caches.branches.with(&branch, |counter| counter.add(1));
        if blocks > 0 {
            self.caches.ratio.record(matched as f64 / blocks as f64);
        }
    }

    /// `smg_cache_aware_placements_total{direction}`: sent, received, dropped.
    pub fn cache_shared(&self, direction: &'static str, placements: usize) {
        self.caches.shared.with(&direction, |counter| counter.add(placements as u64));
    }

    /// Tokens of prompts that workers reported, and those of them that a cache had.
    #[must_use]
    pub fn cached_tokens(&self) -> (u64, u64) {
        let [prompt, cached] = &self.caches.tokens;
        (prompt.load(Ordering::Relaxed), cached.load(Ordering::Relaxed))
    }

    /// Source of `smg_cache_aware_index_bytes{model}` and `smg_cache_aware_index_evictions_total{model}`; called at each
    /// scrape. Beyond [`MODELS_MAX`] models the others count as `other`.
    ///
    /// A later source replaces an earlier one.
    pub fn watch_caches(&self, source: impl Fn() -> Vec<CacheSample> + Send + Sync + 'static) {
        self.caches.source.store(Some(Arc::new(Box::new(source))));
    }
}

fn observe(meter: &Meter, source: &Source<Vec<CacheSample>>) {
    let by_model = |source: &Source<Vec<CacheSample>>| {
        let mut found: BTreeMap<Arc<str>, (u64, u64)> = BTreeMap::new();
        for sample in source.load().iter().flat_map(|source| source()) {
            let is_full = found.len() >= MODELS_MAX && !found.contains_key(&sample.model);
            let model = if is_full { Arc::from(OTHER_MODEL) } else { sample.model };
            let sum = found.entry(model).or_default();
            *sum = (sum.0 + sample.bytes, sum.1 + sample.evictions);
        }
        found.into_iter().map(|(model, sum)| ([KeyValue::new("model", StringValue::from(model))], sum))
    };
    let bytes = source.clone();
    gauge(meter, &def::CACHE_BYTES, move |gauge| {
        for (model, (bytes, _)) in by_model(&bytes) {
            gauge.observe(i64::try_from(bytes).unwrap_or(i64::MAX), &model);
        }
    });
    let source = source.clone();
    let evictions = meter.u64_observable_counter(def::CACHE_EVICTIONS.name);
    let evictions = evictions.with_description(def::CACHE_EVICTIONS.help).with_callback(move |counter| {
        for (model, (_, evictions)) in by_model(&source) {
            counter.observe(evictions, &model);
        }
    });
    let _registered = evictions.build();
}
