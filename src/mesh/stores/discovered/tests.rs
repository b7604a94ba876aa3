//! The rules of what searches find, on one store and between two.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::mesh::{
    crdt::{
        context::VersionVector,
        delta::{Body, Chunk},
    },
    stores::{WorkerObservation, WorkerPatch, WorkerState},
};

const URL: &str = "http://10.0.0.1:80";

fn stores(node: &str) -> Stores {
    Stores::new(node.parse().unwrap(), 1)
}

fn found(uid: &str) -> WorkerSpec {
    WorkerSpec {
        url: URL.into(),
        models: Vec::new(),
        api_key: None,
        zone: String::new(),
        origin: WorkerOrigin::Discovered(PodMark::new(uid, 1)),
        draining: false,
    }
}

fn find(stores: &mut Stores, uid: &str) {
    stores.note_finding(100, Finding::Found(found(uid)));
}

fn gone(stores: &mut Stores, uid: &str) {
    stores.note_finding(100, Finding::Gone(WorkerId::of_url(URL), PodMark::new(uid, 1)));
}

fn only(stores: &mut Stores, search: u64, uids: &[&str]) {
    let pods = uids.iter().map(|uid| PodMark::new(uid, search).pod).collect();
    stores.note_finding(100, Finding::Only { search, pods });
}

fn origin(stores: &Stores) -> Option<WorkerOrigin> {
    stores.worker(&WorkerId::of_url(URL)).map(|view| view.spec.origin)
}

fn keys(stores: &Stores) -> usize {
    stores.map(Namespace::Workers).len()
}

/// All that a gateway has of a namespace, in one chunk.
fn snapshot(stores: &Stores, namespace: Namespace) -> Body {
    let map = stores.map(namespace);
    let mut actors: Vec<_> = map.actors().iter().map(|(actor, id)| (id, actor.clone())).collect();
    actors.sort();
    let context: Vec<_> = map.seen().iter().collect();
    Body {
        actors: actors.into_iter().map(|(_, actor)| actor).collect(),
        context: context.clone(),
        keys: map.range_from(b"").map(|(key, live)| map.key_state_of(key, live)).collect(),
        chunk: Some(Chunk { from: Key::from([]), to: None, guard: Vec::new(), base: context }),
        ..Body::default()
    }
}

/// Both have what either had. A second round brings which of its own dots each has retracted in the first.
pub(in super::super) fn exchange(a: &mut Stores, b: &mut Stores) {
    for namespace in [Namespace::Workers, Namespace::Routing] {
        for _ in 0..2 {
            let (of_a, of_b) = (snapshot(a, namespace), snapshot(b, namespace));
            a.apply(200, namespace, &mut VersionVector::default(), of_b).unwrap();
            b.apply(200, namespace, &mut VersionVector::default(), of_a).unwrap();
        }
        assert_eq!(a.map(namespace).root(), b.map(namespace).root());
    }
}

#[test]
fn a_pod_comes_once_and_goes_without_a_trace() {
    let mut stores = stores("n1");
    find(&mut stores, "a");
    let id = WorkerId::of_url(URL);
    assert_eq!(origin(&stores), Some(found("a").origin));
    let ready = WorkerObservation { state: WorkerState::Ready, models: Vec::new(), failing_until_ms: 0 };
    stores.observe_worker(101, &id, &ready);
    let root = stores.map(Namespace::Workers).root();
    find(&mut stores, "a");
    assert_eq!(stores.map(Namespace::Workers).root(), root, "finding it again writes nothing");
    gone(&mut stores, "b");
    assert!(origin(&stores).is_some(), "news of another pod");
    gone(&mut stores, "a");
    assert_eq!((origin(&stores), keys(&stores)), (None, 0));
}

#[test]
fn what_an_operator_removed_stays_away_as_long_as_its_pod_lives() {
    let mut stores = stores("n1");
    let id = WorkerId::of_url(URL);
    find(&mut stores, "a");
    assert!(stores.remove_worker(110, &id));
    find(&mut stores, "a");
    only(&mut stores, 1, &["a"]);
    assert_eq!((origin(&stores), keys(&stores)), (None, 1), "a marker");
    find(&mut stores, "b");
    assert_eq!(origin(&stores), Some(found("b").origin), "another pod at the address");
    assert!(stores.remove_worker(120, &id));
    only(&mut stores, 1, &[]);
    assert_eq!(keys(&stores), 1, "the marker waits for a day");
}

#[test]
fn what_was_said_of_it_stays() {
    let mut stores = stores("n1");
    let id = WorkerId::of_url(URL);
    find(&mut stores, "a");
    stores.patch_worker(110, &id, &WorkerPatch { draining: Some(true), ..WorkerPatch::default() });
    let with_zone = WorkerSpec { zone: "z".into(), ..found("a") };
    stores.note_finding(111, Finding::Found(with_zone));
    let spec = stores.worker(&id).unwrap().spec;
    assert_eq!((spec.draining, spec.zone.as_str(), spec.origin), (true, "z", found("a").origin));
    stores.put_worker(112, WorkerSpec { origin: WorkerOrigin::Api, zone: "y".into(), ..found("a") });
    find(&mut stores, "a");
    let spec = stores.worker(&id).unwrap().spec;
    assert_eq!((spec.zone.as_str(), spec.origin), ("y", found("a").origin));
}

#[test]
fn entries_of_the_api_go_with_their_pod_and_those_of_flags_stay() {
    for (case, is_flag, left) in [("api", false, None), ("flag", true, Some(WorkerOrigin::Seed))] {
        let mut stores = stores("n1");
        let named = WorkerSpec { origin: WorkerOrigin::Api, models: vec!["m".into()], ..found("a") };
        if is_flag {
            stores.seed_worker(named)
        } else {
            stores.put_worker(90, named)
        };
        find(&mut stores, "a");
        assert_eq!(stores.workers()[0].spec.models, ["m"], "{case}");
        only(&mut stores, 1, &[]);
        assert_eq!(origin(&stores), left, "{case}");
    }
}

/// In every order of who knows what when: one gateway finds the pod, the flag of another names its URL.
#[test]
fn what_a_flag_names_stays_when_its_pod_goes() {
    let id = WorkerId::of_url(URL);
    for (case, finder, namer, meets_first) in [
        ("named at the start, found later", "n1", "n2", false),
        ("the same, and the other actor wins", "n2", "n1", false),
        ("found first", "n1", "n2", true),
        ("found first, and the other actor wins", "n2", "n1", true),
    ] {
        let (mut a, mut b) = (stores(finder), stores(namer));
        find(&mut a, "a");
        if meets_first {
            exchange(&mut a, &mut b);
        }
        b.seed_worker(found("a"));
        exchange(&mut a, &mut b);
        let root = b.map(Namespace::Workers).root();
        b.seed_worker(found("a"));
        find(&mut a, "a");
        exchange(&mut a, &mut b);
        assert_eq!(b.map(Namespace::Workers).root(), root, "{case}: saying it again writes nothing");
        assert_eq!((origin(&a), origin(&b)), (Some(WorkerOrigin::Seed), Some(WorkerOrigin::Seed)), "{case}");
        gone(&mut a, "a");
        only(&mut b, 1, &[]);
        exchange(&mut a, &mut b);
        assert_eq!((origin(&a), origin(&b)), (Some(WorkerOrigin::Seed), Some(WorkerOrigin::Seed)), "{case}");
        assert!(b.remove_worker(110, &id));
        exchange(&mut a, &mut b);
        a.seed_worker(found("a"));
        find(&mut a, "other");
        exchange(&mut a, &mut b);
        assert_eq!((origin(&a), origin(&b)), (None, None), "{case}: an operator's removal holds");
    }
}

#[test]
fn a_flag_that_names_what_was_removed_brings_it_not_back() {
    let mut stores = stores("n1");
    find(&mut stores, "a");
    assert!(stores.remove_worker(110, &WorkerId::of_url(URL)));
    stores.seed_worker(found("a"));
    only(&mut stores, 1, &[]);
    assert_eq!((origin(&stores), keys(&stores)), (None, 1));
}

#[test]
fn a_list_takes_away_what_its_own_search_found() {
    let mut stores = stores("n1");
    find(&mut stores, "a");
    let kept = stores.put_worker(90, WorkerSpec { url: "http://w:1".into(), origin: WorkerOrigin::Api, ..found("a") });
    only(&mut stores, 2, &[]);
    only(&mut stores, 1, &["a", "c"]);
    assert!(origin(&stores).is_some());
    only(&mut stores, 1, &["c"]);
    assert_eq!(origin(&stores), None);
    assert!(stores.worker(&kept).is_some());
}

#[test]
fn gateways_that_find_one_pod_agree() {
    let (mut a, mut b) = (stores("n1"), stores("n2"));
    find(&mut a, "a");
    find(&mut b, "a");
    exchange(&mut a, &mut b);
    assert_eq!(a.workers(), b.workers());
    // The operator removes it at one, while the other sees its pod still.
    assert!(a.remove_worker(110, &WorkerId::of_url(URL)));
    find(&mut b, "a");
    exchange(&mut a, &mut b);
    find(&mut a, "a");
    find(&mut b, "a");
    exchange(&mut a, &mut b);
    assert_eq!((origin(&a), origin(&b)), (None, None));
    gone(&mut a, "a");
    gone(&mut b, "a");
    exchange(&mut a, &mut b);
    assert_eq!((keys(&a), keys(&b)), (1, 1), "the marker");
}

/// One gateway learns late that a pod is gone, whose address another has by then.
#[test]
fn late_news_of_an_old_pod_do_not_hurt_the_new_one() {
    let (mut a, mut b) = (stores("n1"), stores("n2"));
    find(&mut a, "old");
    exchange(&mut a, &mut b);
    gone(&mut a, "old");
    find(&mut a, "new");
    exchange(&mut a, &mut b);
    gone(&mut b, "old");
    exchange(&mut a, &mut b);
    assert_eq!((origin(&a), origin(&b)), (Some(found("new").origin), Some(found("new").origin)));
}

#[test]
fn a_zone_that_is_found_later_undoes_no_removal_elsewhere() {
    let (mut a, mut b) = (stores("a"), stores("b"));
    find(&mut a, "uid");
    exchange(&mut a, &mut b);
    let id = WorkerId::of_url(URL);
    assert!(b.remove_worker(200, &id));
    a.note_finding(300, Finding::Found(WorkerSpec { zone: "z1".into(), ..found("uid") }));
    assert_eq!(a.worker(&id).unwrap().spec.zone, "z1");
    exchange(&mut a, &mut b);
    assert_eq!((a.worker(&id), b.worker(&id)), (None, None));
}
