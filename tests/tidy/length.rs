//! Length of files and functions, as a ratchet: what is too long is listed with its figure, which only shrinks.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{assert_none, is_update, root, rust_files};

/// Longest file in lines.
const FILE_LINES_MAX: usize = 600;

/// Longest function in lines, from its `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

const ALLOW: &str = "tests/tidy.allow";

#[test]
fn files_and_functions_are_short() {
    let allowed = allowed();
    let measured = measured();
    let mut findings = Vec::new();
    for (what, lines) in &measured {
        match allowed.get(what) {
            Some(figure) if lines <= figure => {}
            Some(figure) => findings.push(format!("{what}: {lines} lines, {figure} are allowed")),
            None => findings
                .push(format!("{what}: {lines} lines; files have {FILE_LINES_MAX}, functions {FUNCTION_LINES_MAX}")),
        }
    }
    assert_none("too long: split it by control flow", &findings);
    let shrunk: BTreeMap<String, usize> = measured.into_iter().filter(|(what, _)| allowed.contains_key(what)).collect();
    if is_update() {
        write_allowed(&shrunk);
    } else {
        assert_eq!(shrunk, allowed, "figures only shrink: run SMG_UPDATE=1 cargo test --test tidy");
    }
}

/// Everything that is too long: `path` or `path function` with its lines.
fn measured() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for file in rust_files() {
        let lines: Vec<&str> = file.text.lines().collect();
        if lines.len() > FILE_LINES_MAX {
            found.insert(file.path.clone(), lines.len());
        }
        for (name, count) in functions(&lines) {
            if count > FUNCTION_LINES_MAX {
                found.insert(format!("{} {name}", file.path), count);
            }
        }
    }
    found
}

/// Name and length of each function.
fn functions<'a>(lines: &[&'a str]) -> Vec<(&'a str, usize)> {
    let starts = lines.iter().enumerate().filter_map(|(start, line)| Some((start, function_name(line)?)));
    starts.map(|(start, name)| (name, function_lines(&lines[start..]))).collect()
}

/// rustfmt puts the closing brace, or the end of a declaration without a body, at the indentation of the first line.
fn function_lines(lines: &[&str]) -> usize {
    let first = lines[0];
    if first.ends_with(['}', ';']) {
        return 1;
    }
    let indentation = first.len() - first.trim_start().len();
    let is_end = |line: &&str| {
        let is_outer = line.len() - line.trim_start().len() == indentation;
        is_outer && (line.trim_start() == "}" || line.ends_with(';'))
    };
    lines.iter().skip(1).position(is_end).map_or(lines.len(), |last| last + 2)
}

fn function_name(line: &str) -> Option<&str> {
    let words = line.trim_start();
    let (before, after) = words.split_once("fn ")?;
    let is_declaration = before.split_whitespace().all(|word| {
        matches!(word, "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"") || word.starts_with("pub(")
    });
    let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (is_declaration && !name.is_empty()).then_some(name)
}

fn allowed() -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(root().join(ALLOW)).unwrap();
    let entries = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    entries
        .map(|line| {
            let (what, figure) = line.rsplit_once(' ').unwrap();
            (what.to_owned(), figure.parse().unwrap())
        })
        .collect()
}

fn write_allowed(entries: &BTreeMap<String, usize>) {
    let mut text = "# Files and functions that are longer than the rule, with the lines they may have.\n\
                    # Figures only shrink: SMG_UPDATE=1 cargo test --test tidy\n"
        .to_owned();
    for (what, figure) in entries {
        writeln!(text, "{what} {figure}").unwrap();
    }
    std::fs::write(root().join(ALLOW), text).unwrap();
}

#[test]
fn functions_are_measured() {
    let text = "impl A {\n    pub fn one(&self) -> u8 {\n        1\n    }\n\n    fn two(\n        &self,\n    ) -> u8 {\n        \
                2\n    }\n}\ntrait B {\n    fn three(&self);\n    fn four(\n        &self,\n    );\n}\nconst fn five() {}\nstruct C;\n";
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(functions(&lines), [("one", 3), ("two", 5), ("three", 1), ("four", 3), ("five", 1)]);
}
