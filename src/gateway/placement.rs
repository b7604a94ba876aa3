//! What the request path remembers of a choice: that the worker sees this prompt now.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::{
    gateway::{
        core::Core,
        policy::{Chosen, Facts},
        prefix::{Prompt, index::Tick},
        view::Route,
    },
    mesh::routing::Placement,
};

/// Length of a tick in milliseconds.
pub(crate) const TICK_MS: u32 = 250;

/// Names of new blocks that a surprise tells, besides its session.
pub const SURPRISE_BLOCKS_MAX: usize = 64;

/// The time of the prefix indexes of this process.
pub(crate) fn tick(now: Instant) -> Tick {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    // An instant before the first call, as of a request that was read before it, is at the beginning too.
    let since: Duration = now.saturating_duration_since(*EPOCH.get_or_init(|| now));
    (since.as_millis() / u128::from(TICK_MS)) as Tick
}

/// Records that the chosen worker sees the prompt, counts how the choice came about, and has the other gateways told
/// when they would not expect it: of policies that look at caches. What the worker has seen is exact in the verdict
/// afterwards, as far as this gateway knows.
pub(crate) fn note(core: &Core, route: &Route, facts: Facts<'_>, chosen: &mut Chosen) {
    let index = route.affinity.as_ref().and_then(|affinity| affinity.index.as_deref());
    let (Some(verdict), Some(prompt), Some(index)) = (&mut chosen.verdict, facts.prompt, index) else { return };
    let names = prompt.blocks.iter().copied().chain(prompt.session);
    let holder = chosen.worker.holder();
    let seen = index.record(names, holder, facts.tick).min(verdict.blocks);
    verdict.matched = verdict.matched.max(seen);
    core.metrics.cache_aware(verdict.branch.as_str(), verdict.matched, verdict.blocks);
    let placer = &core.shared().placer;
    let is_told = verdict.is_surprise && placer.is_heard();
    let names = if is_told { surprise(prompt, seen) } else { Vec::new() };
    if !names.is_empty() {
        let (model, worker, generation) = (route.label.clone(), holder.tag, holder.generation);
        if !placer.place(Placement { model, worker, generation, age_ms: 0, names }) {
            core.metrics.cache_shared("dropped", 1);
        }
    }
}

/// What others are told of a prompt that went where they would not expect it: its session, and the first blocks that
/// its worker had not seen.
#[must_use]
pub fn surprise(prompt: &Prompt, seen: usize) -> Vec<u64> {
    let new = prompt.blocks.get(seen..).unwrap_or_default();
    prompt.session.into_iter().chain(new.iter().copied().take(SURPRISE_BLOCKS_MAX)).collect()
}
