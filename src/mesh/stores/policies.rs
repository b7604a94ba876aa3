//! The words of the `policies` namespace: the key is the model name, or [`RATE_LIMIT`].

/// Key of the rate limit among the policies. No model is called that: names of models have no control characters.
pub const RATE_LIMIT: &str = "\0rate-limit";

/// Whether a name is that of a rate limit: [`RATE_LIMIT`] itself, or it and two fields, each after a zero byte, that say
/// of which requests.
#[must_use]
pub fn is_limit(name: &str) -> bool {
    name.strip_prefix(RATE_LIMIT).is_some_and(|rest| {
        let fields = rest.strip_prefix('\0').and_then(|rest| rest.split_once('\0'));
        rest.is_empty() || fields.is_some_and(|(key, model)| !key.chars().chain(model.chars()).any(char::is_control))
    })
}

/// Routing policy of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicySpec {
    /// Name as `--policy` spells it.
    pub policy: String,
    /// Parameters as a JSON object.
    pub config_json: String,
}
