//! `smg demo`: three gateways in a mesh and four simulated workers on this machine, with requests flowing.
//!
//! Every process is a child running this same executable with the documented flags, so the demo shows nothing that a
//! user could not start by hand. Children lead process groups of their own: Ctrl-C reaches the demo alone, which then
//! sends SIGTERM to each, waits at most 8 s, and kills what is left. If the demo itself dies, the kernel kills them:
//! each child is first `smg demo --child-of PID -- ARGS`, which asks for that (`PR_SET_PDEATHSIG` of prctl(2), which
//! outlives `execve`) and then becomes `smg ARGS`.

mod client;
mod cluster;
mod outage;
mod ports;
mod render;
mod traffic;

use std::{
    ffi::OsString,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::{cluster::Cluster, outage::Outage, traffic::Traffic};

/// The model that the workers of the demo serve.
const MODEL: &str = "demo";

/// How long the cluster may take to form.
const READY_WAIT: Duration = Duration::from_secs(30);

/// Flags of `smg demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// First of the ports to use: clients at +0 to +2, mesh at +10 to +12, metrics at +20 to +22, workers at +30 to
    /// +33. Free ones when not given.
    #[arg(long, env = "SMG_DEMO_BASE_PORT", value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub base_port: Option<u16>,
    /// Requests sent per second over all gateways.
    #[arg(long, env = "SMG_DEMO_REQUESTS_PER_SECOND", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub requests_per_second: u32,
    /// End after this many seconds of requests; 0 goes on until Ctrl-C.
    #[arg(long, env = "SMG_DEMO_DURATION_SECS", default_value_t = 0)]
    pub duration_secs: u64,
    /// Kill node2 with SIGKILL after this many seconds of requests, and restart it once the others saw it DOWN.
    #[arg(long, env = "SMG_DEMO_KILL_NODE_AFTER_SECS")]
    pub kill_node_after_secs: Option<u64>,
    /// Become a child of the demo with this process id.
    #[arg(long, hide = true)]
    pub child_of: Option<i32>,
    /// What that child runs.
    #[arg(last = true, hide = true, requires = "child_of")]
    pub child: Vec<OsString>,
}

/// Runs the demo until `shutdown`, the end of `--duration-secs`, or a failure; all children are gone when it returns.
///
/// Call it from the thread that outlives it, as `Runtime::block_on` in `main` does: the kernel takes the end of the
/// *thread* that started a child for the death of its parent.
///
/// # Errors
/// When a port is taken, a process ends by itself, the cluster does not form within 30 s, or a request failed at every
/// gateway. Logs are kept then, and the error names their folder.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Some(parent) = args.child_of {
        return Err(cluster::become_child(parent, &args.child));
    }
    let mut cluster = Cluster::start(args.base_port)?;
    let outcome = tokio::select! {
        outcome = present(&mut cluster, &args) => outcome,
        () = shutdown.cancelled() => Ok(()),
    };
    say("stopping all processes");
    cluster.stop().await;
    match outcome {
        Ok(()) => {
            cluster.remove_logs();
            Ok(())
        }
        Err(error) => {
            say(&cluster.log_tails());
            Err(error.context(format!("the demo failed, logs are in {}", cluster.logs().display())))
        }
    }
}

async fn present(cluster: &mut Cluster, args: &Args) -> anyhow::Result<()> {
    say("starting 3 gateways and 4 simulated workers");
    let started = Instant::now();
    cluster.wait_until_ready(READY_WAIT).await?;
    say(&format!("ready after {:.1} s", started.elapsed().as_secs_f64()));
    say(&render::table(cluster.gateways(), cluster.workers()));

    let traffic = Traffic::start(cluster.gateways(), args.requests_per_second);
    let started = Instant::now();
    let mut outage = args.kill_node_after_secs.map(|secs| Outage::planned(Duration::from_secs(secs)));
    let mut ticks =
        tokio::time::interval_at(tokio::time::Instant::now() + Duration::from_secs(1), Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let elapsed = started.elapsed();
        say(&render::line(elapsed, &traffic.counts(), cluster));
        if let Some(outage) = &mut outage
            && let Some(news) = outage.advance(cluster, elapsed).await?
        {
            say(&news);
        }
        cluster.check_alive()?;
        if args.duration_secs > 0 && elapsed >= Duration::from_secs(args.duration_secs) {
            break;
        }
    }
    let counts = traffic.stop().await;
    say(&render::summary(&counts));
    if let Some(error) = &counts.last_error {
        bail!("{} of {} requests failed at every gateway, the last with: {error}", counts.errors, counts.requests);
    }
    if let Some(outage) = outage {
        outage.check_over().context("--kill-node-after-secs")?;
    }
    Ok(())
}

/// One line, or several, for the person who watches.
fn say(text: &str) {
    use std::io::Write as _;
    // A reader that went away does not matter: the demo has its cluster to look after.
    let _ = writeln!(std::io::stdout(), "{text}");
}
