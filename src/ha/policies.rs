//! `/ha/policies`: which policy each model has.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    config::PolicyKind,
    gateway::{prefix::index, registry::table::DEFAULT_MODEL, view::RoutingView},
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
    /// The prefix index of the model in this gateway's memory, where the policy has one and the model is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<Index>,
}

/// How full a prefix index is.
#[derive(Debug, Serialize)]
pub struct Index {
    /// Prefixes known.
    pub entry_count: usize,
    /// Bytes that they take.
    pub bytes: usize,
    /// Bytes that they may take.
    pub bytes_max: usize,
    /// Prefixes that left for others since the start.
    pub evictions: u64,
}

/// Body of `PUT /ha/policies/{model}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    policy: String,
    #[serde(default)]
    config: Map<String, Value>,
}

/// Reads the body of `PUT /ha/policies/{model}`: `{"policy": name, "config": {…}}`, `config` being optional.
///
/// # Errors
/// What to change: not such a JSON object, a policy that is unknown, or a parameter that the policy does not have. None of
/// today's policies has any.
pub fn read(body: &[u8]) -> Result<PolicySpec, String> {
    let Body { policy, config } = serde_json::from_slice(body)
        .map_err(|error| format!("the body is to be like {{\"policy\":\"random\"}}: {error}"))?;
    if policy.parse::<PolicyKind>().is_err() {
        let known = PolicyKind::ALL.map(PolicyKind::as_str).join(", ");
        return Err(format!("no policy is called {policy:?}; there are {known}"));
    }
    if let Some(parameter) = config.keys().next() {
        return Err(format!("policy {policy} has no parameter {parameter:?}"));
    }
    Ok(PolicySpec { policy, config_json: Value::Object(config).to_string() })
}

/// The default as `*`, then those that were set and those of models with a prefix index, sorted by model.
#[must_use]
pub fn all(view: &View, default: PolicyKind, routing: &RoutingView) -> Vec<Shown> {
    let set = view.policies.iter().map(|(model, _)| &**model).filter(|model| *model != DEFAULT_MODEL);
    let indexed = routing.models.iter().filter(|(_, route)| route.index_stats().is_some());
    let models: BTreeSet<&str> = set.chain(indexed.map(|(model, _)| &**model)).collect();
    let shown = models.into_iter().filter_map(|model| one(view, default, model, routing));
    std::iter::once(default_of(view, default, DEFAULT_MODEL)).chain(shown).collect()
}

/// The policy of one model: what was set for it, else the default when the model is served; else none.
#[must_use]
pub fn one(view: &View, default: PolicyKind, model: &str, routing: &RoutingView) -> Option<Shown> {
    let route = routing.models.get(model);
    let found = match set(view, model) {
        Some(spec) => shown(model, spec),
        None if route.is_some() || model == DEFAULT_MODEL => default_of(view, default, model),
        None => return None,
    };
    let index = route.and_then(|route| route.index_stats()).map(|stats| {
        let index::Stats { entries, bytes, bytes_max, evictions } = stats;
        Index { entry_count: entries, bytes, bytes_max, evictions }
    });
    Some(Shown { index, ..found })
}

fn default_of(view: &View, default: PolicyKind, model: &str) -> Shown {
    match set(view, DEFAULT_MODEL) {
        Some(spec) => shown(model, spec),
        None => {
            let (model, policy) = (model.into(), default.as_str().into());
            Shown { model, policy, config: Value::Object(Map::new()), index: None }
        }
    }
}

fn set<'a>(view: &'a View, model: &str) -> Option<&'a PolicySpec> {
    let index = view.policies.binary_search_by(|(name, _)| (**name).cmp(model)).ok()?;
    Some(&view.policies[index].1)
}

/// One policy as it is shown.
#[must_use]
pub fn shown(model: &str, spec: &PolicySpec) -> Shown {
    // What is not JSON came from a node that does not check; it has no effect either.
    let config = serde_json::from_str(&spec.config_json).unwrap_or_else(|_| Value::Object(Map::new()));
    Shown { model: model.into(), policy: spec.policy.clone(), config, index: None }
}
