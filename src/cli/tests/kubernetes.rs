//! Flags that search the Kubernetes API.

use super::{accepted, launch};
use crate::config::kubernetes::{PodPort, WorkerPods};

const FOUND: [&str; 3] = ["--service-discovery", "--selector", "app=w,tier=gpu"];

#[test]
fn a_search_for_workers_is_read_and_has_the_defaults_of_the_manual() {
    let kubernetes = accepted(&FOUND).kubernetes;
    let WorkerPods { search, port, scheme } = kubernetes.workers.unwrap();
    assert_eq!((search.selector().as_str(), search.namespace), ("app=w,tier=gpu", None));
    assert_eq!((port, scheme, kubernetes.relist.as_secs()), (PodPort::Number(80), "http", 60));
    let more = [
        "--service-discovery-port=api",
        "--service-discovery-scheme=https",
        "--service-discovery-namespace=ns",
        "--service-discovery-interval-secs=5",
    ];
    let kubernetes = accepted(&[&FOUND[..], &more].concat()).kubernetes;
    let WorkerPods { search, port, scheme } = kubernetes.workers.unwrap();
    assert_eq!((search.namespace.as_deref(), port, scheme), (Some("ns"), PodPort::Name("api".into()), "https"));
    assert_eq!((kubernetes.relist.as_secs(), kubernetes.routers), (5, None));
}

#[test]
fn a_search_for_peers_needs_the_mesh_and_no_search_for_workers() {
    let args = [
        "--enable-mesh",
        "--mesh-peer-urls=smg-mesh:39527",
        "--router-selector",
        "app=smg",
        "--service-discovery-namespace",
        "ns",
    ];
    let kubernetes = accepted(&args).kubernetes;
    assert_eq!(kubernetes.workers, None);
    assert_eq!(kubernetes.routers.unwrap().selector(), "app=smg");
}

#[test]
fn what_cannot_be_searched_is_refused_with_its_flag() {
    let found = |more: &[&'static str]| [&FOUND[..], more].concat();
    for (case, args, expected) in [
        ("no labels", vec!["--service-discovery"], "--service-discovery: needs --selector"),
        ("labels alone", vec!["--selector=app=w"], "--selector needs --service-discovery"),
        ("port alone", vec!["--service-discovery-port=1"], "--service-discovery-port needs --service-discovery"),
        ("scheme alone", vec!["--service-discovery-scheme=http"], "--service-discovery-scheme needs"),
        ("namespace alone", vec!["--service-discovery-namespace=a"], "needs --service-discovery or --router-selector"),
        ("interval alone", vec!["--service-discovery-interval-secs=9"], "needs --service-discovery or"),
        ("no peers", vec!["--enable-mesh", "--router-selector=app=smg"], "--router-selector: needs --mesh-peer-urls"),
        ("no mesh", vec!["--router-selector=app=smg"], "--router-selector needs --enable-mesh"),
        ("no label", found(&["--selector=app"]), "--selector: `app`: a label is spelled `key=value`"),
        ("two values", found(&["--selector=app=x"]), "--selector: `app` has two values"),
        ("port 0", found(&["--service-discovery-port=0"]), "--service-discovery-port: `0`"),
        ("bad namespace", found(&["--service-discovery-namespace=A"]), "--service-discovery-namespace: `A`"),
    ] {
        let refusal = launch(&args, &[]).unwrap_err();
        assert!(refusal.contains(expected), "{case}: {refusal}");
    }
    let refusal = launch(&["--service-discovery"], &[("SMG_SELECTOR", "app=w")]);
    assert!(refusal.is_ok(), "from the environment");
}
