//! Idle connections to workers, one pool per core: nothing is locked and nothing crosses cores.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use crate::gateway::{
    upstream::{self, TlsSessions, Wire},
    worker::Worker,
};

/// Idle connections kept per worker and core; further ones are closed.
const IDLE_MAX: usize = 1024;

/// Longest wait for a connection, with its TLS handshake where it has one, below the request's own deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Idle connections by worker. The newest is reused first, so that the surplus ages out.
pub(crate) struct Pool {
    idle_timeout: Duration,
    idle_max: usize,
    sessions: TlsSessions,
    /// By the worker's address in memory, which is its own as long as the shelf holds it.
    shelves: RefCell<HashMap<*const Worker, Shelf>>,
}

#[derive(Debug)]
struct Shelf {
    _worker: Arc<Worker>,
    idle: Vec<(Wire, Instant)>,
}

impl Pool {
    /// An empty pool whose connections may idle for `idle_timeout`.
    pub(crate) fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, idle_max: IDLE_MAX, sessions: TlsSessions::default(), shelves: RefCell::default() }
    }

    /// An idle connection to the worker that was usable when last looked at. It may still prove stale.
    pub(crate) fn checkout(&self, worker: &Arc<Worker>, now: Instant) -> Option<Wire> {
        let mut shelves = self.shelves.borrow_mut();
        let idle = &mut shelves.get_mut(&Arc::as_ptr(worker))?.idle;
        while let Some((mut wire, since)) = idle.pop() {
            if now.saturating_duration_since(since) >= self.idle_timeout {
                // Those below are older still.
                idle.clear();
                return None;
            }
            if wire.is_usable() {
                return Some(wire);
            }
        }
        None
    }

    /// Opens a connection to the worker.
    pub(crate) async fn connect(&self, worker: &Worker) -> std::io::Result<Wire> {
        // What a handshake needs is large, and few requests open a connection.
        let connecting = Box::pin(upstream::connect(worker, &self.sessions));
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connecting);
        connecting.await.map_err(|_| std::io::ErrorKind::TimedOut)?
    }

    /// Takes back a connection whose response has been read to its end.
    pub(crate) fn put(&self, worker: &Arc<Worker>, wire: Wire, now: Instant) {
        let mut shelves = self.shelves.borrow_mut();
        let shelf =
            shelves.entry(Arc::as_ptr(worker)).or_insert_with(|| Shelf { _worker: worker.clone(), idle: Vec::new() });
        if shelf.idle.len() < self.idle_max {
            shelf.idle.push((wire, now));
        }
    }

    /// Whether no connection idles, as of the last [`sweep`](Self::sweep).
    pub(crate) fn is_empty(&self) -> bool {
        self.shelves.borrow().is_empty()
    }

    /// Closes what has idled too long, or was closed by its worker.
    pub(crate) fn sweep(&self, now: Instant) {
        let timeout = self.idle_timeout;
        self.shelves.borrow_mut().retain(|_, shelf| {
            shelf.idle.retain_mut(|(wire, since)| now.saturating_duration_since(*since) < timeout && wire.is_usable());
            !shelf.idle.is_empty()
        });
    }
}

/// Whether a connection could not be made for want of descriptors, ports or memory here.
pub(crate) fn is_of_this_machine(error: &std::io::Error) -> bool {
    let kind = error.raw_os_error().map(Errno::from_raw);
    matches!(kind, Some(Errno::EMFILE | Errno::ENFILE | Errno::EADDRNOTAVAIL | Errno::ENOBUFS | Errno::ENOMEM))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::mesh::stores::WorkerId;

    async fn worker() -> (Arc<Worker>, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string().parse().unwrap();
        let host = HeaderValue::from_static("w:1");
        let worker = Worker::new(WorkerId::of_url("http://w:1"), false, authority, host, String::new(), None);
        (Arc::new(worker), listener)
    }

    /// A connection, and its other end, which holds it open.
    async fn open(pool: &Pool, (worker, listener): &(Arc<Worker>, TcpListener)) -> (Wire, TcpStream) {
        let (wire, accepted) = tokio::join!(pool.connect(worker), listener.accept());
        (wire.unwrap(), accepted.unwrap().0)
    }

    /// Waits until the runtime knows what happened to it.
    async fn until_unusable(wire: &mut Wire) {
        let looks = async {
            while wire.is_usable() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), looks).await.unwrap();
    }

    #[tokio::test]
    async fn keeps_what_is_fresh_open_and_within_bounds() {
        let (mut pool, worker, start) = (Pool::new(Duration::from_secs(3)), worker().await, Instant::now());
        pool.idle_max = 3;
        let at = |secs| start + Duration::from_secs(secs);
        let mut others = Vec::new();
        for _ in 0..=pool.idle_max {
            let (wire, other) = open(&pool, &worker).await;
            others.push(other);
            pool.put(&worker.0, wire, start);
        }
        let idle = || pool.shelves.borrow().get(&Arc::as_ptr(&worker.0)).map(|shelf| shelf.idle.len());
        assert_eq!(idle(), Some(3), "the bound holds");
        assert!(pool.checkout(&worker.0, at(2)).is_some());
        assert_eq!(idle(), Some(2));
        assert!(pool.checkout(&worker.0, at(3)).is_none(), "idle too long");
        assert_eq!(idle(), Some(0));
        pool.sweep(start);
        assert_eq!(idle(), None, "nothing idles");
    }

    #[tokio::test]
    async fn what_the_worker_closed_or_spoke_into_serves_no_more() {
        let (pool, worker, start) = (Pool::new(Duration::from_secs(3)), worker().await, Instant::now());
        for is_closed in [false, true] {
            let (mut wire, other) = open(&pool, &worker).await;
            assert!(wire.is_usable());
            let other = if is_closed {
                drop(other);
                None
            } else {
                other.writable().await.unwrap();
                assert_eq!(other.try_write(b"HTTP/1.1 408 Request Timeout").unwrap(), 28);
                Some(other)
            };
            until_unusable(&mut wire).await;
            pool.put(&worker.0, wire, start);
            assert!(pool.checkout(&worker.0, start).is_none(), "closed: {}", other.is_none());
        }
    }

    #[tokio::test]
    async fn many_that_were_closed_are_told_apart_in_one_go() {
        let (pool, worker, start) = (Pool::new(Duration::from_secs(3)), worker().await, Instant::now());
        // More than the looks that a task has in one turn of the runtime.
        for is_sweep in [false, true] {
            for _ in 0..200 {
                let (mut wire, other) = open(&pool, &worker).await;
                drop(other);
                until_unusable(&mut wire).await;
                pool.put(&worker.0, wire, start);
            }
            if is_sweep {
                pool.sweep(start);
                assert!(pool.is_empty());
            } else {
                assert!(pool.checkout(&worker.0, start).is_none());
            }
        }
    }

    #[tokio::test]
    async fn forgets_workers_that_nobody_knows() {
        let (pool, worker, start) = (Pool::new(Duration::from_secs(3)), worker().await, Instant::now());
        let (wire, _other) = open(&pool, &worker).await;
        pool.put(&worker.0, wire, start);
        drop(worker);
        pool.sweep(start);
        assert_eq!(pool.shelves.borrow().len(), 1);
        pool.sweep(start + Duration::from_secs(3));
        assert_eq!(pool.shelves.borrow().len(), 0);
    }
}
