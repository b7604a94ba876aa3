//! clap flags and their `SMG_*` variables; text becomes [`Config`] here and nowhere else.
//!
//! [`parse`] is a pure function of arguments and environment (and of the files that these name): nothing is bound, no
//! log is written. A value is looked for on the command line, then in the environment, then in the file of `--config`,
//! then among the defaults; the first source that has it wins, also for switches and for lists, which are never merged.
//!
//! A variable that is set but empty counts as unset. So does one that holds `tcp://…` or `udp://…` for a port:
//! Kubernetes sets `SMG_PORT=tcp://10.0.0.7:80` in every pod beside a Service named `smg`.

mod build;
mod flags;
mod sources;

use std::{collections::BTreeMap, ffi::OsString};

use clap::{Args as _, ColorChoice, FromArgMatches as _, Subcommand};

use crate::config::Config;

pub use flags::{
    AuthFlags, BreakerFlags, Flags, HealthFlags, KubernetesFlags, LimitFlags, MeshFlags, RequestFlags, RetryFlags,
    TelemetryFlags, WorkerFlags,
};

/// Variables of the environment by name.
pub type Environment = BTreeMap<String, String>;

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the gateway; the same as giving no subcommand
    Launch(Box<Flags>),
    /// Run a simulated OpenAI worker, for tests, demonstrations and benchmarks
    SimWorker(crate::sim_worker::Args),
    /// Run three gateways and four simulated workers on this machine and show requests flowing
    Demo(crate::demo::Args),
    /// Make a certificate authority and certificates of nodes, and inspect them
    Certs(crate::certs::Args),
    /// Show, follow and check a cluster, or have one of its nodes leave
    Cluster(crate::cluster::Args),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run the gateway.
    Launch(Box<Config>),
    /// Run a simulated worker.
    SimWorker(crate::sim_worker::Args),
    /// Run the demonstration cluster.
    Demo(crate::demo::Args),
    /// Make or inspect certificates.
    Certs(crate::certs::Args),
    /// Look at a cluster.
    Cluster(crate::cluster::Args),
}

/// Why nothing is run: `--help` and `--version` asked for a text, or a value cannot be used.
///
/// Nothing was bound, written or logged. Its text goes to standard output when [`Refusal::exit_code`] is 0, else to
/// standard error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// clap's own text: unknown flags, values out of range, help and version.
    #[error("{}", .0.render())]
    Usage(#[from] clap::Error),
    /// Values that cannot be used, each problem in a line that names its flag and says what to change.
    #[error("{}", problem_lines(.0))]
    Values(Vec<String>),
}

impl Refusal {
    /// 0 when help or the version was asked for, else 2.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) if error.exit_code() == 0 => 0,
            _ => 2,
        }
    }
}

fn problem_lines(problems: &[String]) -> String {
    let mut text = String::new();
    for problem in problems {
        text.push_str("error: ");
        text.push_str(problem);
        text.push('\n');
    }
    text.push_str("\nFor more information, try '--help'.\n");
    text
}

/// Reads a command line (the program's name first) in an environment.
///
/// # Errors
///
/// When help or the version is asked for, and when a flag, a variable or the file of `--config` cannot be used. All
/// problems of the values are reported at once.
pub fn parse(args: impl IntoIterator<Item = OsString>, env: &Environment) -> Result<Invocation, Refusal> {
    let args: Vec<OsString> = args.into_iter().collect();
    let matches = command().try_get_matches_from(&args)?;
    let given = match matches.subcommand() {
        None => &matches,
        // Only the gateway's own flags come from the environment and the file as well.
        Some(("sim-worker", given)) => {
            return Ok(Invocation::SimWorker(crate::sim_worker::Args::from_arg_matches(given)?));
        }
        Some(("demo", given)) => return Ok(Invocation::Demo(crate::demo::Args::from_arg_matches(given)?)),
        Some(("certs", given)) => return Ok(Invocation::Certs(crate::certs::Args::from_arg_matches(given)?)),
        Some(("cluster", given)) => return Ok(Invocation::Cluster(crate::cluster::Args::from_arg_matches(given)?)),
        Some((_, launch)) => launch,
    };
    let layered = sources::layer(&launch_command(), given, flag_args(&args), env)?;
    let flags = Flags::from_arg_matches(&layered.matches)?;
    let config = build::config(&flags, &layered.origins, env).map_err(Refusal::Values)?;
    Ok(Invocation::Launch(Box::new(config)))
}

/// The variables of this process. Text that is not UTF-8 is taken with replacement characters, which no flag accepts.
#[must_use]
pub fn environment() -> Environment {
    std::env::vars_os().map(|(k, v)| (k.to_string_lossy().into(), v.to_string_lossy().into())).collect()
}

const ABOUT: &str = "A highly available gateway for LLM inference.";

/// The whole command line for clap: flags of the gateway, and subcommands.
#[must_use]
pub fn command() -> clap::Command {
    let command = launch_command().args_conflicts_with_subcommands(true);
    Command::augment_subcommands(command).about(ABOUT).long_about(None).mut_subcommand("launch", finished)
}

/// The flags of the gateway alone, in the order of `--help`.
#[must_use]
pub fn launch_command() -> clap::Command {
    finished(Flags::augment_args(
        clap::Command::new("smg").version(env!("CARGO_PKG_VERSION")).about(ABOUT).color(ColorChoice::Never),
    ))
}

/// The variable of a flag: `SMG_A_B` for `--a-b`.
#[must_use]
pub fn variable_of(long: &str) -> String {
    format!("SMG_{}", long.replace('-', "_").to_ascii_uppercase())
}

/// What holds for every flag alike: switches take an optional value, units are shown, and the help names the variable.
fn finished(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
        let unit = match long.rsplit('-').next() {
            Some("secs") => Some("SECS"),
            Some("ms") => Some("MS"),
            Some("host") => Some("HOST"),
            Some("port") => Some("PORT"),
            Some("retries" | "threshold" | "percent" | "multiplier" | "factor") => Some("N"),
            _ => None,
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let is_switch = matches!(arg.get_action(), clap::ArgAction::SetTrue);
        let no_default = !is_switch && arg.get_default_values().is_empty();
        let none = if no_default { " [default: none]" } else { "" };
        let arg = arg.help(format!("{help} [env: {}]{none}", variable_of(&long)));
        match unit {
            _ if is_switch => switch(arg),
            Some(unit) => arg.value_name(unit),
            None => arg,
        }
    })
}

fn switch(arg: clap::Arg) -> clap::Arg {
    arg.action(clap::ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .value_name("BOOL")
        .value_parser(boolean)
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("write true, false, 1, 0, yes or no".into()),
    }
}

/// The arguments without the program's name and without `launch`, which can only stand first.
fn flag_args(args: &[OsString]) -> &[OsString] {
    match args {
        [_, first, rest @ ..] if first == "launch" => rest,
        [_, rest @ ..] => rest,
        [] => &[],
    }
}

#[cfg(test)]
mod tests;
