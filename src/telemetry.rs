//! Tracing, metrics, OpenTelemetry export; every metric name is declared here.
//!
//! Logs go to standard output: a gateway has no other output there, and container runtimes collect it. Standard error
//! is for what happens before there is a log (a refused command line) or when it fails. With `--log-dir` the same lines
//! also go to `smg.log.<date>` there, a file per UTC day, through a queue of [`FILE_LINES_MAX`] lines: when the disk is
//! slower than that the file loses lines, never the requests their time; [`Guard::lines_lost`] counts them. Old files
//! are left to the operator's rotation.
//!
//! `RUST_LOG`, when set, replaces `--log-level` and what is silent beside it; its syntax is that of `tracing_subscriber::EnvFilter`.

pub mod metrics;
pub mod push;

pub mod server;
pub mod traces;

use std::path::PathBuf;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config;

/// Lines that wait for the log file; when more come, the newest are dropped from it.
pub const FILE_LINES_MAX: usize = 16_384;

/// The Kubernetes client logs each failed request as an error, without what it failed of; the search says that itself, once a
/// minute at most.
const SILENT: &str = "kube_client=off";

/// Why there is no log. Nothing was installed; the next start may succeed once the cause is removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// `RUST_LOG` cannot be read as a filter.
    #[error("RUST_LOG `{0}` is no log filter: write for example smg::mesh=debug")]
    Filter(String, #[source] tracing_subscriber::filter::ParseError),
    /// The directory of `--log-dir` cannot be made or written.
    #[error("--log-dir {}: cannot write log files there", .0.display())]
    Directory(PathBuf, #[source] std::io::Error),
    /// Another subscriber was installed in this process before.
    #[error("logging was already set up")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps the log file's writer alive. Dropping it writes what waits, for at most a second.
#[derive(Debug, Default)]
#[must_use = "dropping it ends the log file"]
pub struct Guard {
    file: Option<(WorkerGuard, ErrorCounter)>,
}

impl Guard {
    /// Lines that the log file lost since the start because its queue was full.
    #[must_use]
    pub fn lines_lost(&self) -> usize {
        self.file.as_ref().map_or(0, |(_, lost)| lost.dropped_lines())
    }
}

/// Installs the process's log.
///
/// # Errors
///
/// When `RUST_LOG` is no filter, the log directory cannot be written, or there is a log already.
pub fn init(config: &config::Telemetry) -> Result<Guard, InitError> {
    let rust_log = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = filter(rust_log.as_deref(), &config.log_level)?;
    let (file, guard) = match &config.log_dir {
        None => (None, Guard::default()),
        Some(dir) => {
            let (writer, guard) = file_writer(dir)?;
            (Some(line_layer(config.log_json, writer)), guard)
        }
    };
    let lines = line_layer(config.log_json, std::io::stdout);
    tracing_subscriber::registry().with(lines.and_then(file).with_filter(filter)).try_init()?;
    Ok(guard)
}

fn filter(rust_log: Option<&str>, log_level: &str) -> Result<EnvFilter, InitError> {
    let text = rust_log.map_or_else(|| format!("{log_level},{SILENT}"), str::to_owned);
    EnvFilter::try_new(&text).map_err(|error| InitError::Filter(text, error))
}

fn line_layer<W>(is_json: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_ansi(false).with_writer(writer);
    if is_json { layer.json().flatten_event(true).boxed() } else { layer.boxed() }
}

fn file_writer(dir: &PathBuf) -> Result<(NonBlocking, Guard), InitError> {
    let refuse = |error| InitError::Directory(dir.clone(), error);
    std::fs::create_dir_all(dir).map_err(refuse)?;
    let appender = tracing_appender::rolling::Builder::new()
        .rotation(tracing_appender::rolling::Rotation::DAILY)
        .filename_prefix("smg.log")
        .build(dir)
        .map_err(|error| refuse(std::io::Error::other(error)))?;
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(FILE_LINES_MAX);
    let (writer, guard) = builder.thread_name("smg-log-file").finish(appender);
    let lost = writer.error_counter();
    Ok((writer, Guard { file: Some((guard, lost)) }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn rust_log_wins_over_the_flag() {
        for (case, rust_log, level, expected) in [
            ("flag alone", None, "warn", Ok("kube_client=off,warn")),
            ("variable", Some("smg::mesh=debug"), "warn", Ok("smg::mesh=debug")),
            ("not a filter", Some("smg=loud"), "info", Err("RUST_LOG `smg=loud`")),
        ] {
            match (filter(rust_log, level), expected) {
                (Ok(filter), Ok(expected)) => assert_eq!(filter.to_string(), expected, "{case}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{case}: {error}"),
                (actual, _) => panic!("{case}: {actual:?}"),
            }
        }
    }

    #[test]
    fn a_log_directory_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a-file");
        std::fs::write(&file, "").unwrap();
        let error = file_writer(&file.join("below")).unwrap_err();
        assert!(error.to_string().starts_with("--log-dir "), "{error}");
    }

    #[test]
    fn lines_reach_the_daily_file() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, guard) = file_writer(&dir.path().join("logs")).unwrap();
        let subscriber = tracing_subscriber::registry().with(line_layer(true, writer));
        tracing::subscriber::with_default(subscriber, || tracing::info!(peer = "node2", "peer joined"));
        assert_eq!(guard.lines_lost(), 0);
        drop(guard);
        let file = std::fs::read_dir(dir.path().join("logs")).unwrap().next().unwrap().unwrap();
        assert!(file.file_name().to_string_lossy().starts_with("smg.log."), "{file:?}");
        let text = std::fs::read_to_string(file.path()).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((&line["message"], &line["peer"]), (&"peer joined".into(), &"node2".into()), "{text}");
    }
}
