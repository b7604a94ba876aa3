//! The registry against a fake mesh, in paused time, and against a real worker on a socket.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    keeper::{LEAVING_CHECK, UNASKED_MAX},
    pace::REBUILD_SPACING,
    *,
};
use crate::{
    config::RateLimit,
    gateway::{
        breaker,
        health::{state::tests::rules, tests::Script},
        limiter::Quota,
        rate::{self, Said, Terms},
        view::Lookup,
        worker::tests::spec,
    },
    mesh::{
        driver::handle::{COMMANDS_MAX, Command, Leadership, NodeView, Roots, RoutingFacts, View},
        node::NodeStatus,
        quota::Holding,
        stores::{PolicySpec, RATE_LIMIT, WorkerObservation, WorkerPatch, WorkerSpec, WorkerView, is_limit},
    },
};

/// A mesh of one node in a test's hands: it applies commands to its view at once.
pub(crate) struct FakeMesh {
    pub(crate) handle: MeshHandle,
    view: Arc<watch::Sender<Arc<View>>>,
}

impl FakeMesh {
    /// Call it inside a runtime.
    pub(crate) fn start() -> Self {
        let node = |name: &str, port| NodeView {
            name: name.parse().unwrap(),
            status: NodeStatus::Alive,
            address: format!("{name}:{port}"),
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
            zone: String::new(),
        };
        let view = View {
            leader: None,
            term: 0,
            node: "node1".parse().unwrap(),
            mesh_enabled: true,
            nodes: vec![node("node1", 39527), node("node2", 39527)],
            workers: Arc::default(),
            policies: Arc::default(),
            routing: RoutingFacts::default(),
            rate_limit: None,
            rate_limits: Vec::new(),
            last_sync: None,
            links: Arc::default(),
            sights: Arc::default(),
            roots: Roots::default(),
            synced: true,
        };
        let view = Arc::new(watch::Sender::new(Arc::new(view)));
        let (commands, mut inbox) = mpsc::channel(COMMANDS_MAX);
        let handle = MeshHandle::new(commands, view.subscribe(), watch::channel(Leadership::default()).1);
        let applied = view.clone();
        tokio::spawn(async move {
            while let Some(command) = inbox.recv().await {
                match command {
                    Command::PutWorker(spec, reply) => drop(reply.send(put(&applied, spec))),
                    Command::PatchWorker(id, patch, reply) => drop(reply.send(change(&applied, &id, &patch))),
                    Command::RemoveWorker(id, reply) => drop(reply.send(remove(&applied, &id))),
                    Command::PutPolicy(model, spec, reply) => {
                        applied.send_modify(|view| set_policy(Arc::make_mut(view), model, spec));
                        drop(reply.send(Ok(())));
                    }
                    Command::Usage(_, reply) => drop(reply.send(std::collections::BTreeMap::default())),
                    Command::RemoveRateLimit(name, reply) => applied.send_modify(|view| {
                        let limits = &mut Arc::make_mut(view).rate_limits;
                        let count = limits.len();
                        limits.retain(|(known, _)| *known != name);
                        let _ = reply.send(limits.len() < count);
                    }),
                    Command::Observe(id, seen) => observe(&applied, &id, "node1", &seen),
                    // No test of the registry searches for workers.
                    Command::HoldSession(..) | Command::Share(..) | Command::Find(..) => {}
                    // The leader, as far as this one node goes, lends it all, with a full bucket.
                    Command::ShareLimits(shared) => shared.limits.iter().for_each(|limit| {
                        let now = std::time::Instant::now();
                        let until = now + Duration::from_secs(3600);
                        let holding = Holding { share: limit.whole, until, credit: limit.whole.burst };
                        limit.bucket.hold(now, &holding);
                    }),
                    Command::LoseCache(id) => applied.send_modify(|view| {
                        *Arc::make_mut(view).routing.generations.entry(id.number()).or_default() += 1;
                    }),
                    Command::Leave(reply) => drop(reply.send(())),
                }
            }
        });
        Self { handle, view }
    }

    pub(crate) fn edit(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| change(Arc::make_mut(view)));
    }

    pub(crate) fn put(&self, spec: WorkerSpec) -> WorkerId {
        put(&self.view, spec)
    }

    pub(crate) fn remove(&self, id: &WorkerId) {
        assert!(remove(&self.view, id));
    }

    pub(crate) fn observe(&self, id: &WorkerId, node: &str, state: WorkerState, models: &[&str]) {
        let models = models.iter().map(|&m| m.to_owned()).collect();
        observe(&self.view, id, node, &WorkerObservation { state, models, failing_until_ms: 0 });
    }

    fn observed(&self, id: &WorkerId) -> Option<WorkerObservation> {
        let view = self.handle.view();
        view.workers.iter().find(|worker| worker.id == *id).and_then(|worker| worker.observed.get(&view.node).cloned())
    }
}

fn put(view: &watch::Sender<Arc<View>>, spec: WorkerSpec) -> WorkerId {
    let id = WorkerId::of_url(&spec.url);
    view.send_modify(|view| {
        let workers = Arc::make_mut(&mut Arc::make_mut(view).workers);
        let observed = workers.iter().find(|w| w.id == id).map(|w| w.observed.clone()).unwrap_or_default();
        workers.retain(|worker| worker.id != id);
        workers.push(Arc::new(WorkerView { id: id.clone(), spec, observed }));
        workers.sort_by(|a, b| a.id.cmp(&b.id));
    });
    id
}

fn change(view: &watch::Sender<Arc<View>>, id: &WorkerId, patch: &WorkerPatch) -> bool {
    view.send_modify(|view| {
        let workers = Arc::make_mut(&mut Arc::make_mut(view).workers);
        for worker in workers.iter_mut().filter(|worker| worker.id == *id) {
            patch.apply(&mut Arc::make_mut(worker).spec);
        }
    });
    view.borrow().workers.iter().any(|worker| worker.id == *id)
}

fn remove(view: &watch::Sender<Arc<View>>, id: &WorkerId) -> bool {
    let before = view.borrow().workers.len();
    view.send_modify(|view| Arc::make_mut(&mut Arc::make_mut(view).workers).retain(|worker| worker.id != *id));
    view.borrow().workers.len() < before
}

fn observe(view: &watch::Sender<Arc<View>>, id: &WorkerId, node: &str, seen: &WorkerObservation) {
    view.send_modify(|view| {
        let workers = Arc::make_mut(&mut Arc::make_mut(view).workers);
        for worker in workers.iter_mut().filter(|worker| worker.id == *id) {
            Arc::make_mut(worker).observed.insert(node.parse().unwrap(), seen.clone());
        }
    });
}

fn set_policy(view: &mut View, model: String, spec: PolicySpec) {
    if model == RATE_LIMIT {
        view.rate_limit = Some(spec);
    } else if is_limit(&model) {
        view.rate_limits.retain(|(known, _)| *known != model);
        view.rate_limits.push((model, spec));
        view.rate_limits.sort_by(|(a, _), (b, _)| a.cmp(b));
    } else {
        Arc::make_mut(&mut view.policies).push((model.into(), Arc::new(spec)));
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        cache: Cache::default(),
        tls: Tls::default().workers,
        zone: String::new(),
        policy: PolicyKind::PowerOfTwo,
        api_key: None,
        breaker: breaker::tests::rules(),
        health: rules(),
        drain_settle: Duration::from_secs(5),
        limits: Terms::default(),
        startup_timeout: Duration::from_secs(1800),
        held: watch::channel(Arc::default()).1,
    }
}

pub(crate) fn start(script: &Script, mesh: &FakeMesh) -> Registry {
    start_as(script, mesh, settings())
}

fn start_as(script: &Script, mesh: &FakeMesh, settings: Settings) -> Registry {
    let (registry, task) = Registry::start_with(script.clone(), mesh.handle.clone(), settings, Metrics::new());
    tokio::spawn(task);
    registry
}

/// Waits until the roster is as described; where time is paused this takes none.
pub(crate) async fn eventually(registry: &Registry, is_so: impl FnMut(&Arc<Roster>) -> bool) {
    let mut roster = registry.roster.clone();
    tokio::time::timeout(Duration::from_secs(600), roster.wait_for(is_so)).await.expect("in time").unwrap();
}

fn ready_for(registry: &Registry, model: &str) -> Option<Vec<WorkerId>> {
    match registry.routing.load().lookup(Some(model), Instant::now().into_std()) {
        Lookup::Route(route) => Some(route.ready.iter().map(|worker| worker.id.clone()).collect()),
        Lookup::UnknownModel => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_registered_worker_is_routable_within_a_second() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    script.set_models(&WorkerId::of_url("http://w"), &["m"]);
    let begun = Instant::now();
    let id = mesh.put(spec("http://w"));
    assert!(registry.wait_ready(&id, Duration::from_secs(1)).await);
    assert!(begun.elapsed() <= 2 * REBUILD_SPACING);
    assert_eq!(ready_for(&registry, "m"), Some(vec![id.clone()]));
    assert_eq!(ready_for(&registry, "other"), None);
    tokio::task::yield_now().await;
    let seen = WorkerObservation { state: WorkerState::Ready, models: vec!["m".into()], failing_until_ms: 0 };
    assert_eq!(mesh.observed(&id), Some(seen));
}

#[tokio::test(start_paused = true)]
async fn the_table_shows_every_write_that_was_waited_for() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    for _ in 0..20 {
        let id = mesh.put(WorkerSpec { models: vec!["m".into()], ..spec("http://w") });
        registry.settled().await;
        assert_eq!(registry.routing.load().workers_total, 1);
        assert!(registry.wait_ready(&id, Duration::from_secs(1)).await);
        assert_eq!(ready_for(&registry, "m"), Some(vec![id.clone()]));
        mesh.remove(&id);
        registry.settled().await;
        assert_eq!(registry.routing.load().workers_total, 0);
        assert!(!registry.roster().is_ready(&id), "an older worker of this id is not taken for the next one");
    }
    let begun = Instant::now();
    registry.settled().await;
    assert_eq!(begun.elapsed(), Duration::ZERO, "nothing to wait for");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_answers_hides_misspelled_models_for_ten_seconds() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let good = mesh.put(WorkerSpec { models: vec!["m".into()], ..spec("http://w") });
    eventually(&registry, |roster| roster.is_ready(&good)).await;
    assert_eq!(ready_for(&registry, "typo"), None);
    let dead = WorkerId::of_url("http://dead");
    script.set_down(&dead, true);
    mesh.put(spec("http://dead"));
    registry.settled().await;
    assert_eq!(ready_for(&registry, "typo"), Some(vec![]), "503, not 404");
    tokio::time::advance(UNASKED_MAX / 2).await;
    mesh.put(WorkerSpec { zone: "z".into(), ..spec("http://dead") });
    mesh.put(WorkerSpec { api_key: Some("k".into()), ..spec("http://dead") });
    registry.settled().await;
    assert_eq!(ready_for(&registry, "typo"), Some(vec![]));
    tokio::time::advance(UNASKED_MAX / 2).await;
    assert_eq!(ready_for(&registry, "typo"), None, "registering it again does not prolong it");
    script.set_down(&dead, false);
    script.set_models(&dead, &["late"]);
    eventually(&registry, |roster| roster.is_ready(&dead)).await;
    assert_eq!(ready_for(&registry, "late"), Some(vec![dead]));
}

#[tokio::test(start_paused = true)]
async fn a_failing_worker_leaves_the_route_but_not_the_table() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let id = mesh.put(WorkerSpec { models: vec!["m".into()], ..spec("http://w") });
    let other = mesh.put(WorkerSpec { models: vec!["n".into()], ..spec("http://v") });
    eventually(&registry, |roster| roster.is_ready(&id) && roster.is_ready(&other)).await;
    script.set_down(&id, true);
    eventually(&registry, |roster| !roster.is_ready(&id)).await;
    assert_eq!(ready_for(&registry, "m"), Some(vec![]), "503, not 404");
    assert_eq!(mesh.observed(&id).unwrap().state, WorkerState::NotReady);
    script.set_down(&id, false);
    eventually(&registry, |roster| roster.is_ready(&id)).await;
    assert_eq!(ready_for(&registry, "m"), Some(vec![id]));
}

#[tokio::test(start_paused = true)]
async fn others_supply_models_but_not_readiness() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let id = WorkerId::of_url("http://w");
    script.set_down(&id, true);
    mesh.put(spec("http://w"));
    mesh.observe(&id, "node2", WorkerState::Ready, &["m"]);
    eventually(&registry, |roster| roster.get(&id).is_some_and(|entry| !entry.models.is_empty())).await;
    assert_eq!(ready_for(&registry, "m"), Some(vec![]));
    assert!(registry.routing.load().models.contains_key("m"));
    assert_eq!(registry.roster().get(&id).unwrap().state, WorkerState::Pending);
    script.set_down(&id, false);
    script.set_models(&id, &["own"]);
    eventually(&registry, |roster| roster.is_ready(&id)).await;
    assert!(!registry.routing.load().models.contains_key("m"));
    assert_eq!(ready_for(&registry, "own"), Some(vec![id]));
}

#[tokio::test(start_paused = true)]
async fn what_was_said_in_an_earlier_life_is_put_right() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let id = mesh.put(spec("http://w"));
    mesh.observe(&id, "node1", WorkerState::Ready, &["old"]);
    script.set_down(&id, true);
    let registry = start(&script, &mesh);
    eventually(&registry, |roster| roster.get(&id).is_some_and(|entry| entry.models.is_empty())).await;
    assert_eq!(
        mesh.observed(&id).unwrap(),
        WorkerObservation { state: WorkerState::Pending, models: vec![], failing_until_ms: 0 }
    );
}

#[tokio::test(start_paused = true)]
async fn a_worker_lives_on_while_its_address_and_key_stay() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let id = mesh.put(spec("http://w"));
    eventually(&registry, |roster| roster.is_ready(&id)).await;
    let worker = registry.roster().get(&id).unwrap().worker.clone();
    let _request = worker.begin();
    mesh.put(WorkerSpec { zone: "z".into(), models: vec!["m".into()], ..spec("http://w") });
    eventually(&registry, |roster| roster.get(&id).is_some_and(|entry| entry.view.spec.zone == "z")).await;
    assert!(Arc::ptr_eq(&registry.roster().get(&id).unwrap().worker, &worker));
    mesh.remove(&id);
    eventually(&registry, |roster| roster.entries.is_empty()).await;
    mesh.put(spec("http://w"));
    eventually(&registry, |roster| roster.is_ready(&id)).await;
    let again = registry.roster();
    assert!(Arc::ptr_eq(&again.get(&id).unwrap().worker, &worker), "also after it was away");
    assert!(again.leaving.is_empty());
    mesh.put(WorkerSpec { api_key: Some("k".into()), ..spec("http://w") });
    eventually(&registry, |roster| !Arc::ptr_eq(&roster.get(&id).unwrap().worker, &worker)).await;
    assert!(registry.roster().is_ready(&id), "a new key alone takes nothing away");
}

#[tokio::test(start_paused = true)]
async fn a_removed_worker_is_listed_while_it_has_work() {
    for (case, ends_early, expected) in
        [("its request ends", true, 2 * LEAVING_CHECK), ("it does not", false, Duration::from_millis(5_500))]
    {
        let (script, mesh) = (Script::default(), FakeMesh::start());
        let registry = start(&script, &mesh);
        let id = mesh.put(spec("http://w"));
        eventually(&registry, |roster| roster.is_ready(&id)).await;
        let request = registry.roster().get(&id).unwrap().worker.begin();
        let begun = Instant::now();
        mesh.remove(&id);
        eventually(&registry, |roster| roster.entries.is_empty()).await;
        assert_eq!(registry.routing.load().any.ready.len(), 0, "{case}");
        let leaving = registry.roster().leaving.clone();
        assert_eq!((leaving.len(), leaving[0].state), (1, WorkerState::Draining), "{case}");
        drop(leaving);
        let kept = if ends_early {
            drop(request);
            None
        } else {
            Some(request)
        };
        eventually(&registry, |roster| roster.leaving.is_empty()).await;
        assert!(begun.elapsed() <= expected, "{case}: {:?}", begun.elapsed());
        assert_eq!(kept.is_none(), ends_early);
    }
}

#[tokio::test(start_paused = true)]
async fn a_draining_worker_gets_nothing_new() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let id = mesh.put(spec("http://w"));
    eventually(&registry, |roster| roster.is_ready(&id)).await;
    mesh.put(WorkerSpec { draining: true, ..spec("http://w") });
    eventually(&registry, |roster| roster.get(&id).unwrap().state == WorkerState::Draining).await;
    assert_eq!(registry.routing.load().any.ready.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_be_used_stops_nobody() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    mesh.put(spec("h3://from.a.newer/gateway"));
    mesh.put(spec("junk"));
    let id = mesh.put(spec("http://w"));
    eventually(&registry, |roster| roster.is_ready(&id)).await;
    assert_eq!(registry.roster().entries.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_burst_costs_few_rebuilds() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let mut roster = registry.roster.clone();
    let ids: Vec<_> = (0..500).map(|i| mesh.put(spec(&format!("http://w{i}")))).collect();
    let mut rebuilds = 0;
    while !ids.iter().all(|id| roster.borrow().is_ready(id)) {
        roster.changed().await.unwrap();
        rebuilds += 1;
    }
    assert!(rebuilds <= 10, "{rebuilds}");
    assert_eq!(registry.routing.load().workers_ready, 500);
}

#[tokio::test(start_paused = true)]
async fn policies_follow_the_mesh() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let id = mesh.put(WorkerSpec { models: vec!["m".into()], ..spec("http://w") });
    eventually(&registry, |roster| roster.is_ready(&id)).await;
    assert_eq!(registry.routing.load().models["m"].policy, PolicyKind::PowerOfTwo);
    let policy = PolicySpec { policy: "least_load".into(), config_json: "{}".into() };
    let mut roster = registry.roster.clone();
    roster.mark_unchanged();
    mesh.edit(|view| view.policies = Arc::new(vec![("m".into(), Arc::new(policy))]));
    roster.changed().await.unwrap();
    assert_eq!(registry.routing.load().models["m"].policy, PolicyKind::LeastLoad);
    assert_eq!(registry.routing.load().any.policy, PolicyKind::PowerOfTwo);
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_of_the_cluster_precedes_the_flag() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let flag = RateLimit { per_second: 3, burst: 4 };
    let registry =
        start_as(&script, &mesh, Settings { limits: Terms { rate: Some(flag), concurrent: None }, ..settings() });
    let in_force = || registry.limits().all.stats(std::time::Instant::now()).quota;
    assert_eq!(in_force(), Some(Quota::from(flag)));
    let said = RateLimit { per_second: 7, burst: 9 };
    for (case, spec, expected) in [
        ("set", rate::to_spec(Said { rate: Some(Some(said)), concurrent: None }), Some(said)),
        (
            "not understood",
            PolicySpec {
                policy: "of a later version".into(),
                ..rate::to_spec(Said { rate: Some(None), concurrent: None })
            },
            Some(flag),
        ),
        ("off", rate::to_spec(Said { rate: Some(None), concurrent: None }), None),
    ] {
        mesh.handle.put_policy(RATE_LIMIT.into(), spec).await.unwrap().unwrap();
        registry.settled().await;
        assert_eq!(in_force(), expected.map(Quota::from), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_health_checks_a_worker_is_ready_at_once() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let mut settings = settings();
    settings.health.enabled = false;
    let id = WorkerId::of_url("http://w");
    script.set_down(&id, true);
    let registry = start_as(&script, &mesh, settings);
    mesh.put(spec("http://w"));
    assert!(registry.wait_ready(&id, Duration::from_secs(1)).await);
    script.set_down(&id, false);
    script.set_models(&id, &["m"]);
    eventually(&registry, |roster| !roster.get(&id).unwrap().models.is_empty()).await;
    assert_eq!(ready_for(&registry, "m"), Some(vec![id]));
}

#[tokio::test(start_paused = true)]
async fn samples_cover_the_live_workers() {
    let (script, mesh) = (Script::default(), FakeMesh::start());
    let registry = start(&script, &mesh);
    let id = mesh.put(spec("http://w"));
    eventually(&registry, |roster| roster.is_ready(&id)).await;
    let _request = registry.roster().get(&id).unwrap().worker.begin();
    let samples = registry.samples();
    assert_eq!((samples.len(), samples[0].requests_active, samples[0].ready), (1, 1, true));
    mesh.remove(&id);
    eventually(&registry, |roster| roster.entries.is_empty()).await;
    assert!(registry.samples().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_mesh() {
    let (commands, _inbox) = mpsc::channel(1);
    let view = FakeMesh::start().handle.view();
    let (sender, receiver) = watch::channel(view);
    let mesh = MeshHandle::new(commands, receiver, watch::channel(Leadership::default()).1);
    let (_registry, task) = Registry::start_with(Script::default(), mesh, settings(), Metrics::new());
    drop(sender);
    task.await;
}

/// With the shipped probe and a worker on a socket, so in real time.
#[tokio::test]
async fn a_real_worker_is_found_and_lost() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let models = || async { r#"{"object":"list","data":[{"id":"m"}]}"# };
    let routes = axum::Router::new()
        .route("/health", axum::routing::get(|| async {}))
        .route("/v1/models", axum::routing::get(models));
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
    let mesh = FakeMesh::start();
    let mut settings = settings();
    settings.health.failure_threshold = 1;
    let (registry, task) = Registry::start(mesh.handle.clone(), settings, Metrics::new());
    tokio::spawn(task);
    let id = mesh.put(spec(&url));
    assert!(registry.wait_ready(&id, Duration::from_secs(60)).await);
    assert_eq!(ready_for(&registry, "m"), Some(vec![id.clone()]));
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    // The request path finds it out long before the interval of 10 s has passed.
    let begun = Instant::now();
    registry.suspicions().suspect(&id);
    eventually(&registry, |roster| !roster.is_ready(&id)).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(ready_for(&registry, "m"), Some(vec![]));
}
