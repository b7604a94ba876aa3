//! Searches of the Kubernetes API.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use opentelemetry::{
    KeyValue,
    metrics::{BoundCounter, Meter},
};

use super::{Metrics, counters_by_two, definitions as def, family::Family, gauge};

/// Instruments of the searches. There are no series where nothing is searched.
pub(super) struct Kubernetes {
    requests: Family<(&'static str, &'static str), BoundCounter<u64>>,
    /// Pods found and time of the last list in unix seconds, by kind.
    searches: Arc<Mutex<BTreeMap<&'static str, (i64, i64)>>>,
}

impl Kubernetes {
    pub(super) fn new(meter: &Meter) -> Self {
        let searches = Arc::<Mutex<BTreeMap<&'static str, (i64, i64)>>>::default();
        for (definition, is_time) in [(&def::KUBE_PODS, false), (&def::KUBE_LISTED, true)] {
            let searches = searches.clone();
            gauge(meter, definition, move |gauge| {
                for (kind, (pods, at)) in &*searches.lock().unwrap_or_else(PoisonError::into_inner) {
                    gauge.observe(if is_time { *at } else { *pods }, &[KeyValue::new("kind", *kind)]);
                }
            });
        }
        Self { requests: counters_by_two(meter, &def::KUBE_REQUESTS), searches }
    }

    fn edit(&self, kind: &'static str, change: impl FnOnce(&mut (i64, i64))) {
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        change(searches.entry(kind).or_insert((0, unix_secs())));
    }
}

impl Metrics {
    /// `smg_kubernetes_requests_total{operation,result}`.
    pub fn kubernetes_request(&self, operation: &'static str, result: &'static str) {
        self.kubernetes.requests.with(&(operation, result), |counter| counter.add(1));
    }

    /// `smg_kubernetes_pods{kind}`.
    pub fn kubernetes_found(&self, kind: &'static str, pods: usize) {
        self.kubernetes.edit(kind, |search| search.0 = i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// `smg_kubernetes_last_list_timestamp_seconds{kind}`: now.
    pub fn kubernetes_listed(&self, kind: &'static str) {
        self.kubernetes.edit(kind, |search| search.1 = unix_secs());
    }
}

fn unix_secs() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
