//! The house rules that a compiler does not know, by reading the sources as text. Every message
//! says what to do. `ARCHITECTURE.md` says why the rules are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom. What is not said here is refused; `crate::x` covers all below it.
const IMPORTS: &[(&str, &[&str])] = &[
    // The protocol must run a million elections a minute and answer the same twice.
    ("raft", &[]),
    // `machine`: rights are of ranges of keys.
    ("auth", &["machine"]),
    // Storage does not know what a key means to a client. `raft::message`: the token of a sync.
    ("store", &["raft::types", "raft::message"]),
    // `raft::types`: entries are judged by their log id and their index.
    ("machine", &["store", "raft::types"]),
    ("wire", &["raft::types", "raft::message"]),
    // `machine`: a forwarded write is answered with what it did. `raft::message`: what travels.
    (
        "peers",
        &[
            "auth",
            "wire",
            "raft::types",
            "raft::message",
            "store",
            "machine",
            "metrics",
            "config",
            "tls",
            "logs",
        ],
    ),
    ("node", &["raft", "store", "machine", "wire", "peers", "metrics", "config", "logs"]),
    // The edge sees results, not roles: `node::Handle` has all it needs.
    ("http", &["auth", "tls", "node", "machine", "store", "metrics", "config", "logs"]),
    ("config", &["auth", "tls", "logs"]),
    ("tls", &[]),
    ("metrics", &[]),
    ("logs", &[]),
    // `config`: durations are written as they are there.
    ("client", &["config", "tls"]),
    // It judges anybody, so it knows nobody.
    ("linear", &[]),
    ("cli", &["auth", "config", "client", "http", "logs", "metrics", "node", "store"]),
    // `cli`: a backup is judged and restored as there. `linear`: judges what a torture saw.
    ("ctl", &["cli", "client", "config", "linear", "metrics"]),
];

/// Blocks of `unsafe`, all in this file. To add one, change the number, in review.
const UNSAFE_FILE: &str = "src/store/map.rs";
const UNSAFE_BLOCKS: usize = 13;

/// Lines of code in one file, without comments, blank lines and tests.
const CODE_MAX: usize = 500;

/// Files that may be longer, up to this many lines, and why. They may shrink, not grow.
const LONGER: &[(&str, usize, &str)] = &[
    ("src/store/map.rs", 670, "all the unsafe of the crate, each beside what makes it sound"),
    ("src/store/tree.rs", 510, "one tree: search, change and scan share every invariant"),
    ("src/store/simdisk.rs", 625, "one disk with all its faults; for tests only"),
];

/// Files outside of the store that may touch the file system.
const FILES_OUTSIDE_STORE: &[&str] = &["src/config", "src/cli", "src/ctl", "src/bin"];

struct Source {
    /// From the top of the repository, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// `raft` for `src/raft/terms.rs` and for `src/raft.rs`.
    fn module(&self) -> &str {
        let path = self.path.strip_prefix("src/").unwrap_or(&self.path);
        path.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Numbered lines before the tests of the file.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let test = self.is_test();
        (1..)
            .zip(self.text.lines())
            .take_while(move |(_, line)| !test && line.trim() != "#[cfg(test)]")
            .filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` whose name ends in `end`, sorted.
fn files(dir: &str, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.expect("a readable directory").path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources(dir: &str) -> Vec<Source> {
    let read = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("sources are text"),
        path: path.strip_prefix(root()).expect("below it").to_string_lossy().replace('\\', "/"),
    };
    files(dir, ".rs").into_iter().map(read).collect()
}

#[track_caller]
fn tidy(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

/// What follows `crate::` in a line: `raft::types` or `store`.
fn imports(line: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    line.match_indices("crate::")
        .map(|(at, found)| {
            let rest = &line[at + found.len()..];
            let first = word(rest);
            let second = rest[first.len()..].strip_prefix("::").map(word).unwrap_or_default();
            if second.is_empty() { first } else { format!("{first}::{second}") }
        })
        .collect()
}

#[test]
fn imports_point_downwards() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        let module = source.module();
        if ["lib", "main", "bin"].contains(&module) {
            continue;
        }
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
            complaints.push(format!("{}: add {module} to IMPORTS in tests/tidy.rs", source.path));
            continue;
        };
        for (number, line) in source.code() {
            for import in imports(line) {
                let within = |rule: &str| {
                    import == rule
                        || import.strip_prefix(rule).is_some_and(|rest| rest.starts_with("::"))
                };
                if !within(module) && !allowed.iter().any(|rule| within(rule)) {
                    complaints.push(format!(
                        "{}:{number}: {module} may not import crate::{import}; pass what it needs \
                         as an argument, or argue for a line in IMPORTS of tests/tidy.rs",
                        source.path
                    ));
                }
            }
        }
    }
    tidy(&complaints);
}

#[test]
fn the_core_is_pure() {
    let banned = ["std::time", "std::thread", "std::fs", "std::net", "tokio", "axum", "serde"];
    let mut complaints = Vec::new();
    for source in sources("src").iter().filter(|s| ["raft", "store"].contains(&s.module())) {
        let banned = if source.module() == "raft" { &banned[..] } else { &banned[4..] };
        for (number, line) in source.code() {
            let names =
                |b: &&&str| line.contains(&format!("{b}::")) || line.ends_with(&format!(" {b};"));
            if let Some(what) = banned.iter().find(names) {
                let path = &source.path;
                complaints.push(format!("{path}:{number}: {what} belongs to node or http"));
            }
        }
    }
    tidy(&complaints);
}

#[test]
fn files_are_small_ascii_and_begin_with_what_they_are() {
    let mut complaints = Vec::new();
    let (src, tests, benches) = (sources("src"), sources("tests"), sources("benches"));
    assert!(src.len() > 10 && tests.len() > 3, "this test looks in the wrong place");
    for source in src.iter().chain(&tests).chain(&benches) {
        let path = &source.path;
        let lines = source.code().count();
        let longer = LONGER.iter().find(|(longer, _, _)| longer == path);
        let max = longer.map_or(CODE_MAX, |&(_, max, _)| max);
        if source.path.starts_with("src") && lines > max {
            complaints.push(format!("{path}: {lines} lines of code; split it below {max}"));
        }
        if !source.text.starts_with("//!") && !source.is_test() {
            complaints.push(format!("{path}: say in a //! at the top what it is and leaves out"));
        }
        for (number, line) in (1..).zip(source.text.lines()) {
            if !line.is_ascii() {
                complaints.push(format!("{path}:{number}: write it in ASCII, or escape it"));
            }
        }
    }
    tidy(&complaints);
}

#[test]
fn unsafe_is_counted() {
    let mut blocks = 0;
    let mut complaints = Vec::new();
    for source in sources("src") {
        for (number, line) in source.code() {
            let counts = ["unsafe {", "unsafe fn", "unsafe impl"];
            let found = counts.iter().map(|word| line.matches(word).count()).sum::<usize>();
            if source.path == UNSAFE_FILE {
                blocks += found;
            } else if found > 0 {
                complaints.push(format!("{}:{number}: move it to {UNSAFE_FILE}", source.path));
            }
        }
    }
    if blocks != UNSAFE_BLOCKS {
        complaints.push(format!(
            "{UNSAFE_FILE} has {blocks} uses of unsafe, not {UNSAFE_BLOCKS}; if the argument for \
             each is written beside it, change UNSAFE_BLOCKS in tests/tidy.rs"
        ));
    }
    tidy(&complaints);
}

#[test]
fn nothing_is_left_for_later_in_a_comment() {
    // Spelled apart, so that this file passes.
    let marks =
        [("TO", "DO"), ("FIX", "ME"), ("to", "do!("), ("unimple", "mented!("), ("db", "g!(")];
    let mut complaints = Vec::new();
    for source in sources("src").iter().chain(&sources("tests")) {
        for (number, line) in (1..).zip(source.text.lines()) {
            for mark in marks.map(|(a, b)| format!("{a}{b}")) {
                if line.contains(&mark) && !line.contains("issue ") {
                    let path = &source.path;
                    complaints.push(format!("{path}:{number}: {mark}: do it, or name the issue"));
                }
            }
        }
    }
    tidy(&complaints);
}

#[test]
fn only_the_store_touches_files() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        let excepted = FILES_OUTSIDE_STORE.iter().any(|prefix| source.path.starts_with(prefix));
        if source.module() == "store" || excepted {
            continue;
        }
        for (number, line) in source.code() {
            if ["std::fs", "tokio::fs", "File::"].iter().any(|word| line.contains(word)) {
                complaints.push(format!("{}:{number}: ask store::Disk for it", source.path));
            }
        }
    }
    tidy(&complaints);
}

/// Every name of a metric in the code of `source`.
fn metric_names(source: &Source) -> impl Iterator<Item = (usize, String)> {
    source
        .code()
        .flat_map(|(number, line)| {
            line.match_indices("\"mmapd_").map(move |(at, _)| {
                let name = line[at + 1..].split(['"', '{']).next().unwrap_or_default();
                (number, name.to_owned())
            })
        })
        // What all names begin with is none: tokens begin so as well.
        .filter(|(_, name)| name != "mmapd_")
}

#[test]
fn metrics_have_one_home_and_are_documented() {
    let mut complaints = Vec::new();
    let mut names = BTreeSet::new();
    for source in sources("src") {
        for (number, name) in metric_names(&source) {
            if source.module() == "metrics" {
                names.insert(name);
            } else {
                let path = &source.path;
                complaints.push(format!("{path}:{number}: declare {name} in the metrics module"));
            }
        }
    }
    assert!(!names.is_empty(), "no metric was found; this test looks in the wrong place");
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let deploy: String = ["yml", "json"]
        .iter()
        .flat_map(|end| files("deploy", end))
        .map(|path| fs::read_to_string(path).expect("text"))
        .collect();
    for name in names.iter().filter(|name| !readme.contains(*name) && !deploy.contains(*name)) {
        complaints.push(format!("{name}: add it to the metrics table of README.md"));
    }
    tidy(&complaints);
}

#[test]
fn scripts_say_what_they_show() {
    let mut complaints = Vec::new();
    for path in files("tests", ".txt") {
        let text = fs::read_to_string(&path).expect("scripts are text");
        let name = path.strip_prefix(root()).expect("below it").display().to_string();
        if !text.starts_with("# ") || text.lines().next().is_none_or(|line| line.len() < 12) {
            complaints.push(format!("{name}: begin with a comment that says what it shows"));
        }
        if let Some(line) = text.lines().find(|line| !line.is_ascii()) {
            complaints.push(format!("{name}: write it in ASCII: {line}"));
        }
    }
    tidy(&complaints);
}
