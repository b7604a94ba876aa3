//! Active health checks: looks at every worker again and again, and reports what it sees.
//!
//! The [`Prober`] keeps one [`state::Checks`] per worker and an agenda of due probes. Each probe is a task of its own,
//! at most [`PROBES_MAX`] at a time; those that are due beyond that wait, the longest due first. A worker is never
//! probed twice at the same time. A request that could not connect is a hint ([`Suspicions`]): the worker is probed
//! at once, so that it is found out after `failure_threshold` hints, not intervals.
//!
//! The models of a worker are asked after a successful probe: at the first one, at those that bring it back, at
//! every [`MODELS_EVERY`]th, and at each until it has answered once. What it listed last stays valid when it does not
//! answer. Without health checks only the models are asked, until they are known.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    config::Health,
    gateway::{
        health::{
            probe::{Answer, Probe, Question},
            state::{Checks, jittered},
        },
        worker::Worker,
    },
    mesh::stores::{WorkerId, WorkerState},
};

pub mod probe;

pub mod state;

/// Probes under way at most. With all of them hanging for the default 5 s that is 51 probes a second.
pub const PROBES_MAX: usize = 256;

/// A worker that is ready is asked for its models at every so many probes: with the default interval, once a minute.
pub const MODELS_EVERY: u32 = 6;

/// Hints waiting at most; further ones are dropped, as more of the same traffic will hint again.
pub const HINTS_MAX: usize = 256;

/// Between two probes of one worker that hints brought forward.
pub const HINT_SPACING: Duration = Duration::from_secs(1);

/// What a probe has shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The worker.
    pub id: WorkerId,
    /// Whether this probe succeeded.
    pub success: bool,
    /// Its state from now on.
    pub state: WorkerState,
    /// The models it listed, when it was asked and answered.
    pub models: Option<Vec<String>>,
}

/// Where the request path reports workers that it could not connect to. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct Suspicions(mpsc::Sender<WorkerId>);

impl Default for Suspicions {
    /// Reports that nobody hears.
    fn default() -> Self {
        Self(mpsc::channel(1).0)
    }
}

impl Suspicions {
    /// Asks for an immediate probe of a worker. At most one a second and worker has an effect, and none on workers
    /// that are not ready.
    pub fn suspect(&self, id: &WorkerId) {
        // A full queue means that others have just hinted; see `HINTS_MAX`.
        let _ = self.0.try_send(id.clone());
    }
}

/// Probes every worker that it was told to [`track`](Self::track). Its tasks end with it.
#[derive(Debug)]
pub struct Prober<P> {
    probe: Arc<P>,
    rules: Health,
    tracked: BTreeMap<WorkerId, Tracked>,
    agenda: BTreeSet<(Instant, WorkerId)>,
    tasks: JoinSet<Answer>,
    running: HashMap<Id, WorkerId>,
    hints: mpsc::Receiver<WorkerId>,
    suspicions: Suspicions,
}

#[derive(Debug)]
struct Tracked {
    worker: Arc<Worker>,
    checks: Checks,
    asks_models: bool,
    models_known: bool,
    /// Successful probes since the models were asked.
    since_models: u32,
    /// None while a probe is under way, and when none is needed any more.
    due: Option<Instant>,
    task: Option<AbortHandle>,
    last_hint: Option<Instant>,
}

impl<P: Probe> Prober<P> {
    /// A prober of no workers.
    #[must_use]
    pub fn new(probe: P, rules: Health) -> Self {
        let (sender, hints) = mpsc::channel(HINTS_MAX);
        Self {
            probe: Arc::new(probe),
            rules,
            tracked: BTreeMap::new(),
            agenda: BTreeSet::new(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            hints,
            suspicions: Suspicions(sender),
        }
    }

    /// Where to report workers that could not be connected to.
    #[must_use]
    pub fn suspicions(&self) -> Suspicions {
        self.suspicions.clone()
    }

    /// Probes a worker from now on, first at once. One that is already tracked under this id is replaced, keeping its
    /// state. `asks_models` says whether its models are to be found out.
    pub fn track(&mut self, worker: Arc<Worker>, asks_models: bool) -> WorkerState {
        let id = worker.id.clone();
        let previous = self.remove(&id);
        let checks = previous.map_or_else(|| Checks::new(&self.rules), |previous| previous.checks);
        let state = checks.state();
        let due = (self.rules.enabled || asks_models).then(Instant::now);
        self.agenda.extend(due.map(|due| (due, id.clone())));
        let tracked = Tracked {
            worker,
            checks,
            asks_models,
            models_known: false,
            since_models: 0,
            due,
            task: None,
            last_hint: None,
        };
        self.tracked.insert(id, tracked);
        state
    }

    /// Forgets a worker; a probe under way is given up.
    pub fn untrack(&mut self, id: &WorkerId) {
        self.remove(id);
    }

    /// The next result. Cancel safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Report {
        loop {
            self.launch(Instant::now());
            let due = self.agenda.first().map(|(due, _)| *due).filter(|_| self.tasks.len() < PROBES_MAX);
            tokio::select! {
                Some(done) = self.tasks.join_next_with_id() => {
                    if let Some(report) = self.on_done(done) {
                        return report;
                    }
                }
                Some(id) = self.hints.recv() => self.on_hint(&id),
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
            }
        }
    }

    fn launch(&mut self, now: Instant) {
        while self.tasks.len() < PROBES_MAX && self.agenda.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, id)) = self.agenda.pop_first() else { return };
            let Some(tracked) = self.tracked.get_mut(&id) else { continue };
            tracked.due = None;
            let question = Question { health: self.rules.enabled, models: tracked.wants_models() };
            let (probe, worker) = (self.probe.clone(), tracked.worker.clone());
            let task = self.tasks.spawn(async move { probe.probe(worker, question).await });
            self.running.insert(task.id(), id);
            tracked.task = Some(task);
        }
    }

    fn on_done(&mut self, done: Result<(Id, Answer), JoinError>) -> Option<Report> {
        let (task, answer) = match done {
            Ok((task, answer)) => (task, Some(answer)),
            Err(failed) => (failed.id(), None),
        };
        let id = self.running.remove(&task)?;
        let tracked = self.tracked.get_mut(&id).filter(|t| t.task.as_ref().is_some_and(|t| t.id() == task))?;
        tracked.task = None;
        let (success, models) = match answer {
            Some(Answer { health: Ok(()), models }) => (true, models),
            Some(Answer { health: Err(error), .. }) => {
                tracing::debug!(worker = %id, %error, "worker probe failed");
                (false, None)
            }
            None => (false, None),
        };
        tracked.on_models(success, models.is_some());
        let wait = tracked.checks.on_probe(success, &self.rules);
        if self.rules.enabled || tracked.wants_models() {
            let due = Instant::now() + jittered(wait, rand::random());
            tracked.due = Some(due);
            self.agenda.insert((due, id.clone()));
        }
        Some(Report { id, success, state: tracked.checks.state(), models })
    }

    fn on_hint(&mut self, id: &WorkerId) {
        let now = Instant::now();
        let Some(tracked) = self.tracked.get_mut(id) else { return };
        let is_due = tracked.last_hint.is_none_or(|last| now.duration_since(last) >= HINT_SPACING);
        let Some(due) = tracked.due.filter(|_| self.rules.enabled && is_due) else { return };
        if tracked.checks.state() != WorkerState::Ready {
            return;
        }
        tracked.last_hint = Some(now);
        tracked.due = Some(now);
        self.agenda.remove(&(due, id.clone()));
        self.agenda.insert((now, id.clone()));
    }

    fn remove(&mut self, id: &WorkerId) -> Option<Tracked> {
        let tracked = self.tracked.remove(id)?;
        if let Some(due) = tracked.due {
            self.agenda.remove(&(due, id.clone()));
        }
        if let Some(task) = &tracked.task {
            task.abort();
        }
        Some(tracked)
    }
}

impl Tracked {
    fn wants_models(&self) -> bool {
        let is_new = !self.models_known || self.checks.state() != WorkerState::Ready;
        self.asks_models && (is_new || self.since_models + 1 >= MODELS_EVERY)
    }

    fn on_models(&mut self, success: bool, answered: bool) {
        if answered {
            (self.models_known, self.since_models) = (true, 0);
        } else if success {
            self.since_models = self.since_models.saturating_add(1);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
