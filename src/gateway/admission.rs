//! How many serving requests may be in flight at once (`--max-concurrent-requests`), and the queue before them.
//!
//! The bound holds over all cores and counts a request until its response has been sent or given up, so no more than
//! that many are at the workers. Who finds no free slot waits in a queue, first come, first served; nobody overtakes it.
//! A full queue refuses at once (429): telling a client early is kinder than letting it wait for a timeout. A client
//! that leaves, or whose time is over, leaves the queue.
//!
//! The queue holds requests whose body has been read and whose model is known: only then does the gateway notice a
//! client that leaves, and what is wrong with a request is said at once. It may so hold `--queue-size` times
//! `--max-payload-size` bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{config::Limits, gateway::error::GatewayError, telemetry::metrics::Metrics};

/// The bound and its queue, one for all cores.
#[derive(Debug)]
pub struct Admission {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue_max: usize,
    queue_timeout: Duration,
    metrics: Arc<Metrics>,
}

/// The place of a request in flight, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    has_waited: bool,
}

impl Slot {
    /// Whether the request was in the queue: what it knew before may be out of date.
    #[must_use]
    pub fn has_waited(&self) -> bool {
        self.has_waited
    }
}

impl Admission {
    /// As configured; none without a bound.
    #[must_use]
    pub fn new(limits: &Limits, metrics: Arc<Metrics>) -> Option<Self> {
        Some(Self {
            slots: Arc::new(Semaphore::new(limits.concurrent_requests_max?)),
            waiting: AtomicUsize::new(0),
            queue_max: limits.queue_max,
            queue_timeout: limits.queue_timeout,
            metrics,
        })
    }

    /// Waits for a slot; dropping the future leaves the queue.
    ///
    /// # Errors
    /// When the queue is full, and when the wait took longer than `--queue-timeout-secs`.
    pub async fn enter(&self) -> Result<Slot, GatewayError> {
        // Finds none free while anybody waits: a slot given back goes to the first of them.
        if let Ok(permit) = self.slots.clone().try_acquire_owned() {
            self.metrics.rate_limit("allowed", "immediate");
            return Ok(Slot { _permit: permit, has_waited: false });
        }
        let mut place = self.queue()?;
        match timeout(self.queue_timeout, self.slots.clone().acquire_owned()).await {
            Ok(Ok(permit)) => {
                place.decision = ("allowed", "queued");
                Ok(Slot { _permit: permit, has_waited: true })
            }
            // It is never closed, so only time can be over.
            Ok(Err(_)) | Err(_) => {
                place.decision = ("rejected", "queue_timeout");
                Err(GatewayError::QueueTimeout)
            }
        }
    }

    fn queue(&self) -> Result<Place<'_>, GatewayError> {
        let one_more = |waiting: usize| (waiting < self.queue_max).then_some(waiting + 1);
        if self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            self.metrics.rate_limit("rejected", "queue_full");
            return Err(GatewayError::QueueFull);
        }
        self.metrics.queue_entered();
        Ok(Place { admission: self, since: Instant::now(), decision: ("rejected", "abandoned") })
    }
}

/// A place in the queue, given up when dropped.
struct Place<'a> {
    admission: &'a Admission,
    since: Instant,
    decision: (&'static str, &'static str),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.admission.waiting.fetch_sub(1, Ordering::Relaxed);
        self.admission.metrics.queue_left(self.since.elapsed());
        self.admission.metrics.rate_limit(self.decision.0, self.decision.1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use futures_util::{FutureExt, poll};

    use super::*;

    fn admission(slots: usize, queue: usize) -> Arc<Admission> {
        let queue_timeout = Duration::from_secs(60);
        let limits = Limits {
            concurrent_requests_max: Some(slots),
            queue_max: queue,
            queue_timeout,
            cluster_concurrent_max: None,
            rate: None,
        };
        Arc::new(Admission::new(&limits, Metrics::new()).unwrap())
    }

    fn counted(admission: &Admission, result: &str) -> bool {
        let text = admission.metrics.encode();
        let label = format!("result=\"{result}\"}} 1");
        text.lines().any(|line| line.starts_with("smg_http_rate_limit_total{") && line.ends_with(&label))
    }

    #[tokio::test]
    async fn who_comes_first_is_served_first_and_nobody_overtakes() {
        let admission = admission(1, 10);
        let held = admission.enter().await.unwrap();
        assert!(!held.has_waited());
        let mut waiting: Vec<_> = (0..10).map(|_| Box::pin(admission.enter())).collect();
        for future in &mut waiting {
            assert!(poll!(future).is_pending());
        }
        drop(held);
        assert_eq!(admission.enter().await.unwrap_err(), GatewayError::QueueFull, "a newcomer does not take the slot");
        while !waiting.is_empty() {
            for later in waiting.iter_mut().skip(1).rev() {
                assert!(poll!(later).is_pending());
            }
            let slot = waiting.remove(0).now_or_never().unwrap().unwrap();
            assert!(slot.has_waited());
        }
        assert!(admission.enter().now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_whoever_leaves_makes_room() {
        let admission = admission(1, 1);
        let _held = admission.enter().await.unwrap();
        let mut first = Box::pin(admission.enter());
        assert!(poll!(&mut first).is_pending());
        assert_eq!(admission.enter().await.unwrap_err(), GatewayError::QueueFull);
        assert!(counted(&admission, "queue_full") && !counted(&admission, "abandoned"));
        assert!(admission.metrics.encode().contains("\nsmg_queue_depth 1\n"));
        drop(first);
        assert!(counted(&admission, "abandoned"));
        assert!(admission.metrics.encode().contains("\nsmg_queue_depth 0\n"));
        assert!(poll!(Box::pin(admission.enter())).is_pending());
    }

    #[tokio::test]
    async fn without_a_queue_the_bound_refuses() {
        let admission = admission(2, 0);
        let _held = [admission.enter().await.unwrap(), admission.enter().await.unwrap()];
        assert_eq!(admission.enter().await.unwrap_err(), GatewayError::QueueFull);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_has_an_end() {
        let admission = admission(1, 1);
        let _held = admission.enter().await.unwrap();
        assert_eq!(admission.enter().await.unwrap_err(), GatewayError::QueueTimeout);
        assert!(counted(&admission, "queue_timeout"));
        assert!(admission.metrics.encode().contains("smg_queue_wait_seconds_count 1"));
    }

    /// Cores that race for slots never hold more than there are, and each request gets one.
    #[test]
    fn the_bound_holds_among_cores() {
        let admission = admission(3, 1000);
        let seen = Mutex::new((0, 0, 0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    let request = async || {
                        let _slot = admission.enter().await.unwrap();
                        let holding = || {
                            let mut seen = seen.lock().unwrap();
                            (seen.0, seen.1, seen.2) = (seen.0 + 1, seen.1.max(seen.0 + 1), seen.2 + 1);
                        };
                        holding();
                        tokio::task::yield_now().await;
                        seen.lock().unwrap().0 -= 1;
                    };
                    runtime.block_on(futures_util::future::join_all((0..100).map(|_| request())));
                });
            }
        });
        let (now, most, served) = seen.into_inner().unwrap();
        assert_eq!((now, most, served), (0, 3, 400));
    }
}
