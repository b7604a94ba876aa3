//! A certificate that ends while its node runs: the node is out within a minute, tries rarely, and is back with a new one.

use smg_certs::{IdentityFiles, NodeRequest};
use time::{Duration, OffsetDateTime};

use super::{
    strangers::{authority, write},
    *,
};

/// What the certificate of node3 is still good for when the cluster starts.
const LIFE: Duration = Duration::seconds(15);

/// An expired node is out within this.
const OUT_WITHIN: std::time::Duration = s(60);

/// An excluded node tries once in this time at most on each plane, and so does the one that excludes it.
const PAUSE: std::time::Duration = s(5);

/// Refusals at the end of the certificate: of two connections, where both had called, and of a new one from each side.
const AT_ONCE: u32 = 4;

#[tokio::test]
async fn a_node_whose_certificate_ends_is_out_and_comes_back_with_a_new_one() {
    let (network, dir, ca) = (Network::new(), tempfile::tempdir().unwrap(), authority());
    for n in 1..=2 {
        let name = format!("node{n}");
        write(&dir.path().join(&name), &ca, &name, OffsetDateTime::now_utc(), ca.bundle_pem());
    }
    let files = IdentityFiles::in_dir(&dir.path().join("node3"));
    std::fs::create_dir_all(dir.path().join("node3")).unwrap();
    let ends = OffsetDateTime::now_utc() + LIFE;
    let request = NodeRequest { cluster: "smg".into(), node: "node3".into(), days: Some(1), ..NodeRequest::default() };
    let issued = ca.issue(&request, ends - Duration::days(1)).unwrap();
    std::fs::write(&files.certificate, issued.chain_pem).unwrap();
    std::fs::write(&files.key, issued.key_pem).unwrap();
    std::fs::write(&files.authorities, ca.bundle_pem()).unwrap();
    let nodes: Vec<Gateway> =
        [1, 2, 3].iter().map(|&n| start(network, dir.path(), n, &[1, 2, 3], &format!("node{n}"))).collect();
    joined(&nodes.iter().collect::<Vec<_>>(), 3, s(15)).await;

    let until_end: std::time::Duration = (ends - OffsetDateTime::now_utc()).try_into().unwrap_or_default();
    let since = Instant::now() + until_end;
    for node in &nodes[..2] {
        let what = format!("{} puts node3 out", node.name);
        eventually(until_end + OUT_WITHIN, &what, async || {
            node.statuses().await == ["node1=ALIVE", "node2=ALIVE", "node3=DOWN"]
        })
        .await;
    }
    let took = since.elapsed();
    eprintln!("node3 is out {took:?} after the end of its certificate");
    assert!(took <= OUT_WITHIN, "{took:?}");
    let failures = async || total(&nodes[2].metrics().await, "smg_tls_reload_failures_total");
    eventually(s(15), "node3 counts that its own certificate is of no use", async || failures().await > 0.0).await;

    let expired = async || count(&nodes[0].metrics().await, "datagram", "expired");
    eventually(s(40), "node1 refuses it again and again", async || expired().await >= AT_ONCE + 4).await;
    let (refused, span) = (expired().await, since.elapsed());
    let rounds = (refused - AT_ONCE) / 2;
    assert!(span >= PAUSE * rounds.saturating_sub(1), "refused {refused} times in {span:?}");

    write(&dir.path().join("node3"), &ca, "node3", OffsetDateTime::now_utc(), ca.bundle_pem());
    joined(&nodes.iter().collect::<Vec<_>>(), 3, s(30)).await;
}
