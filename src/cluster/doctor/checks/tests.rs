//! A table of clusters, and what the doctor says of each.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use smg_certs::{Authority, Certificate, NodeRequest};

use super::*;
use crate::cluster::{
    doctor::{Level, gather::Checked},
    status::tests::status,
};

/// Three gateways that agree; each body may be edited, by number.
fn cluster(edit: impl Fn(usize, &mut Value)) -> Vec<Asked> {
    let one = |index: usize| {
        let status = status(|body| {
            body["node_name"] = json!(format!("n{}", index + 1));
            body["nodes"][2]["zone"] = json!("c");
            edit(index, body);
        });
        // 2024-01-15T10:30:00Z, read within 40 ms.
        let answer = Answer { status, asked_ms: 1_705_314_599_980, answered_ms: 1_705_314_600_020, again: None };
        Asked { url: format!("http://n{}:1", index + 1), expected: None, answer: Ok(answer) }
    };
    (0..3).map(one).collect()
}

fn told(facts: &Facts, level: Level) -> Vec<String> {
    let findings = all(facts);
    assert!(findings.iter().all(|it| (it.level == Level::Ok) == it.advice.is_empty()), "advice where it is needed");
    let of_level = findings.into_iter().filter(|finding| finding.level == level);
    of_level.map(|finding| format!("{}: {}", finding.check, finding.found)).collect()
}

fn facts(edit: impl Fn(usize, &mut Value)) -> Facts {
    Facts { gateways: cluster(edit), ..Facts::default() }
}

#[test]
fn a_healthy_cluster_has_nothing_to_mend() {
    let mut facts = facts(|_, _| {});
    let port = |n: usize| Port { node: format!("n{n}"), address: format!("h:{n}"), tcp: Ok(()), udp: Udp::Quic };
    facts.ports = (1..=3).map(port).collect();
    assert_eq!(told(&facts, Level::Problem), Vec::<String>::new());
    assert_eq!(told(&facts, Level::Notice), Vec::<String>::new());
    let checks: BTreeSet<_> = all(&facts).into_iter().map(|finding| finding.check).collect();
    let expected =
        ["clocks", "descriptors", "gateways", "leader", "membership", "planes", "state", "versions", "voters", "zones"];
    assert_eq!(checks, BTreeSet::from(expected));
}

type Case = (&'static str, fn(usize, &mut Value), Level, &'static str);

fn judged(table: &[Case]) {
    for (case, edit, level, expected) in table {
        let facts = facts(edit);
        assert_eq!(told(&facts, *level), [*expected], "{case}");
        let other = if *level == Level::Problem { Level::Notice } else { Level::Problem };
        assert_eq!(told(&facts, other), Vec::<String>::new(), "{case}");
    }
}

#[test]
fn what_gateways_say_of_one_another_is_judged() {
    judged(&[
        (
            "one sees a node otherwise",
            |n, b| {
                if n == 0 {
                    b["nodes"][2]["status"] = json!("DOWN");
                }
            },
            Level::Problem,
            "membership: gateways disagree on n3: ALIVE by n2, n3; DOWN by n1",
        ),
        (
            "one does not know a node",
            |n, b| {
                if n == 0 {
                    drop(b["nodes"].as_array_mut().unwrap().pop());
                }
            },
            Level::Problem,
            "membership: gateways disagree on n3: ALIVE by n2, n3, unknown to 1",
        ),
        (
            "a node is down",
            |_, b| b["nodes"][2]["status"] = json!("DOWN"),
            Level::Problem,
            "membership: n3 is DOWN to every gateway",
        ),
        (
            "no quorum",
            |n, b| b["quorum"] = json!(n != 1),
            Level::Problem,
            "leader: no quorum of the voters, as n2 see it",
        ),
        (
            "two leaders",
            |n, b| {
                if n == 1 {
                    b["leader"] = json!("n3");
                }
            },
            Level::Problem,
            "leader: gateways name no leader, or different ones",
        ),
        (
            "datagrams that are lost",
            |n, b| b["nodes"][2]["probe_detours"] = json!(if n == 0 { 10 } else { 9 }),
            Level::Problem,
            "planes: datagrams between n1 and n3 are lost: the last 10 probes came by other ways",
        ),
        (
            "a clock ahead",
            |n, b| {
                if n == 1 {
                    b["gateway"]["time"] = json!("2024-01-15T10:30:00.700Z");
                }
            },
            Level::Problem,
            "clocks: the clock of n2 is at least 660 ms ahead of that of n1",
        ),
    ]);
}

#[test]
fn what_a_cluster_is_made_of_is_judged() {
    judged(&[
        ("two voters", |_, b| b["voters"] = json!(["n1", "n2"]), Level::Notice, "voters: 2: 0 failures leave a quorum"),
        (
            "four voters",
            |_, b| b["voters"] = json!(["n1", "n2", "n3", "n4"]),
            Level::Notice,
            "voters: 4: 1 failures leave a quorum",
        ),
        ("no voters", |_, b| b["voters"] = json!([]), Level::Notice, "voters: not known yet"),
        (
            "a heavy zone",
            |_, b| b["nodes"][1]["zone"] = json!("a"),
            Level::Notice,
            "zones: 2 of 3 voters are in zone a: its loss takes the quorum",
        ),
        ("no zones", |_, b| b["nodes"][1]["zone"] = json!(""), Level::Notice, "zones: some voters have told no zone"),
        (
            "mixed versions",
            |n, b| {
                if n == 2 {
                    b["gateway"]["version"] = json!("1.1.0");
                }
            },
            Level::Notice,
            "versions: 1.0.0 on n1, n2; 1.1.0 on n3",
        ),
        (
            "few descriptors",
            |n, b| {
                if n == 2 {
                    b["gateway"]["descriptors_max"] = json!(1024);
                }
            },
            Level::Problem,
            "descriptors: n3 may open 1024",
        ),
    ]);
}

#[test]
fn a_wide_answer_hides_a_small_skew() {
    let mut facts = facts(|n, body| {
        if n == 1 {
            body["gateway"]["time"] = json!("2024-01-15T10:30:00.700Z");
        }
    });
    facts.gateways[1].answer.as_mut().unwrap().answered_ms += 700;
    assert_eq!(told(&facts, Level::Problem), Vec::<String>::new());
}

#[test]
fn gateways_that_do_not_answer() {
    let mut facts = facts(|_, _| {});
    facts.gateways[1].answer = Err("connect: refused".to_owned());
    assert_eq!(told(&facts, Level::Problem), ["gateways: http://n2:1: connect: refused"]);
    facts.gateways[1].expected = Some("n2".to_owned());
    assert_eq!(told(&facts, Level::Notice), ["gateways: n2 could not be asked at http://n2:1: connect: refused"]);
    facts.gateways[2].expected = Some("n4".to_owned());
    assert!(told(&facts, Level::Notice).contains(&"gateways: n4 could not be asked: http://n3:1 is n3".to_owned()));
    for asked in &mut facts.gateways {
        asked.answer = Err("gone".to_owned());
        asked.expected = None;
    }
    assert_eq!(told(&facts, Level::Problem).len(), 3, "and nothing else is said");
}

#[test]
fn ports_are_judged_by_the_transport() {
    let refused = || Err("refused".to_owned());
    for (case, transport, tcp, udp, is_good) in [
        ("quic", "quic", Ok(()), Udp::Quic, true),
        ("quic is silent", "quic", Ok(()), Udp::Silent, false),
        ("udp", "udp", Ok(()), Udp::Silent, true),
        ("udp is closed", "udp", Ok(()), Udp::Refused, false),
        ("quic in a cluster of udp", "udp", Ok(()), Udp::Quic, false),
        ("tcp is closed", "quic", refused(), Udp::Quic, false),
        ("no such name", "udp", refused(), Udp::Unsent("no name".to_owned()), false),
    ] {
        let mut facts = facts(|_, body| body["gateway"]["transport"] = json!(transport));
        facts.ports = vec![Port { node: "n2".to_owned(), address: "h:1".to_owned(), tcp, udp }];
        assert_eq!(told(&facts, Level::Problem).is_empty(), is_good, "{case}");
    }
}

#[test]
fn state_that_differs_is_a_problem_only_when_it_stays() {
    let edit = |n: usize, body: &mut Value| body["stores"]["workers"]["root"] = json!(format!("{n}"));
    for (case, moves, is_good) in [("still", false, false), ("one is moving", true, true)] {
        let mut facts = facts(edit);
        for (n, asked) in facts.gateways.iter_mut().enumerate() {
            let answer = asked.answer.as_mut().unwrap();
            let again = status(|body| edit(if moves { 7 } else { n }, body));
            answer.again = Some(again);
        }
        assert_eq!(told(&facts, Level::Problem).is_empty(), is_good, "{case}");
    }
    assert!(told(&facts(edit), Level::Problem).is_empty(), "without a second look nothing is claimed");
}

#[test]
fn certificates_are_judged_by_name_and_age() {
    let start = OffsetDateTime::from_unix_timestamp(1_705_314_600).unwrap();
    let authority = Authority::create("east", 3650, start).unwrap();
    let issue = |node: &str| {
        let request = NodeRequest {
            cluster: "east".to_owned(),
            node: node.to_owned(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            days: Some(90),
        };
        authority.issue(&request, start).unwrap()
    };
    let day = |days: i64| start + Duration::days(days);
    for (case, node, now, level, expected) in [
        ("fresh", "n2", day(1), Level::Ok, "certificates: files is n2, good until"),
        ("late", "n2", day(70), Level::Notice, "certificates: files ends"),
        ("nearly over", "n2", day(85), Level::Problem, "certificates: files ends"),
        ("of another node", "n9", day(1), Level::Problem, "certificates: files names no node of this cluster"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tls.crt");
        std::fs::write(&path, issue(node).chain_pem).unwrap();
        let certificate: Certificate = smg_certs::read_certificates(&path).unwrap().remove(0);
        let mut facts = facts(|_, _| {});
        facts.now = Some(now);
        facts.identities = vec![Files { name: "files".to_owned(), identity: Ok(Checked { certificate, fault: None }) }];
        let found: Vec<_> = told(&facts, level).into_iter().filter(|it| it.starts_with("certificates")).collect();
        assert_eq!(found.len(), 1, "{case}: {found:?}");
        assert!(found[0].starts_with(expected), "{case}: {found:?}");
    }
    let mut facts = facts(|_, _| {});
    facts.now = Some(start);
    facts.identities = vec![Files { name: "files".to_owned(), identity: Err("no key".to_owned()) }];
    assert_eq!(told(&facts, Level::Problem), ["certificates: files: no key"]);
}

/// Files as they lie on a disk, from reading to the verdict.
#[test]
fn files_of_certificates_are_judged_as_peers_would() {
    let start = OffsetDateTime::from_unix_timestamp(1_705_314_600).unwrap();
    let [own, other] = ["east", "east"].map(|cluster| Authority::create(cluster, 3650, start).unwrap());
    let issue = |node: &str| {
        let (cluster, node) = ("east".to_owned(), node.to_owned());
        let request = NodeRequest { cluster, node, dns_names: Vec::new(), ip_addresses: Vec::new(), days: Some(90) };
        own.issue(&request, start).unwrap()
    };
    let (one, two) = (issue("n2"), issue("n2"));
    let day = |days: i64| start + Duration::days(days);
    for (case, key, authority, now, expected) in [
        ("good", &one, &own, day(1), None),
        ("ended", &one, &own, day(91), Some("expired at 2024-04-14")),
        ("not valid yet", &one, &own, day(-9), Some("is not valid before")),
        ("of another authority", &one, &other, day(1), Some("n2")),
        ("key of another certificate", &two, &own, day(1), Some("tls.key")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let files = smg_certs::IdentityFiles::in_dir(dir.path());
        std::fs::write(&files.certificate, &one.chain_pem).unwrap();
        std::fs::write(&files.key, &key.key_pem).unwrap();
        std::fs::write(&files.authorities, authority.bundle_pem()).unwrap();
        let mut facts = facts(|_, _| {});
        facts.now = Some(now);
        facts.identities = vec![crate::cluster::doctor::gather::identity(dir.path(), &files, now)];
        let problems = told(&facts, Level::Problem);
        assert_eq!(problems.len(), usize::from(expected.is_some()), "{case}: {problems:?}");
        let holds = |part: &str| problems[0].starts_with("certificates: ") && problems[0].contains(part);
        assert!(expected.is_none_or(holds), "{case}: {problems:?}");
    }
}
