//! HTTP clients that live on the hosts: many requests at a time, and whether all nodes hold the same.

use std::{fs::File, future::Future, thread, time::Duration};

use futures_util::{StreamExt as _, stream};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::cluster::Cluster;

/// Requests under way at a time, per client.
const AT_ONCE: usize = 128;

/// Runs `work` on a thread and runtime of its own on host `n`: it connects from there, to 127.0.0.1 among others.
///
/// # Panics
/// When `work` does.
pub fn on_host<T, F>(cluster: &Cluster, n: usize, work: impl FnOnce() -> F + Send + 'static) -> impl Future<Output = T>
where
    T: Send + 'static,
    F: Future<Output = T>,
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

/// A client without a proxy.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap()
}

/// URL of a path at the node of the host where this runs.
pub fn local(path: &str) -> String {
    format!("http://127.0.0.1:8000{path}")
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

/// Makes the changes at the node of host `n`; each is acknowledged when this ends.
pub fn make(cluster: &Cluster, n: usize, changes: Vec<Change>) -> impl Future<Output = ()> {
    on_host(cluster, n, move || async move {
        let client = client();
        let answers = stream::iter(changes).map(|change| {
            let request = match change {
                Change::Add(number) => client
                    .post(local("/workers"))
                    .json(&serde_json::json!({"url": worker_url(number), "models": ["m"]})),
                Change::Remove(number) => {
                    let encoded = worker_url(number).replace(':', "%3A").replace('/', "%2F");
                    client.delete(local(&format!("/workers/{encoded}")))
                }
            };
            async move { (change, request.send().await.map(|answer| answer.status().as_u16())) }
        });
        let mut answers = answers.buffer_unordered(AT_ONCE);
        while let Some((change, answer)) = answers.next().await {
            assert!(matches!(answer, Ok(202)), "{change:?}: {answer:?}");
        }
    })
}

/// Root and entries of a store at node `n`; none while it does not answer.
pub fn store(cluster: &Cluster, n: usize, name: &str) -> Option<(String, u64)> {
    let status = cluster.hosts.answer(n, "/ha/status");
    let store: &Value = &status["stores"][name];
    Some((store["root"].as_str()?.to_owned(), store["entry_count"].as_u64()?))
}

/// Every node holds the same in this store, of `entries`.
pub fn is_equal(cluster: &Cluster, name: &str, entries: u64) -> bool {
    let Some(first) = store(cluster, 1, name) else { return false };
    first.1 == entries && (2..=cluster.size).all(|n| store(cluster, n, name).is_some_and(|store| store == first))
}
