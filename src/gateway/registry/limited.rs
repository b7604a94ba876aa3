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
}

impl Limited {
    /// As a view of the cluster has them; `flags` hold where it says nothing of all requests.
    pub(super) fn of(view: &View, flags: Terms) -> Self {
        let said = rate::of_all(view.rate_limit.as_ref(), &view.rate_limits);
        Self { all: said.or(flags), scoped: rate::scoped(&view.rate_limits), is_shared: view.mesh_enabled }
    }

    /// Whether there is any limit per second, and any in flight.
    pub(super) fn kinds(&self) -> [bool; 2] {
        let all = || self.scoped.iter().map(|(_, terms)| terms).chain([&self.all]);
        [all().any(|terms| terms.rate.is_some()), all().any(|terms| terms.concurrent.is_some())]
    }
}
