//! The hot routes: one match, before any router is asked.

use http::Method;

use crate::gateway::error::GatewayError;

/// What a request is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// Goes to a worker of the model that its body names.
    Serving,
    /// Goes to the worker that has the response that the path names.
    Stored(Below),
    /// Goes to any one ready worker; the body is not looked at.
    AnyWorker,
    /// The models of the ready workers.
    Models,
    /// Alive as long as it answers.
    Liveness,
    /// Whether traffic should come here.
    Readiness,
    /// 200 until the gateway drains.
    Health,
    /// Whatever the control router makes of it.
    Control,
}

/// What of a stored response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Below {
    /// Itself.
    Itself,
    /// `/cancel`.
    Cancel,
    /// `/input_items`.
    InputItems,
}

/// Finds the target of a request and the route template, which is the path itself on all routes but those of stored
/// responses.
///
/// # Errors
///
/// [`GatewayError::MethodNotAllowed`] for a known path with another method.
pub fn find(method: &Method, path: &str) -> Result<(Target, &'static str), (GatewayError, &'static str)> {
    let Some((target, template)) = by_path(path) else { return Ok((Target::Control, "unmatched")) };
    let (is_allowed, allow) = match target {
        Target::Serving | Target::Stored(Below::Cancel) => (*method == Method::POST, "POST"),
        Target::Stored(Below::Itself) => {
            (matches!(*method, Method::GET | Method::HEAD | Method::DELETE), "GET, HEAD, DELETE")
        }
        _ => (*method == Method::GET || *method == Method::HEAD, "GET, HEAD"),
    };
    if is_allowed {
        Ok((target, template))
    } else {
        Err((GatewayError::MethodNotAllowed { allow: Some(allow) }, template))
    }
}

fn by_path(path: &str) -> Option<(Target, &'static str)> {
    Some(match path {
        "/v1/chat/completions" => (Target::Serving, "/v1/chat/completions"),
        "/v1/completions" => (Target::Serving, "/v1/completions"),
        "/v1/embeddings" => (Target::Serving, "/v1/embeddings"),
        "/v1/responses" => (Target::Serving, "/v1/responses"),
        "/v1/rerank" => (Target::Serving, "/v1/rerank"),
        "/v1/messages" => (Target::Serving, "/v1/messages"),
        "/v1/classify" => (Target::Serving, "/v1/classify"),
        "/generate" => (Target::Serving, "/generate"),
        "/rerank" => (Target::Serving, "/rerank"),
        "/v1/models" => (Target::Models, "/v1/models"),
        "/get_model_info" => (Target::AnyWorker, "/get_model_info"),
        "/get_server_info" => (Target::AnyWorker, "/get_server_info"),
        "/health_generate" => (Target::AnyWorker, "/health_generate"),
        "/liveness" => (Target::Liveness, "/liveness"),
        "/readiness" => (Target::Readiness, "/readiness"),
        "/health" => (Target::Health, "/health"),
        _ => return stored(path),
    })
}

fn stored(path: &str) -> Option<(Target, &'static str)> {
    let rest = path.strip_prefix("/v1/responses/").filter(|rest| !rest.is_empty())?;
    Some(match rest.split_once('/') {
        None => (Target::Stored(Below::Itself), "/v1/responses/{id}"),
        Some((_, "cancel")) => (Target::Stored(Below::Cancel), "/v1/responses/{id}/cancel"),
        Some((_, "input_items")) => (Target::Stored(Below::InputItems), "/v1/responses/{id}/input_items"),
        Some(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let not_allowed = |allow| GatewayError::MethodNotAllowed { allow: Some(allow) };
        for (method, path, expected) in [
            (Method::POST, "/v1/chat/completions", Ok((Target::Serving, "/v1/chat/completions"))),
            (Method::GET, "/v1/chat/completions", Err((not_allowed("POST"), "/v1/chat/completions"))),
            (Method::GET, "/v1/models", Ok((Target::Models, "/v1/models"))),
            (Method::HEAD, "/readiness", Ok((Target::Readiness, "/readiness"))),
            (Method::POST, "/liveness", Err((not_allowed("GET, HEAD"), "/liveness"))),
            (Method::GET, "/get_model_info", Ok((Target::AnyWorker, "/get_model_info"))),
            (Method::GET, "/v1/responses/r", Ok((Target::Stored(Below::Itself), "/v1/responses/{id}"))),
            (Method::DELETE, "/v1/responses/r", Ok((Target::Stored(Below::Itself), "/v1/responses/{id}"))),
            (Method::POST, "/v1/responses/r", Err((not_allowed("GET, HEAD, DELETE"), "/v1/responses/{id}"))),
            (Method::POST, "/v1/responses/r/cancel", Ok((Target::Stored(Below::Cancel), "/v1/responses/{id}/cancel"))),
            (Method::GET, "/v1/responses/r/cancel", Err((not_allowed("POST"), "/v1/responses/{id}/cancel"))),
            (
                Method::GET,
                "/v1/responses/r/input_items",
                Ok((Target::Stored(Below::InputItems), "/v1/responses/{id}/input_items")),
            ),
            (Method::GET, "/v1/responses/", Ok((Target::Control, "unmatched"))),
            (Method::GET, "/v1/responses/r/x", Ok((Target::Control, "unmatched"))),
            (Method::GET, "/workers", Ok((Target::Control, "unmatched"))),
            (Method::GET, "/", Ok((Target::Control, "unmatched"))),
        ] {
            assert_eq!(find(&method, path), expected, "{method} {path}");
        }
    }
}
