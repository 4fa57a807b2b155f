//! Real processes whose cluster grows, shrinks, and gets its machines replaced.
//!
//! Tests take turns: each has all processors.
#![allow(clippy::too_many_lines, reason = "a scenario reads best in one piece")]

mod support {
    pub(crate) mod load;
    pub(crate) mod process;
}

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::{Value as Json, json};
use support::load::Load;
use support::process::{Client, Cluster, Node, Reply, free_port, wait};

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node that is given nothing but its place.
fn bare(id: u64, dir: &Path, more: &[&str]) -> Node {
    let port = free_port();
    let (id_text, port_text) = (id.to_string(), port.to_string());
    let mut args = vec!["--id", &id_text, "--port", &port_text, "--db", "db.mmapd", "--log", "log"];
    args.extend(more);
    Node::new(id, port, &dir.join(format!("node{id}")), &args)
}

fn url(node: &Node) -> String {
    format!("http://127.0.0.1:{}", node.port)
}

fn ask(client: &mut Client, method: &str, path: &str, body: &Json) -> Reply {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    client.ask(method, path, &[], body.as_bytes()).expect("an answer")
}

/// Members as `id role`, sorted by id.
fn members(node: &Node) -> Option<Vec<String>> {
    let reply = node.client().get("/v1/cluster").ok()?;
    let shown = |member: &Json| {
        let role = if member["voter"] == true { "voter" } else { "learner" };
        Some(format!("{} {role}", member["id"].as_u64()?))
    };
    reply.json()["members"].as_array()?.iter().map(shown).collect()
}

fn wait_for_members(node: &Node, want: &[&str]) {
    let what = format!("node {} sees the members {want:?}", node.id);
    wait(&what, || (members(node)?.iter().eq(want.iter())).then_some(()));
}

fn leader_of(nodes: &[Node]) -> usize {
    wait("a leader", || {
        nodes.iter().position(|node| {
            node.runs() && node.status().is_some_and(|status| status["role"] == "leader")
        })
    })
}

fn alarms(node: &Node) -> Vec<String> {
    let status = node.status().unwrap_or_default();
    let alarms = status["alarms"].as_array().cloned().unwrap_or_default();
    alarms.iter().filter_map(|alarm| alarm.as_str().map(str::to_owned)).collect()
}

fn put_many(client: &mut Client, prefix: &str, count: usize) {
    for number in 0..count {
        let reply = client.put(&format!("{prefix}{number}"), "value").expect("an answer");
        assert!(reply.status < 300, "{}: {}", reply.status, reply.text());
    }
}

#[test]
fn one_node_grows_to_three_and_they_come_back_without_flags() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a directory");
    let mut nodes = vec![bare(1, dir.path(), &[])];
    nodes[0].start();
    put_many(&mut nodes[0].client(), "early", 50);
    let first = url(&nodes[0]);
    for id in 2..=3 {
        let mut node = bare(id, dir.path(), &["--join", &first]);
        node.start();
        nodes.push(node);
    }
    for node in &nodes {
        wait_for_members(node, &["1 voter", "2 voter", "3 voter"]);
        let reply = node.client().read("early49").expect("an answer");
        assert_eq!(reply.text(), "value", "what was there before is everywhere");
    }
    // Any two go on without the third.
    nodes[0].kill();
    put_many(&mut nodes[1].client(), "later", 10);
    for node in &mut nodes {
        node.kill();
    }
    let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    let mut again: Vec<Node> = (1..)
        .zip(ports)
        .map(|(id, port): (u64, u16)| {
            let (id_text, port_text) = (id.to_string(), port.to_string());
            let args = ["--id", &id_text, "--port", &port_text, "--db", "db.mmapd", "--log", "log"];
            Node::new(id, port, &dir.path().join(format!("node{id}")), &args)
        })
        .collect();
    for node in &mut again {
        node.spawn();
    }
    for node in &mut again {
        node.wait_ready();
        wait_for_members(node, &["1 voter", "2 voter", "3 voter"]);
        assert_eq!(node.client().read("later9").expect("an answer").text(), "value");
    }
    let leads = again.iter().filter_map(Node::status).filter(|s| s["role"] == "leader").count();
    assert_eq!(leads, 1, "they are one cluster");
}

#[test]
fn a_dead_machine_is_replaced_under_load() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
    let dir = tempfile::tempdir().expect("a directory");
    let load = Load::default();
    thread::scope(|scope| {
        load.run(scope, &ports[..2], 4);
        let _stop = StopOnDrop(&load);
        more(&load, 100);
        cluster.nodes[2].kill();
        let mut client = cluster.nodes[0].client();
        let removed = ask(&mut client, "DELETE", "/v1/cluster/members/3", &Json::Null);
        assert_eq!(removed.status, 200, "{}", removed.text());
        let join = url(&cluster.nodes[1]);
        let mut fourth = bare(4, dir.path(), &["--join", &join]);
        fourth.start();
        cluster.nodes[2] = fourth;
        for node in &cluster.nodes {
            wait_for_members(node, &["1 voter", "2 voter", "4 voter"]);
        }
        more(&load, 100);
        // Now the new one counts: any of the old ones may go.
        let leader = leader_of(&cluster.nodes[..2]);
        cluster.nodes[leader].kill();
        more(&load, 100);
        cluster.nodes[leader].start();
    });
    cluster.settle();
    load.judge("a machine replaced", &cluster);
}

struct StopOnDrop<'l>(&'l Load);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn more(load: &Load, count: u64) {
    let goal = load.acknowledged() + count;
    wait("writes are acknowledged", || (load.acknowledged() >= goal).then_some(()));
}

#[test]
fn a_wiped_machine_counts_for_nothing_until_it_is_let_in_again() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    put_many(&mut cluster.nodes[0].client(), "k", 20);
    cluster.settle();
    let leader = leader_of(&cluster.nodes);
    wait("the lives of all are known", || {
        let reply = cluster.nodes[leader].client().get("/v1/cluster").ok()?;
        let known =
            reply.json()["members"].as_array()?.iter().all(|m| m["incarnation"].is_string());
        known.then_some(())
    });
    let wiped = (leader + 1) % 3;
    let other = (leader + 2) % 3;
    let id = cluster.nodes[wiped].id;
    cluster.nodes[wiped].kill();
    for name in ["db.mmapd", "db.mmapd.lock"] {
        fs::remove_file(cluster.nodes[wiped].dir.join(name)).expect("it was there");
    }
    fs::remove_dir_all(cluster.nodes[wiped].dir.join("log")).expect("it was there");
    cluster.nodes[wiped].spawn();
    wait("the leader hears a stranger", || {
        alarms(&cluster.nodes[leader]).contains(&"foreign-member".to_owned()).then_some(())
    });
    wait("the wiped node knows", || {
        alarms(&cluster.nodes[wiped]).contains(&"not-a-member".to_owned()).then_some(())
    });
    // It must not stand in for the one that is missing now.
    cluster.nodes[other].kill();
    let path = "/v1/keys/lonely?timeout=1s";
    let refused = cluster.nodes[leader].client().ask("PUT", path, &[], b"x").expect("an answer");
    assert!(matches!(refused.status, 503 | 504), "{}: {}", refused.status, refused.text());
    cluster.nodes[other].start();

    // The documented way back.
    cluster.nodes[wiped].kill();
    fs::remove_file(cluster.nodes[wiped].dir.join("db.mmapd")).expect("it was there");
    fs::remove_dir_all(cluster.nodes[wiped].dir.join("log")).expect("it was there");
    let mut client = cluster.nodes[other].client();
    let removed = ask(&mut client, "DELETE", &format!("/v1/cluster/members/{id}"), &Json::Null);
    assert_eq!(removed.status, 200, "{}", removed.text());
    let (port, dir) = (cluster.nodes[wiped].port, cluster.nodes[wiped].dir.clone());
    let (id_text, port_text, join) = (id.to_string(), port.to_string(), url(&cluster.nodes[other]));
    let args = [
        "--id", &id_text, "--port", &port_text, "--db", "db.mmapd", "--log", "log", "--join", &join,
    ];
    let mut back = Node::new(id, port, &dir, &args);
    back.start();
    cluster.nodes[wiped] = back;
    for node in &cluster.nodes {
        wait_for_members(node, &["1 voter", "2 voter", "3 voter"]);
    }
    cluster.nodes[leader].kill();
    put_many(&mut cluster.nodes[other].client(), "with-it", 5);
    cluster.nodes[leader].start();
    cluster.settle();
    for node in &cluster.nodes {
        assert!(alarms(node).is_empty(), "{:?}", alarms(node));
    }
}

#[test]
fn all_machines_are_replaced_in_one_step() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let dir = tempfile::tempdir().expect("a directory");
    put_many(&mut cluster.nodes[0].client(), "k", 20);
    let join = url(&cluster.nodes[0]);
    let learner = dir.path().join("learner.toml");
    fs::write(&learner, "[cluster]\nlearner = true\n").expect("a file");
    let learner = learner.to_str().expect("a path").to_owned();
    let mut fresh = Vec::new();
    for id in 4..=6 {
        let mut node = bare(id, dir.path(), &["--config", &learner, "--join", &join]);
        node.start();
        fresh.push(node);
    }
    wait_for_members(
        &cluster.nodes[1],
        &["1 voter", "2 voter", "3 voter", "4 learner", "5 learner", "6 learner"],
    );
    let set = fresh.iter().map(|node| json!({"id": node.id, "url": url(node)})).collect::<Vec<_>>();
    let mut client = cluster.nodes[1].client();
    let body = json!({ "members": set });
    let replaced = wait("the learners are caught up", || {
        let reply = ask(&mut client, "PUT", "/v1/cluster/members", &body);
        (reply.status != 422).then_some(reply)
    });
    // The node that carried the request may be told the outcome by a leader that left.
    assert!(matches!(replaced.status, 200 | 504), "{}", replaced.text());
    for node in &fresh {
        wait_for_members(node, &["4 voter", "5 voter", "6 voter"]);
    }
    for node in &mut cluster.nodes {
        node.kill();
    }
    put_many(&mut fresh[2].client(), "new", 5);
    assert_eq!(fresh[0].client().read("k19").expect("an answer").text(), "value");
}

#[test]
fn the_leader_is_removed_and_another_one_goes_on() {
    let _turn = turn();
    let cluster = Cluster::start(3, "");
    let (leader, term) = cluster.leader_after(0);
    let other = (leader + 1) % 3;
    let path = format!("/v1/cluster/members/{}", cluster.nodes[leader].id);
    let removed = ask(&mut cluster.nodes[other].client(), "DELETE", &path, &Json::Null);
    assert_eq!(removed.status, 200, "{}", removed.text());
    put_many(&mut cluster.nodes[other].client(), "after", 10);
    wait("the removed node knows", || {
        alarms(&cluster.nodes[leader]).contains(&"not-a-member".to_owned()).then_some(())
    });
    let now = cluster.nodes[other].number("term").expect("a status");
    assert!(now > term, "somebody else was elected");
    // It is no member, so it cannot be removed twice.
    let again = ask(&mut cluster.nodes[other].client(), "DELETE", &path, &Json::Null);
    assert_eq!(again.status, 404, "{}", again.text());
}

#[test]
fn what_would_harm_the_cluster_is_refused_with_the_reason() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let (leader, _) = cluster.leader_after(0);
    let (down, up) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = |at: usize| (at + 1) as u64;
    cluster.nodes[down].kill();
    wait("the leader misses it", || {
        let reply = cluster.nodes[leader].client().get("/v1/cluster").ok()?.json();
        let silent = reply["members"][down]["last_contact_ms"].as_u64()?;
        (silent > 1000).then_some(())
    });
    let mut client = cluster.nodes[up].client();
    let mut refused = |method: &str, path: &str, body: Json, status: u16, says: &str| {
        let reply = ask(&mut client, method, path, &body);
        let text = reply.text();
        assert_eq!(reply.status, status, "{method} {path} {body}: {text}");
        assert!(text.contains(says), "{method} {path} {body}: {text}");
        assert_eq!(reply.json()["outcome"], "not_applied", "{text}");
    };
    let of_up = format!("/v1/cluster/members/{}", id(up));
    refused("DELETE", &of_up, Json::Null, 422, "of the 2 voters there would be, 1 follow");
    refused("PATCH", &of_up, json!({"role": "learner"}), 422, "1 follow");
    refused("DELETE", "/v1/cluster/members/9", Json::Null, 404, "not a member");
    refused("PATCH", "/v1/cluster/members/9", json!({"role": "voter"}), 404, "not a member");
    let all = "/v1/cluster/members";
    let there = "http://127.0.0.1:9";
    refused("POST", all, json!({"id": id(up), "url": there}), 409, "remove it first");
    refused("POST", all, json!({"id": 9, "url": url(&cluster.nodes[up])}), 409, "two members");
    refused("POST", all, json!({"id": 0, "url": there}), 400, "nobody");
    refused("POST", all, json!({"id": 9, "url": "http://127.0.0.1:9/path"}), 400, "url");
    refused("POST", all, json!({"id": 9, "url": "file:///etc/passwd"}), 400, "url");
    refused("POST", all, json!({"id": 9, "url": "http://169.254.169.254:80"}), 400, "url");
    refused("POST", all, json!({"id": 9}), 400, "url");
    refused("POST", all, json!({"id": 9, "url": there, "rank": 1}), 400, "rank");
    refused("PUT", all, json!({"members": []}), 422, "needs a voter");
    let voter = json!({"members": [{"id": 9, "url": there, "role": "voter"}]});
    refused("PUT", all, voter, 422, "add it as a learner");
    refused("DELETE", "/v1/cluster/members/x", Json::Null, 400, "whole number");
    // A learner that is not there never becomes a voter.
    let added = ask(&mut client, "POST", all, &json!({"id": 9, "url": there}));
    assert_eq!(added.status, 201, "{}", added.text());
    let promoted = ask(&mut client, "PATCH", "/v1/cluster/members/9", &json!({"role": "voter"}));
    assert_eq!(promoted.status, 422, "{}", promoted.text());
    // And who is down may be removed.
    let gone = format!("/v1/cluster/members/{}", id(down));
    let removed = ask(&mut client, "DELETE", &gone, &Json::Null);
    assert_eq!(removed.status, 200, "{}", removed.text());
}

/// Killed at any moment of its first start, a node that joins belongs to the cluster in the
/// end, and never makes one of its own.
#[test]
fn a_joining_node_may_be_killed_at_any_moment() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a directory");
    let mut first = bare(1, dir.path(), &[]);
    first.start();
    put_many(&mut first.client(), "k", 5);
    let cluster_id = first.status().expect("a status")["cluster_id"].clone();
    let join = url(&first);
    // What a second node has done so far, by the names that it made.
    let signs: [&[&str]; 4] = [&["stderr.log"], &["db.mmapd.joined"], &["log"], &["db.mmapd"]];
    for (at, sign) in signs.iter().enumerate() {
        let id = at as u64 + 2;
        let mut node = bare(id, dir.path(), &["--join", &join]);
        node.spawn();
        wait("it begins", || sign.iter().all(|name| node.dir.join(name).exists()).then_some(()));
        node.kill();
        node.start();
        wait("it votes", || members(&first)?.contains(&format!("{id} voter")).then_some(()));
        let status = node.status().expect("a status");
        assert_eq!(status["cluster_id"], cluster_id);
        let gone =
            ask(&mut first.client(), "DELETE", &format!("/v1/cluster/members/{id}"), &Json::Null);
        assert!(matches!(gone.status, 200 | 504), "{}", gone.text());
        wait("it is gone", || (!members(&first)?.contains(&format!("{id} voter"))).then_some(()));
    }
}

/// Passes connections on, but cuts those that bring a snapshot after `limit` bytes, `cuts` times.
struct Cutter {
    port: u16,
    left: Arc<AtomicUsize>,
}

impl Cutter {
    fn before(node_port: u16, limit: usize, cuts: usize) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let left = Arc::new(AtomicUsize::new(cuts));
        let cuts = Arc::clone(&left);
        // It ends with the test's process; nobody waits for its threads.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", node_port)) else { continue };
                let back = (server.try_clone(), client.try_clone());
                let (Ok(from), Ok(to)) = back else { continue };
                thread::spawn(move || pass(from, to, usize::MAX, &AtomicUsize::new(0)));
                let cuts = Arc::clone(&cuts);
                thread::spawn(move || pass(client, server, limit, &cuts));
            }
        });
        Self { port, left }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, limit: usize, cuts: &AtomicUsize) {
    let mut buffer = vec![0; 16 << 10];
    let (mut seen, mut is_snapshot) = (0, false);
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let sends = b"POST /v1/raft/snapshot";
        let asks = b"POST /v1/raft/snapshot?ask";
        let head = &buffer[..len];
        is_snapshot |= head.starts_with(sends) && !head.starts_with(asks);
        seen += if is_snapshot { len } else { 0 };
        let one_less = |left: usize| left.checked_sub(1);
        let cut = Ordering::Relaxed;
        if seen > limit && cuts.fetch_update(cut, cut, one_less).is_ok() {
            break;
        }
        if to.write_all(head).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        drop(stream.shutdown(Shutdown::Both));
    }
}

/// The connection that brings a snapshot breaks again and again; what came is not sent twice.
#[test]
fn a_snapshot_goes_on_where_its_connection_broke() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a directory");
    let mut first = bare(1, dir.path(), &[]);
    fs::write(
        first.dir.join("tiny.toml"),
        "[storage]\nsegment = \"256KiB\"\n\
        checkpoint_log = \"256KiB\"\ncheckpoint_interval = \"100ms\"\nlog_retain = \"256KiB\"\n",
    )
    .expect("a file");
    let port = first.port.to_string();
    let args = ["--id", "1", "--port", &port, "--db", "db.mmapd", "--log", "log"];
    let args = [&args[..], &["--config", "tiny.toml"]].concat();
    first = Node::new(1, first.port, &first.dir, &args);
    first.start();
    let mut client = first.client();
    let value = "v".repeat(64 << 10);
    let mut count = 0;
    wait("the log begins late", || {
        for _ in 0..20 {
            count += 1;
            let reply = client.put(&format!("key{count}"), &value).expect("an answer");
            assert!(reply.status < 300, "{}", reply.text());
        }
        (first.number("first_log_index")? > 1 && count >= 100).then_some(())
    });
    let port = free_port();
    let cutter = Cutter::before(port, 1 << 20, 4);
    let (port, join) = (port.to_string(), url(&first));
    let reached = format!("http://127.0.0.1:{}", cutter.port);
    let args = ["--id", "2", "--port", &port, "--db", "db.mmapd", "--log", "log"];
    let more = ["--join", &join, "--advertise", &reached];
    let args = [&args[..], &more].concat();
    let own = port.parse().expect("a number");
    let mut second = Node::new(2, own, &dir.path().join("node2"), &args);
    second.start();
    wait_for_members(&second, &["1 voter", "2 voter"]);
    assert_eq!(cutter.left.load(Ordering::Relaxed), 0, "all cuts were made");
    let reply = second.client().read(&format!("key{count}")).expect("an answer");
    assert_eq!(reply.text(), value);
    let metrics = client.get("/metrics").expect("an answer").text();
    let number = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    assert_eq!(number("mmapd_raft_snapshot_resumes_total"), 4);
    assert_eq!(number("mmapd_raft_snapshots_sent_total"), 1);
}
