//! When QUIC acts by itself: its timers, its acknowledgements, and where its tasks run.
//!
//! An idle mesh sends a handful of small datagrams a second, and what a node pays for them is how often it wakes. QUIC as
//! it comes wakes for each datagram three times more: 25 ms later to acknowledge it (RFC 9000 §13.2.1), at the far end for
//! that acknowledgement, and for the probe timeout that ran meanwhile (RFC 9002 §6.2). Nothing here needs any of it soon: a
//! datagram is never sent again, and whoever sent it waits for its peer's own answer. So
//!
//! - a connection older than [`YOUNG`] acknowledges up to [`TICK`] late, as a rule all connections at the same ticks. Mostly
//!   the next datagram carries the acknowledgement before. Handshakes keep exact timers.
//! - it waits as much longer for its peer's: a probe for an acknowledgement that is only late costs three packets and wakes
//!   both. QUIC has one timer for all that it waits for, and says only when, not what for: an acknowledgement is due
//!   [`ACK_DELAY`] after what it answers, a pause between packets is shorter than [`PAUSE_MAX`], and a probe is later than
//!   both. So a timer is exact, expires at the next tick, or [`PATIENCE`] later, by how far ahead it is set. A packet that
//!   comes or goes meanwhile has QUIC look at its clock as well; what is due by then is done, which costs a probe at worst.
//! - of datagrams in a row up to [`UNACKED_MAX`] wait for one acknowledgement (draft-ietf-quic-ack-frequency §4), where the
//!   peer agrees, as all of ours do.
//! - late acknowledgements look like a long round trip, and a window that follows those would hold datagrams back. It is
//!   [`WINDOW_BYTES`] therefore, whatever is lost. RFC 9221 §5.4 has datagrams obey a congestion controller; this departs
//!   from it on purpose: membership bounds what it sends by its own pace, the same as over plain UDP, and
//!   a probe that waits for a window would accuse a peer of it.

use std::{
    any::Any,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use quinn::{
    AckFrequencyConfig, AsyncTimer, AsyncUdpSocket, Runtime, VarInt,
    congestion::{Controller, ControllerFactory},
};
use tokio::{
    runtime::Handle,
    time::{Sleep, sleep_until},
};

use super::HANDSHAKE_MAX;

/// How late an acknowledgement may be, and how far apart ticks are. With a probe for a lost one it is still within
/// [`SILENCE_MAX`](super::SILENCE_MAX) where the way is not long.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// How far ahead a timer for an acknowledgement is set at most: what QUIC lets one wait (RFC 9000 §18.2, max_ack_delay), which
/// no connection here asks to be otherwise.
const ACK_DELAY: Duration = Duration::from_millis(25);

/// A timer that is set less far ahead than this is for a pause between packets (RFC 9002 §7.7), or what is left of another:
/// such a pause takes a fiftieth of the round trip.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// How much later than by RFC 9002 §6.2 a probe goes out: what a peer's acknowledgement is late at most, and some slack.
pub(super) const PATIENCE: Duration = Duration::from_millis(550);

/// A connection's timers are exact so long: its handshake has ended by then, in one way or the other.
pub(super) const YOUNG: Duration = Duration::from_secs(4);

/// Datagrams that a peer may leave without an acknowledgement until the next one is received.
pub(super) const UNACKED_MAX: u32 = 7;

/// Bytes under way to one peer, unacknowledged; more wait, in a queue with a bound of its own.
pub(super) const WINDOW_BYTES: u64 = 1024 * 1024;

/// Runs QUIC's tasks on one runtime, but those of young connections, with their cryptography, on another.
#[derive(Debug)]
pub(super) struct Pace {
    home: Handle,
    /// Where hands are shaken; unset until the endpoint's own task has been started.
    aside: OnceLock<Handle>,
    start: Instant,
}

/// A timer that is exact while it is young, and late in one of two ways afterwards.
struct Lazy {
    sleep: Pin<Box<Sleep>>,
    born: Instant,
    /// The first tick.
    start: Instant,
    is_lazy: bool,
}

/// The window that does not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steady;

/// How many acknowledgements to ask of the peer.
pub(super) fn acknowledgements() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config.ack_eliciting_threshold(VarInt::from_u32(UNACKED_MAX));
    config
}

impl Pace {
    /// Everything runs on this runtime, until [`Pace::shake_hands_on`].
    pub(super) fn new(home: Handle) -> Self {
        Self { home, aside: OnceLock::new(), start: now() }
    }

    /// Connections that begin from now on run there while they are young.
    pub(super) fn shake_hands_on(&self, aside: Handle) {
        // Set once, right after the endpoint was made.
        let _ = self.aside.set(aside);
    }
}

/// The runtime's time, as tests may stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Runtime for Pace {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let sleep = Box::pin(sleep_until(at.into()));
        Box::pin(Lazy { sleep, born: now(), start: self.start, is_lazy: false })
    }

    fn spawn(&self, mut task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let Some(aside) = self.aside.get() else {
            self.home.spawn(task);
            return;
        };
        let home = self.home.clone();
        aside.spawn(async move {
            if tokio::time::timeout(HANDSHAKE_MAX, &mut task).await.is_err() {
                home.spawn(task);
            }
        });
    }

    fn wrap_udp_socket(&self, _socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        // The endpoint is given its socket.
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Lazy {
    /// When a timer that is set to an instant expires once it is no longer young.
    fn late(&self, at: Instant) -> Instant {
        let ahead = at.saturating_duration_since(now());
        match ahead {
            _ if ahead < PAUSE_MAX => at,
            _ if ahead <= ACK_DELAY => self.tick(at),
            _ => at + PATIENCE,
        }
    }

    /// The first tick at or after an instant.
    fn tick(&self, at: Instant) -> Instant {
        let ticks = at.saturating_duration_since(self.start).as_nanos().div_ceil(TICK.as_nanos());
        u32::try_from(ticks).map_or(at, |ticks| self.start + TICK * ticks)
    }
}

impl AsyncTimer for Lazy {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        if self.is_lazy {
            let at = self.late(at);
            self.sleep.as_mut().reset(at.into());
        } else if now() - self.born >= YOUNG {
            // A new one, on the clock of the runtime that the connection has moved to.
            self.is_lazy = true;
            self.sleep = Box::pin(sleep_until(self.late(at).into()));
        } else {
            self.sleep.as_mut().reset(at.into());
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.sleep.as_mut(), cx)
    }
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy").field("at", &self.sleep.deadline()).field("is_lazy", &self.is_lazy).finish()
    }
}

impl ControllerFactory for Steady {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

impl Controller for Steady {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _is_persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _mtu: u16) {}

    fn window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn initial_window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, thread};

    use tokio::{runtime::Builder, sync::mpsc};

    use super::*;

    /// When a timer expires, as often as it is set to the same.
    async fn expiry(timer: &mut Pin<Box<dyn AsyncTimer>>, at: Instant) -> Instant {
        timer.as_mut().reset(at);
        poll_fn(|cx| timer.as_mut().poll(cx)).await;
        now()
    }

    #[tokio::test(start_paused = true)]
    async fn timers_are_exact_while_young_and_late_by_what_they_are_for_afterwards() {
        let pace = Pace::new(Handle::current());
        let slack = Duration::from_millis(2);
        tokio::time::advance(Duration::from_millis(77)).await;
        let mut timers = [pace.new_timer(now()), pace.new_timer(now())];
        for ms in [25, 90, 340] {
            let at = now() + Duration::from_millis(ms);
            let late = expiry(&mut timers[0], at).await - at;
            assert!(late <= slack, "{late:?} late while young");
        }
        tokio::time::advance(YOUNG).await;
        for ms in [25, 20, 24, 25] {
            let at = now() + Duration::from_millis(ms);
            let found = futures_util::future::join_all(timers.iter_mut().map(|timer| expiry(timer, at))).await;
            assert!(found[0] >= at && found[0] <= at + TICK + slack, "after {ms} ms: {:?} late", found[0] - at);
            assert_eq!(found[0], found[1], "after {ms} ms");
            let into = (found[0] - pace.start).as_millis() % TICK.as_millis();
            assert!(into <= slack.as_millis(), "after {ms} ms: {into} ms into a tick");
            tokio::time::advance(Duration::from_millis(130)).await;
        }
        for ms in [1, 19] {
            let at = now() + Duration::from_millis(ms);
            let late = expiry(&mut timers[0], at).await - at;
            assert!(late <= slack, "a pause of {ms} ms: {late:?} late");
        }
        for ms in [26, 340, 30_000] {
            let at = now() + Duration::from_millis(ms);
            let late = expiry(&mut timers[0], at).await - at;
            assert!(late >= PATIENCE && late <= PATIENCE + slack, "after {ms} ms: {late:?} late");
            assert!(late > TICK + ACK_DELAY, "a peer's acknowledgement is here by then");
        }
    }

    #[test]
    fn tasks_run_aside_while_young_and_at_home_later() {
        let runtime = |name: &str| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(1).thread_name(name).enable_all().build().unwrap()
        };
        let (home, aside) = (runtime("home"), runtime("aside"));
        let pace = Pace::new(home.handle().clone());
        let (told, mut seen) = mpsc::unbounded_channel();
        let report = || {
            let told = told.clone();
            Box::pin(async move {
                let mut tick = tokio::time::interval(Duration::from_millis(50));
                while told.send((thread::current().name().unwrap_or_default().to_owned(), Instant::now())).is_ok() {
                    tick.tick().await;
                }
            })
        };
        let (early, first) = tokio::sync::oneshot::channel();
        pace.spawn(Box::pin(async move { drop(early.send(thread::current().name().map(str::to_owned))) }));
        assert_eq!(first.blocking_recv().unwrap().unwrap(), "home", "as long as there is no place aside");

        pace.shake_hands_on(aside.handle().clone());
        let start = Instant::now();
        pace.spawn(report());
        assert_eq!(seen.blocking_recv().unwrap().0, "aside");
        let moved = loop {
            let (name, at) = seen.blocking_recv().unwrap();
            if name == "home" {
                break at;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "still aside");
        };
        assert!(moved - start >= HANDSHAKE_MAX, "moved after {:?}", moved - start);
    }
}
