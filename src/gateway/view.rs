//! The immutable routing table that the request path reads.

use std::{collections::HashMap, sync::Arc};

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
}

impl Default for Route {
    fn default() -> Self {
        Self { label: "other".into(), policy: PolicyKind::PowerOfTwo, ready: Vec::new() }
    }
}

/// What a lookup found.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// Workers to choose from, maybe none ready.
    Route(Arc<Route>),
    /// No registered worker serves the model, and some worker is registered.
    UnknownModel,
}

impl RoutingView {
    /// The route of a request. A model that nobody names goes to workers whose models are unknown; with no worker
    /// registered, or none ever asked, the answer is an empty route (503), not an unknown model (404).
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
