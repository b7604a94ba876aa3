//! Material under change: what replaces what, and which peers it lets in.

use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};

use super::*;

fn unix(instant: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(instant.unix_timestamp().try_into().unwrap()))
}

#[test]
fn material_is_replaced_whole_and_only_by_what_is_good() {
    let now = now();
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::create("smg", 30, now).unwrap(), Authority::create("smg", 30, now).unwrap());
    let issue = |authority: &Authority, node: &str, days: u32| {
        let request =
            NodeRequest { cluster: "smg".into(), node: node.into(), days: Some(days), ..NodeRequest::default() };
        authority.issue(&request, now).unwrap()
    };
    let files = IdentityFiles::in_dir(dir.path());
    let write = |chain: &str, key: &str, authorities: &str| {
        fs::write(&files.certificate, chain).unwrap();
        fs::write(&files.key, key).unwrap();
        fs::write(&files.authorities, authorities).unwrap();
    };
    let (first, second, other) = (issue(&old, "n1", 5), issue(&old, "n1", 9), issue(&old, "n2", 9));
    let foreign = issue(&new, "n1", 9);
    write(&first.chain_pem, &first.key_pem, old.bundle_pem());
    let material = Material::open(files.clone(), now).unwrap();
    let until = material.not_after();
    let ours = |names: &NodeNames| names.allow("smg", "n1");
    assert!(!material.reload_if(now, &ours).unwrap(), "nothing is new");
    let half = &second.chain_pem[..second.chain_pem.len() / 2];
    let later = now + Duration::days(20);
    for (case, chain, key, authorities, at) in [
        ("half written", half, &*second.key_pem, old.bundle_pem(), now),
        ("another key", &second.chain_pem, &first.key_pem, old.bundle_pem(), now),
        ("another authority", &foreign.chain_pem, &foreign.key_pem, old.bundle_pem(), now),
        ("another node", &other.chain_pem, &other.key_pem, old.bundle_pem(), now),
        ("expired", &second.chain_pem, &second.key_pem, old.bundle_pem(), later),
    ] {
        write(chain, key, authorities);
        assert!(material.reload_if(at, &ours).is_err(), "{case}");
        assert_eq!(material.not_after(), until, "{case}: the old stays in use");
    }
    let both = format!("{}{}", old.bundle_pem(), new.bundle_pem());
    write(&second.chain_pem, &second.key_pem, &both);
    assert!(material.reload_if(now, &ours).unwrap(), "a new leaf and a union of authorities");
    assert!(material.not_after() > until);
    let peer = CertificateDer::from_pem_slice(foreign.chain_pem.as_bytes()).unwrap();
    let checked = material.check_peer(std::slice::from_ref(&peer), unix(now)).unwrap();
    assert!(!material.reload_if(now, &ours).unwrap() && material.holds(&checked, unix(now)), "nothing is new");
    write(&second.chain_pem, &second.key_pem, old.bundle_pem());
    assert!(material.reload_if(now, &ours).unwrap(), "an authority goes");
    assert!(!material.holds(&checked, unix(now)), "what was found before counts no more");
    assert!(material.check_peer(&[peer], unix(now)).is_err(), "and those that it signed with it");
}

#[test]
fn peers_are_checked_against_clock_authorities_and_list() {
    let (ca, other) = (authority(), authority());
    let dir = identity_dir(&ca, "n1");
    let list = list(&["n1", "n2"], &[]);
    let open = |list| Material::open_for(IdentityFiles::in_dir(dir.path()), list, now()).unwrap();
    let (any, listed) = (open(None), open(Some(list)));
    let chain_of = |authority: &Authority, node: &str| {
        let pem = authority.issue(&NodeRequest { days: Some(5), ..request(node) }, now()).unwrap().chain_pem;
        [CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()]
    };
    for (case, chain, later, by_any, by_listed) in [
        ("on the list", chain_of(&ca, "n2"), 1, "", ""),
        ("not on the list", chain_of(&ca, "n3"), 1, "", "ApplicationVerificationFailure"),
        ("expired", chain_of(&ca, "n2"), 6, "Expired", "Expired"),
        ("not valid yet", chain_of(&ca, "n2"), -2, "NotValidYet", "NotValidYet"),
        ("another authority", chain_of(&other, "n2"), 1, "InvalidCertificate", "InvalidCertificate"),
    ] {
        for (material, expected) in [(&any, by_any), (&listed, by_listed)] {
            let outcome = material.check_peer(&chain, unix(now() + days(later)));
            let said = outcome.as_ref().map_or_else(|error| format!("{error:?}"), |_| String::new());
            assert!(outcome.is_ok() == expected.is_empty() && said.contains(expected), "{case}: {said}");
        }
    }
    let (good, at) = (chain_of(&ca, "n2"), |seconds| unix(now() + Duration::seconds(seconds)));
    let checked = any.check_peer(&good, at(60)).unwrap();
    let end = 5 * 24 * 3600;
    for (case, seconds, holds) in [
        ("at once", 60, true),
        ("at its last second", end, true),
        ("ended", end + 1, false),
        ("clock set back", 59, false),
    ] {
        assert_eq!(any.holds(&checked, at(seconds)), holds, "{case}");
    }
    let unlisted = chain_of(&ca, "n3");
    assert!(any.peer_names(&unlisted).unwrap().allow("smg", "n3"));
    assert!(listed.peer_names(&unlisted).unwrap().is_empty());
}

fn list(named: &[&str], files: &[&Path]) -> AllowList {
    AllowList {
        cluster: "smg".into(),
        own: "n1".into(),
        named: named.iter().map(|&name| name.to_owned()).collect(),
        files: files.iter().map(|&file| file.to_owned()).collect(),
    }
}

#[test]
fn the_list_of_nodes_is_read_again_and_a_bad_one_changes_nothing() {
    let ca = authority();
    let dir = identity_dir(&ca, "n1");
    let file = dir.path().join("nodes");
    fs::write(&file, "n1\nn2 # of zone b\n\n").unwrap();
    let files = IdentityFiles::in_dir(dir.path());
    let material = Material::open_for(files.clone(), Some(list(&["n4"], &[&file])), now()).unwrap();
    let pem = |node: &str| ca.issue(&NodeRequest { days: Some(5), ..request(node) }, now()).unwrap().chain_pem;
    let chain_of = |node: &str| [CertificateDer::from_pem_slice(pem(node).as_bytes()).unwrap()];
    let chains = ["n2", "n3", "n4"].map(chain_of);
    let let_in = || chains.each_ref().map(|chain| material.check_peer(chain, unix(now())).is_ok());
    assert_eq!(let_in(), [true, false, true]);
    for (case, text) in
        [("without the reader", "n3"), ("no name", "n1\nn/3"), ("empty", ""), ("too large", &"n1\n".repeat(1024 * 512))]
    {
        fs::write(&file, text).unwrap();
        let error = material.reload_list().unwrap_err();
        assert!(matches!(error, MaterialError::AllowList(_)), "{case}: {error}");
        assert!(error.to_string().starts_with("the list of allowed nodes"), "{case}: {error}");
        assert_eq!(let_in(), [true, false, true], "{case}");
    }
    fs::write(&file, "n1\nn3\n").unwrap();
    fs::write(&files.key, "half").unwrap();
    material.reload_if(now(), &|_| true).unwrap_err();
    let checked = material.check_peer(&chains[0], unix(now())).unwrap();
    assert!(material.reload_list().unwrap(), "another list");
    assert!(!material.holds(&checked, unix(now())), "what the old list let in is to be asked again");
    assert_eq!(let_in(), [false, true, true], "the list does not wait for the key");
    assert!(!material.reload_list().unwrap(), "the same list");
}
