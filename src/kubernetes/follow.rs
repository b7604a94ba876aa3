//! One search, for ever: list, watch from there, list again.
//!
//! A list comes about every `relist`, a fifth sooner or later, so what a watch did not say, because it hangs or lost something, is wrong for so
//! long at most. After a failure the next list waits 1 s, twice that after each further one, 30 s at most; each wait a
//! fifth longer or shorter, so that gateways do not ask in step. A failure changes nothing of what is known.
//!
//! Zones come last: what a list or a watch says is told first, with the zones that are known, and told again for pods whose
//! node has one. Asking for them delays the watch by 10 s at most; the next list goes on with the rest.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use rand::RngExt as _;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use super::{
    api::{Api, ApiError, Listed},
    inventory::{CONFIRM_WAIT, Change},
    pod::Pod,
};
use crate::{config::kubernetes::PodSearch, telemetry::metrics::Metrics};

/// First wait after a failure.
const BACKOFF_INITIAL: Duration = Duration::from_secs(1);

/// Longest wait after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Between two warnings of a search that fails.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// How long zones are asked for after one list, or one change.
const ZONES_TIME: Duration = Duration::from_secs(10);

/// Zones of nodes that are remembered; beyond that all are asked for anew.
const ZONES_MAX: usize = 5_000;

/// Who is told what a search finds.
pub(super) trait Audience: Send {
    /// `worker` or `router`, in metrics and logs.
    const KIND: &'static str;

    /// Whether zones are of interest: asking for them needs a right more.
    const WANTS_ZONES: bool;

    /// Every pod that matches now; says whether the next list is due soon.
    fn handle_list(&mut self, pods: &[Pod]) -> bool;

    /// News since then.
    fn handle_change(&mut self, change: &Change);

    /// A list or watch failed.
    fn handle_failure(&mut self) {}

    /// Passes on what there is to say; gives the number of pods that are in use, or none when nobody listens any more.
    fn flush(&mut self) -> impl Future<Output = Option<usize>> + Send;
}

/// A search and its state between two requests.
pub(super) struct Follower<A> {
    api: Api,
    search: PodSearch,
    relist: Duration,
    metrics: Arc<Metrics>,
    audience: A,
    zones: BTreeMap<String, String>,
    /// The zone of a node could not be had: none is asked for before the next list.
    is_zoneless: bool,
    failures: u32,
    complaints: Complaints,
}

/// What the log has said of failures.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    /// The operation that it said fails.
    failing: Option<&'static str>,
    at: Option<Instant>,
}

impl Complaints {
    /// Whether to say now that an operation fails: once in [`WARN_PAUSE`], whatever fails.
    pub(super) fn on_failure(&mut self, now: Instant, operation: &'static str) -> bool {
        let is_due = self.at.is_none_or(|at| now.duration_since(at) >= WARN_PAUSE);
        if is_due {
            *self = Self { failing: Some(operation), at: Some(now) };
        }
        is_due
    }

    /// Whether to say that it works again.
    pub(super) fn on_success(&mut self, operation: &'static str) -> bool {
        self.failing.take_if(|failing| *failing == operation).is_some()
    }
}

/// The audience has gone.
struct Unheard;

impl<A: Audience> Follower<A> {
    pub(super) fn new(api: Api, search: PodSearch, relist: Duration, metrics: Arc<Metrics>, audience: A) -> Self {
        metrics.kubernetes_found(A::KIND, 0);
        Self {
            api,
            search,
            relist,
            metrics,
            audience,
            zones: BTreeMap::new(),
            is_zoneless: false,
            failures: 0,
            complaints: Complaints::default(),
        }
    }

    /// Runs until nobody listens any more.
    pub(super) async fn run(mut self) {
        loop {
            let outcome = match self.list().await {
                Ok((listed, is_soon)) => {
                    let version = listed.version;
                    if self.tell().await.is_err() || self.tell_zones(listed.pods).await.is_err() {
                        return;
                    }
                    let wait = if is_soon { CONFIRM_WAIT } else { jittered(self.relist) };
                    self.watch(version, Instant::now() + wait).await
                }
                Err(error) => Ok(Err(("list", error))),
            };
            match outcome {
                Ok(Ok(())) => self.failures = 0,
                Ok(Err((operation, error))) => self.on_failure(operation, &error).await,
                Err(Unheard) => return,
            }
        }
    }

    async fn list(&mut self) -> Result<(Listed, bool), ApiError> {
        let mut listed = self.api.list(&self.search).await?;
        self.metrics.kubernetes_request("list", "ok");
        self.metrics.kubernetes_listed(A::KIND);
        self.is_zoneless = false;
        listed.pods.iter_mut().for_each(|pod| self.recall_zone(pod));
        let is_soon = self.audience.handle_list(&listed.pods);
        self.on_success("list");
        Ok((listed, is_soon))
    }

    /// Takes in changes until the next list is due.
    async fn watch(&mut self, from: String, until: Instant) -> Result<Result<(), (&'static str, ApiError)>, Unheard> {
        let mut version = from;
        loop {
            let lasting = until.saturating_duration_since(Instant::now());
            if lasting.is_zero() {
                return Ok(Ok(()));
            }
            let begun = Instant::now();
            // A server that keeps us waiting for the watch must not delay the list.
            let mut watch = match timeout_at(until, self.api.watch(&self.search, &version, lasting)).await {
                Ok(Ok(watch)) => watch,
                Ok(Err(error)) => return Ok(Err(("watch", error))),
                Err(_) => return Ok(Ok(())),
            };
            self.metrics.kubernetes_request("watch", "ok");
            self.on_success("watch");
            loop {
                match timeout_at(until, watch.next()).await {
                    Err(_) => return Ok(Ok(())),
                    Ok(Err(error)) => return Ok(Err(("watch", error))),
                    Ok(Ok(None)) => break,
                    Ok(Ok(Some(mut change))) => {
                        self.failures = 0;
                        if let Change::Put(pod) = &mut change {
                            self.recall_zone(pod);
                        }
                        self.audience.handle_change(&change);
                        self.tell().await?;
                        if let Change::Put(pod) = change {
                            self.tell_zones(vec![pod]).await?;
                        }
                    }
                }
            }
            version = watch.version().into();
            // A server that ends every watch at once is not asked more often than this.
            let wait = BACKOFF_INITIAL.saturating_sub(begun.elapsed());
            sleep(wait.min(until.saturating_duration_since(Instant::now()))).await;
            self.failures = 0;
        }
    }

    async fn tell(&mut self) -> Result<(), Unheard> {
        let pods = self.audience.flush().await.ok_or(Unheard)?;
        self.metrics.kubernetes_found(A::KIND, pods);
        Ok(())
    }

    fn on_success(&mut self, operation: &'static str) {
        if self.complaints.on_success(operation) {
            info!(kind = A::KIND, operation, "pods are followed again");
        }
    }

    async fn on_failure(&mut self, operation: &'static str, error: &ApiError) {
        self.metrics.kubernetes_request(operation, error.reason());
        // A version that is too old is the way of the API to ask for a list.
        if !matches!(error, ApiError::Gone) {
            self.audience.handle_failure();
            if self.complaints.on_failure(Instant::now(), operation) {
                let chain = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
                let source = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
                warn!(kind = A::KIND, operation, %error, source, "pods not followed, what is known stays");
            }
        }
        let wait = BACKOFF_MAX.min(BACKOFF_INITIAL * 2_u32.saturating_pow(self.failures.min(5)));
        self.failures += 1;
        sleep(jittered(wait)).await;
    }

    /// Whether the zone of the pod is of interest, and it does not say it itself.
    fn lacks_zone(pod: &Pod) -> bool {
        A::WANTS_ZONES && pod.is_ready && !pod.is_ending && pod.zone.is_empty() && !pod.node.is_empty()
    }

    /// Fills in the zone of the pod's node where it is known.
    fn recall_zone(&self, pod: &mut Pod) {
        if Self::lacks_zone(pod)
            && let Some(zone) = self.zones.get(&pod.node)
        {
            pod.zone.clone_from(zone);
        }
    }

    /// Asks for the zones of nodes that are not known yet, and tells them: before the next node is asked for, and in the end.
    async fn tell_zones(&mut self, pods: Vec<Pod>) -> Result<(), Unheard> {
        let (deadline, mut is_news) = (Instant::now() + ZONES_TIME, false);
        for mut pod in pods.into_iter().filter(Self::lacks_zone) {
            if !self.zones.contains_key(&pod.node) {
                if self.is_zoneless || Instant::now() >= deadline {
                    break;
                }
                if std::mem::take(&mut is_news) {
                    self.tell().await?;
                }
                self.find_zone(&pod.node).await;
            }
            self.recall_zone(&mut pod);
            if !pod.zone.is_empty() {
                self.audience.handle_change(&Change::Put(pod));
                is_news = true;
            }
        }
        if is_news { self.tell().await } else { Ok(()) }
    }

    async fn find_zone(&mut self, node: &str) {
        match self.api.zone_of_node(node).await {
            Ok(zone) => {
                self.metrics.kubernetes_request("node", "ok");
                if self.zones.len() >= ZONES_MAX {
                    self.zones.clear();
                }
                self.zones.insert(node.into(), zone);
            }
            // It is without a zone meanwhile, which costs no request of a client. Other nodes would fail like it, but where this
            // one is gone.
            Err(error) => {
                self.metrics.kubernetes_request("node", error.reason());
                tracing::debug!(node, %error, "zone of a node not found");
                self.is_zoneless = !matches!(error, ApiError::Refused(404));
            }
        }
    }
}

/// A fifth more or less.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.8..=1.2))
}
