//! A short slice of `cargo bench --bench affinity`.

use super::*;
use crate::gateway::policy::cache_aware::LOAD_FLOOR;

fn of(mode: Mode, gateways: usize) -> Outcome {
    let quick = Scenario {
        seconds: 40,
        workers: 8,
        sessions_per_second: 8.0,
        think_ms: 1_500.0,
        systems: 8,
        ..Scenario::default()
    };
    run(&Scenario { mode, gateways, ..quick })
}

#[test]
fn the_same_seed_gives_the_same_outcome() {
    assert_eq!(of(Mode::Shared, 3), of(Mode::Shared, 3));
}

#[test]
fn sharing_comes_close_to_knowing_all() {
    let (oracle, random) = (of(Mode::Oracle, 1), of(Mode::Random, 1));
    for (gateways, least) in [(1, 0.95), (3, 0.95), (8, 0.90)] {
        let shared = of(Mode::Shared, gateways);
        let case = format!("{gateways} gateways: {shared:?}, oracle {oracle:?}, random {random:?}");
        assert!(shared.requests > 500, "{case}");
        assert!(shared.hit_share >= least * oracle.hit_share, "{case}");
        assert!(shared.same_worker >= 0.95, "{case}");
        assert!(shared.cov <= 0.15, "{case}");
        assert!(shared.hit_share > random.hit_share + 0.1, "{case}");
        assert!(shared.bytes_per_second <= 512.0 * 1024.0, "{case}");
    }
}

#[test]
fn homes_alone_hold_conversations_together_and_separate_gateways_do_not() {
    let (silent, isolated) = (of(Mode::Silent, 8), of(Mode::Isolated, 8));
    assert!(silent.same_worker >= 0.8, "{silent:?}");
    assert!(isolated.same_worker < 0.6, "{isolated:?}");
    assert_eq!(silent.bytes_per_second, 0.0);
}

/// One prefix that three times as many ask for as a worker batches: all workers share it, those with fewer conversations
/// taking more of it, and it pushes no conversation from its place.
#[test]
fn a_hot_prefix_is_shared_by_all_and_moves_nobody() {
    // Answers take 1.5 s, so that this many questions are in flight.
    let hot = 3.0 * LOAD_FLOOR as f64 / 1.5;
    for gateways in [1, 3] {
        let mixed = Scenario {
            seconds: 40,
            workers: 4,
            sessions_per_second: 4.0,
            think_ms: 1_500.0,
            systems: 8,
            hot_per_second: hot,
            gateways,
            ..Scenario::default()
        };
        let found = run(&mixed);
        assert!(found.hot_least.is_some_and(|least| least >= 0.2), "{found:?}");
        assert!(found.same_worker >= 0.8, "{found:?}");
        assert!(found.cov <= 0.15, "{found:?}");
        let cold = run(&Scenario { hot_per_second: 0.0, ..mixed });
        assert_eq!(cold.hot_least, None);
        assert!(found.same_worker >= cold.same_worker - 0.05, "{found:?} {cold:?}");
    }
}
