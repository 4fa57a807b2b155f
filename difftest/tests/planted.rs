//! A comparison that finds nothing proves nothing: one bug in our nodes, and a mixed cluster
//! must show it. `src/raft/planted.rs` says who had these bugs.

use mmapd::raft::planted::Planted;
use mmapd_difftest::world::{Plan, run};

/// Seeds in which a bug must show. Without a bug they are clean, see `mixed.rs`.
const ENOUGH: u64 = 60;

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
    assert!(found.iter().all(|(_, violation)| violation.is_some()));
}

fn first_violation(bug: Planted) -> Option<(u64, String)> {
    (1..=ENOUGH).find_map(|seed| {
        let mut plan = Plan::mixed(seed);
        plan.settings.planted = Some(bug);
        run(&plan).err().map(|why| (seed, why.chars().take(160).collect()))
    })
}
