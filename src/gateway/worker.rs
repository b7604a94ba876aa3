//! A worker as the request path sees it.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderValue, uri::Authority};

use crate::mesh::stores::WorkerId;

/// A worker that requests can be sent to. The same value lives on across rebuilds of the routing view while its
/// address and key stay the same, so that its counters go on.
#[derive(Debug)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Whether it is reached over TLS.
    pub tls: bool,
    /// Host and port, the port always given.
    pub authority: Authority,
    /// `Host` header for it.
    pub host: HeaderValue,
    /// Path before `/v1/…`, empty or starting with `/` and without a trailing one.
    pub path_prefix: String,
    /// `Authorization` for it, marked sensitive.
    pub authorization: Option<HeaderValue>,
    in_flight: AtomicUsize,
}

impl Worker {
    /// A worker with nothing in flight.
    #[must_use]
    pub fn new(
        id: WorkerId,
        tls: bool,
        authority: Authority,
        host: HeaderValue,
        path_prefix: String,
        authorization: Option<HeaderValue>,
    ) -> Self {
        Self { id, tls, authority, host, path_prefix, authorization, in_flight: AtomicUsize::new(0) }
    }

    /// Requests that this gateway has in flight there, response body included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request in; the guard counts it out.
    #[must_use]
    pub fn begin(self: &std::sync::Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

/// One request in flight at a worker, counted out when dropped.
#[derive(Debug)]
pub struct InFlight(std::sync::Arc<Worker>);

impl InFlight {
    /// The worker.
    #[must_use]
    pub fn worker(&self) -> &std::sync::Arc<Worker> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
