//! Host names of `--mesh-peer-urls`, resolved again at each retry, off the driver's task.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{info, warn};

/// One look-up is given up after this.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two rounds while the cluster has not been joined.
const RETRY_JOINING: Duration = Duration::from_secs(1);

/// Between two rounds once joined: seeds keep being contacted, so that partitions heal also when addresses moved.
const RETRY_JOINED: Duration = Duration::from_secs(30);

/// Resolves every peer entry, all addresses of each, for ever; sends the union, and that of `pods`, to the driver after
/// each round. A change of `pods` begins a round at once.
///
/// The channel holds one answer; a driver that is busy delays the next round and nothing piles up. Ends when the
/// driver drops its end.
pub(super) async fn run(
    peers: Vec<String>,
    mut pods: watch::Receiver<Vec<SocketAddr>>,
    joined: watch::Receiver<bool>,
    found: mpsc::Sender<Vec<SocketAddr>>,
) {
    let mut failing = BTreeSet::new();
    let mut joined = joined;
    loop {
        let mut addresses = round(&peers, &mut failing).await;
        addresses.extend_from_slice(&pods.borrow_and_update());
        addresses.sort_unstable();
        addresses.dedup();
        if found.send(addresses).await.is_err() {
            return;
        }
        let wait = if *joined.borrow_and_update() { RETRY_JOINED } else { RETRY_JOINING };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // A node that lost everybody goes back to the short interval at once.
            changed = joined.changed() => if changed.is_err() { return },
            () = changed(&mut pods) => {}
            () = found.closed() => return,
        }
    }
}

async fn round(peers: &[String], failing: &mut BTreeSet<String>) -> Vec<SocketAddr> {
    let mut lookups = JoinSet::new();
    for peer in peers {
        let peer = peer.clone();
        lookups.spawn(async move {
            let answer = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(peer.clone())).await;
            let answer = answer.map_err(std::io::Error::from).flatten();
            (peer, answer.map(Iterator::collect::<Vec<_>>))
        });
    }
    let mut addresses = Vec::new();
    while let Some(looked_up) = lookups.join_next().await {
        let Ok((peer, answer)) = looked_up else { continue };
        match answer {
            Ok(found) => {
                if failing.remove(&peer) {
                    info!(peer = %peer, "mesh peer resolves again");
                }
                addresses.extend(found);
            }
            // Said once per outage: the name is tried again for ever.
            Err(error) => {
                if failing.insert(peer.clone()) {
                    warn!(peer = %peer, %error, "mesh peer does not resolve, trying again");
                }
            }
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Waits for news, for ever when there will be none.
async fn changed(pods: &mut watch::Receiver<Vec<SocketAddr>>) {
    if pods.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_name_that_fails_does_not_hide_the_others() {
        let peers = ["no-such-host.invalid:1".to_owned(), "127.0.0.1:2".to_owned(), "127.0.0.1:2".to_owned()];
        let mut failing = BTreeSet::new();
        assert_eq!(round(&peers, &mut failing).await, ["127.0.0.1:2".parse::<SocketAddr>().unwrap()]);
        assert_eq!(failing.len(), 1);
    }

    #[tokio::test]
    async fn pods_are_beside_the_peers_and_come_at_once() {
        let addr = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (found, mut answers) = mpsc::channel(1);
        let (_joined, joined) = watch::channel(true);
        let (pods, watched) = watch::channel(vec![addr(2), addr(3)]);
        tokio::spawn(run(vec!["127.0.0.1:2".to_owned()], watched, joined, found));
        assert_eq!(answers.recv().await.unwrap(), [addr(2), addr(3)]);
        // The next round by itself is half a minute away.
        pods.send_replace(vec![addr(4)]);
        let next = timeout(RETRY_JOINED / 2, answers.recv()).await.unwrap();
        assert_eq!(next.unwrap(), [addr(2), addr(4)]);
    }

    #[tokio::test]
    async fn stops_with_the_driver() {
        let (found, answers) = mpsc::channel(1);
        let (_joined, joined) = watch::channel(false);
        drop(answers);
        run(vec!["127.0.0.1:2".to_owned()], watch::channel(Vec::new()).1, joined, found).await;
    }
}
