//! Two limits that both bind, shared out over two gateways, when all requests come to the other one.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use http::HeaderMap;

use super::RateLimits;
use crate::{
    config::RateLimit,
    gateway::{limiter::Limiter, limits, selector::Selector},
    mesh::{
        driver::rights::SharedLimit,
        node::NodeName,
        quota::{
            Buckets, Escrow, Holding, Kind, Lead, Timing, Usage,
            local::WithoutQuorum,
            share::{LimitId, Share},
        },
    },
};

/// Requests per second of each limit, and of the clients.
const LIMIT: u32 = 100;
const DEMAND: u32 = 300;

const STEP: Duration = Duration::from_millis(1);

struct Purse(Vec<SharedLimit>);

impl Buckets for Purse {
    fn hold(&self, now: Instant, limit: LimitId, holding: &Holding) -> u64 {
        self.0.iter().find(|shared| shared.id == limit).map_or(0, |shared| shared.bucket.hold(now, holding))
    }

    fn usage(&self, limit: LimitId) -> Usage {
        self.0.iter().find(|shared| shared.id == limit).map(|shared| shared.bucket.usage()).unwrap_or_default()
    }
}

struct Gateway {
    name: NodeName,
    escrow: Escrow,
    limits: RateLimits,
    purse: Purse,
}

impl Gateway {
    /// With a limit of all requests and one of the same size for a model.
    fn new(name: &str, now: Instant, leads: bool) -> Self {
        let rate = RateLimit { per_second: LIMIT, burst: LIMIT / 5 };
        let limits = RateLimits::default();
        limits::put(&limits.all, Some(rate), true, now);
        limits.set_scoped(&[(Selector { key: None, model: Some("m".into()) }, rate)], true, now);
        let purse = Purse(limits.to_share());
        let name: NodeName = name.parse().unwrap();
        let mut escrow = Escrow::new(name.clone(), Kind::Rates, Timing::default(), WithoutQuorum::Closed, now, 1);
        let whole: BTreeMap<LimitId, Share> = purse.0.iter().map(|shared| (shared.id, shared.whole)).collect();
        escrow.handle_limits(now, &whole, true, &purse);
        let lead = leads.then(|| Lead { term: 1, until: now + Duration::from_secs(3600) });
        escrow.handle_leader(now, Some(&"a".parse().unwrap()), lead, &purse);
        Self { name, escrow, limits, purse }
    }

    fn admits(&self, now: Instant) -> bool {
        self.limits.admit(&HeaderMap::new(), Some("m"), || now).is_ok()
    }
}

/// How many of the requests that come to the `busy` one of two gateways within `span` are admitted.
fn run(gateways: &mut [Gateway; 2], now: &mut Instant, busy: usize, span: Duration) -> u32 {
    let (end, mut owed, mut admitted) = (*now + span, 0.0, 0);
    while *now < end {
        *now += STEP;
        owed += f64::from(DEMAND) * STEP.as_secs_f64();
        while owed >= 1.0 {
            owed -= 1.0;
            admitted += u32::from(gateways[busy].admits(*now));
        }
        for from in [0, 1] {
            let gateway = &mut gateways[from];
            if gateway.escrow.poll_timeout().is_some_and(|due| due <= *now) {
                gateway.escrow.handle_timeout(*now, &gateway.purse);
            }
            while let Some(sent) = gateways[from].escrow.poll_transmit() {
                let name = gateways[from].name.clone();
                let to = &mut gateways[1 - from];
                to.escrow.handle_message(*now, &name, &sent.message, &to.purse);
            }
        }
    }
    admitted
}

#[test]
fn both_limits_follow_the_requests() {
    let start = Instant::now();
    let mut gateways = [Gateway::new("a", start, true), Gateway::new("b", start, false)];
    let mut now = start;
    run(&mut gateways, &mut now, 0, Duration::from_secs(5));
    let mut soon = 0;
    for busy in [1, 0, 1] {
        let [first, _, then] =
            [500, 1500, 1000].map(|ms| run(&mut gateways, &mut now, busy, Duration::from_millis(ms)));
        soon += first;
        assert!(then >= LIMIT * 9 / 10, "{then} of {LIMIT} in the third second");
    }
    // Were the demand of one hidden behind the other, its share would come after the other's, and this be 42.
    assert!(soon >= 50, "{soon} of 150 in the first half second after each shift");
}

#[test]
fn a_request_counts_as_refused_in_each_that_had_no_token() {
    let now = Instant::now();
    let rate = |burst| RateLimit { per_second: 1, burst };
    let limits = RateLimits::of(std::sync::Arc::new(Limiter::new(Some(rate(2).into()), now)));
    let scoped = |model: &str| Selector { key: None, model: Some(model.into()) };
    limits.set_scoped(&[(scoped("m"), rate(1)), (scoped("n"), rate(9))], false, now);
    let refused = |limits: &RateLimits| {
        let scoped = limits.scoped();
        let all = scoped.iter().map(|limit| &limit.limiter).chain([&limits.all]);
        all.map(|limiter| limiter.stats(now).refused).collect::<Vec<u64>>()
    };
    for (case, model, expected) in [
        ("admitted", "m", [0, 0, 0]),
        ("the model has no token", "m", [1, 0, 0]),
        ("the last of all", "n", [1, 0, 0]),
        ("neither has one", "m", [2, 0, 1]),
        ("all have none, the model has", "n", [2, 0, 2]),
    ] {
        let _ = limits.admit(&HeaderMap::new(), Some(model), || now);
        assert_eq!(refused(&limits), expected, "{case}");
    }
}
