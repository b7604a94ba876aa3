//! `smg cluster status`: one gateway's picture of the cluster, and what is wrong with it.

use std::{collections::BTreeMap, fmt::Write as _, process::ExitCode};

use serde_json::json;

use super::{
    StatusArgs,
    client::Client,
    exit,
    picture::{self, Node, Picture, Status, Worker},
    plain, say,
};

pub(super) async fn run(client: &Client, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let mut picture = picture::of_first(client, &args.ask.url).await?;
    let problems = problems(&picture.status, &picture.workers);
    if args.json {
        let object = picture.raw.as_object_mut();
        let (status, workers) = object.map(|raw| (raw.remove("status"), raw.remove("workers"))).unwrap_or_default();
        let url = picture.url.to_string();
        let answer = json!({
            "healthy": problems.is_empty(), "problems": problems, "url": url, "status": status, "workers": workers,
        });
        say(&format!("{answer:#}\n"))?;
    } else {
        say(&text(&picture, &problems))?;
    }
    Ok(exit(problems.is_empty()))
}

/// A shorter lag is that of a round trip, and not worth a word.
const LAG_SHOWN_SECONDS: f64 = 1.0;

/// What makes a cluster degraded, a sentence each with what to do. A node that is LEAVING does so on purpose, and a
/// worker that is draining too.
pub(super) fn problems(status: &Status, workers: &[Worker]) -> Vec<String> {
    let mut problems = Vec::new();
    for node in &status.nodes {
        let advice = match node.status.as_str() {
            "ALIVE" | "LEAVING" => continue,
            "INIT" => {
                "it has not reached a peer: check --mesh-peer-urls and that the mesh port is open for UDP and TCP"
            }
            "SUSPECTED" => "it answers no probe: if it lasts, check its host and the network to it",
            _ => "start it again, or have it forgotten: it is after an hour",
        };
        problems.push(format!("node {} is {}: {advice}", plain(&node.name), plain(&node.status)));
    }
    problems.extend(disagreements(&status.nodes));
    for node in status.nodes.iter().filter(|node| node.datagrams_lost().is_some()) {
        let (from, to) = (plain(&status.node_name), plain(&node.name));
        problems.push(format!("datagrams between {from} and {to} are lost: open the mesh port for UDP between them"));
    }
    if !status.quorum {
        problems.push(format!(
            "no quorum of the {} voters: requests are routed, but nobody leads until {} of them are back",
            status.voters.len(),
            status.voters.len() / 2 + 1
        ));
    } else if status.leader.is_none() {
        problems.push("no leader: an election is under way, ask again in some seconds".to_owned());
    }
    for worker in workers.iter().filter(|worker| !matches!(worker.state.as_str(), "ready" | "draining")) {
        let (id, url, state) = (plain(&worker.id), plain(&worker.url), plain(&worker.state));
        problems.push(format!("worker {id} at {url} is {state}: check its process and its --health-check-endpoint"));
    }
    for worker in workers {
        let open: Vec<_> =
            worker.observers.iter().filter(|(_, seen)| seen.breaker == "open").map(|(node, _)| plain(node)).collect();
        if !open.is_empty() {
            let id = plain(&worker.id);
            problems.push(format!("worker {id} fails requests: its breaker is open at {}", open.join(", ")));
        }
    }
    if !workers.iter().any(|worker| worker.state == "ready") {
        problems.push("no worker is ready: requests are answered 503; add one with POST /workers".to_owned());
    }
    problems
}

fn text(picture: &Picture, problems: &[String]) -> String {
    let Picture { url, status, workers, .. } = picture;
    let mut out = String::new();
    let verdict = if problems.is_empty() { "healthy" } else { "DEGRADED" };
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "cluster {} is {verdict}, says {} ({url})\n",
        plain(&status.gateway.cluster),
        plain(&status.node_name)
    );
    let leader = status.leader.as_deref().map_or("none".to_owned(), plain);
    let quorum = if status.quorum { "yes" } else { "NO" };
    let voters: Vec<String> = status.voters.iter().map(|voter| plain(voter)).collect();
    let _ = writeln!(out, "leader   {leader}, term {}, quorum {quorum}, voters {}", status.term, listed(&voters));
    for (zone, nodes) in by_zone(&status.nodes) {
        let zone = if zone.is_empty() { "without a zone".to_owned() } else { format!("in zone {}", plain(zone)) };
        let _ = writeln!(out, "nodes    {zone}");
        for node in nodes {
            let here = if node.name == status.node_name { "  this gateway" } else { "" };
            let (name, state, address) = (plain(&node.name), plain(&node.status), plain(&node.address));
            let _ = writeln!(out, "  {name:<20} {state:<10} {address}{here}{}", sight(node));
        }
    }
    let ready = workers.iter().filter(|worker| worker.state == "ready").count();
    let _ = writeln!(out, "workers  {ready} of {} ready", workers.len());
    for worker in workers {
        let (id, state, url) = (plain(&worker.id), plain(&worker.state), plain(&worker.url));
        let models: Vec<String> = worker.models.iter().map(|model| plain(model)).collect();
        let load = worker.load.map_or_else(String::new, |load| format!("  {load} in flight"));
        let open = worker.observers.values().filter(|seen| seen.breaker == "open").count();
        let breaker = if open > 0 { format!("  breaker open at {open}") } else { String::new() };
        let _ = writeln!(out, "  {id:<20} {state:<10} {url}  {}{load}{breaker}", models.join(", "));
    }
    out.push_str(&limits_and_cache(status));
    out.push_str("stores\n");
    for (name, store) in &status.stores {
        let sync = store.last_sync.as_deref().map_or("never".to_owned(), plain);
        let root = store.root.as_deref().map_or_else(String::new, |root| format!(", root {}", plain(root)));
        let _ = writeln!(out, "  {:<20} {} entries, last sync {sync}{root}", plain(name), store.entry_count);
    }
    if !problems.is_empty() {
        out.push_str("problems\n");
        for problem in problems {
            let _ = writeln!(out, "  {problem}");
        }
    }
    out
}

/// Who is DOWN to one node and ALIVE to this gateway: the two cannot reach each other.
fn disagreements(nodes: &[Node]) -> Vec<String> {
    let alive: Vec<&Node> = nodes.iter().filter(|node| node.status == "ALIVE").collect();
    let is_down = |from: &Node, to: &Node| {
        from.sees.as_ref().is_some_and(|sees| sees.not_alive.get(&to.name).is_some_and(|state| state == "DOWN"))
    };
    let pairs = alive.iter().flat_map(|from| alive.iter().map(move |to| (from, to)));
    let advice = "check the network between the two, both ways, for UDP and TCP on the mesh port";
    let tell = |(from, to): (&&Node, &&Node)| {
        format!("node {} is ALIVE here and DOWN to {}: {advice}", plain(&to.name), plain(&from.name))
    };
    pairs.filter(|(from, to)| is_down(from, to)).map(tell).collect()
}

/// Whom a node holds for something else than ALIVE, and how far it is behind; nothing where there is nothing of the kind.
fn sight(node: &Node) -> String {
    let mut out = String::new();
    for (name, state) in node.sees.iter().flat_map(|sees| &sees.not_alive) {
        let _ = write!(out, "  sees {} {}", plain(name), plain(state));
    }
    if let Some(lag) = node.lag_seconds.filter(|lag| *lag >= LAG_SHOWN_SECONDS) {
        let _ = write!(out, "  {lag:.1} s behind");
    }
    out
}

fn limits_and_cache(status: &Status) -> String {
    let mut out = String::new();
    if let Some(limits) = &status.limits {
        let rate = match limits.limit_per_second {
            0 => "no rate".to_owned(),
            rate => format!("{rate} requests/s, burst {}", limits.burst),
        };
        let slots = match limits.concurrent {
            0 => "no bound in flight".to_owned(),
            slots => format!("{slots} in flight"),
        };
        let _ = writeln!(out, "limits   {rate}, {slots}, rights {}", plain(&limits.rights));
    }
    if let Some(cache) = status.cache.as_ref().filter(|cache| cache.prompt_tokens > 0) {
        let share = 100.0 * cache.cached_tokens as f64 / cache.prompt_tokens as f64;
        let _ = writeln!(out, "cache    {share:.1} % of prompt tokens at this gateway");
    }
    out
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "not known yet".to_owned() } else { names.join(" ") }
}

fn by_zone(nodes: &[Node]) -> BTreeMap<&str, Vec<&Node>> {
    let mut zones: BTreeMap<&str, Vec<&Node>> = BTreeMap::new();
    for node in nodes {
        zones.entry(&node.zone).or_default().push(node);
    }
    zones
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use serde::Deserialize as _;
    use serde_json::Value;

    use super::*;

    /// Three nodes in two zones, all well.
    pub(in crate::cluster) fn status(edit: impl FnOnce(&mut Value)) -> Status {
        let mut body = json!({
            "node_name": "n1", "node_count": 3,
            "nodes": [
                {"name": "n1", "status": "ALIVE", "address": "10.0.0.1:39527", "zone": "a"},
                {"name": "n2", "status": "ALIVE", "address": "10.0.0.2:39527", "zone": "b"},
                {"name": "n3", "status": "ALIVE", "address": "10.0.0.3:39527", "zone": "a"},
            ],
            "stores": {"workers": {"entry_count": 1, "last_sync": "2024-01-15T10:30:00Z", "root": "00000000000000ab"}},
            "leader": "n2", "term": 4, "quorum": true, "voters": ["n1", "n2", "n3"],
            "gateway": {"version": "1.0.0", "time": "2024-01-15T10:30:00.000Z", "cluster": "east", "transport": "quic",
                        "descriptors_max": 65536},
            "of_a_later_release": true,
        });
        edit(&mut body);
        Status::deserialize(body).unwrap()
    }

    pub(in crate::cluster) fn worker(state: &str, breaker: &str) -> Worker {
        let observers = json!({"n2": {"state": "ready", "models": [], "breaker": breaker}});
        let body = json!({"id": "w-1", "url": "http://w:1", "models": ["m"], "state": state, "observers": observers});
        Worker::deserialize(body).unwrap()
    }

    #[test]
    fn each_problem_is_found_and_says_what_to_do() {
        let node = |status: &'static str| move |body: &mut Value| body["nodes"][1]["status"] = json!(status);
        let well = vec![worker("ready", "closed")];
        for (case, status, workers, expected) in [
            ("all is well", status(|_| {}), well.clone(), vec![]),
            ("leaving on purpose", status(node("LEAVING")), well.clone(), vec![]),
            ("draining", status(|_| {}), vec![worker("ready", ""), worker("draining", "")], vec![]),
            ("down", status(node("DOWN")), well.clone(), vec!["node n2 is DOWN: start it again"]),
            ("suspected", status(node("SUSPECTED")), well.clone(), vec!["node n2 is SUSPECTED: it answers no probe"]),
            (
                "nodes that disagree",
                status(|body| body["nodes"][1]["sees"] = json!({"alive": 2, "not_alive": {"n3": "DOWN"}})),
                well.clone(),
                vec!["node n3 is ALIVE here and DOWN to n2: check the network between the two"],
            ),
            (
                "doubt that passes",
                status(|body| body["nodes"][1]["sees"] = json!({"alive": 2, "not_alive": {"n3": "SUSPECTED"}})),
                well.clone(),
                vec![],
            ),
            (
                "no UDP",
                status(|body| body["nodes"][1]["probe_detours"] = json!(10)),
                well.clone(),
                vec!["datagrams between n1 and n2 are lost: open the mesh port for UDP"],
            ),
            ("some loss", status(|body| body["nodes"][1]["probe_detours"] = json!(9)), well.clone(), vec![]),
            ("starting", status(node("INIT")), well.clone(), vec!["node n2 is INIT: it has not reached a peer"]),
            (
                "no quorum",
                status(|body| body["quorum"] = json!(false)),
                well.clone(),
                vec!["no quorum of the 3 voters: requests are routed, but nobody leads until 2"],
            ),
            ("no leader", status(|body| body["leader"] = Value::Null), well, vec!["no leader: an election"]),
            (
                "a worker is gone",
                status(|_| {}),
                vec![worker("ready", ""), worker("not_ready", "")],
                vec!["worker w-1 at http://w:1 is not_ready"],
            ),
            (
                "a breaker",
                status(|_| {}),
                vec![worker("ready", "open")],
                vec!["worker w-1 fails requests: its breaker is open at n2"],
            ),
            ("no workers", status(|_| {}), vec![], vec!["no worker is ready"]),
        ] {
            let found = problems(&status, &workers);
            assert_eq!(found.len(), expected.len(), "{case}: {found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{case}: {found}");
            }
        }
    }

    #[test]
    fn the_text_groups_nodes_by_zone_and_steers_no_terminal() {
        let status = status(|body| {
            body["nodes"][2]["address"] = json!("\u{1b}[31m:1");
            body["nodes"][1]["sees"] = json!({"alive": 2, "not_alive": {"n3": "DOWN\u{1b}"}});
            body["nodes"][1]["lag_seconds"] = json!(2.25);
            body["nodes"][2]["lag_seconds"] = json!(0.9);
            body["limits"] = json!({"rights": "lent", "limit_per_second": 100, "burst": 200, "concurrent": 0});
            body["cache"] = json!({"prompt_tokens": 200, "cached_tokens": 150});
        });
        let url = "http://h:1".parse().unwrap();
        let mut workers = vec![worker("ready", "closed"), worker("ready", "open")];
        workers[0].load = Some(3);
        let problems = vec!["all of it".to_owned()];
        let picture = Picture { url, raw: Value::Null, status, workers };
        let expected = "\
cluster east is DEGRADED, says n1 (http://h:1)

leader   n2, term 4, quorum yes, voters n1 n2 n3
nodes    in zone a
  n1                   ALIVE      10.0.0.1:39527  this gateway
  n3                   ALIVE      \u{fffd}[31m:1
nodes    in zone b
  n2                   ALIVE      10.0.0.2:39527  sees n3 DOWN\u{fffd}  2.2 s behind
workers  2 of 2 ready
  w-1                  ready      http://w:1  m  3 in flight
  w-1                  ready      http://w:1  m  breaker open at 1
limits   100 requests/s, burst 200, no bound in flight, rights lent
cache    75.0 % of prompt tokens at this gateway
stores
  workers              1 entries, last sync 2024-01-15T10:30:00Z, root 00000000000000ab
problems
  all of it
";
        assert_eq!(text(&picture, &problems), expected);
    }
}
