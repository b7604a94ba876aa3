//! What `smg cluster doctor` says of ports that are blocked between hosts.

use std::time::Duration;

use crate::cluster::{Cluster, program};

/// How long it may take until ten probes in a row came by other ways, one in each second, and until one was answered again.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// What it prints on host 1.
fn doctor(cluster: &Cluster) -> String {
    let mut command = cluster.hosts.command(1, &program());
    let output = command.args(["cluster", "doctor", "--url", "http://127.0.0.1:8000"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Blocks what `rule` says on host `at`, and waits until the doctor names it, and then until nothing of it is left.
async fn blocked(cluster: &Cluster, at: usize, rule: &str, expected: &str) {
    assert!(!doctor(cluster).contains(expected), "nothing is blocked yet");
    cluster.drop_in(at, rule);
    cluster.wait_for(TOLD_WITHIN, expected, |cluster| doctor(cluster).contains(expected)).await;
    let text = doctor(cluster);
    let advice = text.lines().skip_while(|line| !line.contains(expected)).nth(1).unwrap_or_default();
    assert!(advice.contains("-> open the mesh port"), "it says what to do: {text}");
    cluster.heal(at);
    cluster.wait_for(TOLD_WITHIN, "it is open again", |cluster| !doctor(cluster).contains(expected)).await;
}

/// One plane at a time, between two hosts of the cluster.
pub async fn examined(cluster: &mut Cluster) {
    let udp = "datagrams between node1 and node2 are lost";
    blocked(cluster, 2, "ip saddr 10.77.0.1 udp dport 39527", udp).await;
    let tcp = "node3 at 10.77.0.3:39527: TCP: ";
    blocked(cluster, 3, "ip saddr 10.77.0.1 tcp dport 39527", tcp).await;
}
