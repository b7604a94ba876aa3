//! Clients that live on the hosts: many requests at a time, and whether all nodes hold the same.

use std::{collections::BTreeMap, fs::File, future::Future, sync::Arc, thread, time::Duration};

use futures_util::future::join_all;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio::{
    sync::{oneshot, watch},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{cluster::Cluster, http::Connection};

/// Connections of one client, each with one request under way.
const CONNECTIONS: usize = 128;

/// Between two looks of a [`StoreWatch`] at each node.
const GLANCE: Duration = Duration::from_millis(20);

/// Runs `work` on a thread and runtime of its own on host `n`: it connects from there, to 127.0.0.1 among others.
///
/// # Panics
/// When `work` does.
pub fn on_host<T, F, W>(cluster: &Cluster, n: usize, work: W) -> impl Future<Output = T> + use<T, F, W>
where
    T: Send + 'static,
    F: Future<Output = T>,
    W: FnOnce() -> F + Send + 'static,
{
    let namespace = File::open(format!("/run/netns/{}", cluster.hosts.name(n))).unwrap();
    let (done, result) = oneshot::channel();
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = done.send(runtime.block_on(work()));
    });
    async move { result.await.unwrap_or_else(|_| panic!("the client on host {n} ended without a result")) }
}

/// The worker with this number. Nobody probes it: its models are said, and health checks are off.
pub fn worker_url(number: usize) -> String {
    format!("http://10.99.{}.{}:9000", number / 250, number % 250)
}

/// A change of the worker set, by a worker's number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    Add(usize),
    Remove(usize),
}

/// Makes the changes, of different keys, at the node of host `n`; each is acknowledged when this ends.
pub fn make(cluster: &Cluster, n: usize, changes: Vec<Change>) -> impl Future<Output = ()> + use<> {
    on_host(cluster, n, move || async move {
        let changes = &changes;
        join_all((0..CONNECTIONS).map(|start| async move {
            let mut connection = Connection::open().await.unwrap();
            for change in changes.iter().skip(start).step_by(CONNECTIONS) {
                let (status, body) = match change {
                    Change::Add(number) => {
                        let body = serde_json::json!({"url": worker_url(*number), "models": ["m"]}).to_string();
                        connection.send("POST", "/workers", &body).await.unwrap()
                    }
                    Change::Remove(number) => {
                        let encoded = worker_url(*number).replace(':', "%3A").replace('/', "%2F");
                        connection.send("DELETE", &format!("/workers/{encoded}"), "").await.unwrap()
                    }
                };
                assert_eq!(status, 202, "{change:?}: {}", String::from_utf8_lossy(&body));
            }
        }))
        .await;
    })
}

/// Root and entries of a store at node `n`; none while it does not answer.
pub fn store(cluster: &Cluster, n: usize, name: &str) -> Option<(String, u64)> {
    let status = cluster.hosts.answer(n, "/ha/status");
    let store: &Value = &status["stores"][name];
    Some((store["root"].as_str()?.to_owned(), store["entry_count"].as_u64()?))
}

/// Every node holds the same in this store, of `entries`.
pub fn is_equal(cluster: &Cluster, name: &str, entries: usize) -> bool {
    let Some(first) = store(cluster, 1, name) else { return false };
    first.1 == entries as u64 && (2..=cluster.size).all(|n| store(cluster, n, name).is_some_and(|store| store == first))
}

/// Root and entries of a store at each node that has answered.
pub type Stores = BTreeMap<usize, (String, u64)>;

/// A store as clients on all hosts see it. They keep a connection each: to start a program for each look would take a
/// third of what two cores have, from those that are looked at.
#[derive(Debug)]
pub struct StoreWatch(watch::Receiver<Stores>);

impl StoreWatch {
    /// Looks from now on, until it is dropped.
    pub fn start(cluster: &Cluster, name: &'static str) -> Self {
        let (seen, watched) = watch::channel(Stores::new());
        let seen = Arc::new(seen);
        for n in 1..=cluster.size {
            let seen = seen.clone();
            drop(on_host(cluster, n, move || async move {
                let (mut tick, mut connection) = (interval(GLANCE), Connection::open().await.unwrap());
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !seen.is_closed() {
                    tick.tick().await;
                    let status = connection.get("/ha/status").await.unwrap();
                    let store = &status["stores"][name];
                    let now = (store["root"].as_str().unwrap().to_owned(), store["entry_count"].as_u64().unwrap());
                    seen.send_if_modified(|stores| stores.insert(n, now.clone()).as_ref() != Some(&now));
                }
            }));
        }
        Self(watched)
    }

    /// Waits until what all nodes show is as it should be.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn until(&mut self, within: Duration, what: &str, is_so: impl FnMut(&Stores) -> bool) {
        if timeout(within, self.0.wait_for(is_so)).await.is_err() {
            panic!("not within {within:?}: {what}; {:?}", *self.0.borrow());
        }
    }
}
