//! Exhaustive check of the shipped election machine with three voters (DESIGN §8), by `stateright`.
//!
//! Time goes in ticks that all clocks share; the simulator is there for clocks that drift. Between two ticks any message
//! that is under way may arrive, in any order; one that has not arrived [`DELAY_TICKS`] after it was sent is lost. So every
//! interleaving, loss, delay and cut of that length occurs. A process may start anew and has forgotten everything, so
//! often as the model says. Every state within the horizon is visited. The test takes a horizon that fits a test suite; the
//! command for more is `SMG_MODEL_TICKS=8 SMG_MODEL_RESTARTS=1 cargo test --release --lib three_voters -- --nocapture`.
//! That visits 2 009 592 states, reached by 10 771 873 steps, in 45 s of one processor, with never more than one lease.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::LazyLock,
    time::{Duration, Instant},
};

use stateright::{Checker, Model, Property};

use crate::mesh::{
    election::{
        Election, ElectionConfig, Timing,
        message::{Body, Message},
        voters::Voters,
    },
    node::NodeName,
};

/// Ticks after which a message that did not arrive is lost.
const DELAY_TICKS: u32 = 1;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static NAMES: LazyLock<[NodeName; 3]> = LazyLock::new(|| ["a", "b", "c"].map(|name| name.parse().unwrap()));

const TICK: Duration = Duration::from_millis(100);

struct Voting {
    horizon: u32,
    restarts: u32,
    /// Makes promises shorter than leases: the checker must find what that leads to.
    broken: bool,
}

#[derive(Clone, Debug)]
struct State {
    tick: u32,
    restarts: u32,
    machines: [Election; 3],
    /// (sent at, from, to, message).
    network: BTreeSet<(u32, usize, usize, Wire)>,
}

/// A message with an order of its own, so that a set holds it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Wire(Message);

impl Ord for Wire {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |wire: &Self| format!("{:?}", wire.0);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Wire {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let key = |state: &Self| {
            let mut hasher = xxhash_rust::xxh3::Xxh3::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        key(self) == key(other)
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.tick, self.restarts, &self.network).hash(state);
        for machine in &self.machines {
            machine.hash_state(state);
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Action {
    Tick,
    Deliver(u32, usize, usize, Wire),
    Restart(usize),
}

fn at(tick: u32) -> Instant {
    *START + TICK * tick
}

impl Voting {
    fn machine(&self, n: usize, tick: u32) -> Election {
        // A lease of 2 ticks and a promise of as many. Two of the three want to lead, the sooner of them after 3.
        let timeout = TICK * [3, 4, 1000][n];
        let timing = Timing {
            heartbeat: TICK * 2,
            lease: TICK * 2,
            promise: TICK * if self.broken { 1 } else { 2 },
            timeout_min: timeout,
            timeout_max: timeout,
            alone: TICK,
        };
        let config = ElectionConfig {
            node: NAMES[n].clone(),
            fixed: Some(Voters::fixed(NAMES.to_vec()).unwrap()),
            expected: 3,
            saved: None,
            timing,
        };
        Election::new(config, at(tick), 7)
    }

    fn drain(&self, state: &mut State, n: usize) {
        let machine = &mut state.machines[n];
        let mut saves = 0;
        while machine.poll_ballot().is_some() {
            saves += 1;
        }
        if saves > 0 {
            machine.handle_saved(at(state.tick), u64::MAX);
            return self.drain(state, n);
        }
        while machine.poll_event().is_some() {}
        while let Some(transmit) = machine.poll_transmit() {
            // Who leads is told for people; it decides nothing.
            if !matches!(transmit.message.body, Body::Query | Body::Hint { .. }) {
                let to = NAMES.iter().position(|name| *name == transmit.to).unwrap();
                state.network.insert((state.tick, n, to, Wire(transmit.message)));
            }
        }
    }
}

impl Model for Voting {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let machines = [0, 1, 2].map(|n| self.machine(n, 0));
        vec![State { tick: 0, restarts: 0, machines, network: BTreeSet::new() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        actions.extend(
            state.network.iter().map(|(sent, from, to, wire)| Action::Deliver(*sent, *from, *to, wire.clone())),
        );
        if state.restarts < self.restarts {
            actions.extend((0..3).map(Action::Restart));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => {
                state.tick += 1;
                let tick = state.tick;
                state.network.retain(|(sent, ..)| sent + DELAY_TICKS > tick);
                for n in 0..3 {
                    while state.machines[n].poll_timeout().is_some_and(|due| due <= at(tick)) {
                        state.machines[n].handle_timeout(at(tick));
                        self.drain(&mut state, n);
                    }
                }
            }
            Action::Deliver(sent, from, to, wire) => {
                state.network.remove(&(sent, from, to, wire.clone()));
                state.machines[to].handle_message(at(state.tick), &NAMES[from], wire.0);
                self.drain(&mut state, to);
            }
            Action::Restart(n) => {
                state.restarts += 1;
                state.machines[n] = self.machine(n, state.tick);
                self.drain(&mut state, n);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn leaders(state: &State) -> usize {
            state.machines.iter().filter(|machine| machine.is_leader(at(state.tick))).count()
        }
        vec![
            Property::always("at most one lease", |_, state: &State| leaders(state) <= 1),
            Property::sometimes("somebody leads", |_, state: &State| leaders(state) == 1),
            Property::sometimes("a second election succeeds", |_, state: &State| {
                state.machines.iter().any(|machine| machine.is_leader(at(state.tick)) && machine.term() > 1)
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.tick <= self.horizon
    }
}

#[test]
fn three_voters_have_at_most_one_lease() {
    let setting = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (horizon, restarts) = (setting("SMG_MODEL_TICKS", 6), setting("SMG_MODEL_RESTARTS", 0));
    let checker = Voting { horizon, restarts, broken: false }.checker().threads(2).spawn_dfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_no_discovery("at most one lease");
    checker.assert_any_discovery("somebody leads");
    if horizon > 7 {
        checker.assert_any_discovery("a second election succeeds");
    }
}

#[test]
fn promises_shorter_than_leases_are_found() {
    let checker = Voting { horizon: 14, restarts: 0, broken: true }.checker().spawn_dfs().join();
    checker.assert_any_discovery("at most one lease");
}
