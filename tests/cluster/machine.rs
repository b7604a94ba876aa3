//! Whether the machine had time for what a test started.
//!
//! A node that gets no processor for two seconds is DOWN to the others, and rightly so. On a machine that is busy with
//! something else this says nothing about the program, so tests that look for false alarms ask here first.

use std::{
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A stall of this length may be one of more than that elsewhere.
const STALL: Duration = Duration::from_millis(500);

/// Percent of the last 10 s in which something waited for a processor.
const PRESSURE: f64 = 80.0;

/// Milliseconds of stalls so far.
static STALLED_MS: AtomicU64 = AtomicU64::new(0);
static WATCH: Once = Once::new();

/// Watches from now on.
pub fn watch() {
    WATCH.call_once(|| {
        std::thread::spawn(|| {
            let tick = Duration::from_millis(20);
            loop {
                let before = Instant::now();
                std::thread::sleep(tick);
                if before.elapsed() > STALL + tick {
                    STALLED_MS.fetch_add(u64::try_from(before.elapsed().as_millis()).unwrap(), Ordering::Relaxed);
                }
            }
        });
    });
}

/// Why a node may have been too slow to answer, where the machine is to blame.
pub fn excuse() -> Option<String> {
    let stalled = STALLED_MS.load(Ordering::Relaxed);
    // Linux, Documentation/accounting/psi.rst: `some avg10=1.23 …`.
    let pressure = std::fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let waited = pressure.split_once("avg10=").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    match waited.filter(|waited| *waited > PRESSURE) {
        Some(waited) => Some(format!("processors were short for {waited} % of the last 10 s")),
        None => (stalled > 0).then(|| format!("the machine stalled for {stalled} ms in all")),
    }
}
