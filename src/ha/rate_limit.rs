//! `/ha/rate-limit`: how many requests per second are admitted, and how many were.

use std::time::Instant;

use serde::Serialize;

use crate::{
    gateway::{limiter::Limiter, rate},
    mesh::{
        driver::{handle::View, rights::RightsView},
        quota::{issuer, local::WithoutQuorum, share::TOKEN},
    },
};

/// The limit in force at this gateway.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Tokens per second, one for each request; 0: no limit.
    pub limit_per_second: u64,
    /// Most at once; 0 without a limit.
    pub burst: u64,
    /// Who said so: `api`, for all gateways, or `flag`, which is to be the same at each.
    pub source: &'static str,
    /// Whose requests count together: `cluster`, those of all gateways.
    pub scope: &'static str,
    /// What becomes of limited requests while this gateway knows no leader: `closed`, refused, or `local`, admitted by its
    /// own part of the limit.
    pub without_quorum: &'static str,
    /// By whose word this gateway admits now: `lent` by the leader, `local` by its own part, `none` at all; `off` without
    /// a limit.
    pub rights: &'static str,
}

/// What became of the requests of this gateway.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// This gateway.
    pub node_name: String,
    /// The limit.
    #[serde(flatten)]
    pub limit: Shown,
    /// What this gateway holds of it now.
    pub held: Held,
    /// What each gateway may hold, as the leader's table of owners has it; null at the others.
    pub owners: Option<Vec<Owner>>,
    /// Whole tokens that are there now at this gateway; null without a limit.
    pub remaining: Option<u64>,
    /// Requests admitted since it started, while there was a limit.
    pub allowed: u64,
    /// Requests refused since then.
    pub rejected: u64,
}

/// Rights of one gateway.
#[derive(Debug, Serialize)]
pub struct Held {
    /// Tokens per second.
    pub per_second: f64,
    /// Most at once.
    pub burst: f64,
    /// How long it holds them if nothing more is heard of the leader, in milliseconds; null: it holds none.
    pub lease_ms: Option<u64>,
}

/// A line of the table of owners.
#[derive(Debug, Serialize)]
pub struct Owner {
    /// The gateway.
    pub node_name: String,
    /// Tokens per second that it was lent last.
    pub per_second: f64,
    /// Most at once.
    pub burst: f64,
    /// Requests per second that come to it, refused ones included.
    pub demand: f64,
}

fn held(rights: &RightsView, now: Instant) -> Held {
    let until = rights.until.filter(|until| now < *until);
    let share = until.and_then(|_| rights.held.get(&rate::ID)).copied().unwrap_or_default();
    let (per_second, burst) = share.tokens();
    let left = until.map(|until| until.saturating_duration_since(now).as_millis());
    Held { per_second, burst, lease_ms: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX)) }
}

fn owner(owner: &issuer::Owner) -> Owner {
    let (per_second, burst) = owner.share.tokens();
    let demand = owner.demand as f64 / TOKEN as f64;
    Owner { node_name: owner.node.to_string(), per_second, burst, demand }
}

/// The limit.
#[must_use]
pub fn shown(view: &View, rights: &RightsView, mode: WithoutQuorum, limiter: &Limiter, now: Instant) -> Shown {
    let quota = limiter.stats(now).quota;
    let is_set = view.rate_limit.as_ref().is_some_and(|spec| rate::of_spec(spec).is_ok());
    Shown {
        limit_per_second: quota.map_or(0, |quota| quota.per_second as u64),
        burst: quota.map_or(0, |quota| quota.burst as u64),
        source: if is_set { "api" } else { "flag" },
        scope: "cluster",
        without_quorum: mode.as_str(),
        rights: if quota.is_some() { rights.standing(now) } else { "off" },
    }
}

/// The figures.
#[must_use]
pub fn stats(view: &View, rights: &RightsView, mode: WithoutQuorum, limiter: &Limiter, now: Instant) -> Stats {
    let stats = limiter.stats(now);
    Stats {
        node_name: view.node.to_string(),
        limit: shown(view, rights, mode, limiter, now),
        held: held(rights, now),
        owners: rights.owners.as_ref().map(|owners| owners.get(&rate::ID).into_iter().flatten().map(owner).collect()),
        remaining: stats.remaining,
        allowed: stats.admitted,
        rejected: stats.refused,
    }
}
