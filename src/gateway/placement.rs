//! What the request path remembers of a choice: that the worker sees this prompt now.

use crate::gateway::{
    core::Core,
    policy::{Chosen, Facts},
    view::Route,
};

/// Records that the chosen worker sees the prompt, and counts how the choice came about: of policies that look at caches.
/// What the worker has seen is exact in the verdict afterwards, as far as this gateway knows.
pub(crate) fn note(core: &Core, route: &Route, facts: Facts<'_>, chosen: &mut Chosen) {
    let index = route.affinity.as_ref().and_then(|affinity| affinity.index.as_deref());
    let (Some(verdict), Some(prompt), Some(index)) = (&mut chosen.verdict, facts.prompt, index) else { return };
    let names = prompt.blocks.iter().copied().chain(prompt.session);
    let seen = index.record(names, chosen.worker.holder(), facts.tick).min(verdict.blocks);
    verdict.matched = verdict.matched.max(seen);
    core.metrics.cache_aware(verdict.branch.as_str(), verdict.matched, verdict.blocks);
}
