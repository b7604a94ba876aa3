//! The immutable routing table that the request path reads.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicUsize},
};

use crate::{config::PolicyKind, gateway::worker::Worker};

/// Which workers serve which model, at one moment. Rebuilt by the registry, swapped whole, never locked.
#[derive(Debug, Default)]
pub struct RoutingView {
    /// By model name.
    pub models: HashMap<Box<str>, Arc<Route>>,
    /// For requests that name no model, and for workers whose models are unknown: every ready worker.
    pub any: Arc<Route>,
    /// Ready workers whose models are unknown: they are offered every model that no other worker names.
    pub wildcard: Arc<Route>,
    /// Registered workers, whatever their state.
    pub workers_total: usize,
    /// Ready ones.
    pub workers_ready: usize,
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
}

impl Route {
    /// A route whose round robin begins at its first worker.
    #[must_use]
    pub fn new(label: Arc<str>, policy: PolicyKind, ready: Vec<Arc<Worker>>) -> Self {
        Self { label, policy, ready, cursor: AtomicUsize::new(0) }
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
    /// The route of a request. A model that nobody names goes to workers whose models are unknown; with no worker
    /// ready the answer is an empty route (503), not an unknown model (404), because nobody can tell yet.
    #[must_use]
    pub fn lookup(&self, model: Option<&str>) -> Lookup {
        let Some(model) = model else { return Lookup::Route(self.any.clone()) };
        match self.models.get(model) {
            Some(route) => Lookup::Route(route.clone()),
            None if !self.wildcard.ready.is_empty() || self.workers_ready == 0 => Lookup::Route(self.wildcard.clone()),
            None => Lookup::UnknownModel,
        }
    }
}
