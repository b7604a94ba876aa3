//! From what is known of the workers to the routing table: a pure function, but for the worker at which a new route's
//! round robin begins. That is drawn, so that many gateways and models do not all begin at the first.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::Instant,
};

use crate::{
    config::{Cache, PolicyKind, UnknownPolicy},
    gateway::{
        prefix::{HashKey, Index},
        registry::roster::Entry,
        view::{Affinity, Registered, Route, RoutingView},
    },
    mesh::{driver::handle::PolicyEntry, stores::WorkerState},
};

/// Name that stands for "every model without a policy of its own".
pub const DEFAULT_MODEL: &str = "*";

/// Which policy each model has.
#[derive(Clone, Debug)]
pub struct Policies {
    default: PolicyKind,
    by_model: BTreeMap<Arc<str>, PolicyKind>,
    affinity: Option<Affinity>,
}

impl Policies {
    /// From what was set through the API, `*` included; `default` for the rest, and where a name is unknown here (a
    /// newer gateway may know more of them).
    #[must_use]
    pub fn new(default: PolicyKind, set: &[PolicyEntry]) -> Self {
        let mut by_model = BTreeMap::new();
        for (model, spec) in set {
            match spec.policy.parse() {
                Ok(kind) => drop(by_model.insert(model.clone(), kind)),
                Err(UnknownPolicy) => {
                    tracing::warn!(model = &**model, policy = spec.policy, "policy unknown here, the default is used");
                }
            }
        }
        let default = by_model.remove(DEFAULT_MODEL).unwrap_or(default);
        Self { default, by_model, affinity: None }
    }

    /// The same with what the policies need that look at prompts; without it they choose by load.
    #[must_use]
    pub fn with_affinity(self, key: Arc<HashKey>, rules: Cache) -> Self {
        Self { affinity: Some(Affinity { key, index: None, rules }), ..self }
    }

    /// The policy of models that have none of their own.
    #[must_use]
    pub fn default_kind(&self) -> PolicyKind {
        self.default
    }

    /// The policy of a model.
    #[must_use]
    pub fn of(&self, model: &str) -> PolicyKind {
        self.by_model.get(model).copied().unwrap_or(self.default)
    }
}

/// Builds the table from entries sorted by id. A route that is the same as in `previous` is taken over, so that its
/// round robin goes on; a changed one inherits the cursor. `unasked_until` is passed on.
#[must_use]
pub fn build(
    entries: &[Entry],
    policies: &Policies,
    unasked_until: Option<Instant>,
    previous: &RoutingView,
) -> RoutingView {
    let mut by_model: HashMap<&str, Vec<_>> = HashMap::new();
    let (mut any, mut wildcard, mut registered) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        let is_ready = entry.state == WorkerState::Ready;
        registered.push(Registered { worker: entry.worker.clone(), is_ready });
        if is_ready {
            any.push(entry.worker.clone());
            if entry.models.is_empty() {
                wildcard.push(entry.worker.clone());
            }
        }
        for model in &*entry.models {
            let ready = by_model.entry(model).or_default();
            ready.extend(is_ready.then(|| entry.worker.clone()));
        }
    }
    let workers_ready = any.len();
    let default = policies.default_kind();
    let route = |model: &str, ready| {
        let previous = previous.models.get(model);
        renewed(Route::new(model.into(), policies.of(model), ready), policies, previous)
    };
    RoutingView {
        models: by_model.into_iter().map(|(model, ready)| (model.into(), route(model, ready))).collect(),
        any: renewed(Route::new("other".into(), default, any), policies, Some(&previous.any)),
        wildcard: renewed(Route::new("other".into(), default, wildcard), policies, Some(&previous.wildcard)),
        unasked_until,
        registered,
        is_joining: false,
        workers_total: entries.len(),
        workers_ready,
    }
}

fn renewed(mut route: Route, policies: &Policies, previous: Option<&Arc<Route>>) -> Arc<Route> {
    route.affinity = affinity(route.policy, policies, previous.and_then(|previous| previous.affinity.as_ref()));
    let Some(previous) = previous else {
        route.cursor = AtomicUsize::new(rand::random::<u32>() as usize);
        return Arc::new(route);
    };
    let same_workers = route.ready.len() == previous.ready.len()
        && route.ready.iter().zip(&previous.ready).all(|(new, old)| Arc::ptr_eq(new, old));
    let is_same = |(new, old): (&Affinity, &Affinity)| Arc::ptr_eq(&new.key, &old.key) && new.rules == old.rules;
    let same_affinity = match (&route.affinity, &previous.affinity) {
        (None, None) => true,
        (new, old) => new.as_ref().zip(old.as_ref()).is_some_and(is_same),
    };
    if same_workers && same_affinity && route.policy == previous.policy {
        return previous.clone();
    }
    route.label = previous.label.clone();
    route.cursor = AtomicUsize::new(previous.cursor.load(Ordering::Relaxed));
    Arc::new(route)
}

/// What a policy needs that looks at prompts. The index goes on; with another key its names mean nothing any more.
fn affinity(policy: PolicyKind, policies: &Policies, previous: Option<&Affinity>) -> Option<Affinity> {
    let given = policies.affinity.clone()?;
    match policy {
        PolicyKind::PrefixHash => Some(given),
        PolicyKind::CacheAware => {
            let previous = previous.filter(|previous| Arc::ptr_eq(&previous.key, &given.key));
            let index = previous.and_then(|previous| previous.index.clone());
            let index = index.unwrap_or_else(|| Arc::new(Index::new(given.rules.index_bytes)));
            Some(Affinity { index: Some(index), ..given })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        gateway::{
            policy::{self, Facts},
            registry::roster::tests::entry,
            view::Lookup,
        },
        mesh::stores::PolicySpec,
    };

    fn policies() -> Policies {
        Policies::new(PolicyKind::RoundRobin, &[])
    }

    fn ids(route: &Route) -> Vec<&str> {
        route.ready.iter().map(|worker| worker.authority.host()).collect()
    }

    #[test]
    fn states_and_models_make_the_routes() {
        use WorkerState::{Draining, NotReady, Pending, Ready};
        // Each worker: host, state, models. Expected: ready workers for model `m`, none for 404.
        for (case, workers, expected) in [
            ("no worker", vec![], Some(vec![])),
            ("ready", vec![("a", Ready, &["m"][..])], Some(vec!["a"])),
            ("two ready", vec![("a", Ready, &["m"][..]), ("b", Ready, &["m", "n"])], Some(vec!["a", "b"])),
            ("one not ready", vec![("a", Ready, &["m"][..]), ("b", NotReady, &["m"])], Some(vec!["a"])),
            ("known but not ready", vec![("a", NotReady, &["m"][..]), ("b", Ready, &["n"])], Some(vec![])),
            ("known but pending", vec![("a", Pending, &["m"][..]), ("b", Ready, &["n"])], Some(vec![])),
            ("known but draining", vec![("a", Draining, &["m"][..]), ("b", Ready, &["n"])], Some(vec![])),
            ("unknown", vec![("b", Ready, &["n"][..])], None),
            ("unknown, nobody ready", vec![("b", NotReady, &["n"][..])], Some(vec![])),
            ("wildcard", vec![("a", Ready, &[][..]), ("b", Ready, &["n"])], Some(vec!["a"])),
            ("a name precedes the wildcard", vec![("a", Ready, &[][..]), ("b", Ready, &["m"])], Some(vec!["b"])),
        ] {
            let entries: Vec<_> = workers.iter().map(|(host, state, models)| entry(host, *state, models)).collect();
            let view = build(&entries, &policies(), None, &RoutingView::default());
            let found = match view.lookup(Some("m"), Instant::now()) {
                Lookup::Route(route) => Some(ids(&route).into_iter().map(str::to_owned).collect::<Vec<_>>()),
                Lookup::UnknownModel => None,
            };
            let expected = expected.map(|hosts| hosts.into_iter().map(str::to_owned).collect());
            assert_eq!(found, expected, "{case}");
            assert_eq!(view.workers_total, workers.len(), "{case}");
            let ready = view.registered.iter().filter(|registered| registered.is_ready).count();
            assert_eq!((view.registered.len(), ready), (workers.len(), view.workers_ready), "{case}");
            assert_eq!(view.workers_ready, view.any.ready.len(), "{case}");
        }
    }

    #[test]
    fn a_worker_that_was_not_asked_yet_may_serve_any_model() {
        let (now, second) = (Instant::now(), std::time::Duration::from_secs(1));
        let entries = [entry("a", WorkerState::Pending, &[]), entry("b", WorkerState::Ready, &["n"])];
        for (case, unasked_until, is_known) in [
            ("not yet asked", Some(now + second), true),
            ("the time is over", Some(now), false),
            ("all were asked", None, false),
        ] {
            let view = build(&entries, &policies(), unasked_until, &RoutingView::default());
            match view.lookup(Some("m"), now) {
                Lookup::Route(route) => assert!(is_known && route.ready.is_empty(), "{case}"),
                Lookup::UnknownModel => assert!(!is_known, "{case}"),
            }
        }
    }

    /// Where nothing tells workers apart, none of them is the one that gets it all: gateways and models that start at
    /// the same time would send it everything.
    #[test]
    fn ties_do_not_all_fall_on_the_first_worker() {
        let entries = ["a", "b", "c", "d"].map(|host| entry(host, WorkerState::Ready, &["m"]));
        for policy in PolicyKind::ALL {
            let mut firsts = [0; 4];
            for start in 0..400_u64 {
                let view = build(&entries, &Policies::new(policy, &[]), None, &RoutingView::default());
                let key = start.to_be_bytes();
                let facts = Facts { routing_key: Some(&key), ..Facts::default() };
                let chosen = policy::choose(&view.models["m"], facts, &[], policy::mix(start + 1)).unwrap();
                firsts[entries.iter().position(|entry| entry.worker.id == chosen.worker.id).unwrap()] += 1;
            }
            // σ = 8.7.
            assert!(firsts.iter().all(|count| (50..=150).contains(count)), "{policy}: {firsts:?}");
        }
    }

    #[test]
    fn routes_go_on_across_rebuilds() {
        let one = [entry("a", WorkerState::Ready, &["m"])];
        let first = build(&one, &policies(), None, &RoutingView::default());
        first.models["m"].cursor.store(7, Ordering::Relaxed);
        let same = build(&one, &policies(), None, &first);
        assert!(Arc::ptr_eq(&same.models["m"], &first.models["m"]));
        assert!(Arc::ptr_eq(&same.any, &first.any));
        let two = [one[0].clone(), entry("b", WorkerState::Ready, &["m"])];
        let grown = build(&two, &policies(), None, &same);
        assert_eq!(grown.models["m"].ready.len(), 2);
        assert_eq!(grown.models["m"].cursor.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn the_index_goes_on_until_its_key_changes() {
        let key = |seed| Arc::new(crate::gateway::prefix::chain::tests::key(seed));
        let spec =
            |policy: &str| vec![("m".into(), Arc::new(PolicySpec { policy: policy.into(), config_json: "{}".into() }))];
        let rules = Cache { index_bytes: 1 << 16, ..Cache::default() };
        let with = |set: &[_], key: &Arc<HashKey>| {
            Policies::new(PolicyKind::CacheAware, set).with_affinity(key.clone(), rules)
        };
        let index = |view: &RoutingView| view.models["m"].affinity.as_ref().and_then(|found| found.index.clone());
        let (first_key, second_key) = (key(1), key(2));
        let one = [entry("a", WorkerState::Ready, &["m"])];
        let two = [one[0].clone(), entry("b", WorkerState::Ready, &["m"])];
        let first = build(&one, &with(&[], &first_key), None, &RoutingView::default());
        let kept = index(&first).unwrap();
        let same = build(&one, &with(&[], &first_key), None, &first);
        assert!(Arc::ptr_eq(&same.models["m"], &first.models["m"]));
        let grown = build(&two, &with(&[], &first_key), None, &same);
        assert!(Arc::ptr_eq(&index(&grown).unwrap(), &kept), "another worker");
        let rekeyed = build(&two, &with(&[], &second_key), None, &grown);
        assert!(!Arc::ptr_eq(&index(&rekeyed).unwrap(), &kept), "another key");
        let hashed = build(&two, &with(&spec("prefix_hash"), &second_key), None, &rekeyed);
        assert!(index(&hashed).is_none() && hashed.models["m"].affinity.is_some());
        let turned = build(&two, &with(&spec("round_robin"), &second_key), None, &hashed);
        assert!(turned.models["m"].affinity.is_none());
    }

    #[test]
    fn policies_by_model_with_a_default() {
        let spec = |policy: &str| Arc::new(PolicySpec { policy: policy.into(), config_json: "{}".into() });
        let set: [PolicyEntry; 3] =
            [("*".into(), spec("random")), ("m".into(), spec("least_load")), ("n".into(), spec("from_the_future"))];
        for (case, set, model, expected) in [
            ("nothing set", &set[..0], "m", PolicyKind::RoundRobin),
            ("default set", &set[..], "x", PolicyKind::Random),
            ("own", &set[..], "m", PolicyKind::LeastLoad),
            ("unknown name", &set[..], "n", PolicyKind::Random),
            ("unknown name, no default set", &set[1..], "n", PolicyKind::RoundRobin),
        ] {
            assert_eq!(Policies::new(PolicyKind::RoundRobin, set).of(model), expected, "{case}");
        }
    }
}
