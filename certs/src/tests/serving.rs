//! What clients are shown, under change.

use super::*;

#[test]
fn a_pair_is_replaced_whole_and_only_by_what_is_good() {
    let (ca, dir) = (authority(), tempfile::tempdir().unwrap());
    let issue = |count: u32| ca.issue(&NodeRequest { days: Some(count), ..request("n1") }, now()).unwrap();
    let files = PairFiles { certificate: dir.path().join("crt"), key: dir.path().join("key") };
    let write = |chain: &str, key: &str| {
        put(dir.path(), "crt", chain);
        put(dir.path(), "key", key);
    };
    let (first, second) = (issue(5), issue(9));
    write(&first.chain_pem, &second.key_pem);
    assert!(matches!(
        ServerMaterial::open(files.clone(), now()),
        Err(MaterialError::Identity(IdentityError::Mismatch { .. }))
    ));
    write(&first.chain_pem, &first.key_pem);
    for (case, at) in [("expired", now() + days(6)), ("not valid yet", now() - days(1))] {
        let opened = ServerMaterial::open(files.clone(), at);
        assert!(matches!(opened, Err(MaterialError::Identity(IdentityError::Validity(_)))), "{case}: {opened:?}");
    }
    let material = ServerMaterial::open(files, now()).unwrap();
    let until = material.not_after();
    assert!(!material.reload(now()).unwrap(), "nothing is new");
    let half = &second.chain_pem[..second.chain_pem.len() / 2];
    for (case, chain, key, at) in [
        ("half written", half, &*second.key_pem, now()),
        ("another key", &second.chain_pem, &first.key_pem, now()),
        ("no key", &second.chain_pem, "", now()),
        ("expired", &second.chain_pem, &second.key_pem, now() + days(20)),
    ] {
        write(chain, key);
        assert!(material.reload(at).is_err(), "{case}");
        assert_eq!(material.not_after(), until, "{case}: the old stays in use");
    }
    write(&second.chain_pem, &second.key_pem);
    assert!(material.reload(now()).unwrap());
    assert!(material.not_after() > until);
}
