//! The alarm clock of the driver: it wakes the task once, at the instant that it was set to.
//!
//! The runtime's own clock keeps timers in a wheel with slots of 64 ms and more. It wakes the thread when a slot begins, to
//! sort what is in it, and it stays set to instants that were given up since; an idle node woke half again as often for that.
//! A timer of the kernel (`timerfd_create(2)`) is set anew with each change, for the price of one call. Where there is none the
//! runtime's clock serves.

use std::time::Instant;

use tokio::time::sleep_until;

#[cfg(target_os = "linux")]
use kernel::Timer;
#[cfg(not(target_os = "linux"))]
use none::Timer;

/// Wakes its one owner at an instant.
#[derive(Debug)]
pub(super) struct Alarm {
    /// None where the kernel gives none: the system has no such timers, or no descriptor is left.
    timer: Option<Timer>,
}

impl Alarm {
    /// Must be called within the runtime that waits for it.
    pub(super) fn new() -> Self {
        Self { timer: Timer::new().ok() }
    }

    /// Waits until an instant, for ever without one; what has passed lets other tasks have a turn. Dropping the future loses
    /// nothing.
    pub(super) async fn until(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return std::future::pending().await };
        if at <= Instant::now() {
            return tokio::task::yield_now().await;
        }
        match &mut self.timer {
            Some(timer) => timer.until(at).await,
            None => sleep_until(at.into()).await,
        }
    }
}

#[cfg(target_os = "linux")]
mod kernel {
    use std::{
        io,
        os::fd::{AsFd as _, AsRawFd, RawFd},
        time::{Duration, Instant},
    };

    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
    use tokio::io::{Interest, unix::AsyncFd};

    #[derive(Debug)]
    pub(super) struct Timer {
        clock: AsyncFd<Clock>,
        /// What the kernel was told; none once that has passed.
        set_to: Option<Instant>,
    }

    #[derive(Debug)]
    struct Clock(TimerFd);

    impl AsRawFd for Clock {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_fd().as_raw_fd()
        }
    }

    impl Timer {
        pub(super) fn new() -> io::Result<Self> {
            let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
            let clock = Clock(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
            #[allow(unsafe_code, reason = "the safe ways to watch a descriptor are deprecated")]
            // SAFETY: the timer owns its descriptor and is moved in; it names the same one until it is dropped with the whole.
            let clock = unsafe { AsyncFd::register_with_interest(clock, Interest::READABLE) }?;
            Ok(Self { clock, set_to: None })
        }

        /// Waits until an instant that is to come.
        pub(super) async fn until(&mut self, at: Instant) {
            if self.set_to != Some(at) && self.set(at).is_err() {
                // Not with a time like this one; rather early than never.
                return;
            }
            loop {
                // Readable from the instant on until it is set anew, which also forgets what had passed.
                match self.clock.readable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    // The runtime ends.
                    Err(_) => return,
                }
                if Instant::now() >= at {
                    self.set_to = None;
                    return;
                }
            }
        }

        fn set(&mut self, at: Instant) -> io::Result<()> {
            // Zero would stop it.
            let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
            self.clock.get_ref().0.set(Expiration::OneShot(wait.into()), TimerSetTimeFlags::empty())?;
            self.set_to = Some(at);
            Ok(())
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod none {
    use std::{convert::Infallible, io, time::Instant};

    #[derive(Debug)]
    pub(super) struct Timer(Infallible);

    impl Timer {
        pub(super) fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) async fn until(&mut self, _at: Instant) {
            match self.0 {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// More than any machine is late for.
    const DEADLINE: Duration = Duration::from_secs(20);

    async fn rings(alarm: &mut Alarm, at: Instant) {
        tokio::time::timeout(DEADLINE, alarm.until(Some(at))).await.expect("it never rang");
        assert!(Instant::now() >= at, "it rang early");
    }

    #[tokio::test]
    async fn it_rings_when_it_was_set_to_and_not_before() {
        for mut alarm in [Alarm::new(), Alarm { timer: None }] {
            let start = Instant::now();
            for ms in [30, 0, 1, 200] {
                rings(&mut alarm, start + Duration::from_millis(ms)).await;
            }
        }
    }

    #[tokio::test]
    async fn it_may_be_set_earlier_later_and_to_the_same_again_while_nobody_waits() {
        let mut alarm = Alarm::new();
        let start = Instant::now();
        let far = start + Duration::from_secs(3600);
        for at in [far, far, start + Duration::from_millis(50), far] {
            // Looked at once and dropped, as when something else comes first.
            tokio::select! {
                biased;
                () = alarm.until(Some(at)) => panic!("it rang early"),
                () = tokio::task::yield_now() => {}
            }
        }
        let at = start + Duration::from_millis(60);
        rings(&mut alarm, at).await;
        // What rang before does not ring again.
        tokio::select! {
            () = alarm.until(Some(far)) => panic!("it rang early"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }

    #[tokio::test]
    async fn without_an_instant_it_is_silent() {
        let mut alarm = Alarm::new();
        tokio::select! {
            () = alarm.until(None) => panic!("it rang"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
}
