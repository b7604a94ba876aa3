//! Frames of replication: decoded, and fed to both ends of a pipe whose stores hold something.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use smg::mesh::{
    replication::{Config, PipeId, Replicator},
    stores::{PolicySpec, Stores},
};

/// Some time in 2026.
const WALL_MS: u64 = 1_780_000_000_000;

fuzz_target!(|frame: &[u8]| {
    let now = Instant::now();
    for dialed in [true, false] {
        let mut stores = Stores::new("a".parse().expect("a name"), WALL_MS - 1000);
        let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
        stores.put_policy(WALL_MS, "m", &policy);
        let mut replicator = Replicator::new(Config { sync_interval: std::time::Duration::from_secs(1) }, now, 1);
        replicator.handle_connected(now, PipeId(1), "b".parse().expect("a name"), WALL_MS - 500, dialed);
        let _ = replicator.handle_frame(now, WALL_MS, &mut stores, PipeId(1), frame);
        replicator.handle_timeout(now + std::time::Duration::from_secs(2), &mut stores);
        while replicator.poll_transmit(now, &stores, &|_| true).is_some() {}
        while replicator.poll_event().is_some() {}
        while stores.poll_event().is_some() {}
    }
});
