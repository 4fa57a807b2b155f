//! The same seed, weather, faults and clients for a cluster of ours and for one of `raft`:
//! both are safe. Compared are messages per commit without faults, elections under them, and
//! round trips until diverged logs agree.
//!
//! `DIFF_SECONDS=600` compares for as long.

use std::time::{Duration, Instant};

use mmapd::raft::types::{NodeId, Term};
use mmapd_difftest::disk::Log;
use mmapd_difftest::packet::Packet;
use mmapd_difftest::replica::{Kind, Life, Out, Replica, Settings, start};
use mmapd_difftest::schedule::TICK;
use mmapd_difftest::world::{Load, Numbers, Plan, World, run};

/// Seeds whose figures are compared; later ones are for safety only.
const COMPARED: u64 = 40;

fn seconds() -> u64 {
    std::env::var("DIFF_SECONDS").map_or(20, |text| text.parse().expect("a number"))
}

/// What the two kinds showed.
#[derive(Debug, Default)]
struct Pair {
    ours: Numbers,
    theirs: Numbers,
}

impl Pair {
    fn add(&mut self, seed: u64, plan: impl Fn(Kind) -> Plan) {
        for (kind, total) in [(Kind::Ours, &mut self.ours), (Kind::Theirs, &mut self.theirs)] {
            let numbers = run(&plan(kind));
            total.add(&numbers.unwrap_or_else(|why| panic!("seed {seed} of {kind:?}: {why}")));
        }
    }

    fn print(&self, what: &str) {
        for (name, numbers) in [("ours", &self.ours), ("raft-rs", &self.theirs)] {
            let Numbers { committed, terms, led_by_ours, led_by_theirs, crashes, .. } = numbers;
            println!(
                "same schedule, {what}, {name}: {committed} commits, {terms} elections begun, {} won, \
                 {crashes} crashes, {:.2} messages per commit",
                led_by_ours + led_by_theirs,
                per_commit(numbers)
            );
        }
    }
}

fn per_commit(numbers: &Numbers) -> f64 {
    numbers.messages as f64 / numbers.committed as f64
}

#[test]
fn both_live_through_the_same_faults() {
    let begun = Instant::now();
    let time = Duration::from_secs(seconds() * 2 / 5);
    let (mut batched, mut one_by_one, mut seeds) = (Pair::default(), Pair::default(), 0);
    let mut compared = (0, 0, 0, 0);
    while seeds < COMPARED || begun.elapsed() < time {
        seeds += 1;
        let size = if seeds % 2 == 0 { 5 } else { 3 };
        let plan = |kind| Plan::stormy(seeds, vec![kind; size]);
        let is_single = plan(Kind::Ours).settings.one_by_one;
        let pair = if is_single { &mut one_by_one } else { &mut batched };
        pair.add(seeds, plan);
        if seeds == COMPARED {
            let sum = |of: fn(&Pair) -> u64| of(&batched) + of(&one_by_one);
            compared = (
                sum(|pair| pair.ours.terms),
                sum(|pair| pair.theirs.terms),
                sum(|pair| pair.ours.acknowledged),
                sum(|pair| pair.theirs.acknowledged),
            );
        }
    }
    batched.print("batched");
    one_by_one.print("one entry per append");
    println!("same schedule: {seeds} seeds in {:.1?}, violations 0", begun.elapsed());
    // Of the same seeds each time: how many more there were depends on the machine.
    let (terms, their_terms, acknowledged, their_acknowledged) = compared;
    assert!(4 * terms <= 5 * their_terms, "elections: {terms} and {their_terms}");
    // Time without a leader shows as writes that nobody took.
    let served = (acknowledged, their_acknowledged);
    assert!(10 * acknowledged >= 9 * their_acknowledged, "writes served: {served:?}");
}

/// Messages while `batch` writes come every `every` units of time, from `phase` on.
fn calm(kind: Kind, size: usize, batch: u64, every: u64, phase: u64) -> Numbers {
    let plan = Plan::calm(vec![kind; size], Load::Steady { batch, every }, 0);
    let mut world = World::new_at(plan, phase);
    world.run_for(200);
    let before = world.numbers();
    world.run_for(400);
    let after = world.numbers();
    assert_eq!((before.terms, after.terms), (1, 1), "one election is enough");
    let messages = after.messages - before.messages;
    Numbers { messages, committed: after.committed - before.committed, ..Numbers::default() }
}

/// How far writes are from heartbeats decides how many messages they share. Over all
/// distances ours says less than `raft`. At the worst one it says more: heartbeats and
/// appends cross, and whoever answers the heartbeat before the append is asked whether
/// that was lost.
#[test]
fn without_faults_ours_says_no_more() {
    let heartbeat = u64::from(Settings::default().heartbeat_ticks) * TICK;
    for (size, (batch, every)) in [3, 5].into_iter().flat_map(|size| {
        [(1, 100), (1, 40), (1, 10), (16, 10), (1, 7), (16, 1)].map(|load| (size, load))
    }) {
        let [(ours, worst), (theirs, their_worst)] = [Kind::Ours, Kind::Theirs].map(|kind| {
            let (mut total, mut worst) = (Numbers::default(), 0.0_f64);
            for phase in 0..every.min(heartbeat) {
                let numbers = calm(kind, size, batch, every, phase);
                worst = worst.max(per_commit(&numbers));
                total.add(&numbers);
            }
            (total, worst)
        });
        println!(
            "calm: {size} nodes, {batch} writes each {every}/{TICK} tick: {:.3} messages per \
             commit, raft-rs {:.3}; at the worst phase {worst:.3} and {their_worst:.3}",
            per_commit(&ours),
            per_commit(&theirs)
        );
        assert!(ours.committed * 100 >= theirs.committed * 99, "{ours:?} {theirs:?}");
        assert!(per_commit(&ours) <= per_commit(&theirs) * 1.1, "{ours:?} {theirs:?}");
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
        let (ours, theirs) = (trips(Kind::Ours, Kind::Ours), trips(Kind::Theirs, Kind::Theirs));
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
