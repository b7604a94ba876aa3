//! `/ha/rate-limit`: how many requests are admitted, per second and in flight, and how many were.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use serde::Serialize;

use crate::{
    config::RateLimit,
    gateway::{
        bounds::Bound,
        limiter::Limiter,
        limits::RateLimits,
        rate::{self, Said, Terms},
        selector::Selector,
        slots::{self, BREAK_AHEAD},
    },
    mesh::{
        driver::{
            handle::{LimitUsage, UsageByLimit, View},
            rights::{Lent, RightsView},
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
    /// Requests in flight at all gateways together; 0: no bound.
    pub concurrent: u32,
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
    /// Tokens per second; 0: no limit.
    pub limit_per_second: u64,
    /// Most at once.
    pub burst: u64,
    /// Requests in flight at all gateways together; 0: no bound.
    pub concurrent: u32,
    /// Whether requests are held to it; not where gateways that were told at once have set more than there may be.
    pub in_force: bool,
}

impl Scoped {
    fn of(selector: &Selector, terms: Terms, in_force: bool) -> Self {
        let (limit_per_second, burst) = terms.rate.map_or((0, 0), |rate| (rate.per_second.into(), rate.burst.into()));
        let (key, model) = (selector.key.map(|key| key.to_string()), selector.model.as_deref().map(str::to_owned));
        Self { key, model, limit_per_second, burst, concurrent: terms.concurrent.unwrap_or(0), in_force }
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
    /// Of the bound on requests in flight; null without one.
    pub in_flight: Option<InFlight>,
}

/// The figures of a bound on requests in flight.
#[derive(Debug, Serialize)]
pub struct InFlight {
    /// What this gateway may have in flight now.
    pub held: u64,
    /// What it has. For a time more than it holds, where its share became smaller while requests ran.
    pub here: u64,
    /// How long it may have them if nothing more is heard of the leader, in milliseconds; then they are broken.
    pub lease_ms: Option<u64>,
    /// Requests refused here since the bound was put in force here last.
    pub rejected: u64,
    /// What each gateway may have in flight, as the leader's table of owners has it; null at the others.
    pub owners: Option<Vec<SlotOwner>>,
}

/// A line of that table.
#[derive(Debug, Serialize)]
pub struct SlotOwner {
    /// The gateway.
    pub node_name: String,
    /// Slots that it was lent last.
    pub slots: u64,
    /// What it may have in flight, what was in use when its share became smaller included.
    pub bound: u64,
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
        let scoped = self.scoped();
        let limits = scoped.iter().map(|(selector, terms)| Scoped::of(selector, *terms, true));
        Shown { limits: limits.chain(self.surplus(&scoped)).collect(), in_force: self.in_force(&scoped) }
    }

    /// The figures.
    #[must_use]
    pub fn stats(&self, usage: &UsageByLimit) -> Stats {
        let (scoped, rates) = (self.scoped(), self.limits.scoped());
        let none = Limiter::default();
        let of_scoped = |(selector, terms): &(Selector, Terms)| {
            let limiter = rates.iter().find(|limit| limit.selector == *selector).map(|limit| &*limit.limiter);
            let figures = self.figures(selector, limiter.unwrap_or(&none), usage);
            ScopedStats { limit: Scoped::of(selector, *terms, true), figures }
        };
        Stats {
            node_name: self.view.node.to_string(),
            in_force: self.in_force(&scoped),
            figures: self.figures(&Selector::default(), &self.limits.all, usage),
            limits: scoped.iter().map(of_scoped).collect(),
        }
    }

    fn in_force(&self, scoped: &[(Selector, Terms)]) -> InForce {
        let Self { view, rights, limits, now, .. } = self;
        let (limit_per_second, burst) = self.whole(&limits.all);
        let concurrent = self.bound(&Selector::default()).map_or(0, |bound| bound.concurrent);
        let of_rates = limit_per_second > 0 || scoped.iter().any(|(_, terms)| terms.rate.is_some());
        let of_slots = concurrent > 0 || scoped.iter().any(|(_, terms)| terms.concurrent.is_some());
        let is_set = rate::of_all(view.rate_limit.as_ref(), &view.rate_limits) != Said::default();
        InForce {
            limit_per_second,
            burst,
            source: if is_set { "api" } else { "flag" },
            scope: "cluster",
            without_quorum: self.without_quorum.as_str(),
            concurrent,
            rights: rights.standing(*now, of_rates, of_slots),
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
        self.scoped().iter().map(|(selector, _)| selector.limit_id()).chain([rate::ID]).collect()
    }

    /// The limits of some requests that are in force.
    fn scoped(&self) -> Vec<(Selector, Terms)> {
        let mut all: BTreeMap<Selector, Terms> = BTreeMap::new();
        for limit in self.limits.scoped().iter() {
            let quota = limit.limiter.stats(self.now).quota;
            let rate = quota.map(|quota| RateLimit { per_second: quota.per_second as u32, burst: quota.burst as u32 });
            all.entry(limit.selector.clone()).or_default().rate = rate;
        }
        for bound in self.limits.bounds.in_force().iter().filter(|bound| !bound.selector.is_all()) {
            all.entry(bound.selector.clone()).or_default().concurrent = Some(bound.concurrent);
        }
        all.into_iter().collect()
    }

    fn bound(&self, selector: &Selector) -> Option<Bound> {
        self.limits.bounds.in_force().iter().find(|bound| bound.selector == *selector).cloned()
    }

    /// The limits of the cluster that are not in force here.
    fn surplus(&self, in_force: &[(Selector, Terms)]) -> Vec<Scoped> {
        let is_surplus = |(selector, _): &(Selector, Terms)| !in_force.iter().any(|(known, _)| known == selector);
        let shown = |(selector, terms): (Selector, Terms)| Scoped::of(&selector, terms, false);
        rate::scoped(&self.view.rate_limits).into_iter().filter(is_surplus).map(shown).collect()
    }

    fn figures(&self, selector: &Selector, limiter: &Limiter, usage: &UsageByLimit) -> Figures {
        let id = selector.limit_id();
        let stats = limiter.stats(self.now);
        let owners = self.rights.rates.owners.as_ref();
        Figures {
            held: self.held(id),
            owners: owners.map(|owners| owners.get(&id).into_iter().flatten().map(owner).collect()),
            remaining: stats.remaining,
            allowed: stats.admitted,
            rejected: stats.refused,
            in_flight: self.in_flight(selector),
            cluster: Total::of(
                usage.get(&id).unwrap_or(&LimitUsage::default()),
                &self.view,
                stats.quota.map(|quota| quota.burst),
            ),
        }
    }

    fn held(&self, id: LimitId) -> Held {
        let Lent { until, held, .. } = &self.rights.rates;
        let until = until.filter(|until| self.now < *until);
        let share = until.and_then(|_| held.get(&id)).copied().unwrap_or_default();
        let (per_second, burst) = share.tokens();
        Held { per_second, burst, lease_ms: self.left_ms(until) }
    }

    fn left_ms(&self, until: Option<Instant>) -> Option<u64> {
        let left = until?.checked_duration_since(self.now)?.as_millis();
        Some(u64::try_from(left).unwrap_or(u64::MAX))
    }

    fn in_flight(&self, selector: &Selector) -> Option<InFlight> {
        let slots::Stats { share, in_flight, refused } = self.bound(selector)?.slots.stats(self.now);
        let Lent { until, owners, .. } = &self.rights.slots;
        let owner = |owner: &issuer::Owner| SlotOwner {
            node_name: owner.node.to_string(),
            slots: owner.share.burst / TOKEN,
            bound: owner.bound.burst / TOKEN,
        };
        let of_limit = |owners: &BTreeMap<LimitId, Vec<issuer::Owner>>| {
            owners.get(&selector.limit_id()).into_iter().flatten().map(owner).collect()
        };
        // Local slots have no end.
        let end = until.filter(|_| !self.rights.slots.is_local).and_then(|until| until.checked_sub(BREAK_AHEAD));
        Some(InFlight {
            held: share,
            here: in_flight,
            lease_ms: self.left_ms(end),
            rejected: refused,
            owners: owners.as_ref().map(of_limit),
        })
    }
}

fn owner(owner: &issuer::Owner) -> Owner {
    let (per_second, burst) = owner.share.tokens();
    let demand = owner.demand as f64 / TOKEN as f64;
    Owner { node_name: owner.node.to_string(), per_second, burst, demand }
}
