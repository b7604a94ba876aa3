//! What all requests share: slots, prefix cache, faults, counters, stored responses.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    Args,
    cache::PrefixCache,
    faults::{Fault, Kind, Plan},
    http::ApiError,
    responses::Stored,
    stats::{Counters, Stats},
};

/// The worker behind its routes.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) args: Args,
    pub(super) name: String,
    pub(super) responses: Mutex<Stored>,
    /// Cancelled by a `crash` fault.
    pub(super) crash: CancellationToken,
    slots: Option<Arc<Semaphore>>,
    cache: Mutex<PrefixCache>,
    faults: Mutex<Arc<Plan>>,
    counters: Counters,
    serial: AtomicU64,
}

impl Engine {
    pub(super) fn new(args: Args, name: String) -> Self {
        Self {
            name,
            responses: Mutex::default(),
            crash: CancellationToken::new(),
            slots: (args.max_concurrency > 0).then(|| Arc::new(Semaphore::new(args.max_concurrency as usize))),
            cache: Mutex::new(PrefixCache::new(args.cache_tokens, args.cache_block_tokens)),
            faults: Mutex::new(Arc::new(Plan::new(args.faults.clone()))),
            counters: Counters::default(),
            serial: AtomicU64::new(0),
            args,
        }
    }

    /// Counts a request to a generating route in.
    pub(super) fn begin(self: &Arc<Self>) -> Ticket {
        self.counters.requests.fetch_add(1, Relaxed);
        Ticket { engine: self.clone(), slot: None, holds_slot: false, is_settled: false, truncates: false }
    }

    /// The fate of a request to `path`, counted when there is one.
    pub(super) fn fate(&self, path: &str, generates: bool) -> Option<Kind> {
        let plan = self.plan();
        let kind = plan.decide(path, generates)?;
        self.counters.faults.fetch_add(1, Relaxed);
        Some(kind)
    }

    /// Replaces all armed faults.
    pub(super) fn arm(&self, faults: Vec<Fault>) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Plan::new(faults));
    }

    /// What is armed.
    pub(super) fn plan(&self) -> Arc<Plan> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counters now.
    pub(super) fn stats(&self) -> Stats {
        let cache_tokens = self.cache().tokens();
        self.counters.read(cache_tokens)
    }

    /// Empties the prefix cache.
    pub(super) fn flush_cache(&self) {
        self.cache().clear();
    }

    /// The served model that `named` means: itself, or the first one when the request named none.
    pub(super) fn model(&self, named: Option<&str>) -> Result<String, ApiError> {
        match named {
            None => self.args.models.first().cloned().ok_or_else(|| ApiError::model_not_found("")),
            Some(name) if self.args.models.iter().any(|model| model == name) => Ok(name.to_owned()),
            Some(name) => Err(ApiError::model_not_found(name)),
        }
    }

    /// Blocks of `prompt` for [`Ticket::prefill`].
    pub(super) fn chain(&self, model: &str, prompt: &str) -> Vec<u64> {
        self.cache().chain(model, prompt)
    }

    /// A number that this worker gives out once.
    pub(super) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Relaxed)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, PrefixCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request to a generating route. Dropped before it is settled, it counts as aborted by its client.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) engine: Arc<Engine>,
    /// A `truncate` fault decided this request.
    pub(super) truncates: bool,
    slot: Option<OwnedSemaphorePermit>,
    holds_slot: bool,
    is_settled: bool,
}

impl Ticket {
    /// Waits for a slot, then for the prefill of what is not cached; returns the cached tokens.
    ///
    /// # Errors
    /// 503 when the queue is full; nothing was done then.
    pub(super) async fn prefill(&mut self, prompt_tokens: u32, chain: &[u64]) -> Result<u32, ApiError> {
        self.take_slot().await?;
        let engine = self.engine.clone();
        let cached = if chain.is_empty() { 0 } else { engine.cache().lookup(chain, prompt_tokens) };
        let rate = engine.args.prefill_tokens_per_second;
        let mut wait = Duration::from_millis(engine.args.ttft_ms);
        let missing = u64::from(prompt_tokens - cached);
        wait += Duration::from_nanos((missing * 1_000_000_000).checked_div(rate).unwrap_or(0));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if !chain.is_empty() {
            engine.cache().insert(chain);
        }
        engine.counters.prompt_tokens.fetch_add(prompt_tokens.into(), Relaxed);
        engine.counters.cached_tokens.fetch_add(cached.into(), Relaxed);
        Ok(cached)
    }

    /// Counts generated tokens.
    pub(super) fn generated(&self, tokens: u32) {
        self.engine.counters.completion_tokens.fetch_add(tokens.into(), Relaxed);
    }

    /// The answer went out in full.
    pub(super) fn complete(mut self) {
        self.engine.counters.completed.fetch_add(1, Relaxed);
        self.is_settled = true;
    }

    /// The worker itself ended the request, by an error or a fault.
    pub(super) fn refuse(mut self) {
        self.is_settled = true;
    }

    async fn take_slot(&mut self) -> Result<(), ApiError> {
        if let Some(slots) = &self.engine.slots {
            self.slot = match slots.clone().try_acquire_owned() {
                Ok(slot) => Some(slot),
                Err(_) => Some(self.wait_for_slot(slots.clone()).await?),
            };
        }
        self.holds_slot = true;
        let active = self.engine.counters.active.fetch_add(1, Relaxed) + 1;
        self.engine.counters.peak.fetch_max(active, Relaxed);
        Ok(())
    }

    async fn wait_for_slot(&self, slots: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = Waiting(&self.engine.counters);
        if place.0.waiting.fetch_add(1, Relaxed) >= u64::from(self.engine.args.queue_size) {
            place.0.queue_full.fetch_add(1, Relaxed);
            return Err(ApiError::overloaded("the request queue is full"));
        }
        slots.acquire_owned().await.map_err(|_| ApiError::overloaded("the worker is closing"))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.holds_slot {
            self.engine.counters.active.fetch_sub(1, Relaxed);
        }
        if !self.is_settled {
            self.engine.counters.aborted.fetch_add(1, Relaxed);
        }
    }
}

/// A place in the queue, given back when dropped.
struct Waiting<'a>(&'a Counters);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
