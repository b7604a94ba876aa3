//! What `smg certs inspect` prints: text for people, JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};
use smg_certs::{Certificate, MeshName, rfc3339};
use time::OffsetDateTime;

use super::inspect::{Found, Report};

/// One JSON object with a newline. Instants are RFC 3339; `days_left` is negative after the end; `cluster` is null
/// where the certificate leaves it open; `belongs` and `chain_verifies` are null where there is nothing to compare.
pub(super) fn json(report: &Report, now: OffsetDateTime) -> String {
    let certificates: Vec<Value> = report.found.iter().map(|found| certificate_json(found, now)).collect();
    let key = report
        .key
        .as_ref()
        .map(|key| json!({ "file": key.file.display().to_string(), "key_type": key.key_type, "belongs": key.belongs }));
    let object = json!({
        "path": report.path.display().to_string(),
        "ok": report.problems.is_empty(),
        "problems": report.problems,
        "warnings": report.warnings,
        "certificates": certificates,
        "key": key,
        "chain_verifies": report.is_chain_good,
    });
    format!("{object:#}\n")
}

fn certificate_json(found: &Found, now: OffsetDateTime) -> Value {
    let certificate = &found.certificate;
    let mesh: Vec<Value> = mesh_names(certificate)
        .into_iter()
        .map(|MeshName { cluster, node }| json!({ "cluster": cluster, "node": node }))
        .collect();
    json!({
        "file": found.file.display().to_string(),
        "number": found.number,
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "serial": certificate.serial,
        "dns": certificate.dns_names,
        "uris": certificate.uris,
        "ips": certificate.ip_addresses,
        "mesh": mesh,
        "not_before": rfc3339(certificate.not_before),
        "not_after": rfc3339(certificate.not_after),
        "days_left": certificate.days_left(now),
        "key_type": certificate.key_type,
        "is_authority": certificate.is_authority,
        "uses": certificate.uses,
    })
}

/// A paragraph for each certificate, then what they are together.
pub(super) fn text(report: &Report, now: OffsetDateTime) -> String {
    let mut text = String::new();
    for found in &report.found {
        paragraph(&mut text, found, now);
    }
    if let Some(key) = &report.key {
        let belongs = match key.belongs {
            Some(true) => ", belongs to the certificate",
            Some(false) => ", does NOT belong to the certificate",
            None => "",
        };
        line(&mut text, "key", &format!("{} in {}{belongs}", key.key_type, key.file.display()));
    }
    match report.is_chain_good {
        Some(true) => line(&mut text, "chain", "verifies against ca.crt, as server and as client"),
        Some(false) => line(&mut text, "chain", "does NOT verify against ca.crt"),
        None => {}
    }
    for warning in &report.warnings {
        line(&mut text, "WARNING", warning);
    }
    for problem in &report.problems {
        line(&mut text, "PROBLEM", problem);
    }
    if report.problems.is_empty() {
        text.push_str("ok\n");
    }
    text
}

fn paragraph(text: &mut String, found: &Found, now: OffsetDateTime) {
    let certificate = &found.certificate;
    let days = match certificate.days_left(now) {
        days if days < 0 => "EXPIRED".to_owned(),
        days => format!("{days} days left"),
    };
    let dates = format!("{} to {}, {days}", rfc3339(certificate.not_before), rfc3339(certificate.not_after));
    let uris = certificate.uris.iter().map(|uri| format!("URI {uri}"));
    let dns = certificate.dns_names.iter().map(|name| format!("DNS {name}"));
    let names: Vec<String> =
        uris.chain(dns).chain(certificate.ip_addresses.iter().map(|ip| format!("IP {ip}"))).collect();
    let mesh: Vec<String> = mesh_names(certificate).iter().map(mesh_text).collect();
    let _ = writeln!(text, "{}, certificate {}", plain(&found.file.display().to_string()), found.number);
    line(text, "subject", &certificate.subject);
    line(text, "issuer", &certificate.issuer);
    line(text, "names", &names.join(", "));
    line(text, "mesh", &mesh.join(", "));
    line(text, "valid", &dates);
    line(text, "key", &certificate.key_type);
    line(
        text,
        "use",
        &if certificate.is_authority { "signs certificates".into() } else { certificate.uses.join(", ") },
    );
    text.push('\n');
}

fn mesh_text(name: &MeshName) -> String {
    let cluster = name.cluster.as_ref().map_or("any cluster".to_owned(), |cluster| format!("cluster {cluster}"));
    format!("node {} of {cluster}", name.node)
}

/// The nodes that a certificate names; an authority names none, it signs.
fn mesh_names(certificate: &Certificate) -> Vec<MeshName> {
    if certificate.is_authority { Vec::new() } else { certificate.node_names().listed() }
}

/// A line of a title and a value; nothing for an empty value.
fn line(text: &mut String, title: &str, value: &str) {
    if !value.is_empty() {
        let _ = writeln!(text, "  {title:<8} {}", plain(value));
    }
}

/// Names in a certificate are what its maker liked: none of it may steer the terminal.
fn plain(value: &str) -> String {
    value.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
