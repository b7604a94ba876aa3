//! What becomes of files that change, for each role that has any: what is used, counted and said.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::Mutex,
};

use smg_certs::{
    AllowList, Authority, ClientFiles, ClientMaterial, IdentityFiles, Issued, Material, NodeNames, NodeRequest,
    PairFiles, ServerMaterial,
};
use time::Duration as Days;
use tracing_subscriber::fmt::MakeWriter;

use super::*;

/// What was logged and not looked at yet.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Said {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn subscribe(said: &Said) -> tracing::subscriber::DefaultGuard {
    let plain = tracing_subscriber::fmt().with_ansi(false).with_writer(said.clone());
    tracing::subscriber::set_default(plain.finish())
}

/// An authority as old as the certificates of the table need it, and files that it signed.
struct Stage {
    authority: Authority,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let then = OffsetDateTime::now_utc() - Days::days(100);
        Self { authority: Authority::create("smg", 1000, then).unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    /// For `days` from a day that may be past or to come.
    fn issue(&self, node: &str, from_days: i64, days: u32) -> Issued {
        let request =
            NodeRequest { cluster: "smg".into(), node: node.into(), days: Some(days), ..NodeRequest::default() };
        self.authority.issue(&request, OffsetDateTime::now_utc() + Days::days(from_days)).unwrap()
    }

    fn files(&self) -> IdentityFiles {
        IdentityFiles::in_dir(self.dir.path())
    }

    fn write(&self, chain: &str, key: &str, authorities: &str) {
        let files = self.files();
        for (path, text) in [(files.certificate, chain), (files.key, key), (files.authorities, authorities)] {
            let _ = fs::remove_dir(&path);
            fs::write(path, text).unwrap();
        }
    }

    fn pair(&self) -> PairFiles {
        PairFiles { certificate: self.files().certificate, key: self.files().key }
    }

    /// Begins to keep the material of a role fresh, as the program does it.
    fn keep(&self, role: &'static str, metrics: &Arc<Metrics>) -> tokio::task::JoinHandle<()> {
        let (now, metrics) = (OffsetDateTime::now_utc(), metrics.clone());
        let read = |is_new, not_after| Reading { is_new, not_after };
        match role {
            "mesh" => {
                let material = Material::open(self.files(), now).unwrap();
                tokio::spawn(keep_fresh(role, Files::Certificates, metrics, move |now| {
                    let is_ours = |names: &NodeNames| names.allow("smg", "n1");
                    Some(material.reload_if(now, &is_ours).map(|is_new| read(is_new, Some(material.not_after()))))
                }))
            }
            "server" => {
                let material = ServerMaterial::open(self.pair(), now).unwrap();
                tokio::spawn(keep_fresh(role, Files::Certificates, metrics, move |now| {
                    Some(material.reload(now).map(|is_new| read(is_new, Some(material.not_after()))))
                }))
            }
            _ => {
                let files = ClientFiles { authorities: Some(self.files().authorities), pair: Some(self.pair()) };
                let material = ClientMaterial::open(files, &[], now).unwrap();
                tokio::spawn(keep_fresh(role, Files::Certificates, metrics, move |now| {
                    Some(material.reload(now).map(|is_new| read(is_new, material.not_after())))
                }))
            }
        }
    }
}

/// Lets the files be read once more.
async fn once_more() {
    tokio::time::sleep(RELOAD_INTERVAL).await;
}

/// Failures counted for a role, and the end of the certificate that it uses.
fn shown(metrics: &Metrics, role: &str) -> (i64, i64) {
    let text = metrics.encode();
    let value = |name: &str| {
        let series = format!("{name}{{role=\"{role}\"}} ");
        let found = text.lines().find_map(|line| line.split_once(&series)?.1.parse::<f64>().ok());
        found.unwrap() as i64
    };
    (value("tls_reload_failures_total"), value("tls_cert_expiry_timestamp_seconds"))
}

fn until(pem: &str, dir: &Path) -> i64 {
    let file = dir.join("looked-at");
    fs::write(&file, pem).unwrap();
    smg_certs::read_certificates(&file).unwrap()[0].not_after.unix_timestamp()
}

/// Files that a role must not use.
struct Bad {
    case: &'static str,
    chain: String,
    key: String,
    authorities: String,
    /// What the log says of them.
    message: &'static str,
}

/// Everything that a role must not use, as variations of a good pair after `first`.
fn bad(stage: &Stage, role: &str, first: &Issued) -> Vec<Bad> {
    let (second, other) = (stage.issue("n1", 0, 9), stage.issue("n2", 0, 9));
    let (past, to_come) = (stage.issue("n1", -30, 5), stage.issue("n1", 30, 5));
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let ca = stage.authority.bundle_pem();
    let mut all: Vec<Bad> = [
        ("half a certificate", &*half(&second.chain_pem), &*second.key_pem, ca, "half written"),
        ("half a key", &second.chain_pem, &half(&second.key_pem), ca, "half written"),
        ("the key of before", &second.chain_pem, &first.key_pem, ca, "does not belong"),
        ("expired", &past.chain_pem, &past.key_pem, ca, "expired at"),
        ("not yet valid", &to_come.chain_pem, &to_come.key_pem, ca, "not valid before"),
        ("another node", &other.chain_pem, &other.key_pem, ca, "names another node"),
        ("no certificate", "", &second.key_pem, ca, "holds no certificate"),
        ("no key", &second.chain_pem, "", ca, "holds no private key"),
        ("no authority", &second.chain_pem, &second.key_pem, "", "holds no certificate"),
        (UNREADABLE, "", &second.key_pem, ca, "cannot read"),
    ]
    .map(|(case, chain, key, authorities, message)| Bad {
        case,
        chain: chain.into(),
        key: key.into(),
        authorities: authorities.into(),
        message,
    })
    .into();
    // A listener for clients does not look at who signed its certificate, and names are a matter of the mesh.
    all.retain(|bad| match bad.case {
        "no authority" => role != "server",
        "another node" => role == "mesh",
        _ => true,
    });
    all
}

/// The case in which the certificate cannot be read, whoever tries: root may read files of any mode.
const UNREADABLE: &str = "unreadable";

#[tokio::test(start_paused = true)]
async fn bad_files_leave_the_old_in_use_and_good_ones_are_taken_by_every_role() {
    let said = Said::default();
    let _guard = subscribe(&said);
    for role in ["mesh", "server", "worker"] {
        let (stage, metrics) = (Stage::new(), Metrics::new());
        let ca = stage.authority.bundle_pem();
        let (first, next) = (stage.issue("n1", 0, 5), stage.issue("n1", 0, 9));
        stage.write(&first.chain_pem, &first.key_pem, ca);
        let task = stage.keep(role, &metrics);
        // Half an interval after the reader, so that each look comes between two readings.
        tokio::time::sleep(RELOAD_INTERVAL / 2).await;
        once_more().await;
        let old_until = until(&first.chain_pem, stage.dir.path());
        assert_eq!((shown(&metrics, role), said.take()), ((0, old_until), String::new()), "{role}: nothing is new");
        let mut failures = 0;
        for Bad { case, chain, key, authorities, message } in bad(&stage, role, &first) {
            stage.write(&chain, &key, &authorities);
            if case == UNREADABLE {
                fs::remove_file(stage.files().certificate).unwrap();
                fs::create_dir(stage.files().certificate).unwrap();
            }
            once_more().await;
            failures += 1;
            assert_eq!(shown(&metrics, role), (failures, old_until), "{role}: {case}: counted, and the old in use");
            let log = said.take();
            assert!(log.contains("certificate files not replaced") && log.contains(message), "{role}: {case}: {log}");
            once_more().await;
            failures += 1;
            let again = (shown(&metrics, role), said.take());
            assert_eq!(again, ((failures, old_until), String::new()), "{role}: {case}: said once a minute");
            stage.write(&first.chain_pem, &first.key_pem, ca);
            once_more().await;
            assert_eq!(said.take(), "", "{role}: {case}: what is in use anyway is no news");
        }
        stage.write(&next.chain_pem, &next.key_pem, ca);
        once_more().await;
        let new_until = until(&next.chain_pem, stage.dir.path());
        assert!(new_until > old_until);
        assert_eq!(shown(&metrics, role), (failures, new_until), "{role}: good ones are used after one reading");
        let log = said.take();
        assert!(log.contains("certificate files replaced") && log.contains(&format!("role=\"{role}\"")), "{log}");
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_of_nodes_that_changes_is_told_as_such() {
    let said = Said::default();
    let _guard = subscribe(&said);
    let (stage, metrics) = (Stage::new(), Metrics::new());
    let issued = stage.issue("n1", 0, 5);
    stage.write(&issued.chain_pem, &issued.key_pem, stage.authority.bundle_pem());
    let file = stage.dir.path().join("nodes");
    fs::write(&file, "n1\nn2\n").unwrap();
    let list = AllowList { cluster: "smg".into(), own: "n1".into(), named: [].into(), files: vec![file.clone()] };
    let material = Material::open_for(stage.files(), Some(list), OffsetDateTime::now_utc()).unwrap();
    let task = tokio::spawn(keep_fresh("mesh", Files::Nodes, metrics.clone(), move |_| {
        Some(material.reload_list().map(|is_new| Reading { is_new, not_after: Some(material.not_after()) }))
    }));
    tokio::time::sleep(RELOAD_INTERVAL / 2).await;
    for (case, text, failures, message) in [
        ("the same", Some("n1\nn2\n"), 0, ""),
        ("another", Some("n1\n"), 0, "INFO smg::rotation: list of allowed nodes replaced role=\"mesh\""),
        ("no name", Some("n1\nn/2\n"), 1, "`n/2` in"),
        ("good again", Some("n1\nn3\n"), 1, "list of allowed nodes replaced"),
        ("gone", None, 2, "cannot read"),
    ] {
        match text {
            Some(text) => fs::write(&file, text).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        once_more().await;
        assert_eq!(shown(&metrics, "mesh").0, failures, "{case}");
        let log = said.take();
        assert!(log.contains(message) && log.is_empty() == message.is_empty(), "{case}: {log}");
        assert!(!log.contains("certificate"), "{case}: {log}");
        let name = file.display().to_string();
        assert!(log.matches(&name).count() <= 1, "{case}: told once: {log}");
    }
    task.abort();
}
