//! A comparison that finds nothing proves nothing: one bug in our nodes, and a mixed cluster
//! must show it. `src/raft/planted.rs` says who had these bugs.

use mmapd::raft::planted::Planted;
use mmapd_difftest::replica::Kind;
use mmapd_difftest::world::{Plan, run};

/// Seeds in which a bug must show.
const ENOUGH: u64 = 200;

#[test]
fn bugs_of_ours_are_found_among_others() {
    // What they assert is told below; a hundred traces would hide it.
    std::panic::set_hook(Box::new(|_| {}));
    let found: Vec<_> = [
        Planted::QuorumHalf,
        Planted::TruncateEagerly,
        Planted::AckBeforeSync,
        Planted::IndexOnlyUpToDate,
        Planted::PrevTermUnchecked,
        Planted::PreVoteCountedAsVote,
        Planted::VoteForEveryone,
        Planted::ForgetVote,
        Planted::HeartbeatCommitUnbounded,
        Planted::ReadWithoutRound,
    ]
    .into_iter()
    .map(|bug| (bug, first_violation(bug)))
    .collect();
    let _ = std::panic::take_hook();
    for (bug, violation) in &found {
        match violation {
            Some((seed, why)) => println!("{bug:?}: seed {seed}: {why}"),
            None => println!("{bug:?}: not found in {ENOUGH} seeds"),
        }
    }
    for (bug, violation) in &found {
        let (seed, _) = violation.as_ref().unwrap_or_else(|| panic!("{bug:?} is not found"));
        assert_eq!(run(&plan(*bug, *seed)).err(), None, "without {bug:?} seed {seed} is clean");
    }
}

fn first_violation(bug: Planted) -> Option<(u64, String)> {
    (1..=ENOUGH).find_map(|seed| {
        let mut plan = plan(bug, seed);
        plan.settings.planted = Some(bug);
        let why = run(&plan).err()?;
        Some((seed, why.lines().map(str::trim).collect::<Vec<_>>().join(", ")))
    })
}

/// A cluster in which the bug can show. Half of an odd number, rounded up, is a majority.
fn plan(bug: Planted, seed: u64) -> Plan {
    if bug == Planted::QuorumHalf {
        return Plan::stormy(seed, vec![Kind::Ours, Kind::Theirs, Kind::Ours, Kind::Theirs]);
    }
    Plan::mixed(seed)
}
