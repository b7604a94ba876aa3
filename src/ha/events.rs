//! `GET /ha/events`: what changes in the cluster, as server-sent events (HTML Living Standard §9.2).
//!
//! A stream begins with an event `status`, whose data is the body of `/ha/status`; then each change is an event of its
//! own. Events are the difference between two pictures of the cluster, made for each subscriber from the newest one: a
//! slow reader skips what was undone meanwhile, and costs one picture of memory however long it sleeps. A comment line
//! every [`KEEP_ALIVE`] keeps proxies from closing a quiet stream. All streams end when the gateway drains.
//!
//! | event | data |
//! |---|---|
//! | `status` | the body of `/ha/status`, once, first |
//! | `node` | `{"name","status","previous","address","zone"}`; `status` null when the node was forgotten, `previous` null when it is new |
//! | `leader` | `{"leader","term"}`; `leader` null while this node knows of none |
//! | `worker` | `{"id","url","change","observers"}`; `change` is `added`, `changed` or `removed`, `observers` maps nodes to states |
//! | `clock` | `{"name","skewed","skew_seconds"}` when a peer's clock is more than 0.5 s from ours, and when it is less than 0.25 s again; `skew_seconds` is by how much it leads |
//! | `sight` | `{"name","sees"}` when a peer holds members for something else than before; `sees` as in `/ha/status` |
//! | `policy` | `{"model","policy","config"}` |

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    ha::{policies, status},
    mesh::{
        driver::handle::{MeshHandle, NodeView, View},
        node::NodeName,
        routing::Sight,
        stores::WorkerView,
    },
};

/// Streams at a time; further ones are answered 503.
pub const STREAMS_MAX: usize = 256;

/// Between two comment lines on a quiet stream.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(STREAMS_MAX)));

/// One change, as an event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Name of the event.
    pub event: &'static str,
    /// Its data.
    pub data: Value,
}

struct Subscriber {
    view: watch::Receiver<Arc<View>>,
    seen: Arc<View>,
    ended: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// A stream of events, of which the first has `picture`; none when [`STREAMS_MAX`] are open.
#[must_use]
pub fn subscribe(
    mesh: &MeshHandle,
    picture: &dyn Fn(&View) -> status::Status,
    ended: CancellationToken,
) -> Option<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>> {
    let place = PLACES.clone().try_acquire_owned().ok()?;
    let mut view = mesh.watch();
    let seen = view.borrow_and_update().clone();
    let first = Change { event: "status", data: json!(picture(&seen)) };
    let subscriber = Subscriber { view, seen, ended, _place: place };
    let changes = stream::once(async move { vec![first] }).chain(stream::unfold(subscriber, next));
    let events = changes.flat_map(|changes| stream::iter(changes.into_iter().map(|change| Ok(event(&change)))));
    Some(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn event(change: &Change) -> Event {
    Event::default().event(change.event).data(change.data.to_string())
}

async fn next(mut subscriber: Subscriber) -> Option<(Vec<Change>, Subscriber)> {
    loop {
        tokio::select! {
            changed = subscriber.view.changed() => changed.ok()?,
            () = subscriber.ended.cancelled() => return None,
        }
        let newest = subscriber.view.borrow_and_update().clone();
        let changes = between(&subscriber.seen, &newest);
        subscriber.seen = newest;
        if !changes.is_empty() {
            return Some((changes, subscriber));
        }
    }
}

/// What is different in `new`: nodes, then the leader, clocks, workers and policies, each by name.
#[must_use]
pub fn between(old: &View, new: &View) -> Vec<Change> {
    let mut changes = Vec::new();
    let nodes = |view: &View| view.nodes.iter().map(|node| (node.name.clone(), node.clone())).collect();
    for (_, old, new) in differences::<_, NodeView>(nodes(old), nodes(new)) {
        changes.push(Change { event: "node", data: node(old.as_ref(), new.as_ref()) });
    }
    if (&old.leader, old.term) != (&new.leader, new.term) {
        let leader = new.leader.as_ref().map(NodeName::as_str);
        changes.push(Change { event: "leader", data: json!({ "leader": leader, "term": new.term }) });
    }
    let workers = |view: &View| view.workers.iter().map(|worker| (worker.id.clone(), worker.clone())).collect();
    for (name, link) in new.links.iter() {
        if old.links.get(name).is_some_and(|old| old.is_skewed) != link.is_skewed {
            let skew_seconds = link.skew_ms.map(|skew_ms| skew_ms as f64 / 1e3);
            let data = json!({ "name": name.as_str(), "skewed": link.is_skewed, "skew_seconds": skew_seconds });
            changes.push(Change { event: "clock", data });
        }
    }
    if !Arc::ptr_eq(&old.sights, &new.sights) {
        let sights = |view: &View| view.sights.iter().map(|(name, sight)| (name.clone(), sight.clone())).collect();
        for (name, _, new) in differences::<_, Sight>(sights(old), sights(new)) {
            let data = json!({ "name": name.as_str(), "sees": new.as_ref().map(status::Sees::of) });
            changes.push(Change { event: "sight", data });
        }
    }
    // A list in which nothing changed is the same.
    if !Arc::ptr_eq(&old.workers, &new.workers) {
        for (_, old, new) in differences::<_, Arc<WorkerView>>(workers(old), workers(new)) {
            changes.push(Change { event: "worker", data: worker(old.as_deref(), new.as_deref()) });
        }
    }
    if Arc::ptr_eq(&old.policies, &new.policies) {
        return changes;
    }
    let set = |view: &View| view.policies.iter().cloned().collect::<BTreeMap<_, _>>();
    for (model, _, spec) in differences(set(old), set(new)) {
        // A policy that was set can be set anew but not unset.
        changes.extend(spec.map(|spec| Change { event: "policy", data: json!(policies::shown(&model, &spec)) }));
    }
    changes
}

fn node(old: Option<&NodeView>, new: Option<&NodeView>) -> Value {
    let shown = new.or(old);
    json!({
        "name": shown.map(|node| node.name.as_str()),
        "status": new.map(|node| node.status.as_str()),
        "previous": old.map(|node| node.status.as_str()),
        "address": shown.map(|node| node.address.as_str()),
        "zone": shown.map(|node| node.zone.as_str()),
    })
}

fn worker(old: Option<&WorkerView>, new: Option<&WorkerView>) -> Value {
    let change = match (old, new) {
        (None, _) => "added",
        (Some(_), Some(_)) => "changed",
        (Some(_), None) => "removed",
    };
    let shown = new.or(old);
    let observers: BTreeMap<&str, &str> = shown
        .iter()
        .flat_map(|worker| &worker.observed)
        .map(|(node, seen)| (node.as_str(), seen.state.as_str()))
        .collect();
    json!({
        "id": shown.map(|worker| worker.id.as_str()),
        "url": shown.map(|worker| worker.spec.url.as_str()),
        "change": change,
        "observers": observers,
    })
}

/// Keys whose values differ, with the value on either side.
fn differences<K: Clone + Ord, V: PartialEq>(
    mut old: BTreeMap<K, V>,
    new: BTreeMap<K, V>,
) -> Vec<(K, Option<V>, Option<V>)> {
    let mut found = Vec::new();
    for (key, value) in new {
        let before = old.remove(&key);
        if before.as_ref() != Some(&value) {
            found.push((key, before, Some(value)));
        }
    }
    found.extend(old.into_iter().map(|(key, value)| (key, Some(value), None)));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mesh::{
        driver::{
            handle::{Leadership, Roots, RoutingFacts},
            links::Link,
        },
        node::NodeStatus,
        stores::{PolicySpec, WorkerId, WorkerObservation, WorkerOrigin, WorkerSpec, WorkerState},
    };

    fn view(nodes: &[(&str, NodeStatus)], workers: &[(&str, Option<WorkerState>)], policy: Option<&str>) -> View {
        let node = |&(name, status): &(&str, NodeStatus)| NodeView {
            name: name.parse().unwrap(),
            status,
            address: format!("{name}:39527"),
            addr: "127.0.0.1:39527".parse().unwrap(),
            zone: "a".to_owned(),
        };
        let worker = |&(url, state): &(&str, Option<WorkerState>)| {
            let spec = WorkerSpec {
                url: url.to_owned(),
                models: Vec::new(),
                api_key: Some("secret".to_owned()),
                zone: String::new(),
                origin: WorkerOrigin::Api,
                draining: false,
            };
            let seen = state.map(|state| {
                ("n1".parse().unwrap(), WorkerObservation { state, models: Vec::new(), failing_until_ms: 0 })
            });
            Arc::new(WorkerView { id: WorkerId::of_url(url), spec, observed: seen.into_iter().collect() })
        };
        let policy = policy.map(|policy| PolicySpec { policy: policy.to_owned(), config_json: "{}".to_owned() });
        View {
            node: "n1".parse().unwrap(),
            mesh_enabled: true,
            nodes: nodes.iter().map(node).collect(),
            workers: Arc::new(workers.iter().map(worker).collect()),
            rate_limit: None,
            rate_limits: Vec::new(),
            policies: Arc::new(policy.into_iter().map(|spec| ("m".into(), Arc::new(spec))).collect()),
            routing: RoutingFacts::default(),
            last_sync: None,
            links: Arc::default(),
            sights: Arc::default(),
            roots: Roots::default(),
            leader: None,
            term: 0,
            synced: true,
        }
    }

    #[test]
    fn a_clock_is_told_when_it_goes_wrong_and_when_it_is_right_again() {
        let of = |skew_ms: i64, is_skewed| {
            let link = Link { skew_ms: Some(skew_ms), is_skewed };
            View { links: Arc::new([("n2".parse().unwrap(), link)].into()), ..view(&[], &[], None) }
        };
        let none = view(&[], &[], None);
        for (case, old, new, told) in [
            ("first reading", &none, of(20, false), None),
            ("first reading is bad", &none, of(-612_500, true), Some((true, -612.5))),
            ("goes wrong", &of(20, false), of(700, true), Some((true, 0.7))),
            ("stays wrong", &of(700, true), of(900, true), None),
            ("is right again", &of(700, true), of(20, false), Some((false, 0.02))),
            ("is gone", &of(700, true), none.clone(), None),
        ] {
            let data = |(skewed, seconds)| json!({"name": "n2", "skewed": skewed, "skew_seconds": seconds});
            let expected = told.map(|told: (bool, f64)| Change { event: "clock", data: data(told) });
            assert_eq!(between(old, &new), expected.into_iter().collect::<Vec<_>>(), "{case}");
        }
    }

    #[test]
    fn changes_are_the_difference_of_two_pictures() {
        use NodeStatus::{Alive, Down};
        let nothing = || view(&[], &[], None);
        let id = WorkerId::of_url("http://w");
        let node = |status: Value, previous: Value| json!({"name": "n2", "status": status, "previous": previous, "address": "n2:39527", "zone": "a"});
        let worker = |change: &str, observers: Value| json!({"id": id.as_str(), "url": "http://w", "change": change, "observers": observers});
        let seen = |state| view(&[], &[("http://w", state)], None);
        for (case, old, new, event, data) in [
            ("a node joins", nothing(), view(&[("n2", Alive)], &[], None), "node", node(json!("ALIVE"), Value::Null)),
            (
                "a node dies",
                view(&[("n2", Alive)], &[], None),
                view(&[("n2", Down)], &[], None),
                "node",
                node(json!("DOWN"), json!("ALIVE")),
            ),
            (
                "a node is forgotten",
                view(&[("n2", Down)], &[], None),
                nothing(),
                "node",
                node(Value::Null, json!("DOWN")),
            ),
            (
                "a leader is elected",
                nothing(),
                View { leader: Some("n2".parse().unwrap()), term: 3, ..nothing() },
                "leader",
                json!({"leader": "n2", "term": 3}),
            ),
            (
                "the leader is lost",
                View { leader: Some("n2".parse().unwrap()), term: 3, ..nothing() },
                View { term: 3, ..nothing() },
                "leader",
                json!({"leader": null, "term": 3}),
            ),
            ("a worker is added", nothing(), seen(None), "worker", worker("added", json!({}))),
            (
                "a worker becomes ready",
                seen(None),
                seen(Some(WorkerState::Ready)),
                "worker",
                worker("changed", json!({"n1": "ready"})),
            ),
            ("a worker is removed", seen(None), nothing(), "worker", worker("removed", json!({}))),
            (
                "a policy is set",
                nothing(),
                view(&[], &[], Some("random")),
                "policy",
                json!({"model": "m", "policy": "random", "config": {}}),
            ),
        ] {
            assert_eq!(between(&old, &new), [Change { event, data }], "{case}");
            assert_eq!(between(&new, &new), [], "{case}: nothing changed");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_newest_and_the_stream_ends_with_the_gateway() {
        let (commands, _inbox) = tokio::sync::mpsc::channel(1);
        let (views, watched) = watch::channel(Arc::new(view(&[], &[], None)));
        let ended = CancellationToken::new();
        let (_leadership, leads) = watch::channel(Leadership::default());
        let mesh = MeshHandle::new(commands, watched, leads);
        let subscriber = |seen: Arc<View>| Subscriber {
            view: mesh.watch(),
            seen,
            ended: ended.clone(),
            _place: PLACES.clone().try_acquire_owned().unwrap(),
        };
        let first = subscriber(mesh.view());
        views.send_replace(Arc::new(view(&[("n2", NodeStatus::Suspected)], &[], None)));
        views.send_replace(Arc::new(view(&[("n2", NodeStatus::Alive)], &[], None)));
        let (changes, first) = next(first).await.unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].data["status"], "ALIVE");
        ended.cancel();
        assert!(next(first).await.is_none());
    }
}
