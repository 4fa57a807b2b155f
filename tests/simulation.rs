//! Whole clusters from a seed (see `support/sim.rs`), and the proof that the simulator would
//! notice: bugs that others really had are planted, and each must be found.
//!
//! `SIM_SEED=7 cargo test --release --test simulation` runs one seed; `SIM_SECONDS=180` runs
//! new seeds for that long. Without either, a handful of seeds run.

#[path = "support/history.rs"]
mod history;
#[path = "support/sim.rs"]
mod sim;

use std::time::{Duration, Instant};

use mmapd::raft::config::Planted;
use sim::{Plan, Report, Sim};

/// Seeds of an ordinary test run.
const SEEDS: u64 = 20;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn run(seed: u64) -> Report {
    match Sim::new(Plan::of(seed)).run() {
        Ok(report) => report,
        Err(violation) => panic!(
            "SIM_SEED={seed} cargo test --release --test simulation no_seed: {}",
            violation.0
        ),
    }
}

#[test]
fn no_seed_loses_an_acknowledged_write() {
    let asked = number("SIM_SEED");
    let seconds = number("SIM_SECONDS");
    let first = asked.unwrap_or(1);
    let start = Instant::now();
    let mut total = Report::default();
    let mut seeds = 0;
    for seed in first.. {
        let report = run(seed);
        seeds += 1;
        total.events += report.events;
        total.operations += report.operations;
        total.unknown += report.unknown;
        total.crashes += report.crashes;
        total.terms += report.terms;
        total.committed += report.committed;
        total.snapshots += report.snapshots;
        let done = match (asked, seconds) {
            (Some(_), _) => true,
            (None, Some(seconds)) => start.elapsed() >= Duration::from_secs(seconds),
            (None, None) => seeds >= SEEDS,
        };
        if done {
            break;
        }
    }
    println!("simulation: {seeds} seeds from {first}, 0 violations, {total:?}");
    assert!(total.committed > 0 && total.operations > 0, "a run that does nothing shows nothing");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 4] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// Runs seeds with a planted bug until one of them shows it.
fn is_caught(planted: Planted, seeds: u64) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let mut plan = Plan::of(seed);
        plan.planted = Some(planted);
        plan.faults.biased = 300;
        plan.faults.every_us = 300_000;
        // A broken invariant of our own stops the node: that is caught as well.
        let run = std::panic::AssertUnwindSafe(|| Sim::new(plan).run());
        match std::panic::catch_unwind(run) {
            Ok(Ok(_)) => None,
            Ok(Err(violation)) => Some((seed, violation.0)),
            Err(_) => Some((seed, "an assertion of the core".into())),
        }
    })
}

fn must_be_caught(planted: Planted) {
    match is_caught(planted, 150) {
        Some((seed, why)) => {
            println!("{planted:?}: seed {seed}: {}", why.lines().next().unwrap_or(""))
        }
        None => panic!("{planted:?} survived 150 seeds"),
    }
}

#[test]
fn acknowledging_before_msync_is_caught() {
    must_be_caught(Planted::AckBeforeSync);
}

#[test]
fn a_forgotten_vote_is_caught() {
    must_be_caught(Planted::ForgetVote);
}

#[test]
fn comparing_logs_by_index_only_is_caught() {
    must_be_caught(Planted::IndexOnlyUpToDate);
}

#[test]
fn half_a_quorum_is_caught() {
    must_be_caught(Planted::QuorumHalf);
}

#[test]
fn reads_without_a_round_are_caught() {
    must_be_caught(Planted::ReadWithoutRound);
}
