//! What a snapshot may have on its way.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{super::*, *};
use crate::mesh::stores::PolicySpec;

const PIPE: PipeId = PipeId(1);
const WALL_MS: u64 = 1_700_000_000_000;

struct End {
    stores: Stores,
    replicator: Replicator,
}

impl End {
    fn new(name: &str, peer: &str, now: Instant, dialed: bool) -> Self {
        let stores = Stores::new(name.parse().unwrap(), WALL_MS);
        let mut replicator = Replicator::new(Config { sync_interval: Duration::from_secs(1) }, now, 1);
        replicator.handle_connected(now, PIPE, peer.parse().unwrap(), WALL_MS, dialed);
        Self { stores, replicator }
    }

    fn sent(&mut self, now: Instant) -> Vec<Bytes> {
        std::iter::from_fn(|| self.replicator.poll_transmit(now, &self.stores, &|_| true))
            .map(|(_, frame)| frame)
            .collect()
    }

    fn receive(&mut self, now: Instant, frames: &[Bytes]) {
        for frame in frames {
            self.replicator.handle_frame(now, WALL_MS, &mut self.stores, PIPE, frame).unwrap();
        }
    }
}

/// 20 000 policies of a kilobyte, half of it noise, and a peer that asks for them.
fn ends(now: Instant) -> [End; 2] {
    let mut donor = End::new("a", "b", now, true);
    for n in 0..20_000_u64 {
        let noise = (0..32).map(|i| format!("{:016x}", xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), i)));
        let policy = PolicySpec { policy: "random".into(), config_json: noise.collect::<String>().repeat(2) };
        donor.stores.put_policy(WALL_MS, &format!("{n:05}"), &policy).unwrap();
    }
    [donor, End::new("b", "a", now, false)]
}

#[test]
fn a_snapshot_stops_where_its_credit_ends_and_goes_on_with_each_ack() {
    let mut now = Instant::now();
    let [mut donor, mut joiner] = ends(now);
    let digest = joiner.sent(now);
    donor.receive(now, &digest);
    let mut total = 0;
    let mut rounds = 0;
    while joiner.stores.map(Namespace::Policies).root() != donor.stores.map(Namespace::Policies).root() {
        let frames = donor.sent(now);
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        assert!(bytes <= CREDIT_BYTES + BODY_BYTES + (64 << 10), "{bytes} bytes without an ack");
        assert!(donor.sent(now).is_empty(), "nothing more comes before an ack");
        total += bytes;
        joiner.receive(now, &frames);
        let acks = joiner.sent(now);
        if frames.iter().map(Bytes::len).sum::<usize>() >= 1 << 20 {
            assert!(!acks.is_empty(), "a megabyte is acked at once");
        }
        donor.receive(now, &acks);
        now += Duration::from_millis(25);
        rounds += 1;
        assert!(rounds < 50, "it ends");
    }
    assert!(rounds >= 3, "{rounds} rounds");
    let raw = donor.stores.map(Namespace::Policies).payload_bytes();
    assert!(total < raw * 8 / 10, "{total} bytes for {raw}: what is said twice is sent once");
}

#[test]
fn a_peer_that_cannot_read_compressed_chunks_gets_plain_ones() {
    let now = Instant::now();
    let [mut donor, mut joiner] = ends(now);
    for digest in joiner.sent(now) {
        let mut frame = wire::decode(&digest).unwrap();
        if let Kind::Ack(ack) = &mut frame.kind {
            ack.reads_lz4 = false;
        }
        donor.receive(now, &[wire::encode(&frame)]);
    }
    let frames = donor.sent(now);
    assert!(!frames.is_empty());
    for frame in &frames {
        assert_eq!(wire::encode(&wire::decode(frame).unwrap()), frame, "not compressed");
    }
}

/// The pipe on which a node that is being sent a snapshot would send its own.
const BACK: PipeId = PipeId(2);

/// What a node hands out for the way back: chunks, and whether it says that nothing more comes.
fn sent_back(node: &mut End, now: Instant) -> (usize, bool) {
    let frames = std::iter::from_fn(|| node.replicator.poll_transmit(now, &node.stores, &|pipe| pipe == BACK));
    let bodies = frames.filter_map(|(_, frame)| match wire::decode(&frame).unwrap().kind {
        Kind::Body(_, body) => Some((usize::from(body.chunk.is_some()), body.complete)),
        Kind::Ack(_) => None,
    });
    bodies.take(1000).fold((0, false), |(chunks, complete), body| (chunks + body.0, complete || body.1))
}

#[test]
fn a_joiner_sends_its_donor_no_chunk_of_what_came_from_there() {
    let mut now = Instant::now();
    let [mut donor, mut joiner] = ends(now);
    let digest = joiner.sent(now);
    donor.receive(now, &digest);
    let frames = donor.sent(now);
    joiner.receive(now, &frames);
    let map = joiner.stores.map(Namespace::Policies);
    assert!(map.progress().is_some() && map.guards().has_ranges(), "the rest is on its way");
    // The donor has been granted everything for as long as it may be; what it grants itself comes late.
    now += GRANT_FOR;
    joiner.replicator.handle_timeout(now, &mut joiner.stores);
    joiner.replicator.handle_connected(now, BACK, "a".parse().unwrap(), WALL_MS, true);
    let (mut chunks, mut complete) = (0, false);
    for seq in 0..5 {
        let seen = vec![(Actor { node: "a".parse().unwrap(), boot_epoch_ms: WALL_MS }, 20_000)];
        let (namespace, guarded, is_receiving) = (Namespace::Policies, false, false);
        let told = NamespaceAck { namespace, seen, root: 0, guarded, is_receiving, resume: None };
        let ack = Ack { grant: true, namespaces: vec![told], ..Ack::default() };
        let frame = wire::encode(&Frame { seq, kind: Kind::Ack(ack) });
        joiner.replicator.handle_frame(now, WALL_MS, &mut joiner.stores, BACK, &frame).unwrap();
        let sent = sent_back(&mut joiner, now);
        (chunks, complete) = (chunks + sent.0, complete || sent.1);
    }
    assert!(chunks == 0 && complete, "{chunks} chunks");
}

/// A peer that has all that its donor had when their pipe began, and a third node that writes more than a delta carries before
/// the donor's turn comes: that is the writer's to deliver, and no snapshot is begun for it. What was there before is sent.
#[test]
fn what_a_third_node_writes_meanwhile_begins_no_snapshot() {
    const WRITES: u64 = DELTA_KEYS_MAX as u64 + 100;
    for (case, writes_before) in [("after the pipe began", false), ("before", true)] {
        let now = Instant::now();
        let [mut donor, mut writer] =
            [("a", true), ("c", false)].map(|(name, dialed)| End::new(name, "b", now, dialed));
        let mut peer = End::new("b", "a", now, false);
        let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
        for n in 0..WRITES {
            writer.stores.put_policy(WALL_MS, &format!("{n:05}"), &policy).unwrap();
        }
        let write = |donor: &mut End| deliver(&writer.stores, &mut donor.stores);
        if writes_before {
            write(&mut donor);
        }
        let digest = peer.sent(now);
        donor.receive(now, &digest);
        if !writes_before {
            write(&mut donor);
        }
        let (mut chunks, mut is_complete) = (0, false);
        for frame in donor.sent(now) {
            let Kind::Body(_, body) = wire::decode(&frame).unwrap().kind else { panic!("a body is sent") };
            (chunks, is_complete) = (chunks + usize::from(body.chunk.is_some()), is_complete || body.complete);
        }
        assert_eq!((chunks > 0, is_complete), (writes_before, true), "{case}: {chunks} chunks");
    }
}

/// Applies all that one node wrote at another, as its own pipe would.
fn deliver(from: &Stores, to: &mut Stores) {
    let map = from.map(Namespace::Policies);
    let keys = map.range_from(b"").map(|(key, _)| map.key_state(key)).collect();
    let seen = map.seen().get(map.own());
    let body = Body {
        actors: vec![map.actors().actor(map.own()).clone()],
        context: vec![(map.own(), seen)],
        keys,
        covers: vec![Cover { actor: map.own(), from: 0, to: seen }],
        ..Body::default()
    };
    to.apply(WALL_MS, Namespace::Policies, &mut VersionVector::default(), body).unwrap();
}

#[test]
fn what_is_done_from_time_to_time_may_be_done_a_little_early_by_who_is_awake() {
    let start = Instant::now();
    let mut end = End::new("b", "a", start, false);
    assert!(!end.replicator.is_upkeep_near(start), "nothing was done yet that is to be done again");
    let due = end.replicator.poll_timeout().unwrap();
    end.replicator.handle_timeout(due, &mut end.stores);
    let ms = Duration::from_millis;
    // Half a sync interval of a second.
    for (after, is_near) in [(0, false), (399, false), (400, true), (500, true)] {
        assert_eq!(end.replicator.is_upkeep_near(due + ms(after)), is_near, "{after} ms later");
    }
    end.replicator.handle_timeout(due + ms(400), &mut end.stores);
    assert!(!end.replicator.is_upkeep_near(due + ms(500)), "it was done");
}
