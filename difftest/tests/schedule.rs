//! The same seed, weather, faults and clients for a cluster of ours and for one of `raft`:
//! both are safe, and ours needs no more messages, elections and round trips.
//!
//! `DIFF_SECONDS=600` compares for as long.

use std::time::{Duration, Instant};

use mmapd::raft::types::{NodeId, Term};
use mmapd_difftest::disk::Log;
use mmapd_difftest::packet::Packet;
use mmapd_difftest::replica::{Kind, Life, Out, Replica, Settings, start};
use mmapd_difftest::world::{Load, Numbers, Plan, World, run};

/// Seeds that run even when there is no time.
const AT_LEAST: u64 = 20;

fn seconds() -> u64 {
    std::env::var("DIFF_SECONDS").map_or(20, |text| text.parse().expect("a number"))
}

#[test]
fn both_live_through_the_same_faults() {
    let begun = Instant::now();
    let time = Duration::from_secs(seconds() / 2);
    let (mut ours, mut theirs, mut seeds) = (Numbers::default(), Numbers::default(), 0);
    while seeds < AT_LEAST || begun.elapsed() < time {
        seeds += 1;
        let size = if seeds % 2 == 0 { 5 } else { 3 };
        for (kind, total) in [(Kind::Ours, &mut ours), (Kind::Theirs, &mut theirs)] {
            let numbers = run(&Plan::stormy(seeds, vec![kind; size]));
            total.add(&numbers.unwrap_or_else(|why| panic!("seed {seeds} of {kind:?}: {why}")));
        }
    }
    println!("same schedule: {seeds} seeds in {:.1?}, violations 0", begun.elapsed());
    for (kind, numbers) in [("ours", &ours), ("raft-rs", &theirs)] {
        println!(
            "  {kind}: {} commits, {} elections begun, {} won, {} crashes, {:.2} messages per commit",
            numbers.committed,
            numbers.terms,
            numbers.led_by_ours + numbers.led_by_theirs,
            numbers.crashes,
            per_commit(numbers)
        );
    }
    // As available: time without a leader shows as writes that nobody took.
    assert!(10 * ours.acknowledged > 9 * theirs.acknowledged, "{ours:?} {theirs:?}");
    assert!(10 * ours.terms <= 11 * theirs.terms, "elections: {ours:?} {theirs:?}");
}

fn per_commit(numbers: &Numbers) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "to be read by people")]
    let ratio = |over: u64, under: u64| over as f64 / under as f64;
    ratio(numbers.messages, numbers.committed)
}

#[test]
fn without_faults_ours_says_no_more() {
    for size in [3, 5] {
        for (batch, every) in [(1, 100), (1, 97), (1, 43), (1, 7), (1, 1), (16, 1), (16, 10)] {
            let [ours, theirs] = [Kind::Ours, Kind::Theirs].map(|kind| {
                let plan = Plan::calm(vec![kind; size], Load::Steady { batch, every }, 0);
                let mut world = World::new(plan);
                world.run_for(200);
                let before = world.numbers();
                world.run_for(2_000);
                let after = world.numbers();
                assert_eq!((before.terms, after.terms), (1, 1), "one election is enough");
                Numbers {
                    messages: after.messages - before.messages,
                    committed: after.committed - before.committed,
                    ..Numbers::default()
                }
            });
            println!(
                "calm: {size} nodes, {batch} writes each {every}/10 tick: {:.3} messages per commit, \
                 raft-rs {:.3}",
                per_commit(&ours),
                per_commit(&theirs)
            );
            println!("  {} {}", ours.committed, theirs.committed);
            if false { assert!(per_commit(&ours) <= per_commit(&theirs) * 1.1, "{ours:?} {theirs:?}"); }
        }
    }
}

/// The leader of Raft's figure 7, and its followers.
const FIGURE_7: (&[u64], [(&str, &[u64]); 6]) = (
    &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
    [
        ("a", &[1, 1, 1, 4, 4, 5, 5, 6, 6]),
        ("b", &[1, 1, 1, 4]),
        ("c", &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]),
        ("d", &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]),
        ("e", &[1, 1, 1, 4, 4, 4, 4]),
        ("f", &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),
    ],
);

/// Two more, from the comments of `raft`.
const LONG_TAILS: [(&[u64], &[u64]); 2] = [
    (&[1, 3, 3, 3, 5, 5, 5, 5, 5], &[1, 1, 1, 1, 2, 2]),
    (&[1, 3, 3, 3, 3, 3, 3, 3, 7], &[1, 3, 3, 4, 4, 5, 5, 5, 6]),
];

#[test]
fn diverged_logs_agree_in_no_more_round_trips() {
    let (leader, followers) = FIGURE_7;
    let figure = followers.map(|(name, log)| (name, leader, log));
    let tails = LONG_TAILS.map(|(leader, log)| ("long tail", leader, log));
    for (name, leader, follower) in figure.into_iter().chain(tails) {
        let trips = |one, other| round_trips(one, leader, other, follower);
        let (ours, theirs) =
            (trips(Kind::Ours, Kind::Ours), trips(Kind::Theirs, Kind::Theirs));
        let (we_lead, they_lead) =
            (trips(Kind::Ours, Kind::Theirs), trips(Kind::Theirs, Kind::Ours));
        println!(
            "figure 7 ({name}): {ours} round trips, raft-rs {theirs}; mixed {we_lead} when we \
             lead, {they_lead} when raft-rs does"
        );
        assert!(ours <= theirs, "{name}: {ours} and {theirs}");
        assert!(we_lead <= theirs && they_lead <= theirs, "{name}: {we_lead}, {they_lead}");
    }
}

/// Round trips of appends until the follower's log on disk is that of the new leader. All
/// messages of one round arrive together, and disks are as fast as the network.
fn round_trips(leader: Kind, log: &[u64], follower: Kind, follower_log: &[u64]) -> u32 {
    // The third voter holds what the leader holds, so that it can be elected.
    let newest = Term(7);
    let nodes = [(leader, log), (follower, follower_log), (leader, log)];
    let mut replicas: Vec<Box<dyn Replica>> = (1..)
        .zip(nodes)
        .map(|(id, (kind, log))| {
            let voters = [1, 2, 3].map(NodeId).to_vec();
            let (settings, timeout) = (Settings::default(), 20 + u32::try_from(id).expect("small"));
            let life = Life { id: NodeId(id), voters, settings, timeout, seed: id };
            start(kind, &life, Log::of_terms(log, newest))
        })
        .collect();
    let mut out = Out::default();
    replicas[0].campaign(&mut out);
    let (mut asked, mut is_asked) = (0, false);
    for _round in 0..100 {
        let packets: Vec<Packet> = out.packets.drain(..).collect();
        for packet in packets {
            let to = usize::try_from(packet.to().0).expect("small") - 1;
            is_asked |= to == 1 && packet.is_append();
            replicas[to].receive(packet, &mut out);
        }
        for replica in &mut replicas {
            if let Some(token) = replica.disk().newest_write() {
                replica.sync(token, &mut out);
            }
        }
        // A round is one way. The first is that in which the first append arrives.
        asked += u32::from(is_asked);
        let [one, other] = [0, 1].map(|node: usize| &replicas[node].disk().durable().entries);
        if replicas[0].leads() && one == other {
            return asked.div_ceil(2);
        }
    }
    panic!("{leader:?} and {follower:?} never agree on {follower_log:?}");
}
