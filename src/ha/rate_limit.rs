//! `/ha/rate-limit`: how many requests per second are admitted, and how many were.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use serde::Serialize;

use crate::{
    config::RateLimit,
    gateway::{
        limiter::Limiter,
        limits::{self, RateLimits},
        rate,
        selector::Selector,
    },
    mesh::{
        driver::{
            handle::{LimitUsage, UsageByLimit, View},
            rights::RightsView,
        },
        node::{NodeName, NodeStatus},
        quota::{
            Tokens, Usage, issuer,
            local::WithoutQuorum,
            share::{LimitId, TOKEN},
        },
    },
};

/// The limit of all requests at this gateway, and how limits work here.
#[derive(Debug, Serialize)]
pub struct InForce {
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

/// The limits at this gateway.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Of all requests.
    #[serde(flatten)]
    pub in_force: InForce,
    /// The limits of some requests, in the order in which they are looked at; after them those that have no effect.
    pub limits: Vec<Scoped>,
}

/// A limit of the requests of one key, for one model, or both.
#[derive(Debug, Serialize)]
pub struct Scoped {
    /// The first 16 hexadecimal digits of the key's SHA-256; null: any key, and none.
    pub key: Option<String>,
    /// The model; null: any.
    pub model: Option<String>,
    /// Tokens per second.
    pub limit_per_second: u64,
    /// Most at once.
    pub burst: u64,
    /// Whether requests are held to it; not where gateways that were told at once have set more than there may be.
    pub in_force: bool,
}

impl Scoped {
    fn of(selector: &Selector, limit_per_second: u64, burst: u64, in_force: bool) -> Self {
        let key = selector.key.map(|key| key.to_string());
        Self { key, model: selector.model.as_deref().map(str::to_owned), limit_per_second, burst, in_force }
    }
}

/// What became of the requests that one such limit selects.
#[derive(Debug, Serialize)]
pub struct ScopedStats {
    /// Which.
    #[serde(flatten)]
    pub limit: Scoped,
    /// As in [`Stats`].
    #[serde(flatten)]
    pub figures: Figures,
}

/// The figures of one limit.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// What this gateway holds of it now.
    pub held: Held,
    /// What each gateway may hold, as the leader's table of owners has it; null at the others.
    pub owners: Option<Vec<Owner>>,
    /// Whole tokens that are there now at this gateway; null without a limit.
    pub remaining: Option<u64>,
    /// Requests admitted since the gateway started, while there was a limit; for a limit of some requests since it was put
    /// in force here last.
    pub allowed: u64,
    /// Requests refused since then; one that several limits had no token for counts in each.
    pub rejected: u64,
    /// What all gateways count together.
    pub cluster: Total,
}

/// What all gateways admitted and refused, over their restarts, while there was a limit, and the tokens in their hands. Each
/// tells it once a second.
#[derive(Debug, Default, Serialize)]
pub struct Total {
    /// Requests admitted.
    pub allowed: u64,
    /// Requests refused.
    pub rejected: u64,
    /// Tokens in the bucket of the cluster: those in the hands of gateways that are not DOWN, at most the burst, since one that
    /// moved within the second before may be told of twice; null without a limit.
    pub tokens: Option<f64>,
    /// By gateway, sorted by name; one that is a member no more is not counted.
    pub nodes: Vec<Column>,
}

/// What one gateway counts.
#[derive(Debug, Serialize)]
pub struct Column {
    /// The gateway.
    pub node_name: String,
    /// Requests admitted.
    pub allowed: u64,
    /// Requests refused.
    pub rejected: u64,
    /// Tokens in its hands; at the leader with those that nobody holds. Of one that is DOWN none: its lease is over.
    pub tokens: f64,
}

impl Total {
    /// Of a limit with that burst, where there is one.
    fn of(usage: &LimitUsage, view: &View, burst: Option<f64>) -> Self {
        let is_there = |name: &NodeName| view.nodes.iter().any(|n| n.name == *name && n.status != NodeStatus::Down);
        let names: BTreeSet<&NodeName> = usage.requests.keys().chain(usage.tokens.keys()).collect();
        let column = |node: &NodeName| {
            let Usage { admitted, refused } = usage.requests.get(node).copied().unwrap_or_default();
            let tokens = usage.tokens.get(node).filter(|_| is_there(node)).copied().unwrap_or_default();
            let tokens = tokens.left() as f64 / Tokens::PER_TOKEN as f64;
            Column { node_name: node.to_string(), allowed: admitted, rejected: refused, tokens }
        };
        let nodes: Vec<Column> = names.into_iter().map(column).collect();
        let sum = |count: fn(&Column) -> u64| nodes.iter().map(count).fold(0, u64::saturating_add);
        let tokens = burst.map(|burst| nodes.iter().map(|node| node.tokens).sum::<f64>().min(burst));
        Self { allowed: sum(|node| node.allowed), rejected: sum(|node| node.rejected), tokens, nodes }
    }
}

/// What became of the requests of this gateway.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// This gateway.
    pub node_name: String,
    /// As `/ha/rate-limit` shows it.
    #[serde(flatten)]
    pub in_force: InForce,
    /// Of the limit of all requests.
    #[serde(flatten)]
    pub figures: Figures,
    /// Of the limits of some.
    pub limits: Vec<ScopedStats>,
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

/// What both answers are made from.
#[derive(Debug)]
pub struct Sources {
    /// The cluster.
    pub view: Arc<View>,
    /// What the leader lends.
    pub rights: RightsView,
    /// What there is without a leader.
    pub without_quorum: WithoutQuorum,
    /// The buckets.
    pub limits: Arc<RateLimits>,
    /// When.
    pub now: Instant,
}

impl Sources {
    /// The limits.
    #[must_use]
    pub fn shown(&self) -> Shown {
        let scoped = self.limits.scoped();
        let limits = scoped.iter().map(|limit| self.scoped(limit)).chain(self.surplus(&scoped)).collect();
        Shown { in_force: self.in_force(&scoped), limits }
    }

    /// The figures.
    #[must_use]
    pub fn stats(&self, usage: &UsageByLimit) -> Stats {
        let scoped = self.limits.scoped();
        let of_scoped = |limit: &limits::Scoped| ScopedStats {
            limit: self.scoped(limit),
            figures: self.figures(limit.selector.limit_id(), &limit.limiter, usage),
        };
        Stats {
            node_name: self.view.node.to_string(),
            in_force: self.in_force(&scoped),
            figures: self.figures(rate::ID, &self.limits.all, usage),
            limits: scoped.iter().map(of_scoped).collect(),
        }
    }

    fn in_force(&self, scoped: &[limits::Scoped]) -> InForce {
        let Self { view, rights, limits, now, .. } = self;
        let (limit_per_second, burst) = self.whole(&limits.all);
        let is_set = view.rate_limit.as_ref().is_some_and(|spec| rate::of_spec(spec).is_ok());
        InForce {
            limit_per_second,
            burst,
            source: if is_set { "api" } else { "flag" },
            scope: "cluster",
            without_quorum: self.without_quorum.as_str(),
            rights: if limit_per_second > 0 || !scoped.is_empty() { rights.standing(*now) } else { "off" },
        }
    }

    /// Tokens per second and most at once; zeros without a limit.
    fn whole(&self, limiter: &Limiter) -> (u64, u64) {
        let quota = limiter.stats(self.now).quota;
        quota.map_or((0, 0), |quota| (quota.per_second as u64, quota.burst as u64))
    }

    /// All limits, by what the mesh calls them.
    #[must_use]
    pub fn ids(&self) -> Vec<LimitId> {
        self.limits.scoped().iter().map(|limit| limit.selector.limit_id()).chain([rate::ID]).collect()
    }

    fn scoped(&self, limit: &limits::Scoped) -> Scoped {
        let (per_second, burst) = self.whole(&limit.limiter);
        Scoped::of(&limit.selector, per_second, burst, true)
    }

    /// The limits of the cluster that are not in force here.
    fn surplus(&self, in_force: &[limits::Scoped]) -> Vec<Scoped> {
        let is_surplus =
            |(selector, _): &(Selector, RateLimit)| !in_force.iter().any(|limit| limit.selector == *selector);
        let shown = |(selector, limit): (Selector, RateLimit)| {
            Scoped::of(&selector, limit.per_second.into(), limit.burst.into(), false)
        };
        rate::scoped(&self.view.rate_limits).into_iter().filter(is_surplus).map(shown).collect()
    }

    fn figures(&self, id: LimitId, limiter: &Limiter, usage: &UsageByLimit) -> Figures {
        let stats = limiter.stats(self.now);
        let owners = self.rights.owners.as_ref();
        Figures {
            held: self.held(id),
            owners: owners.map(|owners| owners.get(&id).into_iter().flatten().map(owner).collect()),
            remaining: stats.remaining,
            allowed: stats.admitted,
            rejected: stats.refused,
            cluster: Total::of(
                usage.get(&id).unwrap_or(&LimitUsage::default()),
                &self.view,
                stats.quota.map(|quota| quota.burst),
            ),
        }
    }

    fn held(&self, id: LimitId) -> Held {
        let until = self.rights.until.filter(|until| self.now < *until);
        let share = until.and_then(|_| self.rights.held.get(&id)).copied().unwrap_or_default();
        let (per_second, burst) = share.tokens();
        let left = until.map(|until| until.saturating_duration_since(self.now).as_millis());
        Held { per_second, burst, lease_ms: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX)) }
    }
}

fn owner(owner: &issuer::Owner) -> Owner {
    let (per_second, burst) = owner.share.tokens();
    let demand = owner.demand as f64 / TOKEN as f64;
    Owner { node_name: owner.node.to_string(), per_second, burst, demand }
}
