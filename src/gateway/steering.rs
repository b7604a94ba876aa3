//! What a client may say about the way of its request, and what it may be told of it.
//!
//! - `X-SMG-Target-Worker`: the one worker to ask, by its id, its URL or its index in `GET /workers`. No policy chooses
//!   and no other worker is asked; whether that worker serves the model is for it to say. The model must be known.
//! - `X-SMG-Routing-Key`: 1 to [`ROUTING_KEY_BYTES_MAX`] bytes, the key of the policies consistent_hashing and manual;
//!   see [`policy`](crate::gateway::policy). Without it the request's `user` is the key.
//! - `X-SMG-Explain: 1`: the answer carries `X-SMG-Route`, which says how it came about, as
//!   `policy=cache_aware; branch=cache; worker=w-…; matched=7/9; retries=0; gateway=node1; zone=a`. It tells ids and no
//!   address, and names the last worker that was asked, also where that came to nothing. `matched` says how many of
//!   the prompt's blocks of 256 bytes the worker has seen, of how many, and is there for `cache_aware` alone; there is
//!   no zone when none is set.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    config::{Mesh, PolicyKind, address},
    gateway::{
        error::GatewayError,
        policy::{Facts, cache_aware::Verdict},
        view::{Registered, Route, RoutingView},
    },
    mesh::stores::WorkerId,
};

/// Answer header of `X-SMG-Explain`.
pub const ROUTE_HEADER: HeaderName = HeaderName::from_static("x-smg-route");

/// Longest routing key in bytes.
pub const ROUTING_KEY_BYTES_MAX: usize = 256;

/// The routing key that the client names.
///
/// # Errors
/// When it is empty, longer than [`ROUTING_KEY_BYTES_MAX`], or there twice.
pub fn routing_key(client: &HeaderMap) -> Result<Option<&[u8]>, GatewayError> {
    let mut named = client.get_all("x-smg-routing-key").iter();
    let Some(key) = named.next() else { return Ok(None) };
    let is_good = (1..=ROUTING_KEY_BYTES_MAX).contains(&key.len()) && named.next().is_none();
    is_good.then_some(Some(key.as_bytes())).ok_or_else(|| {
        GatewayError::InvalidRequest(format!("X-SMG-Routing-Key must be one of 1 to {ROUTING_KEY_BYTES_MAX} bytes"))
    })
}

/// The worker that the client names, as the only one of a route; none when it names none.
///
/// # Errors
/// When there is no such worker, and when it is not ready.
pub fn target(client: &HeaderMap, view: &RoutingView, route: &Route) -> Result<Option<Arc<Route>>, GatewayError> {
    let Some(named) = client.get("x-smg-target-worker") else { return Ok(None) };
    let named = named.to_str().map_err(|_| GatewayError::WorkerNotFound)?;
    let registered = find(&view.registered, named.trim()).ok_or(GatewayError::WorkerNotFound)?;
    if !registered.is_ready {
        return Err(GatewayError::NoAvailableWorkers);
    }
    Ok(Some(Arc::new(Route::new(route.label.clone(), route.policy, vec![registered.worker.clone()]))))
}

fn find<'a>(all: &'a [Registered], named: &str) -> Option<&'a Registered> {
    if let Ok(index) = named.parse::<usize>() {
        return all.get(index);
    }
    match address::canonical(named) {
        Ok(url) => {
            let id = WorkerId::of_url(&url);
            all.iter().find(|registered| registered.worker.id == id)
        }
        Err(_) => all.iter().find(|registered| registered.worker.id.as_str() == named),
    }
}

/// Whether the client asks for an explanation.
#[must_use]
pub fn is_explained(client: &HeaderMap) -> bool {
    client.get("x-smg-explain").is_some_and(|value| value == "1")
}

/// What made the policy choose as it does.
#[must_use]
pub fn branch(policy: PolicyKind, facts: Facts<'_>, is_steered: bool) -> &'static str {
    match policy {
        _ if is_steered => "target",
        PolicyKind::Random => "random",
        PolicyKind::RoundRobin => "turn",
        PolicyKind::PowerOfTwo | PolicyKind::LeastLoad => "load",
        PolicyKind::ConsistentHashing if facts.routing_key.is_some() => "routing_key",
        PolicyKind::Manual if facts.routing_key.is_some() && facts.held_by.is_some() => "session",
        PolicyKind::Manual if facts.routing_key.is_some() => "new_session",
        PolicyKind::ConsistentHashing | PolicyKind::Manual => "no_routing_key",
        PolicyKind::PrefixHash if facts.prompt.is_some_and(|prompt| prompt.home().is_some()) => "home",
        // `cache_aware` says more where there is a prompt.
        PolicyKind::PrefixHash | PolicyKind::CacheAware => "no_prompt",
    }
}

/// The value of `X-SMG-Route`.
#[must_use]
pub fn explanation(
    policy: PolicyKind,
    branch: &'static str,
    worker: &WorkerId,
    verdict: Option<Verdict>,
    retries: u32,
    gateway: &Mesh,
) -> HeaderValue {
    let Mesh { node, zone, .. } = gateway;
    let zone = if zone.is_empty() { String::new() } else { format!("; zone={zone}") };
    let matched =
        verdict.map_or_else(String::new, |verdict| format!("; matched={}/{}", verdict.matched, verdict.blocks));
    let text =
        format!("policy={policy}; branch={branch}; worker={worker}{matched}; retries={retries}; gateway={node}{zone}");
    HeaderValue::try_from(text).expect("names, ids and labels are visible ASCII")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gateway::{prefix::Prompt, worker::tests::workers};

    #[test]
    fn workers_are_named_by_index_url_and_id() {
        let all = workers(3);
        let registered = all.iter().zip([true, true, false]);
        let registered = registered.map(|(worker, is_ready)| Registered { worker: worker.clone(), is_ready }).collect();
        let view = RoutingView { registered, ..RoutingView::default() };
        let route = Route::new("m".into(), PolicyKind::Random, all.clone());
        let id = all[1].id.as_str();
        let (unknown, not_ready) = (Err(GatewayError::WorkerNotFound), Err(GatewayError::NoAvailableWorkers));
        for (named, expected) in [
            ("0", Ok(0)),
            ("1", Ok(1)),
            (" 1 ", Ok(1)),
            (id, Ok(1)),
            ("http://w0:8000", Ok(0)),
            ("http://W0:8000/", Ok(0)),
            ("2", not_ready.clone()),
            ("http://w2:8000", not_ready),
            ("3", unknown.clone()),
            ("-1", unknown.clone()),
            ("", unknown.clone()),
            ("w-0000000000000000", unknown.clone()),
            ("http://w9:8000", unknown.clone()),
            ("w0", unknown),
        ] {
            let mut client = HeaderMap::new();
            client.insert("x-smg-target-worker", HeaderValue::from_str(named).unwrap());
            let found = target(&client, &view, &route).map(|route| {
                let ready = &route.as_ref().unwrap().ready;
                assert_eq!(ready.len(), 1, "{named}");
                all.iter().position(|worker| worker.id == ready[0].id).unwrap()
            });
            assert_eq!(found, expected, "{named:?}");
        }
        assert!(target(&HeaderMap::new(), &view, &route).unwrap().is_none());
    }

    #[test]
    fn routing_keys_have_bounds() {
        let long = "k".repeat(ROUTING_KEY_BYTES_MAX + 1);
        for (case, values, expected) in [
            ("none", &[][..], Ok(None)),
            ("one", &["k"], Ok(Some(&b"k"[..]))),
            ("longest", &[&long[1..]], Ok(Some(&long.as_bytes()[1..]))),
            ("empty", &[""], Err(())),
            ("too long", &[&long], Err(())),
            ("two", &["k", "k"], Err(())),
        ] {
            let mut client = HeaderMap::new();
            for value in values {
                client.append("x-smg-routing-key", HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(routing_key(&client).map_err(drop), expected, "{case}");
        }
    }

    #[test]
    fn branches_say_what_decided() {
        let (key, none) = (Facts { routing_key: Some(b"k"), ..Facts::default() }, Facts::default());
        let prompt = Prompt { tail: Some(7), ..Prompt::default() };
        let text = Facts { prompt: Some(&prompt), ..Facts::default() };
        for (policy, facts, is_steered, expected) in [
            (PolicyKind::Random, key, false, "random"),
            (PolicyKind::RoundRobin, key, false, "turn"),
            (PolicyKind::PowerOfTwo, key, false, "load"),
            (PolicyKind::LeastLoad, none, false, "load"),
            (PolicyKind::ConsistentHashing, key, false, "routing_key"),
            (PolicyKind::ConsistentHashing, none, false, "no_routing_key"),
            (PolicyKind::ConsistentHashing, key, true, "target"),
            (PolicyKind::Manual, Facts { held_by: Some(1), ..key }, false, "session"),
            (PolicyKind::Manual, key, false, "new_session"),
            (PolicyKind::Manual, none, false, "no_routing_key"),
            (PolicyKind::PrefixHash, text, false, "home"),
            (PolicyKind::PrefixHash, none, false, "no_prompt"),
            (PolicyKind::CacheAware, none, false, "no_prompt"),
        ] {
            assert_eq!(branch(policy, facts, is_steered), expected, "{policy} {is_steered}");
        }
    }
}
