//! A backup of a running cluster, and what is made of it: with real processes, over HTTP and
//! the command line.

#[path = "support/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use process::{Client, Cluster, Node, PATIENCE, Reply, free_port, wait};
use rustix::process::Signal;

const BUMP: u64 = 1_000_000_000;

fn value(n: usize) -> Vec<u8> {
    let len = if n == 7 { 1 << 20 } else { 20 + n };
    (0..len).map(|at| u8::try_from((at * 31 + n) % 251).expect("below 251")).collect()
}

fn fill(client: &mut Client, keys: usize) {
    for n in 0..keys {
        let reply = client.put(&format!("key/{n:03}"), value(n)).expect("an answer");
        assert_eq!(reply.status, 201, "{}", reply.text());
    }
}

fn holds(client: &mut Client, keys: usize) {
    for n in 0..keys {
        let reply = client.read(&format!("key/{n:03}")).expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.body == value(n), "key {n} has another value");
    }
    assert_eq!(client.list("").expect("a listing").len(), keys);
}

fn backup(client: &mut Client) -> Reply {
    let reply = client.get("/v1/backup").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

/// Runs `mmapd restore` in `dir` with an environment of its own.
fn restore(dir: &Path, args: &[&str]) -> Output {
    run(dir, "restore", args)
}

/// Runs `mmapd backup`, which is the same without a network.
fn offline(dir: &Path, args: &[&str]) -> Output {
    run(dir, "backup", args)
}

fn run(dir: &Path, command: &str, args: &[&str]) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_mmapd"));
    process.current_dir(dir).env_clear().arg(command).args(args).stdin(Stdio::null());
    process.output().expect("the binary runs")
}

#[track_caller]
fn ends(output: &Output, code: i32, says: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(says), "should say {says:?}: {text}");
}

/// Not started; stores in `db` and `log` of `dir`.
fn alone(dir: &Path) -> Node {
    let port = free_port();
    let listen = port.to_string();
    Node::new(1, port, dir, &["--port", &listen, "--db", "db", "--log", "log"])
}

fn cluster_id(node: &Node) -> String {
    let status = node.status().expect("a status");
    status["cluster_id"].as_str().expect("text").to_owned()
}

#[test]
fn what_was_backed_up_comes_back_as_another_cluster() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut old = alone(&dir.path().join("old"));
    old.start();
    fill(&mut old.client(), 200);
    let tag = old.client().read("key/003").expect("an answer").header("etag").map(str::to_owned);
    let tag = tag.expect("a tag");
    let taken = backup(&mut old.client());
    let was: u64 = taken.header("mmapd-revision").expect("there").parse().expect("a number");
    assert!(was >= 200);
    assert_eq!(taken.header("content-type"), Some("application/vnd.mmapd.backup"));
    assert_eq!(taken.header("mmapd-digest").map(str::len), Some(32));
    let file = format!("attachment; filename=\"mmapd-{was}.backup\"");
    assert_eq!(taken.header("content-disposition"), Some(&*file));
    let id = cluster_id(&old);
    // What is written later is not in it.
    old.client().put("late", "x").expect("an answer");

    let home = dir.path().join("new");
    let mut new = alone(&home);
    fs::write(home.join("b"), &taken.body).expect("a file");
    let places = ["b", "--db", "db", "--log", "log"];
    ends(&restore(&home, &places), 0, "restored 200 keys");
    ends(&restore(&home, &places), 2, "there is data already");
    let mut names: Vec<String> = fs::read_dir(home.join("log"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| name.contains("restoring"));
    assert!(names.is_empty() && !home.join("db.restoring").exists());
    new.start();
    let mut client = new.client();
    holds(&mut client, 200);
    assert_ne!(cluster_id(&new), id);
    assert!(new.number("revision").is_some_and(|revision| revision >= was + BUMP));

    let reply = client.put("key/003", "changed").expect("an answer");
    assert!(reply.revision().is_some_and(|revision| revision > was + BUMP));
    let stale = client.ask("PUT", "/v1/keys/key/003", &[("If-Match", &tag)], b"z");
    assert_eq!(stale.expect("an answer").status, 412);
    // It is as durable as any other, and can be backed up itself.
    new.kill();
    new.start();
    assert_eq!(new.client().read("key/003").expect("an answer").text(), "changed");
    backup(&mut new.client());
}

#[test]
fn three_nodes_restored_from_a_follower_are_one_cluster() {
    let mut old = Cluster::start(3, "");
    let (leader, _) = old.leader_after(0);
    fill(&mut old.nodes[leader].client(), 50);
    let follower = &old.nodes[(leader + 1) % 3];
    let taken = backup(&mut follower.client());
    let id = cluster_id(follower);

    let mut new = Cluster::new(3, "");
    let peers: Vec<String> = new
        .nodes
        .iter()
        .flat_map(|node| ["--peer".to_owned(), format!("{}=http://{}", node.id, node.addr)])
        .collect();
    for node in &new.nodes {
        fs::write(node.dir.join("b"), &taken.body).expect("a file");
        let mut args = vec!["b", "--config", "node.toml", "--bump", "5000"];
        args.extend(peers.iter().map(String::as_str));
        ends(&restore(&node.dir, &args), 0, "restored 50 keys");
    }
    for node in &mut old.nodes {
        node.kill();
    }
    new.start_all();
    let (leader, _) = new.leader_after(0);
    for node in &new.nodes {
        let mut client = node.client();
        holds(&mut client, 50);
        assert_eq!(cluster_id(node), cluster_id(&new.nodes[leader]));
        assert_ne!(cluster_id(node), id);
    }
    let written = new.nodes[(leader + 1) % 3].client().put("more", "1").expect("an answer");
    assert_eq!(written.status, 201);
    new.settle();

    // The new one survives its leader.
    new.nodes[leader].kill();
    let other = (leader + 1) % 3;
    wait("the others go on", || {
        let reply = new.nodes[other].client().put("key/001", "2").ok()?;
        (reply.status == 200).then_some(())
    });
    new.start_all();
    new.settle();
    let read = new.nodes[leader].client().read("key/001").expect("an answer");
    assert_eq!(read.text(), "2");
}

/// Where each chunk of a backup begins, the end too.
fn borders(bytes: &[u8]) -> Vec<usize> {
    let number = |at: usize| {
        let len = bytes[at..at + 4].try_into().expect("four bytes");
        usize::try_from(u32::from_le_bytes(len)).expect("small")
    };
    let mut at = 10 + number(6) + 4;
    let mut all = vec![at];
    while number(at) > 0 {
        at += 4 + number(at);
        all.push(at);
    }
    assert_eq!(at + 16, bytes.len(), "the end is the end");
    all
}

#[test]
fn a_damaged_backup_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut old = alone(&dir.path().join("old"));
    old.start();
    for n in 0..400 {
        let value = vec![b'v'; 2000];
        assert_eq!(old.client().put(&format!("k{n}"), value).expect("an answer").status, 201);
    }
    let whole = backup(&mut old.client()).body;
    old.kill();
    let borders = borders(&whole);
    assert!(borders.len() > 3, "there are several chunks: {borders:?}");

    let home = dir.path().join("new");
    fs::create_dir(&home).expect("a directory");
    let refused = |bytes: &[u8], what: &str| {
        fs::write(home.join("b"), bytes).expect("a file");
        let output = restore(&home, &["b", "--db", "db", "--log", "log"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(65), "{what}: {text}");
        assert!(text.contains("b: at byte ") && text.contains("nothing was restored"), "{text}");
        for entry in fs::read_dir(&home).expect("a directory") {
            let name = entry.expect("an entry").file_name();
            let known = ["b", "db.lock", "log"].iter().any(|known| name == *known);
            assert!(known, "{what} left {name:?}");
        }
        for entry in fs::read_dir(home.join("log")).into_iter().flatten() {
            assert_eq!(entry.expect("an entry").file_name(), "LOCK", "{what}");
        }
    };
    for border in borders.iter().flat_map(|&at| [at, at + 4]).chain([0, 4, 9, whole.len() - 1]) {
        refused(&whole[..border], &format!("cut at {border}"));
    }
    // Chunks that are whole, but not all there, or twice.
    let mut missing = whole.clone();
    missing.drain(borders[1]..borders[2]);
    refused(&missing, "a missing chunk");
    refused(&[&whole[..], &b"x"[..]].concat(), "more than there is");
    let ends = [0, 1, 4, 6, 10, 30, 50, borders[0] - 1, borders[0], borders[0] + 3];
    let spread = (1..40).map(|n| n * whole.len() / 40);
    let last = borders[borders.len() - 1]..whole.len();
    for at in ends.into_iter().chain(spread).chain(last) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&bytes, &format!("a flipped bit at {at}"));
    }
    refused(b"", "an empty file");
    refused(&[0x55; 4096], "garbage");
    ends_well(&home, &whole);
}

/// After all of these the place is still good.
fn ends_well(home: &Path, whole: &[u8]) {
    fs::write(home.join("b"), whole).expect("a file");
    ends(&restore(home, &["b", "--db", "db", "--log", "log"]), 0, "restored 400 keys");
    let check = Command::new(env!("CARGO_BIN_EXE_mmapd"))
        .current_dir(home)
        .env_clear()
        .args(["check", "db", "log"])
        .output()
        .expect("the binary runs");
    ends(&check, 0, "");
}

#[test]
fn a_backup_goes_on_while_the_store_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut old = alone(&dir.path().join("old"));
    old.start();
    fill(&mut old.client(), 60);
    // Asked for, and not read: what follows is written while it waits.
    let mut slow = old.client().with_timeout(PATIENCE);
    slow.send("GET", "/v1/backup", &[], b"").expect("sent");
    let mut client = old.client();
    for round in 0..20 {
        for n in 0..60 {
            let value = format!("{round}").repeat(500);
            assert!(client.put(&format!("other/{n}"), value).expect("an answer").status < 300);
        }
    }
    let taken = slow.receive().expect("an answer");
    assert_eq!(taken.status, 200);
    let home = dir.path().join("new");
    let mut new = alone(&home);
    fs::write(home.join("b"), &taken.body).expect("a file");
    ends(&restore(&home, &["b", "--db", "db", "--log", "log"]), 0, "restored");
    new.start();
    for n in 0..60 {
        let reply = new.client().read(&format!("key/{n:03}")).expect("an answer");
        assert!(reply.body == value(n), "key {n} has another value");
    }
}

/// Every file below `dir` with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            let bytes = fs::read(&path).expect("a file");
            all.insert(path, bytes);
        }
    }
    all
}

/// What of `mmapd_http_requests_total` has this status, over all routes between nodes.
fn between_nodes(node: &Node, status: &str) -> u64 {
    let text = node.client().get("/metrics").expect("an answer").text();
    let of = text.lines().filter(|line| {
        line.starts_with("mmapd_http_requests_total{")
            && line.contains("\"/v1/raft/")
            && line.contains(&format!("status=\"{status}\""))
    });
    of.map(|line| line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a count"))
        .sum()
}

#[test]
fn the_last_node_of_a_lost_majority_becomes_a_new_cluster() {
    let mut old = Cluster::start(3, "");
    let (leader, _) = old.leader_after(0);
    fill(&mut old.nodes[leader].client(), 120);
    let id = cluster_id(&old.nodes[leader]);
    let was = old.settle();
    let survivor = (leader + 1) % 3;
    let home = old.nodes[survivor].dir.clone();
    let lost = ["b", "--config", "node.toml", "--majority-is-lost"];
    ends(&offline(&home, &lost), 77, "stop the other process");
    for node in &mut old.nodes {
        node.kill();
    }

    let before = files(&home);
    let refused = offline(&home, &["b", "--config", "node.toml"]);
    ends(&refused, 2, "not the only voter of its cluster, which are 1, 2, 3:");
    ends(&refused, 2, "say --majority-is-lost");
    ends(&offline(&home, &["none/b", "--config", "node.toml", "--majority-is-lost"]), 74, "none");
    assert!(files(&home) == before, "what was refused changed something");
    ends(&offline(&home, &lost), 0, "wrote 120 keys at revision");
    ends(&offline(&home, &lost), 2, "b is there already");
    let mut after = files(&home);
    let taken = after.remove(&home.join("b")).expect("a backup");
    assert!(after == before, "the files of the survivor changed, or there are more");

    // Two on the machines of old nodes, one on a new machine.
    let gone = (survivor + 1) % 3;
    let mut places: Vec<_> = old.nodes.iter().map(|node| (None, node.addr)).collect();
    places[gone].1.set_port(free_port());
    let mut new = Cluster::at(places, "");
    for node in &new.nodes {
        fs::write(node.dir.join("b"), &taken).expect("a file");
        ends(&restore(&node.dir, &["b", "--config", "node.toml"]), 0, "restored 120 keys");
    }
    new.start_all();
    let (leader, term) = new.leader_after(0);
    holds(&mut new.nodes[survivor].client(), 120);
    assert_ne!(cluster_id(&new.nodes[leader]), id);
    let revision = new.nodes[leader].number("revision").expect("a number");
    assert!(revision > was + BUMP - 10, "{revision} follows {was}");

    // The third of the old ones comes back, and takes the new ones for those it knew.
    let back = &mut old.nodes[gone];
    back.spawn();
    wait("the new cluster refuses the old node", || {
        let mut others = new.nodes.iter().filter(|node| node.id != back.id);
        others.all(|node| between_nodes(node, "421") > 3).then_some(())
    });
    assert_eq!(back.status().expect("a status")["cluster_id"], id);
    assert_eq!(back.client().get("/readyz").expect("an answer").status, 503);
    assert_eq!(new.leader_now(0), Some((leader, term)), "nobody was disturbed");
    assert_eq!(new.nodes[leader].client().put("more", "1").expect("an answer").status, 201);
}

#[test]
fn a_node_alone_is_backed_up_without_being_started() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut old = alone(&dir.path().join("old"));
    old.start();
    fill(&mut old.client(), 30);
    let reply = old.client().put("key/029", value(29)).expect("an answer");
    let last = reply.revision().expect("a revision");
    old.kill();
    let home = old.dir.clone();
    let made = offline(&home, &["../b", "--db", "db", "--log", "log"]);
    ends(&made, 0, &format!("the last entry is {last} of term 1"));
    let text = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(!text.contains("missing") && text.lines().count() == 1, "{text}");
    let mut new = alone(&dir.path().join("new"));
    ends(&restore(&new.dir, &["../b", "--db", "db", "--log", "log"]), 0, "restored 30 keys");
    new.start();
    holds(&mut new.client(), 30);

    // Stopped as asked, everything is in the database; then the disk takes it.
    new.signal(Signal::TERM);
    assert_eq!(new.exit_code(), Some(0));
    let path = new.dir.join("db");
    let mut bytes = fs::read(&path).expect("a file");
    bytes[3 * 4096..].fill(0x55);
    fs::write(&path, bytes).expect("a file");
    let before = files(&new.dir);
    ends(&offline(&new.dir, &["c", "--db", "db", "--log", "log"]), 65, "db");
    assert!(files(&new.dir) == before, "what was refused left something");
}
