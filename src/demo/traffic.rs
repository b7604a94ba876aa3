//! Requests through all gateways in turn, as a client with all three addresses would send them.
//!
//! An attempt that fails (no connection, a reset, a 5xx, a stream without its end) is made again at the next gateway,
//! at once and once at each: that is a failover. A request that fails at every gateway is an error.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::bail;
use bytes::Bytes;
use serde_json::json;
use tokio::{task::JoinSet, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{MODEL, client, cluster::Process};

/// Requests in flight at most; at a tick that finds as many none is sent, and it counts as held back.
const IN_FLIGHT_MAX: usize = 256;

/// Latencies kept per second of display; more of one second do not count in its median.
const LATENCIES_MAX: usize = 10_000;

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Requests that ended.
    pub(super) requests: u64,
    /// Answered requests of each gateway, in the order of the gateways.
    pub(super) by_gateway: Vec<u64>,
    /// Answered requests of each worker.
    pub(super) by_worker: BTreeMap<String, u64>,
    /// Attempts that failed at one gateway and were made again at the next.
    pub(super) failovers: u64,
    /// Requests that failed at every gateway.
    pub(super) errors: u64,
    /// Requests not sent because too many were in flight.
    pub(super) held_back: u64,
    /// Why the last of the errors failed.
    pub(super) last_error: Option<String>,
    /// Time of each answered request since the last reading.
    pub(super) latencies: Vec<Duration>,
}

/// The running generator; dropped, it stops at once.
#[derive(Debug)]
pub(super) struct Traffic {
    counts: Arc<Mutex<Counts>>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Traffic {
    /// Starts to send `per_second` requests, at least 1.
    pub(super) fn start(gateways: &[Process], per_second: u32) -> Self {
        let addrs: Arc<[SocketAddr]> = gateways.iter().map(|gateway| gateway.addr).collect();
        let counts = Arc::new(Mutex::new(Counts { by_gateway: vec![0; addrs.len()], ..Counts::default() }));
        let stop = CancellationToken::new();
        let task = tokio::spawn(generate(addrs, per_second, counts.clone(), stop.clone()));
        Self { counts, stop, task: AbortOnDropHandle::new(task) }
    }

    /// The counts so far; latencies start anew.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = lock(&self.counts);
        let latencies = std::mem::take(&mut counts.latencies);
        Counts { latencies, ..counts.clone() }
    }

    /// Sends no more, waits for what is in flight, and returns the last counts.
    pub(super) async fn stop(self) -> Counts {
        self.stop.cancel();
        // It does not panic, and nobody else aborts it.
        let _ = self.task.await;
        lock(&self.counts).clone()
    }
}

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn generate(addrs: Arc<[SocketAddr]>, per_second: u32, counts: Arc<Mutex<Counts>>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut in_flight = JoinSet::new();
    let mut number = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = in_flight.join_next() => {}
            _ = ticks.tick() => {
                if in_flight.len() >= IN_FLIGHT_MAX {
                    lock(&counts).held_back += 1;
                    continue;
                }
                in_flight.spawn(send(addrs.clone(), number, counts.clone()));
                number += 1;
            }
        }
    }
    while in_flight.join_next().await.is_some() {}
}

async fn send(addrs: Arc<[SocketAddr]>, number: usize, counts: Arc<Mutex<Counts>>) {
    let streams = number.is_multiple_of(4);
    let content = format!("conversation {} of the demo says hello", number % 16);
    let body = json!({"model": MODEL, "stream": streams, "messages": [{"role": "user", "content": content}]});
    let body = Bytes::from(body.to_string());
    let started = Instant::now();
    for attempt in 0..addrs.len() {
        let gateway = (number + attempt) % addrs.len();
        let outcome = attempt_at(addrs[gateway], body.clone(), streams).await;
        let mut counts = lock(&counts);
        match outcome {
            Ok(worker) => {
                counts.requests += 1;
                counts.by_gateway[gateway] += 1;
                *counts.by_worker.entry(worker).or_default() += 1;
                if counts.latencies.len() < LATENCIES_MAX {
                    counts.latencies.push(started.elapsed());
                }
                return;
            }
            Err(_) if attempt + 1 < addrs.len() => counts.failovers += 1,
            Err(error) => {
                counts.requests += 1;
                counts.errors += 1;
                counts.last_error = Some(format!("{error:#}"));
            }
        }
    }
}

/// The name of the worker that answered.
async fn attempt_at(addr: SocketAddr, body: Bytes, streams: bool) -> anyhow::Result<String> {
    let answer = client::post(addr, "/v1/chat/completions", body).await?;
    if !answer.status.is_success() {
        bail!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    if streams && !answer.body.ends_with(b"data: [DONE]\n\n") {
        bail!("the stream ended without [DONE]");
    }
    let worker = answer.headers.get("x-sim-worker").and_then(|name| name.to_str().ok());
    Ok(worker.unwrap_or("unknown").to_owned())
}
