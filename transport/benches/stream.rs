//! Throughput and round trips of a pipe over loopback: `cargo bench -p smg-transport --bench stream`.
//!
//! Both planes share one multi-thread runtime, so the figures are of both ends together.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smg_transport::grpc::{Hello, Lane, PipeId, PipeSendError, StreamConfig, StreamEvent, StreamEvents, Streams};

/// How long each figure is measured.
const PERIOD: Duration = Duration::from_secs(3);

const CHUNK_BYTES: usize = 256 * 1024;
const PING_BYTES: usize = 100;

fn main() {
    // `cargo test --benches` runs this too: then one short round is enough.
    let period = if std::env::args().any(|arg| arg == "--bench") { PERIOD } else { Duration::from_millis(50) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (rate, cpu) = throughput(period).await;
        println!("256 KiB frames: {rate:.0} MB/s, {cpu}");
        println!("100-byte frames: {:.0} round trips/s", round_trips(period).await);
    });
}

async fn throughput(period: Duration) -> (f64, String) {
    let mut pair = Pair::new().await;
    let (streams, pipe) = (pair.a.clone(), pair.dialed);
    let mut events = pair.a_events;
    let sender = tokio::spawn(async move {
        let chunk = Bytes::from(vec![7; CHUNK_BYTES]);
        loop {
            match streams.try_send(pipe, Lane::Sync, chunk.clone()) {
                Ok(()) => {}
                Err(PipeSendError::Full) => drop(events.next().await),
                Err(_) => return,
            }
        }
    });
    let started = Instant::now();
    let mut bytes = 0_u64;
    while started.elapsed() < period {
        if let Some(StreamEvent::Frame { payload, .. }) = pair.b_events.next().await {
            bytes += payload.len() as u64;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    sender.abort();
    (bytes as f64 / 1e6 / seconds, format!("{bytes} bytes in {seconds:.2} s"))
}

async fn round_trips(period: Duration) -> f64 {
    let mut pair = Pair::new().await;
    let (b, accepted) = (pair.b.clone(), pair.accepted);
    let echo = tokio::spawn(async move {
        while let Some(event) = pair.b_events.next().await {
            if let StreamEvent::Frame { lane, payload, .. } = event {
                b.try_send(accepted, lane, payload).unwrap();
            }
        }
    });
    let ping = Bytes::from(vec![1; PING_BYTES]);
    let started = Instant::now();
    let mut rounds = 0_u64;
    while started.elapsed() < period {
        pair.a.try_send(pair.dialed, Lane::Datagram, ping.clone()).unwrap();
        while !matches!(pair.a_events.next().await, Some(StreamEvent::Frame { .. })) {}
        rounds += 1;
    }
    echo.abort();
    rounds as f64 / started.elapsed().as_secs_f64()
}

struct Pair {
    a: Streams,
    a_events: StreamEvents,
    dialed: PipeId,
    b: Streams,
    b_events: StreamEvents,
    accepted: PipeId,
}

impl Pair {
    async fn new() -> Self {
        let ((a, mut a_events), (b, mut b_events)) = (plane("a"), plane("b"));
        let dialed = a.dial(b.local_addr());
        let Some(StreamEvent::Opened { .. }) = a_events.next().await else { panic!("not opened") };
        let Some(StreamEvent::Opened { pipe: accepted, .. }) = b_events.next().await else { panic!("not opened") };
        Self { a, a_events, dialed, b, b_events, accepted }
    }
}

fn plane(name: &str) -> (Streams, StreamEvents) {
    let hello = Hello { cluster: "bench".into(), node: name.into(), boot_epoch_ms: 1 };
    Streams::bind(StreamConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), hello)).unwrap()
}
