//! Flags and metrics are documented, and what documents and manifests name exists.

use std::{collections::BTreeSet, fmt::Write as _};

use smg::{
    cli,
    telemetry::metrics::{self, Kind},
};

use super::{assert_none, files, is_update, root, rust_files};

const REFERENCE: &str = "deploy/REFERENCE.md";

#[test]
fn the_reference_lists_every_flag_and_metric() {
    let expected = reference();
    if is_update() {
        std::fs::create_dir_all(root().join("deploy")).unwrap();
        std::fs::write(root().join(REFERENCE), &expected).unwrap();
    }
    let actual = std::fs::read_to_string(root().join(REFERENCE)).unwrap_or_default();
    assert!(actual == expected, "{REFERENCE} is out of date: run SMG_UPDATE=1 cargo test --test tidy");
}

fn reference() -> String {
    let mut text = "# Reference: flags and metrics\n\n\
        Written from the program by `SMG_UPDATE=1 cargo test --test tidy`; a test keeps it true.\n\n\
        ## Flags\n\n\
        A value is looked for on the command line, then in the variable, then in the TOML file of `--config` (key as the\n\
        flag without `--`, with `-` or `_`), then the default is taken. Lists are separated by commas. A switch takes\n\
        `true`, `false`, `1`, `0`, `yes` or `no`, and means `true` without a value.\n"
        .to_owned();
    let command = cli::launch_command();
    let mut heading = "";
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        let group = arg.get_help_heading().unwrap_or_default();
        if group != heading {
            heading = group;
            write!(text, "\n### {group}\n\n| flag | variable | default | meaning |\n|---|---|---|---|\n").unwrap();
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.split(" [env:").next().unwrap_or_default();
        let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = if default.is_empty() { "none".to_owned() } else { format!("`{}`", default.join(",")) };
        let values: Vec<_> = arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
        let values = if values.is_empty() { String::new() } else { format!(": {}", values.join(", ")) };
        writeln!(text, "| `--{long}` | `{}` | {default} | {help}{values} |", cli::variable_of(long)).unwrap();
    }
    text.push_str("\n## Metrics\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for metric in metrics::ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(text, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help).unwrap();
    }
    text
}

#[test]
fn metric_names_stand_in_one_file() {
    let is_home = |path: &str| path.starts_with("src/telemetry/metrics");
    let mut findings = Vec::new();
    for file in rust_files().iter().filter(|file| file.path.starts_with("src/") && !is_home(&file.path)) {
        for (number, line) in super::code_lines(&file.text) {
            let names = words(line, "smg_").filter(|word| metrics::ALL.iter().any(|metric| metric.name == *word));
            findings.extend(names.map(|name| format!("{}:{number}: {name}", file.path)));
            if line.contains("\"smg_") {
                findings.push(format!("{}:{number}: a literal that looks like a metric", file.path));
            }
        }
    }
    assert_none("metric names are declared in telemetry/metrics", &findings);
}

#[test]
fn deployment_names_only_what_exists() {
    let command = cli::command();
    let known_flags: BTreeSet<String> = std::iter::once(&command)
        .chain(command.get_subcommands())
        .flat_map(|command| command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))))
        .chain(["--help".to_owned(), "--version".to_owned()])
        .collect();
    let mut findings = Vec::new();
    for file in files(&["deploy"], &[".yaml", ".yml", ".json", ".service", ".env"]) {
        for (index, line) in file.text.lines().enumerate() {
            let place = format!("{}:{}", file.path, index + 1);
            for name in words(line, "smg_").filter(|name| !is_known_metric(name)) {
                findings.push(format!("{place}: no metric {name}"));
            }
            for name in words(line, "SMG_").filter(|name| !is_known_variable(name, &known_flags)) {
                findings.push(format!("{place}: no variable {name}"));
            }
            let argument = line.trim().trim_start_matches("- ").trim_start_matches(['"', '\'']);
            let is_flag = argument.starts_with("--") && !argument.starts_with("---");
            if let Some(flag) = is_flag.then(|| words(argument, "--").next()).flatten()
                && !known_flags.contains(flag)
            {
                findings.push(format!("{place}: no flag {flag}"));
            }
        }
    }
    assert_none("deploy/ names only flags, variables and metrics that exist", &findings);
}

#[test]
fn every_alert_says_where_its_runbook_is() {
    let runbook = std::fs::read_to_string(root().join("deploy/prometheus/RUNBOOK.md")).unwrap();
    let rules = std::fs::read_to_string(root().join("deploy/prometheus/smg.rules.yml")).unwrap();
    let tests = std::fs::read_to_string(root().join("deploy/prometheus/smg.rules.test.yml")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let mut findings = Vec::new();
    for alert in &alerts {
        // A heading of its own, and a paragraph below it.
        let paragraph = runbook.split(&format!("\n## {alert}\n")).nth(1).unwrap_or_default();
        let paragraph = paragraph.split("\n## ").next().unwrap_or_default();
        if paragraph.trim().len() < 100 {
            findings.push(format!("{alert} has no paragraph in deploy/prometheus/RUNBOOK.md"));
        }
        if !tests.contains(&format!("alertname: {alert}\n    exp_alerts:")) {
            findings.push(format!("{alert} is not seen to fire in deploy/prometheus/smg.rules.test.yml"));
        }
    }
    let headings = runbook.lines().filter_map(|line| line.strip_prefix("## ")).filter(|name| !alerts.contains(name));
    findings.extend(headings.map(|name| format!("deploy/prometheus/RUNBOOK.md: there is no alert {name}")));
    assert!(alerts.len() > 10, "the rules are read");
    assert_none("every alert has a runbook and a test", &findings);
}

#[test]
fn the_operator_gets_the_rules_that_are_tested() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let rules = read("deploy/prometheus/smg.rules.yml");
    let object = read("deploy/kubernetes/overlays/monitoring/prometheusrule.yaml");
    let (_, spec) = object.split_once("\nspec:\n").unwrap();
    let indented = |line: &str| if line.is_empty() { String::new() } else { format!("  {line}") };
    let expected: Vec<String> = rules.lines().map(indented).collect();
    assert!(
        spec.lines().eq(expected.iter().map(String::as_str)),
        "prometheusrule.yaml is smg.rules.yml, indented by two"
    );
}

fn is_known_metric(name: &str) -> bool {
    metrics::ALL.iter().any(|metric| {
        let rest = name.strip_prefix(metric.name);
        rest.is_some_and(|rest| {
            rest.is_empty() || metric.kind == Kind::Histogram && matches!(rest, "_bucket" | "_sum" | "_count")
        })
    })
}

fn is_known_variable(name: &str, flags: &BTreeSet<String>) -> bool {
    flags.iter().any(|flag| cli::variable_of(flag.trim_start_matches('-')) == name)
}

/// Words of a line that begin so, of letters, digits, `_` and `-`.
fn words<'a>(line: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    line.split(move |c| !is_part(c)).filter(move |word| word.len() > start.len() && word.starts_with(start))
}
