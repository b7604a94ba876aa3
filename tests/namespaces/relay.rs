//! A switch in user space in place of the bridge: `relay.py`, its rules and what it counted.

use std::{process::Command, time::Duration};

use serde_json::Value;

use crate::{
    harness::{Process, eventually},
    hosts::Hosts,
};

/// What the switch does to frames. Hosts n and m are in one zone when n ≡ m modulo `zones`.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub zones: usize,
    /// Delay of a frame within a zone, one way.
    pub inside_ms: u32,
    /// Delay between zones, more or less by up to `jitter_ms`; the order on a path stays.
    pub across_ms: u32,
    pub jitter_ms: u32,
    /// Share of frames held back by 10 to 50 ms, so that later ones overtake them.
    pub hold_percent: u32,
    /// Share of frames sent twice.
    pub double_percent: u32,
}

/// What every rule set starts from: one zone, nothing done to any frame.
pub const PLAIN: Rules =
    Rules { zones: 1, inside_ms: 0, across_ms: 0, jitter_ms: 0, hold_percent: 0, double_percent: 0 };

/// A running switch.
#[derive(Debug)]
pub struct Relay(Process);

impl Relay {
    /// Takes hosts 1 to `size` off the bridge and forwards their frames; none, and a word about it, where there is no Python.
    pub async fn start(hosts: &Hosts, size: usize, rules: &Rules) -> Option<Self> {
        if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
            eprintln!("no python3 to run tests/namespaces/relay.py");
            return None;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/namespaces/relay.py");
        let mut command = hosts.command(0, "python3");
        command.arg(script).arg("--seed").arg("20");
        for (flag, value) in [
            ("--inside-ms", rules.inside_ms),
            ("--across-ms", rules.across_ms),
            ("--jitter-ms", rules.jitter_ms),
            ("--hold-percent", rules.hold_percent),
            ("--double-percent", rules.double_percent),
        ] {
            command.args([flag, &value.to_string()]);
        }
        command.args(["--hold-min-ms", "10", "--hold-max-ms", "50", "--zones", &rules.zones.to_string()]);
        for interface in (1..=size).map(|n| format!("v{n}")) {
            let off = hosts.command(0, "ip").args(["link", "set", &interface, "nomaster"]).status().unwrap();
            assert!(off.success(), "{interface} leaves the bridge");
            command.arg(interface);
        }
        let process = Process::start_command("relay", &mut command, &[]);
        eventually(Duration::from_secs(10), "the relay forwards", async || process.log().contains("ready")).await;
        Some(Self(process))
    }

    /// Ends it; what it counted.
    pub async fn finish(mut self) -> Counts {
        self.0.signal(nix::sys::signal::Signal::SIGTERM);
        self.0.exit(Duration::from_secs(10)).await;
        let log = self.0.log();
        let counts: Value = serde_json::from_str(log.lines().last().unwrap_or_default()).unwrap_or_default();
        assert!(counts.is_object(), "the relay's counters: {log}");
        assert_eq!(counts["dropped"], 0, "the relay kept up: {counts}");
        Counts(counts)
    }
}

/// Counters of a switch that has ended.
#[derive(Debug)]
pub struct Counts(Value);

impl Counts {
    /// `frames`, `delayed` by at least 1 ms, sent `across` zones, `held_back`, `reordered`, `doubled`.
    pub fn get(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_else(|| panic!("the relay counts {name}: {}", self.0))
    }

    pub fn mean_delay_ms(&self) -> f64 {
        self.0["mean_delay_ms"].as_f64().unwrap()
    }
}
