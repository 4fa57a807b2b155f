//! Watches: every change of the keys that are watched, in order and exactly once, whatever
//! happens to the nodes in between.
//!
//! `WATCH_STREAMS` and `WATCH_CHANGES` say how large the torture is.

mod support {
    pub(crate) mod http;
    pub(crate) mod process;
    pub(crate) mod sse;
}

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mmapd::config::Config;
use mmapd::machine::{Command, Content, Life, Op, Span, Txn};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use support::http::Server;
use support::process::{Client, Cluster, Node, Reply, pause, wait};
use support::sse::{Message, open, watch};

/// The revision of a write that has to succeed.
fn put(client: &mut Client, key: &str, value: impl AsRef<[u8]>) -> u64 {
    let reply = client.put(key, value).expect("an answer");
    acknowledged(&reply).unwrap_or_else(|| panic!("{}: {}", reply.status, reply.text()))
}

fn acknowledged(reply: &Reply) -> Option<u64> {
    matches!(reply.status, 200 | 201).then(|| reply.json()["revision"].as_u64()).flatten()
}

/// A number of `/metrics`.
fn metric(addr: SocketAddr, name: &str) -> Option<f64> {
    let text = Client::to(addr).get("/metrics").ok()?.text();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The replica is so far that what was said to be acknowledged is in it.
fn revisions(message: &Message) -> Vec<u64> {
    message.changes().iter().map(|change| change.0).collect()
}

#[test]
fn it_begins_with_what_is_acknowledged_from_now_on() {
    let cluster = Cluster::start(1, "");
    let addr = cluster.nodes[0].addr;
    let mut client = cluster.nodes[0].client();
    let before = put(&mut client, "a/1", "before");
    let mut all = watch(addr, "", None);
    let mut some = watch(addr, "prefix=a/&key=b&key=c&prefix=a", None);
    let mut past = watch(addr, &format!("from_revision={before}"), None);
    let mut future = watch(addr, &format!("from_revision={}", before + 3), None);
    for (stream, at) in [(&mut all, before), (&mut some, before), (&mut past, before - 1)] {
        let first = stream.message();
        assert_eq!((first.event.as_str(), first.id), ("progress", Some(at)));
        assert_eq!(first.data, serde_json::json!({ "revision": at }));
    }
    let two = put(&mut client, "a/2", "x");
    let other = put(&mut client, "other", "x");
    let three = put(&mut client, "b", "x");
    assert_eq!(client.delete("b").expect("an answer").status, 200);
    assert_eq!(revisions(&past.change()), [before]);
    for stream in [&mut all, &mut past] {
        let seen: Vec<_> = (0..4).flat_map(|_| revisions(&stream.change())).collect();
        assert_eq!(seen, [two, other, three, three + 1]);
    }
    assert_eq!(some.change().changes(), [(two, "put", "a/2")]);
    assert_eq!(some.change().changes(), [(three, "put", "b")]);
    assert_eq!(some.change().changes(), [(three + 1, "delete", "b")]);
    assert_eq!(revisions(&future.change()), [three]);
}

#[test]
fn all_of_one_transaction_is_in_one_message() {
    let server = Server::start(Config::default());
    let mut all = watch(server.address, "", None);
    let mut some = watch(server.address, "prefix=a&prev=true", None);
    let content = |value: &'static str| Content {
        value: Bytes::from_static(value.as_bytes()),
        content_type: String::new(),
        life: Life::Endless,
    };
    let put = |key: &'static str, value| Op::Put {
        key: Bytes::from_static(key.as_bytes()),
        content: content(value),
        prev: false,
    };
    let txn = |then| Command::Txn(Txn { then, ..Txn::default() });
    server.propose(txn(vec![put("a1", "x"), put("b1", "x"), put("a2", "x"), put("a1", "y")]));
    server.propose(txn(vec![
        Op::Delete { span: Span::prefix(b""), prev: false },
        put("c", "\u{e4}"),
    ]));
    let keys = |message: &Message| -> Vec<String> {
        let changes = message.changes();
        changes.iter().map(|(_, kind, key)| format!("{kind} {key}")).collect()
    };
    assert_eq!(keys(&all.change()), ["put a1", "put b1", "put a2", "put a1"]);
    assert_eq!(keys(&all.change()), ["delete a1", "delete a2", "delete b1", "put c"]);
    let (first, second) = (some.change(), some.change());
    assert_eq!(keys(&first), ["put a1", "put a2", "put a1"]);
    assert_eq!(keys(&second), ["delete a1", "delete a2"]);
    let events = &first.data["events"];
    assert_eq!((&events[0]["value"], &events[0]["prev"]), (&"x".into(), &serde_json::Value::Null));
    assert_eq!((&events[2]["value"], &events[2]["prev"]["value"]), (&"y".into(), &"x".into()));
    assert_eq!(second.data["events"][0]["prev"]["value"], "y");
    assert_eq!(second.data["events"][0]["reason"], "request");
}

#[test]
fn what_ends_with_a_lease_says_so() {
    let server = Server::start(Config::default());
    let mut all = watch(server.address, "", None);
    let content = |life| Content { value: Bytes::new(), content_type: String::new(), life };
    let put = |key: &'static str, life| Op::Put {
        key: Bytes::from_static(key.as_bytes()),
        content: content(life),
        prev: false,
    };
    let then = vec![
        Op::Grant { ttl_ms: 300 },
        put("a", Life::NewLease),
        put("b", Life::NewLease),
        put("c", Life::Ttl(200)),
    ];
    server.propose(Command::Txn(Txn { then, ..Txn::default() }));
    assert_eq!(all.change().changes().len(), 3);
    let mut reasons = BTreeMap::new();
    while reasons.len() < 3 {
        let message = all.change();
        for event in message.data["events"].as_array().expect("a list") {
            assert_eq!(event["type"], "delete");
            let text = |name: &str| event[name].as_str().expect("text").to_owned();
            assert_eq!(reasons.insert(text("key"), text("reason")), None, "once");
        }
    }
    let reasons: Vec<_> = reasons.values().map(String::as_str).collect();
    assert_eq!(reasons, ["lease", "lease", "ttl"]);
}

#[test]
fn silence_is_progress() {
    let cluster = Cluster::start(1, "[watch]\nprogress = \"20ms\"\n");
    let mut client = cluster.nodes[0].client();
    let mut stream = watch(cluster.nodes[0].addr, "key=never", None);
    for _ in 0..3 {
        let revision = put(&mut client, "other", "x");
        let mut before = 0;
        loop {
            let message = stream.message();
            assert_eq!(message.event, "progress");
            let id = message.id.expect("a revision");
            assert!(before <= id && id <= revision, "{before} {id} {revision}");
            before = id;
            if id == revision {
                break;
            }
        }
    }
}

#[test]
fn a_node_that_stops_says_so_and_another_one_goes_on() {
    let mut cluster = Cluster::start(3, "");
    let (leader, _) = cluster.leader_after(0);
    let addrs: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.addr).collect();
    let mut client = Client::to(addrs[(leader + 1) % 3]);
    for leaves in [leader, (leader + 1) % 3] {
        let stays = (leaves + 1) % 3;
        let mut stream = watch(addrs[leaves], "prefix=a", None);
        let first = put(&mut client, "a", "1");
        assert_eq!(revisions(&stream.change()), [first]);
        cluster.nodes[leaves].signal(Signal::TERM);
        let end = stream.news();
        assert_eq!((end.event.as_str(), end.id), ("draining", Some(first)));
        assert_eq!(stream.next().expect("a clean end"), None);
        assert_eq!(cluster.nodes[leaves].exit_code(), Some(0));
        client = Client::to(addrs[stays]);
        let second = wait("a write while it is away", || {
            client.put("a", "2").ok().as_ref().and_then(acknowledged)
        });
        let mut stream = watch(addrs[stays], "prefix=a", stream.last);
        let mut seen = Vec::new();
        while seen.last() != Some(&second) {
            seen.extend(revisions(&stream.change()));
        }
        assert!(seen.is_sorted() && seen[0] > first, "{first} {seen:?}");
        cluster.nodes[leaves].start();
        cluster.leader_after(0);
        client = Client::to(addrs[stays]);
    }
}

#[test]
fn there_is_a_limit() {
    let cluster = Cluster::start(1, "[limits]\nwatches = 2\n[watch]\nprogress = \"20ms\"\n");
    let addr = cluster.nodes[0].addr;
    let (one, mut two) = (watch(addr, "", None), watch(addr, "", None));
    let refused = open(addr, "", None).expect("an answer").expect_err("there are two");
    assert_eq!((refused.status, refused.problem["code"].as_str()), (429, Some("overloaded")));
    assert_eq!(metric(addr, "mmapd_watch_streams"), Some(2.0));
    drop(one);
    wait("its place is free", || (metric(addr, "mmapd_watch_streams") == Some(1.0)).then_some(()));
    drop(watch(addr, "", None));
    let revision = put(&mut cluster.nodes[0].client(), "a", "x");
    assert_eq!(revisions(&two.change()), [revision]);
    assert!(metric(addr, "mmapd_watch_events_total") >= Some(1.0));
}

const SHORT_HISTORY: &str = "[storage]\nhistory = 20\n[limits]\nvalue = \"1MiB\"\n";

/// When changes after this one are refused, nothing more will be trimmed: 20 events are left, or
/// one more, which is not worth an entry.
fn last_trimmed(written: &[u64]) -> u64 {
    written[written.len() - 23]
}

#[test]
fn what_was_trimmed_is_gone_and_the_rest_is_whole() {
    let cluster = Cluster::start(1, SHORT_HISTORY);
    let addr = cluster.nodes[0].addr;
    let mut client = cluster.nodes[0].client();
    let all: Vec<u64> = (0..200).map(|n| put(&mut client, &format!("k{}", n % 7), "x")).collect();
    let oldest = wait("the history is trimmed", || {
        let refused = open(addr, "", Some(last_trimmed(&all))).expect("an answer").err()?;
        assert_eq!((refused.status, refused.problem["code"].as_str()), (410, Some("compacted")));
        refused.problem["oldest_revision"].as_u64()
    });
    let refused = open(addr, &format!("from_revision={oldest}"), None).expect("an answer");
    assert_eq!(refused.expect_err("the revision itself is gone").status, 410);
    let mut stream = watch(addr, "", Some(oldest));
    let rest: Vec<u64> = all.into_iter().filter(|revision| *revision > oldest).collect();
    assert!(!rest.is_empty());
    let seen: Vec<u64> = rest.iter().flat_map(|_| revisions(&stream.change())).collect();
    assert_eq!(seen, rest);
}

/// More than the buffers of the kernel on both sides take.
fn flood(client: &mut Client) -> Vec<u64> {
    let value = vec![b'x'; 1 << 20];
    (0..80).map(|n| put(client, &format!("big/{}", n % 3), &value)).collect()
}

#[test]
fn who_is_too_slow_is_told_where_it_can_begin_again() {
    let cluster = Cluster::start(1, SHORT_HISTORY);
    let addr = cluster.nodes[0].addr;
    let mut client = cluster.nodes[0].client();
    let mut slow = watch(addr, "", None);
    let mut fast = watch(addr, "key=big/0&keys_only=true", None);
    let written = flood(&mut client);
    // Asked for elsewhere: a watch that begins just before the history is trimmed lags too.
    wait("the history is trimmed", || {
        let past = client.get("/v1/history/big/0?limit=1").expect("an answer").json();
        (past["oldest_revision"].as_u64()? > last_trimmed(&written)).then_some(())
    });
    let mut seen = Vec::new();
    let end = loop {
        let message = slow.news();
        if message.event != "change" {
            break message;
        }
        seen.extend(revisions(&message));
    };
    assert_eq!((end.event.as_str(), end.id), ("lagged", None));
    assert_eq!(slow.next().expect("a clean end"), None);
    assert_eq!(seen, written[..seen.len()], "without a gap up to there");
    let oldest = end.data["oldest_revision"].as_u64().expect("a revision");
    assert!(oldest > seen.last().copied().unwrap_or_default());
    assert_eq!(metric(addr, "mmapd_watch_lagged_total"), Some(1.0));
    let mut again = watch(addr, "", Some(oldest));
    assert!(revisions(&again.change())[0] > oldest);
    // Others were not held up by it.
    let wanted: Vec<u64> = written.iter().step_by(3).copied().collect();
    let seen: Vec<u64> = wanted.iter().flat_map(|_| revisions(&fast.change())).collect();
    assert_eq!(seen, wanted);
}

#[test]
fn who_takes_nothing_is_cut_off() {
    let cluster = Cluster::start(1, "[watch]\npatience = \"100ms\"\nprogress = \"20ms\"\n");
    let addr = cluster.nodes[0].addr;
    let mut stream = watch(addr, "", None);
    flood(&mut cluster.nodes[0].client());
    wait("it is cut off", || (metric(addr, "mmapd_watch_streams") == Some(0.0)).then_some(()));
    assert_eq!(metric(addr, "mmapd_watch_lagged_total"), Some(1.0));
    while let Ok(Some(message)) = stream.next() {
        assert_ne!(message.event, "lagged");
    }
}

/// A follower sleeps until the others no longer have the log that it needs.
#[test]
fn a_state_that_arrives_whole_leaves_no_gap() {
    let small = "[storage]\nsegment = \"256KiB\"\ncheckpoint_log = \"256KiB\"\n\
        checkpoint_interval = \"200ms\"\nlog_retain = \"256KiB\"\n";
    let cluster = Cluster::start(3, small);
    let (leader, _) = cluster.leader_after(0);
    let sleeper = &cluster.nodes[(leader + 1) % 3];
    let mut stream = watch(sleeper.addr, "prefix=a", None);
    let mut client = cluster.nodes[leader].client();
    let mut written = vec![put(&mut client, "a", "first")];
    assert_eq!(revisions(&stream.change()), written);
    written.clear();
    let first_log_index = || cluster.nodes[leader].number("first_log_index");
    let applied = cluster.settle();
    sleeper.signal(Signal::STOP);
    let value = "x".repeat(8 << 10);
    wait("the log it needs is gone", || {
        for n in 0..50 {
            written.push(put(&mut client, &format!("a{n}"), &value));
            put(&mut client, "other", &value);
        }
        (first_log_index()? > applied + 1).then_some(())
    });
    sleeper.signal(Signal::CONT);
    let seen: Vec<u64> = written.iter().flat_map(|_| revisions(&stream.change())).collect();
    assert_eq!(seen, written);
    assert!(metric(sleeper.addr, "mmapd_raft_snapshots_received_total") >= Some(1.0));
    let last = put(&mut client, "a", "last");
    assert_eq!(revisions(&stream.change()), [last]);
}

fn env_or(name: &str, default: u64) -> u64 {
    let number = |text: String| text.parse().unwrap_or_else(|_| panic!("{name} is a number"));
    std::env::var(name).map_or(default, number)
}

/// One change as a watch tells it, and as its writer knows it: the key and the value.
type Told = (String, String);

/// What happened to one watch.
#[derive(Debug, Default)]
struct Followed {
    seen: Vec<(u64, Told)>,
    connections: u64,
}

/// Follows the keys of one stream on one node after the other, until `end` is written.
fn follow(addrs: &[SocketAddr], stream: u64, connected: &AtomicU64) -> Followed {
    let query = format!("prefix=s{stream}/&key=end&from_revision=1");
    let mut followed = Followed::default();
    let (mut last, mut turn) = (None, usize::try_from(stream).expect("few"));
    loop {
        turn += 1;
        let mut events = match open(addrs[turn % addrs.len()], &query, last) {
            Ok(Ok(events)) => events,
            Ok(Err(refused)) => {
                assert_eq!(refused.status, 503, "{refused:?}");
                pause();
                continue;
            }
            Err(_) => {
                pause();
                continue;
            }
        };
        followed.connections += 1;
        if followed.connections == 1 {
            connected.fetch_add(1, Ordering::Relaxed);
        }
        // Whatever ends it, the next node is asked.
        while let Ok(Some(message)) = events.next() {
            assert_ne!(message.event, "lagged", "the history is long enough");
            for event in message.data["events"].as_array().into_iter().flatten() {
                let text = |name: &str| event[name].as_str().expect("text").to_owned();
                let revision = event["mod_revision"].as_u64().expect("a revision");
                assert_eq!(Some(revision), message.id);
                if event["key"] == "end" {
                    return followed;
                }
                followed.seen.push((revision, (text("key"), text("value"))));
            }
            last = events.last;
        }
    }
}

/// What was written, by stream: acknowledged under a revision, and what nobody can tell of.
#[derive(Debug, Default)]
struct Written {
    acknowledged: Mutex<Vec<(u64, u64, Told)>>,
    unknown: AtomicU64,
    count: AtomicU64,
    stop: AtomicBool,
}

impl Written {
    fn write(&self, addrs: &[SocketAddr], writer: usize, streams: u64) {
        let mut clients: Vec<Client> = addrs.iter().map(|addr| Client::to(*addr)).collect();
        let (mut mine, mut number, mut turn) = (Vec::new(), 0_u64, writer);
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            let stream = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % streams;
            let key = format!("s{stream}/{writer}-{}", number % 5);
            let value = format!("{writer}-{number}");
            let at = turn % clients.len();
            match clients[at].put(&key, &value).ok().as_ref().and_then(acknowledged) {
                Some(revision) => {
                    mine.push((stream, revision, (key, value)));
                    self.count.fetch_add(1, Ordering::Relaxed);
                }
                None => {
                    turn += 1;
                    self.unknown.fetch_add(1, Ordering::Relaxed);
                    pause();
                }
            }
        }
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).extend(mine);
    }
}

/// Stops the writers also when the test fails, so that its scope can end.
struct StopOnDrop<'w>(&'w Written);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// A thousand watches need as many descriptors, here and in the nodes.
fn more_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, most).expect("up to what is allowed");
}

/// One node after the other is killed or told to stop, the leader as often as not.
fn harm(cluster: &mut Cluster, round: u64) {
    let (leader, _) = cluster.leader_after(0);
    let other = usize::try_from(round / 2 % 3).expect("few");
    let at = if round.is_multiple_of(2) { leader } else { other };
    if round % 4 == 3 {
        cluster.nodes[at].signal(Signal::TERM);
        assert_eq!(cluster.nodes[at].exit_code(), Some(0));
    } else {
        cluster.nodes[at].kill();
    }
}

#[test]
fn each_watch_sees_each_change_once_and_in_order_whatever_happens() {
    const WRITERS: usize = 8;
    const ROUNDS: u64 = 4;
    more_descriptors();
    let (streams, changes) = (env_or("WATCH_STREAMS", 100), env_or("WATCH_CHANGES", 20_000));
    let tuning = format!(
        "[storage]\nhistory = {}\nhistory_bytes = \"4GiB\"\n[watch]\nrecent = \"1MiB\"\n\
         [limits]\nconnections_per_address = 0\n",
        4 * changes + 100_000
    );
    let mut cluster = Cluster::start(3, &tuning);
    let addrs: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.addr).collect();
    let (written, connected) = (Written::default(), AtomicU64::new(0));
    let start = Instant::now();
    let (mut rounds, mut memory) = (0, 0);
    let followed: Vec<Followed> = thread::scope(|scope| {
        let follower = |stream| {
            let (addrs, connected) = (&addrs, &connected);
            let thread = thread::Builder::new().stack_size(256 << 10);
            let run = move || follow(addrs, stream, connected);
            thread.spawn_scoped(scope, run).expect("a thread")
        };
        let followers: Vec<_> = (0..streams).map(follower).collect();
        wait("all watch", || (connected.load(Ordering::Relaxed) == streams).then_some(()));
        let stop = StopOnDrop(&written);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (written, addrs) = (&written, &addrs);
                scope.spawn(move || written.write(addrs, writer, streams))
            })
            .collect();
        while rounds < ROUNDS || written.count.load(Ordering::Relaxed) < changes {
            let goal = |share: u64| {
                let count = written.count.load(Ordering::Relaxed);
                count + (changes / ROUNDS / share).clamp(1, 5_000)
            };
            let wrote = |goal| {
                support::process::wait_at_most(Duration::from_secs(120), "changes", || {
                    (written.count.load(Ordering::Relaxed) >= goal).then_some(())
                });
            };
            wrote(goal(2));
            let sizes = cluster.nodes.iter().map(Node::anonymous_bytes);
            memory = memory.max(sizes.max().unwrap_or_default());
            harm(&mut cluster, rounds);
            wrote(goal(4));
            cluster.start_all();
            rounds += 1;
        }
        drop(stop);
        writers.into_iter().for_each(|writer| writer.join().expect("it writes"));
        let mut client = Client::to(addrs[0]);
        wait("the end is written", || {
            client.put("end", "end").ok().as_ref().and_then(acknowledged)
        });
        followers.into_iter().map(|one| one.join().expect("it follows")).collect()
    });
    let connections: u64 = followed.iter().map(|one| one.connections).sum();
    let seen: usize = followed.iter().map(|one| one.seen.len()).sum();
    let acknowledged = judge(&addrs, &followed, written);
    println!(
        "watch: {streams} streams saw {seen} changes, {acknowledged} of them acknowledged, over \
         {connections} connections in {:?}; {rounds} nodes killed or stopped, none of which held \
         more than {} MiB",
        start.elapsed(),
        memory >> 20
    );
    // What a checkpoint is due for, and as much again; and what a connection may hold.
    let most = (2 * (64 << 20)) + streams * (64 << 10);
    assert!(memory < most, "a node holds {memory} bytes for {streams} streams, not below {most}");
    assert!(connections > streams, "some had to go on elsewhere");
}

/// What was acknowledged was seen under its revision; what was seen is what the history says,
/// all of it and in its order.
fn judge(addrs: &[SocketAddr], followed: &[Followed], written: Written) -> usize {
    let mut truth: Vec<Vec<(u64, Told)>> = vec![Vec::new(); followed.len()];
    let mut all = watch(addrs[1], "from_revision=1", None);
    let mut before = 0;
    'history: loop {
        let message = all.change();
        for event in message.data["events"].as_array().expect("a list") {
            let text = |name: &str| event[name].as_str().expect("text").to_owned();
            let (key, revision) = (text("key"), message.id.expect("a revision"));
            assert!(revision > before, "in order");
            before = revision;
            if key == "end" {
                break 'history;
            }
            let stream = key.split('/').next().and_then(|name| name[1..].parse::<usize>().ok());
            truth[stream.expect("ours")].push((revision, (key, text("value"))));
        }
    }
    for (stream, (followed, truth)) in followed.iter().zip(&truth).enumerate() {
        let differ = followed.seen.iter().zip(truth).position(|(seen, true_one)| seen != true_one);
        let at = differ.unwrap_or(followed.seen.len().min(truth.len()));
        assert!(
            followed.seen == *truth,
            "stream {stream} differs at {at}: saw {:?} of {}, the history has {:?} of {}",
            followed.seen.get(at),
            followed.seen.len(),
            truth.get(at),
            truth.len()
        );
    }
    let acknowledged = written.acknowledged.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (stream, revision, told) in &acknowledged {
        let seen = &followed[usize::try_from(*stream).expect("few")].seen;
        let at = seen.binary_search_by_key(revision, |(revision, _)| *revision);
        let at = at.unwrap_or_else(|_| panic!("stream {stream} lacks {revision} {told:?}"));
        assert_eq!(&seen[at].1, told);
    }
    let unknown = usize::try_from(written.unknown.into_inner()).expect("few");
    let seen: usize = followed.iter().map(|one| one.seen.len()).sum();
    assert!(seen <= acknowledged.len() + unknown, "nothing was made up");
    acknowledged.len()
}
