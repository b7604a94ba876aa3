//! Idle connections to workers, one pool per core: nothing is locked and nothing crosses cores.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::gateway::{
    upstream::{self, TlsSessions},
    worker::Worker,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;

/// The sending half of a connection to a worker.
pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// Idle connections kept per worker and core; further ones are closed.
const IDLE_MAX: usize = 1024;

/// Longest wait for a connection, with its TLS handshake where it has one, below the request's own deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of a worker's response that one connection holds unread by the client.
const READ_BUFFER_BYTES_MAX: usize = 64 << 10;

/// Idle connections by worker. The newest is reused first, so that the surplus ages out.
pub(crate) struct Pool {
    idle_timeout: Duration,
    sessions: TlsSessions,
    /// By the worker's address in memory, which is its own as long as the shelf holds it.
    shelves: RefCell<HashMap<*const Worker, Shelf>>,
}

#[derive(Debug)]
struct Shelf {
    _worker: Arc<Worker>,
    idle: Vec<(Sender, Instant)>,
}

impl Pool {
    /// An empty pool whose connections may idle for `idle_timeout`.
    pub(crate) fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, sessions: TlsSessions::default(), shelves: RefCell::default() }
    }

    /// An idle connection to the worker that was usable when last looked at. It may still prove stale.
    pub(crate) fn checkout(&self, worker: &Arc<Worker>, now: Instant) -> Option<Sender> {
        let mut shelves = self.shelves.borrow_mut();
        let idle = &mut shelves.get_mut(&Arc::as_ptr(worker))?.idle;
        for index in (0..idle.len()).rev() {
            let (sender, since) = &idle[index];
            if now.saturating_duration_since(*since) >= self.idle_timeout {
                // Those below are older still.
                idle.drain(..=index);
                return None;
            }
            if sender.is_closed() {
                idle.remove(index);
            } else if sender.is_ready() {
                return Some(idle.remove(index).0);
            }
        }
        None
    }

    /// Opens a connection to the worker; a task of this core drives it until both ends are done with it.
    pub(crate) async fn connect(&self, worker: &Worker) -> std::io::Result<Sender> {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, upstream::connect(worker, &self.sessions));
        let stream = connecting.await.map_err(|_| std::io::ErrorKind::TimedOut)??;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(READ_BUFFER_BYTES_MAX);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "worker connection ended");
            }
        });
        Ok(sender)
    }

    /// Takes back a connection whose response has been read to its end.
    pub(crate) fn put(&self, worker: &Arc<Worker>, sender: Sender, now: Instant) {
        if sender.is_closed() {
            return;
        }
        let mut shelves = self.shelves.borrow_mut();
        let shelf =
            shelves.entry(Arc::as_ptr(worker)).or_insert_with(|| Shelf { _worker: worker.clone(), idle: Vec::new() });
        if shelf.idle.len() < IDLE_MAX {
            shelf.idle.push((sender, now));
        }
    }

    /// Whether no connection idles, as of the last [`sweep`](Self::sweep).
    pub(crate) fn is_empty(&self) -> bool {
        self.shelves.borrow().is_empty()
    }

    /// Closes what has idled too long.
    pub(crate) fn sweep(&self, now: Instant) {
        let timeout = self.idle_timeout;
        self.shelves.borrow_mut().retain(|_, shelf| {
            shelf.idle.retain(|(sender, since)| !sender.is_closed() && now.saturating_duration_since(*since) < timeout);
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
    use hyper::client::conn::http1::Connection;
    use tokio::io::DuplexStream;

    use super::*;
    use crate::mesh::stores::WorkerId;

    fn worker() -> Arc<Worker> {
        let host = HeaderValue::from_static("w:1");
        Arc::new(Worker::new(WorkerId::of_url("http://w:1"), false, "w:1".parse().unwrap(), host, String::new(), None))
    }

    type Other = (Connection<TokioIo<DuplexStream>, Full<Bytes>>, DuplexStream);

    /// A connection that is open as long as its other half is held, and ready.
    async fn open() -> (Sender, Other) {
        let (near, far) = tokio::io::duplex(64);
        let (sender, mut connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        assert!(futures_util::poll!(&mut connection).is_pending());
        (sender, (connection, far))
    }

    #[tokio::test]
    async fn keeps_what_is_fresh_open_and_within_bounds() {
        let (pool, worker, start) = (Pool::new(Duration::from_secs(3)), worker(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        let mut others = Vec::new();
        for _ in 0..=IDLE_MAX {
            let (sender, other) = open().await;
            others.push(other);
            pool.put(&worker, sender, start);
        }
        let idle = || pool.shelves.borrow().get(&Arc::as_ptr(&worker)).map(|shelf| shelf.idle.len());
        assert_eq!(idle(), Some(IDLE_MAX), "the bound holds");
        assert!(pool.checkout(&worker, at(2)).is_some());
        assert_eq!(idle(), Some(IDLE_MAX - 1));
        assert!(pool.checkout(&worker, at(3)).is_none(), "idle too long");
        assert_eq!(idle(), Some(0));

        let (sender, other) = open().await;
        pool.put(&worker, sender, start);
        drop(other);
        assert!(pool.checkout(&worker, start).is_none(), "closed meanwhile");
        pool.sweep(start);
        assert_eq!(idle(), None, "nothing idles");
    }

    #[tokio::test]
    async fn forgets_workers_that_nobody_knows() {
        let (pool, worker, start) = (Pool::new(Duration::from_secs(3)), worker(), Instant::now());
        let (sender, _other) = open().await;
        pool.put(&worker, sender, start);
        drop(worker);
        pool.sweep(start);
        assert_eq!(pool.shelves.borrow().len(), 1);
        pool.sweep(start + Duration::from_secs(3));
        assert_eq!(pool.shelves.borrow().len(), 0);
    }
}
