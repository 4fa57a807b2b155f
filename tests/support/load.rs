//! Clients that read and write through any node while nodes die, and write down what they saw.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::process::{Client, Cluster, Reply, Silence, pause};
use mmapd::linear::{Action, Expect, History, OpId, Outcome, Recorder, Verdict, tally};

/// Few keys, so that clients meet on them.
const KEYS: u64 = 6;

/// What all clients of one run share.
#[derive(Debug, Default)]
pub(crate) struct Load {
    recorder: Recorder,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    ended: AtomicU64,
    /// Go to fresh keys after this many operations, if at all: long runs are judged in pieces.
    fresh_after: Option<u64>,
    /// How long the server may try; one of them by chance. None: as long as it likes.
    timeouts: &'static [&'static str],
    /// Keys written once each, whose write was acknowledged.
    kept: Mutex<BTreeMap<String, String>>,
}

impl Load {
    /// For long runs: goes to fresh keys after so many operations, and gives the server one of
    /// these times for each.
    pub(crate) fn long(fresh_after: u64, timeouts: &'static [&'static str]) -> Self {
        Self { fresh_after: Some(fresh_after), timeouts, ..Self::default() }
    }

    /// Starts `clients` threads that go on until [`Load::stop`]; client `n` begins at node
    /// `n % ports.len()` and goes to the next when one does not answer.
    pub(crate) fn run<'s>(&'s self, scope: &'s Scope<'s, '_>, ports: &[u16], clients: u64) {
        let local = |&port: &u16| SocketAddr::from(([127, 0, 0, 1], port));
        let addrs: Vec<SocketAddr> = ports.iter().map(local).collect();
        for client in 0..clients {
            let addrs = addrs.clone();
            scope.spawn(move || Worker::new(self, client, addrs).run());
        }
    }

    /// The same with `clients` threads for every node, which stay there whatever happens.
    pub(crate) fn run_pinned<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        addrs: &[SocketAddr],
        clients: u64,
    ) {
        let each = addrs.iter().flat_map(|&addr| (0..clients).map(move |_| addr));
        for (client, addr) in (0..).zip(each) {
            scope.spawn(move || Worker::new(self, client, vec![addr]).run());
        }
    }

    /// Lets the clients finish what they are at.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Writes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Operations that ended so far, however.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// What was seen so far.
    pub(crate) fn history(&self) -> History {
        self.recorder.history()
    }

    /// Reads every key through every node, judges the history, and looks for every write that
    /// was acknowledged. Prints one line about the run.
    pub(crate) fn judge(&self, name: &str, cluster: &Cluster) {
        for (client, node) in (1_000..).zip(&cluster.nodes) {
            let mut reader = Worker::new(self, client, vec![node.addr]);
            for (key, _) in self.history().keys() {
                reader.read(&String::from_utf8_lossy(key));
            }
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let listed = node.client().list("kept/").expect("a listing");
            for (key, value) in &*kept {
                assert!(listed.binary_search(key).is_ok(), "node {} lost {key}", node.id);
                let last = key.ends_with('7'); // every tenth is looked at closely
                if last {
                    let reply = node.client().read(key).expect("an answer");
                    assert_eq!(reply.text(), *value, "{key} on node {}", node.id);
                }
            }
        }
        let history = self.history();
        let start = Instant::now();
        let verdict: Verdict = history.check();
        println!(
            "{name}: {} operations {:?}, {} keys kept, judged in {:?}: {} keys undecided, {} violations",
            history.len(),
            tally(&history),
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).len(),
            start.elapsed(),
            verdict.undecided.len(),
            verdict.violations.len()
        );
        verdict.expect_linearizable();
        assert!(self.acknowledged() > 0, "a run without writes proves nothing");
    }
}

#[derive(Debug)]
struct Worker<'l> {
    load: &'l Load,
    id: u64,
    addrs: Vec<SocketAddr>,
    at: usize,
    client: Client,
    chance: u64,
    /// What it last saw under each key, for conditions.
    known: BTreeMap<String, (String, u64)>,
}

impl<'l> Worker<'l> {
    fn new(load: &'l Load, id: u64, addrs: Vec<SocketAddr>) -> Self {
        let at = usize::try_from(id).expect("few") % addrs.len();
        let client = Client::to(addrs[at]).with_timeout(Duration::from_secs(7));
        let chance = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { load, id, addrs, at, client, chance, known: BTreeMap::new() }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % bound
    }

    fn run(mut self) {
        let mut count = 0;
        while !self.load.stop.load(Ordering::Relaxed) {
            count += 1;
            let key = self.any_key();
            let value = format!("{}-{count}", self.id);
            match self.below(10) {
                0 => self.delete(&key),
                1 => self.put(&key, &value, Some(Expect::Absent), "If-None-Match", "*"),
                2 | 3 => match self.known.get(&key).cloned() {
                    Some((seen, revision)) => {
                        let expect = Some(Expect::Value(seen.into_bytes()));
                        self.put(&key, &value, expect, "If-Match", &format!("\"{revision}\""));
                    }
                    None => self.read(&key),
                },
                4 | 5 => self.put(&key, &value, None, "Accept", "*/*"),
                6 => self.keep(&value),
                _ => self.read(&key),
            }
            self.load.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn any_key(&mut self) -> String {
        let key = self.below(KEYS);
        match self.load.fresh_after {
            Some(after) => format!("shared{key}.{}", self.load.ended() / after),
            None => format!("shared{key}"),
        }
    }

    fn path(&mut self, key: &str) -> String {
        let count = u64::try_from(self.load.timeouts.len()).expect("few");
        if count == 0 {
            return format!("/v1/keys/{key}");
        }
        let one = usize::try_from(self.below(count)).expect("few");
        format!("/v1/keys/{key}?timeout={}", self.load.timeouts[one])
    }

    fn read(&mut self, key: &str) {
        let op = self.load.recorder.begin(self.id, key, Action::Get);
        let path = self.path(key);
        let reply = self.client.get(&path);
        if let Some(reply) = self.certain(op, reply) {
            let found = reply.status == 200;
            assert!(found || reply.status == 404, "read of {key}: {}", reply.text());
            let value = found.then(|| reply.body.clone());
            let revision = reply.revision().filter(|_| found);
            if let (Some(value), Some(revision)) = (&value, revision) {
                let text = String::from_utf8_lossy(value).into_owned();
                self.known.insert(key.to_owned(), (text, revision));
            }
            self.load.recorder.end(op, Outcome::Read { value, revision });
        }
    }

    fn put(
        &mut self,
        key: &str,
        value: &str,
        expect: Option<Expect>,
        header: &str,
        condition: &str,
    ) {
        let action = Action::Put { value: value.into(), expect };
        let op = self.load.recorder.begin(self.id, key, action);
        let path = self.path(key);
        let reply = self.client.ask("PUT", &path, &[(header, condition)], value.as_bytes());
        let Some(reply) = self.certain(op, reply) else { return };
        let revision = reply.json()["revision"].as_u64();
        let outcome = match reply.status {
            200 | 201 => Outcome::Done { revision, existed: Some(reply.status == 200) },
            412 => Outcome::Mismatch,
            code => panic!("{code} to a write of {key}: {}", reply.text()),
        };
        if let (Outcome::Done { .. }, Some(revision)) = (&outcome, revision) {
            self.load.acknowledged.fetch_add(1, Ordering::Relaxed);
            self.known.insert(key.to_owned(), (value.to_owned(), revision));
        }
        self.load.recorder.end(op, outcome);
    }

    fn delete(&mut self, key: &str) {
        let op = self.load.recorder.begin(self.id, key, Action::delete());
        let path = self.path(key);
        let reply = self.client.ask("DELETE", &path, &[], b"");
        let Some(reply) = self.certain(op, reply) else { return };
        let json = reply.json();
        assert_eq!(reply.status, 200, "delete of {key}: {}", reply.text());
        let existed = Some(json["deleted"] == 1);
        let revision = json["revision"].as_u64();
        self.load.recorder.end(op, Outcome::Done { revision, existed });
    }

    /// A key of its own that is never written again.
    fn keep(&mut self, value: &str) {
        let key = format!("kept/{value}");
        if let Ok(Reply { status: 200 | 201, .. }) = self.client.put(&key, value) {
            self.load.acknowledged.fetch_add(1, Ordering::Relaxed);
            let mut kept = self.load.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert(key, value.to_owned());
        }
    }

    /// The reply, unless it leaves something open: then that is noted, and the next node's turn.
    fn certain(&mut self, op: OpId, reply: Result<Reply, Silence>) -> Option<Reply> {
        let outcome = match reply {
            Ok(reply) if reply.status < 500 && reply.status != 429 => return Some(reply),
            Ok(reply) if reply.json()["outcome"] == "not_applied" => Outcome::Failed,
            Err(Silence::Refused(_)) => Outcome::Failed,
            Ok(_) | Err(Silence::Lost(_)) => Outcome::Unknown,
        };
        self.load.recorder.end(op, outcome);
        self.at = (self.at + 1) % self.addrs.len();
        self.client = Client::to(self.addrs[self.at]).with_timeout(Duration::from_secs(7));
        pause();
        None
    }
}
