//! Greetings of the stream plane: what is taken is within its bounds, and reads the same once written again.

use smg_transport::grpc::{CLUSTER_BYTES_MAX, Hello, NODE_BYTES_MAX};

pub(super) fn run(payload: &[u8]) {
    let Ok(hello) = Hello::decode(payload, "smg") else { return };
    assert_eq!(hello.cluster, "smg");
    assert!((1..=NODE_BYTES_MAX).contains(&hello.node.len()) && !hello.node.contains(char::is_control));
    assert_eq!(Hello::decode(&hello.encode(), "smg").ok(), Some(hello));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let long = "n".repeat(NODE_BYTES_MAX);
    let foreign = "c".repeat(CLUSTER_BYTES_MAX);
    let hellos = [("smg", "node1", 1_780_000_000_000), ("smg", &long, u64::MAX), (&foreign, "node1", 0)];
    let hellos = hellos.map(|(cluster, node, boot_epoch_ms)| {
        let hello = Hello { cluster: cluster.into(), node: node.into(), boot_epoch_ms };
        hello.encode()
    });
    hellos.into()
}
