//! What the store does beside LMDB and redb, in one run; `benches/README.md` says how to read it.
//!
//! `cargo bench --bench store [PART...]`, with parts among `compare`, `sizes`, `figures` and
//! `log`; without any, all of them. Absolute figures say little about another machine: read
//! the ratios. A missed target prints MISS and does not fail the run.
#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first surprise")]

mod compare;
mod engines;
mod figures;
mod log;
mod report;

use std::path::{Path, PathBuf};

/// How much to do; from the environment.
#[derive(Clone, Debug)]
struct Scale {
    /// `BENCH_KEYS`: keys in each database.
    keys: u64,
    /// `BENCH_ROUNDS`: how often each engine takes its turn.
    rounds: usize,
    /// `BENCH_OVERWRITES`: how often all values are replaced before the file is measured.
    overwrites: u64,
}

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |text| text.parse().expect("the variable holds a number"))
}

/// `BENCH_DIR`, or a directory beside the build: a file system in memory would prove nothing.
fn directory() -> PathBuf {
    let built = || {
        let program = std::env::current_exe().unwrap();
        program.ancestors().nth(3).unwrap_or(Path::new("target")).to_owned()
    };
    let dir = std::env::var_os("BENCH_DIR").map_or_else(built, PathBuf::from);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn main() {
    let scale = Scale {
        keys: number("BENCH_KEYS", 1_000_000),
        rounds: usize::try_from(number("BENCH_ROUNDS", 3)).unwrap(),
        overwrites: number("BENCH_OVERWRITES", 10),
    };
    let parts: Vec<String> = std::env::args().skip(1).filter(|part| part != "--bench").collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let dir = tempfile::tempdir_in(directory()).unwrap();
    println!("{scale:?}, values of 256 bytes, files below {}", dir.path().display());
    if wanted("compare") {
        compare::rates(dir.path(), &scale);
    }
    if wanted("sizes") {
        compare::sizes(dir.path(), &scale);
    }
    if wanted("figures") {
        figures::all(dir.path(), &scale);
    }
    if wanted("log") {
        log::all(dir.path());
    }
}
