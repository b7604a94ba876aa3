//! `/ha/rate-limit`: how many requests per second are admitted, and how many were.

use std::time::Instant;

use serde::Serialize;

use crate::{
    gateway::{limiter::Limiter, rate},
    mesh::driver::handle::View,
};

/// The limit in force at this gateway.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Tokens per second, one for each request; 0: no limit.
    pub limit_per_second: u64,
    /// Most at once; 0 without a limit.
    pub burst: u64,
    /// Who said so: `api`, for all gateways, or `flag`, for this one.
    pub source: &'static str,
    /// Whose requests count together: `gateway`, each one's by themselves.
    pub scope: &'static str,
}

/// What became of the requests of this gateway.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// This gateway.
    pub node_name: String,
    /// The limit.
    #[serde(flatten)]
    pub limit: Shown,
    /// Whole tokens that are there now; null without a limit.
    pub remaining: Option<u64>,
    /// Requests admitted since it started, while there was a limit.
    pub allowed: u64,
    /// Requests refused since then.
    pub rejected: u64,
}

/// The limit.
#[must_use]
pub fn shown(view: &View, limiter: &Limiter, now: Instant) -> Shown {
    let quota = limiter.stats(now).quota;
    let is_set = view.rate_limit.as_ref().is_some_and(|spec| rate::of_spec(spec).is_ok());
    Shown {
        limit_per_second: quota.map_or(0, |quota| quota.per_second as u64),
        burst: quota.map_or(0, |quota| quota.burst as u64),
        source: if is_set { "api" } else { "flag" },
        scope: "gateway",
    }
}

/// The figures.
#[must_use]
pub fn stats(view: &View, limiter: &Limiter, now: Instant) -> Stats {
    let stats = limiter.stats(now);
    Stats {
        node_name: view.node.to_string(),
        limit: shown(view, limiter, now),
        remaining: stats.remaining,
        allowed: stats.admitted,
        rejected: stats.refused,
    }
}
