//! `/ha/workers`: each worker as every gateway sees it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    gateway::registry::roster::{Roster, models_of},
    ha::status::rfc3339,
    mesh::{
        driver::handle::View,
        stores::{WorkerId, WorkerObservation, WorkerState, WorkerView},
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
    /// Requests that this gateway has in flight there.
    pub in_flight: usize,
    /// Those of all gateways together; of the others as they said within the last second.
    pub load: usize,
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
    /// Its circuit breaker: open, or closed, which includes half-open.
    pub breaker: &'static str,
    /// When an open one lets requests try again, in RFC 3339, UTC, by that gateway's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_until: Option<String>,
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
    let now = SystemTime::now();
    let observers = worker.observed.iter().map(|(node, seen)| (node.to_string(), observer(seen, now)));
    Shown {
        id: worker.id.to_string(),
        url: worker.spec.url.clone(),
        models: models.to_vec(),
        state: state.as_str(),
        in_flight: own.map_or(0, |entry| entry.worker.in_flight()),
        load: own.map_or(0, |entry| entry.worker.load()),
        observers: observers.collect(),
    }
}

/// The first instant that RFC 3339 cannot write, after 1970.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

fn observer(seen: &WorkerObservation, now: SystemTime) -> Observer {
    let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(seen.failing_until_ms));
    let is_open = seen.failing_until_ms > 0 && until.is_none_or(|until| until > now);
    // What has no date on our calendar is nonsense of another node: it says open and no more.
    let open_until = until.filter(|until| is_open && *until < SystemTime::UNIX_EPOCH + YEAR_10000).map(rfc3339);
    let breaker = if is_open { "open" } else { "closed" };
    Observer { state: seen.state.as_str(), models: seen.models.clone(), breaker, open_until }
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
    fn an_open_breaker_is_shown_until_its_time_is_over() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_705_314_600);
        for (case, failing_until_ms, breaker, open_until) in [
            ("never", 0, "closed", None),
            ("over", 1_705_314_600_000, "closed", None),
            ("open", 1_705_314_660_000, "open", Some("2024-01-15T10:31:00Z")),
            ("beyond every calendar", u64::MAX, "open", None),
        ] {
            let seen = WorkerObservation { state: WorkerState::Ready, models: Vec::new(), failing_until_ms };
            let shown = observer(&seen, now);
            assert_eq!((shown.breaker, shown.open_until.as_deref()), (breaker, open_until), "{case}");
        }
    }

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
