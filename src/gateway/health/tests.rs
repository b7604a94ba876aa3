//! The prober in paused time, with probes that answer as the test says.
#![allow(clippy::unwrap_used)]

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::gateway::{
    health::{probe::ProbeError, state::tests::rules},
    worker::tests::workers,
};

/// Answers from a script: which workers are up, and what they list. Counts what it was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    down: Mutex<BTreeSet<WorkerId>>,
    hanging: Mutex<BTreeSet<WorkerId>>,
    models: Mutex<BTreeMap<WorkerId, Vec<String>>>,
    probes: AtomicUsize,
    model_questions: AtomicUsize,
}

impl Script {
    pub(crate) fn set_down(&self, id: &WorkerId, is_down: bool) {
        let mut down = self.0.down.lock().unwrap();
        if is_down {
            down.insert(id.clone())
        } else {
            down.remove(id)
        };
    }

    pub(crate) fn set_models(&self, id: &WorkerId, models: &[&str]) {
        let models = models.iter().map(|&m| m.to_owned()).collect();
        self.0.models.lock().unwrap().insert(id.clone(), models);
    }

    fn hang(&self, id: &WorkerId) {
        self.0.hanging.lock().unwrap().insert(id.clone());
    }

    pub(crate) fn probes(&self) -> usize {
        self.0.probes.load(Ordering::Relaxed)
    }

    fn model_questions(&self) -> usize {
        self.0.model_questions.load(Ordering::Relaxed)
    }
}

impl Probe for Script {
    async fn probe(&self, worker: Arc<Worker>, question: Question) -> Answer {
        self.0.probes.fetch_add(1, Ordering::Relaxed);
        if self.0.hanging.lock().unwrap().contains(&worker.id) {
            std::future::pending::<()>().await;
        }
        if self.0.down.lock().unwrap().contains(&worker.id) {
            return Answer { health: Err(ProbeError::Timeout), models: None };
        }
        self.0.model_questions.fetch_add(usize::from(question.models), Ordering::Relaxed);
        let models = self.0.models.lock().unwrap().get(&worker.id).cloned();
        Answer { health: Ok(()), models: models.filter(|_| question.models) }
    }
}

fn prober(script: &Script) -> Prober<Script> {
    Prober::new(script.clone(), rules())
}

#[tokio::test(start_paused = true)]
async fn a_new_worker_is_probed_at_once_and_quickly_until_it_is_up() {
    let (script, worker) = (Script::default(), workers(1).remove(0));
    let mut prober = prober(&script);
    script.set_down(&worker.id, true);
    let start = Instant::now();
    assert_eq!(prober.track(worker.clone(), true), WorkerState::Pending);
    let first = prober.next().await;
    assert_eq!((first.success, first.state, start.elapsed()), (false, WorkerState::Pending, Duration::ZERO));
    for _ in 0..3 {
        prober.next().await;
    }
    assert!(start.elapsed() <= Duration::from_millis(700));
    script.set_down(&worker.id, false);
    script.set_models(&worker.id, &["m"]);
    let up = prober.next().await;
    assert_eq!((up.state, up.models.as_deref()), (WorkerState::Ready, Some(&["m".to_owned()][..])));
}

#[tokio::test(start_paused = true)]
async fn a_failed_worker_is_probed_for_ever_and_comes_back() {
    let (script, worker) = (Script::default(), workers(1).remove(0));
    let mut prober = prober(&script);
    prober.track(worker.clone(), true);
    assert_eq!(prober.next().await.state, WorkerState::Ready);
    script.set_down(&worker.id, true);
    let states: Vec<_> = [prober.next().await.state, prober.next().await.state, prober.next().await.state].into();
    assert_eq!(states, [WorkerState::Ready, WorkerState::Ready, WorkerState::NotReady]);
    for _ in 0..100 {
        let before = Instant::now();
        assert_eq!(prober.next().await.state, WorkerState::NotReady);
        assert!(before.elapsed() <= rules().interval);
    }
    script.set_down(&worker.id, false);
    assert_eq!(prober.next().await.state, WorkerState::NotReady);
    let before = Instant::now();
    assert_eq!(prober.next().await.state, WorkerState::Ready);
    assert!(before.elapsed() <= state::CONFIRM_WAIT_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_hint_brings_the_probe_forward_once_a_second() {
    let (script, worker) = (Script::default(), workers(1).remove(0));
    let mut prober = prober(&script);
    prober.track(worker.clone(), true);
    prober.next().await;
    script.set_down(&worker.id, true);
    let suspicions = prober.suspicions();
    let start = Instant::now();
    suspicions.suspect(&worker.id);
    assert!(!prober.next().await.success);
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Too early: the next probe is the regular one.
    suspicions.suspect(&worker.id);
    prober.next().await;
    assert!(start.elapsed() >= Duration::from_secs(8));
    let before = Instant::now();
    suspicions.suspect(&worker.id);
    assert_eq!(prober.next().await.state, WorkerState::NotReady);
    assert_eq!(before.elapsed(), Duration::ZERO);
    // A worker that is not ready needs no hints, and nor does one that nobody knows.
    tokio::time::advance(HINT_SPACING).await;
    suspicions.suspect(&worker.id);
    suspicions.suspect(&WorkerId::of_url("http://other"));
    let before = Instant::now();
    prober.next().await;
    assert!(before.elapsed() >= Duration::from_secs(6));
}

#[tokio::test(start_paused = true)]
async fn more_hints_than_fit_are_dropped() {
    let prober = prober(&Script::default());
    for _ in 0..2 * HINTS_MAX {
        prober.suspicions().suspect(&WorkerId::of_url("http://w"));
    }
    assert_eq!(prober.hints.len(), HINTS_MAX);
}

#[tokio::test(start_paused = true)]
async fn models_are_asked_seldom_once_they_are_known() {
    let (script, worker) = (Script::default(), workers(1).remove(0));
    let mut prober = prober(&script);
    prober.track(worker.clone(), true);
    for _ in 0..5 {
        assert_eq!(prober.next().await.models, None);
    }
    assert_eq!(script.model_questions(), 5, "asked until answered");
    script.set_models(&worker.id, &["m"]);
    for _ in 0..=2 * MODELS_EVERY {
        prober.next().await;
    }
    assert_eq!(script.model_questions(), 5 + 3);
}

#[tokio::test(start_paused = true)]
async fn models_that_the_operator_named_are_not_asked() {
    let (script, worker) = (Script::default(), workers(1).remove(0));
    let mut prober = prober(&script);
    prober.track(worker, false);
    prober.next().await;
    assert_eq!(script.model_questions(), 0);
}

#[tokio::test(start_paused = true)]
async fn probes_under_way_are_bounded() {
    let (script, workers) = (Script::default(), workers(PROBES_MAX + 10));
    let mut prober = prober(&script);
    for worker in &workers {
        script.hang(&worker.id);
        prober.track(worker.clone(), true);
    }
    assert!(tokio::time::timeout(Duration::from_secs(1), prober.next()).await.is_err());
    assert_eq!(script.probes(), PROBES_MAX);
    // Forgetting one that hangs makes room.
    let forgotten = prober.running.values().next().unwrap().clone();
    prober.untrack(&forgotten);
    assert!(tokio::time::timeout(Duration::from_secs(1), prober.next()).await.is_err());
    assert_eq!(script.probes(), PROBES_MAX + 1);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_worker_is_not_reported() {
    let (script, workers) = (Script::default(), workers(2));
    let mut prober = prober(&script);
    prober.track(workers[0].clone(), true);
    prober.launch(Instant::now());
    prober.untrack(&workers[0].id);
    prober.track(workers[1].clone(), true);
    assert_eq!(prober.next().await.id, workers[1].id);
    assert!(prober.running.is_empty() || prober.running.len() == 1);
    assert_eq!(prober.agenda.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_worker_keeps_its_state_and_is_probed_at_once() {
    let (script, worker) = (Script::default(), workers(1).remove(0));
    let mut prober = prober(&script);
    prober.track(worker.clone(), true);
    prober.next().await;
    let before = Instant::now();
    assert_eq!(prober.track(worker, true), WorkerState::Ready);
    prober.next().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn without_health_checks_only_models_are_asked_until_known() {
    let (script, worker) = (Script::default(), workers(1).remove(0));
    let mut prober = Prober::new(script.clone(), Health { enabled: false, ..rules() });
    script.set_down(&worker.id, true);
    assert_eq!(prober.track(worker.clone(), true), WorkerState::Ready);
    assert_eq!(prober.next().await.state, WorkerState::Ready);
    script.set_down(&worker.id, false);
    script.set_models(&worker.id, &["m"]);
    assert_eq!(prober.next().await.models.unwrap(), ["m"]);
    assert!(tokio::time::timeout(Duration::from_secs(3600), prober.next()).await.is_err());
    assert_eq!(script.probes(), 2);
}
