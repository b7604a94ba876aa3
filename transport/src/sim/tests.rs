//! The simulated network keeps its promises, and the same seed the same fates.
#![allow(clippy::unwrap_used)]

use super::*;

crate::conformance!(conforms, {
    let network = SimNetwork::new(SimConfig::default());
    move |addr| network.bind(addr)
});

crate::conformance!(conforms_when_delayed_and_reordered, {
    let config = SimConfig {
        delay_max: Duration::from_millis(2),
        duplication: 0.2,
        reordering: 0.2,
        reordering_delay: Duration::from_millis(1),
        ..SimConfig::default()
    };
    let network = SimNetwork::new(config);
    move |addr| network.bind(addr)
});

fn lossy(seed: u64) -> SimConfig {
    SimConfig { seed, loss: 0.3, duplication: 0.2, reordering: 0.2, ..SimConfig::default() }
}

fn pair(network: &SimNetwork) -> (SimTransport, SimTransport) {
    (network.bind("10.0.0.1:1".parse().unwrap()).unwrap(), network.bind("10.0.0.2:1".parse().unwrap()).unwrap())
}

async fn next(transport: &dyn Transport) -> Option<Incoming> {
    tokio::time::timeout(Duration::from_millis(200), transport.recv()).await.ok().map(io::Result::unwrap)
}

/// Sends 0 to 199 and lists what arrives.
async fn arrivals(config: SimConfig) -> (Vec<u8>, SimStats) {
    let network = SimNetwork::new(config);
    let (a, b) = pair(&network);
    for n in 0..200_u8 {
        a.try_send(b.local_addr(), &[n]).unwrap();
    }
    let mut arrived = Vec::new();
    while let Some(incoming) = next(&b).await {
        let Incoming::Datagram(datagram) = incoming else { panic!("a hint") };
        arrived.push(datagram.payload[0]);
    }
    (arrived, network.stats())
}

#[tokio::test]
async fn a_seed_decides_and_every_fault_fires() {
    let (arrived, stats) = arrivals(lossy(7)).await;
    let (again, again_stats) = arrivals(lossy(7)).await;
    // Held-back datagrams are sorted by the time of sending, which is the same order in every run.
    assert_eq!(stats, again_stats);
    let sorted = |mut list: Vec<u8>| {
        list.sort_unstable();
        list
    };
    assert_eq!(sorted(arrived.clone()), sorted(again));
    assert!(stats.lost > 20 && stats.duplicated > 10 && stats.reordered > 10, "{stats:?}");
    assert!(!arrived.is_sorted(), "nothing was overtaken");
    let (other, _) = arrivals(lossy(8)).await;
    assert_ne!(sorted(arrived), sorted(other));
}

#[tokio::test]
async fn cuts_have_a_direction_and_heal() {
    let network = SimNetwork::new(SimConfig::default());
    let (a, b) = pair(&network);
    for (case, cut_ab, cut_ba) in [("one way", true, false), ("other way", false, true), ("both", true, true)] {
        match (cut_ab, cut_ba) {
            (true, true) => network.cut(a.local_addr(), b.local_addr()),
            (true, false) => network.cut_one_way(a.local_addr(), b.local_addr()),
            _ => network.cut_one_way(b.local_addr(), a.local_addr()),
        }
        a.try_send(b.local_addr(), b"ab").unwrap();
        b.try_send(a.local_addr(), b"ba").unwrap();
        assert_eq!(next(&b).await.is_none(), cut_ab, "{case}");
        assert_eq!(next(&a).await.is_none(), cut_ba, "{case}");
        network.heal();
    }
    a.try_send(b.local_addr(), b"healed").unwrap();
    assert!(next(&b).await.is_some());
}

#[tokio::test]
async fn a_dropped_node_is_unreachable_and_its_address_free() {
    let network = SimNetwork::new(SimConfig::default());
    let (a, b) = pair(&network);
    let addr = b.local_addr();
    assert_eq!(network.bind(addr).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(b);
    a.try_send(addr, b"ping").unwrap();
    assert_eq!(next(&a).await, Some(Incoming::Unreachable(addr)));
    let b = network.bind(addr).unwrap();
    a.try_send(addr, b"ping").unwrap();
    assert!(matches!(next(&b).await, Some(Incoming::Datagram(_))));
}
