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

use mmapd::raft::planted::Planted;
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

/// Which scripts go another way with this bug.
fn killers(bug: Planted) -> Vec<String> {
    let notices = |path: &PathBuf| {
        let script = fs::read_to_string(path).unwrap();
        let actual = catch_unwind(AssertUnwindSafe(|| replay(&script, Some(bug))));
        actual.map_or(true, |actual| actual != script)
    };
    let name = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    scripts().into_iter().filter(notices).map(name).collect()
}

/// Scripts that notice nothing prove nothing: each planted bug makes at least one of them go
/// another way. Without a bug none does, says `scripts_replay`.
#[test]
fn every_planted_bug_is_noticed() {
    let mut survivors = Vec::new();
    println!("{:26} noticed by", "planted bug");
    for &bug in Planted::ALL {
        let found = killers(bug);
        println!("{:26} {}", format!("{bug:?}"), found.join(" "));
        if found.is_empty() {
            survivors.push(bug);
        }
    }
    println!("{} bugs, {} survive", Planted::ALL.len(), survivors.len());
    assert_eq!(survivors, [], "no script notices these");
    assert!(Planted::ALL.len() >= 25, "fewer were planted than we promise");
}
