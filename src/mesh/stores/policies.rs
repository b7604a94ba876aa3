//! The words of the `policies` namespace: the key is the model name, or [`RATE_LIMIT`].

/// Key of the rate limit among the policies. No model is called that: names of models have no control characters.
pub const RATE_LIMIT: &str = "\0rate-limit";

/// Routing policy of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicySpec {
    /// Name as `--policy` spells it.
    pub policy: String,
    /// Parameters as a JSON object.
    pub config_json: String,
}
