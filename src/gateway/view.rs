//! The immutable routing table that the request path reads.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};

use crate::{
    config::{Cache, PolicyKind},
    gateway::{
        prefix::{HashKey, Index, index},
        worker::Worker,
    },
};

/// Which workers serve which model, at one moment. Rebuilt by the registry, swapped whole, never locked.
#[derive(Debug, Default)]
pub struct RoutingView {
    /// By model name.
    pub models: HashMap<Box<str>, Arc<Route>>,
    /// For requests that name no model, and for workers whose models are unknown: every ready worker.
    pub any: Arc<Route>,
    /// Ready workers whose models are unknown: they are offered every model that no other worker names.
    pub wildcard: Arc<Route>,
    /// Until then some worker, just registered, may serve models that nobody names yet; see
    /// [`UNASKED_MAX`](crate::gateway::registry::keeper::UNASKED_MAX).
    pub unasked_until: Option<Instant>,
    /// Every registered worker, sorted by id, for requests that name one.
    pub registered: Vec<Registered>,
    /// The cluster's state is not here yet: nothing is routed, whatever the workers' state.
    pub is_joining: bool,
    /// Registered workers, whatever their state.
    pub workers_total: usize,
    /// Ready ones.
    pub workers_ready: usize,
}

/// A registered worker, whatever its state.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The worker.
    pub worker: Arc<Worker>,
    /// Whether it takes requests.
    pub is_ready: bool,
}

/// The workers for one model and how to choose among them.
#[derive(Debug)]
pub struct Route {
    /// Model name for metrics; `other` where it is no known model.
    pub label: Arc<str>,
    /// How to choose.
    pub policy: PolicyKind,
    /// Ready workers, sorted by id. Empty: known but none is ready.
    pub ready: Vec<Arc<Worker>>,
    /// Turns taken by round robin; wraps around. Goes on across rebuilds.
    pub cursor: AtomicUsize,
    /// What the policies that look at prompts need; none for the others.
    pub affinity: Option<Affinity>,
}

/// What choosing by prompt needs.
#[derive(Clone, Debug)]
pub struct Affinity {
    /// Key of the names.
    pub key: Arc<HashKey>,
    /// Who has seen what, for the policy that remembers it. Goes on across rebuilds.
    pub index: Option<Arc<Index>>,
    /// The thresholds.
    pub rules: Cache,
}

impl Route {
    /// A route whose round robin begins at its first worker.
    #[must_use]
    pub fn new(label: Arc<str>, policy: PolicyKind, ready: Vec<Arc<Worker>>) -> Self {
        Self { label, policy, ready, cursor: AtomicUsize::new(0), affinity: None }
    }
}

impl Route {
    /// How full its prefix index is; none when its policy has none.
    #[must_use]
    pub fn index_stats(&self) -> Option<index::Stats> {
        Some(self.affinity.as_ref()?.index.as_ref()?.stats())
    }
}

impl Default for Route {
    fn default() -> Self {
        Self::new("other".into(), PolicyKind::PowerOfTwo, Vec::new())
    }
}

/// What a lookup found.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// Workers to choose from, maybe none ready.
    Route(Arc<Route>),
    /// No registered worker serves the model, and some worker is ready.
    UnknownModel,
}

impl RoutingView {
    /// The route of a request. A model that nobody names goes to workers whose models are unknown. While nobody can
    /// tell yet, because no worker is ready or one was not asked yet, the answer is an empty route (503), not an unknown
    /// model (404).
    #[must_use]
    pub fn lookup(&self, model: Option<&str>, now: Instant) -> Lookup {
        let Some(model) = model else { return Lookup::Route(self.any.clone()) };
        if let Some(route) = self.models.get(model) {
            return Lookup::Route(route.clone());
        }
        let is_unasked = self.unasked_until.is_some_and(|until| now < until);
        if !self.wildcard.ready.is_empty() || self.workers_ready == 0 || is_unasked {
            Lookup::Route(self.wildcard.clone())
        } else {
            Lookup::UnknownModel
        }
    }
}
