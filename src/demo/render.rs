//! What the demo prints.

use std::{fmt::Write as _, time::Duration};

use super::{
    MODEL,
    cluster::{Cluster, Process},
    traffic::Counts,
};

/// Addresses of all processes, and commands to try.
pub(super) fn table(gateways: &[Process], workers: &[Process]) -> String {
    let mut out = format!("\n  {:<9}{:<25}{:<18}metrics\n", "gateway", "clients", "mesh");
    // Writing to a string does not fail.
    for gateway in gateways {
        let (mesh, metrics) = gateway.mesh_and_metrics.unwrap_or_default();
        let (clients, mesh) = (format!("http://{}", gateway.addr), format!("127.0.0.1:{mesh}"));
        let _ = writeln!(out, "  {:<9}{clients:<25}{mesh:<18}http://127.0.0.1:{metrics}/metrics", gateway.name);
    }
    let _ = writeln!(out, "\n  {:<9}{:<25}statistics", "worker", "clients");
    for worker in workers {
        let clients = format!("http://{}", worker.addr);
        let _ = writeln!(out, "  {:<9}{clients:<25}{clients}/sim/stats", worker.name);
    }
    if let (Some(first), Some(last)) = (gateways.first(), gateways.last()) {
        let body =
            |extra: &str| format!(r#"{{"model":"{MODEL}"{extra},"messages":[{{"role":"user","content":"hello"}}]}}"#);
        let json = "-H 'content-type: application/json'";
        let _ = write!(
            out,
            "\nTry, in another terminal:\n  \
             curl -s http://{}/v1/chat/completions {json} -d '{}'\n  \
             curl -sN http://{}/v1/chat/completions {json} -d '{}'\n  \
             curl -s http://{}/ha/status\n  curl -s http://{}/workers\n",
            first.addr,
            body(""),
            last.addr,
            body(r#","stream":true"#),
            first.addr,
            last.addr
        );
    }
    out
}

/// One second of requests.
pub(super) fn line(elapsed: Duration, counts: &Counts, cluster: &Cluster) -> String {
    let gateways = cluster.gateways().iter().map(|gateway| gateway.name.as_str());
    line_of(elapsed, counts, gateways)
}

fn line_of<'a>(elapsed: Duration, counts: &Counts, gateways: impl Iterator<Item = &'a str>) -> String {
    let mut out = format!("{:>5} s {:>7} requests |", elapsed.as_secs(), counts.requests);
    for (name, answered) in gateways.zip(&counts.by_gateway) {
        let _ = write!(out, " {name} {answered}");
    }
    out.push_str(" |");
    for (name, answered) in &counts.by_worker {
        let _ = write!(out, " {name} {answered}");
    }
    let _ = write!(out, " | failovers {} errors {}", counts.failovers, counts.errors);
    if counts.held_back > 0 {
        let _ = write!(out, " held back {}", counts.held_back);
    }
    if let Some(median) = median(&counts.latencies) {
        let _ = write!(out, " | p50 {} ms", median.as_millis());
    }
    out
}

/// The end of it.
pub(super) fn summary(counts: &Counts) -> String {
    format!("{} requests, {} failovers, {} errors", counts.requests, counts.failovers, counts.errors)
}

fn median(latencies: &[Duration]) -> Option<Duration> {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_show_who_answered() {
        let counts = Counts {
            requests: 7,
            by_gateway: vec![4, 3],
            by_worker: [("worker1".to_owned(), 7)].into(),
            failovers: 2,
            latencies: [3, 1, 2].map(Duration::from_millis).into(),
            ..Counts::default()
        };
        let line = line_of(Duration::from_millis(1900), &counts, ["node1", "node2"].into_iter());
        assert_eq!(line, "    1 s       7 requests | node1 4 node2 3 | worker1 7 | failovers 2 errors 0 | p50 2 ms");
        let idle = line_of(Duration::ZERO, &Counts::default(), [].into_iter());
        assert_eq!(idle, "    0 s       0 requests | | | failovers 0 errors 0");
    }

    #[test]
    fn medians_need_something() {
        for (case, millis, expected) in
            [("none", vec![], None), ("one", vec![5], Some(5)), ("even", vec![4, 1], Some(4))]
        {
            let latencies: Vec<_> = millis.into_iter().map(Duration::from_millis).collect();
            assert_eq!(median(&latencies), expected.map(Duration::from_millis), "{case}");
        }
    }
}
