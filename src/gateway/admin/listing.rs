//! Workers as the admin API shows them. Never their keys.

use std::time::Instant;

use serde::Serialize;

use crate::{
    gateway::{
        breaker,
        registry::roster::{Entry, Roster, models_of},
        worker::Worker,
    },
    mesh::{
        driver::handle::View,
        stores::{WorkerId, WorkerSpec, WorkerState, WorkerView},
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
    /// This gateway's circuit breaker for it: closed, open or half_open.
    pub breaker: &'static str,
    /// Where the entry came from: seed, api or discovered.
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
    describe(id, spec, spec.models.clone(), WorkerState::Pending, None)
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
    describe(&worker.id, &worker.spec, models, state, entry.map(|entry| &*entry.worker))
}

fn draining(entry: &Entry) -> Shown {
    let models = entry.models.to_vec();
    describe(&entry.view.id, &entry.view.spec, models, WorkerState::Draining, Some(&entry.worker))
}

fn describe(
    id: &WorkerId,
    spec: &WorkerSpec,
    models: Vec<String>,
    state: WorkerState,
    worker: Option<&Worker>,
) -> Shown {
    let breaker = worker.map_or(breaker::State::Closed, |worker| worker.breaker.state(Instant::now()));
    Shown {
        id: id.to_string(),
        url: spec.url.clone(),
        models,
        state: state.as_str(),
        zone: spec.zone.clone(),
        requests_active: worker.map_or(0, Worker::in_flight),
        breaker: breaker.as_str(),
        origin: spec.origin.as_str(),
    }
}
