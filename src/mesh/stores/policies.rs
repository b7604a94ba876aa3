//! The words of the `policies` namespace: the key is the model name.

/// Routing policy of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicySpec {
    /// Name as `--policy` spells it.
    pub policy: String,
    /// Parameters as a JSON object.
    pub config_json: String,
}
