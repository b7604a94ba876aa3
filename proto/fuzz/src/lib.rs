//! Fuzz targets for everything that reads bytes from a network: what each does with an input, and inputs to begin with
//! that the code itself wrote.
//!
//! `fuzz_targets` hands them to libFuzzer; `tests/fuzz.rs` of the `smg` package runs a short slice of mutated seeds in
//! every `cargo test`, from these same files.

mod coordination;
mod datagram;
mod hello;
mod request_body;
mod request_head;
mod routing_frame;
mod state_payload;
mod sync_frame;

use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_64;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its binary and of its folder in the corpus.
    pub name: &'static str,
    /// Takes an input; panics when it finds something.
    pub run: fn(&[u8]),
    /// Inputs to begin with, the same at each call.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    /// Writes the seeds into the folder that the variable `SMG_FUZZ_SEEDS` names, one file for each content.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn write_seeds(&self) {
        let Some(folder) = std::env::var_os("SMG_FUZZ_SEEDS").map(PathBuf::from) else { return };
        for seed in (self.seeds)() {
            let file = folder.join(format!("seed-{:016x}", xxh3_64(&seed)));
            std::fs::write(&file, seed).unwrap_or_else(|error| panic!("write {}: {error}", file.display()));
        }
    }
}

/// Every target.
pub const TARGETS: [Target; 8] =
    [DATAGRAM, COORDINATION, SYNC_FRAME, STATE_PAYLOAD, ROUTING_FRAME, HELLO, REQUEST_BODY, REQUEST_HEAD];

/// Packets of membership.
pub const DATAGRAM: Target = Target { name: "datagram", run: datagram::run, seeds: datagram::seeds };
/// Frames of replication.
pub const SYNC_FRAME: Target = Target { name: "sync_frame", run: sync_frame::run, seeds: sync_frame::seeds };
/// Values of the replicated stores.
pub const STATE_PAYLOAD: Target =
    Target { name: "state_payload", run: state_payload::run, seeds: state_payload::seeds };
/// Routing hints.
pub const ROUTING_FRAME: Target =
    Target { name: "routing_frame", run: routing_frame::run, seeds: routing_frame::seeds };
/// Greetings of the stream plane.
pub const HELLO: Target = Target { name: "hello", run: hello::run, seeds: hello::seeds };
/// Messages of the election.
pub const COORDINATION: Target = Target { name: "coordination", run: coordination::run, seeds: coordination::seeds };
/// Bodies of client requests.
pub const REQUEST_BODY: Target = Target { name: "request_body", run: request_body::run, seeds: request_body::seeds };
/// Heads of client requests.
pub const REQUEST_HEAD: Target = Target { name: "request_head", run: request_head::run, seeds: request_head::seeds };
