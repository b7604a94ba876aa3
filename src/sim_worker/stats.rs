//! What `GET /sim/stats` tells, for tests to assert on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// Counts since start. All are exact; `active`, `waiting` and `peak_concurrency` count the routes that generate.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stats {
    /// Requests to the routes that generate, refused and faulty ones included.
    pub requests: u64,
    /// Those answered in full.
    pub completed_requests: u64,
    /// Those whose client left before the end.
    pub aborted_requests: u64,
    /// Requests of any route that a fault decided.
    pub faults: u64,
    /// Refused because the queue was full.
    pub queue_full: u64,
    /// Holding a slot now.
    pub active: u64,
    /// Waiting for a slot now.
    pub waiting: u64,
    /// The most that ever held a slot at once.
    pub peak_concurrency: u64,
    /// Prompt tokens of requests whose prefill ended, cached ones included.
    pub prompt_tokens: u64,
    /// Those of them that came from the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated and handed to the connection.
    pub completion_tokens: u64,
    /// Tokens in the prefix cache now.
    pub cache_tokens: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) completed: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) queue_full: AtomicU64,
    pub(super) active: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) peak: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    pub(super) completion_tokens: AtomicU64,
}

impl Counters {
    /// A reading; `cache_tokens` comes from the cache itself.
    pub(super) fn read(&self, cache_tokens: u64) -> Stats {
        Stats {
            requests: self.requests.load(Relaxed),
            completed_requests: self.completed.load(Relaxed),
            aborted_requests: self.aborted.load(Relaxed),
            faults: self.faults.load(Relaxed),
            queue_full: self.queue_full.load(Relaxed),
            active: self.active.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            peak_concurrency: self.peak.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            cached_tokens: self.cached_tokens.load(Relaxed),
            completion_tokens: self.completion_tokens.load(Relaxed),
            cache_tokens,
        }
    }
}
