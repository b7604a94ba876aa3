//! A short slice of `cargo bench --bench affinity`.

use super::*;

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
