//! The rules of the stores: seeds, removals, observations, masking.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::mesh::crdt::{
    delta::{Cover, KeyState, Live},
    dot::{ActorId, Dot},
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

#[test]
fn a_floor_ahead_of_the_wall_clock_is_refused() {
    let mut stores = stores();
    let floor = |floor_ms: u64| Body {
        actors: vec![Actor::floor_of(&"n2".parse().unwrap())],
        context: vec![(ActorId(0), floor_ms)],
        covers: vec![Cover { actor: ActorId(0), from: 0, to: floor_ms }],
        ..Body::default()
    };
    let mut apply = |floor_ms: u64| {
        stores.apply(1000, Namespace::Workers, &mut VersionVector::default(), floor(floor_ms)).map(drop)
    };
    assert_eq!(apply(1001), Err(BodyError::FloorAhead), "else its node could never write again");
    assert_eq!(apply(1000), Ok(()));
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
    ] {
        assert_eq!(stores.put_policy(1, model, policy).is_ok(), accepted, "{case}");
    }
    assert_eq!(stores.policies(), [("m".to_owned(), fine)]);
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
