//! The breaker's truth table, and its bounds under any history.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

pub(crate) fn rules() -> config::Breaker {
    config::Breaker {
        enabled: true,
        failure_threshold: 3,
        success_threshold: 2,
        timeout: Duration::from_secs(60),
        window: Duration::from_secs(120),
    }
}

/// A breaker with requests under way.
struct Scene {
    breaker: Breaker,
    start: Instant,
    now: Instant,
    under_way: Vec<Permit>,
    denied: usize,
}

impl Scene {
    fn new(rules: &config::Breaker) -> Self {
        let start = Instant::now();
        Self { breaker: Breaker::new(rules, start), start, now: start, under_way: Vec::new(), denied: 0 }
    }

    /// One letter each: `a` asks for leave, `+ - 0` end the oldest request under way (of a new one, when there is none)
    /// with success, failure or nothing, `w` waits out the timeout, `W` the window, `t` a tenth of the window.
    fn play(&mut self, script: &str) {
        for letter in script.chars() {
            match letter {
                'a' => self.ask(),
                '+' => self.end(Outcome::Success),
                '-' => self.end(Outcome::Failure),
                '0' => self.end(Outcome::Neutral),
                'w' => self.now += Duration::from_secs(60),
                'W' => self.now += Duration::from_secs(120),
                't' => self.now += Duration::from_secs(12),
                other => panic!("no such letter: {other}"),
            }
        }
    }

    fn ask(&mut self) {
        match self.breaker.admit(self.now) {
            Some(permit) => self.under_way.push(permit),
            None => self.denied += 1,
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if self.under_way.is_empty() {
            self.ask();
        }
        if !self.under_way.is_empty() {
            let permit = self.under_way.remove(0);
            self.breaker.settle(permit, outcome, self.now);
        }
    }
}

#[test]
fn truth_table() {
    use State::{Closed, HalfOpen, Open};
    // Three failures open it, two successes close it; see `Scene::play` for the letters.
    for (case, script, state, denied) in [
        ("at first", "", Closed, 0),
        ("below the threshold", "--", Closed, 0),
        ("at the threshold", "---", Open, 0),
        ("successes between do not help", "-+-++-", Open, 0),
        ("neutral ones neither help nor harm", "000-0-000", Closed, 0),
        ("out of the window", "--W-", Closed, 0),
        ("the oldest one leaves the window", "-ttttt-tttttt-", Closed, 0),
        ("all within the window", "-tttt-ttttt-", Open, 0),
        ("open: nobody may", "---aa", Open, 2),
        ("the timeout is over", "---w", HalfOpen, 0),
        ("half-open: as many trials as successes are missing", "---waaa", HalfOpen, 1),
        ("half-open: one success, so one trial more", "---waa+aa", HalfOpen, 2),
        ("half-open: one success is not enough", "---w+", HalfOpen, 0),
        ("half-open: enough successes", "---w++", Closed, 0),
        ("half-open: a failure", "---w-", Open, 0),
        ("half-open: a failure after a success", "---w+-", Open, 0),
        ("half-open: the timeout begins anew", "---w-aw", HalfOpen, 1),
        ("half-open: a neutral trial gives its place back", "---waa0aa", HalfOpen, 1),
        ("half-open: neutral trials close nothing", "---w000000", HalfOpen, 0),
        ("closed again: the failures are forgotten", "---w++--", Closed, 0),
        ("closed again: and can open it again", "---w++---", Open, 0),
        ("late failures of before it opened", "aaaaa---w--", HalfOpen, 0),
        ("late successes of before it opened", "aaaaa---w++", HalfOpen, 0),
        ("a late trial of an earlier half-open", "---waa-w+", HalfOpen, 0),
    ] {
        let mut scene = Scene::new(&rules());
        scene.play(script);
        assert_eq!((scene.breaker.state(scene.now), scene.denied), (state, denied), "{case}: {script}");
    }
}

#[test]
fn changes_are_told_and_counted() {
    let mut scene = Scene::new(&rules());
    let mut told = Vec::new();
    for (wait_secs, outcome) in [
        (0, Outcome::Failure),
        (0, Outcome::Failure),
        (0, Outcome::Failure),
        (60, Outcome::Failure),
        (60, Outcome::Success),
        (0, Outcome::Success),
    ] {
        scene.now += Duration::from_secs(wait_secs);
        let permit = scene.breaker.admit(scene.now).unwrap();
        told.extend(scene.breaker.settle(permit, outcome, scene.now));
    }
    assert_eq!(
        told,
        [(State::Closed, State::Open), (State::HalfOpen, State::Open), (State::HalfOpen, State::Closed)],
        "becoming half-open is nobody's outcome"
    );
    let counted =
        [("closed", "open", 1), ("open", "half_open", 2), ("half_open", "closed", 1), ("half_open", "open", 1)];
    assert_eq!(scene.breaker.transitions(), counted);
}

#[test]
fn an_open_breaker_tells_for_how_long() {
    let mut scene = Scene::new(&rules());
    assert_eq!(scene.breaker.open_for(scene.now), Duration::ZERO);
    scene.play("---");
    for (after_secs, left_secs, admits) in [(0, 60, false), (59, 1, false), (60, 0, true)] {
        let now = scene.start + Duration::from_secs(after_secs);
        assert_eq!(scene.breaker.open_for(now).as_secs(), left_secs, "after {after_secs}");
        assert_eq!(scene.breaker.admits(now), admits, "after {after_secs}");
    }
}

#[test]
fn switched_off_it_never_opens() {
    let mut scene = Scene::new(&config::Breaker { enabled: false, ..rules() });
    scene.play("----------");
    assert_eq!((scene.breaker.state(scene.now), scene.denied), (State::Closed, 0));
}

/// Cores that race for trials and outcomes do not get more of them than there are.
#[test]
fn trials_are_bounded_among_cores() {
    let mut scene = Scene::new(&rules());
    scene.play("---w");
    let admitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let got = (0..1_000).filter_map(|_| scene.breaker.admit(scene.now)).count();
                admitted.fetch_add(got as u64, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(admitted.into_inner(), 2);
}

proptest! {
    #[test]
    fn words_read_back(generation: u16, until_ms in 0u64..1 << 46, successes: u16, trials: u16, kind in 0..3) {
        let phase = match kind {
            0 => Phase::Closed,
            1 => Phase::Open { until_ms },
            _ => Phase::HalfOpen { successes, trials },
        };
        let word = Word { generation, phase };
        prop_assert_eq!(Word::unpack(word.pack()), word);
    }

    #[test]
    fn whatever_happens_it_recovers(script in "[a+\\-0wWt]{0,200}") {
        let mut scene = Scene::new(&rules());
        scene.play(&script);
        // Requests under way end, the worker is well again.
        while !scene.under_way.is_empty() {
            scene.end(Outcome::Neutral);
        }
        scene.play("w++");
        prop_assert_eq!(scene.breaker.state(scene.now), State::Closed);
    }

    #[test]
    fn without_failures_nobody_is_denied(script in "[a+0wWt]{0,200}") {
        let mut scene = Scene::new(&rules());
        scene.play(&script);
        prop_assert_eq!(scene.denied, 0);
    }
}
