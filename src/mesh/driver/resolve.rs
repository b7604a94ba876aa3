//! Host names of `--mesh-peer-urls`, resolved again at each retry, off the driver's task.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tracing::{info, warn};

/// One look-up is given up after this.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two rounds while the cluster has not been joined.
const RETRY_JOINING: Duration = Duration::from_secs(1);

/// Between two rounds once joined: seeds keep being contacted, so that partitions heal also when addresses moved.
const RETRY_JOINED: Duration = Duration::from_secs(30);

/// Resolves every peer entry, all addresses of each, for ever; sends the union to the driver after each round.
///
/// The channel holds one answer; a driver that is busy delays the next round and nothing piles up. Ends when the
/// driver drops its end.
pub(super) async fn run(
    peers: Vec<String>,
    joined: tokio::sync::watch::Receiver<bool>,
    found: mpsc::Sender<Vec<SocketAddr>>,
) {
    let mut failing = BTreeSet::new();
    let mut joined = joined;
    loop {
        if found.send(round(&peers, &mut failing).await).await.is_err() {
            return;
        }
        let wait = if *joined.borrow_and_update() { RETRY_JOINED } else { RETRY_JOINING };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // A node that lost everybody goes back to the short interval at once.
            changed = joined.changed() => if changed.is_err() { return },
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
    async fn stops_with_the_driver() {
        let (found, answers) = mpsc::channel(1);
        let (_joined, watch) = tokio::sync::watch::channel(false);
        drop(answers);
        run(vec!["127.0.0.1:2".to_owned()], watch, found).await;
    }
}
