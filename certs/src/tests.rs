//! Authorities and identities over real files: what is written is read, and what is bad is refused by name.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use super::*;

mod material;
mod serving;

/// The instant of all tests: 2030-01-01T00:00:00Z.
fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_893_456_000).unwrap()
}

fn days(count: i64) -> Duration {
    Duration::days(count)
}

fn request(node: &str) -> NodeRequest {
    NodeRequest { cluster: "smg".into(), node: node.into(), ..NodeRequest::default() }
}

fn put(dir: &Path, name: &str, text: impl AsRef<[u8]>) {
    fs::write(dir.join(name), text).unwrap();
}

/// A directory with the identity of a node.
fn identity_dir(authority: &Authority, node: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let issued = authority.issue(&request(node), now()).unwrap();
    put(dir.path(), "tls.crt", &issued.chain_pem);
    put(dir.path(), "tls.key", &issued.key_pem);
    put(dir.path(), "ca.crt", authority.bundle_pem());
    dir
}

fn load(dir: &Path) -> Result<Identity, IdentityError> {
    Identity::load(&IdentityFiles::in_dir(dir))
}

fn authority() -> Authority {
    Authority::create("smg", 1000, now()).unwrap()
}

#[test]
fn an_issued_identity_loads_and_names_its_node_alone() {
    let authority = authority();
    let dir = identity_dir(&authority, "n1");
    let identity = load(dir.path()).unwrap();
    identity.check(now()).unwrap();
    let certificate = identity.certificate();
    assert_eq!(certificate.uris, ["spiffe://smg/mesh/n1"]);
    assert_eq!(certificate.dns_names, ["n1"]);
    assert_eq!(certificate.uses, ["server", "client"]);
    assert_eq!(certificate.key_type, "ECDSA P-256");
    assert_eq!(certificate.not_before, now() - Duration::HOUR);
    assert_eq!(certificate.not_after, now() + days(i64::from(NODE_DAYS_DEFAULT)));
    assert_eq!(certificate.days_left(now()), i64::from(NODE_DAYS_DEFAULT));
    assert_eq!(certificate.days_left(certificate.not_after + Duration::SECOND), -1);
    assert!(!certificate.is_authority);
    assert!(certificate.node_names().allow("smg", "n1"));
    assert!(!certificate.node_names().allow("smg", "n2"));
    assert!(!certificate.node_names().allow("prod", "n1"));
    assert_eq!(identity.chain().len(), 1, "the root is not in the chain");
    assert!(identity.authorities()[0].is_authority);
    assert_eq!(format!("{:?}", identity.key()), "PrivateKey(\"ECDSA P-256\")");
}

#[test]
fn a_name_that_is_no_hosts_stands_in_the_uri_alone() {
    let authority = authority();
    for (case, node, dns) in [
        ("plain", "n1", &["n1"][..]),
        ("with a domain", "smg-0.smg-mesh", &["smg-0.smg-mesh"]),
        ("underscore", "n_1", &["n_1"]),
        ("address", "10.0.0.1", &[]),
        ("empty label", "a..b", &[]),
        ("long label", &"n".repeat(64), &[]),
        ("longest", &"n".repeat(128), &[]),
    ] {
        let identity = load(identity_dir(&authority, node).path()).unwrap();
        identity.check(now()).unwrap();
        assert_eq!(identity.certificate().dns_names, dns, "{case}");
        assert!(identity.certificate().node_names().allow("smg", node), "{case}");
    }
}

#[test]
fn more_names_are_taken_as_they_are() {
    let asked = NodeRequest {
        dns_names: vec!["n1.smg-mesh.default.svc".into(), "*.example.org".into(), "n1".into()],
        ip_addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        ..request("n1")
    };
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tls.crt", authority().issue(&asked, now()).unwrap().chain_pem);
    let [certificate] = read_certificates(&dir.path().join("tls.crt")).unwrap().try_into().unwrap();
    assert_eq!(certificate.dns_names, ["n1", "n1.smg-mesh.default.svc", "*.example.org"]);
    assert_eq!(certificate.ip_addresses, asked.ip_addresses);
}

#[test]
fn requests_beyond_the_rules_are_refused() {
    let authority = authority();
    let with_dns = |name: &str| NodeRequest { dns_names: vec![name.into()], ..request("n1") };
    let with_days = |days| NodeRequest { days: Some(days), ..request("n1") };
    let with_cluster = |cluster: &str| NodeRequest { cluster: cluster.into(), ..request("n1") };
    for (case, request, at, expected) in [
        ("empty node", request(""), now(), "`` is no node name"),
        ("slash in the node", request("a/b"), now(), "`a/b` is no node name"),
        ("long node", request(&"n".repeat(129)), now(), "is no node name"),
        ("empty cluster", with_cluster(""), now(), "is no cluster label"),
        ("long cluster", with_cluster(&"c".repeat(65)), now(), "is no cluster label"),
        ("blank in the cluster", with_cluster("a b"), now(), "`a b` is no cluster label"),
        ("dns with a blank", with_dns("a b"), now(), "`a b` is no DNS name"),
        ("dns that is an address", with_dns("10.0.0.1"), now(), "`10.0.0.1` is no DNS name"),
        ("inner wildcard", with_dns("a.*.b"), now(), "is no DNS name"),
        ("no days", with_days(0), now(), "0 days are out of range: use 1 to 825"),
        ("too many days", with_days(826), now(), "826 days are out of range"),
        ("beyond the authority", with_days(200), now() + days(801), "200 days outlive the authority"),
        ("authority expired", request("n1"), now() + days(1001), "expired at 2032-09-27T00:00:00Z"),
        ("authority of the future", request("n1"), now() - days(1), "is not valid before"),
    ] {
        let error = authority.issue(&request, at).unwrap_err().to_string();
        assert!(error.contains(expected), "{case}: {error}");
    }
    for (days, accepted) in [(0, false), (1, true), (AUTHORITY_DAYS_MAX, true), (AUTHORITY_DAYS_MAX + 1, false)] {
        assert_eq!(Authority::create("smg", days, now()).is_ok(), accepted, "{days}");
    }
}

#[test]
fn no_certificate_outlives_its_authority() {
    let authority = authority();
    let end = authority.certificate().not_after;
    for (case, asked, at, expected) in [
        ("longest", Some(NODE_DAYS_MAX), now(), now() + days(825)),
        ("default near the end", None, end - days(3), end),
        ("as long as the authority, a moment later", Some(30), end - days(30) + Duration::MINUTE, end),
    ] {
        let asked = NodeRequest { days: asked, ..request("n1") };
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "tls.crt", authority.issue(&asked, at).unwrap().chain_pem);
        assert_eq!(read_certificates(&dir.path().join("tls.crt")).unwrap()[0].not_after, expected, "{case}");
    }
}

#[test]
fn an_authority_is_found_by_its_key_among_others() {
    let (old, new) = (authority(), authority());
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "ca.crt", format!("{}{}", old.bundle_pem(), new.bundle_pem()));
    put(dir.path(), "ca.key", new.key_pem());
    let loaded = Authority::load(dir.path()).unwrap();
    assert_eq!(loaded.certificate(), new.certificate());
    // Whoever trusts the union accepts certificates of both.
    load(identity_dir(&loaded, "n1").path()).unwrap().check(now()).unwrap();
    let of_old = identity_dir(&old, "n2");
    put(of_old.path(), "ca.crt", loaded.bundle_pem());
    load(of_old.path()).unwrap().check(now()).unwrap();

    put(dir.path(), "ca.key", authority().key_pem());
    let error = Authority::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("belongs to no certificate in"), "{error}");
    let leaf = identity_dir(&old, "n1");
    fs::rename(leaf.path().join("tls.key"), leaf.path().join("ca.key")).unwrap();
    fs::rename(leaf.path().join("tls.crt"), leaf.path().join("ca.crt")).unwrap();
    let error = Authority::load(leaf.path()).unwrap().issue(&request("n2"), now()).unwrap_err().to_string();
    assert!(error.contains("is no certificate authority"), "{error}");
}

#[test]
fn bad_files_are_named_with_what_to_change() {
    let authority = authority();
    let pair = authority.issue(&request("n1"), now()).unwrap();
    let other = authority.issue(&request("n1"), now()).unwrap();
    let (chain, key) = (pair.chain_pem.as_str(), pair.key_pem.as_str());
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let label = |text: &str, label: &str| text.replace("PRIVATE KEY", label);
    for (case, file, text, expected) in [
        ("empty", "tls.crt", String::new(), "tls.crt holds no certificate"),
        ("no PEM", "tls.crt", "hello".into(), "tls.crt holds no certificate"),
        ("a key instead", "tls.crt", key.into(), "tls.crt holds no certificate"),
        ("half written", "tls.crt", half(chain), "tls.crt is damaged or half written"),
        ("half of the second", "tls.crt", format!("{chain}{}", half(chain)), "tls.crt is damaged or half written"),
        ("no base64", "tls.crt", chain.replacen("MII", "M!!", 1), "tls.crt is damaged or half written"),
        ("no DER", "tls.crt", format!("{chain}{}", label(key, "CERTIFICATE")), "certificate 2 in"),
        ("too large", "tls.crt", "x".repeat(1024 * 1024 + 1), "tls.crt has more than 1048576 bytes"),
        ("empty", "tls.key", String::new(), "tls.key holds no private key"),
        ("a certificate instead", "tls.key", chain.into(), "tls.key holds no private key"),
        ("half written", "tls.key", half(key), "tls.key is damaged or half written"),
        ("two", "tls.key", format!("{key}{}", other.key_pem), "tls.key holds several private keys"),
        ("encrypted", "tls.key", label(key, "ENCRYPTED PRIVATE KEY"), "openssl pkey -in"),
        ("encrypted, old form", "tls.key", label(key, "RSA PRIVATE KEY\nProc-Type: 4,ENCRYPTED"), "is encrypted"),
        (
            "no DER",
            "tls.key",
            label(chain, "").replace("CERTIFICATE", "PRIVATE KEY"),
            "malformed or of an unknown kind",
        ),
        ("of another pair", "tls.key", other.key_pem.clone(), "does not belong to the first certificate in"),
        ("empty", "ca.crt", String::new(), "ca.crt holds no certificate"),
        ("half written", "ca.crt", half(authority.bundle_pem()), "ca.crt is damaged or half written"),
    ] {
        let dir = identity_dir(&authority, "n1");
        put(dir.path(), "tls.crt", chain);
        put(dir.path(), "tls.key", key);
        load(dir.path()).unwrap();
        put(dir.path(), file, text);
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(file), "{file} {case}: {error}");
    }
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        let dir = identity_dir(&authority, "n1");
        fs::remove_file(dir.path().join(file)).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{file}: put the file there, readable")), "missing {file}: {error}");
    }
}

#[test]
fn a_certificate_is_believed_only_in_its_time() {
    let dir = identity_dir(&authority(), "n1");
    let identity = load(dir.path()).unwrap();
    let (first, last) = (identity.certificate().not_before, identity.certificate().not_after);
    for (case, at, expected) in [
        ("before", first - Duration::SECOND, Some("is not valid before 2029-12-31T23:00:00Z")),
        ("first second", first, None),
        ("last second", last, None),
        ("after", last + Duration::SECOND, Some("expired at 2031-01-01T00:00:00Z")),
    ] {
        let outcome = identity.check(at).map_err(|error| error.to_string());
        let is_expected = match (&outcome, expected) {
            (Ok(()), None) => true,
            (Err(error), Some(expected)) => error.contains(expected),
            _ => false,
        };
        assert!(is_expected, "{case}: {outcome:?}");
    }
}

/// Certificates that `Authority` would not make.
struct Odd {
    params: CertificateParams,
    key: KeyPair,
}

impl Odd {
    fn new(name: &str, is_ca: IsCa, uses: &[ExtendedKeyUsagePurpose], ends: OffsetDateTime) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = now() - days(1);
        params.not_after = ends;
        params.is_ca = is_ca;
        params.extended_key_usages = uses.to_vec();
        Self { params, key: KeyPair::generate().unwrap() }
    }

    fn root() -> Self {
        Self::new("root", IsCa::Ca(BasicConstraints::Unconstrained), &[], now() + days(100))
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn pem(&self, by: &Self) -> String {
        self.params.signed_by(&self.key, &by.issuer()).unwrap().pem()
    }
}

#[test]
fn only_an_authority_makes_a_chain() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let ca = || IsCa::Ca(BasicConstraints::Unconstrained);
    let (root, other, far) = (Odd::root(), Odd::root(), now() + days(50));
    let middle = Odd::new("middle", ca(), &[], far);
    let expired = Odd::new("expired", ca(), &[], now() - Duration::HOUR);
    let false_ca = Odd::new("false", IsCa::ExplicitNoCa, &[], far);
    let leaf = |uses: &[_]| Odd::new("n1", IsCa::NoCa, uses, far);
    let both = leaf(&[ServerAuth, ClientAuth]);
    let [server, client, none] = [leaf(&[ServerAuth]), leaf(&[ClientAuth]), leaf(&[])];
    for (case, certificate, chain, roots, expected) in [
        ("signed by the root", &both, both.pem(&root), root.pem(&root), ""),
        ("no usage at all", &none, none.pem(&root), root.pem(&root), ""),
        ("intermediate", &both, both.pem(&middle) + &middle.pem(&root), root.pem(&root), ""),
        ("intermediate missing", &both, both.pem(&middle), root.pem(&root), "whose issuer is `CN=middle`"),
        ("other root of one name", &both, both.pem(&other), root.pem(&root), "no trusted authority signed"),
        ("two roots of one name", &both, both.pem(&other), root.pem(&root) + &other.pem(&other), ""),
        ("server only", &server, server.pem(&root), root.pem(&root), "may not be used as a TLS client"),
        ("client only", &client, client.pem(&root), root.pem(&root), "may not be used as a TLS server"),
        ("expired intermediate", &both, both.pem(&expired) + &expired.pem(&root), root.pem(&root), "is refused"),
        ("a node signs", &both, both.pem(&false_ca) + &false_ca.pem(&root), root.pem(&root), "is refused"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "tls.crt", chain);
        put(dir.path(), "tls.key", certificate.key.serialize_pem());
        put(dir.path(), "ca.crt", roots);
        let outcome = load(dir.path()).unwrap().check(now());
        let text = outcome.as_ref().map_or_else(ToString::to_string, |()| String::new());
        assert!(outcome.is_ok() == expected.is_empty() && text.contains(expected), "{case}: {text}");
    }
    assert_eq!(check_chain(&[], &[], now()), Err(ChainError::Empty));
}

#[test]
fn an_intermediate_issues_with_itself_in_the_chain() {
    let (root, middle) =
        (Odd::root(), Odd::new("middle", IsCa::Ca(BasicConstraints::Constrained(0)), &[], now() + days(50)));
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "ca.crt", middle.pem(&root) + &root.pem(&root));
    put(dir.path(), "ca.key", middle.key.serialize_pem());
    let node = identity_dir(&Authority::load(dir.path()).unwrap(), "n1");
    put(node.path(), "ca.crt", root.pem(&root));
    let identity = load(node.path()).unwrap();
    assert_eq!(identity.chain().len(), 2);
    identity.check(now()).unwrap();
}

#[test]
fn an_authority_that_may_not_sign_is_refused() {
    let mut crl_only = Odd::root();
    crl_only.params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "ca.crt", crl_only.params.self_signed(&crl_only.key).unwrap().pem());
    put(dir.path(), "ca.key", crl_only.key.serialize_pem());
    let outcome = Authority::load(dir.path()).unwrap().issue(&request("n1"), now());
    assert!(matches!(outcome, Err(IssueError::NotAuthority(_))), "{outcome:?}");
}

#[test]
fn files_are_written_whole_private_and_never_over_others() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/b");
    let files = |key| {
        [
            NewFile { name: "tls.key", text: key, is_secret: true },
            NewFile { name: "tls.crt", text: "certificate", is_secret: false },
        ]
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let held = || fs::read_to_string(dir.join("tls.key")).unwrap();
    write_files(&dir, &files("one"), false).unwrap();
    for (path, expected) in [("a", 0o700), ("a/b", 0o700), ("a/b/tls.key", 0o600), ("a/b/tls.crt", 0o644)] {
        assert_eq!(mode(&parent.path().join(path)), expected, "{path}");
    }
    write_files(&dir, &files("one"), false).expect("the same bytes are no conflict");
    fs::remove_file(dir.join("tls.crt")).unwrap();
    let refused = write_files(&dir, &files("two"), false);
    assert!(matches!(&refused, Err(WriteError::Exists(path)) if path.ends_with("tls.key")), "{refused:?}");
    assert_eq!(held(), "one");
    assert!(!dir.join("tls.crt").exists(), "a refusal writes nothing");
    // A link to a key that is elsewhere is replaced, never written through.
    put(parent.path(), "elsewhere", "three");
    fs::remove_file(dir.join("tls.key")).unwrap();
    std::os::unix::fs::symlink(parent.path().join("elsewhere"), dir.join("tls.key")).unwrap();
    assert!(write_files(&dir, &files("two"), false).is_err());
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
    write_files(&dir, &files("two"), true).unwrap();
    assert_eq!(held(), "two");
    assert_eq!(fs::read_to_string(parent.path().join("elsewhere")).unwrap(), "three");
    assert_eq!((mode(&dir), mode(&dir.join("tls.key"))), (0o750, 0o600));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no temporary file stays");
    let refused = write_files(&parent.path().join("elsewhere"), &files("two"), true);
    assert!(matches!(refused, Err(WriteError::Io { .. })), "{refused:?}");
}

fn openssl(dir: &Path, line: &str) -> Output {
    let output = Command::new("openssl").args(line.split_whitespace()).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn has_openssl() -> bool {
    let is_there = Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success());
    if !is_there {
        eprintln!("SKIPPED: openssl is not installed");
    }
    is_there
}

#[test]
fn openssl_believes_what_was_issued() {
    if !has_openssl() {
        return;
    }
    let dir = identity_dir(&authority(), "n1");
    let at = now().unix_timestamp();
    for purpose in ["sslserver", "sslclient"] {
        openssl(dir.path(), &format!("verify -x509_strict -attime {at} -purpose {purpose} -CAfile ca.crt tls.crt"));
    }
    let of_key = openssl(dir.path(), "pkey -in tls.key -pubout").stdout;
    let of_certificate = openssl(dir.path(), "x509 -in tls.crt -noout -pubkey").stdout;
    assert_eq!(of_key, of_certificate);
}

#[test]
fn identities_of_openssl_load_in_every_form_of_key() {
    if !has_openssl() {
        return;
    }
    for (case, make, label, kind) in [
        ("PKCS#8 EC", "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out tls.key", "PRIVATE", "ECDSA P-384"),
        ("SEC1", "ecparam -name prime256v1 -genkey -out tls.key", "EC PRIVATE", "ECDSA P-256"),
        ("PKCS#8 RSA", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out tls.key", "PRIVATE", "RSA 2048"),
        ("PKCS#1", "genrsa -traditional -out tls.key 2048", "RSA PRIVATE", "RSA 2048"),
        ("Ed25519", "genpkey -algorithm ED25519 -out tls.key", "PRIVATE", "Ed25519"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        openssl(dir.path(), "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 9 -subj /CN=pki");
        openssl(dir.path(), make);
        openssl(dir.path(), "req -new -key tls.key -out tls.csr -subj /CN=n1");
        put(
            dir.path(),
            "extensions",
            "subjectAltName=DNS:n1.smg-mesh.default.svc\nextendedKeyUsage=serverAuth,clientAuth",
        );
        openssl(
            dir.path(),
            "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 5 -extfile extensions -out tls.crt",
        );
        let key = fs::read_to_string(dir.path().join("tls.key")).unwrap();
        assert!(key.contains(&format!("-----BEGIN {label} KEY-----")), "{case}: {key}");
        let identity = load(dir.path()).unwrap();
        let at = identity.certificate().not_before + days(1);
        identity.check(at).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(identity.key().key_type(), kind, "{case}");
        assert_eq!(identity.certificate().key_type, kind, "{case}");
        assert!(identity.certificate().node_names().allow("any", "n1"), "{case}");
        // That PKI's own authority can issue too.
        let issued = Authority::load(dir.path()).unwrap().issue(&request("n2"), at).unwrap();
        put(dir.path(), "tls.crt", issued.chain_pem);
        put(dir.path(), "tls.key", issued.key_pem);
        load(dir.path()).unwrap().check(at).unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}
