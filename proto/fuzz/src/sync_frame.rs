//! Frames of replication, decoded and fed to one end of a pipe whose stores hold something.
//!
//! The first byte of the input says which end, and whether number and checksum of the frame are put right first: without
//! that hardly any mutated frame would get past them. The rest is the frame.

use std::time::{Duration, Instant};

use prost::Message as _;
use smg::mesh::{
    replication::{Config, PipeId, Replicator},
    sim::replication::WALL_MS,
    stores::{PolicySpec, Stores, WorkerObservation, WorkerOrigin, WorkerSpec, WorkerState},
    wire::replication as wire,
};
use smg_proto::replication as pb;
use xxhash_rust::xxh3::xxh3_64;

const PIPE: PipeId = PipeId(1);

struct End {
    stores: Stores,
    replicator: Replicator,
}

pub(super) fn run(input: &[u8]) {
    let [how, bytes @ ..] = input else { return };
    let frame = if how & 1 == 0 { bytes.to_vec() } else { put_right(bytes) };
    let now = Instant::now();
    let mut end = End::new("a", "b", now, how & 2 == 0);
    let before = Vec::from_iter(end.stores.policies());
    if end.replicator.handle_frame(now, WALL_MS, &mut end.stores, PIPE, &frame).is_err() {
        assert_eq!(Vec::from_iter(end.stores.policies()), before, "what is refused changes nothing");
    }
    end.frames(now);
    end.replicator.handle_timeout(now + Duration::from_secs(2), &mut end.stores);
    end.frames(now + Duration::from_secs(2));
}

/// The frame as the first of its pipe, with the checksum of what it holds.
fn put_right(bytes: &[u8]) -> Vec<u8> {
    let Ok(mut frame) = pb::Frame::decode(bytes) else { return bytes.to_vec() };
    frame.seq = 0;
    if let Some(pb::frame::Kind::Chunk(chunk)) = &mut frame.kind {
        chunk.checksum = xxh3_64(&chunk.body);
    }
    frame.encode_to_vec()
}

impl End {
    fn new(me: &str, peer: &str, now: Instant, dialed: bool) -> Self {
        let mut stores = Stores::new(me.parse().expect("a name"), WALL_MS - 1000);
        let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
        stores.put_policy(WALL_MS, me, &policy).expect("a short policy");
        let worker = WorkerSpec {
            url: format!("http://{me}:9001"),
            models: vec!["m".into()],
            api_key: Some("key".into()),
            zone: "z".into(),
            origin: WorkerOrigin::Api,
            draining: false,
        };
        let id = stores.put_worker(WALL_MS, worker);
        stores.observe_worker(
            WALL_MS,
            &id,
            &WorkerObservation { state: WorkerState::Ready, models: Vec::new(), failing_until_ms: 0 },
        );
        let mut replicator = Replicator::new(Config { sync_interval: Duration::from_secs(1) }, now, 1);
        replicator.handle_connected(now, PIPE, peer.parse().expect("a name"), WALL_MS - 1000, dialed);
        Self { stores, replicator }
    }

    /// Everything that this end has to send; news is dropped.
    fn frames(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some((_, frame)) = self.replicator.poll_transmit(now, &self.stores, &|_| true) {
            frames.push(frame.to_vec());
        }
        while self.replicator.poll_event().is_some() {}
        while self.stores.poll_event().is_some() {}
        frames
    }
}

/// What the two ends of a pipe send each other until they agree, with a removed worker; then a snapshot of many keys.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let start = Instant::now();
    let mut seeds = Vec::new();
    for keys in [1_u32, 2000] {
        let mut ends = [End::new("b", "a", start, true), End::new("a", "b", start, false)];
        for key in 0..keys {
            let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
            ends[0].stores.put_policy(WALL_MS, &format!("m{key}"), &policy).expect("a short policy");
        }
        let id = ends[0].stores.workers()[0].id.clone();
        ends[0].stores.remove_worker(WALL_MS, &id);
        for step in 0..300 {
            let now = start + Duration::from_millis(10) * step;
            for from in 0..2 {
                if ends[from].replicator.poll_timeout().is_some_and(|due| due <= now) {
                    let End { stores, replicator } = &mut ends[from];
                    replicator.handle_timeout(now, stores);
                }
                for frame in ends[from].frames(now) {
                    let End { stores, replicator } = &mut ends[1 - from];
                    replicator.handle_frame(now, WALL_MS, stores, PIPE, &frame).expect("a frame of the other end");
                    // Deltas are for the end that did not dial, acks for the one that did.
                    let how = if from == 0 { 1 | 2 } else { 1 };
                    seeds.push([&[how], &frame[..]].concat());
                    // Where a chunk is compressed a change of one byte ends in the expanding.
                    let plain = wire::encode(&wire::decode(&frame).expect("a frame of the other end"));
                    if plain != frame {
                        seeds.push([&[how], &plain[..]].concat());
                    }
                }
            }
        }
    }
    seeds
}
