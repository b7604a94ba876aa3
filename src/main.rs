//! Flags in, exit code out.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use smg::{
    certs,
    cli::{self, Invocation, Refusal},
    cluster, demo, run, sim_worker, telemetry,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads of the control plane: it is never on the request path, and the cores belong to the data plane.
const CONTROL_THREADS: usize = 2;

fn main() -> ExitCode {
    use_small_pages();
    match cli::parse(std::env::args_os(), &cli::environment()) {
        Ok(invocation) => match start(invocation) {
            Ok(code) => code,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "smg ends");
                say(&mut stderr(), &format!("error: {error:#}\n"));
                ExitCode::FAILURE
            }
        },
        Err(refusal) => refuse(&refusal),
    }
}

/// The allocator asks for huge pages, of which an idle gateway would fill ten with 2 MB of data: 31 MB resident instead
/// of 13. The working set is small enough to do without.
fn use_small_pages() {
    // Where the kernel refuses, the process is larger and works.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

fn refuse(refusal: &Refusal) -> ExitCode {
    let text = refusal.to_string();
    match refusal.exit_code() {
        0 => say(&mut stdout(), &text),
        _ => say(&mut stderr(), &text),
    }
    ExitCode::from(refusal.exit_code())
}

/// Writes a last word. A closed terminal is no reason to end otherwise.
fn say(to: &mut dyn Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}

fn start(invocation: Invocation) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("smg-control")
        .enable_all()
        .build()?;
    match invocation {
        Invocation::Launch(config) => {
            let _telemetry = telemetry::init(&config.telemetry)?;
            runtime.block_on(run::run(*config))?;
        }
        Invocation::SimWorker(args) => {
            runtime.block_on(async { sim_worker::run(args, run::ended_by_signal()?).await })?;
        }
        Invocation::Certs(args) => certs::run(&args)?,
        Invocation::Demo(args) => runtime.block_on(async { demo::run(args, run::ended_by_signal()?).await })?,
        Invocation::Cluster(args) => {
            return runtime.block_on(async { cluster::run(args, run::ended_by_signal()?).await });
        }
    }
    Ok(ExitCode::SUCCESS)
}
