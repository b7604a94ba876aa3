//! `/ha/policies`: which policy each model has.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    config::PolicyKind,
    gateway::{policy, registry::table::DEFAULT_MODEL},
    mesh::{driver::handle::View, stores::PolicySpec},
};

/// One policy.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The model; `*` for all that have none of their own.
    pub model: String,
    /// Its name, as `--policy` spells it.
    pub policy: String,
    /// Its parameters.
    pub config: Value,
}

/// The default as `*`, then those that were set, sorted by model.
#[must_use]
pub fn all(view: &View, default: PolicyKind) -> Vec<Shown> {
    let default = default_of(view, default, DEFAULT_MODEL);
    let set = view.policies.iter().filter(|(model, _)| model != DEFAULT_MODEL);
    std::iter::once(default).chain(set.map(|(model, spec)| shown(model, spec))).collect()
}

/// The policy of one model: what was set for it, else the default when the model `is_served`; else none.
#[must_use]
pub fn one(view: &View, default: PolicyKind, model: &str, is_served: bool) -> Option<Shown> {
    match set(view, model) {
        Some(spec) => Some(shown(model, spec)),
        None if is_served || model == DEFAULT_MODEL => Some(default_of(view, default, model)),
        None => None,
    }
}

fn default_of(view: &View, default: PolicyKind, model: &str) -> Shown {
    match set(view, DEFAULT_MODEL) {
        Some(spec) => shown(model, spec),
        None => Shown { model: model.into(), policy: policy::name(default).into(), config: Value::Object(Map::new()) },
    }
}

fn set<'a>(view: &'a View, model: &str) -> Option<&'a PolicySpec> {
    view.policies.iter().find(|(name, _)| name == model).map(|(_, spec)| spec)
}

fn shown(model: &str, spec: &PolicySpec) -> Shown {
    // What is not JSON came from a node that does not check; it has no effect either.
    let config = serde_json::from_str(&spec.config_json).unwrap_or_else(|_| Value::Object(Map::new()));
    Shown { model: model.into(), policy: spec.policy.clone(), config }
}
