//! What a gateway used last, for one that has just come or when it goes: the latest first, a piece at a time.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use crate::{
    gateway::{
        placement::{self, TICK_MS},
        prefix::index::Hot,
        view::RoutingView,
    },
    mesh::{node::NodeName, routing::Placement},
};

/// Names in a piece: about 32 KiB. With one piece per batch interval a transfer takes about 600 KiB/s.
const PIECE_NAMES: usize = 3_000;

/// Names of one placement at most, so that ages stay close to the truth.
const GROUP_NAMES_MAX: usize = 256;

/// One transfer on its way.
#[derive(Debug)]
pub struct Transfer {
    /// Whom it is for; none: for all.
    pub to: Option<NodeName>,
    /// The last piece first.
    pieces: Vec<Vec<Placement>>,
}

impl Transfer {
    /// Of at most `names_max` names of each model in the table.
    #[must_use]
    pub fn of(view: &RoutingView, to: Option<NodeName>, names_max: usize, now: Instant) -> Self {
        let tick = placement::tick(now);
        let mut pieces = Vec::new();
        let routes = view.models.values().chain([&view.any, &view.wildcard]);
        for route in routes {
            let index = route.affinity.as_ref().and_then(|affinity| affinity.index.as_deref());
            let hot = index.map(|index| index.hottest(names_max, tick)).unwrap_or_default();
            pieces.extend(hot.chunks(PIECE_NAMES).map(|piece| grouped(&route.label, piece)));
        }
        pieces.reverse();
        Self { to, pieces }
    }

    /// The next piece; none when all were sent.
    #[must_use]
    pub fn peek(&self) -> Option<Vec<Placement>> {
        self.pieces.last().cloned()
    }

    /// The piece was sent.
    pub fn advance(&mut self) {
        self.pieces.pop();
    }

    /// Whether all was sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// Names of equal worker and similar age together. The oldest first, so that the receiver's table keeps their order.
fn grouped(model: &Arc<str>, piece: &[Hot]) -> Vec<Placement> {
    let mut groups: BTreeMap<_, Vec<&Hot>> = BTreeMap::new();
    for hot in piece {
        groups.entry((std::cmp::Reverse(hot.age / 8), hot.holder)).or_default().push(hot);
    }
    let placement = |hot: &[&Hot]| Placement {
        model: model.clone(),
        worker: hot[0].holder.tag,
        generation: hot[0].holder.generation,
        age_ms: hot[0].age.saturating_mul(TICK_MS),
        names: hot.iter().map(|hot| hot.name).collect(),
    };
    groups.values().flat_map(|group| group.chunks(GROUP_NAMES_MAX).map(placement)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        config::{Cache, PolicyKind},
        gateway::{
            policy::mix,
            prefix::{
                Index,
                chain::tests::key,
                index::{Candidates, Holder},
            },
            view::{Affinity, Route},
        },
    };

    fn view(index: &Arc<Index>) -> RoutingView {
        let affinity = Affinity { key: Arc::new(key(1)), index: Some(index.clone()), rules: Cache::default() };
        let mut route = Route::new("m".into(), PolicyKind::CacheAware, Vec::new());
        route.affinity = Some(affinity);
        RoutingView { models: [("m".into(), Arc::new(route))].into(), ..RoutingView::default() }
    }

    #[test]
    fn everything_arrives_the_latest_first_and_in_frames() {
        let (here, there) = (Arc::new(Index::new(1 << 22)), Index::new(1 << 22));
        let now = Instant::now();
        let names: Vec<u64> = (0..10_000).map(|n| mix(n).max(2)).collect();
        for (n, name) in names.iter().enumerate() {
            let tick = placement::tick(now).wrapping_sub((names.len() - n) as u32 / 4);
            here.record([*name], Holder { tag: 1 + n as u32 % 3, generation: 2 }, tick);
        }
        let mut transfer = Transfer::of(&view(&here), None, 20_000, now);
        let mut pieces = 0;
        while let Some(piece) = transfer.peek() {
            let frame = crate::mesh::wire::routing::encode(&crate::mesh::routing::Message::Placements(piece.clone()));
            assert!(crate::mesh::wire::routing::decode(&frame).is_ok(), "{} bytes", frame.len());
            if pieces == 0 {
                assert!(piece.iter().any(|placement| placement.names.contains(&names[9_999])));
                assert!(!piece.iter().any(|placement| placement.names.contains(&names[0])));
            }
            for placement in piece {
                let holder = Holder { tag: placement.worker, generation: placement.generation };
                there.record(placement.names, holder, 1_000_000 - placement.age_ms / TICK_MS);
            }
            transfer.advance();
            pieces += 1;
        }
        assert!(transfer.is_done() && pieces >= 4);
        for (n, name) in names.iter().enumerate() {
            let mut seen = Candidates::default();
            assert!(there.note(*name, 1, &mut seen));
            assert_eq!(seen.as_slice(), [(Holder { tag: 1 + n as u32 % 3, generation: 2 }, 1)]);
        }
    }

    #[test]
    fn of_more_than_wanted_the_oldest_stay_behind() {
        let here = Arc::new(Index::new(1 << 22));
        let now = Instant::now();
        for n in 0..1000 {
            let tick = placement::tick(now).wrapping_sub(1000 - n);
            here.record([mix(n.into()).max(2)], Holder { tag: 1, generation: 0 }, tick);
        }
        let transfer = Transfer::of(&view(&here), None, 100, now);
        let names: Vec<u64> = transfer.pieces.iter().flatten().flat_map(|placement| placement.names.clone()).collect();
        assert_eq!(names.len(), 100);
        assert!((900..1000).all(|n| names.contains(&mix(n).max(2))));
    }
}
