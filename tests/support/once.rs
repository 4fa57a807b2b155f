//! Writes with a name happen once, however often and wherever they are asked for, while
//! leaders are killed in the middle of them.
//!
//! The version of a key counts its writes, so a second application of one would be seen.

use std::collections::BTreeMap;

use super::*;

/// Keys that all clients write to.
const COUNTERS: u64 = 4;
const CLIENTS: u64 = 6;

/// One client: what it asked for, and how it went.
#[derive(Default)]
struct Tally {
    /// Names given, for each counter.
    named: BTreeMap<u64, u64>,
    /// Requests beyond the first of a name.
    again: u64,
    /// Answers that were the first one again.
    replays: u64,
    wrong: Vec<String>,
}

struct Writer<'a> {
    id: u64,
    addrs: &'a [SocketAddr],
    clients: Vec<Client>,
    /// Give each request a name of its own: what a client without names would do.
    forgetful: bool,
    asked: u64,
    tally: Tally,
}

/// A definite answer: the revision of the write, and whether it was told before.
type Answer = (u64, bool);

impl<'a> Writer<'a> {
    fn new(id: u64, addrs: &'a [SocketAddr], forgetful: bool) -> Self {
        let clients = addrs.iter().map(|addr| Client::to(*addr)).collect();
        Self { id, addrs, clients, forgetful, asked: 0, tally: Tally::default() }
    }

    fn ask(&mut self, at: usize, counter: u64, name: &str) -> Option<Answer> {
        self.asked += 1;
        let name = if self.forgetful { format!("{name}-{}", self.asked) } else { name.into() };
        let path = format!("/v1/keys/counter-{counter}");
        let headers = [("Idempotency-Key", name.as_str())];
        let reply = self.clients[at].ask("PUT", &path, &headers, b"+1").ok()?;
        match reply.status {
            200 | 201 => {
                let replayed = reply.header("idempotency-replayed") == Some("true");
                Some((reply.json()["revision"].as_u64().expect("a revision"), replayed))
            }
            // What happened is not known, or nothing did.
            429 | 503 | 504 => None,
            status => {
                self.tally.wrong.push(format!("{name}: {status} {}", reply.text()));
                None
            }
        }
    }

    /// One write, asked for until somebody says that it happened.
    fn write(&mut self, serial: u64) {
        let counter = (self.id + serial) % COUNTERS;
        let name = format!("{}-{serial}", self.id);
        *self.tally.named.entry(counter).or_default() += 1;
        let nodes = self.addrs.len();
        let start = usize::try_from(self.id + serial).expect("small");
        let mut tries = 0;
        // Sometimes it is under way on another node at the same time.
        let twin = serial.is_multiple_of(7).then(|| {
            let at = (start + 1) % nodes;
            let path = format!("/v1/keys/counter-{counter}");
            let headers = [("Idempotency-Key", name.as_str())];
            (at, self.clients[at].send("PUT", &path, &headers, b"+1").is_ok())
        });
        let (first, _) = wait("a write with a name is answered", || {
            let at = (start + tries) % nodes;
            if twin.is_some_and(|(busy, _)| busy == at) {
                tries += 1;
                return None;
            }
            tries += 1;
            self.ask(at, counter, &name)
        });
        if let Some((at, true)) = twin {
            self.tally.again += 1;
            if let Ok(reply) = self.clients[at].receive() {
                let text = reply.text();
                let is_same = matches!(reply.status, 200 | 201)
                    && (self.forgetful || reply.json()["revision"].as_u64() == Some(first));
                if !is_same && !matches!(reply.status, 429 | 503 | 504) {
                    self.tally.wrong.push(format!("{name}: {text} beside {first}"));
                }
            }
        }
        self.tally.again += u64::try_from(tries).expect("few") - 1;
        if serial.is_multiple_of(5) {
            self.tally.again += 1;
            let late = self.ask((start + 2) % nodes, counter, &name);
            match late {
                Some((revision, true)) if revision == first => self.tally.replays += 1,
                Some(other) if !self.forgetful => {
                    self.tally.wrong.push(format!("{name}: {other:?} after {first}"));
                }
                Some(_) | None => {}
            }
        }
    }
}

/// Clients write `each` times, while leaders are killed; returns what they did, the sum of
/// the versions of all counters, and how many leaders were killed.
fn storm(cluster: &mut Cluster, each: u64, forgetful: bool) -> (Vec<Tally>, u64, u64) {
    let addrs: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.addr).collect();
    let done = AtomicU64::new(0);
    let mut kills = 0;
    let tallies = thread::scope(|scope| {
        let (done, addrs) = (&done, &addrs);
        let writers: Vec<_> = (0..CLIENTS)
            .map(|id| {
                scope.spawn(move || {
                    let mut writer = Writer::new(id, addrs, forgetful);
                    for serial in 0..each {
                        writer.write(serial);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    writer.tally
                })
            })
            .collect();
        let all = each * CLIENTS;
        loop {
            let goal = (done.load(Ordering::Relaxed) + 150).min(all);
            wait("writes before the kill", || (done.load(Ordering::Relaxed) >= goal).then_some(()));
            if goal == all {
                break;
            }
            let (leader, _) = cluster.leader_after(0);
            cluster.nodes[leader].kill();
            kills += 1;
            insist(&without(cluster, leader), "after-kill");
            cluster.nodes[leader].start();
            caught_up(cluster, leader);
        }
        writers.into_iter().map(|writer| writer.join().expect("a client ends")).collect::<Vec<_>>()
    });
    cluster.settle();
    let mut client = cluster.nodes[0].client();
    let mut versions = 0;
    for counter in 0..COUNTERS {
        let path = format!("/v1/keys/counter-{counter}");
        let reply = client.ask("GET", &path, &[("Accept", "application/json")], b"");
        let version = reply.expect("an answer").json()["version"].as_u64().expect("a version");
        let named: u64 = tallies.iter().filter_map(|tally| tally.named.get(&counter)).sum();
        assert!(forgetful || version == named, "{counter}: {version} writes of {named} names");
        versions += version;
    }
    (tallies, versions, kills)
}

#[test]
fn writes_with_a_name_happen_once_though_leaders_are_killed() {
    let _turn = turn();
    let each = (env_or("TORTURE_OPS", 6_000) / 10 / CLIENTS).max(60);
    let mut cluster = Cluster::start(3, SMALL_FILES);
    let (tallies, versions, kills) = storm(&mut cluster, each, false);
    let wrong: Vec<&String> = tallies.iter().flat_map(|tally| &tally.wrong).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(versions, each * CLIENTS);
    let again: u64 = tallies.iter().map(|tally| tally.again).sum();
    let replays: u64 = tallies.iter().map(|tally| tally.replays).sum();
    assert!(kills > 0 && again > versions / 10 && replays > 0, "{kills} {again} {replays}");
    println!(
        "once: {versions} writes with a name, asked for {again} times more, {replays} answers \
         again, {kills} leaders killed, 0 violations"
    );
}

/// The control: without names the same clients write more often than they mean to.
#[test]
fn writes_without_a_name_happen_twice() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, SMALL_FILES);
    let (_, versions, _) = storm(&mut cluster, 40, true);
    assert!(versions > 40 * CLIENTS, "{versions} versions");
}
