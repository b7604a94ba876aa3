//! Who should hold how much: a pure function of what each node needs.
//!
//! A node weighs as much as requests come to it, and each an even part of what the limit has beyond all demand, at least a
//! 25th of it. So with little demand everybody has room for what may come, and with much a client is refused as
//! often at one gateway as at another, like with one bucket for all. Of the burst everybody has one token beforehand, where
//! there are so many: a first request to an idle node is not refused. Where there are more nodes than tokens, a token each, which is the least that
//! admits anything, goes to as many as there are tokens, those with demand first, in turns.
//!
//! Slots are whole: what the parts lose by rounding down goes, one each, to those that lost most (largest remainder).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::mesh::{
    node::NodeName,
    quota::{
        Kind,
        share::{Share, TOKEN, scale},
    },
};

/// How long a turn lasts where there are more nodes than tokens.
pub const TURN: Duration = Duration::from_secs(3);

/// At least one part of so many of the rate is spread evenly over all nodes.
const EVEN_PART: u64 = 25;

/// Everybody's needs, added up.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Survey {
    /// Nodes that share the limit.
    nodes: u64,
    /// Sum of the weights of those that hold anything.
    weights: u64,
    /// What each of them weighs beside its demand.
    even: u64,
    /// With more nodes than tokens, those whose turn it is.
    chosen: Option<BTreeSet<NodeName>>,
    /// Of slots: those that get one more than their part rounded down.
    favoured: Option<BTreeSet<NodeName>>,
}

impl Survey {
    /// Of all that share a limit with a burst, in the turn of that number.
    #[must_use]
    pub fn of(kind: Kind, limit: Share, demands: &BTreeMap<&NodeName, u64>, turn: u64) -> Self {
        let nodes = demands.len() as u64;
        let tokens = limit.burst / TOKEN;
        let chosen = (tokens < nodes).then(|| choose(demands, usize::try_from(tokens).unwrap_or(0), turn));
        let counts = |name: &NodeName| chosen.as_ref().is_none_or(|chosen| chosen.contains(name));
        let counted: Vec<u64> = demands.iter().filter(|(name, _)| counts(name)).map(|(_, demand)| *demand).collect();
        let demand = counted.iter().fold(0_u64, |sum, demand| sum.saturating_add(*demand));
        let count = (counted.len() as u64).max(1);
        let even = limit.rate.saturating_sub(demand).max(limit.rate / EVEN_PART) / count + 1;
        let weights = demand.saturating_add(even * count);
        let mut survey = Self { nodes, weights, even, chosen, favoured: None };
        if kind == Kind::Slots {
            survey.favoured = Some(survey.favour(limit, demands));
        }
        survey
    }

    /// Who gets the slots that are left when every part is rounded down.
    fn favour(&self, limit: Share, demands: &BTreeMap<&NodeName, u64>) -> BTreeSet<NodeName> {
        let parts = demands.iter().map(|(name, demand)| (self.part_of(limit, name, *demand).burst, *name));
        let mut parts: Vec<(u64, &NodeName)> = parts.collect();
        let whole = parts.iter().map(|(part, _)| part / TOKEN).sum::<u64>();
        let left = (limit.burst / TOKEN).saturating_sub(whole);
        parts.retain(|(part, _)| part % TOKEN > 0);
        parts.sort_by_key(|(part, name)| (std::cmp::Reverse(part % TOKEN), *name));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        parts.into_iter().take(left).map(|(_, name)| name.clone()).collect()
    }

    /// What a node with that demand should hold. Over all nodes of the survey no more than the limit.
    #[must_use]
    pub fn share_of(&self, limit: Share, node: &NodeName, demand: u64) -> Share {
        let part = self.part_of(limit, node, demand);
        let Some(favoured) = &self.favoured else { return part };
        let slots = (part.burst / TOKEN + u64::from(favoured.contains(node))) * TOKEN;
        Share { rate: slots, burst: slots }
    }

    fn part_of(&self, limit: Share, node: &NodeName, demand: u64) -> Share {
        let weight = demand.saturating_add(self.even).min(self.weights);
        match &self.chosen {
            _ if self.nodes == 0 => Share::NONE,
            Some(chosen) if chosen.contains(node) => Share {
                rate: scale(limit.rate, weight, self.weights),
                burst: limit.burst / (chosen.len() as u64).max(1),
            },
            Some(_) => Share::NONE,
            None => {
                let least = Share { rate: 0, burst: TOKEN };
                let even = Share { rate: 0, burst: TOKEN * self.nodes };
                least.plus(limit.minus(even).part(weight, self.weights))
            }
        }
    }
}

fn choose(demands: &BTreeMap<&NodeName, u64>, count: usize, turn: u64) -> BTreeSet<NodeName> {
    let in_turn = |has_demand: bool| {
        let names: Vec<_> = demands.iter().filter(|(_, demand)| (**demand > 0) == has_demand).collect();
        let start = usize::try_from(turn % (names.len() as u64).max(1)).unwrap_or(0);
        let count = names.len();
        names.into_iter().cycle().skip(start).take(count).map(|(name, _)| (*name).clone()).collect::<Vec<_>>()
    };
    in_turn(true).into_iter().chain(in_turn(false)).take(count).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn names(count: usize) -> Vec<NodeName> {
        (0..count).map(|n| format!("n{n:02}").parse().unwrap()).collect()
    }

    fn shares(limit: Share, demands: &[u64], turn: u64) -> Vec<Share> {
        shares_of(Kind::Rates, limit, demands, turn)
    }

    fn shares_of(kind: Kind, limit: Share, demands: &[u64], turn: u64) -> Vec<Share> {
        let names = names(demands.len());
        let by_name = names.iter().zip(demands.iter().map(|tokens| tokens * TOKEN)).collect();
        let survey = Survey::of(kind, limit, &by_name, turn);
        names.iter().map(|name| survey.share_of(limit, name, by_name[name])).collect()
    }

    #[test]
    fn shares_follow_the_demand() {
        for (case, demands, turn, expected) in [
            ("idle", [0, 0, 0], 0, [(33, 6), (33, 6), (33, 6)]),
            ("even", [90, 90, 90], 0, [(33, 6), (33, 6), (33, 6)]),
            ("a little on one", [30, 0, 0], 0, [(53, 10), (23, 4), (23, 4)]),
            ("all on one", [500, 0, 0], 0, [(99, 17), (0, 1), (0, 1)]),
            ("two to one", [200, 100, 0], 0, [(66, 12), (33, 6), (0, 1)]),
        ] {
            let found = shares(Share::of_tokens(100, 20), &demands, turn);
            let whole: Vec<_> = found.iter().map(|share| (share.rate / TOKEN, share.burst / TOKEN)).collect();
            assert_eq!(whole, expected, "{case}");
        }
    }

    #[test]
    fn few_tokens_go_round() {
        let limit = Share::of_tokens(10, 1);
        let holders =
            |demands: &[u64], turn| shares(limit, demands, turn).iter().position(|share| share.burst == TOKEN);
        for (turn, holder) in [(0, 0), (1, 1), (2, 2), (3, 0)] {
            assert_eq!(holders(&[5, 5, 5], turn), Some(holder), "all in turn {turn}");
            assert_eq!(holders(&[0, 5, 0], turn), Some(1), "one in turn {turn}");
        }
        let two = shares(Share::of_tokens(10, 2), &[5, 0, 5], 0);
        assert_eq!(two[1], Share::NONE);
        assert!(two[0] == two[2] && Share::of_tokens(5, 1).covers(two[0]), "{two:?}");
        assert_eq!(shares(Share::NONE, &[1, 2], 0), [Share::NONE; 2]);
    }

    #[test]
    fn slots_are_whole_and_none_is_left() {
        for (case, slots, demands, expected) in [
            ("idle", 10, [0, 0, 0], [4, 3, 3]),
            ("even", 10, [90, 90, 90], [4, 3, 3]),
            ("all on one", 10, [0, 50, 0], [1, 8, 1]),
            ("two to one", 20, [200, 100, 0], [12, 7, 1]),
            ("as many as nodes", 3, [5, 0, 0], [1, 1, 1]),
            ("fewer than nodes", 2, [0, 5, 5], [0, 1, 1]),
        ] {
            let found = shares_of(Kind::Slots, Share::of_tokens(slots, slots), &demands, 0);
            let whole: Vec<_> = found.iter().map(|share| share.burst / TOKEN).collect();
            assert_eq!(whole, expected, "{case}");
            assert!(found.iter().all(|share| share.burst % TOKEN == 0 && share.rate == share.burst), "{found:?}");
            assert_eq!(whole.iter().sum::<u64>(), slots, "{case}");
        }
    }

    proptest! {
        /// Whatever the needs, no more than the limit is shared out, and next to nothing is left over where anybody has
        /// use for it.
        #[test]
        fn all_of_the_limit_and_no_more(
            rate in 1..=10_000_000_u64,
            burst in 1..=10_000_000_u64,
            demands in proptest::collection::vec(0..20_000_000_u64, 1..12),
            turn in 0..9_u64,
        ) {
            let limit = Share::of_tokens(rate, burst);
            let total = shares(limit, &demands, turn).into_iter().fold(Share::NONE, Share::plus);
            prop_assert!(limit.covers(total), "{total:?} of {limit:?}");
            let lost = limit.minus(total);
            prop_assert!(lost.rate <= 24 && lost.burst <= 24, "{lost:?} is left of {limit:?}");
        }
    }
}
