//! Idle connections to workers, one pool per core: nothing is locked and nothing crosses cores.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::gateway::worker::Worker;

/// The sending half of a connection to a worker.
pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// Idle connections kept per worker and core; further ones are closed.
const IDLE_MAX: usize = 1024;

/// Longest wait for a connection, below the request's own deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of a worker's response that one connection holds unread by the client.
const READ_BUFFER_BYTES_MAX: usize = 64 << 10;

/// Idle connections by worker. The newest is reused first, so that the surplus ages out.
#[derive(Debug)]
pub(crate) struct Pool {
    idle_timeout: Duration,
    /// By the worker's address in memory, which is its own as long as the shelf holds it.
    shelves: RefCell<HashMap<*const Worker, Shelf>>,
}

#[derive(Debug)]
struct Shelf {
    worker: Arc<Worker>,
    idle: Vec<(Sender, Instant)>,
}

impl Pool {
    /// An empty pool whose connections may idle for `idle_timeout`.
    pub(crate) fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, shelves: RefCell::default() }
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

    /// Takes back a connection whose response has been read to its end.
    pub(crate) fn put(&self, worker: &Arc<Worker>, sender: Sender, now: Instant) {
        if sender.is_closed() {
            return;
        }
        let mut shelves = self.shelves.borrow_mut();
        let shelf =
            shelves.entry(Arc::as_ptr(worker)).or_insert_with(|| Shelf { worker: worker.clone(), idle: Vec::new() });
        if shelf.idle.len() < IDLE_MAX {
            shelf.idle.push((sender, now));
        }
    }

    /// Closes what has idled too long and forgets workers that nobody else knows.
    pub(crate) fn sweep(&self, now: Instant) {
        let timeout = self.idle_timeout;
        self.shelves.borrow_mut().retain(|_, shelf| {
            shelf.idle.retain(|(sender, since)| !sender.is_closed() && now.saturating_duration_since(*since) < timeout);
            !shelf.idle.is_empty() || Arc::strong_count(&shelf.worker) > 1
        });
    }
}

/// Opens a connection to the worker; a task of this core drives it until both ends are done with it.
pub(crate) async fn connect(worker: &Worker) -> std::io::Result<Sender> {
    let host = worker.authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = worker.authority.port_u16().unwrap_or(80);
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port)));
    let stream = connecting.await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
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
