//! How long what searches found outlives them.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::mesh::stores::{Finding, WorkerSpec, discovered::tests::exchange};

const NOW: u64 = 1_700_000_000_000;

const SEARCH: u64 = 7;

fn stores(node: &str) -> Stores {
    Stores::new(node.parse().unwrap(), 1)
}

fn url(n: usize) -> String {
    format!("http://10.0.{}.{}:80", n / 256, n % 256)
}

fn id(n: usize) -> WorkerId {
    WorkerId::of_url(&url(n))
}

fn mark(n: usize) -> PodMark {
    PodMark::new(&format!("uid-{n}"), SEARCH)
}

/// Pod `n` is found.
fn find(stores: &mut Stores, n: usize) {
    stores.note_finding(
        NOW,
        Finding::Found(WorkerSpec {
            url: url(n),
            models: Vec::new(),
            api_key: None,
            zone: String::new(),
            origin: WorkerOrigin::Discovered(mark(n)),
            draining: false,
        }),
    );
}

fn only(stores: &mut Stores, at_ms: u64, pods: &[usize]) {
    let pods = pods.iter().map(|n| mark(*n).pod).collect();
    stores.note_finding(at_ms, Finding::Only { search: SEARCH, pods });
}

fn is_there(stores: &Stores, n: usize) -> bool {
    stores.worker(&id(n)).is_some()
}

/// A store with a worker that was found and then removed by an operator.
fn removed() -> Stores {
    let mut stores = stores("n1");
    find(&mut stores, 1);
    assert!(stores.remove_worker(NOW, &id(1)));
    stores
}

#[test]
fn a_removal_outlives_lists_without_the_pod_for_a_day() {
    for (case, gone) in [
        ("lists", Finding::Only { search: SEARCH, pods: BTreeSet::new() }),
        ("a label that it loses", Finding::Gone(id(1), mark(1))),
    ] {
        let mut stores = removed();
        stores.note_finding(NOW, gone);
        for wait_ms in [0, UNCLAIMED_WAIT_MS, MARKER_KEEP_MS - 1] {
            stores.settle_searches(NOW + wait_ms, Some(SEARCH));
            find(&mut stores, 1);
            assert!(!is_there(&stores, 1), "{case}: {wait_ms}");
            only(&mut stores, NOW, &[]);
        }
        stores.settle_searches(NOW + MARKER_KEEP_MS, Some(SEARCH));
        assert_eq!(stores.map(Namespace::Workers).len(), 0, "{case}: a day later the marker is gone");
        find(&mut stores, 1);
        assert!(is_there(&stores, 1), "{case}");
    }
}

#[test]
fn the_day_begins_anew_whenever_the_pod_is_found() {
    let mut stores = removed();
    only(&mut stores, NOW, &[]);
    only(&mut stores, NOW + MARKER_KEEP_MS - 1, &[1]);
    only(&mut stores, NOW + MARKER_KEEP_MS, &[]);
    stores.settle_searches(NOW + 2 * MARKER_KEEP_MS - 1, Some(SEARCH));
    find(&mut stores, 1);
    assert!(!is_there(&stores, 1));
}

#[test]
fn markers_without_a_pod_are_bounded_and_the_oldest_go() {
    let mut stores = stores("n1");
    for n in 0..MARKERS_MAX + 2 {
        find(&mut stores, n);
        stores.remove_worker(NOW, &id(n));
        stores.note_finding(NOW + n as u64, Finding::Gone(id(n), mark(n)));
    }
    stores.settle_searches(NOW + 5_000, Some(SEARCH));
    assert_eq!(stores.map(Namespace::Workers).len(), MARKERS_MAX);
    for (n, expected) in [(0, true), (1, true), (2, false), (MARKERS_MAX + 1, false)] {
        find(&mut stores, n);
        assert_eq!(is_there(&stores, n), expected, "{n}");
    }
}

#[test]
fn what_a_search_found_goes_once_nobody_has_made_it_for_ten_minutes() {
    let mut stores = stores("n1");
    find(&mut stores, 1);
    find(&mut stores, 2);
    stores.remove_worker(NOW, &id(2));
    stores.settle_searches(NOW, Some(SEARCH));
    stores.settle_searches(NOW + 9 * UNCLAIMED_WAIT_MS, Some(SEARCH));
    assert!(is_there(&stores, 1), "this node makes it");
    let other = NOW + 10 * UNCLAIMED_WAIT_MS;
    stores.settle_searches(other, Some(SEARCH + 1));
    stores.settle_searches(other + UNCLAIMED_WAIT_MS - 1, Some(SEARCH + 1));
    assert!(is_there(&stores, 1));
    stores.settle_searches(other + UNCLAIMED_WAIT_MS, Some(SEARCH + 1));
    assert_eq!((is_there(&stores, 1), stores.map(Namespace::Workers).len()), (false, 1), "the marker waits for a day");
    stores.settle_searches(other + UNCLAIMED_WAIT_MS + MARKER_KEEP_MS, Some(SEARCH + 1));
    assert_eq!(stores.map(Namespace::Workers).len(), 0);
}

#[test]
fn ten_minutes_begin_anew_when_somebody_makes_the_search_in_between() {
    let mut stores = stores("n1");
    find(&mut stores, 1);
    stores.settle_searches(NOW, None);
    stores.settle_searches(NOW + UNCLAIMED_WAIT_MS - 1, Some(SEARCH));
    stores.settle_searches(NOW + UNCLAIMED_WAIT_MS, None);
    assert!(is_there(&stores, 1));
    stores.settle_searches(NOW + 2 * UNCLAIMED_WAIT_MS, None);
    assert!(!is_there(&stores, 1));
}

/// Entries of flags and of the API, and all of a large store, a part at a time.
#[test]
fn the_search_for_leftovers_goes_through_a_large_store_in_steps() {
    let mut stores = stores("n1");
    let steps = 3;
    for n in 0..STEP_KEYS * (steps - 1) + 1 {
        find(&mut stores, n);
    }
    let api = WorkerSpec { url: url(60_000), ..stores.worker(&id(1)).unwrap().spec };
    let kept = stores.put_worker(NOW, WorkerSpec { origin: WorkerOrigin::Api, ..api });
    let mut sizes = Vec::new();
    for _ in 0..=steps {
        stores.settle_searches(NOW, None);
    }
    for step in 0..=steps {
        stores.settle_searches(NOW + UNCLAIMED_WAIT_MS + step as u64, None);
        sizes.push(stores.map(Namespace::Workers).len());
    }
    assert!(sizes.windows(2).all(|pair| pair[0] - pair[1] <= STEP_KEYS), "{sizes:?}");
    assert_eq!(*sizes.last().unwrap(), 1, "{sizes:?}");
    assert!(stores.worker(&kept).is_some());
}

#[test]
fn a_search_is_made_as_long_as_a_member_makes_it() {
    let (mut a, mut b) = (stores("n1"), stores("n2"));
    a.settle_searches(NOW, Some(SEARCH));
    b.settle_searches(NOW, Some(SEARCH));
    exchange(&mut a, &mut b);
    b.settle_searches(NOW, None);
    exchange(&mut a, &mut b);
    assert_eq!(b.claimed(), [SEARCH].into(), "the other still makes it");
    b.reap_node(&"n1".parse().unwrap());
    assert_eq!(b.claimed(), BTreeSet::new(), "it is no member any more");
}
