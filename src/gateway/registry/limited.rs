//! The limits that the cluster and this gateway's flags say, as they are put in force.

use crate::{
    gateway::{
        rate::{self, Terms},
        selector::Selector,
    },
    mesh::driver::handle::View,
};

/// All of them.
#[derive(Debug, PartialEq)]
pub(super) struct Limited {
    /// Of all requests.
    pub(super) all: Terms,
    /// Of some.
    pub(super) scoped: Vec<(Selector, Terms)>,
    /// Spent from shares.
    pub(super) is_shared: bool,
    /// What this gateway has of the cluster's state is whole, so these are the limits that the cluster has.
    pub(super) is_whole: bool,
}

impl Limited {
    /// As a view of the cluster has them; `flags` hold where it says nothing of all requests.
    pub(super) fn of(view: &View, flags: Terms) -> Self {
        let said = rate::of_all(view.rate_limit.as_ref(), &view.rate_limits);
        let scoped = rate::scoped(&view.rate_limits);
        Self { all: said.or(flags), scoped, is_shared: view.mesh_enabled, is_whole: view.synced }
    }

    /// Whether there is any limit per second, and any in flight, of which each of so many gateways is lent a part. Where there
    /// are fewer tokens or slots than gateways, some have none at any time, and need not wait for any.
    pub(super) fn kinds(&self, gateways: usize) -> [bool; 2] {
        let all = || self.scoped.iter().map(|(_, terms)| terms).chain([&self.all]).filter(|_| self.is_shared);
        let is_for_all = |count: u32| usize::try_from(count).unwrap_or(usize::MAX) >= gateways;
        let has_rates = all().any(|terms| terms.rate.is_some_and(|rate| is_for_all(rate.burst)));
        [has_rates, all().any(|terms| terms.concurrent.is_some_and(is_for_all))]
    }
}
