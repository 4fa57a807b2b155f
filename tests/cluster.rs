//! Real processes on this machine: what must hold when they are killed, stopped, starved of
//! their log or started wrongly.
//!
//! Tests take turns: each has all processors, and times mean something. Measured times are
//! printed (`--nocapture`); the bounds that pass or fail are generous.
#![allow(clippy::too_many_lines, reason = "a scenario reads best in one piece")]

mod support {
    pub(crate) mod load;
    pub(crate) mod process;
}

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::load::Load;
use support::process::{Client, Cluster, Node, free_port, stays, wait, wait_at_most};

/// A new leader must write within this time. What `api.md` promises is 2 s on a quiet machine;
/// the figure that was measured is printed.
const FAILOVER_MAX: Duration = Duration::from_secs(10);
/// Some election timeouts of the default configuration.
const A_FEW_ELECTIONS: Duration = Duration::from_secs(2);

/// Files so small that the log is soon compacted away.
const TINY_LOG: &str = r#"
[limits]
value = "64KiB"
[storage]
segment = "256KiB"
checkpoint_log = "256KiB"
checkpoint_interval = "200ms"
log_retain = "256KiB"
"#;

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put(client: &mut Client, key: &str, value: &str) -> u64 {
    let reply = client.put(key, value).expect("an answer");
    assert!(matches!(reply.status, 200 | 201), "{}: {}", reply.status, reply.text());
    reply.json()["revision"].as_u64().expect("a write has a revision")
}

#[test]
fn a_write_through_any_node_is_read_through_any_other() {
    let _turn = turn();
    let cluster = Cluster::start(3, "");
    let mut clients: Vec<Client> = cluster.nodes.iter().map(Node::client).collect();
    let mut last = 0;
    for round in 0..30 {
        for writer in 0..3 {
            let value = format!("{round} from {writer}");
            let revision = put(&mut clients[writer], "color", &value);
            assert!(revision > last, "revisions grow");
            last = revision;
            for reader in [(writer + 1) % 3, (writer + 2) % 3] {
                let reply = clients[reader].read("color").expect("an answer");
                assert_eq!((reply.status, reply.text()), (200, value.clone()));
                assert_eq!(reply.revision(), Some(revision));
            }
        }
    }
    let deleted = clients[0].delete("color").expect("an answer");
    assert_eq!(deleted.json()["deleted"], 1, "{}", deleted.text());
    for client in &mut clients {
        assert_eq!(client.read("color").expect("an answer").status, 404);
    }
}

#[test]
fn a_killed_leader_costs_no_acknowledged_write() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
    let load = Load::default();
    thread::scope(|scope| {
        load.run(scope, &ports, 6);
        let _stop = StopOnDrop(&load);
        for round in 1..=3 {
            let (old, term) = cluster.leader_after(0);
            acknowledge_more(&load, 100);
            let before = load.acknowledged();
            cluster.nodes[old].kill();
            let start = Instant::now();
            let (new, next) = wait_at_most(FAILOVER_MAX, "a new leader", || {
                cluster.leader_now(term).filter(|&(at, _)| at != old)
            });
            let elected = start.elapsed();
            wait_at_most(FAILOVER_MAX, "a write after the kill", || {
                (load.acknowledged() > before + 20).then_some(())
            });
            let wrote = start.elapsed();
            println!("kill {round}: leader after {elected:?}, twenty writes after {wrote:?}");

            cluster.nodes[old].start();
            wait("the old leader follows and catches up", || {
                let (old, new) = (cluster.nodes[old].status()?, cluster.nodes[new].status()?);
                let near = old["applied_index"].as_u64()? + 200 > new["applied_index"].as_u64()?;
                (near && old["role"] == "follower").then_some(())
            });
            stays(A_FEW_ELECTIONS / 2, "the term after the old leader came back", || {
                cluster.nodes.iter().all(|node| node.number("term") == Some(next))
            });
        }
    });
    cluster.settle();
    load.judge("leader killed three times", &cluster);
}

/// Ends the load also when the test fails, so that its scope can.
struct StopOnDrop<'l>(&'l Load);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn acknowledge_more(load: &Load, count: u64) {
    let goal = load.acknowledged() + count;
    wait("writes are acknowledged", || (load.acknowledged() >= goal).then_some(()));
}

#[test]
fn all_killed_at_once_hold_everything_acknowledged() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, TINY_LOG);
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
    let load = Load::default();
    thread::scope(|scope| {
        load.run(scope, &ports, 4);
        let _stop = StopOnDrop(&load);
        for round in 1..=3 {
            acknowledge_more(&load, 300);
            for node in &mut cluster.nodes {
                node.kill();
            }
            let start = Instant::now();
            cluster.start_all();
            cluster.leader_after(0);
            println!("all killed {round}: a leader {:?} after the start", start.elapsed());
        }
        acknowledge_more(&load, 100);
    });
    cluster.settle();
    load.judge("all killed three times", &cluster);
}

#[test]
fn a_node_whose_log_is_gone_is_caught_up_by_a_snapshot() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, TINY_LOG);
    let (leader, _) = cluster.leader_after(0);
    let down = (leader + 1) % 3;
    let mut client = cluster.nodes[leader].client();
    for n in 0..20 {
        put(&mut client, &format!("before{n}"), "x");
    }
    cluster.settle();
    let last = cluster.nodes[down].number("last_log_index").expect("a status");
    cluster.nodes[down].kill();

    let value = "v".repeat(16 << 10);
    let mut count = 0;
    wait("the others forget what it lacks", || {
        for _ in 0..20 {
            count += 1;
            put(&mut client, &format!("after{count}"), &value);
        }
        let others = (0..3).filter(|&at| at != down);
        let firsts: Option<Vec<u64>> =
            others.map(|at| cluster.nodes[at].number("first_log_index")).collect();
        firsts?.into_iter().all(|first| first > last + 1).then_some(())
    });
    assert_eq!(client.delete("before3").expect("an answer").status, 200);

    let start = Instant::now();
    cluster.nodes[down].start();
    cluster.settle();
    println!("snapshot: {count} values of 16 KiB caught up in {:?}", start.elapsed());
    let keys: Vec<u64> = cluster.nodes.iter().map(keys_held).collect();
    assert_eq!(keys, vec![20 + count - 1; 3]);
    let first = cluster.nodes[down].number("first_log_index").expect("a status");
    assert!(first > last + 1, "it took a snapshot: its log begins at {first}, ended at {last}");
    let mut caught_up = cluster.nodes[down].client();
    assert_eq!(caught_up.list("").expect("a listing"), client.list("").expect("a listing"));
    let stale = caught_up.get(&format!("/v1/keys/after{count}?consistency=stale"));
    assert_eq!(stale.expect("an answer").text(), value);

    // What it installed survives, and it can take the log from there.
    cluster.nodes[down].kill();
    put(&mut client, "later", "on");
    cluster.nodes[down].start();
    cluster.settle();
    let reply = cluster.nodes[down].client().get("/v1/keys/later?consistency=stale");
    assert_eq!(reply.expect("an answer").text(), "on");
}

/// Keys in this replica, whatever the others have.
fn keys_held(node: &Node) -> u64 {
    let reply = node.client().get("/v1/keys?count_only=true&consistency=stale");
    reply.expect("an answer").json()["count"].as_u64().expect("a count")
}

#[test]
fn a_leader_that_slept_serves_no_stale_read() {
    a_sleeper_serves_no_stale_read("", "/v1/keys/color");
}

/// While it sleeps its ticks stop; its lease must end all the same.
#[test]
fn a_leader_that_slept_has_no_lease() {
    let tuning = "[raft]\nlease = true\n";
    a_sleeper_serves_no_stale_read(tuning, "/v1/keys/color?consistency=lease");
}

fn a_sleeper_serves_no_stale_read(tuning: &str, path: &str) {
    let _turn = turn();
    let cluster = Cluster::start(3, tuning);
    for round in 0..3 {
        let (old, term) = cluster.leader_after(0);
        let before = format!("old{round}");
        let after = format!("new{round}");
        put(&mut cluster.nodes[old].client(), "color", &before);
        // Requests that the old leader finds in its sockets when it wakes.
        let mut asked: Vec<Client> = (0..8).map(|_| cluster.nodes[old].client()).collect();
        for client in &mut asked {
            assert_eq!(client.get(path).expect("an answer").text(), before);
        }
        cluster.nodes[old].signal(Signal::STOP);
        let others: Vec<&Node> =
            cluster.nodes.iter().filter(|n| n.port != cluster.nodes[old].port).collect();
        let mut writer = wait_at_most(FAILOVER_MAX, "another leader", || {
            let leads = |n: &&&Node| {
                n.status().is_some_and(|s| s["role"] == "leader" && s["term"].as_u64() > Some(term))
            };
            others.iter().find(leads).map(|node| node.client())
        });
        put(&mut writer, "color", &after);
        for client in &mut asked {
            client.send("GET", path, &[], b"").expect("the kernel takes it");
        }
        cluster.nodes[old].signal(Signal::CONT);
        let mut fresh = 0;
        for client in &mut asked {
            let Ok(reply) = client.receive() else { continue };
            if reply.status == 200 {
                assert_eq!(reply.text(), after, "a stale read after waking");
                fresh += 1;
            }
        }
        println!("sleeper {round}: {fresh} of {} reads answered, none stale", asked.len());
        wait("the sleeper follows", || {
            (cluster.nodes[old].status()?["role"] == "follower").then_some(())
        });
        assert_eq!(cluster.nodes[old].client().read("color").expect("an answer").text(), after);
    }
}

#[test]
fn terminated_nodes_leave_in_order() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
    let load = Load::default();
    thread::scope(|scope| {
        load.run(scope, &ports, 4);
        let _stop = StopOnDrop(&load);
        for _ in 0..3 {
            let (leader, _) = cluster.leader_after(0);
            acknowledge_more(&load, 50);
            let start = Instant::now();
            cluster.nodes[leader].signal(Signal::TERM);
            assert_eq!(cluster.nodes[leader].exit_code(), Some(0), "SIGTERM ends well");
            println!("terminated: gone after {:?}", start.elapsed());
            acknowledge_more(&load, 50);
            cluster.nodes[leader].start();
        }
    });
    cluster.settle();
    load.judge("rolling restart", &cluster);
    cluster.nodes[0].signal(Signal::INT);
    assert_eq!(cluster.nodes[0].exit_code(), Some(0), "SIGINT ends well");
}

/// A directory and a node in it that is started with `args`.
fn alone(args: &[&str]) -> (tempfile::TempDir, Node) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let port = free_port();
    let text = port.to_string();
    let args: Vec<&str> = args.iter().map(|&arg| if arg == "PORT" { &text } else { arg }).collect();
    let node = Node::new(1, port, dir.path(), &args);
    (dir, node)
}

#[test]
fn one_node_needs_no_configuration_and_forgets_nothing() {
    let _turn = turn();
    let (_dir, mut node) = alone(&["--port", "PORT"]);
    node.start();
    let mut client = node.client();
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_eq!(client.put("bytes", &binary).expect("an answer").status, 201);
    assert_eq!(client.put("empty", "").expect("an answer").status, 201);
    for n in 0..200 {
        put(&mut client, &format!("k{n}"), &format!("v{n}"));
    }
    assert_eq!(client.delete("k7").expect("an answer").json()["deleted"], 1);
    let last = client.read("k199").expect("an answer").revision().map(|revision| revision + 1);
    node.kill();
    node.start();
    let mut client = node.client();
    assert_eq!(client.read("bytes").expect("an answer").body, binary);
    let empty = client.read("empty").expect("an answer");
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    for n in 0..200 {
        let reply = client.read(&format!("k{n}")).expect("an answer");
        assert_eq!(reply.status, if n == 7 { 404 } else { 200 }, "k{n}");
        assert!(n == 7 || reply.text() == format!("v{n}"));
    }
    wait("the status shows the delete that came last", || {
        (node.number("revision") == last).then_some(())
    });
    assert_eq!(client.list("").expect("a listing").len(), 201);
}

#[test]
fn it_starts_like_the_seed() {
    let _turn = turn();
    let (_dir, mut node) = alone(&["-port", "PORT", "-db", "db3001", "-log", "log3001"]);
    node.start();
    assert!(node.dir.join("db3001").exists() && node.dir.join("log3001").exists());
    let mut client = node.client();
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let set = client.ask("POST", "/set/color", &form, b"value=sky+blue%21").expect("an answer");
    assert_eq!((set.status, set.text()), (200, "sky blue!".to_owned()));
    let got = client.get("/get/color").expect("an answer");
    assert_eq!((got.status, got.text()), (200, "sky blue!".to_owned()));
    assert_eq!(client.get("/get/nothing").expect("an answer").status, 404);
    let status = client.get("/status").expect("an answer").json();
    for key in [
        "id",
        "state",
        "term",
        "voted for",
        "commit index",
        "last applied",
        "next index",
        "match index",
    ] {
        assert!(status.get(key).is_some(), "{key} is missing in {status}");
    }
    assert_eq!(client.read("color").expect("an answer").text(), "sky blue!");
}

/// Starts `node`, expects it to end with `code` and to have written every one of `words`.
#[track_caller]
fn refuses(node: &mut Node, code: i32, words: &[&str]) {
    node.spawn();
    let ended = node.exit_code();
    let log = node.log_tail();
    assert_eq!(ended, Some(code), "{log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is not in the message:\n{log}");
    }
}

#[test]
fn a_used_port_is_named() {
    let (_dir, mut node) = alone(&["--port", "PORT"]);
    let _held = TcpListener::bind(("127.0.0.1", node.port)).expect("free a moment ago");
    let port = node.port.to_string();
    refuses(&mut node, 1, &[&port]);
}

#[test]
fn a_write_that_the_system_refuses_ends_the_process_without_an_acknowledgement() {
    let (_dir, mut node) = alone(&["--port", "PORT"]);
    node.start();
    put(&mut node.client(), "color", "blue");
    // Every later append to the log fails, as on a full disk.
    node.limit_file_size(4096);
    let answer = node.client().put("color", b"red");
    assert!(!answer.is_ok_and(|reply| reply.status < 300), "acknowledged what was not written");
    assert_eq!(node.exit_code(), Some(74), "{}", node.log_tail());
    assert!(node.log_tail().contains("pwrite"), "{}", node.log_tail());
    node.start();
    assert_eq!(node.client().read("color").expect("an answer").text(), "blue");
}

#[test]
fn data_in_use_is_left_alone() {
    let (dir, mut node) = alone(&["--port", "PORT"]);
    node.start();
    put(&mut node.client(), "color", "blue");
    let port = free_port();
    let mut second = Node::new(1, port, dir.path(), &["--port", &port.to_string()]);
    refuses(&mut second, 77, &["use"]);
    assert_eq!(node.client().read("color").expect("an answer").text(), "blue");
}

#[test]
fn the_data_of_another_node_is_left_alone() {
    let (dir, mut node) = alone(&["--port", "PORT"]);
    node.start();
    put(&mut node.client(), "color", "blue");
    node.signal(Signal::TERM);
    assert_eq!(node.exit_code(), Some(0));
    let port = node.port.to_string();
    let mut other = Node::new(2, node.port, dir.path(), &["--port", &port, "--id", "2"]);
    refuses(&mut other, 78, &["node"]);
    node.start();
    assert_eq!(node.client().read("color").expect("an answer").text(), "blue");
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let cases = [
        ("an unknown key", "[node]\nid = 1\nlissten = \"127.0.0.1:1\"\n", "lissten"),
        ("a wrong type", "[node]\nid = \"one\"\n", "node.id"),
        (
            "a peer list without this node",
            "[node]\nid = 9\n[[cluster.peers]]\nid = 1\nurl = \"http://127.0.0.1:3001\"\n",
            "9",
        ),
        ("an impossible heartbeat", "[raft]\nheartbeat = \"400ms\"\n", "raft.heartbeat"),
    ];
    for (why, text, word) in cases {
        let (_dir, mut node) = alone(&["--config", "bad.toml"]);
        fs::write(node.dir.join("bad.toml"), text).expect("a file");
        refuses(&mut node, 78, &["bad.toml", word]);
        assert!(!node.dir.join("data").exists(), "{why} touched the disk");
    }
    let (_dir, mut node) = alone(&["--config", "missing.toml"]);
    refuses(&mut node, 78, &["missing.toml"]);
    let (_dir, mut node) = alone(&["--no-such-flag"]);
    refuses(&mut node, 2, &["--no-such-flag"]);
}

/// Flips one bit of each given byte of a file.
fn flip(path: &std::path::Path, at: impl Iterator<Item = usize>) {
    let mut bytes = fs::read(path).expect("a file");
    for at in at {
        bytes[at] ^= 4;
    }
    fs::write(path, bytes).expect("a file");
}

/// What a node's own copy of a key is, without asking the others.
fn own_copy(client: &mut Client, key: &str) -> Option<String> {
    let reply = client.get(&format!("/v1/keys/{key}?consistency=stale")).ok()?;
    (reply.status == 200).then(|| reply.text())
}

#[test]
fn a_damaged_database_is_made_anew_from_the_others() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, TINY_LOG);
    let (leader, _) = cluster.leader_after(0);
    let victim = (leader + 1) % 3;
    let mut client = cluster.nodes[leader].client();
    let value = |round: u64, n: u64| format!("{round}.{n}.{}", "v".repeat(3000));
    for n in 0..300 {
        put(&mut client, &format!("k{n}"), &value(1, n));
    }
    wait("the log begins after the first entry", || {
        (cluster.nodes[victim].number("first_log_index")? > 1).then_some(())
    });
    // Noticed at the start: everything but the meta pages is damaged.
    cluster.nodes[victim].kill();
    for n in 0..30 {
        put(&mut client, &format!("k{n}"), &value(2, n));
    }
    let data = cluster.nodes[victim].dir.clone();
    let db = data.join("db.mmapd");
    let pages = usize::try_from(fs::metadata(&db).expect("a file").len()).expect("small") / 4096;
    flip(&db, (1..pages).filter(|page| *page != 16).map(|page| page * 4096 + 100));
    cluster.nodes[victim].start();
    assert!(data.join("quarantine/db.mmapd").exists(), "the damaged file is kept");
    let mut own = cluster.nodes[victim].client();
    for n in 0..300 {
        let round = if n < 30 { 2 } else { 1 };
        assert_eq!(own_copy(&mut own, &format!("k{n}")), Some(value(round, n)), "k{n}");
    }
    let metrics = own.get("/metrics").expect("an answer").text();
    assert!(metrics.contains("mmapd_db_lost_total 1"), "{metrics}");

    // Noticed by a reader: one page in the middle of a value.
    cluster.settle();
    cluster.nodes[victim].kill();
    let bytes = fs::read(&db).expect("a file");
    let text = value(1, 200).into_bytes();
    let at = bytes.windows(text.len()).position(|window| window == text).expect("k200 is there");
    flip(&db, std::iter::once(at + 1000));
    cluster.nodes[victim].start();
    let mut own = cluster.nodes[victim].client();
    let reply = own.get("/v1/keys/k200?consistency=stale").expect("an answer");
    assert_eq!(reply.status, 500, "damaged bytes are never served: {}", reply.text());
    wait("the value is there again", || {
        (own_copy(&mut own, "k200")? == value(1, 200)).then_some(())
    });
    put(&mut client, "after", "damage");
    cluster.settle();
}

#[test]
fn damaged_entries_of_the_log_are_had_again_from_the_others() {
    let _turn = turn();
    let tuning = TINY_LOG.replace("log_retain = \"256KiB\"", "log_retain = \"64MiB\"");
    let mut cluster = Cluster::start(3, &tuning);
    let (leader, _) = cluster.leader_after(0);
    let victim = (leader + 1) % 3;
    let mut client = cluster.nodes[leader].client();
    let value = |n: u64| format!("{n}.{}", "w".repeat(3000));
    for n in 0..300 {
        put(&mut client, &format!("k{n}"), &value(n));
    }
    cluster.settle();
    let dir = cluster.nodes[victim].dir.join("log");
    // Values are in the log as they are: one in an old segment, one in the middle, and one
    // in the newest.
    let damage = |n: u64| {
        let text = value(n).into_bytes();
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "seg") {
                continue;
            }
            let bytes = fs::read(&path).expect("a file");
            if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
                flip(&path, std::iter::once(at + 50));
                return;
            }
        }
        panic!("value {n} is in the log");
    };
    for round in 0..3 {
        cluster.nodes[victim].kill();
        damage(5 + round);
        damage(150 + round);
        damage(299 - round);
        put(&mut client, "meanwhile", &value(round));
        cluster.nodes[victim].start();
        wait("the log is whole again", || {
            let status = cluster.nodes[victim].status()?;
            status["alarms"].as_array()?.is_empty().then_some(())
        });
        let metrics = cluster.nodes[victim].client().get("/metrics").expect("an answer").text();
        assert!(metrics.contains("mmapd_log_repaired_entries_total 3\n"), "{metrics}");
        let tail = cluster.nodes[victim].log_tail();
        assert!(tail.contains("damaged entries of the log are repaired"), "{tail}");
        cluster.settle();
    }
    // The repair is durable: nothing is missing at the next start.
    cluster.nodes[victim].signal(Signal::TERM);
    assert_eq!(cluster.nodes[victim].exit_code(), Some(0));
    cluster.nodes[victim].start();
    let metrics = cluster.nodes[victim].client().get("/metrics").expect("an answer").text();
    assert!(metrics.contains("mmapd_log_repaired_entries_total 0\n"), "{metrics}");
    // What cannot even be named: a segment without its header. The rest is forgotten, and had
    // again from the leader.
    cluster.nodes[victim].kill();
    let mut segments: Vec<_> = fs::read_dir(&dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    segments.sort();
    flip(&segments[segments.len() / 2], 0..4096);
    cluster.nodes[victim].start();
    assert!(dir.join("quarantine").exists(), "what was not understood is kept");
    wait("the log is whole again", || {
        let status = cluster.nodes[victim].status()?;
        status["alarms"].as_array()?.is_empty().then_some(())
    });
    cluster.settle();
    let mut own = cluster.nodes[victim].client();
    for n in 0..300 {
        assert_eq!(own_copy(&mut own, &format!("k{n}")), Some(value(n)), "k{n}");
    }
}

/// Asks a node to read its disk; the names of the damaged files.
fn scrub(client: &mut Client) -> Vec<String> {
    let reply = client.ask("POST", "/v1/admin/scrub", &[], b"").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    assert!(body["log_bytes"].as_u64().expect("a number") > 0, "{body}");
    let findings = body["findings"].as_array().expect("a list");
    findings.iter().map(|f| f["file"].as_str().expect("a name").to_owned()).collect()
}

/// Flips one bit of a file while a node has it open.
fn flip_in_place(path: &std::path::Path, at: usize) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    let at = at as u64;
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], at).expect("room");
}

#[test]
fn damage_under_a_running_node_is_found_and_repaired() {
    let _turn = turn();
    let tuning = TINY_LOG.replace("log_retain = \"256KiB\"", "log_retain = \"64MiB\"");
    let cluster = Cluster::start(3, &tuning);
    let (leader, _) = cluster.leader_after(0);
    let victim = (leader + 1) % 3;
    let mut client = cluster.nodes[leader].client();
    let value = |n: u64| format!("{n}.{}", "x".repeat(3000));
    for n in 0..300 {
        put(&mut client, &format!("k{n}"), &value(n));
    }
    cluster.settle();
    let data = cluster.nodes[victim].dir.clone();
    let (db, log) = (data.join("db.mmapd"), data.join("log"));
    let find = |path: &std::path::Path, n: u64| {
        let (bytes, text) = (fs::read(path).expect("a file"), value(n).into_bytes());
        bytes.windows(text.len()).position(|window| window == text)
    };
    let mut own = cluster.nodes[victim].client();
    let at = wait("the last value is in the database file", || {
        find(&db, 299)?;
        find(&db, 200)
    });
    wait("a clean pass", || scrub(&mut own).is_empty().then_some(()));
    let segments = fs::read_dir(&log).expect("a directory").map(|entry| entry.expect("one").path());
    let (segment, place) = segments
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .find_map(|path| find(&path, 100).map(|place| (path, place)))
        .expect("k100 is in the log");
    flip_in_place(&db, at + 1000);
    flip_in_place(&segment, place + 1000);
    let found = scrub(&mut own);
    let names = |path: &std::path::Path| found.iter().any(|name| path.ends_with(name));
    assert!(names(db.file_name().expect("one").as_ref()) || names(&db), "{found:?}");
    assert!(names(&segment), "{found:?} has not {}", segment.display());
    for n in 0..300 {
        wait("the value is there again", || {
            let reply = own.get(&format!("/v1/keys/k{n}?consistency=stale")).ok()?;
            if reply.status == 200 {
                assert_eq!(reply.text(), value(n), "wrong bytes are never served");
                return Some(());
            }
            assert!(reply.status >= 500 || reply.status == 404, "{}", reply.status);
            None
        });
    }
    wait("nothing is damaged any more", || {
        let clean = scrub(&mut own).is_empty();
        let reply = own.get("/v1/status").ok()?;
        (clean && reply.json()["alarms"].as_array()?.is_empty()).then_some(())
    });
    let metrics = own.get("/metrics").expect("an answer").text();
    assert!(metrics.contains("mmapd_log_repaired_entries_total 1"), "{metrics}");
    put(&mut client, "after", "damage");
    cluster.settle();
}

#[test]
fn a_clean_store_is_not_accused() {
    let _turn = turn();
    let (_dir, mut node) = alone(&["--port", "PORT"]);
    node.start();
    let mut client = node.client();
    for n in 0..50 {
        put(&mut client, &format!("k{n}"), &"y".repeat(5000));
        if n % 10 == 0 {
            assert_eq!(scrub(&mut client), [""; 0]);
        }
    }
    assert_eq!(scrub(&mut client), [""; 0]);
}

/// How many checkpoints a node has written since its start.
fn checkpoints(node: &Node) -> u64 {
    let text = node.client().get("/metrics").expect("an answer").text();
    let line = text.lines().find_map(|line| {
        line.strip_prefix("mmapd_db_checkpoint_duration_seconds_count ")?.parse().ok()
    });
    line.unwrap_or(0)
}

#[test]
fn a_slow_reader_gets_the_value_it_asked_for_and_gives_its_pages_back() {
    const LEN: usize = 8 << 20;
    const OVERWRITES: u8 = 20;
    let _turn = turn();
    let tuning = "[limits]\nvalue = \"8MiB\"\n[storage]\ncheckpoint_interval = \"200ms\"\nhistory_bytes = \"1MiB\"\n";
    let cluster = Cluster::start(1, tuning);
    let node = &cluster.nodes[0];
    let mut client = node.client().with_timeout(support::process::PATIENCE);
    let value = |n: u8| -> Vec<u8> { (0..LEN).map(|at| at.to_le_bytes()[at % 3] ^ n).collect() };
    let mut write = |n: u8| {
        let reply = client.put("long", value(n)).expect("an answer");
        assert!(matches!(reply.status, 200 | 201), "{}: {}", reply.status, reply.text());
    };
    let overwrite = |write: &mut dyn FnMut(u8)| {
        for n in 1..=OVERWRITES {
            let before = checkpoints(node);
            write(n);
            if n % 5 == 0 {
                wait("a checkpoint", || (checkpoints(node) > before).then_some(()));
            }
        }
    };

    write(0);
    let mut slow = TcpStream::connect(("127.0.0.1", node.port)).expect("it listens");
    slow.set_read_timeout(Some(support::process::PATIENCE)).expect("not zero");
    slow.write_all(b"GET /v1/keys/long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("it reads");
    let mut seen = vec![0; 1000];
    slow.read_exact(&mut seen).expect("the answer begins");
    // The rest is more than the sockets hold, so the server still has to send some of it.
    overwrite(&mut write);
    let mut piece = [0; 4096];
    loop {
        match slow.read(&mut piece).expect("it goes on") {
            0 => break,
            len => seen.extend_from_slice(&piece[..len]),
        }
    }
    let end = seen.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
    assert!(head.contains(&format!("content-length: {LEN}\r\n")), "{head}");
    assert!(seen[end..] == value(0), "not one byte of a newer value");

    // Nobody reads now: the next values go where the last ones were.
    let whole = LEN as u64;
    let before = node.number("db_size_bytes").expect("a status");
    overwrite(&mut write);
    wait("only the newest value is live", || {
        (node.number("db_live_bytes")? < 2 * whole).then_some(())
    });
    let after = node.number("db_size_bytes").expect("a status");
    println!("slow reader: the file went from {before} to {after} bytes");
    assert!(after < before + u64::from(OVERWRITES / 2) * whole, "{before} became {after}");
}

/// Any node takes the wish; who cannot lead is refused with the reason.
#[test]
fn leadership_moves_where_it_is_asked_to() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let move_to = |node: &Node, body: &str| {
        let reply = node.client().ask("POST", "/v1/cluster/leader", &[], body.as_bytes());
        reply.expect("an answer")
    };
    for to in [1, 2, 3, 3] {
        for asked in &cluster.nodes {
            let reply = move_to(asked, &format!("{{\"to\":{to}}}"));
            assert_eq!(reply.status, 200, "to {to} through {}: {}", asked.id, reply.text());
            let heir = &cluster.nodes[to - 1];
            let body = reply.json();
            assert_eq!(body["id"], to);
            assert_eq!(body["url"], format!("http://127.0.0.1:{}", heir.port));
            let status = heir.status().expect("it runs");
            assert_eq!((&status["role"], &status["term"]), (&"leader".into(), &body["term"]));
        }
        put(&mut cluster.nodes[to % 3].client(), "after", &to.to_string());
    }
    let (old, _) = cluster.leader_after(0);
    let chosen = move_to(&cluster.nodes[(old + 1) % 3], "").json()["id"].as_u64();
    assert!(chosen.is_some_and(|id| id != cluster.nodes[old].id), "somebody else: {chosen:?}");

    assert_eq!(move_to(&cluster.nodes[0], "{\"to\":9}").status, 404);
    assert_eq!(move_to(&cluster.nodes[0], "{\"too\":1}").status, 400);
    let (leader, _) = cluster.leader_after(0);
    let dead = (leader + 1) % 3;
    cluster.nodes[dead].kill();
    let wish = format!("{{\"to\":{}}}", cluster.nodes[dead].id);
    let refused = wait("the leader misses the dead node", || {
        let path = "/v1/cluster/leader?timeout=200ms";
        let reply = cluster.nodes[leader].client().ask("POST", path, &[], wish.as_bytes());
        let reply = reply.expect("an answer");
        assert!(matches!(reply.status, 422 | 503), "it cannot lead: {}", reply.text());
        (reply.status == 422).then_some(reply)
    });
    assert!(refused.text().contains("was not heard of"), "{}", refused.text());
    put(&mut cluster.nodes[leader].client(), "after", "a refusal");
}

/// The kernel ends the connections of a dead process, and the followers take note: they need
/// not wait for their election time-out, which is so long here that nothing else can explain
/// the new leader. Two that begin at the same moment may split the votes, so not every round
/// is quick.
#[test]
fn a_dead_leader_is_missed_before_the_election_timeout() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "[raft]\nelection_timeout = \"3s\"\n");
    let quick = (1..=4).any(|round| {
        let (old, term) = cluster.leader_after(0);
        // The followers hear it until it is killed, so without news they wait 2.9 s at least.
        cluster.nodes[old].kill();
        let start = Instant::now();
        let (_, next) = wait("a new leader", || cluster.leader_now(term));
        let took = start.elapsed();
        println!("round {round}: leader of term {next} after {took:?}");
        cluster.nodes[old].start();
        took < Duration::from_secs(2)
    });
    assert!(quick, "the end of the connections was not noticed");
}

fn post(client: &mut Client, path: &str, body: &str) -> serde_json::Value {
    let reply = client.ask("POST", path, &[], body.as_bytes()).expect("an answer");
    assert!(matches!(reply.status, 200 | 201), "{path}: {}", reply.text());
    reply.json()
}

/// One lease is kept alive through a follower, the other is not: one key stays as long as
/// somebody cares.
#[test]
fn leases_are_kept_alive_through_a_follower_and_end_by_themselves() {
    let _turn = turn();
    let cluster = Cluster::start(3, "");
    let (leader, _) = cluster.leader_after(0);
    let mut follower = cluster.nodes[(leader + 1) % 3].client();
    let mut another = cluster.nodes[(leader + 2) % 3].client();
    post(&mut follower, "/v1/leases", r#"{"ttl":"5s","id":5}"#);
    post(&mut follower, "/v1/leases", r#"{"ttl":"1s","id":1}"#);
    let body = r#"{"then":[{"put":{"key":"cared/for","value":"x","lease":5}},
        {"put":{"key":"left","value":"x","lease":1}}]}"#;
    post(&mut another, "/v1/txn", body);
    wait("the end of the lease that nobody keeps alive", || {
        let kept = post(&mut follower, "/v1/leases/keepalive", r#"{"ids":[5]}"#);
        assert_eq!(kept["leases"][0]["ttl"], "5s", "{kept}");
        (another.read("left").expect("an answer").status == 404).then_some(())
    });
    assert_eq!(another.read("cared/for").expect("an answer").status, 200);
    let kept = post(&mut follower, "/v1/leases/keepalive", r#"{"ids":[1,5]}"#);
    assert_eq!((&kept["leases"][0]["ttl"], &kept["leases"][1]["ttl"]), (&().into(), &"5s".into()));
    wait("the end of the other one", || {
        (another.read("cared/for").expect("an answer").status == 404).then_some(())
    });
    let leases = another.get("/v1/leases").expect("an answer").json();
    assert_eq!(leases["leases"], serde_json::json!([]));
}

/// Waits go on through any node, and end with a word where the node is shut down.
#[test]
fn locks_are_waited_for_through_any_node() {
    let _turn = turn();
    let mut cluster = Cluster::start(3, "");
    let (leader, _) = cluster.leader_after(0);
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut client = cluster.nodes[leader].client();
    let first = post(&mut client, "/v1/locks/jobs", r#"{"ttl":"60s"}"#);
    let mut queued = |owner: &str| {
        wait("a place in the queue", || {
            let lock = client.get("/v1/locks/jobs").expect("an answer").json();
            let waiting = lock["waiting"].as_array().expect("a list");
            (waiting.last()?["owner"] == owner).then_some(waiting.len())
        })
    };
    let wish = |owner: &str| format!(r#"{{"ttl":"60s","owner":"{owner}","wait":"60s"}}"#);
    let patient = |node: &Node| node.client().with_timeout(Duration::from_secs(60));
    let mut waiting = patient(&cluster.nodes[follower]);
    waiting.send("POST", "/v1/locks/jobs", &[], wish("one").as_bytes()).expect("sent");
    assert_eq!(queued("one"), 1);
    let mut stopped = patient(&cluster.nodes[other]);
    stopped.send("POST", "/v1/locks/jobs", &[], wish("two").as_bytes()).expect("sent");
    assert_eq!(queued("two"), 2);

    cluster.nodes[other].signal(Signal::TERM);
    let refused = stopped.receive().expect("an answer");
    assert_eq!((refused.status, &refused.json()["code"]), (503, &"draining".into()));
    assert_eq!(queued("one"), 1, "the place was given up");
    assert_eq!(cluster.nodes[other].exit_code(), Some(0));

    let path = format!("/v1/locks/jobs?token={}", first["token"]);
    let mut client = cluster.nodes[leader].client();
    assert_eq!(client.ask("DELETE", &path, &[], b"").expect("an answer").status, 200);
    let held = waiting.receive().expect("an answer");
    assert_eq!((held.status, &held.json()["owner"]), (200, &"one".into()), "{}", held.text());
    // The first holder does not know that it is none.
    let stale = format!("jobs;{}", first["token"]);
    let body = br#"{"then":[{"put":{"key":"a","value":"late"}}]}"#;
    let late = client.ask("POST", "/v1/txn", &[("Mmapd-Fence", &stale)], body);
    assert_eq!(late.expect("an answer").status, 412);
}
