//! Real processes, a real network and real faults, for as long as asked, and judged.
//!
//! Clients on every node write and read while nodes are killed, stopped and cut off; what they
//! saw must be linearizable. `TORTURE_OPS` says how many operations. Cuts need root, for network
//! namespaces (`support/net.rs`); without it the rest runs, and says so. Times are printed
//! (`--nocapture`), and nothing depends on them.

mod support {
    pub(crate) mod load;
    pub(crate) mod net;
    pub(crate) mod process;
}

#[path = "support/once.rs"]
mod once;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mmapd::linear::{Action, History, Operation, Outcome};
use rustix::process::Signal;
use support::load::Load;
use support::net::Net;
use support::process::{Client, Cluster, Node, wait};

/// Files so small that segments are rolled and checkpoints made all the time, and whoever was
/// away for long needs a snapshot.
const SMALL_FILES: &str = r#"
[limits]
value = "64KiB"
[storage]
segment = "256KiB"
checkpoint_log = "512KiB"
checkpoint_interval = "500ms"
log_retain = "256KiB"
"#;

/// Operations between the end of one fault and the next.
const OPS_BETWEEN: u64 = 500;
/// Longest fault that does not wait for a new leader.
const HOLD_MAX: u64 = 2_500;

/// Tests take turns: each has all processors.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn env_or(name: &str, default: u64) -> u64 {
    let number = |text: String| text.parse().unwrap_or_else(|_| panic!("{name} is a number"));
    std::env::var(name).map_or(default, number)
}

/// Ends a load also when the test fails, so that its scope can.
struct StopOnDrop<'l>(&'l Load);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What can happen to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// `kill -9`.
    Kill(Whom),
    /// SIGSTOP, and SIGCONT later.
    Pause(Whom),
    /// One node hears nobody and is heard by nobody.
    CutOff(Whom),
    /// The others do not hear the leader, which hears them.
    LeaderMute,
    /// The leader hears nobody, and all hear it.
    LeaderDeaf,
    /// Two sides that do not hear each other, and one node that hears both.
    Bridge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whom {
    One,
    Leader,
    Majority,
    All,
}

/// Faults that need no network of our own come first.
const FAULTS: [Fault; 12] = [
    Fault::Kill(Whom::One),
    Fault::Kill(Whom::Leader),
    Fault::Kill(Whom::Majority),
    Fault::Kill(Whom::All),
    Fault::Pause(Whom::One),
    Fault::Pause(Whom::Leader),
    Fault::Pause(Whom::All),
    Fault::CutOff(Whom::One),
    Fault::CutOff(Whom::Leader),
    Fault::LeaderMute,
    Fault::LeaderDeaf,
    Fault::Bridge,
];
const LOCAL_FAULTS: usize = 7;

/// Does harm to a cluster, and repairs it.
struct Nemesis<'a> {
    cluster: Cluster,
    net: Option<Net>,
    load: &'a Load,
    chance: u64,
    done: BTreeMap<Fault, u64>,
}

impl Nemesis<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % bound
    }

    /// Fault after fault until `ops` operations were done, each kind at least once.
    fn rage(&mut self, ops: u64) {
        let kinds = if self.net.is_some() { FAULTS.len() } else { LOCAL_FAULTS };
        while self.load.ended() < ops || self.done.len() < kinds {
            let mut round = FAULTS[..kinds].to_vec();
            while !round.is_empty() && (self.load.ended() < ops || self.done.len() < kinds) {
                let next = self.below(round.len() as u64);
                let fault = round.swap_remove(usize::try_from(next).expect("few"));
                self.fault(fault);
                self.recovered(fault);
                *self.done.entry(fault).or_default() += 1;
            }
        }
    }

    fn fault(&mut self, fault: Fault) {
        let (leader, term) = self.cluster.leader_after(0);
        match fault {
            Fault::Kill(whom) => {
                for at in self.choose(whom, leader) {
                    self.cluster.nodes[at].kill();
                }
                self.hold(whom, leader, term);
                self.cluster.start_all();
            }
            Fault::Pause(whom) => {
                let chosen = self.choose(whom, leader);
                self.signal(&chosen, Signal::STOP);
                self.hold(whom, leader, term);
                self.signal(&chosen, Signal::CONT);
            }
            Fault::CutOff(whom) => {
                for at in self.choose(whom, leader) {
                    self.cut(|from, to| from == at || to == at);
                }
                self.hold(whom, leader, term);
            }
            Fault::LeaderMute => {
                self.cut(|from, _| from == leader);
                self.hold(Whom::Leader, leader, term);
            }
            Fault::LeaderDeaf => {
                self.cut(|_, to| to == leader);
                self.hold(Whom::Leader, leader, term);
            }
            Fault::Bridge => {
                let size = self.cluster.nodes.len();
                let middle = self.choose(Whom::One, leader)[0];
                // Positions without the one in the middle, halved.
                let side = |at: usize| (at + size - middle - 1) % size < (size - 1) / 2;
                self.cut(|from, to| from != middle && to != middle && side(from) != side(to));
                self.hold(Whom::One, leader, term);
            }
        }
        if let Some(net) = &mut self.net {
            net.heal();
        }
    }

    fn choose(&mut self, whom: Whom, leader: usize) -> Vec<usize> {
        let size = self.cluster.nodes.len();
        let first = usize::try_from(self.below(size as u64)).expect("few");
        let from =
            |first: usize, count: usize| (first..first + count).map(|at| at % size).collect();
        match whom {
            Whom::One => from(first, 1),
            Whom::Leader => from(leader, 1),
            Whom::Majority => from(first, size / 2 + 1),
            Whom::All => from(first, size),
        }
    }

    fn signal(&self, nodes: &[usize], signal: Signal) {
        for &at in nodes {
            self.cluster.nodes[at].signal(signal);
        }
    }

    fn cut(&mut self, lost: impl Fn(usize, usize) -> bool) {
        let size = self.cluster.nodes.len();
        let net = self.net.as_mut().expect("cuts are chosen only where there is a net");
        for (from, to) in (0..size).flat_map(|from| (0..size).map(move |to| (from, to))) {
            if from != to && lost(from, to) {
                net.cut(from, to);
            }
        }
    }

    /// Leaves things as they are for a while. Without its leader a cluster has to choose another,
    /// which also proves that the fault is one.
    fn hold(&mut self, whom: Whom, leader: usize, term: u64) {
        if whom == Whom::Leader {
            let others: Vec<&Node> = (0..)
                .zip(&self.cluster.nodes)
                .filter(|&(at, _)| at != leader)
                .map(|(_, n)| n)
                .collect();
            wait("another node leads", || {
                let leads = |status: serde_json::Value| {
                    status["role"] == "leader" && status["term"].as_u64() > Some(term)
                };
                others.iter().any(|node| node.status().is_some_and(leads)).then_some(())
            });
        }
        let (start, ended) = (Instant::now(), self.load.ended());
        let (span, ops) = (Duration::from_millis(self.below(HOLD_MAX)), self.below(OPS_BETWEEN));
        wait("a while", || {
            (start.elapsed() > span || self.load.ended() > ended + ops).then_some(())
        });
    }

    /// All nodes serve, writes are acknowledged, and the clients get on.
    fn recovered(&mut self, after: Fault) {
        for node in &mut self.cluster.nodes {
            node.wait_ready();
        }
        self.cluster.leader_after(0);
        let (ended, acknowledged) = (self.load.ended(), self.load.acknowledged());
        wait(&format!("writes are acknowledged after {after:?}"), || {
            let (more, done) = (self.load.acknowledged() - acknowledged, self.load.ended() - ended);
            (more > 0 && done > OPS_BETWEEN).then_some(())
        });
    }

    fn count(&self, kind: impl Fn(&Fault) -> bool) -> u64 {
        self.done.iter().filter(|(fault, _)| kind(fault)).map(|(_, count)| count).sum()
    }
}

#[test]
fn what_clients_see_is_linearizable_whatever_happens() {
    let _turn = turn();
    let ops = env_or("TORTURE_OPS", 20_000);
    let seed = env_or("TORTURE_SEED", 1);
    let size = u8::try_from(env_or("TORTURE_NODES", 3)).expect("few nodes");
    let net = Net::new(size).inspect_err(|why| println!("torture: no partitions: {why}")).ok();
    let cluster = match &net {
        Some(net) => {
            net.enter();
            let place = |(space, addr)| (Some(space), addr);
            let mut cluster =
                Cluster::at(net.places().into_iter().map(place).collect(), SMALL_FILES);
            cluster.start_all();
            cluster
        }
        None => Cluster::start(u64::from(size), SMALL_FILES),
    };
    let addrs: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.addr).collect();
    let load = Load::long(2_000, &["200ms", "1s", "1s", "5s"]);
    let chance = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut nemesis = Nemesis { cluster, net, load: &load, chance, done: BTreeMap::new() };
    let start = Instant::now();
    thread::scope(|scope| {
        load.run_pinned(scope, &addrs, 2);
        let _stop = StopOnDrop(&load);
        nemesis.rage(ops);
    });
    nemesis.cluster.settle();
    println!(
        "torture: {} operations on {size} nodes in {:?}: {} kills, {} pauses, {} partitions, seed {seed}",
        load.ended(),
        start.elapsed(),
        nemesis.count(|fault| matches!(fault, Fault::Kill(_))),
        nemesis.count(|fault| matches!(fault, Fault::Pause(_))),
        nemesis.count(|fault| !matches!(fault, Fault::Kill(_) | Fault::Pause(_))),
    );
    for node in &nemesis.cluster.nodes {
        let reply = node.client().put("after", format!("by {}", node.id)).expect("an answer");
        assert!(matches!(reply.status, 200 | 201), "{}: {}", reply.status, reply.text());
    }
    load.judge("torture", &nemesis.cluster);
}

/// An operation as it was, on a clock with room between two readings.
fn stretched(op: &Operation) -> Operation {
    let called = op.called * 4;
    Operation { called, returned: op.returned.saturating_mul(4), ..op.clone() }
}

/// A history with what `extra` makes of the operations on one key, chosen by whether it can.
fn planted(
    history: &History,
    not: &[u8],
    extra: impl Fn(&[Operation]) -> Option<(u64, Action, Outcome)>,
) -> (Vec<u8>, (u64, Action, Outcome)) {
    let mut keys = history.keys().filter(|(key, _)| *key != not);
    let found = keys.find_map(|(key, ops)| {
        let ops: Vec<Operation> = ops.iter().map(stretched).collect();
        Some((key.to_vec(), extra(&ops)?))
    });
    found.expect("long enough for one key to do")
}

fn written(op: &Operation) -> Option<&Vec<u8>> {
    match (&op.action, &op.outcome) {
        (Action::Put { value, .. }, Outcome::Done { .. }) => Some(value),
        _ => None,
    }
}

/// A read of what was overwritten before it began.
fn stale_read(ops: &[Operation]) -> Option<(u64, Action, Outcome)> {
    let old = ops.iter().filter(|op| written(op).is_some()).nth(5)?;
    let new = ops.iter().find(|op| written(op).is_some() && op.called > old.returned)?;
    Some((new.returned, Action::Get, Outcome::read(written(old).map(Vec::as_slice))))
}

/// A write that was acknowledged, before which and after which the same value was there.
fn lost_write(ops: &[Operation]) -> Option<(u64, Action, Outcome)> {
    let writes = ops.iter().filter_map(|op| Some((written(op)?, op.returned)));
    let mut seen = writes.filter(|(value, returned)| {
        ops.iter().any(|op| {
            let same = matches!(&op.outcome, Outcome::Read { value: Some(v), .. } if v == *value);
            same && op.called > *returned
        })
    });
    seen.next().map(|(_, returned)| (returned, Action::put("lost"), Outcome::done()))
}

#[test]
fn one_stale_read_and_one_lost_write_among_thousands_are_found() {
    let _turn = turn();
    let cluster = Cluster::start(3, "");
    let addrs: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.addr).collect();
    let load = Load::default();
    thread::scope(|scope| {
        load.run_pinned(scope, &addrs, 2);
        let _stop = StopOnDrop(&load);
        wait("some operations", || (load.ended() > 2_000).then_some(()));
    });
    load.judge("before anything is planted", &cluster);
    let seen = load.history();
    let (stale, read) = planted(&seen, b"", stale_read);
    let (lost, write) = planted(&seen, &stale, lost_write);
    let mut history = History::default();
    for (key, ops) in seen.keys() {
        for op in ops.iter().map(stretched) {
            history.push((op.called, op.returned), key, op.action, op.outcome);
        }
    }
    history.check().expect_linearizable();
    for (key, (after, action, outcome)) in [(&stale, read), (&lost, write)] {
        history.push((after + 1, after + 2), key, action, outcome);
    }
    let verdict = history.check();
    let mut found: Vec<_> = verdict.violations.iter().map(|v| v.key.clone()).collect();
    let mut want = vec![stale, lost];
    found.sort();
    want.sort();
    assert_eq!(found, want, "{verdict}");
}

/// Asks the nodes in turn until one acknowledges the write.
fn insist(nodes: &[&Node], key: &str) {
    let mut clients: Vec<Client> = nodes.iter().map(|node| node.client()).collect();
    let mut turn = 0;
    wait("a write is acknowledged", || {
        turn += 1;
        let at = turn % clients.len();
        let reply = clients[at].put(key, key).ok()?;
        matches!(reply.status, 200 | 201).then_some(())
    });
}

fn without(cluster: &Cluster, not: usize) -> Vec<&Node> {
    (0..).zip(&cluster.nodes).filter(|&(at, _)| at != not).map(|(_, node)| node).collect()
}

/// Waits until a node that was away is about as far as the others.
fn caught_up(cluster: &Cluster, at: usize) {
    wait("it has caught up", || {
        let applied = |node: &Node| node.number("applied_index");
        let most = cluster.nodes.iter().filter_map(applied).max()?;
        (applied(&cluster.nodes[at])? + 200 > most).then_some(())
    });
}

#[test]
fn twenty_killed_leaders_cost_time_and_no_write() {
    const KILLS: usize = 20;
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let addrs: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.addr).collect();
    let load = Load::long(2_000, &[]);
    let mut times = Vec::new();
    thread::scope(|scope| {
        load.run_pinned(scope, &addrs, 1);
        let _stop = StopOnDrop(&load);
        for kill in 0..KILLS {
            let (leader, _) = cluster.leader_after(0);
            let goal = load.acknowledged() + 50;
            wait("writes before the kill", || (load.acknowledged() > goal).then_some(()));
            let start = Instant::now();
            cluster.nodes[leader].kill();
            insist(&without(&cluster, leader), &format!("after-kill-{kill}"));
            times.push(start.elapsed());
            cluster.nodes[leader].start();
            caught_up(&cluster, leader);
        }
    });
    cluster.settle();
    for node in &cluster.nodes {
        for kill in 0..KILLS {
            let key = format!("after-kill-{kill}");
            assert_eq!(node.client().read(&key).expect("an answer").text(), key);
        }
    }
    load.judge("failover", &cluster);
    println!("failover, from the kill to a write on another node: {times:?}");
    times.sort();
    println!("failover: median {:?}, max {:?}", times[KILLS / 2], times[KILLS - 1]);
}

/// Writes and reads through one node, and what went wrong.
#[derive(Debug, Default)]
struct Patient {
    stop: AtomicBool,
    answered: AtomicU64,
    /// Operations now under way that nobody may fail.
    failed: Mutex<Vec<String>>,
}

impl Patient {
    fn run(&self, addr: SocketAddr, name: &str) {
        let mut client = Client::to(addr).with_timeout(Duration::from_secs(20));
        let mut count = 0;
        while !self.stop.load(Ordering::Relaxed) {
            count += 1;
            let (key, value) = (format!("{name}-{}", count % 10), count.to_string());
            let start = Instant::now();
            let put = client.put(&key, &value);
            let took = start.elapsed();
            let fine = matches!(&put, Ok(reply) if matches!(reply.status, 200 | 201));
            let get = client.read(&key);
            let same = matches!(&get, Ok(reply) if reply.status == 200 && reply.text() == value);
            for (fine, what) in [(fine, put), (same, get)] {
                if !fine {
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    let what = what.map(|reply| (reply.status, reply.text()));
                    failed.push(format!("{key} through {addr} after {took:?}: {what:?}"));
                }
            }
            self.answered.fetch_add(2, Ordering::Relaxed);
        }
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn answers(&self, count: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + count;
        wait("answers", || (self.answered.load(Ordering::Relaxed) >= goal).then_some(()));
    }
}

struct Relieve<'p>(&'p Patient);

impl Drop for Relieve<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[test]
fn a_rolling_restart_fails_no_request_of_the_others() {
    const ROUNDS: usize = 15;
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let mut failed = Vec::new();
    let (mut answered, mut leaders) = (0, 0);
    for round in 0..ROUNDS {
        // The leader as often as not, and every node in its turn.
        let (leader, _) = cluster.leader_after(0);
        let leaves = if round % 3 == 2 { round / 3 % 3 } else { leader };
        leaders += u64::from(leaves == leader);
        let patient = Patient::default();
        let others: Vec<SocketAddr> = without(&cluster, leaves).iter().map(|n| n.addr).collect();
        thread::scope(|scope| {
            for (name, &addr) in (0..).zip(others.iter().cycle().take(6)) {
                let (name, patient) = (format!("r{round}c{name}"), &patient);
                scope.spawn(move || patient.run(addr, &name));
            }
            let _stop = Relieve(&patient);
            patient.answers(200);
            let start = Instant::now();
            cluster.nodes[leaves].signal(Signal::TERM);
            assert_eq!(cluster.nodes[leaves].exit_code(), Some(0), "SIGTERM ends well");
            println!("rolling: node {} gone after {:?}", leaves + 1, start.elapsed());
            patient.answers(100);
            cluster.nodes[leaves].start();
            cluster.leader_after(0);
            patient.answers(100);
        });
        answered += patient.answered.load(Ordering::Relaxed);
        let these = patient.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.extend(these.into_iter().map(|what| format!("round {round}: {what}")));
    }
    println!(
        "rolling: {ROUNDS} restarts, {leaders} of a leader, {answered} requests, {} failed",
        failed.len()
    );
    assert!(failed.is_empty(), "{} of {answered} failed:\n{}", failed.len(), failed.join("\n"));
}
