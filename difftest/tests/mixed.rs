//! Clusters in which nodes of both kinds live together, through loss, repetition, reordering,
//! cuts in one direction and both, crashes that lose what was not synced, and pauses.
//!
//! Checked after every event: one leader per term, one vote per node and term, log matching,
//! a leader has what was committed, one committed sequence, durable on a majority of disks,
//! reads not older than what was applied before them. In the end the faults stop: all must
//! agree, nothing acknowledged may be missing, and a new write must get through.
//!
//! `DIFF_SEED=7` runs one seed, `DIFF_SECONDS=600` new seeds for as long.

use std::time::{Duration, Instant};

use mmapd_difftest::world::{Numbers, Plan, run};

/// Seeds that run even when there is no time.
const AT_LEAST: u64 = 20;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn both_kinds_are_one_cluster() {
    if let Some(seed) = env("DIFF_SEED") {
        println!("{:?}: {:#?}", Plan::mixed(seed).kinds, run(&Plan::mixed(seed)));
        return;
    }
    let begun = Instant::now();
    let time = Duration::from_secs(env("DIFF_SECONDS").unwrap_or(20) * 2 / 5);
    let (mut total, mut seeds) = (Numbers::default(), 0);
    while seeds < AT_LEAST || begun.elapsed() < time {
        seeds += 1;
        let numbers = run(&Plan::mixed(seeds));
        total.add(&numbers.unwrap_or_else(|why| panic!("DIFF_SEED={seeds}: {why}")));
    }
    let Numbers { committed, acknowledged, reads, crashes, steps, messages, .. } = total;
    let (ours, theirs) = (total.led_by_ours, total.led_by_theirs);
    println!(
        "mixed: {seeds} seeds in {:.1?}, {committed} commits ({acknowledged} acknowledged), \
         {ours} terms led by ours and {theirs} by raft-rs, {reads} reads, {crashes} crashes, \
         {messages} messages, {steps} steps, violations 0",
        begun.elapsed()
    );
    assert!(ours > seeds && theirs > seeds, "both lead: {ours} and {theirs} terms");
    assert!(acknowledged > 50 * seeds && reads > 10 * seeds, "clients are served");
}

#[test]
fn one_seed_is_one_trace() {
    let traces: Vec<Numbers> = (1..=4)
        .map(|seed| {
            let (first, again) = (run(&Plan::mixed(seed)), run(&Plan::mixed(seed)));
            assert_eq!(first, again, "seed {seed}");
            first.expect("nothing is violated")
        })
        .collect();
    assert!(traces.windows(2).all(|pair| pair[0].trace != pair[1].trace), "seeds differ");
}
