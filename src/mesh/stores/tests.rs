//! The rules of the stores: seeds, removals, observations, masking.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::mesh::crdt::{
    context::VersionVector,
    delta::{Body, BodyError, Cover, KeyState, Live},
    dot::{ActorId, Dot, FLOOR_MS_MAX},
};

fn stores() -> Stores {
    Stores::new("n1".parse().unwrap(), 1)
}

fn spec(url: &str) -> WorkerSpec {
    WorkerSpec {
        url: url.into(),
        models: vec!["m".into()],
        api_key: Some("secret".into()),
        zone: String::new(),
        origin: WorkerOrigin::Api,
        draining: false,
    }
}

fn seen(state: WorkerState) -> WorkerObservation {
    WorkerObservation { state, models: Vec::new(), failing_until_ms: 0 }
}

fn draining(draining: bool) -> WorkerPatch {
    WorkerPatch { draining: Some(draining), ..WorkerPatch::default() }
}

fn events(stores: &mut Stores) -> Vec<StoreEvent> {
    std::iter::from_fn(|| stores.poll_event()).collect()
}

/// Joins one key written by `node` at dot 1.
fn remote(stores: &mut Stores, namespace: Namespace, node: &str, key: &[u8], payload: &[u8]) {
    let dot = Dot { actor: ActorId(0), counter: 1 };
    let live = vec![Live { dot, stamp: Timestamp::new(5, 0), payload: payload.into() }];
    let body = Body {
        actors: vec![Actor { node: node.parse().unwrap(), boot_epoch_ms: 9 }],
        context: vec![(dot.actor, 1)],
        keys: vec![KeyState { key: key.into(), live, records: Vec::new(), guard: Vec::new() }],
        covers: vec![Cover { actor: dot.actor, from: 0, to: 1 }],
        ..Body::default()
    };
    stores.apply(5, namespace, &mut VersionVector::default(), body).unwrap();
}

#[test]
fn a_worker_lives_from_put_to_remove() {
    let mut stores = stores();
    let id = stores.put_worker(10, spec("http://w:1"));
    stores.observe_worker(11, &id, &seen(WorkerState::Ready));
    let view = stores.worker(&id).unwrap();
    assert_eq!((view.spec.clone(), view.observed.len()), (spec("http://w:1"), 1));
    assert_eq!(stores.workers(), [view]);
    assert!(stores.patch_worker(12, &id, &draining(true)));
    assert!(stores.worker(&id).unwrap().spec.draining);
    assert!(stores.remove_worker(13, &id));
    assert!(!stores.remove_worker(14, &id) && !stores.patch_worker(14, &id, &draining(false)));
    assert_eq!((stores.workers().len(), stores.entry_counts().keys), (0, 0), "nothing is left");
}

#[test]
fn what_is_known_is_not_written_again() {
    let mut stores = stores();
    let id = stores.put_worker(10, spec("http://w:1"));
    stores.observe_worker(11, &id, &seen(WorkerState::Ready));
    let own = stores.map(Namespace::Workers).own();
    let before = stores.map(Namespace::Workers).seen().get(own);
    stores.observe_worker(12, &id, &seen(WorkerState::Ready));
    stores.observe_worker(12, &WorkerId::of_url("http://nobody"), &seen(WorkerState::Ready));
    assert!(!stores.patch_worker(13, &WorkerId::of_url("http://nobody"), &draining(true)));
    assert!(stores.patch_worker(13, &id, &draining(false)), "it is there, and not draining already");
    assert_eq!(stores.map(Namespace::Workers).seen().get(own), before);
    stores.observe_worker(14, &id, &seen(WorkerState::NotReady));
    assert_eq!(stores.map(Namespace::Workers).seen().get(own), before + 1);
}

#[test]
fn a_removed_seed_leaves_a_marker_without_its_key_until_it_is_put_again() {
    let mut stores = stores();
    let id = stores.seed_worker(spec("http://w:1"));
    assert_eq!(stores.worker(&id).unwrap().spec.origin, WorkerOrigin::Seed);
    assert!(stores.remove_worker(10, &id));
    assert_eq!(stores.seed_worker(spec("http://w:1")), id);
    assert_eq!((stores.workers().len(), stores.entry_counts().keys), (0, 1));
    assert_eq!(stores.stored_worker(&id).unwrap().spec.api_key, None);
    stores.put_worker(11, spec("http://w:1"));
    assert_eq!(stores.worker(&id).unwrap().spec.origin, WorkerOrigin::Seed);
    assert!(stores.remove_worker(12, &id));
    assert_eq!(stores.entry_counts().keys, 1, "still a marker");
}

#[test]
fn a_patch_changes_what_it_names() {
    let patch = WorkerPatch::default;
    for (case, patch, expected) in [
        ("nothing", patch(), spec("http://w:1")),
        (
            "models",
            WorkerPatch { models: Some(vec!["n".into()]), ..patch() },
            WorkerSpec { models: vec!["n".into()], ..spec("http://w:1") },
        ),
        ("no key", WorkerPatch { api_key: Some(None), ..patch() }, WorkerSpec { api_key: None, ..spec("http://w:1") }),
        (
            "zone and key",
            WorkerPatch { zone: Some("z".into()), api_key: Some(Some("new".into())), ..patch() },
            WorkerSpec { zone: "z".into(), api_key: Some("new".into()), ..spec("http://w:1") },
        ),
        ("draining", draining(true), WorkerSpec { draining: true, ..spec("http://w:1") }),
    ] {
        let mut stores = stores();
        let id = stores.put_worker(10, spec("http://w:1"));
        events(&mut stores);
        assert!(stores.patch_worker(11, &id, &patch), "{case}");
        assert_eq!(stores.worker(&id).unwrap().spec, expected, "{case}");
        let is_written = expected != spec("http://w:1");
        assert_eq!(events(&mut stores).len(), usize::from(is_written), "{case}");
        assert!(!format!("{patch:?}").contains("new"), "{case}");
    }
}

#[test]
fn a_patched_seed_stays_a_seed() {
    let mut stores = stores();
    let id = stores.seed_worker(spec("http://w:1"));
    assert!(stores.patch_worker(10, &id, &draining(true)));
    stores.seed_worker(spec("http://w:1"));
    let patched = stores.worker(&id).unwrap().spec;
    assert_eq!((patched.draining, patched.origin), (true, WorkerOrigin::Seed), "the flag does not undo it");
    assert!(stores.remove_worker(11, &id) && !stores.patch_worker(12, &id, &draining(false)));
    assert_eq!((stores.workers().len(), stores.entry_counts().keys), (0, 1));
}

#[test]
fn what_a_forgotten_node_saw_is_hidden_and_its_orphans_are_reaped() {
    let mut stores = stores();
    let id = stores.put_worker(10, spec("http://w:1"));
    let ready = state::encode_observation(&seen(WorkerState::Ready)).unwrap();
    let (peer, other): (NodeName, NodeName) = ("n2".parse().unwrap(), "n3".parse().unwrap());
    remote(&mut stores, Namespace::Workers, "n2", &WorkerKey::seen(&id, &peer), &ready);
    let gone = WorkerId::of_url("http://gone");
    remote(&mut stores, Namespace::Workers, "n3", &WorkerKey::seen(&gone, &other), &ready);
    assert_eq!(stores.worker(&id).unwrap().observed.len(), 1);
    assert_eq!((stores.workers().len(), stores.map(Namespace::Workers).len()), (1, 3));
    events(&mut stores);
    stores.forget_node(&peer);
    stores.forget_node(&other);
    assert_eq!(stores.worker(&id).unwrap().observed.len(), 0);
    assert_eq!(stores.map(Namespace::Workers).len(), 2, "the orphan is gone, the rest is only hidden");
    assert_eq!(events(&mut stores), [StoreEvent::WorkerChanged(id.clone()), StoreEvent::WorkerChanged(gone)]);
    stores.remember_node(&peer);
    assert_eq!(stores.worker(&id).unwrap().observed.len(), 1);
}

#[test]
fn an_observation_that_another_node_forged_is_ignored() {
    let mut stores = stores();
    let id = stores.put_worker(10, spec("http://w:1"));
    let ready = state::encode_observation(&seen(WorkerState::Ready)).unwrap();
    remote(&mut stores, Namespace::Workers, "n2", &WorkerKey::seen(&id, &"n3".parse().unwrap()), &ready);
    assert!(stores.worker(&id).unwrap().observed.is_empty());
}

/// Says that the epochs of `node` below `floor_ms` are folded.
fn floor(node: &str, from_ms: u64, floor_ms: u64) -> Body {
    Body {
        actors: vec![Actor::floor_of(&node.parse().unwrap())],
        context: vec![(ActorId(0), floor_ms)],
        covers: vec![Cover { actor: ActorId(0), from: from_ms, to: floor_ms }],
        ..Body::default()
    }
}

#[test]
fn floors_of_others_are_taken_whatever_our_clock_says_up_to_the_largest() {
    let mut stores = stores();
    let mut apply = |from_ms, floor_ms| {
        let body = floor("n2", from_ms, floor_ms);
        stores.apply(1000, Namespace::Workers, &mut VersionVector::default(), body).map(drop)
    };
    assert_eq!(apply(0, FLOOR_MS_MAX + 1), Err(BodyError::FloorAhead), "else its node could never write again");
    assert_eq!(apply(0, 2000), Ok(()), "our clock may be the one that was set back");
    assert_eq!(stores.epoch_ms(), 1);
}

#[test]
fn a_node_whose_epoch_is_folded_goes_on_in_a_higher_one_with_all_that_it_wrote() {
    let mut stores = stores();
    let id = stores.put_worker(10, spec("http://w:1"));
    stores.observe_worker(11, &id, &seen(WorkerState::Ready));
    let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
    stores.put_policy(12, "m", &policy).unwrap();
    let before = (stores.workers(), stores.policies());
    let newest = stores.map(Namespace::Workers).newest(&WorkerKey::spec(&id));
    for (case, from_ms, floor_ms) in
        [("first", 0, 50_000_000), ("again", 50_000_000, 90_000_000), ("last", 0, FLOOR_MS_MAX)]
    {
        for namespace in [Namespace::Workers, Namespace::Policies] {
            let from_ms = if namespace == Namespace::Policies { 0 } else { from_ms };
            stores.apply(20, namespace, &mut VersionVector::default(), floor("n1", from_ms, floor_ms)).unwrap();
            let epoch_ms = stores.epoch_ms();
            assert!((floor_ms + 1..floor_ms + 3_600_000).contains(&epoch_ms), "{case}: {epoch_ms}");
        }
        assert_eq!((stores.workers(), stores.policies()), before, "{case}");
        for namespace in [Namespace::Workers, Namespace::Policies] {
            let map = stores.map(namespace);
            let own = map.range_from(b"").flat_map(|(_, live)| live).all(|live| live.dot.actor == map.own());
            assert!(own, "{case}: every live dot is of the new epoch");
            assert!(!map.is_folded(map.actors().actor(map.own())), "{case}");
        }
        assert_eq!(
            stores.map(Namespace::Workers).newest(&WorkerKey::spec(&id)),
            newest,
            "{case}: nothing is newer by it"
        );
        stores.prune();
        assert!(stores.map(Namespace::Workers).actors().len() <= 2, "{case}: its floor and its epoch");
    }
}

#[test]
fn a_stamp_of_the_year_2100_neither_locks_its_key_nor_pulls_others() {
    let mut stores = stores();
    let year_2100 = Timestamp::new(4_102_444_800_000, 0);
    let id = WorkerId::of_url("http://w:1");
    let far = StoredWorker { spec: WorkerSpec { zone: "far".into(), ..spec("http://w:1") }, removed: false };
    for (case, stamp) in [("year 2100", year_2100), ("the largest", Timestamp::from_bits(u64::MAX))] {
        let key = WorkerKey::spec(&id);
        let counter =
            stores.map(Namespace::Workers).seen_of(&Actor { node: "n2".parse().unwrap(), boot_epoch_ms: 9 }) + 1;
        let dot = Dot { actor: ActorId(0), counter };
        let live = vec![Live { dot, stamp, payload: state::encode_worker(&far).unwrap()[..].into() }];
        let body = Body {
            actors: vec![Actor { node: "n2".parse().unwrap(), boot_epoch_ms: 9 }],
            context: vec![(dot.actor, counter)],
            keys: vec![KeyState { key: key[..].into(), live, records: Vec::new(), guard: Vec::new() }],
            covers: vec![Cover { actor: dot.actor, from: counter - 1, to: counter }],
            ..Body::default()
        };
        let ahead_ms = stores.apply(1000, Namespace::Workers, &mut VersionVector::default(), body).unwrap();
        assert_eq!(ahead_ms, Some(stamp.ms() - 1000), "{case}: it is told");
        assert_eq!(stores.worker(&id).unwrap().spec.zone, "far", "{case}");
        stores.put_worker(1001, spec("http://w:1"));
        assert_eq!(stores.worker(&id).unwrap().spec.zone, "", "{case}: a local write wins");
        let other = stores.put_worker(1002, spec("http://w:2"));
        let stamp = stores.map(Namespace::Workers).newest(&WorkerKey::spec(&other));
        assert!(stamp.ms() < 2000, "{case}: other keys keep wall time");
        assert!(stores.remove_worker(1003, &id) && stores.worker(&id).is_none(), "{case}");
        assert!(stores.remove_worker(1003, &other), "{case}");
    }
}

#[test]
fn bad_values_are_kept_hidden_and_counted() {
    let mut stores = stores();
    let id = WorkerId::of_url("http://w:1");
    remote(&mut stores, Namespace::Workers, "n2", &WorkerKey::spec(&id), b"\xff\xff");
    remote(&mut stores, Namespace::Workers, "n3", b"what is this", b"");
    remote(&mut stores, Namespace::Policies, "n2", b"model", b"\xff");
    remote(&mut stores, Namespace::Policies, "n3", b"\xff\xfe", b"");
    let counts = stores.entry_counts();
    assert_eq!((counts.workers, counts.policies, counts.undecodable, counts.keys), (0, 0, 4, 4));
    stores.put_worker(10, spec("http://w:1"));
    assert_eq!(stores.workers().len(), 1, "an operator can write over it");
}

#[test]
fn events_are_coalesced_and_bounded() {
    let mut stores = stores();
    let id = stores.put_worker(10, spec("http://w:1"));
    stores.put_worker(11, spec("http://w:1"));
    assert_eq!(events(&mut stores), [StoreEvent::WorkerChanged(id)]);
    let policy = PolicySpec { policy: "random".into(), config_json: String::new() };
    for index in 0..=EVENTS_MAX {
        stores.put_policy(12, &format!("m{index}"), &policy).unwrap();
    }
    stores.put_policy(12, "another", &policy).unwrap();
    assert_eq!(events(&mut stores), [StoreEvent::ManyChanged]);
    stores.put_policy(13, "m", &policy).unwrap();
    assert_eq!(events(&mut stores), [StoreEvent::PolicyChanged("m".into())], "after that one by one again");
}

#[test]
fn policies_beyond_their_bounds_are_refused() {
    let mut stores = stores();
    let fine = PolicySpec { policy: "random".into(), config_json: "{}".into() };
    let large = PolicySpec { config_json: " ".repeat(70_000), ..fine.clone() };
    let long_model = "m".repeat(MODEL_BYTES_MAX + 1);
    for (case, model, policy, accepted) in [
        ("fine", "m", &fine, true),
        ("large config", "m", &large, false),
        ("no model", "", &fine, false),
        ("long model", &*long_model, &fine, false),
        ("control character", "\0m", &fine, false),
        ("rate limit", RATE_LIMIT, &fine, true),
        ("rate limit of a key", "\0rate-limit\0aa\0", &fine, true),
        ("rate limit of a model", "\0rate-limit\0\0m", &fine, true),
        ("rate limit of nothing that is known", "\0rate-limit\0a", &fine, false),
        ("rate limit with a control character", "\0rate-limit\0a\0b\0", &fine, false),
    ] {
        assert_eq!(stores.put_policy(1, model, policy).is_ok(), accepted, "{case}");
    }
    assert_eq!(stores.policies(), [("m".to_owned(), fine.clone())], "the rate limit is no model's policy");
    let limits = stores.rate_limits().into_iter().map(|(name, _)| name);
    assert_eq!(limits.collect::<Vec<_>>(), ["\0rate-limit\0\0m", "\0rate-limit\0aa\0"]);
    assert!(stores.remove_rate_limit("\0rate-limit\0\0m") && !stores.remove_rate_limit("\0rate-limit\0\0m"));
    assert!(!stores.remove_rate_limit(RATE_LIMIT) && !stores.remove_rate_limit("m"));
    assert_eq!(stores.rate_limits().len(), 1);
    assert_eq!((stores.rate_limit(), stores.entry_counts().policies), (Some(fine), 1));
}

#[test]
fn a_renamed_node_keeps_what_was_said_at_it() {
    let mut stores = stores();
    let gone = stores.seed_worker(spec("http://gone:1"));
    let kept = stores.seed_worker(spec("http://kept:1"));
    let added = stores.put_worker(10, spec("http://added:1"));
    assert!(stores.remove_worker(11, &gone));
    let policy = PolicySpec { policy: "random".into(), config_json: "{}".into() };
    stores.put_policy(12, "m", &policy).unwrap();
    stores.observe_worker(13, &added, &seen(WorkerState::Ready));

    let mut renamed = stores.renamed(14, "other".parse().unwrap(), 99);
    for url in ["http://gone:1", "http://kept:1"] {
        renamed.seed_worker(spec(url));
    }
    let mut expected = [kept, added.clone()];
    expected.sort();
    assert_eq!(renamed.workers().into_iter().map(|worker| worker.id).collect::<Vec<_>>(), expected);
    assert_eq!(renamed.policies(), [("m".to_owned(), policy)]);
    assert!(renamed.worker(&added).unwrap().observed.is_empty(), "what the old name saw is not this node's");
}
