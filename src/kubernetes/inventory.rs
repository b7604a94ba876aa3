//! Which pods are workers, and when one counts as gone: pure, time is an argument.
//!
//! A pod is offered as a worker from when it is Ready. Once it was found, a pod that is not Ready is *held*: this gateway
//! sends it nothing, but its entry stays, with all that an operator said of it. A pod that is being deleted is given up at
//! once; what it still has in flight runs on.
//!
//! That a pod is deleted is believed when a watch says so. That a list lacks it is weaker: it counts when the next complete
//! list, [`CONFIRM_WAIT`] later, lacks it as well. An *empty* list counts only after lists were empty for
//! [`EMPTY_WAIT`]: an API server that has lost its state, or a cache in front of it that has not been filled, says
//! exactly that, and every gateway that believed it would be left without workers. A list or watch that fails in between
//! begins that time anew, and after [`HOLD_MAX`] of failures nothing is held: then the health checks alone decide.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::pod::Pod;
use crate::{
    config::kubernetes::{PodPort, WorkerPods},
    mesh::stores::{Finding, PodMark, WorkerId, WorkerOrigin, WorkerSpec},
};

/// How long after a list that lacks something the next one is asked for.
pub const CONFIRM_WAIT: Duration = Duration::from_secs(2);

/// How long lists must have been empty before that counts.
pub const EMPTY_WAIT: Duration = Duration::from_secs(60);

/// How long the API may fail before what it said of readiness is no reason any more to send a worker nothing.
pub const HOLD_MAX: Duration = Duration::from_secs(180);

/// Pods without the named port that are remembered; beyond that no further ones are told.
pub const PORTLESS_MAX: usize = 1_000;

/// What a watch says of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// It is new, or has changed.
    Put(Pod),
    /// It is gone, or does not match the selector any more.
    Gone(Pod),
}

/// What is known of the pods that one search finds. Bounded by the pods of a list.
#[derive(Debug)]
pub struct Inventory {
    pods: WorkerPods,
    search: u64,
    known: BTreeMap<String, Known>,
    /// The pods of the last complete list.
    listed: Option<BTreeSet<u64>>,
    /// Since when lists have been empty, without a list or watch that failed in between.
    empty_since: Option<Instant>,
    /// Since when lists or watches have failed, without a list that came.
    failing_since: Option<Instant>,
    findings: VecDeque<Finding>,
    /// Pods that lack the named port, each told once; bounded by [`PORTLESS_MAX`].
    portless: BTreeSet<u64>,
    untold: VecDeque<String>,
}

/// A pod that has an address.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Known {
    id: WorkerId,
    mark: PodMark,
    zone: String,
    is_ready: bool,
    /// The last list lacked it.
    is_missing: bool,
}

impl Inventory {
    /// Nothing is known.
    #[must_use]
    pub fn new(pods: WorkerPods) -> Self {
        let search = pods.search.number();
        Self {
            pods,
            search,
            known: BTreeMap::new(),
            listed: None,
            empty_since: None,
            failing_since: None,
            findings: VecDeque::new(),
            portless: BTreeSet::new(),
            untold: VecDeque::new(),
        }
    }

    /// Takes in a complete list; says whether another is due soon because this one lacks something.
    pub fn handle_list(&mut self, now: Instant, pods: &[Pod]) -> bool {
        self.failing_since = None;
        let live: BTreeSet<u64> = pods.iter().filter(|pod| !pod.is_ending).map(|pod| self.mark(pod).pod).collect();
        let is_empty = pods.is_empty();
        for pod in pods {
            self.handle_pod(pod, true);
        }
        if is_empty {
            let since = *self.empty_since.get_or_insert(now);
            if now.saturating_duration_since(since) < EMPTY_WAIT {
                return !self.known.is_empty();
            }
        } else {
            self.empty_since = None;
        }
        let mut lacking = 0;
        let mut gone = Vec::new();
        self.known.retain(|_, known| {
            let was_missing = std::mem::replace(&mut known.is_missing, !live.contains(&known.mark.pod));
            let is_gone = known.is_missing && (was_missing || is_empty);
            lacking += usize::from(known.is_missing && !is_gone);
            if is_gone {
                gone.push(Finding::Gone(known.id.clone(), known.mark));
            }
            !is_gone
        });
        self.findings.extend(gone);
        self.portless.retain(|pod| live.contains(pod));
        self.sweep(live);
        lacking > 0
    }

    /// Takes away what others have found by this search and two lists in a row lack.
    fn sweep(&mut self, live: BTreeSet<u64>) {
        if let Some(before) = self.listed.replace(live.clone()) {
            let known = self.known.values().map(|known| known.mark.pod);
            let pods = before.into_iter().chain(live).chain(known).collect();
            self.findings.push_back(Finding::Only { search: self.search, pods });
        }
    }

    /// Takes in that the API did not answer: what is known stays, and what it says next is believed as after a start.
    pub fn handle_failure(&mut self, now: Instant) {
        self.empty_since = None;
        self.failing_since.get_or_insert(now);
    }

    /// Takes in what a watch says.
    pub fn handle_change(&mut self, change: &Change) {
        match change {
            Change::Put(pod) => self.handle_pod(pod, false),
            Change::Gone(pod) => {
                if self.known.get(&pod.name).is_some_and(|known| known.mark == self.mark(pod)) {
                    self.give_up(&pod.name);
                }
            }
        }
    }

    /// The next thing to tell the cluster; told again and again it changes nothing.
    pub fn poll_finding(&mut self) -> Option<Finding> {
        self.findings.pop_front()
    }

    /// The next pod, `ns/name`, that has no port of the name that is looked for; each comes once.
    pub fn poll_portless(&mut self) -> Option<String> {
        self.untold.pop_front()
    }

    /// The workers whose pods are not Ready; none any more when no list has come for [`HOLD_MAX`]: what is as old as that
    /// says less than the health checks.
    #[must_use]
    pub fn held(&self, now: Instant) -> BTreeSet<WorkerId> {
        if self.failing_since.is_some_and(|since| now.saturating_duration_since(since) >= HOLD_MAX) {
            return BTreeSet::new();
        }
        self.known.values().filter(|known| !known.is_ready).map(|known| known.id.clone()).collect()
    }

    /// Pods that are Ready.
    #[must_use]
    pub fn ready_len(&self) -> usize {
        self.known.values().filter(|known| known.is_ready).count()
    }

    fn handle_pod(&mut self, pod: &Pod, is_listed: bool) {
        let mark = self.mark(pod);
        self.note_port(pod, mark);
        let url = self.url(pod).filter(|_| !pod.is_ending);
        let id = url.as_deref().map(WorkerId::of_url);
        // Another pod of the same name, or the same at another address: a sandbox that was made anew.
        let is_other = |known: &Known| known.mark != mark || id.as_ref() != Some(&known.id);
        let before = match self.known.get(&pod.name) {
            Some(known) if is_other(known) => {
                self.give_up(&pod.name);
                None
            }
            before => before.cloned(),
        };
        let (Some(id), Some(url)) = (id, url) else { return };
        let (zone, is_ready) = (pod.zone.clone(), pod.is_ready);
        self.known.insert(pod.name.clone(), Known { id, mark, zone, is_ready, is_missing: false });
        // A watch can be behind another gateway's, so what it repeats is not told again; a list is not.
        let is_news = |known: Known| !known.is_ready || (known.zone.is_empty() && !pod.zone.is_empty());
        if pod.is_ready && (is_listed || before.is_none_or(is_news)) {
            self.findings.push_back(Finding::Found(WorkerSpec {
                url,
                models: Vec::new(),
                api_key: None,
                zone: pod.zone.clone(),
                origin: WorkerOrigin::Discovered(mark),
                draining: false,
            }));
        }
    }

    fn note_port(&mut self, pod: &Pod, mark: PodMark) {
        let is_portless = pod.port(&self.pods.port).is_none() && !pod.is_ending;
        if is_portless && self.portless.len() < PORTLESS_MAX && self.portless.insert(mark.pod) {
            self.untold.push_back(pod.name.clone());
        }
    }

    fn give_up(&mut self, name: &str) {
        if let Some(known) = self.known.remove(name) {
            self.findings.push_back(Finding::Gone(known.id, known.mark));
        }
    }

    /// The port that is looked for.
    pub(super) fn port(&self) -> &PodPort {
        &self.pods.port
    }

    fn mark(&self, pod: &Pod) -> PodMark {
        PodMark::new(&pod.uid, self.search)
    }

    fn url(&self, pod: &Pod) -> Option<String> {
        let addr = std::net::SocketAddr::new(pod.ip?, pod.port(&self.pods.port)?);
        crate::config::address::canonical(&format!("{}://{addr}", self.pods.scheme)).ok()
    }
}

/// Shares a set that seldom changes.
pub(super) type Held = Arc<BTreeSet<WorkerId>>;

#[cfg(test)]
mod tests;
