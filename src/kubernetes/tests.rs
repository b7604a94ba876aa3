//! Searches against a server that works, and that fails in every way.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    config::kubernetes::PodSearch,
    kubernetes::fake::{Mode, Server, TooLarge, pod},
};

/// What is known: pod names and their zones.
type Seen = BTreeMap<String, String>;

/// Remembers what it is told.
struct Listener {
    seen: Seen,
    shown: watch::Sender<Seen>,
}

impl Audience for Listener {
    const KIND: &'static str = "worker";
    const WANTS_ZONES: bool = true;

    fn handle_list(&mut self, pods: &[Pod]) -> bool {
        self.seen = pods.iter().map(|pod| (pod.name.clone(), pod.zone.clone())).collect();
        false
    }

    fn handle_change(&mut self, change: &Change) {
        match change {
            Change::Put(pod) => drop(self.seen.insert(pod.name.clone(), pod.zone.clone())),
            Change::Gone(pod) => drop(self.seen.remove(&pod.name)),
        }
    }

    async fn flush(&mut self) -> Option<usize> {
        self.shown.send(self.seen.clone()).ok()?;
        Some(self.seen.len())
    }
}

struct Search {
    server: Server,
    seen: watch::Receiver<Seen>,
    metrics: Arc<Metrics>,
}

fn search() -> PodSearch {
    PodSearch { namespace: Some("ns".into()), labels: [("app".to_owned(), "w".to_owned())].into() }
}

impl Search {
    async fn start(relist: Duration) -> Self {
        let server = Server::start(std::net::Ipv4Addr::LOCALHOST).await;
        server.stored().zones.insert("n1".into(), "z1".into());
        server.put(&pod("a", "10.0.0.1", "n1"));
        Self::of(server, relist)
    }

    fn of(server: Server, relist: Duration) -> Self {
        let api = Api::at(&format!("http://{}", server.addr));
        let (shown, seen) = watch::channel(Seen::new());
        let metrics = Metrics::new();
        let listener = Listener { seen: Seen::new(), shown };
        tokio::spawn(Follower::new(api, search(), relist, metrics.clone(), listener).run());
        Self { server, seen, metrics }
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Seen) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(30), self.seen.wait_for(holds)).await;
        assert!(waited.is_ok_and(|held| held.is_ok()), "not within 30 s: {what}");
    }

    /// Waits until requests of this kind had this result.
    async fn until_result(&self, operation: &str, result: &str) {
        let line = format!("kubernetes_requests_total{{operation=\"{operation}\",result=\"{result}\"}}");
        let start = Instant::now();
        while !self.metrics.encode().contains(&line) {
            assert!(start.elapsed() < Duration::from_secs(30), "not within 30 s: {line}");
            tokio::task::yield_now().await;
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_changes_comes_by_the_watch_without_another_list() {
    let mut search = Search::start(HOUR).await;
    search.until("the first list", |seen| *seen == Seen::from([("ns/a".into(), "z1".into())])).await;
    search.server.put(&pod("b", "10.0.0.2", "n2"));
    search.until("a new pod, of a node without a zone", |seen| seen.get("ns/b").is_some_and(String::is_empty)).await;
    search.server.delete("a");
    search.until("a deleted pod", |seen| !seen.contains_key("ns/a")).await;
    assert_eq!(search.server.stored().lists, 1);
    assert!(search.server.stored().selectors.iter().all(|selector| selector == "app=w"));
    let scrape = search.metrics.encode();
    assert!(scrape.contains("kubernetes_pods{kind=\"worker\"} 1"), "{scrape}");
    assert!(scrape.contains("kubernetes_last_list_timestamp_seconds{kind=\"worker\"} 1"), "{scrape}");
}

#[tokio::test]
async fn a_list_in_pages_is_complete() {
    let mut search = Search::start(Duration::from_secs(1)).await;
    search.server.set_mode(Mode::DropsEvents);
    search.server.stored().page_pods = 2;
    for n in 2..=5 {
        search.server.put(&pod(&format!("p{n}"), &format!("10.0.0.{n}"), "n1"));
    }
    search.until("five pods", |seen| seen.len() == 5).await;
}

#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_by_halves() {
    for kind in [TooLarge::Message, TooLarge::Status, TooLarge::Bytes] {
        let server = Server::start(std::net::Ipv4Addr::LOCALHOST).await;
        server.stored().too_large = Some((kind, 3));
        for n in 1..=5 {
            server.put(&pod(&format!("p{n}"), &format!("10.0.0.{n}"), "n1"));
        }
        let (api, search) = (Api::at(&format!("http://{}", server.addr)).patient(), search());
        for list in 1..=2 {
            assert_eq!(api.list(&search).await.unwrap().pods.len(), 5, "{kind:?}");
            // 500, 250, 125, 62, 31, 15, 7 and 3 and 3; the next list knows.
            assert_eq!(server.stored().selectors.len(), if list == 1 { 9 } else { 11 }, "{kind:?}");
        }
        server.stored().too_large = Some((kind, 0));
        let error = api.list(&search).await.err().unwrap();
        assert_eq!(error.reason(), "too_long", "{kind:?}: one pod alone is too large");
    }
}

#[test]
fn a_search_that_fails_complains_once_a_minute() {
    let (start, mut complaints) = (tokio::time::Instant::now(), follow::Complaints::default());
    for (case, secs, operation, expected) in [
        ("the first", 0, "list", true),
        ("again", 30, "list", false),
        ("another operation", 59, "watch", false),
        ("a minute later", 60, "list", true),
        ("and again", 119, "list", false),
    ] {
        assert_eq!(complaints.on_failure(start + Duration::from_secs(secs), operation), expected, "{case}");
    }
    assert!(!complaints.on_success("watch"), "nothing was said of it");
    assert!(complaints.on_success("list"));
    assert!(!complaints.on_success("list"), "said once");
    assert!(!complaints.on_failure(start + Duration::from_secs(119), "list"), "and the minute goes on");
}

/// Pods of one node cost one request and are told together, and a node that is gone keeps no other from being asked.
#[tokio::test]
async fn zones_follow_for_every_node_that_has_one() {
    let server = Server::start(std::net::Ipv4Addr::LOCALHOST).await;
    server.stored().zones.extend([("n1".to_owned(), "z1".to_owned()), ("n3".to_owned(), "z3".to_owned())]);
    for (name, node) in [("a", "n1"), ("b", "n1"), ("c", "gone"), ("d", "n3")] {
        server.put(&pod(name, "10.0.0.1", node));
    }
    let mut followed = Search::of(server, HOUR);
    let expected = [("a", "z1"), ("b", "z1"), ("c", ""), ("d", "z3")];
    let expected: Seen = expected.map(|(name, zone)| (format!("ns/{name}"), zone.to_owned())).into();
    followed.until("zones", |seen| *seen == expected).await;
    followed.until_result("node", "ok").await;
    assert!(followed.metrics.encode().contains(r#"kubernetes_requests_total{operation="node",result="ok"} 2"#));
}

/// Who has to wait for zones is still found.
#[tokio::test]
async fn findings_come_before_zones() {
    let server = Server::start(std::net::Ipv4Addr::LOCALHOST).await;
    server.stored().zones.insert("n1".into(), "z1".into());
    server.stored().are_nodes_mute = true;
    server.put(&pod("a", "10.0.0.1", "n1"));
    let mut followed = Search::of(server, HOUR);
    followed.until("the list", |seen| *seen == Seen::from([("ns/a".into(), String::new())])).await;
    assert!(!followed.metrics.encode().contains("operation=\"node\""), "nothing of the node is known yet");
    // The node that hangs is given up, and the watch begins.
    followed.until_result("node", "timeout").await;
    followed.server.put(&pod("b", "10.0.0.2", "n1"));
    followed.until("a new pod", |seen| seen.len() == 2).await;
}

#[tokio::test]
async fn what_a_watch_drops_or_forgets_the_next_list_says() {
    for (mode, relist) in [(Mode::DropsEvents, Duration::from_secs(1)), (Mode::Forgets, HOUR)] {
        let mut search = Search::start(relist).await;
        search.server.set_mode(mode);
        search.until("the first list", |seen| seen.len() == 1).await;
        search.server.put(&pod("b", "10.0.0.2", "n1"));
        search.until("a new pod", |seen| seen.len() == 2).await;
    }
}

#[tokio::test]
async fn a_server_that_fails_changes_nothing_and_is_asked_again() {
    for (mode, result) in [
        (Mode::Forbids, "forbidden"),
        (Mode::Breaks, "refused"),
        (Mode::Babbles, "malformed"),
        (Mode::Hangs, "timeout"),
    ] {
        let mut search = Search::start(Duration::from_secs(1)).await;
        search.until("the first list", |seen| seen.len() == 1).await;
        search.server.set_mode(mode);
        search.until_result("list", result).await;
        assert_eq!(search.seen.borrow().len(), 1, "{mode:?}");
        search.server.set_mode(Mode::DropsEvents);
        search.server.put(&pod("b", "10.0.0.2", "n1"));
        search.until("a new pod", |seen| seen.len() == 2).await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_at_first_is_found_later() {
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics = Metrics::new();
    let (shown, _seen) = watch::channel(Seen::new());
    let api = Api::at(&format!("http://{}", unused.local_addr().unwrap()));
    drop(unused);
    let search = PodSearch { namespace: None, labels: BTreeMap::new() };
    let listener = Listener { seen: Seen::new(), shown };
    tokio::spawn(Follower::new(api, search, HOUR, metrics.clone(), listener).run());
    let line = "kubernetes_requests_total{operation=\"list\",result=\"unreachable\"} 2";
    let start = Instant::now();
    while !metrics.encode().contains(line) {
        assert!(start.elapsed() < Duration::from_secs(30), "asked again");
        tokio::task::yield_now().await;
    }
}
