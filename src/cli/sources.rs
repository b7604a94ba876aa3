//! Values from the environment and from the file of `--config`, laid below those of the command line.
//!
//! A lower source is turned into command line tokens (`--port=8000`) for the flags that no higher source has, so that
//! one parser checks every value whatever it came from.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

use super::{Environment, Refusal, variable_of};

/// Where the value of a flag came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    /// The command line.
    Flag,
    /// The variable of that name.
    Variable(String),
    /// The file at that path.
    File(String),
    /// Nobody gave it.
    Default,
}

/// Origin of every flag, by its long name.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where the value of the flag came from.
    pub(super) fn of(&self, long: &str) -> &Origin {
        self.0.get(long).unwrap_or(&Origin::Default)
    }

    /// The flag for a message: `--port`, with the variable or the file it was read from.
    pub(super) fn name(&self, long: &str) -> String {
        match self.of(long) {
            Origin::Flag | Origin::Default => format!("--{long}"),
            Origin::Variable(name) => format!("--{long} (from {name})"),
            Origin::File(path) => format!("--{long} (from {path})"),
        }
    }
}

/// Values of all sources, and where each came from.
#[derive(Debug)]
pub(super) struct Layered {
    pub(super) matches: ArgMatches,
    pub(super) origins: Origins,
}

/// Lays the environment and the file below the arguments, which `given` holds already parsed.
pub(super) fn layer(
    command: &Command,
    given: &ArgMatches,
    args: &[OsString],
    env: &Environment,
) -> Result<Layered, Refusal> {
    let mut problems = Vec::new();
    let mut origins = Origins::default();
    let mut tokens: Vec<OsString> = vec![command.get_name().into()];
    let file = config_file(given, env).map(|path| File::read(command, path)).transpose().map_err(Refusal::Values)?;
    for (long, arg) in flags_of(command) {
        let (origin, values) = match given.value_source(arg.get_id().as_str()) {
            Some(ValueSource::CommandLine) => (Origin::Flag, Vec::new()),
            _ => below_flags(long, arg, env, file.as_ref()),
        };
        let found: Vec<OsString> = values.iter().map(|value| format!("--{long}={value}").into()).collect();
        match refused(command, &found) {
            Some(reason) => problems.push(format!("{}: {reason}", subject(&origin, long, &values))),
            None => tokens.extend(found),
        }
        origins.0.insert(long.to_owned(), origin);
    }
    if !problems.is_empty() {
        return Err(Refusal::Values(problems));
    }
    tokens.extend_from_slice(args);
    let matches = command.clone().try_get_matches_from(tokens)?;
    Ok(Layered { matches, origins })
}

/// Every flag with its long name, without `--help` and `--version`, which clap adds later.
pub(super) fn flags_of(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)))
}

pub(super) fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn below_flags(long: &str, arg: &Arg, env: &Environment, file: Option<&File>) -> (Origin, Vec<String>) {
    let variable = variable_of(long);
    if let Some(value) = env.get(&variable).filter(|value| !value.is_empty() && !is_service_link(long, value)) {
        return (Origin::Variable(variable), vec![value.clone()]);
    }
    if let Some((path, values)) = file.and_then(|file| Some((&file.path, file.values.get(long)?))) {
        // An empty list replaces the default too: one empty entry, which the later checks skip.
        let values = if values.is_empty() && is_list(arg) { vec![String::new()] } else { values.clone() };
        return (Origin::File(path.clone()), values);
    }
    (Origin::Default, Vec::new())
}

/// Kubernetes gives every pod such variables for the Services beside it.
fn is_service_link(long: &str, value: &str) -> bool {
    long.ends_with("port") && (value.starts_with("tcp://") || value.starts_with("udp://"))
}

/// The parser's reason to refuse the tokens of one flag, in one line.
fn refused(command: &Command, tokens: &[OsString]) -> Option<String> {
    if tokens.is_empty() {
        return None;
    }
    let alone = std::iter::once(OsString::from(command.get_name())).chain(tokens.iter().cloned());
    let error = command.clone().try_get_matches_from(alone).err()?;
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("For more information"));
    let reason = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    Some(reason.trim_start_matches("error: ").to_owned())
}

fn subject(origin: &Origin, long: &str, values: &[String]) -> String {
    match origin {
        Origin::Variable(name) => format!("{name}={}", values.join(",")),
        Origin::File(path) => format!("key `{long}` in {path}"),
        Origin::Flag | Origin::Default => format!("--{long}"),
    }
}

fn config_file<'a>(given: &'a ArgMatches, env: &'a Environment) -> Option<&'a str> {
    let flag = given.get_one::<String>("config");
    flag.or_else(|| env.get("SMG_CONFIG")).map(String::as_str).filter(|path| !path.is_empty())
}

/// The file of `--config`: values as the command line would spell them, by long name of the flag.
#[derive(Debug)]
struct File {
    path: String,
    values: BTreeMap<String, Vec<String>>,
}

impl File {
    fn read(command: &Command, path: &str) -> Result<Self, Vec<String>> {
        let text = std::fs::read_to_string(path).map_err(|error| vec![format!("--config {path}: {error}")])?;
        let table: toml::Table = text.parse().map_err(|error| vec![format!("--config {path}: {error}")])?;
        let mut file = Self { path: path.to_owned(), values: BTreeMap::new() };
        let problems: Vec<String> =
            table.iter().filter_map(|(key, value)| file.take(command, key, value).err()).collect();
        if problems.is_empty() { Ok(file) } else { Err(problems) }
    }

    fn take(&mut self, command: &Command, key: &str, value: &toml::Value) -> Result<(), String> {
        let path = &self.path;
        let long = key.replace('_', "-");
        let known = |name: &str| flags_of(command).find(|(long, _)| *long == name && name != "config");
        let Some((_, arg)) = known(&long) else {
            return Err(format!("--config {path}: unknown key `{key}`{}", nearest(command, &long)));
        };
        let values = match value {
            toml::Value::Array(items) if is_list(arg) => items.iter().map(scalar).collect::<Option<Vec<_>>>(),
            other => scalar(other).map(|text| vec![text]),
        };
        let kind = if is_list(arg) { "a list of strings" } else { "a single value" };
        let values = values.ok_or_else(|| format!("--config {path}: key `{key}` for --{long} takes {kind}"))?;
        match self.values.insert(long, values) {
            None => Ok(()),
            Some(_) => Err(format!("--config {path}: key `{key}` is given twice, with `-` and with `_`: remove one")),
        }
    }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(on) => Some(on.to_string()),
        toml::Value::Array(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn nearest(command: &Command, name: &str) -> String {
    let score = |long: &str| strsim::jaro_winkler(long, name);
    let names = flags_of(command).map(|(long, _)| long).filter(|long| *long != "config");
    let best = names.max_by(|a, b| score(a).total_cmp(&score(b)));
    best.map(|long| format!("; the nearest known key is `{long}`")).unwrap_or_default()
}
