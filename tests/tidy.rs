//! Rules about the text of this repository that no compiler checks.
//!
//! `SMG_UPDATE=1 cargo test --test tidy` writes `deploy/REFERENCE.md` anew and lowers the figures of `tests/tidy.allow`.
#![allow(clippy::unwrap_used)]

#[path = "tidy/length.rs"]
mod length;
#[path = "tidy/reference.rs"]
mod reference;
#[path = "tidy/words.rs"]
mod words;

use std::path::{Path, PathBuf};

/// A text file of the repository, by its path from the root with `/`.
struct File {
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_update() -> bool {
    std::env::var_os("SMG_UPDATE").is_some()
}

/// Every file below these folders (or the file itself) with one of the endings, in order of path.
fn files(starts: &[&str], endings: &[&str]) -> Vec<File> {
    let mut waiting: Vec<PathBuf> = starts.iter().map(|start| root().join(start)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let is_generated = name == "target" || name == "corpus" || name == "artifacts";
            let entries = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            waiting.extend(entries.filter(|_| !is_generated));
        } else if path.exists() && endings.iter().any(|ending| name.ends_with(ending)) {
            let from_root = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            found.push(File { path: from_root, text: std::fs::read_to_string(&path).unwrap() });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust_files() -> Vec<File> {
    let found = files(&["src", "transport", "proto", "certs", "tests"], &[".rs"]);
    assert!(found.len() > 20, "the walk finds the sources");
    found
}

/// Fails with every finding, one per line.
fn assert_none(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}

/// Numbered lines without comments, up to the unit tests that end a file.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    shipped.lines().enumerate().map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}
