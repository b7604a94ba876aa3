//! How a worker is chosen: pure choices from a snapshot and a seed.

use std::sync::Arc;

use crate::gateway::{view::Route, worker::Worker};

/// What a policy may look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// Value of `X-SMG-Routing-Key`, else the request's `user`, else nothing.
    pub routing_key: Option<&'a [u8]>,
}

/// Chooses a worker of the route that is not in `tried`; none when every one was tried or there is none.
///
/// When every ready worker was tried the caller may clear `tried` and ask again.
#[must_use]
pub fn choose(route: &Route, _facts: Facts<'_>, tried: &[Arc<Worker>], _random: u64) -> Option<Arc<Worker>> {
    route.ready.iter().find(|worker| !tried.iter().any(|t| Arc::ptr_eq(t, worker))).cloned()
}
