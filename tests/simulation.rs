//! Whole clusters from a seed (see `support/sim.rs`), and the proof that the simulator would
//! notice: bugs that others really had are planted, and each must be found.
//!
//! `SIM_SEED=7 cargo test --release --test simulation` runs one seed; `SIM_SECONDS=180` runs
//! seeds for that long, from seed 1 or from `SIM_FIRST`. Without any, a handful of seeds run.

#[path = "support/sim.rs"]
mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mmapd::raft::planted::Planted;
use sim::{Lie, Plan, Report, Sim};

/// Seeds of an ordinary test run.
const SEEDS: u64 = 100;
/// Seeds in which a planted bug must show.
const ENOUGH: u64 = 300;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Says which seed it was when the cluster's own code panics.
struct Under(u64);

impl Drop for Under {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("SIM_SEED={} cargo test --release --test simulation no_seed", self.0);
        }
    }
}

fn run(seed: u64) -> Report {
    let _under = Under(seed);
    match Sim::new(Plan::of(seed)).run() {
        Ok(report) => report,
        Err(violation) => panic!(
            "SIM_SEED={seed} cargo test --release --test simulation no_seed: {}",
            violation.0
        ),
    }
}

/// Takes seeds on two threads until there have been enough.
fn run_many(first: u64, enough: impl Fn(u64) -> bool + Sync) -> (u64, Report) {
    let next = AtomicU64::new(first);
    let worker = || {
        let (mut seeds, mut total) = (0, Report::default());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seeds > 0 && enough(seed - first) {
                return (seeds, total);
            }
            total.add(&run(seed));
            seeds += 1;
        }
    };
    let both = thread::scope(|scope| {
        let other = scope.spawn(worker);
        [worker(), other.join().unwrap_or_else(|panic| resume_unwind(panic))]
    });
    let (mut seeds, mut total) = (0, Report::default());
    for (some, report) in both {
        seeds += some;
        total.add(&report);
    }
    (seeds, total)
}

#[test]
fn no_seed_loses_an_acknowledged_write() {
    if let Some(seed) = number("SIM_SEED") {
        println!("simulation: seed {seed}, 0 violations, {:?}", run(seed));
        return;
    }
    let start = Instant::now();
    let seconds = number("SIM_SECONDS").map(Duration::from_secs);
    let first = number("SIM_FIRST").unwrap_or(1);
    let (seeds, total) = run_many(first, |done| match seconds {
        Some(seconds) => start.elapsed() >= seconds,
        None => done >= SEEDS,
    });
    let rate = u128::from(seeds) * 1000 / start.elapsed().as_millis().max(1);
    println!("simulation: {seeds} seeds from {first}, 0 violations, {rate} a second, {total:?}");
    let Report { operations, committed, crashes, restarts, installed, .. } = total;
    assert!(total.compactions > seeds, "databases were compacted");
    let Report { checkpoints, cut_tails, failed_syncs, terms, .. } = total;
    let Report { rotten, repaired, rebuilt, amnesias, .. } = total;
    assert!(operations > 1000 * seeds / 4 && committed > 100 * seeds, "clients got work done");
    assert!(crashes > seeds && restarts > seeds && terms > seeds, "nodes stopped and started");
    assert!(installed * 4 >= seeds, "snapshots were installed");
    assert!(checkpoints > seeds, "checkpoints were taken");
    assert!(cut_tails > 0 && failed_syncs > 0, "disks misbehaved");
    let Report { changes, changes_refused, configs, joint, wipes, transfers, .. } = total;
    assert!(changes > seeds && configs > changes, "members changed");
    assert!(joint > seeds / 20 && changes_refused > seeds, "in two steps, and not always");
    assert!(wipes > seeds / 10 && total.retired > 0, "members lost their disks, and left");
    assert!(transfers > seeds, "leaders handed over");
    assert!(total.retries > seeds && total.replays > 0, "writes were asked for again");
    assert!(total.leases > seeds / 4, "leases were granted");
    assert!(rotten > seeds / 8, "disks were damaged");
    // A fourth of them in the long run; a few dozen seeds can have less.
    assert!(repaired + rebuilt + amnesias > seeds / 16, "and what was damaged was had again");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 4] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// Somebody changed the state of one node: the others outvote it, and it makes its state anew.
#[test]
fn a_diverged_state_is_found_and_made_anew() {
    let mut rebuilt = 0;
    for seed in 1..=6 {
        let mut plan = Plan::of(seed);
        (plan.diverge, plan.rot) = (true, false);
        (plan.members, plan.wipes) = (false, false);
        // It must not lead and send its state to others before anybody compares.
        (plan.retain_bytes, plan.segment_bytes, plan.long_downs) = (1 << 20, 256 << 10, false);
        let report = outcome(plan).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        rebuilt += report.rebuilt;
    }
    // One or the other is replaced by a snapshot before it can compare itself.
    assert!(rebuilt >= 4, "nearly every one of them was noticed: {rebuilt}");
}

/// A plan full of moments just after a promise.
fn hostile(seed: u64) -> Plan {
    let mut plan = Plan::of(seed);
    plan.faults.biased = 200;
    plan.faults.every_us = 200_000;
    plan.long_downs = false;
    plan.rot = false;
    (plan.members, plan.wipes, plan.transfers) = (false, false, false);
    plan.chaos_us = 10_000_000;
    plan
}

/// Runs a plan. A broken invariant of our own stops the node: that is caught as well.
fn outcome(plan: Plan) -> Result<Report, String> {
    match catch_unwind(AssertUnwindSafe(|| Sim::new(plan).run())) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(violation)) => Err(violation.0),
        Err(panic) => Err(match panic.downcast_ref::<String>() {
            Some(text) => format!("an assertion: {text}"),
            None => "an assertion".into(),
        }),
    }
}

/// Some seed shows the bug, and no seed up to it shows anything without the bug.
fn must_be_caught(name: &str, plant: impl Fn(&mut Plan)) {
    for seed in 1..=ENOUGH {
        let mut plan = hostile(seed);
        plant(&mut plan);
        // The same plan without the bug.
        let control = Plan { planted: None, lies: None, ..plan.clone() };
        if let Err(why) = outcome(control) {
            panic!("seed {seed} fails without {name}: {why}");
        }
        if let Err(why) = outcome(plan) {
            println!("{name}: seed {seed}: {}", why.lines().take(2).collect::<Vec<_>>().join(" "));
            return;
        }
    }
    panic!("{name} survived {ENOUGH} seeds");
}

fn must_be_caught_in_core(planted: Planted) {
    must_be_caught(&format!("{planted:?}"), |plan| plan.planted = Some(planted));
}

#[test]
fn a_lying_sync_of_the_log_is_caught() {
    must_be_caught("a lie about the log", |plan| plan.lies = Some(Lie::Log));
}

#[test]
fn a_meta_page_before_its_data_is_caught() {
    must_be_caught("a lie about the database", |plan| plan.lies = Some(Lie::Database));
}

#[test]
fn acknowledging_before_msync_is_caught() {
    must_be_caught_in_core(Planted::AckBeforeSync);
}

#[test]
fn a_forgotten_vote_is_caught() {
    must_be_caught_in_core(Planted::ForgetVote);
}

#[test]
fn comparing_logs_by_index_only_is_caught() {
    must_be_caught("IndexOnlyUpToDate", |plan| {
        plan.planted = Some(Planted::IndexOnlyUpToDate);
        // Leaders that append alone for long, and few other faults.
        (plan.faults.biased, plan.faults.every_us) = (0, 400_000);
        (plan.clients, plan.chaos_us) = (8, 20_000_000);
    });
}

#[test]
fn half_a_quorum_is_caught() {
    // Half of an odd number, rounded up, is a majority.
    must_be_caught("QuorumHalf", |plan| {
        (plan.nodes, plan.planted) = (4, Some(Planted::QuorumHalf))
    });
}

/// A member that lost its disk and is still believed to be who it was.
#[test]
fn an_empty_disk_with_an_old_name_is_caught() {
    must_be_caught("an old name", |plan| {
        (plan.members, plan.wipes) = (true, true);
        (plan.change_every_us, plan.nodes) = (200_000, 3);
        plan.lies = Some(Lie::Life);
    });
}

#[test]
fn reads_without_a_round_are_caught() {
    must_be_caught_in_core(Planted::ReadWithoutRound);
}

#[test]
fn acknowledging_damaged_entries_is_caught() {
    must_be_caught("AckDamaged", |plan| {
        (plan.rot, plan.planted) = (true, Some(Planted::AckDamaged));
    });
}

#[test]
fn voting_without_memory_is_caught() {
    must_be_caught("VoteInAmnesia", |plan| {
        (plan.rot, plan.planted) = (true, Some(Planted::VoteInAmnesia));
    });
}
