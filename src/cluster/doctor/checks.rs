//! What the facts mean. Each check gives at least one finding when it had something to look at.

use std::collections::{BTreeMap, BTreeSet};

use time::{Duration, OffsetDateTime};

use super::{
    Finding,
    gather::{Answer, Asked, Facts, Files, Port, Udp, answers},
};
use crate::cluster::picture::Status;

/// Clocks that differ by more are a problem: replicated writes are ordered by them, and beyond this much a stamp is not
/// followed any more (DESIGN §4).
const SKEW_MAX_MS: i64 = 500;

/// Descriptors that a busy gateway needs at least: two for each request in flight.
const DESCRIPTORS_MIN: u64 = 4096;

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = gateways(&facts.gateways);
    let answered: Vec<&Answer> = answers(&facts.gateways).collect();
    let Some(first) = answered.first() else { return findings };
    let statuses: Vec<&Status> = answered.iter().map(|answer| &answer.status).collect();
    findings.extend(views(&statuses));
    findings.extend(leadership(&statuses));
    findings.extend(facts.ports.iter().map(|at| port(at, &first.status)));
    findings.extend(statuses.iter().flat_map(|status| datagrams(status)));
    findings.extend(roots(&answered));
    findings.extend(clocks(&answered));
    if let Some(now) = facts.now {
        findings.extend(facts.identities.iter().flat_map(|files| identity(files, &statuses, now)));
    }
    findings.push(voters(&first.status));
    findings.extend(zones(&first.status));
    findings.push(versions(&statuses));
    findings.extend(descriptors(&statuses));
    findings
}

fn gateways(gateways: &[Asked]) -> Vec<Finding> {
    const CHECK: &str = "gateways";
    let mut findings = Vec::new();
    let names: Vec<&str> = answers(gateways).map(|answer| answer.status.node_name.as_str()).collect();
    if !names.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} answered: {}", names.len(), names.join(", "))));
    }
    for asked in gateways {
        let (url, expected) = (&asked.url, asked.expected.as_deref());
        findings.extend(match (&asked.answer, expected) {
            (Err(error), None) => Some(Finding::problem(
                CHECK,
                format!("{url}: {error}"),
                "start it, or correct --url; check firewalls between here and there",
            )),
            (Err(error), Some(node)) => Some(Finding::notice(
                CHECK,
                format!("{node} could not be asked at {url}: {error}"),
                format!("give the URL at which {node} serves clients with a further --url"),
            )),
            (Ok(answer), Some(node)) if answer.status.node_name != node => Some(Finding::notice(
                CHECK,
                format!("{node} could not be asked: {url} is {}", answer.status.node_name),
                format!("give the URL at which {node} serves clients with a further --url"),
            )),
            (Ok(_), _) => None,
        });
    }
    findings
}

/// Who sees whom as what.
fn views(statuses: &[&Status]) -> Vec<Finding> {
    const CHECK: &str = "membership";
    let mut findings = Vec::new();
    let mut seen: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for status in statuses {
        for node in &status.nodes {
            let by_status = seen.entry(&node.name).or_default();
            by_status.entry(&node.status).or_default().push(&status.node_name);
        }
    }
    for (node, by_status) in &seen {
        let told: usize = by_status.values().map(Vec::len).sum();
        let views: Vec<_> = by_status.iter().map(|(status, by)| format!("{status} by {}", by.join(", "))).collect();
        let missing = statuses.len() - told;
        if by_status.len() > 1 || missing > 0 {
            let unknown = if missing > 0 { format!(", unknown to {missing}") } else { String::new() };
            findings.push(Finding::problem(
                CHECK,
                format!("gateways disagree on {node}: {}{unknown}", views.join("; ")),
                "if it lasts for more than some seconds, some of them cannot reach it: open the mesh port for UDP and TCP \
                 between all nodes, in both directions, and check --mesh-cluster and --mesh-allowed-nodes",
            ));
        } else if let Some(status) = by_status.keys().find(|status| !matches!(**status, "ALIVE" | "LEAVING")) {
            findings.push(Finding::problem(
                CHECK,
                format!("{node} is {status} to every gateway"),
                "look at its log and start it again; a node that is gone for good is forgotten after an hour",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} nodes, the same to every gateway that answered", seen.len())));
    }
    findings
}

fn leadership(statuses: &[&Status]) -> Vec<Finding> {
    const CHECK: &str = "leader";
    let leaders: BTreeSet<_> = statuses.iter().map(|status| status.leader.as_deref()).collect();
    let without: Vec<&str> =
        statuses.iter().filter(|status| !status.quorum).map(|status| status.node_name.as_str()).collect();
    if !without.is_empty() {
        return vec![Finding::problem(
            CHECK,
            format!("no quorum of the voters, as {} see it", without.join(", ")),
            "requests are routed meanwhile; bring back enough of the voters, see /ha/status",
        )];
    }
    match leaders.iter().collect::<Vec<_>>()[..] {
        [Some(leader)] => vec![Finding::ok(CHECK, format!("{leader} leads"))],
        _ => vec![Finding::problem(
            CHECK,
            "gateways name no leader, or different ones",
            "an election takes some seconds: ask again; if it lasts, the voters cannot reach one another",
        )],
    }
}

fn port(port: &Port, status: &Status) -> Finding {
    const CHECK: &str = "planes";
    let Port { node, address, .. } = port;
    let is_quic = status.gateway.transport == "quic";
    let tcp = match &port.tcp {
        Ok(()) => "TCP connects".to_owned(),
        Err(error) => format!("TCP: {error}"),
    };
    let (udp, is_udp_bad) = match &port.udp {
        Udp::Quic => ("QUIC answers".to_owned(), !is_quic),
        Udp::Refused => ("UDP: nobody listens".to_owned(), true),
        Udp::Silent if is_quic => ("QUIC does not answer".to_owned(), true),
        Udp::Silent => ("UDP: not refused (it answers no stranger; membership above tells more)".to_owned(), false),
        Udp::Unsent(error) => (format!("UDP: {error}"), true),
    };
    let found = format!("{node} at {address}: {tcp}; {udp}");
    if port.tcp.is_err() || is_udp_bad {
        let advice = "open the mesh port of this node for both UDP and TCP, and run the doctor where the nodes reach one \
                      another; all nodes need the same --mesh-tls setting";
        return Finding::problem(CHECK, found, advice);
    }
    Finding::ok(CHECK, found)
}

/// Datagrams between two nodes that are lost, by the word of one of them: nothing from here could tell.
fn datagrams(status: &Status) -> Vec<Finding> {
    const CHECK: &str = "planes";
    let lost = status.nodes.iter().filter_map(|node| Some((&node.name, node.datagrams_lost()?)));
    lost.map(|(to, count)| {
        let from = &status.node_name;
        let found = format!("datagrams between {from} and {to} are lost: the last {count} probes came by other ways");
        let advice = "open the mesh port for UDP between them, in both directions: failures are found late without it, \
                      and no leader may be elected";
        Finding::problem(CHECK, found, advice)
    })
    .collect()
}

/// Roots that differ between gateways although none of them changed within the second look.
fn roots(answered: &[&Answer]) -> Vec<Finding> {
    const CHECK: &str = "state";
    let mut findings = Vec::new();
    let names: BTreeSet<&str> = answered.iter().flat_map(|answer| answer.status.roots().into_keys()).collect();
    for store in names {
        let root = |status: &Status| status.roots().get(store).map(|root| (*root).to_owned());
        let first: BTreeSet<_> = answered.iter().map(|answer| root(&answer.status)).collect();
        let is_still = answered
            .iter()
            .all(|answer| answer.again.as_ref().is_some_and(|again| root(again) == root(&answer.status)));
        if first.len() > 1 && is_still {
            findings.push(Finding::problem(
                CHECK,
                format!("gateways hold different {store} and nothing changes it"),
                "replication does not get through: open the mesh port for TCP between all nodes, and look at the metric of refused frames",
            ));
        }
    }
    if findings.is_empty() && answered.len() > 1 {
        findings.push(Finding::ok(CHECK, "equal, or on its way, at every gateway that answered"));
    }
    findings
}

/// Clocks of gateways against one another; how far this machine's is off does not matter.
fn clocks(answered: &[&Answer]) -> Vec<Finding> {
    const CHECK: &str = "clocks";
    let mut offsets = Vec::new();
    for answer in answered {
        let Ok(time) = humantime::parse_rfc3339(&answer.status.gateway.time) else { continue };
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let time_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        // It read its clock somewhere in between.
        offsets.push((time_ms - answer.answered_ms, time_ms - answer.asked_ms, answer.status.node_name.as_str()));
    }
    let (Some(behind), Some(ahead)) = (offsets.iter().min_by_key(|it| it.1), offsets.iter().max_by_key(|it| it.0))
    else {
        return Vec::new();
    };
    if offsets.len() < 2 {
        return Vec::new();
    }
    let skew = ahead.0 - behind.1;
    if skew > SKEW_MAX_MS {
        return vec![Finding::problem(
            CHECK,
            format!("the clock of {} is at least {skew} ms ahead of that of {}", ahead.2, behind.2),
            "synchronise the clocks of all nodes with NTP: of two writes to one key the later wins",
        )];
    }
    vec![Finding::ok(CHECK, format!("within {} ms of one another, as far as can be told from here", skew.max(0)))]
}

fn identity(files: &Files, statuses: &[&Status], now: OffsetDateTime) -> Vec<Finding> {
    const CHECK: &str = "certificates";
    let name = &files.name;
    let checked = match &files.identity {
        Ok(checked) => checked,
        Err(error) => {
            return vec![Finding::problem(CHECK, format!("{name}: {error}"), "issue it again with smg certs issue")];
        }
    };
    let mut findings = Vec::new();
    if let Some(fault) = &checked.fault {
        let advice = "issue it again; until then peers refuse its node, or soon will";
        findings.push(Finding::problem(CHECK, format!("{name}: {fault}"), advice));
    }
    let (certificate, names) = (&checked.certificate, checked.certificate.node_names());
    let named = |status: &Status| {
        let nodes = status.nodes.iter().map(|node| node.name.clone());
        nodes.filter(|node| names.allow(&status.gateway.cluster, node)).collect::<Vec<_>>()
    };
    let nodes: BTreeSet<String> = statuses.iter().flat_map(|status| named(status)).collect();
    let nodes: Vec<String> = nodes.into_iter().collect();
    if nodes.is_empty() {
        let advice =
            "issue one whose SAN is spiffe://CLUSTER/mesh/NODE, or the DNS name NODE, for a node of this cluster";
        findings.push(Finding::problem(CHECK, format!("{name} names no node of this cluster"), advice));
    }
    let (life, left) = (certificate.not_after - certificate.not_before, certificate.not_after - now);
    let until = smg_certs::rfc3339(certificate.not_after);
    if left > Duration::ZERO && left * 10 < life {
        let found = format!("{name} ends {until}, in {}", span(left));
        findings.push(Finding::problem(CHECK, found, "renew it now; files are read again while they are used"));
    } else if left > Duration::ZERO && left * 3 < life {
        let found = format!("{name} ends {until}, in {}", span(left));
        findings.push(Finding::notice(CHECK, found, "two thirds of its life are over: see that it is renewed"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{name} is {}, good until {until}", nodes.join(", "))));
    }
    findings
}

fn span(left: Duration) -> String {
    if left.whole_days() > 0 { format!("{} days", left.whole_days()) } else { format!("{} h", left.whole_hours()) }
}

fn voters(status: &Status) -> Finding {
    const CHECK: &str = "voters";
    let count = status.voters.len();
    let lost = count.saturating_sub(1) / 2;
    let found = format!("{count}: {} failures leave a quorum", if count == 0 { 0 } else { lost });
    match count {
        0 => Finding::notice(CHECK, "not known yet", "the first nodes agree on them within seconds: ask again"),
        1 | 2 => Finding::notice(CHECK, found, "run three, five or seven nodes, so that one can fail"),
        _ if count.is_multiple_of(2) => {
            Finding::notice(CHECK, found, "one voter fewer would tolerate as many: use an odd number in --mesh-voters")
        }
        _ => Finding::ok(CHECK, found),
    }
}

/// Whether the loss of one zone takes the quorum.
fn zones(status: &Status) -> Vec<Finding> {
    const CHECK: &str = "zones";
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for node in status.nodes.iter().filter(|node| status.voters.contains(&node.name)) {
        *zones.entry(&node.zone).or_default() += 1;
    }
    let (total, quorum) = (status.voters.len(), status.voters.len() / 2 + 1);
    if total < 3 {
        return Vec::new();
    }
    if zones.contains_key("") {
        let advice =
            "set --mesh-zone on every node: routing prefers workers of the own zone, probes cross zones sparingly";
        return vec![Finding::notice(CHECK, "some voters have told no zone", advice)];
    }
    let heavy = zones.iter().find(|(_, count)| total - **count < quorum);
    vec![match heavy {
        Some((zone, count)) => Finding::notice(
            CHECK,
            format!("{count} of {total} voters are in zone {zone}: its loss takes the quorum"),
            "spread the voters over three zones",
        ),
        None => Finding::ok(CHECK, format!("{} zones, any of which may be lost", zones.len())),
    }]
}

fn versions(statuses: &[&Status]) -> Finding {
    const CHECK: &str = "versions";
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for status in statuses {
        versions.entry(&status.gateway.version).or_default().push(&status.node_name);
    }
    if let [(version, _)] = versions.iter().collect::<Vec<_>>()[..] {
        return Finding::ok(CHECK, format!("{version} everywhere"));
    }
    let listed: Vec<_> = versions.iter().map(|(version, nodes)| format!("{version} on {}", nodes.join(", "))).collect();
    Finding::notice(
        CHECK,
        listed.join("; "),
        "finish the upgrade: a mixed cluster works, and is meant for that time only",
    )
}

fn descriptors(statuses: &[&Status]) -> Vec<Finding> {
    const CHECK: &str = "descriptors";
    let few = |status: &&&Status| status.gateway.descriptors_max.is_some_and(|max| max < DESCRIPTORS_MIN);
    let mut findings: Vec<_> = statuses
        .iter()
        .filter(few)
        .map(|status| {
            let found = format!("{} may open {}", status.node_name, status.gateway.descriptors_max.unwrap_or_default());
            let advice = "each request in flight takes two: raise LimitNOFILE of the unit, or the container's ulimit";
            Finding::problem(CHECK, found, advice)
        })
        .collect();
    let least = statuses.iter().filter_map(|status| status.gateway.descriptors_max).min();
    if let (true, Some(least)) = (findings.is_empty(), least) {
        findings.push(Finding::ok(CHECK, format!("at least {least} on every gateway that answered")));
    }
    findings
}

#[cfg(test)]
mod tests;
