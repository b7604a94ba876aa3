//! What pods, changes and lists mean for the workers.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::kubernetes::{PodPort, PodSearch};

const SECOND: Duration = Duration::from_secs(1);

fn inventory() -> Inventory {
    let search = PodSearch { namespace: None, labels: [("app".to_owned(), "w".to_owned())].into() };
    Inventory::new(WorkerPods { search, port: PodPort::Number(80), scheme: "http" })
}

/// A Ready pod `ns/<name>` at 10.0.0.`n`.
fn pod(name: &str, n: u8) -> Pod {
    Pod {
        name: format!("ns/{name}"),
        uid: format!("{name}-{n}"),
        ip: Some([10, 0, 0, n].into()),
        is_ready: true,
        ..Pod::default()
    }
}

fn id(n: u8) -> WorkerId {
    WorkerId::of_url(&format!("http://10.0.0.{n}"))
}

/// What is told: `+n` found, `-n` gone, `=` and how many live.
fn told(inventory: &mut Inventory) -> Vec<String> {
    let number = |known: &WorkerId| (1..=9).find(|n| id(*n) == *known).unwrap();
    let text = |finding| match finding {
        Finding::Found(spec) => format!("+{}", number(&WorkerId::of_url(&spec.url))),
        Finding::Gone(id, _) => format!("-{}", number(&id)),
        Finding::Only { pods, .. } => format!("={}", pods.len()),
    };
    std::iter::from_fn(|| inventory.poll_finding()).map(text).collect()
}

#[test]
fn the_state_of_a_pod_decides_what_becomes_of_the_worker() {
    let unready = |pod: Pod| Pod { is_ready: false, ..pod };
    let ending = |pod: Pod| Pod { is_ending: true, ..pod };
    let put = Change::Put;
    for (case, changes, expected, held) in [
        ("ready", vec![put(pod("a", 1))], vec!["+1"], vec![]),
        ("not ready yet", vec![put(unready(pod("a", 1)))], vec![], vec![1]),
        ("ready after a while", vec![put(unready(pod("a", 1))), put(pod("a", 1))], vec!["+1"], vec![]),
        ("not ready any more", vec![put(pod("a", 1)), put(unready(pod("a", 1)))], vec!["+1"], vec![1]),
        ("said twice", vec![put(pod("a", 1)), put(pod("a", 1))], vec!["+1"], vec![]),
        ("being deleted", vec![put(pod("a", 1)), put(ending(pod("a", 1)))], vec!["+1", "-1"], vec![]),
        ("deleted", vec![put(pod("a", 1)), Change::Gone(pod("a", 1))], vec!["+1", "-1"], vec![]),
        ("one that was never there", vec![Change::Gone(pod("a", 1)), put(ending(pod("b", 2)))], vec![], vec![]),
        ("without an address", vec![put(Pod { ip: None, ..pod("a", 1) })], vec![], vec![]),
        ("made anew", vec![put(pod("a", 1)), put(pod("a", 2))], vec!["+1", "-1", "+2"], vec![]),
        (
            "late news of the one before",
            vec![put(pod("a", 1)), put(pod("a", 2)), Change::Gone(pod("a", 1))],
            vec!["+1", "-1", "+2"],
            vec![],
        ),
    ] {
        let mut inventory = inventory();
        for change in &changes {
            inventory.handle_change(change);
        }
        assert_eq!(told(&mut inventory), expected, "{case}");
        assert_eq!(inventory.held(Instant::now()), held.into_iter().map(id).collect(), "{case}");
    }
}

#[test]
fn a_port_may_be_named_and_a_pod_without_it_is_no_worker() {
    let mut inventory = inventory();
    inventory.pods.port = PodPort::Name("api".into());
    inventory.pods.scheme = "https";
    let named = Pod { ports: [("api".to_owned(), 8443)].into(), zone: "z".into(), ..pod("a", 1) };
    inventory.handle_list(Instant::now(), &[named, pod("b", 2)]);
    let Some(Finding::Found(spec)) = inventory.poll_finding() else { panic!("nothing found") };
    assert_eq!((spec.url.as_str(), spec.zone.as_str()), ("https://10.0.0.1:8443", "z"));
    assert_eq!(inventory.poll_finding(), None);
}

#[test]
fn a_pod_without_the_named_port_is_told_once() {
    let mut inventory = inventory();
    inventory.pods.port = PodPort::Name("api".into());
    let told = |inventory: &mut Inventory| std::iter::from_fn(|| inventory.poll_portless()).collect::<Vec<_>>();
    let named = Pod { ports: [("api".to_owned(), 8443)].into(), ..pod("a", 1) };
    for _ in 0..2 {
        inventory.handle_list(Instant::now(), &[named.clone(), pod("b", 2)]);
        inventory.handle_change(&Change::Put(Pod { is_ready: false, ..pod("b", 2) }));
    }
    assert_eq!(told(&mut inventory), ["ns/b"]);
    inventory.handle_change(&Change::Put(Pod { is_ending: true, ..pod("c", 3) }));
    inventory.handle_change(&Change::Put(pod("b", 4)));
    assert_eq!(told(&mut inventory), ["ns/b"], "another pod of that name");
    for n in 0..2 * PORTLESS_MAX {
        inventory.handle_change(&Change::Put(Pod { uid: format!("many-{n}"), ..pod("m", 5) }));
    }
    assert_eq!(told(&mut inventory).len(), PORTLESS_MAX - 2, "bounded");
    inventory.handle_list(Instant::now(), &[pod("b", 4)]);
    inventory.handle_change(&Change::Put(pod("d", 6)));
    assert_eq!(told(&mut inventory), ["ns/d"], "those that are gone make room");
}

#[test]
fn a_zone_that_comes_later_is_told() {
    let mut inventory = inventory();
    inventory.handle_list(Instant::now(), &[pod("a", 1)]);
    let with_zone = || Change::Put(Pod { zone: "z".into(), ..pod("a", 1) });
    for change in [with_zone(), with_zone(), Change::Put(pod("a", 1))] {
        inventory.handle_change(&change);
    }
    let zones = std::iter::from_fn(|| inventory.poll_finding()).map(|finding| match finding {
        Finding::Found(spec) => spec.zone,
        other => panic!("{other:?}"),
    });
    assert_eq!(zones.collect::<Vec<_>>(), ["", "z"]);
}

#[test]
fn a_pod_that_one_list_lacks_stays_and_two_lists_take_it_away() {
    let (now, mut inventory) = (Instant::now(), inventory());
    assert!(!inventory.handle_list(now, &[pod("a", 1), pod("b", 2)]));
    assert_eq!(told(&mut inventory), ["+1", "+2"]);
    assert!(inventory.handle_list(now + SECOND, &[pod("a", 1)]), "the next list is due soon");
    assert_eq!(told(&mut inventory), ["+1", "=2"]);
    assert!(!inventory.handle_list(now + 2 * SECOND, &[pod("a", 1), pod("b", 2)]));
    assert!(inventory.handle_list(now + 3 * SECOND, &[pod("a", 1)]), "it was there in between");
    told(&mut inventory);
    assert!(!inventory.handle_list(now + 4 * SECOND, &[pod("a", 1)]));
    assert_eq!(told(&mut inventory), ["+1", "-2", "=1"]);
}

#[test]
fn empty_lists_count_after_a_minute() {
    let (now, mut inventory) = (Instant::now(), inventory());
    inventory.handle_list(now, &[pod("a", 1)]);
    told(&mut inventory);
    for seconds in 1..=60 {
        assert!(inventory.handle_list(now + seconds * SECOND, &[]), "{seconds}");
    }
    assert_eq!(told(&mut inventory), Vec::<String>::new());
    // What a watch says meanwhile is believed, and a list that has anything starts the time anew.
    inventory.handle_change(&Change::Put(pod("b", 2)));
    inventory.handle_list(now + 60 * SECOND, &[pod("a", 1), pod("b", 2)]);
    assert!(inventory.handle_list(now + 61 * SECOND, &[]));
    assert!(!told(&mut inventory).iter().any(|finding| finding.starts_with('-')));
    assert!(!inventory.handle_list(now + 121 * SECOND, &[]));
    assert_eq!(told(&mut inventory), ["-1", "-2", "=2"]);
    inventory.handle_list(now + 181 * SECOND, &[]);
    assert_eq!(told(&mut inventory), ["=0"], "also what others found");
}

/// A gateway that starts sweeps nothing before it has seen two lists, and never what is listed but not Ready.
#[test]
fn what_others_found_goes_once_two_lists_lack_it() {
    let (now, mut inventory) = (Instant::now(), inventory());
    let unready = Pod { is_ready: false, ..pod("a", 1) };
    inventory.handle_list(now, std::slice::from_ref(&unready));
    assert_eq!(told(&mut inventory), Vec::<String>::new());
    inventory.handle_list(now + SECOND, std::slice::from_ref(&unready));
    let Some(Finding::Only { pods, search }) = inventory.poll_finding() else { panic!("nothing swept") };
    assert_eq!((pods, search), ([PodMark::new("a-1", 0).pod].into(), inventory.search));
    let ending = Pod { is_ending: true, ..unready };
    for seconds in [2, 3] {
        inventory.handle_list(now + seconds * SECOND, std::slice::from_ref(&ending));
    }
    assert_eq!(told(&mut inventory).last().unwrap(), "=0");
}

#[test]
fn a_failure_begins_the_wait_for_empty_lists_anew() {
    let (mut inventory, start) = (inventory(), Instant::now());
    inventory.handle_list(start, &[pod("a", 1)]);
    inventory.handle_list(start + SECOND, &[]);
    inventory.handle_failure(start + 2 * SECOND);
    inventory.handle_list(start + 62 * SECOND, &[]);
    assert_eq!(told(&mut inventory).iter().filter(|told| told.starts_with('-')).count(), 0, "empty for no time");
    inventory.handle_list(start + 122 * SECOND, &[]);
    assert!(told(&mut inventory).contains(&"-1".to_owned()), "empty for a minute");
}

#[test]
fn nothing_is_held_for_long_on_an_old_word() {
    let (mut inventory, start) = (inventory(), Instant::now());
    inventory.handle_list(start, &[Pod { is_ready: false, ..pod("a", 1) }]);
    let held = |inventory: &Inventory, secs| inventory.held(start + secs * SECOND).len();
    assert_eq!(held(&inventory, 3600), 1, "the API answers");
    inventory.handle_failure(start + 10 * SECOND);
    inventory.handle_failure(start + 40 * SECOND);
    assert_eq!((held(&inventory, 189), held(&inventory, 190)), (1, 0));
    inventory.handle_list(start + 200 * SECOND, &[Pod { is_ready: false, ..pod("a", 1) }]);
    assert_eq!(held(&inventory, 200), 1, "it answers again");
}
