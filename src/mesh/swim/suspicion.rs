//! Suspicion: corroborated by others, refutable for a time that shrinks with each confirmation (Lifeguard §IV.B),
//! prolonged for nodes that refuted lately, and verified before the verdict (DESIGN §3.3 to §3.6).

use std::time::{Duration, Instant};

use rand::RngExt;

use super::{
    Event, Swim,
    config::{FANOUT, SwimConfig},
    event::ChangeReason,
    health::SCORE_MAX,
    member::Member,
    message::Update,
    probe::ProbeKind,
    rtt::RTO_MAX,
    rule::Rule,
};
use crate::mesh::{
    node::{NodeName, NodeStatus},
    wire::membership::ACCUSERS_MAX,
};

/// Confirmations after which the shortest time applies (Lifeguard's K).
const CONFIRMATIONS_MAX: usize = 3;

/// Nodes that look for themselves on average when they hear a suspicion: with ten, fewer than three are silent witnesses
/// in 0.3 % of cases only (with six in 6 %, which showed as a tail of the detection time).
const CORROBORATORS: usize = 10;

/// Shortest time to refute, before the multiplier.
const TIME_MIN: Duration = Duration::from_secs(1);

/// Verdicts in doubt that are looked into within T/4; of more so many in each.
const VERIFIED_AT_ONCE: f64 = 16.0;

/// Longest time to refute, in shortest ones.
const TIME_MAX_FACTOR: u32 = 6;

/// How long a refuted suspicion is remembered for damping.
const DAMPING_WINDOW: Duration = Duration::from_secs(60);

/// Doublings by damping at most.
const DAMPING_DOUBLINGS_MAX: usize = 3;

/// One suspected node.
#[derive(Debug)]
pub(super) struct Suspicion {
    /// Who suspects it, in the order heard; at most [`ACCUSERS_MAX`]. None while all evidence is that of a node that
    /// heard nobody at all.
    pub(super) accusers: Vec<NodeName>,
    pub(super) started: Instant,
    /// Shortest and longest time to refute.
    bounds: (Duration, Duration),
    /// Confirmations needed for the shortest.
    wanted: usize,
    /// Whether this node's own probe failed.
    mine: bool,
    verifying: bool,
    corroborate_at: Option<Instant>,
    /// When a verdict of others is looked into, if one is in doubt.
    verify_at: Option<Instant>,
}

impl Suspicion {
    /// The verification met an answer: the time to refute starts again.
    pub(super) fn restart(&mut self, now: Instant) {
        self.started = now;
        self.verifying = false;
        self.verify_at = None;
    }

    /// Whether it stems from a verdict of others alone, which is being looked into.
    pub(super) fn is_doubt(&self) -> bool {
        self.verify_at.is_some() && self.accusers.is_empty() && !self.mine
    }

    /// When the time to refute is over, or a verdict of others is to be looked into. Who has no evidence of its own waits
    /// for those that do.
    fn expiry(&self) -> Instant {
        let time = refute_time(self.bounds, self.accusers.len().saturating_sub(1), self.wanted);
        let own = self.started + if self.mine { time } else { time * 3 / 2 + TIME_MIN };
        self.verify_at.map_or(own, |at| at.min(own))
    }
}

/// Lifeguard §IV.B: from longest to shortest as the logarithm of the confirmations.
fn refute_time((min, max): (Duration, Duration), confirmations: usize, wanted: usize) -> Duration {
    if wanted == 0 || confirmations >= wanted {
        return min;
    }
    let share = ((confirmations + 1) as f64).ln() / ((wanted + 1) as f64).ln();
    max - (max - min).mul_f64(share)
}

/// The shortest and the longest time to refute among `live` nodes (DESIGN §3.4), doubled `doublings` times (§3.6).
pub(super) fn time_bounds(config: &SwimConfig, live: usize, doublings: usize) -> (Duration, Duration) {
    let mut rounds = 2;
    let mut reached = 1;
    while reached < live {
        reached *= FANOUT + 1;
        rounds += 1;
    }
    let min = TIME_MIN.max(config.gossip_interval * 2 * rounds).mul_f64(config.suspicion_multiplier.clamp(0.1, 100.0));
    let min = min * (1 << doublings.min(DAMPING_DOUBLINGS_MAX));
    (min, min * TIME_MAX_FACTOR)
}

impl SwimConfig {
    /// Longest time from a death to the verdict of a node that knows of it only by its own probes, among `live` nodes: a
    /// round, a probe at the worst local health, the longest time to refute at full damping, and the verification.
    #[must_use]
    pub fn verdict_time_max(&self, live: usize) -> Duration {
        let probe = RTO_MAX * 3 * (1 + SCORE_MAX);
        let refute = time_bounds(self, live, DAMPING_DOUBLINGS_MAX).1 * 3 / 2 + TIME_MIN;
        self.probe_interval * 2 + probe + refute + probe
    }
}

impl Swim {
    /// This node's own probe of `name` failed. Where this node `heard` nobody else either it accuses nobody: others would
    /// look into it and refute it in vain.
    pub(super) fn suspect(&mut self, now: Instant, name: &NodeName, heard: bool) {
        let Some(mut member) = self.members.get(name).cloned() else { return };
        let known = member.status == NodeStatus::Suspected;
        if !known {
            member.status = NodeStatus::Suspected;
            member.since = now;
            self.replace(now, member, ChangeReason::ProbeFailed);
            self.start_suspicion(now, name, &[]);
            self.events.push_back(Event::Suspected { name: name.clone(), local: true });
        }
        let me = self.config.node.clone();
        let Some(suspicion) = self.suspicions.get_mut(name) else { return };
        suspicion.mine = true;
        suspicion.corroborate_at = None;
        if heard && !suspicion.accusers.contains(&me) && suspicion.accusers.len() < ACCUSERS_MAX {
            suspicion.accusers.push(me);
            self.broadcast(now, name);
        }
    }

    /// Starts the clock for a node that has just become SUSPECTED here.
    pub(super) fn start_suspicion(&mut self, now: Instant, name: &NodeName, accusers: &[NodeName]) {
        let live = self.members.live().len();
        let window = |at: &&Instant| now.saturating_duration_since(**at) < DAMPING_WINDOW;
        let refuted = self.members.get(name).map_or(0, |member| member.refuted_at.iter().filter(window).count());
        let suspicion = Suspicion {
            accusers: accusers.iter().take(ACCUSERS_MAX).cloned().collect(),
            started: now,
            bounds: time_bounds(&self.config, live, refuted),
            wanted: CONFIRMATIONS_MAX.min(live.saturating_sub(2)),
            mine: false,
            verifying: false,
            corroborate_at: None,
            verify_at: None,
        };
        self.suspicions.insert(name.clone(), suspicion);
    }

    /// Another node suspects `name`: some of those that hear it look for themselves within T/4 (DESIGN §3.3).
    pub(super) fn plan_corroboration(&mut self, now: Instant, name: &NodeName) {
        let others = self.members.live().len().saturating_sub(2);
        let chosen = others <= CORROBORATORS || self.rng.random_bool(CORROBORATORS as f64 / others as f64);
        let at = self.soon(now);
        if let Some(suspicion) = self.suspicions.get_mut(name).filter(|_| chosen) {
            suspicion.corroborate_at = Some(at);
        }
    }

    /// Others gave their verdict of `name`, which is in doubt here: a last round within T/4 decides, or later where there are
    /// many: a side that comes back calls all of this one DOWN at once.
    pub(super) fn plan_verification(&mut self, now: Instant, name: &NodeName) {
        // The same verdict comes from many: the first of them plans.
        if self.is_looked_into(name) {
            return;
        }
        let planned = self.suspicions.values().filter(|suspicion| suspicion.verify_at.is_some()).count();
        let at = now + (self.soon(now) - now).mul_f64(1.0 + planned as f64 / VERIFIED_AT_ONCE);
        if let Some(suspicion) = self.suspicions.get_mut(name) {
            suspicion.verify_at = Some(at);
            suspicion.corroborate_at = None;
        }
    }

    /// Whether `name` has been suspected here for half the shortest time to refute. Verdicts come later than that after the
    /// suspicion, which reaches all of a side within a few datagrams.
    pub(super) fn is_long_suspected(&self, now: Instant, name: &NodeName) -> bool {
        let half = || time_bounds(&self.config, self.members.live().len(), 0).0 / 2;
        self.suspicions.get(name).is_some_and(|suspicion| now.saturating_duration_since(suspicion.started) >= half())
    }

    /// Whether a verdict of others over `name` is in doubt and will be decided by a last round of this node's own.
    pub(in crate::mesh) fn is_looked_into(&self, name: &NodeName) -> bool {
        self.suspicions.get(name).is_some_and(|suspicion| suspicion.verifying || suspicion.verify_at.is_some())
    }

    /// Some time within T/4: who hears the same at once does not act at once.
    fn soon(&mut self, now: Instant) -> Instant {
        now + (self.config.probe_interval / 4).mul_f64(self.rng.random::<f64>())
    }

    /// Adds accusers heard of; news when there are any not known before and still of use.
    pub(super) fn merge_accusers(&mut self, now: Instant, update: &Update) {
        let Some(suspicion) = self.suspicions.get_mut(&update.name) else { return };
        let before = suspicion.accusers.len();
        for accuser in &update.accusers {
            if suspicion.accusers.len() < ACCUSERS_MAX && !suspicion.accusers.contains(accuser) {
                suspicion.accusers.push(accuser.clone());
            }
        }
        if suspicion.accusers.len() > before && before <= suspicion.wanted {
            self.spread(now, &update.name);
        }
    }

    /// A process showed that it lives. If it was suspected that damps later suspicions of it (DESIGN §3.6), unless this one
    /// was the work of a node that was cut off, which says nothing of the suspected one. If it was DOWN the verdict counts
    /// as a false suspicion too; it damps nothing, since a process that nobody reached for so long was rather cut off.
    pub(super) fn exonerate(&mut self, now: Instant, before: &Member) {
        let name = &before.name;
        let suspicion = self.suspicions.remove(name);
        if suspicion.is_none() && before.status != NodeStatus::Down {
            return;
        }
        if suspicion.is_some_and(|suspicion| !suspicion.accusers.is_empty()) {
            self.members.note(name, |member| {
                member.refuted_at.retain(|at| now.saturating_duration_since(*at) < DAMPING_WINDOW);
                member.refuted_at.truncate(7);
                member.refuted_at.push(now);
            });
        }
        self.events.push_back(Event::FalseSuspicion { name: name.clone() });
    }

    /// Corroborates and verifies what is due.
    pub(super) fn run_suspicions(&mut self, now: Instant) {
        let mut looks = Vec::new();
        let mut expired = Vec::new();
        for (name, suspicion) in &mut self.suspicions {
            if suspicion.corroborate_at.take_if(|at| *at <= now).is_some() {
                looks.push(name.clone());
            }
            if !suspicion.verifying && suspicion.expiry() <= now {
                expired.push(name.clone());
            }
        }
        for name in looks {
            self.start_probe(now, &name, ProbeKind::Corroborate);
        }
        for name in expired {
            if !self.config.follows(Rule::Verification) {
                self.declare_down(now, &name);
                continue;
            }
            let started = self.start_probe(now, &name, ProbeKind::Verify);
            if let Some(suspicion) = self.suspicions.get_mut(&name) {
                suspicion.verifying = started;
                match &mut suspicion.verify_at {
                    _ if started => {}
                    // The table of probes is full: look again, soon for a verdict, else after the shortest time.
                    Some(at) => *at = now + self.config.probe_interval / 4,
                    None => suspicion.restart(now),
                }
            }
        }
    }

    pub(super) fn suspicions_timeout(&self) -> Option<Instant> {
        let due = |suspicion: &Suspicion| {
            let expiry = (!suspicion.verifying).then(|| suspicion.expiry());
            expiry.into_iter().chain(suspicion.corroborate_at).min()
        };
        self.suspicions.values().filter_map(due).min()
    }

    /// The last round of probes met silence on every path.
    pub(super) fn declare_down(&mut self, now: Instant, name: &NodeName) {
        let Some(mut member) = self.members.get(name).cloned() else { return };
        self.suspicions.remove(name);
        member.status = NodeStatus::Down;
        member.since = now;
        self.replace(now, member, ChangeReason::Verified);
        self.broadcast(now, name);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn suspicion_time_follows_dissemination() {
        let config = SwimConfig::new("a".parse().unwrap(), "10.0.0.1:1".parse().unwrap(), 0);
        let ms = Duration::from_millis;
        for (live, doublings, min) in [(3, 0, 1000), (5, 0, 1000), (100, 0, 1200), (1000, 0, 1400), (5, 1, 2000)] {
            let (shortest, longest) = time_bounds(&config, live, doublings);
            assert_eq!(shortest, ms(min), "n={live} doublings={doublings}");
            assert_eq!(longest, shortest * 6, "n={live} doublings={doublings}");
        }
    }

    #[test]
    fn damping_doubles_at_most_to_eight_times() {
        let config = SwimConfig::new("a".parse().unwrap(), "10.0.0.1:1".parse().unwrap(), 0);
        assert_eq!(time_bounds(&config, 5, 3), time_bounds(&config, 5, 50));
        assert_eq!(time_bounds(&config, 5, 50).0, Duration::from_secs(8));
    }

    #[test]
    fn lifeguard_iv_b_confirmations_shorten_the_time_to_refute() {
        let bounds = (Duration::from_secs(1), Duration::from_secs(6));
        for (case, confirmations, wanted, ms) in [
            ("none", 0, 3, 6000),
            ("one", 1, 3, 3500),
            ("two", 2, 3, 2037),
            ("all", 3, 3, 1000),
            ("more than all", 9, 3, 1000),
            ("nobody could confirm", 0, 0, 1000),
        ] {
            assert_eq!(refute_time(bounds, confirmations, wanted).as_millis(), ms, "{case}");
        }
    }
}
