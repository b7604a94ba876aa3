//! `smg cluster doctor`: asks every gateway of a cluster, tries its mesh ports, and says what is wrong and what to do.
//!
//! [`gather`] does all that waits, [`checks`] is a pure function of what it found. A *problem* is something that fails
//! requests, state or failover, now or at the next failure, and makes the exit code 1; a *notice* is worth a look.

mod checks;
mod gather;

use std::{fmt::Write as _, process::ExitCode};

use serde::Serialize;
use serde_json::json;

use super::{DoctorArgs, client::Client, exit, plain, say};

/// How serious a finding is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// Checked and well.
    Ok,
    /// Worth a look; the exit code stays 0.
    Notice,
    /// To be mended.
    Problem,
}

/// One thing that was checked.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at: one of a closed set.
    check: &'static str,
    /// What was found.
    found: String,
    /// What to do; empty when all is well.
    advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, found: found.into(), advice: String::new() }
    }

    fn notice(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Notice, check, found: found.into(), advice: advice.into() }
    }

    fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Problem, check, found: found.into(), advice: advice.into() }
    }
}

pub(super) async fn run(client: &Client, args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let facts = gather::facts(client, args).await;
    let findings = checks::all(&facts);
    let is_healthy = !findings.iter().any(|finding| finding.level == Level::Problem);
    say(&if args.json {
        format!("{:#}\n", json!({ "healthy": is_healthy, "findings": findings }))
    } else {
        text(&findings)
    })?;
    Ok(exit(is_healthy))
}

fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Notice => "notice",
            Level::Problem => "PROBLEM",
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "{level:<8} {:<12} {}", finding.check, plain(&finding.found));
        if !finding.advice.is_empty() {
            let _ = writeln!(out, "{:<21} -> {}", "", plain(&finding.advice));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let _ = writeln!(out, "{} problems, {} notices", count(Level::Problem), count(Level::Notice));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_with_what_to_do_below() {
        let findings = [
            Finding::ok("voters", "3"),
            Finding::notice("zones", "all in a", "spread them"),
            Finding::problem("clocks", "n2\u{7} is ahead", "run NTP"),
        ];
        let expected = "\
ok       voters       3
notice   zones        all in a
                      -> spread them
PROBLEM  clocks       n2\u{fffd} is ahead
                      -> run NTP
1 problems, 1 notices
";
        assert_eq!(text(&findings), expected);
        let object = serde_json::to_value(&findings[2]).unwrap_or_default();
        assert_eq!(object["level"], "problem");
    }
}
