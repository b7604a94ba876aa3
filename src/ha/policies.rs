//! `/ha/policies`: which policy each model has.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    config::PolicyKind,
    gateway::registry::table::DEFAULT_MODEL,
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
    let Body { policy, config } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if policy.parse::<PolicyKind>().is_err() {
        let known = PolicyKind::ALL.map(PolicyKind::as_str).join(", ");
        return Err(format!("no policy is called {policy:?}; there are {known}"));
    }
    if let Some(parameter) = config.keys().next() {
        return Err(format!("policy {policy} has no parameter {parameter:?}"));
    }
    Ok(PolicySpec { policy, config_json: Value::Object(config).to_string() })
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
        None => Shown { model: model.into(), policy: default.as_str().into(), config: Value::Object(Map::new()) },
    }
}

fn set<'a>(view: &'a View, model: &str) -> Option<&'a PolicySpec> {
    view.policies.iter().find(|(name, _)| name == model).map(|(_, spec)| spec)
}

/// One policy as it is shown.
#[must_use]
pub fn shown(model: &str, spec: &PolicySpec) -> Shown {
    // What is not JSON came from a node that does not check; it has no effect either.
    let config = serde_json::from_str(&spec.config_json).unwrap_or_else(|_| Value::Object(Map::new()));
    Shown { model: model.into(), policy: spec.policy.clone(), config }
}
