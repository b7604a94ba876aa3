//! What the admin and HA APIs read: every worker with its state as this gateway sees it.

use std::sync::Arc;

use crate::{
    gateway::worker::Worker,
    mesh::stores::{WorkerId, WorkerObservation, WorkerState, WorkerView},
};

/// One worker as this gateway sees it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What the cluster knows.
    pub view: Arc<WorkerView>,
    /// What requests are sent to.
    pub worker: Arc<Worker>,
    /// Its state from here.
    pub state: WorkerState,
    /// Its models; empty when unknown. At most 256 listed ones, or as many as the operator named.
    pub models: Arc<[String]>,
}

/// All workers, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// Registered ones, sorted by id.
    pub entries: Vec<Entry>,
    /// Removed ones that still had requests in flight when last looked at.
    pub leaving: Vec<Entry>,
}

impl Roster {
    /// The registered worker of this id.
    #[must_use]
    pub fn get(&self, id: &WorkerId) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.view.id.cmp(id)).ok().map(|index| &self.entries[index])
    }

    /// Whether the worker is registered and ready here.
    #[must_use]
    pub fn is_ready(&self, id: &WorkerId) -> bool {
        self.get(id).is_some_and(|entry| entry.state == WorkerState::Ready)
    }
}

/// Its models: what the operator named, else what `own` probing found, else what another gateway found: the first by
/// name that sees it ready, else the first that listed any. Empty when nobody knows.
#[must_use]
pub fn models_of(view: &WorkerView, own: &[String]) -> Arc<[String]> {
    if !view.spec.models.is_empty() {
        return view.spec.models.as_slice().into();
    }
    if !own.is_empty() {
        return own.into();
    }
    let knows = |seen: &&WorkerObservation| !seen.models.is_empty();
    let mut others = view.observed.values().filter(knows);
    let ready = view.observed.values().filter(knows).find(|seen| seen.state == WorkerState::Ready);
    ready.or_else(|| others.next()).map(|seen| seen.models.as_slice()).unwrap_or_default().into()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;
    use crate::{gateway::worker::tests::spec, mesh::stores::WorkerSpec};

    pub(crate) fn entry(host: &str, state: WorkerState, models: &[&str]) -> Entry {
        let spec = spec(&format!("http://{host}:8000"));
        let worker = Arc::new(Worker::of_spec(&spec, None).unwrap());
        let view = Arc::new(WorkerView { id: worker.id.clone(), spec, observed: BTreeMap::new() });
        Entry { view, worker, state, models: models.iter().map(|&m| m.to_owned()).collect() }
    }

    fn names(models: &[&str]) -> Vec<String> {
        models.iter().map(|&m| m.to_owned()).collect()
    }

    #[test]
    fn the_operator_knows_best_then_this_gateway_then_others() {
        use WorkerState::{NotReady, Ready};
        for (case, named, own, others, expected) in [
            ("nobody knows", &[][..], &[][..], vec![], &[][..]),
            ("operator", &["s"], &["o"], vec![(Ready, &["x"][..])], &["s"]),
            ("own", &[], &["o"], vec![(Ready, &["x"])], &["o"]),
            ("another", &[], &[], vec![(NotReady, &["x"])], &["x"]),
            ("a ready one first", &[], &[], vec![(NotReady, &["x"]), (Ready, &["y"])], &["y"]),
            ("ready without models", &[], &[], vec![(Ready, &[]), (NotReady, &["y"])], &["y"]),
        ] {
            let observed = others.iter().enumerate().map(|(i, (state, models))| {
                (
                    format!("n{i}").parse().unwrap(),
                    WorkerObservation { state: *state, models: names(models), failing_until_ms: 0 },
                )
            });
            let view = WorkerView {
                id: WorkerId::of_url("http://w"),
                spec: WorkerSpec { models: names(named), ..spec("http://w") },
                observed: observed.collect(),
            };
            assert_eq!(*models_of(&view, &names(own)), names(expected), "{case}");
        }
    }
}
