//! Cache-aware routing of several gateways in one thread: seeded, in virtual time, with the shipped choice, index, outbox
//! and book of loads.
//!
//! Conversations arrive at random, share a few system prompts and send each turn to another gateway; single questions
//! behind one hot system prompt may come beside them. A worker is an LRU
//! cache of blocks and a time to answer: a fixed one, and one for each block that it has to compute. Messages between
//! gateways take `DELAY_MS` and are counted in bytes as they would be on the wire.
//!
//! Beside the shipped way ([`Mode::Shared`]) there are four to compare it with: the same without messages, gateways that
//! do not even agree on homes, an oracle that knows all caches and loads, and blind chance.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::{
    config::{Cache, PolicyKind},
    gateway::{
        placement,
        policy::{self, Facts, below, mix},
        prefix::{HashKey, Index, Prompt, chain::KEY_BYTES, index::Holder},
        sharing::{BATCH_INTERVAL, LOAD_INTERVAL, loads::Loads, outbox::Outbox},
        view::{Affinity, Route},
        worker::{InFlight, Worker},
    },
    mesh::{
        routing::{Message, Placement},
        stores::{WorkerOrigin, WorkerSpec},
        wire::routing::encode,
    },
};

mod engine;

use self::engine::Engine;

/// Time that a message takes, in milliseconds.
const DELAY_MS: u64 = 5;

/// How gateways choose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// As shipped.
    Shared,
    /// Without any message: homes alone make them agree.
    Silent,
    /// Each gateway has homes of its own, and no messages: what separate gateways do.
    Isolated,
    /// Knows what is in every cache and in flight at every worker.
    Oracle,
    /// Any worker.
    Random,
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Seed of everything random.
    pub seed: u64,
    /// How gateways choose.
    pub mode: Mode,
    /// Gateways.
    pub gateways: usize,
    /// Workers.
    pub workers: usize,
    /// Blocks that a worker's cache holds.
    pub cache_blocks: usize,
    /// New conversations per second.
    pub sessions_per_second: f64,
    /// Requests of a conversation.
    pub turns: u32,
    /// Mean time from an answer to the next request, in milliseconds.
    pub think_ms: f64,
    /// System prompts, some used more often than others (Zipf with exponent 1).
    pub systems: u64,
    /// Blocks of a system prompt.
    pub system_blocks: usize,
    /// Blocks of what a user says, and of an answer.
    pub turn_blocks: usize,
    /// Requests per second beside the conversations, each a question behind the same system prompt.
    pub hot_per_second: f64,
    /// Time to answer without the prompt, in milliseconds.
    pub answer_ms: f64,
    /// Time to compute one block of prompt, in milliseconds.
    pub block_ms: f64,
    /// Virtual length, in seconds; the first quarter does not count.
    pub seconds: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 1,
            mode: Mode::Shared,
            gateways: 3,
            workers: 16,
            cache_blocks: 8_000,
            sessions_per_second: 20.0,
            turns: 6,
            think_ms: 4_000.0,
            systems: 20,
            system_blocks: 12,
            turn_blocks: 4,
            hot_per_second: 0.0,
            answer_ms: 1_500.0,
            block_ms: 6.0,
            seconds: 120,
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Requests that count.
    pub requests: u64,
    /// Share of follow-ups that went to the worker of the turn before.
    pub same_worker: f64,
    /// Share of the prompts' blocks that were in the worker's cache.
    pub hit_share: f64,
    /// Standard deviation over mean of the requests that each worker got.
    pub cov: f64,
    /// Hot requests of the worker that got fewest of them, as a share of the mean; none when there were none.
    pub hot_least: Option<f64>,
    /// Bytes that a gateway sent per second.
    pub bytes_per_second: f64,
}

/// Runs a scenario.
#[must_use]
pub fn run(scenario: &Scenario) -> Outcome {
    Sim::new(scenario).run()
}

struct Gateway {
    route: Route,
    index: Arc<Index>,
    outbox: Outbox,
    loads: Loads,
    rng: Pcg64Mcg,
    /// Makes its homes its own where gateways are isolated.
    salt: u64,
}

#[derive(Debug)]
enum Event {
    Arrive,
    Hot,
    Turn(u64),
    Done { request: u64, session: u64 },
    Flush(usize),
    Load(usize),
    Hear { gateway: usize, from: usize, message: Arc<Message> },
}

struct Session {
    system: u64,
    turn: u32,
    turns: u32,
    last: Option<usize>,
    next_gateway: usize,
}

struct Sim<'a> {
    scenario: &'a Scenario,
    now_ms: u64,
    origin: Instant,
    rng: Pcg64Mcg,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    serial: u64,
    gateways: Vec<Gateway>,
    engines: Vec<Engine>,
    sessions: BTreeMap<u64, Session>,
    in_flight: BTreeMap<u64, (usize, InFlight)>,
    busy: Vec<usize>,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    requests: u64,
    follow_ups: u64,
    same: u64,
    blocks: u64,
    hits: u64,
    by_worker: Vec<u64>,
    hot_by_worker: Vec<u64>,
    bytes: u64,
}

impl<'a> Sim<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let origin = Instant::now();
        let mut rng = Pcg64Mcg::seed_from_u64(scenario.seed);
        let gateways = (0..scenario.gateways).map(|n| Gateway::new(scenario, n, origin, rng.next_u64())).collect();
        let mut sim = Self {
            scenario,
            now_ms: 0,
            origin,
            rng,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            serial: 0,
            gateways,
            engines: (0..scenario.workers).map(|_| Engine::new(scenario.cache_blocks)).collect(),
            sessions: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            busy: vec![0; scenario.workers],
            tally: Tally {
                by_worker: vec![0; scenario.workers],
                hot_by_worker: vec![0; scenario.workers],
                ..Tally::default()
            },
        };
        sim.after(0, Event::Arrive);
        if scenario.hot_per_second > 0.0 {
            sim.after(0, Event::Hot);
        }
        if scenario.mode == Mode::Shared {
            for gateway in 0..scenario.gateways {
                sim.after(gateway as u64, Event::Flush(gateway));
                sim.after(gateway as u64, Event::Load(gateway));
            }
        }
        sim
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse((self.now_ms + ms, self.serial)));
        self.events.insert(self.serial, event);
    }

    /// An exponentially distributed time.
    fn draw_ms(&mut self, mean: f64) -> u64 {
        let unit = (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        (-mean * (1.0 - unit).ln()) as u64
    }

    fn run(mut self) -> Outcome {
        let end_ms = self.scenario.seconds * 1000;
        while let Some(Reverse((at, serial))) = self.queue.pop() {
            if at >= end_ms {
                break;
            }
            self.now_ms = at;
            if let Some(event) = self.events.remove(&serial) {
                self.handle(event);
            }
        }
        self.outcome()
    }

    fn counts(&self) -> bool {
        self.now_ms * 4 >= self.scenario.seconds * 1000
    }

    fn now(&self) -> Instant {
        self.origin + Duration::from_millis(self.now_ms)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive => {
                let system = self.draw_system();
                self.begin(system, self.scenario.turns);
                let wait = self.draw_ms(1000.0 / self.scenario.sessions_per_second);
                self.after(wait, Event::Arrive);
            }
            Event::Hot => {
                // One that no conversation has.
                self.begin(self.scenario.systems, 1);
                let wait = self.draw_ms(1000.0 / self.scenario.hot_per_second);
                self.after(wait, Event::Hot);
            }
            Event::Turn(session) => self.ask(session),
            Event::Done { request, session } => {
                if let Some((worker, _)) = self.in_flight.remove(&request) {
                    self.busy[worker] -= 1;
                }
                let is_over = self.sessions.get(&session).is_none_or(|s| s.turn >= s.turns);
                if is_over {
                    self.sessions.remove(&session);
                } else {
                    let wait = self.draw_ms(self.scenario.think_ms);
                    self.after(wait, Event::Turn(session));
                }
            }
            Event::Flush(gateway) => {
                let (now, peers) = (self.now(), self.scenario.gateways - 1);
                for batch in self.gateways[gateway].outbox.take(now, peers) {
                    self.broadcast(gateway, Message::Placements(batch));
                }
                self.after(BATCH_INTERVAL.as_millis() as u64, Event::Flush(gateway));
            }
            Event::Load(gateway) => {
                let now = self.now();
                if let Some(loads) = self.gateways[gateway].due(now) {
                    let bytes = self.broadcast(gateway, Message::Loads(loads));
                    self.gateways[gateway].outbox.spend(bytes);
                }
                self.gateways[gateway].show_loads(now);
                self.after(LOAD_INTERVAL.as_millis() as u64, Event::Load(gateway));
            }
            Event::Hear { gateway, from, message } => {
                let (now, tick) = (self.now(), self.tick());
                self.gateways[gateway].hear(now, tick, from, &message);
            }
        }
    }

    fn tick(&self) -> u32 {
        (self.now_ms / u64::from(placement::TICK_MS)) as u32
    }

    /// Gives the bytes sent.
    fn broadcast(&mut self, from: usize, message: Message) -> usize {
        let (bytes, message) = (encode(&message).len(), Arc::new(message));
        for gateway in (0..self.scenario.gateways).filter(|gateway| *gateway != from) {
            self.after(DELAY_MS, Event::Hear { gateway, from, message: message.clone() });
        }
        let bytes = bytes * (self.scenario.gateways - 1);
        if self.counts() {
            self.tally.bytes += bytes as u64;
        }
        bytes
    }

    /// By inversion of the harmonic sum, which is close enough to Zipf.
    fn draw_system(&mut self) -> u64 {
        let unit = (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        ((self.scenario.systems as f64 + 1.0).powf(unit) - 1.0) as u64
    }

    fn begin(&mut self, system: u64, turns: u32) {
        let (id, next_gateway) = (self.serial, self.rng.next_u64() as usize);
        self.sessions.insert(id, Session { system, turn: 0, turns, last: None, next_gateway });
        self.ask(id);
    }

    fn ask(&mut self, id: u64) {
        let scenario = self.scenario;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (system, turn, last) = (session.system, session.turn, session.last);
        let gateway = session.next_gateway % scenario.gateways;
        session.turn += 1;
        session.next_gateway = session.next_gateway.wrapping_add(1);
        let prompt = prompt(scenario, id, system, turn, self.gateways[gateway].salt);
        let worker = self.choose(gateway, &prompt);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.last = Some(worker);
        }
        let hits = self.engines[worker].serve(&prompt.blocks);
        // The answer is in the cache too, and so in the next prompt's prefix.
        let answered = prompt.blocks.len() + scenario.turn_blocks;
        self.engines[worker].serve(&blocks(scenario, id, system, answered));
        if self.counts() {
            self.tally.requests += 1;
            self.tally.by_worker[worker] += 1;
            self.tally.hot_by_worker[worker] += u64::from(system == scenario.systems);
            self.tally.blocks += prompt.blocks.len() as u64;
            self.tally.hits += hits as u64;
            if let Some(last) = last {
                self.tally.follow_ups += 1;
                self.tally.same += u64::from(last == worker);
            }
        }
        let misses = (prompt.blocks.len() - hits) as f64;
        let answer = self.draw_ms(scenario.answer_ms / 2.0) as f64 + scenario.answer_ms / 2.0;
        let request = self.serial;
        let guard = self.gateways[gateway].route.ready[worker].begin();
        self.in_flight.insert(request, (worker, guard));
        self.busy[worker] += 1;
        self.after((answer + misses * scenario.block_ms) as u64, Event::Done { request, session: id });
    }

    fn choose(&mut self, gateway: usize, prompt: &Prompt) -> usize {
        let (tick, n) = (self.tick(), self.scenario.workers);
        match self.scenario.mode {
            Mode::Random => below(self.rng.next_u64() as u32, n),
            Mode::Oracle => engine::best(&self.engines, &self.busy, prompt),
            Mode::Shared | Mode::Silent | Mode::Isolated => self.gateways[gateway].choose(prompt, tick),
        }
    }

    fn outcome(&self) -> Outcome {
        let tally = &self.tally;
        let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let n = tally.by_worker.len() as f64;
        let mean = tally.requests as f64 / n;
        let variance = tally.by_worker.iter().map(|got| (*got as f64 - mean).powi(2)).sum::<f64>() / n;
        let seconds = self.scenario.seconds as f64 * 0.75;
        let (hot, least) = (tally.hot_by_worker.iter().sum::<u64>(), tally.hot_by_worker.iter().min());
        Outcome {
            requests: tally.requests,
            same_worker: share(tally.same, tally.follow_ups),
            hit_share: share(tally.hits, tally.blocks),
            cov: variance.sqrt() / mean.max(1.0),
            hot_least: least.filter(|_| hot > 0).map(|least| *least as f64 * n / hot as f64),
            bytes_per_second: tally.bytes as f64 / seconds / self.scenario.gateways as f64,
        }
    }
}

impl Gateway {
    fn new(scenario: &Scenario, number: usize, origin: Instant, seed: u64) -> Self {
        let worker = |n| {
            let spec = WorkerSpec {
                url: format!("http://worker-{n}:8000"),
                models: Vec::new(),
                api_key: None,
                zone: String::new(),
                origin: WorkerOrigin::Api,
                draining: false,
            };
            Worker::of_spec(&spec, None).ok().map(Arc::new)
        };
        let rules = Cache { index_bytes: 16 << 20, ..Cache::default() };
        let index = Arc::new(Index::new(rules.index_bytes));
        let ready = (0..scenario.workers).filter_map(worker).collect();
        let mut route = Route::new("m".into(), PolicyKind::CacheAware, ready);
        let key = Arc::new(HashKey::new([7; KEY_BYTES]));
        route.affinity = Some(Affinity { key, index: Some(index.clone()), rules });
        let salt = if scenario.mode == Mode::Isolated { mix(number as u64 + 1) } else { 0 };
        let (outbox, loads, rng) = (Outbox::new(origin), Loads::default(), Pcg64Mcg::seed_from_u64(seed));
        Self { route, index, outbox, loads, rng, salt }
    }

    fn choose(&mut self, prompt: &Prompt, tick: u32) -> usize {
        let facts = Facts { prompt: Some(prompt), tick, ..Facts::default() };
        let Some(chosen) = policy::choose(&self.route, facts, &[], self.rng.next_u64()) else { return 0 };
        let holder = chosen.worker.holder();
        let seen = self.index.record(prompt.blocks.iter().copied().chain(prompt.session), holder, tick);
        if chosen.verdict.is_some_and(|verdict| verdict.is_surprise) {
            let names = placement::surprise(prompt, seen);
            let (worker, generation) = (holder.tag, holder.generation);
            self.outbox.push(Placement { model: "m".into(), worker, generation, age_ms: 0, names });
        }
        self.route.ready.iter().position(|worker| worker.id == chosen.worker.id).unwrap_or(0)
    }

    fn due(&mut self, now: Instant) -> Option<Vec<(u32, u32)>> {
        let busy = self.route.ready.iter().filter(|worker| worker.in_flight() > 0);
        let own = busy.map(|worker| (worker.tag(), worker.in_flight() as u32)).collect();
        self.loads.due(now, own)
    }

    fn show_loads(&mut self, now: Instant) {
        let elsewhere = self.loads.elsewhere(now);
        for worker in &self.route.ready {
            worker.set_elsewhere(elsewhere.get(&worker.tag()).copied().unwrap_or(0));
        }
    }

    fn hear(&mut self, now: Instant, tick: u32, from: usize, message: &Message) {
        match message {
            Message::Loads(loads) => {
                if let Ok(peer) = format!("gateway-{from}").parse() {
                    self.loads.heard(now, peer, loads.clone());
                    self.show_loads(now);
                }
            }
            Message::Placements(placements) => {
                for placement in placements {
                    let holder = Holder { tag: placement.worker, generation: placement.generation };
                    self.index.record(placement.names.iter().copied(), holder, tick);
                }
            }
            Message::Ask | Message::Sight(_) => {}
        }
    }
}

/// A conversation's turn, counted from 0.
fn prompt(scenario: &Scenario, id: u64, system: u64, turn: u32, salt: u64) -> Prompt {
    let Scenario { system_blocks, turn_blocks, .. } = *scenario;
    let length = |turn: usize| system_blocks + turn_blocks * (2 * turn + 1);
    let turn = turn as usize;
    Prompt {
        blocks: blocks(scenario, id, system, length(turn)),
        session: Some((mix(mix(id ^ 0x5e55) + system) ^ salt).max(2)),
        session_blocks: length(0),
        is_follow_up: turn > 0,
        earlier_blocks: if turn > 0 { length(turn - 1) } else { 0 },
        tail: None,
    }
}

/// Names of a conversation's first blocks: those of its system prompt, then its own.
fn blocks(scenario: &Scenario, id: u64, system: u64, count: usize) -> Vec<u64> {
    let name = |i: usize| match i < scenario.system_blocks {
        true => mix(mix(system + 1) ^ i as u64).max(2),
        false => mix(mix(id ^ 0x5e55_1011) ^ i as u64).max(2),
    };
    (0..count).map(name).collect()
}

#[cfg(test)]
mod tests;
