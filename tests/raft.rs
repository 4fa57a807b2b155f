//! Replays every script in `tests/raft/`. `UPDATE=1 cargo test --test raft`
//! rewrites them; review the diff like code, since it *is* the protocol's
//! behaviour. Names begin with area and number of the scenario that they show.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/cores.rs"]
mod cores;
#[path = "support/script.rs"]
mod script;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{env, fs};

use mmapd::raft::config::Planted;
use script::Cluster;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/raft");

fn scripts() -> Vec<PathBuf> {
    let folder = env::var("SCRIPTS").unwrap_or_else(|_| SCRIPTS.to_owned());
    let files = fs::read_dir(Path::new(&folder)).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// The script with what really happens in place of what it expects.
fn replay(script: &str, planted: Option<Planted>) -> String {
    let mut cluster = Cluster::new(planted);
    let block = |block: &str| {
        let commands = block.split_once("\n----").map_or(block, |(commands, _)| commands);
        if commands.lines().all(|line| line.starts_with('#')) {
            return commands.to_owned();
        }
        format!("{commands}\n----\n{}", cluster.run(commands).trim_end())
    };
    script.trim_end().split("\n\n").map(block).collect::<Vec<_>>().join("\n\n") + "\n"
}

#[test]
fn scripts_replay() {
    let mut wrong = Vec::new();
    for path in scripts() {
        let script = fs::read_to_string(&path).unwrap();
        assert!(script.starts_with("# "), "{}: begin with what it shows", path.display());
        let actual = replay(&script, None);
        if env::var_os("UPDATE").is_some() {
            fs::write(&path, actual).unwrap();
        } else if script != actual {
            let at = script.lines().zip(actual.lines()).position(|(a, b)| a != b);
            wrong.push(format!("{} at line {:?}:\n{actual}", path.display(), at.map(|at| at + 1)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each of these bugs makes a script go another way: which ones, it prints.
#[test]
fn planted_bugs_change_a_script() {
    for bug in [
        Planted::AckBeforeSync,
        Planted::ForgetVote,
        Planted::IndexOnlyUpToDate,
        Planted::CommitOldTermByCounting,
        Planted::AckWholeLog,
        Planted::CommitWithoutMin,
        Planted::TruncateEagerly,
        Planted::QuorumHalf,
        Planted::PreVoteCountedAsVote,
        Planted::ReadWithoutRound,
        Planted::ForgetLease,
    ] {
        let mut found = Vec::new();
        for path in scripts() {
            let script = fs::read_to_string(&path).unwrap();
            let actual = catch_unwind(AssertUnwindSafe(|| replay(&script, Some(bug))));
            if actual.is_err() || actual.is_ok_and(|actual| actual != script) {
                found.push(path.file_stem().unwrap().to_string_lossy().into_owned());
            }
        }
        println!("{bug:?}: {}", found.join(" "));
        assert!(!found.is_empty(), "no script notices {bug:?}");
    }
}
