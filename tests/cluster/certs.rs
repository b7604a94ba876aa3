//! `smg certs` as an operator runs it.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use serde_json::Value;
use smg_certs::{Authority, NodeRequest};
use time::{Duration, OffsetDateTime};

use crate::harness::SMG;

/// Exit code, standard output and standard error of `smg certs LINE` in a directory.
fn certs(dir: &Path, line: &str) -> (i32, String, String) {
    let output = Command::new(SMG).arg("certs").args(line.split_whitespace()).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn done(dir: &Path, line: &str) -> String {
    let (code, out, err) = certs(dir, line);
    assert_eq!(code, 0, "{line}: {out}{err}");
    out
}

#[test]
fn one_command_each_makes_identities_that_inspect_approves() {
    let dir = tempfile::tempdir().unwrap();
    done(dir.path(), "ca --out ca --cluster east");
    done(
        dir.path(),
        "issue --ca ca --node n1 --cluster east --out n1 --dns n1.example.org --ip 127.0.0.1,::1 --days 30",
    );
    let text = done(dir.path(), "inspect n1 --node n1 --cluster east");
    for expected in ["node n1 of cluster east", "URI spiffe://east/mesh/n1", "IP ::1", "29 days left", "verifies", "ok"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let report: Value = serde_json::from_str(&done(dir.path(), "inspect n1 --json")).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!(report["chain_verifies"], true);
    assert_eq!(report["key"]["belongs"], true);
    let leaf = &report["certificates"][0];
    assert_eq!(leaf["dns"], serde_json::json!(["n1", "n1.example.org"]));
    assert_eq!(leaf["mesh"][0], serde_json::json!({"cluster": "east", "node": "n1"}));
    assert_eq!((&leaf["days_left"], &leaf["key_type"]), (&29.into(), &"ECDSA P-256".into()));
    done(dir.path(), "inspect ca");
    done(dir.path(), "inspect n1/tls.crt");
}

#[test]
fn keys_are_replaced_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let read = |file: &str| std::fs::read(dir.path().join(file)).unwrap();
    done(dir.path(), "ca --out ca");
    done(dir.path(), "issue --ca ca --node n1 --out n1");
    for (line, file) in [("ca --out ca", "ca/ca.key"), ("issue --ca ca --node n1 --out n1", "n1/tls.key")] {
        let before = read(file);
        let (code, _, err) = certs(dir.path(), line);
        assert_eq!(code, 1, "{line}: {err}");
        assert!(err.contains("--force") && err.contains(file), "{line}: {err}");
        assert_eq!(read(file), before, "{line}");
        done(dir.path(), &format!("{line} --force"));
        assert_ne!(read(file), before, "{line}");
        if file == "ca/ca.key" {
            let (code, out, _) = certs(dir.path(), "inspect n1");
            assert_eq!(code, 0, "what was issued is whole in itself: {out}");
        }
    }
}

#[test]
fn inspect_finds_what_is_wrong_and_says_what_to_change() {
    let dir = tempfile::tempdir().unwrap();
    done(dir.path(), "ca --out ca");
    done(dir.path(), "ca --out other");
    for node in ["n1", "n2", "gone", "key", "trust", "old"] {
        done(dir.path(), &format!("issue --ca ca --node {node} --out {node}"));
    }
    let copy = |from: &str, to: &str| std::fs::copy(dir.path().join(from), dir.path().join(to)).unwrap();
    std::fs::remove_file(dir.path().join("gone/tls.key")).unwrap();
    copy("n1/tls.key", "key/tls.key");
    copy("other/ca.crt", "trust/ca.crt");
    copy("ca/ca.key", "other/ca.key");
    let past = OffsetDateTime::now_utc() - Duration::days(400);
    let authority = Authority::create("smg", 1000, past).unwrap();
    let request = NodeRequest { cluster: "smg".into(), node: "old".into(), ..NodeRequest::default() };
    let issued = authority.issue(&request, past).unwrap();
    let files = [("tls.crt", &*issued.chain_pem), ("tls.key", &issued.key_pem), ("ca.crt", authority.bundle_pem())];
    for (name, text) in files {
        std::fs::write(dir.path().join("old").join(name), text).unwrap();
    }
    for (case, line, code, expected, problems) in [
        ("fine", "inspect n2", 0, "ok", 0),
        ("its name", "inspect n2 --node n2", 0, "ok", 0),
        ("another name", "inspect n2 --node n1", 1, "does not name node n1 of cluster smg", 1),
        ("another cluster", "inspect n2 --node n2 --cluster east", 1, "does not name node n2 of cluster east", 1),
        ("no key", "inspect gone", 1, "gone/tls.key: put the file there, readable to this user", 1),
        ("another key", "inspect key", 1, "key/tls.key does not belong", 1),
        ("another authority", "inspect trust", 1, "put that authority into ca.crt", 1),
        ("expired", "inspect old", 1, "issue a new one", 1),
        ("expired file", "inspect old/tls.crt", 1, "EXPIRED", 1),
        ("authority with another key", "inspect other", 1, "other/ca.key does not belong", 1),
        ("a key alone", "inspect n1/tls.key", 1, "holds no certificate", 1),
        ("nothing there", "inspect nowhere", 1, "cannot read nowhere", 1),
    ] {
        let (found, out, err) = certs(dir.path(), line);
        assert_eq!(found, code, "{case}: {out}{err}");
        assert!(out.contains(expected), "{case}: {out}");
        assert_eq!(out.matches("PROBLEM").count(), problems, "{case}: {out}");
        let (found, out, _) = certs(dir.path(), &format!("{line} --json"));
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((found, &report["ok"]), (code, &Value::Bool(code == 0)), "{case}: {out}");
        assert_eq!(report["problems"].as_array().unwrap().len(), problems, "{case}: {out}");
    }
}

#[test]
fn inspect_warns_of_keys_that_everybody_may_read() {
    let dir = tempfile::tempdir().unwrap();
    done(dir.path(), "ca --out ca");
    done(dir.path(), "issue --ca ca --node n1 --out n1");
    for (mode, warnings) in [(0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)] {
        for (line, key) in [("inspect n1", "n1/tls.key"), ("inspect ca", "ca/ca.key")] {
            std::fs::set_permissions(dir.path().join(key), Permissions::from_mode(mode)).unwrap();
            let (code, out, err) = certs(dir.path(), line);
            assert_eq!((code, out.matches("WARNING").count()), (0, warnings), "{key} {mode:o}: {out}{err}");
            assert!(warnings == 0 || out.contains(&format!("can read {key} (mode {mode:04o})")), "{out}");
            let report: Value = serde_json::from_str(&certs(dir.path(), &format!("{line} --json")).1).unwrap();
            assert_eq!(report["warnings"].as_array().unwrap().len(), warnings, "{key} {mode:o}: {report}");
        }
    }
}

#[test]
fn values_that_cannot_be_used_are_refused_by_flag() {
    let dir = tempfile::tempdir().unwrap();
    done(dir.path(), "ca --out ca --days 30");
    for (case, line, code, named) in [
        ("no subcommand", "", 2, "Usage"),
        ("no directory", "ca", 2, "--out"),
        ("no days", "ca --out x --days 0", 2, "--days"),
        ("too many days for an authority", "ca --out x --days 7301", 2, "--days"),
        ("too many days for a node", "issue --ca ca --node n1 --out x --days 826", 2, "--days"),
        ("days beyond the authority", "issue --ca ca --node n1 --out x --days 40", 1, "outlive the authority"),
        ("bad node", "issue --ca ca --node a/b --out x", 2, "--node"),
        ("bad address", "issue --ca ca --node n1 --out x --ip nope", 2, "--ip"),
        ("bad DNS name", "issue --ca ca --node n1 --out x --dns a..b", 1, "is no DNS name"),
        ("no authority there", "issue --ca nowhere --node n1 --out x", 1, "nowhere/ca.crt"),
        ("a cluster without a node", "inspect ca --cluster east", 2, "--node"),
    ] {
        let (found, out, err) = certs(dir.path(), line);
        assert_eq!(found, code, "{case}: {out}{err}");
        assert!(err.contains(named), "{case}: {err}");
        assert!(!dir.path().join("x").exists(), "{case}: nothing is written");
    }
}
