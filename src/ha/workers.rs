//! `/ha/workers`: each worker as every gateway sees it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    gateway::registry::roster::{Roster, models_of},
    mesh::{
        driver::handle::View,
        stores::{WorkerId, WorkerState, WorkerView},
    },
};

/// One worker.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Base URL.
    pub url: String,
    /// Its models; empty when unknown.
    pub models: Vec<String>,
    /// As this gateway sees it, else as most others do.
    pub state: &'static str,
    /// What each gateway sees, by node name.
    pub observers: BTreeMap<String, Observer>,
}

/// What one gateway sees.
#[derive(Debug, Serialize)]
pub struct Observer {
    /// pending, ready or not_ready.
    pub state: &'static str,
    /// Models that the worker listed for it.
    pub models: Vec<String>,
}

/// Every worker, sorted by id.
#[must_use]
pub fn all(view: &View, roster: &Roster) -> Vec<Shown> {
    view.workers.iter().map(|worker| shown(view, roster, worker)).collect()
}

/// One of them.
#[must_use]
pub fn one(view: &View, roster: &Roster, id: &WorkerId) -> Option<Shown> {
    let index = view.workers.binary_search_by(|worker| worker.id.cmp(id)).ok()?;
    Some(shown(view, roster, &view.workers[index]))
}

fn shown(view: &View, roster: &Roster, worker: &WorkerView) -> Shown {
    let own = roster.get(&worker.id);
    let observed = worker.observed.get(&view.node).map(|seen| seen.state);
    let state = match own.map(|entry| entry.state).or(observed) {
        _ if worker.spec.draining => WorkerState::Draining,
        Some(state) => state,
        None => majority(worker.observed.values().map(|seen| seen.state)),
    };
    let models = own.map_or_else(|| models_of(worker, &[]), |entry| entry.models.clone());
    let observers = worker
        .observed
        .iter()
        .map(|(node, seen)| (node.to_string(), Observer { state: seen.state.as_str(), models: seen.models.clone() }));
    Shown {
        id: worker.id.to_string(),
        url: worker.spec.url.clone(),
        models: models.to_vec(),
        state: state.as_str(),
        observers: observers.collect(),
    }
}

/// The state that most gateways see; of equally frequent ones the worse for requests. Pending when nobody sees any.
fn majority(states: impl Iterator<Item = WorkerState>) -> WorkerState {
    let mut counts = [0usize; 4];
    let order = [WorkerState::Ready, WorkerState::Pending, WorkerState::NotReady, WorkerState::Draining];
    for state in states {
        counts[order.iter().position(|known| *known == state).unwrap_or_default()] += 1;
    }
    let most = order.into_iter().zip(counts).filter(|(_, count)| *count > 0).max_by_key(|(_, count)| *count);
    most.map_or(WorkerState::Pending, |(state, _)| state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_decides_and_doubt_counts_against() {
        use WorkerState::{NotReady, Pending, Ready};
        for (case, states, expected) in [
            ("nobody", &[][..], Pending),
            ("one", &[Ready], Ready),
            ("most", &[Ready, NotReady, Ready], Ready),
            ("even", &[Ready, NotReady], NotReady),
            ("even, pending", &[Pending, Ready], Pending),
        ] {
            assert_eq!(majority(states.iter().copied()), expected, "{case}");
        }
    }
}
