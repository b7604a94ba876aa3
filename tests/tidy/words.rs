//! Words that must not occur where they are.

use super::{assert_none, code_lines, files, rust_files};

/// STYLE: machines of the mesh take time, randomness and bytes as arguments.
#[test]
fn pure_mesh_names_no_clock_randomness_or_io() {
    const FORBIDDEN: &[&str] = &[
        "tokio",
        "Instant::now",
        "SystemTime::now",
        "smg_transport",
        "thread_rng",
        "rand::rng",
        "rand::random",
        "from_os_rng",
        "SysRng",
        "OsRng",
        "ThreadRng",
        "RandomState",
        "std::net::Udp",
        "std::net::Tcp",
        "std::fs",
        "std::env",
        "std::thread",
        "HashMap::new",
        "HashMap::with_capacity(",
        "HashSet::new",
        "HashSet::with_capacity(",
    ];
    let mut findings = Vec::new();
    for file in rust_files().iter().filter(|file| is_pure_mesh(&file.path)) {
        for (number, line) in code_lines(&file.text) {
            let words = FORBIDDEN.iter().filter(|word| line.contains(**word));
            findings.extend(words.map(|word| format!("{}:{number}: {word}", file.path)));
            // Aliases with a fixed hasher name it as a third parameter; a plain one is randomly seeded.
            if is_plain_hash_collection(line) {
                findings.push(format!("{}:{number}: a map or set with a random order", file.path));
            }
            let is_wire = file.path == "src/mesh/wire.rs" || file.path.starts_with("src/mesh/wire/");
            if line.contains("smg_proto") && !is_wire {
                findings.push(format!("{}:{number}: smg_proto outside wire", file.path));
            }
        }
    }
    assert_none("the mesh is pure but for files and folders named driver or sim", &findings);
}

fn is_pure_mesh(path: &str) -> bool {
    let is_mesh = path == "src/mesh.rs" || path.starts_with("src/mesh/");
    is_mesh && !path.split('/').any(|part| matches!(part.trim_end_matches(".rs"), "driver" | "sim" | "tests"))
}

/// `HashMap<K, V>` or `HashSet<T>` without a hasher, as far as one line shows it.
fn is_plain_hash_collection(line: &str) -> bool {
    [("HashMap<", 2), ("HashSet<", 1)].into_iter().any(|(name, parameters)| {
        line.match_indices(name).any(|(start, _)| arguments(&line[start + name.len()..]) == Some(parameters))
    })
}

/// Number of type arguments up to the closing bracket; none when the line ends before it.
fn arguments(text: &str) -> Option<usize> {
    let (mut depth, mut count) = (0_i32, 1);
    for c in text.chars() {
        match c {
            '<' | '(' | '[' => depth += 1,
            '>' if depth == 0 => return Some(count),
            '>' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => count += 1,
            _ => {}
        }
    }
    None
}

/// Name of a part, which files it is, and words that do not occur in them.
type Rule = (&'static str, fn(&str) -> bool, &'static [&'static str]);

/// STYLE: the table of dependencies between the parts; Cargo checks the members.
#[test]
fn dependencies_point_one_way() {
    let rules: [Rule; 7] = [
        (
            "pure mesh",
            is_pure_mesh,
            &["crate::gateway", "crate::ha", "crate::telemetry", "crate::cli", "crate::config"],
        ),
        ("mesh driver", |path| path.starts_with("src/mesh/driver"), &["crate::gateway", "crate::ha", "crate::cli"]),
        ("transport", |path| path.starts_with("transport/src/"), &["smg::", "swim", "crdt"]),
        (
            "transport but for grpc",
            |path| path.starts_with("transport/src/") && !path.contains("/grpc") && !path.contains("/conformance"),
            &["smg_proto"],
        ),
        ("proto", |path| path.starts_with("proto/src/"), &["smg::", "smg_transport", "smg_certs"]),
        ("certs", |path| path.starts_with("certs/src/"), &["smg::", "smg_transport", "smg_proto"]),
        ("telemetry", |path| path.starts_with("src/telemetry"), &["crate::gateway", "crate::ha", "crate::cli"]),
    ];
    let files = rust_files();
    let mut findings = Vec::new();
    for (part, concerns, forbidden) in rules {
        for file in files.iter().filter(|file| concerns(&file.path)) {
            for (number, line) in code_lines(&file.text) {
                // The log target of the transport, STYLE §5.
                let line = line.replace("\"smg::mesh::transport\"", "");
                let words = forbidden.iter().filter(|word| line.contains(**word));
                findings.extend(words.map(|word| format!("{}:{number}: {part} names {word}", file.path)));
            }
        }
    }
    assert_none("dependencies point one way", &findings);
}

#[test]
fn nothing_is_left_to_do() {
    // Spelled in halves, so that this file passes its own test.
    let words = ["TO|DO", "FIX|ME", "XX|X", "HA|CK", "to|do!(", "unimpl|emented!("].map(|word| word.replace('|', ""));
    let texts = files(
        &["src", "transport", "proto", "certs", "tests", "deploy", "README.md", "ARCHITECTURE.md", "Cargo.toml"],
        &[".rs", ".toml", ".proto", ".md", ".yaml", ".yml", ".sh"],
    );
    let mut findings = Vec::new();
    for file in &texts {
        for (index, line) in file.text.lines().enumerate() {
            let found = words.iter().filter(|word| line.contains(word.as_str()));
            findings.extend(found.map(|word| format!("{}:{}: {word}", file.path, index + 1)));
        }
    }
    assert_none("work that is left is an issue, not a comment", &findings);
}

#[test]
fn every_source_file_says_what_it_is() {
    let silent = |text: &str| !text.starts_with("//! ") || text.starts_with("//! Placeholder");
    let findings: Vec<String> =
        rust_files().into_iter().filter(|file| silent(&file.text)).map(|file| file.path).collect();
    assert_none("a file begins with its `//!` sentence", &findings);
}

#[test]
fn no_test_is_ignored() {
    let mark = ["#[ig", "nore"].concat();
    let findings: Vec<String> =
        rust_files().into_iter().filter(|file| file.text.contains(&mark)).map(|file| file.path).collect();
    assert_none("no ignored test", &findings);
}

#[test]
fn random_order_is_recognised() {
    for (case, line, expected) in [
        ("map", "    seen: HashMap<NodeName, Vec<(u8, u8)>>,", true),
        ("set", "fn all() -> HashSet<NodeName> {", true),
        ("collected", "let m = pairs.collect::<HashMap<_, _>>();", true),
        ("fixed hasher", "    seen: HashMap<NodeName, u8, FixedState>,", false),
        ("set with a fixed hasher", "    seen: HashSet<NodeName, FixedState>,", false),
        ("ordered", "    seen: BTreeMap<NodeName, u8>,", false),
    ] {
        assert_eq!(is_plain_hash_collection(line), expected, "{case}");
    }
}
