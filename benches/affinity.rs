//! Cache-aware routing of several gateways, simulated. Run with `cargo bench --bench affinity`.
//!
//! Seeded and in virtual time, so the figures hold everywhere. The last columns say how the goals stand: hits as a share
//! of the oracle's, at least 0.95 with up to 3 gateways and 0.90 with 8; coefficient of variation of the requests per
//! worker at most 0.15; at most 512 KiB/s sent per gateway.

#![allow(clippy::print_stdout)]

use smg::gateway::sim::{Mode, Scenario, run};

fn main() {
    let small = Scenario { workers: 4, sessions_per_second: 5.0, ..Scenario::default() };
    let middle = Scenario { workers: 32, sessions_per_second: 40.0, ..Scenario::default() };
    let large = Scenario { workers: 240, sessions_per_second: 300.0, systems: 200, seconds: 60, ..Scenario::default() };
    let mut missed = 0;
    for (name, scenario) in [("small", small), ("middle", middle), ("large", large)] {
        println!(
            "\n{name}: {} workers of {} blocks, {} conversations/s of {} turns, {} system prompts, seed {}",
            scenario.workers,
            scenario.cache_blocks,
            scenario.sessions_per_second,
            scenario.turns,
            scenario.systems,
            scenario.seed
        );
        println!(
            "{:10}{:>9}{:>10}{:>8}{:>8}{:>8}{:>12}{:>11}",
            "", "gateways", "requests", "same", "hits", "CoV", "KiB/s each", "of oracle"
        );
        let mut oracle = 0.0;
        let modes = [(Mode::Oracle, 1), (Mode::Random, 1), (Mode::Isolated, 3), (Mode::Isolated, 8), (Mode::Silent, 3)];
        let shared = [1, 3, 8].map(|gateways| (Mode::Shared, gateways));
        for (mode, gateways) in modes.into_iter().chain([(Mode::Silent, 8)]).chain(shared) {
            let found = run(&Scenario { mode, gateways, ..scenario.clone() });
            if mode == Mode::Oracle {
                oracle = found.hit_share;
            }
            let ratio = found.hit_share / oracle;
            let goal = if gateways > 3 { 0.90 } else { 0.95 };
            let holds = ratio >= goal && found.cov <= 0.15 && found.bytes_per_second <= 512.0 * 1024.0;
            missed += u32::from(mode == Mode::Shared && !holds);
            println!(
                "{:10}{gateways:>9}{:>10}{:>8.3}{:>8.3}{:>8.3}{:>12.1}{ratio:>11.3}{}",
                format!("{mode:?}").to_lowercase(),
                found.requests,
                found.same_worker,
                found.hit_share,
                found.cov,
                found.bytes_per_second / 1024.0,
                if mode == Mode::Shared && !holds { "   MISSED" } else { "" }
            );
        }
    }
    println!("\n{missed} goals missed");
    std::process::exit(i32::from(missed > 0));
}
