//! Workers as the admin API shows them. Never their keys.

use serde::Serialize;

use crate::{
    gateway::registry::roster::{Entry, Roster, models_of},
    mesh::{
        driver::handle::View,
        stores::{WorkerId, WorkerOrigin, WorkerSpec, WorkerState, WorkerView},
    },
};

/// Answer of `GET /workers`.
#[derive(Debug, Serialize)]
pub struct Listing {
    /// Sorted by id, those being removed last.
    pub workers: Vec<Shown>,
    /// How many.
    pub total: usize,
}

/// One worker.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Base URL.
    pub url: String,
    /// Its models; empty when unknown.
    pub models: Vec<String>,
    /// State as this gateway sees it: pending, ready, not_ready or draining.
    pub state: &'static str,
    /// Availability zone; empty when unknown.
    pub zone: String,
    /// Requests in flight from this gateway.
    pub requests_active: usize,
    /// Where the entry came from: seed or api.
    pub origin: &'static str,
}

/// All workers: those of the mesh's view, and removed ones whose last requests are still in flight here.
#[must_use]
pub fn all(view: &View, roster: &Roster) -> Listing {
    let registered = view.workers.iter().map(|worker| shown(worker, roster.get(&worker.id)));
    let workers: Vec<_> = registered.chain(leaving(view, roster).map(draining)).collect();
    Listing { total: workers.len(), workers }
}

/// One of them.
#[must_use]
pub fn one(view: &View, roster: &Roster, id: &WorkerId) -> Option<Shown> {
    match view.workers.binary_search_by(|worker| worker.id.cmp(id)) {
        Ok(index) => Some(shown(&view.workers[index], roster.get(id))),
        Err(_) => leaving(view, roster).find(|entry| entry.view.id == *id).map(draining),
    }
}

/// A worker that was just asked for and is in no view yet.
#[must_use]
pub fn requested(id: &WorkerId, spec: &WorkerSpec) -> Shown {
    describe(id, spec, spec.models.clone(), WorkerState::Pending, 0)
}

/// The registry is a few milliseconds behind the mesh: a worker that it does not hold yet is pending, and one that it
/// still holds is being removed.
fn leaving<'a>(view: &'a View, roster: &'a Roster) -> impl Iterator<Item = &'a Entry> {
    let is_gone = |entry: &&Entry| view.workers.binary_search_by(|w| w.id.cmp(&entry.view.id)).is_err();
    roster.entries.iter().chain(&roster.leaving).filter(is_gone).filter(|entry| entry.worker.in_flight() > 0)
}

fn shown(worker: &WorkerView, entry: Option<&Entry>) -> Shown {
    let state = match entry {
        _ if worker.spec.draining => WorkerState::Draining,
        Some(entry) => entry.state,
        None => WorkerState::Pending,
    };
    let models = match entry {
        // The entry's models are from a moment before; an operator's word counts at once.
        Some(entry) if worker.spec.models.is_empty() => entry.models.to_vec(),
        _ => models_of(worker, &[]).to_vec(),
    };
    let in_flight = entry.map_or(0, |entry| entry.worker.in_flight());
    describe(&worker.id, &worker.spec, models, state, in_flight)
}

fn draining(entry: &Entry) -> Shown {
    let models = entry.models.to_vec();
    describe(&entry.view.id, &entry.view.spec, models, WorkerState::Draining, entry.worker.in_flight())
}

fn describe(id: &WorkerId, spec: &WorkerSpec, models: Vec<String>, state: WorkerState, in_flight: usize) -> Shown {
    Shown {
        id: id.to_string(),
        url: spec.url.clone(),
        models,
        state: state.as_str(),
        zone: spec.zone.clone(),
        requests_active: in_flight,
        origin: match spec.origin {
            WorkerOrigin::Seed => "seed",
            WorkerOrigin::Api => "api",
        },
    }
}
