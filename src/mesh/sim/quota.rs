//! Limits of a cluster in one thread: seeded, in virtual time, on clocks that run too fast and too slow.
//!
//! Election, rights and the bucket of the request path are the ones that ship. The network loses, duplicates, delays and
//! reorders messages and is cut between any two nodes in either direction; processes crash and start anew; a mesh task
//! stalls while the request path of its node goes on. Requests come to each node as a Poisson process whose rate may
//! change at any time. What membership would say is simplified as in [`election`](super::election).
//!
//! Two checkers run after every step. What all nodes hold at that instant, in true time, is together no more than the
//! limit. And no window of any length holds more admitted requests than limit·τ + burst: with a bucket that fills by one for
//! each of them and leaks at the limit, that is to say that it never holds more than the burst. A clock that is a part too
//! fast admits by that part more, and the bucket leaks as much faster. What nodes admit by local shares is counted in a
//! bucket of its own, which is held to limit·τ + max(burst, nodes).
//!
//! Requests in flight ([`slots`]) are the same requests, of some length each.

pub mod slots;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use crate::{
    gateway::limiter::{Limiter, Quota},
    mesh::{
        election::{self, Election, ElectionConfig, voters::Voters},
        node::NodeName,
        quota::{
            Bucket, Buckets, Escrow, Holding, Kind, Lead, Timing, Usage,
            local::WithoutQuorum,
            message::Message,
            share::{LimitId, Share, TOKEN},
        },
        sim::stage::{DETECTED_AFTER, Stage, parted},
    },
};

/// The one limit of a run.
pub const LIMIT: LimitId = 7;

/// How long a change of the limit takes at most to reach a node.
const REPLICATED_WITHIN: Duration = Duration::from_millis(100);

/// How long a higher limit may still be held after it was lowered: the change reaches the leader, and what it lent runs out.
const LOWERED_WITHIN: Duration = Duration::from_millis(100 + 556);

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes, 1 to 31.
    pub nodes: usize,
    /// Tokens per second.
    pub limit: u64,
    /// Most tokens at once.
    pub burst: u64,
    /// Share of messages that are lost, 0 to 1.
    pub loss: f64,
    /// Share of messages that come twice, 0 to 1.
    pub duplicates: f64,
    /// Shortest and longest delay.
    pub delay: (Duration, Duration),
    /// Clocks run at 1 − drift to 1 + drift; the timing allows 0.1.
    pub drift: f64,
    /// Durations of the protocol.
    pub timing: Timing,
    /// What nodes do while nobody leads.
    pub mode: WithoutQuorum,
    /// How many requests may be in flight, and how long they are; none: that is not looked at.
    pub slots: Option<slots::Plan>,
}

impl Default for Plan {
    /// Three nodes on a healthy LAN that share 100 requests a second, 20 at once.
    fn default() -> Self {
        Self {
            nodes: 3,
            limit: 100,
            burst: 20,
            loss: 0.0,
            duplicates: 0.0,
            delay: (Duration::from_micros(100), Duration::from_millis(2)),
            drift: 0.0,
            timing: Timing::default(),
            mode: WithoutQuorum::Closed,
            slots: None,
        }
    }
}

/// One process, running or dead.
#[derive(Debug)]
struct Node {
    name: NodeName,
    process: Option<Process>,
    /// Local seconds per true second.
    speed: f64,
    stalled_until: Duration,
    wake_at: Option<Duration>,
    inbox: Vec<(NodeName, Word)>,
    died_at: Option<Duration>,
    leaving: bool,
    /// Requests per second that come to it.
    demand: f64,
    /// Raised with each change of the demand; older arrivals come to nothing.
    era: u64,
}

#[derive(Debug)]
struct Process {
    election: Election,
    escrow: Escrow,
    limiter: Limiter,
    desk: Option<slots::Desk>,
    saves: u64,
}

#[derive(Clone, Debug)]
enum Word {
    Election(election::message::Message),
    Quota(Message),
    Slots(Message),
}

#[derive(Debug)]
enum Step {
    Deliver { from: usize, to: usize, word: Word },
    Wake(usize),
    Arrive { node: usize, era: u64 },
    Limit { node: usize, limit: Share },
    Slots(slots::Step),
    Detect,
}

/// The bucket of a process.
struct Purse<'a>(&'a Limiter);

impl Buckets for Purse<'_> {
    fn hold(&self, now: Instant, limit: LimitId, holding: &Holding) -> u64 {
        if limit == LIMIT { self.0.hold(now, holding) } else { 0 }
    }

    fn usage(&self, _: LimitId) -> Usage {
        self.0.usage()
    }
}

/// A cluster that shares one limit.
#[derive(Debug)]
pub struct Cluster {
    /// What it was made of; loss, delay and duplicates may be changed at any time.
    pub plan: Plan,
    /// Steps after which more was held, or admitted, than the limit allows; more than none is a bug.
    pub violations: u64,
    /// Requests admitted since the start.
    pub admitted: u64,
    /// Of these those that local shares admitted.
    pub admitted_locally: u64,
    /// Requests refused since the start.
    pub refused: u64,
    /// Most requests admitted beyond the limit in any window; the burst bounds it.
    pub excess_max: f64,
    /// What became of requests in flight.
    pub slots: slots::Tally,
    nodes: Vec<Node>,
    stage: Stage<Step>,
    limit: Share,
    /// Until when the older, higher limit counts.
    older: Option<(Duration, Share)>,
    /// The checker's bucket of what was lent, and that of local shares.
    excess: [f64; 2],
    /// When they were last looked at.
    dripped_at: Duration,
}

fn quota(limit: Share) -> Quota {
    let tokens = |micro: u64| micro as f64 / TOKEN as f64;
    Quota { per_second: tokens(limit.rate), burst: tokens(limit.burst) }
}

impl Cluster {
    /// A cluster whose nodes start now, without requests.
    ///
    /// # Panics
    /// When the plan has no node, or more than a set of voters can have.
    #[must_use]
    pub fn new(plan: Plan, seed: u64) -> Self {
        let node = |n: usize| Node {
            name: format!("n{n:02}").parse().expect("a node name"),
            process: None,
            speed: 1.0,
            stalled_until: Duration::ZERO,
            wake_at: None,
            inbox: Vec::new(),
            died_at: None,
            leaving: false,
            demand: 0.0,
            era: 0,
        };
        let mut cluster = Self {
            nodes: (0..plan.nodes).map(node).collect(),
            violations: 0,
            admitted: 0,
            refused: 0,
            excess_max: 0.0,
            slots: slots::Tally::default(),
            stage: Stage::new(seed),
            limit: Share::of_tokens(plan.limit, plan.burst),
            older: None,
            excess: [0.0; 2],
            dripped_at: Duration::ZERO,
            admitted_locally: 0,
            plan,
        };
        for n in 0..cluster.nodes.len() {
            cluster.start(n);
        }
        cluster
    }

    /// True time since the start of the run.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.stage.now
    }

    /// Who holds the lease of the election.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let leads = |n: &usize| {
            let process = self.nodes[*n].process.as_ref();
            process.is_some_and(|process| process.election.is_leader(self.local(*n)))
        };
        (0..self.nodes.len()).find(leads)
    }

    /// The rights of a node; none while it is dead.
    #[must_use]
    pub fn escrow(&self, n: usize) -> Option<&Escrow> {
        self.nodes[n].process.as_ref().map(|process| &process.escrow)
    }

    /// What a node holds now.
    #[must_use]
    pub fn held(&self, n: usize) -> Share {
        self.escrow(n).map_or(Share::NONE, |escrow| escrow.held(self.local(n), LIMIT))
    }

    /// The instant of now on a node's clock.
    #[must_use]
    pub fn local(&self, n: usize) -> Instant {
        self.stage.local(self.nodes[n].speed)
    }

    /// Faults and events that really happened, by name.
    #[must_use]
    pub fn faults(&self) -> &BTreeMap<&'static str, u64> {
        &self.stage.faults
    }

    /// A random generator for the schedule of faults.
    pub fn rng(&mut self) -> &mut Pcg64Mcg {
        &mut self.stage.rng
    }

    /// Starts the process of a node, or starts it anew; it remembers nothing.
    ///
    /// # Panics
    /// When the plan has more nodes than a set of voters can have.
    pub fn start(&mut self, n: usize) {
        let names: Vec<NodeName> = self.nodes.iter().map(|node| node.name.clone()).collect();
        self.nodes[n].speed = self.stage.speed(self.plan.drift);
        let config = ElectionConfig {
            node: names[n].clone(),
            fixed: Some(Voters::fixed(names.clone()).expect("as many as the plan may have")),
            expected: names.len(),
            saved: None,
            timing: election::Timing::default(),
        };
        let local = self.local(n);
        let mut process = Process {
            election: Election::new(config, local, self.stage.rng.random()),
            escrow: Escrow::new(
                names[n].clone(),
                Kind::Rates,
                self.plan.timing,
                self.plan.mode,
                local,
                self.stage.rng.random(),
            ),
            limiter: Limiter::new(None, local),
            desk: None,
            saves: 0,
        };
        process.desk = self.plan.slots.map(|plan| {
            let seed = self.stage.rng.random();
            slots::Desk::open(&names[n], &plan, self.plan.mode, names.len(), local, seed)
        });
        process.escrow.handle_nodes(names.len());
        process.limiter.share_out(quota(self.limit), local);
        let node = &mut self.nodes[n];
        (node.process, node.died_at, node.leaving, node.stalled_until) = (Some(process), None, false, Duration::ZERO);
        node.inbox.clear();
        self.detect();
        self.stage.plan(self.stage.now + DETECTED_AFTER, Step::Detect);
        self.take(Step::Limit { node: n, limit: self.limit });
        let demand = self.nodes[n].demand;
        self.set_demand(n, demand);
    }

    /// Kills the process of a node.
    pub fn crash(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.process = None;
        node.died_at = Some(self.stage.now);
        self.stage.plan(self.stage.now + DETECTED_AFTER, Step::Detect);
    }

    /// Stops the mesh task of a node for a while; its request path goes on.
    pub fn stall(&mut self, n: usize, time: Duration) {
        self.nodes[n].stalled_until = self.stage.now + time;
        self.stage.plan(self.stage.now + time, Step::Wake(n));
    }

    /// A node says that it leaves.
    pub fn leave(&mut self, n: usize) {
        let local = self.local(n);
        self.nodes[n].leaving = true;
        if let Some(process) = &mut self.nodes[n].process {
            process.election.leave(local);
            process.escrow.leave(local, &Purse(&process.limiter));
            process.desk.iter_mut().for_each(|desk| desk.leave(local));
        }
        self.detect();
        self.settle(n);
    }

    /// Cuts what goes from one node to another.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.stage.cut(from, to, Step::Detect);
    }

    /// Cuts both ways between two groups.
    pub fn partition(&mut self, one: &BTreeSet<usize>) {
        parted(self.nodes.len(), one).for_each(|(from, to)| self.cut(from, to));
    }

    /// Takes every cut back.
    pub fn heal(&mut self) {
        self.stage.heal();
        self.detect();
    }

    /// Has so many requests a second come to a node from now on.
    pub fn set_demand(&mut self, n: usize, per_second: f64) {
        let node = &mut self.nodes[n];
        (node.demand, node.era) = (per_second, node.era + 1);
        let era = node.era;
        self.plan_arrival(n, era);
    }

    /// Sets the limit anew at one node after the other.
    pub fn set_limit(&mut self, limit: Share) {
        let until = self.stage.now + LOWERED_WITHIN;
        let older = self.older.filter(|(until, _)| self.stage.now < *until).map_or(self.limit, |(_, older)| older);
        self.older = Some((until, older.max(self.limit)));
        self.limit = limit;
        for node in 0..self.nodes.len() {
            let at = self.stage.now + REPLICATED_WITHIN.mul_f64(self.stage.rng.random_range(0.0..1.0));
            self.stage.plan(at, Step::Limit { node, limit });
        }
    }

    /// Counts something that happened.
    pub fn count(&mut self, what: &'static str) {
        self.stage.count(what);
    }

    /// Runs for a time; which part of the limit was admitted meanwhile.
    pub fn run_for(&mut self, time: Duration) -> f64 {
        let (until, before) = (self.stage.now + time, self.admitted);
        while self.stage.next_at().is_some_and(|at| at <= until) {
            if let Some(step) = self.stage.next() {
                self.take(step);
            }
            self.check();
        }
        self.stage.now = until;
        (self.admitted - before) as f64 / (quota(self.limit).per_second * time.as_secs_f64())
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Deliver { from, to, word } => {
                if !self.stage.vanishes(from, to) && self.nodes[to].process.is_some() {
                    let from = self.nodes[from].name.clone();
                    self.nodes[to].inbox.push((from, word));
                    self.settle(to);
                }
            }
            Step::Wake(n) => self.settle(n),
            Step::Arrive { node, era } => self.arrive(node, era),
            // The last writer wins: an older change that comes late counts no more.
            Step::Limit { limit, .. } if limit != self.limit => {}
            Step::Limit { node, limit } => {
                let local = self.local(node);
                if let Some(process) = &mut self.nodes[node].process {
                    process.limiter.share_out(quota(limit), local);
                    process.escrow.handle_limits(local, &[(LIMIT, limit)].into(), true, &Purse(&process.limiter));
                }
                self.settle(node);
            }
            Step::Slots(step) => self.take_slots_step(step),
            Step::Detect => self.detect(),
        }
    }

    /// One request at a node.
    fn arrive(&mut self, n: usize, era: u64) {
        if self.nodes[n].era != era {
            return;
        }
        let local = self.local(n);
        if let Some(process) = &self.nodes[n].process {
            let is_admitted = process.limiter.admit(local).is_ok();
            (self.admitted, self.refused) =
                (self.admitted + u64::from(is_admitted), self.refused + u64::from(!is_admitted));
            if is_admitted {
                let is_local = process.escrow.local_until(local).is_some();
                self.count_admitted(is_local);
            }
            self.begin(n);
        }
        self.plan_arrival(n, era);
    }

    fn count_admitted(&mut self, is_local: bool) {
        self.drip();
        self.admitted_locally += u64::from(is_local);
        let excess = &mut self.excess[usize::from(is_local)];
        *excess += 1.0;
        let excess = *excess;
        let burst = quota(self.limit_now()).burst;
        let burst = if is_local { burst.max(self.nodes.len() as f64) } else { burst };
        if !is_local {
            self.excess_max = self.excess_max.max(excess);
        }
        // What sums of floating point numbers are wrong by.
        if excess > burst + 1e-6 {
            self.violations += 1;
            self.count(if is_local { "admitted locally beyond" } else { "admitted beyond" });
        }
    }

    /// Lets the checker's buckets leak up to now.
    fn drip(&mut self) {
        if self.older.is_some_and(|(until, _)| until <= self.stage.now) {
            // A window that began under the higher limit was held to that one; from here on begin those of the lower.
            (self.older, self.excess, self.dripped_at) = (None, [0.0; 2], self.stage.now);
        }
        let fastest = 1.0 + self.plan.drift;
        let elapsed = (self.stage.now - self.dripped_at).as_secs_f64();
        let leaked = quota(self.limit_now()).per_second * fastest * elapsed;
        self.excess = self.excess.map(|excess| (excess - leaked).max(0.0));
        self.dripped_at = self.stage.now;
    }

    /// The limit that may be in force: while it changes the higher one.
    fn limit_now(&self) -> Share {
        self.older.filter(|(until, _)| self.stage.now < *until).map_or(self.limit, |(_, older)| older.max(self.limit))
    }

    fn plan_arrival(&mut self, node: usize, era: u64) {
        let demand = self.nodes[node].demand;
        if demand > 0.0 {
            let wait = -self.stage.rng.random_range(f64::MIN_POSITIVE..1.0).ln() / demand;
            self.stage.plan(self.stage.now + Duration::from_secs_f64(wait), Step::Arrive { node, era });
        }
    }

    /// Gives a node what waits for it and takes what it has to say, in the order of the driver.
    fn settle(&mut self, n: usize) {
        let (now, local) = (self.stage.now, self.local(n));
        let node = &mut self.nodes[n];
        let Some(process) = &mut node.process else { return };
        if now < node.stalled_until {
            return;
        }
        let Process { election, escrow, limiter, desk, saves } = process;
        let bucket = Purse(limiter);
        for (from, word) in node.inbox.drain(..) {
            match word {
                Word::Election(message) => election.handle_message(local, &from, message),
                Word::Quota(message) => {
                    lead(local, &node.name, election, escrow, &bucket);
                    escrow.handle_message(local, &from, &message, &bucket);
                }
                Word::Slots(message) => {
                    desk.iter_mut().for_each(|desk| desk.on_message(local, (&node.name, &from), &message, election));
                }
            }
        }
        if election.poll_timeout().is_some_and(|at| at <= local) {
            election.handle_timeout(local);
        }
        loop {
            let ballots = std::iter::from_fn(|| election.poll_ballot()).count() as u64;
            *saves += ballots;
            if ballots == 0 {
                break;
            }
            election.handle_saved(local, *saves);
        }
        while election.poll_event().is_some() {}
        lead(local, &node.name, election, escrow, &bucket);
        let words = std::iter::from_fn(|| election.poll_transmit()).map(|sent| (sent.to, Word::Election(sent.message)));
        let mut words: Vec<(NodeName, Word)> = words.collect();
        words.extend(std::iter::from_fn(|| escrow.poll_transmit()).map(|sent| (sent.to, Word::Quota(sent.message))));
        let mut timeouts = vec![election.poll_timeout(), escrow.poll_timeout()];
        if let Some(desk) = desk {
            desk.lead(local, &node.name, election);
            words.extend(desk.drain().map(|sent| (sent.to, Word::Slots(sent.message))));
            timeouts.push(desk.escrow.poll_timeout());
        }
        let timeout = timeouts.into_iter().flatten().min();
        for (to, word) in words {
            self.send(n, &to, &word);
        }
        self.plan_wake(n, timeout);
    }

    fn plan_wake(&mut self, n: usize, timeout: Option<Instant>) {
        let Some(at) = timeout else { return };
        let at = self.stage.true_time(at, self.nodes[n].speed);
        if self.nodes[n].wake_at.is_none_or(|planned| planned <= self.stage.now || at < planned) {
            self.nodes[n].wake_at = Some(at);
            self.stage.plan(at, Step::Wake(n));
        }
    }

    fn send(&mut self, from: usize, to: &NodeName, word: &Word) {
        let Some(to) = self.nodes.iter().position(|node| node.name == *to) else { return };
        for at in self.stage.arrivals(self.plan.loss, self.plan.duplicates, self.plan.delay) {
            self.stage.plan(at, Step::Deliver { from, to, word: word.clone() });
        }
    }

    /// Tells every node what membership would say of the others.
    fn detect(&mut self) {
        for n in 0..self.nodes.len() {
            let standing = |other: usize| {
                let node = &self.nodes[other];
                self.stage.standing(n, other, node.died_at, node.leaving)
            };
            let others = (0..self.nodes.len()).filter(|other| *other != n);
            let peers = others.map(|other| (self.nodes[other].name.clone(), standing(other))).collect();
            let (local, now) = (self.local(n), self.stage.now);
            let node = &mut self.nodes[n];
            if let Some(process) = node.process.as_mut().filter(|_| now >= node.stalled_until) {
                process.election.handle_peers(local, peers);
                self.settle(n);
            }
        }
    }

    /// What all hold together is no more than the limit.
    fn check(&mut self) {
        let held = (0..self.nodes.len()).fold(Share::NONE, |sum, n| sum.plus(self.held(n)));
        if !self.limit_now().covers(held) {
            self.violations += 1;
            self.count("held beyond");
        }
        self.check_slots();
    }
}

/// Tells the rights what the election knows, as the driver does.
fn lead(local: Instant, own: &NodeName, election: &Election, escrow: &mut Escrow, bucket: &dyn Buckets) {
    let leader = election.leader(local);
    let lead = leader.as_ref().filter(|leader| leader.name == *own);
    let lead = lead.map(|leader| Lead { term: leader.term, until: leader.until });
    escrow.handle_leader(local, leader.as_ref().map(|leader| &leader.name), lead, bucket);
}
